"""An exception or INT n on its way through a gate of a guest's IDT, as the processor takes it in long mode: every check of gate, code
segment and stack, and the exception or double fault that comes where one fails (AMD64 Architecture Programmer's Manual, volume 2, sections
8.2.9, 8.4 and 8.9).

External interrupts the emulator delivers itself.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from .longmode import ADDRESS, LARGE, PRESENT
from .memory import Memory

__all__ = ["CLEARED", "Gates", "Table", "Taker"]

_DE, _DF, _TS, _NP, _SS, _GP, _PF = 0, 8, 10, 11, 12, 13, 14
_CONTRIBUTORY = frozenset({_DE, _TS, _NP, _SS, _GP})
_INTERRUPT_GATE, _TRAP_GATE = 0xE, 0xF
_IF = 1 << 9
CLEARED = 1 << 8 | 1 << 14 | 1 << 16 | 1 << 17
"""TF, NT, RF and VM, which every gate clears."""
_WRITABLE, _USER, _RESERVED = 1 << 1, 1 << 2, 0x000F_FF00_0000_0000
"""Rights of a page table's entry, and the address bits that this processor has not."""
_WRITE_PROTECT, _SMAP = 1 << 16, 1 << 21
_SEGMENT_PRESENT, _APPLICATION, _CODE, _CONFORMING, _LONG, _DEFAULT_32 = 1 << 15, 1 << 12, 1 << 11, 1 << 10, 1 << 21, 1 << 22
_RSP0, _IST0, _IO_MAP = 4, 0x1C, 0x66
_ALL_ONES = (1 << 64) - 1
_GATE = struct.Struct("<HHHHI4x")
_BREAKPOINT, _INT3 = 3, 0xCC


class Table(NamedTuple):
    """A descriptor table or the TSS: linear base, and the offset of its last byte."""

    base: int
    limit: int


@dataclass(slots=True)
class Taker:
    """What delivery needs of the guest's registers.  It changes `rip`, `rsp`, `cs` (a selector), `cpl`, `cr2` and sets the rest.

    `rights` is the upper half of the new code segment's descriptor; `cleared` are the flags to be cleared, `null_ss` whether SS becomes a
    null selector of the new level.
    """

    rip: int
    rsp: int
    rflags: int
    cs: int
    ss: int
    cpl: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    n_cr3: int
    gdt: Table
    ldt: Table
    idt: Table
    tss: Table
    tr: int
    rights: int = 0
    cleared: int = 0
    null_ss: bool = False


class _Raised(NamedTuple):
    """An exception on the way; `vector` -1 where tables or stack lie in no memory, which no processor can take."""

    vector: int
    code: int
    address: int | None = None


_UNREACHABLE = _Raised(-1, 0)


