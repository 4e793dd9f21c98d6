"""Delivery of an injected exception, which the emulator leaves out: EVENTINJ of an exception, as the processor carries it out at VMRUN
(AMD64 Architecture Programmer's Manual, volume 2, sections 8.9 and 15.20).  External interrupts the emulator delivers itself."""

import struct

from ..spec.svm import EVENT_ERROR_CODE, EVENT_EXCEPTION, EVENT_VALID, ControlArea, SaveArea
from .gates import Gates, Table, Taker
from .memory import Memory

__all__ = ["deliver_injected_exception"]

_TYPE = 7 << 8
_SEGMENT, _DESCRIPTORS = struct.Struct("<HHIQ"), (SaveArea.GDTR, SaveArea.LDTR, SaveArea.IDTR, SaveArea.TR)


def deliver_injected_exception(memory: Memory, vmcb: int) -> int | None:
    """If the VMCB at `vmcb` (host-physical) asks for an exception, moves the guest into its handler: frame on its stack, RIP, RFLAGS, CS.

    Where the guest's descriptor tables or stack cannot take it, what comes of it is tried, at last a double fault.  Returns the exception's
    vector where that fails, too: the processor shuts down (a triple fault); None where all is well.
    """
    event = memory.read64(vmcb + ControlArea.EVENTINJ)
    if not event & EVENT_VALID or event & _TYPE != EVENT_EXCEPTION:
        return None
    code = event >> 32 if event & EVENT_ERROR_CODE else None
    vector = event & 0xFF
    memory.write64(vmcb + ControlArea.EVENTINJ, 0)
    taker = _taker(memory, vmcb)
    if not Gates(memory).deliver(taker, vector, code):
        return vector
    _enter(memory, vmcb, taker)
    return None


def _taker(memory: Memory, vmcb: int) -> Taker:
    """The guest's registers as the VMCB has them."""
    def get(offset: int) -> int:
        return memory.read64(vmcb + offset)

    segments = [_SEGMENT.unpack_from(memory.map, vmcb + at) for at in _DESCRIPTORS]
    gdt, ldt, idt, tss = (Table(base, limit) for _, _, limit, base in segments)
    return Taker(get(SaveArea.RIP), get(SaveArea.RSP), get(SaveArea.RFLAGS), get(SaveArea.CS) & 0xFFFF, get(SaveArea.SS) & 0xFFFF,
                 get(SaveArea.CPL) & 3, get(SaveArea.CR0), get(SaveArea.CR2), get(SaveArea.CR3), get(SaveArea.CR4),
                 get(ControlArea.N_CR3), gdt, ldt, idt, tss, segments[3][0])


def _enter(memory: Memory, vmcb: int, taker: Taker) -> None:
    attributes = taker.rights >> 8 & 0xFF | taker.rights >> 12 & 0xF00
    for offset, value in ((SaveArea.RIP, taker.rip), (SaveArea.RSP, taker.rsp), (SaveArea.CR2, taker.cr2),
                          (SaveArea.RFLAGS, taker.rflags & ~taker.cleared)):
        memory.write64(vmcb + offset, value)
    memory.write(vmcb + SaveArea.CS, _SEGMENT.pack(taker.cs, attributes, 0xFFFFFFFF, 0))
    memory.write(vmcb + SaveArea.CPL, bytes((taker.cpl,)))
    if taker.null_ss:
        memory.write(vmcb + SaveArea.SS, _SEGMENT.pack(taker.cpl, taker.cpl << 5, 0, 0))
