"""Exceptions, INT n and SYSCALL of a guest, which the emulator leaves to its hooks: carried out as the processor does it, on the guest's
own descriptor tables and stacks (AMD64 Architecture Programmer's Manual, volume 2, sections 8.9 and 6.1.1; long mode only).

External interrupts the emulator delivers itself.
"""

import struct

from ..spec.svm import ControlArea
from .emulator import CONDITIONS, Env, State
from .longmode import ADDRESS, LARGE, PRESENT
from .memory import Memory

__all__ = ["DOUBLE_FAULT", "Exceptions"]

DOUBLE_FAULT = 8
_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
_TF, _IF, _NT, _RF, _VM = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17
_INTERRUPT_GATE, _TRAP_GATE = 0xE, 0xF
_RSP0, _IST0 = 4, 0x1C
WRITABLE = 1 << 1
_CPL, _INHIBIT_IRQ, _ADD_SEGMENT, _LONG_MODE = 3, 1 << 3, 1 << 6, 1 << 15 | 1 << 5 | 1 << 4
"""Bits of the emulator's HFLAGS: level, STI's shadow, non-zero segment bases, 64-bit code with 32-bit stack."""
_ALL_ONES = (1 << 64) - 1
_CS, _SS = Env.SEGS + 24, Env.SEGS + 48
_FLAT_CODE, _FLAT_STACK = 0x00A09B00, 0x00C09300
_GATE = struct.Struct("<HHHHI4x")


