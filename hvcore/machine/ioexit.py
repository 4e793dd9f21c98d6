"""The IOIO intercept, which the emulator does not have: the processor's hooks of IN and OUT ask here.

Whether an access exits is told by the VMCB and the I/O permission map it points to, both in memory.  The exit itself comes without a world
switch: the emulator cannot leave the guest from inside an IN.  EXITCODE, EXITINFO1 and RAX are put into the VMCB as the processor puts
them, the policy answers there, and the guest goes on behind its instruction (AMD64 Architecture Programmer's Manual, volume 2, section
15.10).
"""

import struct

from ..spec.svm import INTERCEPTS_1, ControlArea, ExitCode, SaveArea, io_info
from .memory import PAGE, Memory

__all__ = ["answer", "describe", "intercepted"]

_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_IOIO = INTERCEPTS_1[ExitCode.IOIO]


def intercepted(memory: Memory, vmcb: int, port: int, width: int) -> bool:
    """Whether the VMCB (host-physical) wants an exit for an access of `width` bytes: the bit of any of its ports is set."""
    if not memory.backed(vmcb, PAGE) or not _U32.unpack_from(memory.map, vmcb + ControlArea.INTERCEPTS_1)[0] & _IOIO:
        return False
    at = (_U64.unpack_from(memory.map, vmcb + ControlArea.IOPM)[0] & ~0xFFF) + port // 8
    bits = _U16.unpack_from(memory.map, at)[0] if memory.backed(at, 2) else 0
    return bool(bits >> port % 8 & (1 << width) - 1)


def describe(memory: Memory, vmcb: int, port: int, width: int, value: int | None) -> None:
    """Puts the exit into a VMCB that intercepts it: `value` is what an OUT sends, None for an IN."""
    _U64.pack_into(memory.map, vmcb + ControlArea.EXITCODE, ExitCode.IOIO)
    _U64.pack_into(memory.map, vmcb + ControlArea.EXITINFO1, io_info(port, width, value is None))
    if value is not None:
        _U64.pack_into(memory.map, vmcb + SaveArea.RAX, value)


def answer(memory: Memory, vmcb: int, width: int) -> int:
    """What an IN gets: the low bytes of the VMCB's RAX."""
    return memory.read64(vmcb + SaveArea.RAX) & (1 << 8 * width) - 1