class Gates:
    """Delivers to guests whose nested tables lie in `memory`."""

    def __init__(self, memory: Memory):
        self._memory, self._map = memory, memory.map
        self._words = memoryview(memory.map).cast("Q")

    def deliver(self, taker: Taker, vector: int, code: int | None, software: bool = False) -> bool:
        """Moves `taker` into the handler.  `software` is an INT n, behind which RIP stands.

        An exception on the way is delivered in its turn, or a double fault; False where that fails, too: the processor shuts down.
        """
        back = taker.rip
        if software:
            taker.rip = back - self._length(taker, vector) & _ALL_ONES
        while True:
            raised = self._through_gate(taker, vector, code, software, back if software else taker.rip)
            if raised is None:
                return True
            if raised.vector < 0 or vector == _DF and not software:
                return False
            if raised.address is not None:
                taker.cr2 = raised.address
            double = not software and _double(vector, raised.vector)
            vector, code, software = (_DF, 0, False) if double else (raised.vector, raised.code, False)

    def port_allowed(self, taker: Taker, port: int, width: int) -> bool:
        """Whether the I/O permission bitmap of the TSS allows an access of `width` bytes."""
        start = self._read(taker, taker.tss.base + _IO_MAP, 2) if taker.tss.limit >= _IO_MAP + 1 else None
        if not isinstance(start, bytes):
            return False
        at = int.from_bytes(start, "little") + port // 8
        bits = self._read(taker, taker.tss.base + at, 2) if at + 1 <= taker.tss.limit else None
        return isinstance(bits, bytes) and not int.from_bytes(bits, "little") >> port % 8 & (1 << width) - 1

    def _length(self, taker: Taker, vector: int) -> int:
        """Bytes of the INT before RIP."""
        last = self._read(taker, taker.rip - 1 & _ALL_ONES, 1)
        return 1 if vector == _BREAKPOINT and isinstance(last, bytes) and last[0] == _INT3 else 2

    def _through_gate(self, taker: Taker, vector: int, code: int | None, software: bool, back: int) -> _Raised | None:
        """Frame, flags, stack, CS:RIP; nothing but memory below the stack is changed where that is not possible."""
        name = 8 * vector + 2
        gate = self._read(taker, taker.idt.base + 16 * vector, 16) if 16 * vector + 15 <= taker.idt.limit else _Raised(_GP, name)
        if isinstance(gate, _Raised):
            return gate
        low, selector, attributes, middle, high = _GATE.unpack(gate)
        if attributes >> 8 & 0x1F not in (_INTERRUPT_GATE, _TRAP_GATE) or software and attributes >> 13 & 3 < taker.cpl:
            return _Raised(_GP, name)
        if not attributes & 0x8000:
            return _Raised(_NP, name)
        rights = self._code_segment(taker, selector)
        if isinstance(rights, _Raised):
            return rights
        level = taker.cpl if rights & _CONFORMING else rights >> 13 & 3
        ist = attributes & 7
        stack = self._stack(taker, ist, level)
        if isinstance(stack, _Raised):
            return stack
        frame = [taker.ss, taker.rsp, taker.rflags, taker.cs, back]
        pushed = self._push(taker, stack, frame if code is None else [*frame, code])
        if isinstance(pushed, _Raised):
            return pushed
        taker.null_ss = bool(ist) or level < taker.cpl
        taker.cleared = CLEARED | (_IF if attributes >> 8 & 1 == 0 else 0)
        taker.rip, taker.rsp, taker.cs = low | middle << 16 | high << 32, pushed, selector & 0xFFFC | level
        taker.cpl, taker.rights = level, rights
        return None

    def _code_segment(self, taker: Taker, selector: int) -> int | _Raised:
        """The upper half of the descriptor that a gate names, where it is 64-bit code that may be entered from the current level."""
        name, table = selector & 0xFFFC, taker.ldt if selector & 4 else taker.gdt
        if not name or (selector & 0xFFF8) + 7 > table.limit:
            return _Raised(_GP, name)
        descriptor = self._read(taker, table.base + (selector & 0xFFF8), 8)
        if isinstance(descriptor, _Raised):
            return descriptor
        rights = int.from_bytes(descriptor[4:], "little")
        if rights & (_APPLICATION | _CODE) != _APPLICATION | _CODE or rights >> 13 & 3 > taker.cpl:
            return _Raised(_GP, name)
        if not rights & _SEGMENT_PRESENT:
            return _Raised(_NP, name)
        return rights if rights & (_LONG | _DEFAULT_32) == _LONG else _Raised(_GP, name)

    def _stack(self, taker: Taker, ist: int, level: int) -> int | _Raised:
        """The stack pointer before the frame: the gate's own, the inner level's, or the current one."""
        if not ist and level >= taker.cpl:
            return taker.rsp
        slot = _IST0 + 8 * ist if ist else _RSP0 + 8 * level
        if slot + 7 > taker.tss.limit:
            return _Raised(_TS, taker.tr & 0xFFFC)
        word = self._read(taker, taker.tss.base + slot, 8)
        return word if isinstance(word, _Raised) else int.from_bytes(word, "little")

    def _push(self, taker: Taker, stack: int, words: list[int]) -> int | _Raised:
        """Words onto the stack, the first one deepest; the new stack pointer.  Below 0 it goes on at the end of the address space."""
        end = stack & ~15
        start = end - 8 * len(words) & _ALL_ONES
        data = struct.pack(f"<{len(words)}Q", *reversed(words))
        high = self._at(taker, end - 8 & _ALL_ONES, True)
        room = min(0x1000 - (start & 0xFFF), len(data))
        low = high if room == len(data) or isinstance(high, _Raised) else self._at(taker, start | 0xFF8, True)
        for place in (high, low):
            if isinstance(place, _Raised):
                return _Raised(_SS, 0) if place.vector == _GP else place
        assert isinstance(high, int) and isinstance(low, int)
        rest = len(data) - room
        if rest:
            self._memory.write(low + 8 - room, data[:room])
        self._memory.write(high + 8 - (rest or len(data)), data[room if rest else 0:])
        return start

    # --- page tables

    def _read(self, taker: Taker, address: int, size: int) -> bytes | _Raised:
        """Bytes at a guest-virtual address, as the processor reads its own tables."""
        room = 0x1000 - (address & 0xFFF)
        at = self._at(taker, address & _ALL_ONES)
        if isinstance(at, _Raised):
            return at
        if size <= room:
            return self._map[at:at + size]
        rest = self._read(taker, address + room, size - room)
        return rest if isinstance(rest, _Raised) else self._map[at:at + room] + rest

    def _at(self, taker: Taker, address: int, write: bool = False) -> int | _Raised:
        """Host-physical address of a guest-virtual one that the processor itself accesses, whatever the level of the code."""
        if (address >> 47) + 1 & 0x1FFFE:
            return _Raised(_GP, 0)
        words, table, rights, n_cr3 = self._words, taker.cr3, _WRITABLE | _USER, taker.n_cr3
        for shift in (39, 30, 21, 12):
            slot = self._nested((table & ADDRESS) + (address >> shift - 3 & 0xFF8), n_cr3)
            if slot is None:
                return _UNREACHABLE
            entry = words[slot >> 3]
            if not entry & PRESENT or entry & _RESERVED:
                return _Raised(_PF, write << 1 | (9 if entry & PRESENT else 0), address)
            rights &= entry
            if shift == 12 or shift < 39 and entry & LARGE:
                if write and not rights & _WRITABLE and taker.cr0 & _WRITE_PROTECT or rights & _USER and taker.cr4 & _SMAP:
                    return _Raised(_PF, write << 1 | 1, address)
                offset = (1 << shift) - 1
                found = self._nested(entry & ADDRESS & ~offset | address & offset, n_cr3, write)
                return found if found is not None and self._memory.backed(found) else _UNREACHABLE
            table = entry
        return _UNREACHABLE

    def _nested(self, address: int, table: int, write: bool = False) -> int | None:
        """Host-physical address of a guest-physical one below the end of RAM."""
        words = self._words
        for shift in (39, 30, 21, 12):
            slot = (table & ADDRESS) + (address >> shift - 3 & 0xFF8) >> 3
            entry = words[slot] if slot < len(words) else 0
            if not entry & PRESENT or write and not entry & _WRITABLE:
                return None
            if shift == 12 or shift < 39 and entry & LARGE:
                offset = (1 << shift) - 1
                physical = entry & ADDRESS & ~offset | address & offset
                return physical if physical >> 3 < len(words) else None
            table = entry
        return None


def _double(first: int, second: int) -> bool:
    """Whether exception `second` while `first` is delivered makes a double fault."""
    return second in _CONTRIBUTORY and (first in _CONTRIBUTORY or first == _PF) or first == second == _PF