class Exceptions:
    """Delivers to the guest that runs on the processor of `state`; its nested tables are found by the VMCB in `memory`."""

    def __init__(self, memory: Memory, state: State):
        self.memory, self.state, self._q, self._d, self._map = memory, state, state.q, state.d, memory.map
        self._words = memoryview(memory.map).cast("Q")

    def deliver(self, vector: int, vmcb: int) -> bool:
        """The exception or INT n that the emulator has just raised, by the VMCB at a host-physical address.

        Where it cannot be delivered, a double fault is; False where that fails, too: the processor shuts down.
        """
        where, d = self.state.where, self._d
        software = d[where.exception_is_int // 4]
        code = d[where.error_code // 4] if vector in _WITH_ERROR_CODE and not software else None
        d[where.exception_is_int // 4] = 0
        d[where.old_exception // 4] = 0xFFFFFFFF
        n_cr3 = self._words[vmcb + ControlArea.N_CR3 >> 3]
        return self._through_gate(vector, code, n_cr3) or vector != DOUBLE_FAULT and self._through_gate(DOUBLE_FAULT, 0, n_cr3)

    def syscall(self) -> None:
        """SYSCALL of 64-bit code.  RIP is left before the target by the instruction's two bytes, which the emulator adds afterwards."""
        q, d, where = self._q, self._d, self.state.where
        flags = self.state.rflags()
        q[1], q[11] = q[Env.EIP // 8] + 2 & _ALL_ONES, flags & ~_RF
        q[Env.EFLAGS // 8] = q[Env.EFLAGS // 8] & ~(q[where.fmask // 8] | _RF) & _ALL_ONES | 2
        kept = flags & ~q[where.fmask // 8]
        q[Env.CC_SRC // 8], d[Env.CC_OP // 4] = kept & 0x8D5, CONDITIONS
        d[Env.DF // 4] = 0xFFFFFFFF if kept & 1 << 10 else 1
        selector = q[where.star // 8] >> 32 & 0xFFFC
        self._segment(_CS, selector, 0xFFFFFFFF, _FLAT_CODE)
        self._segment(_SS, selector + 8, 0xFFFFFFFF, _FLAT_STACK)
        self._enter(0)
        q[Env.EIP // 8] = q[where.lstar // 8] - 2 & _ALL_ONES

    # --- a gate

    def _through_gate(self, vector: int, code: int | None, n_cr3: int) -> bool:
        """Frame, flags, stack, CS:RIP; nothing is changed where that is not possible."""
        q, d = self._q, self._d
        at = self._at(q[Env.IDT // 8 + 1] + 16 * vector, n_cr3)
        if at is None or 16 * vector + 15 > d[Env.IDT // 4 + 4]:
            return False
        low, selector, attributes, middle, high = _GATE.unpack_from(self._map, at)
        kind = attributes >> 8 & 0xF
        if not attributes & 0x8000 or kind not in (_INTERRUPT_GATE, _TRAP_GATE):
            return False
        descriptor = self._at(q[Env.GDT // 8 + 1] + (selector & 0xFFF8), n_cr3)
        if descriptor is None:
            return False
        rights = int.from_bytes(self._map[descriptor + 4:descriptor + 8], "little")
        level, before = rights >> 13 & 3, d[Env.HFLAGS // 4] & _CPL
        stack = self._stack(attributes & 7, level, before, n_cr3)
        if stack is None or level > before:
            return False
        frame = [d[_SS // 4] & 0xFFFF, q[4], self.state.rflags(), d[_CS // 4] & 0xFFFF, q[Env.EIP // 8]]
        pushed = self._push(stack, frame if code is None else [*frame, code], n_cr3)
        if pushed is None:
            return False
        q[4] = pushed
        q[Env.EFLAGS // 8] &= ~(_TF | _NT | _RF | _VM | (_IF if kind == _INTERRUPT_GATE else 0))
        if level < before:
            self._segment(_SS, level, 0, level << 13)
        self._segment(_CS, selector & 0xFFFC | level, 0xFFFFFFFF, rights)
        self._enter(level)
        q[Env.EIP // 8] = low | middle << 16 | high << 32
        return True

    def _stack(self, ist: int, level: int, before: int, n_cr3: int) -> int | None:
        """The stack pointer before the frame: the gate's own, the inner level's, or the current one."""
        if not ist and level >= before:
            return self._q[4]
        slot = self._at(self._q[Env.TR // 8 + 1] + (_IST0 + 8 * ist if ist else _RSP0 + 8 * level), n_cr3)
        return None if slot is None else int.from_bytes(self._map[slot:slot + 8], "little")

    def _push(self, stack: int, words: list[int], n_cr3: int) -> int | None:
        """Words onto the stack, the first one deepest; the new stack pointer, None where the stack is not mapped."""
        data = struct.pack(f"<{len(words)}Q", *reversed(words))
        stack = (stack & ~15) - len(data) & _ALL_ONES
        room = min(0x1000 - (stack & 0xFFF), len(data))
        first = self._at(stack, n_cr3, write=True)
        rest = first if room == len(data) else self._at(stack + room, n_cr3, write=True)
        if first is None or rest is None:
            return None
        self._map[first:first + room] = data[:room]
        if room < len(data):
            self._map[rest:rest + len(data) - room] = data[room:]
        return stack

    def _segment(self, at: int, selector: int, limit: int, attributes: int) -> None:
        d = self._d
        d[at // 4], self._q[at // 8 + 1], d[at // 4 + 4], d[at // 4 + 5] = selector, 0, limit, attributes

    def _enter(self, level: int) -> None:
        d = self._d
        d[Env.HFLAGS // 4] = d[Env.HFLAGS // 4] & ~(_CPL | _INHIBIT_IRQ | _ADD_SEGMENT) | level | _LONG_MODE

    # --- page tables

    def _at(self, address: int, n_cr3: int, write: bool = False) -> int | None:
        """Host-physical address of a guest-virtual one; None where it is not mapped, no memory, or not writable though to be written."""
        words, table = self._words, self._q[Env.CR3 // 8]
        for shift in (39, 30, 21, 12):
            slot = self._nested((table & ADDRESS) + (address >> shift - 3 & 0xFF8), n_cr3)
            entry = words[slot >> 3] if slot is not None else 0
            if not entry & PRESENT or write and not entry & WRITABLE:
                return None
            if shift == 12 or shift < 39 and entry & LARGE:
                offset = (1 << shift) - 1
                found = self._nested(entry & ADDRESS & ~offset | address & offset, n_cr3, write)
                return found if found is not None and self.memory.backed(found) else None
            table = entry
        return None

    def _nested(self, address: int, table: int, write: bool = False) -> int | None:
        """Host-physical address of a guest-physical one below the end of RAM."""
        words = self._words
        for shift in (39, 30, 21, 12):
            slot = (table & ADDRESS) + (address >> shift - 3 & 0xFF8) >> 3
            entry = words[slot] if slot < len(words) else 0
            if not entry & PRESENT or write and not entry & WRITABLE:
                return None
            if shift == 12 or shift < 39 and entry & LARGE:
                offset = (1 << shift) - 1
                physical = entry & ADDRESS & ~offset | address & offset
                return physical if physical >> 3 < len(words) else None
            table = entry
        return None
