"""Delivery of an injected exception, which the emulator leaves out: EVENTINJ of an exception, as the processor carries it out at VMRUN
(AMD64 Architecture Programmer's Manual, volume 2, sections 8.9 and 15.20).  External interrupts the emulator delivers itself."""

import struct
from dataclasses import dataclass

from ..spec.svm import EVENT_ERROR_CODE, EVENT_EXCEPTION, EVENT_VALID, ControlArea, SaveArea
from .longmode import translate_nested
from .memory import Memory

__all__ = ["deliver_injected_exception"]

_TYPE = 7 << 8
_TF, _IF, _NT, _RF, _VM = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17
_RSP0, _IST0 = 4, 0x1C
_INTERRUPT_GATE, _TRAP_GATE = 0xE, 0xF
DOUBLE_FAULT = 8


def deliver_injected_exception(memory: Memory, vmcb: int) -> int | None:
    """If the VMCB at `vmcb` (host-physical) asks for an exception, moves the guest into its handler: frame on its stack, RIP, RFLAGS, CS.

    Where the guest's descriptor tables or stack cannot take it, a double fault is tried.  Returns the exception's vector where that fails,
    too: the processor shuts down (a triple fault); None where all is well.
    """
    guest = _Guest(memory, vmcb)
    event = guest.get(ControlArea.EVENTINJ)
    if not event & EVENT_VALID or event & _TYPE != EVENT_EXCEPTION:
        return None
    code = event >> 32 if event & EVENT_ERROR_CODE else None
    vector = event & 0xFF
    guest.put(ControlArea.EVENTINJ, 0)
    delivered = guest.deliver(vector, code) or vector != DOUBLE_FAULT and guest.deliver(DOUBLE_FAULT, 0)
    return None if delivered else vector


@dataclass(frozen=True)
class _Guest:
    memory: Memory
    vmcb: int

    def get(self, offset: int) -> int:
        return self.memory.read64(self.vmcb + offset)

    def put(self, offset: int, value: int) -> None:
        self.memory.write64(self.vmcb + offset, value)

    def _at(self, address: int) -> int | None:
        return translate_nested(self.memory, self.get(SaveArea.CR3), self.get(ControlArea.N_CR3), address & (1 << 64) - 1)

    def read(self, address: int, length: int) -> bytes | None:
        """Bytes at a guest-virtual address; None where some of it is not mapped."""
        parts = []
        while length:
            part = min(length, 4096 - address % 4096)
            physical = self._at(address)
            if physical is None or not self.memory.backed(physical, part):
                return None
            parts.append(self.memory.read(physical, part))
            address, length = address + part, length - part
        return b"".join(parts)

    def push(self, stack: int, words: list[int]) -> int | None:
        """Words onto the stack, the first one deepest; the new stack pointer, None where the stack is not mapped.  Below 0 it goes on at
        the end of the address space."""
        stack = (stack & ~15) - 8 * len(words) & (1 << 64) - 1
        places = [self._at(stack + 8 * i) for i in range(len(words))]
        if any(p is None or not self.memory.backed(p, 8) for p in places):
            return None
        for place, word in zip(places, reversed(words), strict=True):
            self.memory.write64(place or 0, word)
        return stack

    def deliver(self, vector: int, code: int | None) -> bool:
        """Through the gate of `vector`; False where that is not possible."""
        gate = self.read(self.get(SaveArea.IDTR + 8) + 16 * vector, 16)
        if gate is None or 16 * vector + 15 > self.get(SaveArea.IDTR) >> 32:
            return False
        low, selector, attributes, middle, high = struct.unpack("<HHHHI4x", gate)
        if not attributes & 0x8000 or attributes >> 8 & 0xF not in (_INTERRUPT_GATE, _TRAP_GATE):
            return False
        privilege = self.get(SaveArea.CPL) & 3
        stack = self._stack(attributes & 7, privilege)
        if stack is None:
            return False
        flags = self.get(SaveArea.RFLAGS)
        frame = [self.get(SaveArea.SS) & 0xFFFF, self.get(SaveArea.RSP), flags, self.get(SaveArea.CS) & 0xFFFF, self.get(SaveArea.RIP)]
        pushed = self.push(stack, frame + ([code] if code is not None else []))
        if pushed is None:
            return False
        self._enter(selector, low | middle << 16 | high << 32, pushed, privilege)
        masked = _TF | _NT | _RF | _VM | (_IF if attributes >> 8 & 0xF == _INTERRUPT_GATE else 0)
        self.put(SaveArea.RFLAGS, flags & ~masked)
        return True

    def _stack(self, ist: int, privilege: int) -> int | None:
        """The stack pointer before the frame: the gate's own, the kernel's, or the current one."""
        if not ist and not privilege:
            return self.get(SaveArea.RSP)
        slot = _IST0 + 8 * ist if ist else _RSP0
        word = self.read(self.get(SaveArea.TR + 8) + slot, 8)
        return None if word is None else int.from_bytes(word, "little")

    def _enter(self, selector: int, rip: int, stack: int, privilege: int) -> None:
        self.put(SaveArea.RIP, rip)
        self.put(SaveArea.RSP, stack)
        self.memory.write(self.vmcb + SaveArea.CS, struct.pack("<HHIQ", selector & 0xFFFC, 0xA9B, 0xFFFFFFFF, 0))
        self.memory.write(self.vmcb + SaveArea.CPL, b"\0")
        if privilege:
            self.memory.write(self.vmcb + SaveArea.SS, struct.pack("<HHIQ", 0, 0xC93, 0xFFFFFFFF, 0))
