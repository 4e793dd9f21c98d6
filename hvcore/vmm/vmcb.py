"""The guest's state as the core reaches it: the VMCB and the saved registers, read from memory at every use."""

import struct

from ..errors import Unreadable
from ..machine.memory import Memory
from ..spec import svm
from ..spec.svm import INTERCEPTS_1, INTERCEPTS_2, ControlArea, ExitCode, SaveArea
from .layout import GUEST_REGISTERS, Data, Part

__all__ = ["Vmcb", "fresh_vmcb", "msr_permissions"]

_U64 = struct.Struct("<Q")
_SEGMENT = struct.Struct("<HHIQ")
RFLAGS_TF, RFLAGS_IF, DR6_BS = 1 << 8, 1 << 9, 1 << 14
DEBUG = 1
"""The exception that steps make."""


class Vmcb:
    """The VMCB that the data page points to, and the general registers saved there."""

    def __init__(self, memory: Memory, base: int):
        self.memory = memory
        self.data = base + Part.DATA
        self.address = memory.read64(self.data + Data.VMCB)
        if not memory.backed(self.address, 4096):
            raise Unreadable(self.address, 4096, "the core's pointer to the VMCB leads nowhere")

    def get(self, offset: int) -> int:
        """A 64-bit field."""
        return int(_U64.unpack_from(self.memory.map, self.address + offset)[0])

    def set(self, offset: int, value: int) -> None:
        """Stores a 64-bit field."""
        _U64.pack_into(self.memory.map, self.address + offset, value & 0xFFFF_FFFF_FFFF_FFFF)

    def register(self, number: int) -> int:
        """A general register of the guest by its number in the instruction set (RAX 0, RCX 1, RDX 2, ...)."""
        name = GUEST_REGISTERS[number]
        if name in ("rax", "rsp"):
            return self.get(SaveArea.RAX if name == "rax" else SaveArea.RSP)
        return self.memory.read64(self.data + Data.GPRS + 8 * number)

    def set_register(self, number: int, value: int) -> None:
        """Stores a general register of the guest."""
        name = GUEST_REGISTERS[number]
        if name in ("rax", "rsp"):
            self.set(SaveArea.RAX if name == "rax" else SaveArea.RSP, value)
        else:
            self.memory.write64(self.data + Data.GPRS + 8 * number, value & 0xFFFF_FFFF_FFFF_FFFF)

    def skip(self, length: int) -> None:
        """Moves the guest behind an instruction of `length` bytes that was carried out for it; where it is stepped, it traps there."""
        self.set(SaveArea.RIP, self.get(SaveArea.RIP) + length)
        if self.get(SaveArea.RFLAGS) & RFLAGS_TF:
            self.set(SaveArea.DR6, self.get(SaveArea.DR6) | DR6_BS)
            self.inject_exception(DEBUG)

    def inject(self, event: int, error_code: int = 0) -> None:
        """Delivers an event through the guest's IDT at the next entry."""
        self.set(ControlArea.EVENTINJ, event | svm.EVENT_VALID | error_code << 32)

    def inject_exception(self, vector: int, error_code: int | None = None) -> None:
        """Delivers an exception."""
        has_code = svm.EVENT_ERROR_CODE if error_code is not None else 0
        self.inject(svm.EVENT_EXCEPTION | has_code | vector, error_code or 0)

    @property
    def interruptible(self) -> bool:
        """Whether the guest would take an interrupt at once."""
        pending = self.get(ControlArea.EVENTINJ) & svm.EVENT_VALID
        return bool(self.get(SaveArea.RFLAGS) & RFLAGS_IF) and not pending


_INTERCEPTED_1 = (ExitCode.INTR, ExitCode.CPUID, ExitCode.HLT, ExitCode.MSR, ExitCode.SHUTDOWN, ExitCode.INVD)
_INTERCEPTED_2 = (ExitCode.VMRUN, ExitCode.VMMCALL, ExitCode.VMLOAD, ExitCode.VMSAVE, ExitCode.STGI, ExitCode.CLGI, ExitCode.SKINIT)
_EFER = svm.EFER_SVME | svm.EFER_NXE | svm.EFER_LMA | svm.EFER_LME | svm.EFER_SCE
_EXCEPTIONS = 0xFFFF_FFFF & ~(1 << 1 | 1 << 2 | 1 << 3)
"""All but #DB, NMI and #BP."""


def fresh_vmcb(msrpm: int, n_cr3: int, rip: int, cr3: int, gdt: int, stack: int) -> bytes:
    """A VMCB for a guest that begins in long mode at `rip` with the tables at `cr3` and flat segments 0x10 (code) and 0x18 (data)."""
    page = bytearray(4096)
    controls: tuple[tuple[int, int], ...] = (
        (ControlArea.EXCEPTIONS, _EXCEPTIONS), (ControlArea.INTERCEPTS_1, sum(INTERCEPTS_1[c] for c in _INTERCEPTED_1)),
        (ControlArea.INTERCEPTS_2, sum(INTERCEPTS_2[c] for c in _INTERCEPTED_2)), (ControlArea.ASID, 1))
    for offset, value in controls:
        struct.pack_into("<I", page, offset, value)
    words: tuple[tuple[int, int], ...] = (
        (ControlArea.MSRPM, msrpm), (ControlArea.NESTED_CONTROL, 1), (ControlArea.N_CR3, n_cr3), (SaveArea.EFER, _EFER),
        (SaveArea.CR0, 0x80010011), (SaveArea.CR3, cr3), (SaveArea.CR4, 0x620), (SaveArea.DR6, 0xFFFF0FF0), (SaveArea.DR7, 0x400),
        (SaveArea.RFLAGS, 2), (SaveArea.RIP, rip), (SaveArea.RSP, stack), (SaveArea.G_PAT, 0x0007040600070406))
    for offset, value in words:
        _U64.pack_into(page, offset, value)
    for data_segment in (SaveArea.ES, SaveArea.SS, SaveArea.DS, SaveArea.FS, SaveArea.GS):
        _SEGMENT.pack_into(page, data_segment, 0x18, 0xC93, 0xFFFFFFFF, 0)
    _SEGMENT.pack_into(page, SaveArea.CS, 0x10, 0xA9B, 0xFFFFFFFF, 0)
    _SEGMENT.pack_into(page, SaveArea.TR, 0, 0x8B, 0xFFFF, 0)
    _SEGMENT.pack_into(page, SaveArea.GDTR, 0, 0, 0x1F, gdt)
    return bytes(page)


def msr_permissions(msrs: tuple[int, ...]) -> bytes:
    """An MSR permission map of 8 KiB in which reads and writes of `msrs` exit; the others do not."""
    bits = bytearray(8192)
    for msr in msrs:
        vector, index = next((0x800 * n, msr - first) for n, first in enumerate((0, 0xC0000000, 0xC0010000)) if 0 <= msr - first < 0x2000)
        bits[vector + index // 4] |= 3 << 2 * (index % 4)
    return bytes(bits)
