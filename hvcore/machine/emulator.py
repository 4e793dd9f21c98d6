"""What is private in the emulator, in one place: where it lies is read out of the machine code of functions the library exports.

Unicorn hands a #VMEXIT to a hook (interrupt 0x100 + exit code) and stops short of the world switch.  The library's own exported function
`x86_cpu_do_interrupt_x86_64` finishes it; it needs the pointer to the emulated processor.  Its offset is found and checked here at start (a
flag the function reads must be 0 or 1 there); where that does not fit (another platform or version), the caller uses the public interface
alone (`vmexit.PublicExit`).
"""

import ctypes
import re
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

from unicorn import Uc
from unicorn.unicorn_py3.unicorn import uclib
from unicorn.x86_const import UC_X86_REG_RAX

__all__ = ["Private", "find", "release"]


@dataclass(frozen=True)
class Private:
    """The emulated processor behind a `Uc`: raw addresses in this process, valid while the `Uc` lives."""

    handle: int
    cpu: int
    no_exit_request: ctypes.c_uint8 | None

    def finish_exit(self) -> None:
        """The hardware's part of a #VMEXIT: guest state and EXITCODE into the VMCB, host state from the save area, TLB."""
        _function("x86_cpu_do_interrupt_x86_64", ctypes.c_void_p)(self.cpu)

    def drop_code(self, start: int, end: int) -> None:
        """Forgets translated code of [start, end), counted in the emulator's RAM blocks; allowed inside hooks."""
        _function("tb_invalidate_phys_range_x86_64", ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)(self.handle, start, end)


@cache
def _function(name: str, *arguments: Any) -> Any:
    """An exported function of the library that returns nothing."""
    function = getattr(uclib, name)
    function.argtypes, function.restype = list(arguments), None
    return function


def _offset(function: str, size: int, pattern: bytes) -> int | None:
    """The 32-bit displacement that `pattern` captures in the machine code of an exported function."""
    symbol: Any = getattr(uclib, function, None)
    address = ctypes.cast(symbol, ctypes.c_void_p).value if symbol is not None else None
    if not address:
        return None
    found = re.search(pattern, ctypes.string_at(address, size), re.DOTALL)
    return struct.unpack("<I", found[1])[0] if found else None


def release(uc: Uc) -> None:
    """Gives back what an emulator holds outside Python, at once; nothing of it may be used any more.

    The library does that when its object goes, but object and hooks hold each other until the garbage collector comes by.  Where this
    version keeps no such finalizer, it is left to that.
    """
    finalizer = getattr(uc, "_Uc__finalizer", None)
    if finalizer is not None:
        finalizer()


def find(uc: Uc) -> Private | None:
    """The private parts of `uc`; None where this build of the library has them elsewhere."""
    if ctypes.sizeof(ctypes.c_void_p) != 8 or not hasattr(uclib, "tb_invalidate_phys_range_x86_64"):
        return None
    uc.reg_read(UC_X86_REG_RAX)
    handle = int(getattr(uc._uch, "value", uc._uch))
    at_cpu = _offset("uc_reg_read", 128, rb"\x48\x8b\x83(....)")
    at_int = _offset("x86_cpu_do_interrupt_x86_64", 96, rb"\x8b\x97(....)")
    if at_cpu is None or at_int is None or at_cpu > 0x2000 or at_int > 0x10000:
        return None
    cpu = ctypes.c_void_p.from_address(handle + at_cpu).value
    if not cpu:
        return None
    if ctypes.c_uint32.from_address(cpu + at_int).value not in (0, 1):
        return None
    at_exit = _offset("check_exit_request_x86_64", 32, rb"\x80[\xb8-\xbf](....)\x00")
    no_exit = ctypes.c_uint8.from_address(handle + at_exit) if at_exit is not None and at_exit < 0x4000 else None
    return Private(handle, cpu, no_exit)
