"""All registers of an emulated processor as bytes, those among them that the public interface does not show, and back.

The bytes are the emulator's own: another version lays them out otherwise, so whoever keeps them also keeps `layout_name`.  Addresses in
this process (hardware breakpoints, the emulator's own code) are left out.  The index of the top of the x87 stack is bounded, and rounding
modes follow from their control registers, which are written once more: no bytes, wherever they come from, lead the emulator out of its own.
"""

import ctypes
from functools import cache
from typing import Any

import unicorn
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn import x86_const as x86

__all__ = ["layout_name", "of_context", "restore", "save", "to_context"]

_POINTERS, _TOP_MASK = 32, 7
"""Bytes of the four pointers behind the eight debug registers."""
_DEBUG_REGISTERS = 64


def save(uc: Uc) -> bytes:
    """Every register, while nothing runs or in a hook."""
    return of_context(uc.context_save())


def of_context(context: Any) -> bytes:
    """The registers in a context of the library's."""
    return _clean(bytes(context)[_header(context):])


def restore(uc: Uc, data: bytes) -> None:
    """Puts back what `save` gave, into this or another emulator, while nothing runs.  Raises ValueError for another length.

    Translated code and the TLB are not touched: drop them where the memory or the tables have changed.
    """
    uc.context_restore(to_context(uc, data))
    for register in (x86.UC_X86_REG_FPCW, x86.UC_X86_REG_MXCSR):
        uc.reg_write(register, uc.reg_read(register))


def to_context(uc: Uc, data: bytes) -> Any:
    """What `save` gave as a context of the library's, to be restored in `uc` later.  Raises ValueError for another length."""
    context = uc.context_save()
    start = _header(context)
    if len(data) != context.size - start:
        raise ValueError(f"the processor's state has {len(data)} bytes, this emulator's has {context.size - start}")
    ctypes.memmove(_address(context) + start, _clean(data), len(data))
    return context


def _clean(data: bytes) -> bytes:
    """The registers without what must not come from outside."""
    places, clean = _places(), bytearray(data)
    clean[places.pointers:places.pointers + _POINTERS] = bytes(_POINTERS)
    clean[places.code:places.code + 8] = bytes(8)
    top = int.from_bytes(clean[places.top:places.top + 4], "little") & _TOP_MASK
    clean[places.top:places.top + 4] = top.to_bytes(4, "little")
    return bytes(clean)


def layout_name() -> str:
    """What the bytes are laid out by: the emulator's version, and how many there are."""
    scratch = Uc(UC_ARCH_X86, UC_MODE_64)
    return f"unicorn {unicorn.__version__}, {len(_raw(scratch))} bytes"


def _raw(uc: Uc) -> bytes:
    context = uc.context_save()
    return bytes(context)[_header(context):]


def _address(context: Any) -> int:
    return ctypes.cast(context.context, ctypes.c_void_p).value or 0


def _header(context: Any) -> int:
    """Bytes of the library's own before the registers, whose number is the first word."""
    size = ctypes.c_size_t.from_address(_address(context)).value
    header = int(context.size) - size
    if not 0 < header <= 128:
        raise RuntimeError("this build of Unicorn keeps its contexts otherwise; install unicorn 2.1.4")
    return header


class _Places:
    """Offsets in the bytes of what must not come from outside, found by writing registers and looking what changes."""

    def __init__(self) -> None:
        self.pointers = self._of_register(x86.UC_X86_REG_DR0, 0x5A6B_7C8D_1122_3344, 8) + _DEBUG_REGISTERS
        self.top = self._of_top()
        self.code = self._of_code()

    @staticmethod
    def _of_register(register: int, value: int, size: int) -> int:
        uc = Uc(UC_ARCH_X86, UC_MODE_64)
        uc.reg_write(register, value)
        data, word = _raw(uc), value.to_bytes(size, "little")
        if data.count(word) != 1:
            raise RuntimeError("this build of Unicorn keeps its registers otherwise; install unicorn 2.1.4")
        return data.index(word)

    @staticmethod
    def _of_top() -> int:
        """A 32-bit word that is the top of the x87 stack."""
        uc, found = Uc(UC_ARCH_X86, UC_MODE_64), None
        for top in (5, 2, 7):
            uc.reg_write(x86.UC_X86_REG_FPSW, top << 11)
            data = _raw(uc)
            at = {i for i in range(0, len(data), 4) if data[i:i + 4] == top.to_bytes(4, "little")}
            found = at if found is None else found & at
        if not found or len(found) != 1:
            raise RuntimeError("this build of Unicorn keeps its x87 state otherwise; install unicorn 2.1.4")
        return found.pop()

    @staticmethod
    def _of_code() -> int:
        """The word in which the emulator keeps an address of its own code: the only large one that a store leaves behind."""
        uc = Uc(UC_ARCH_X86, UC_MODE_64)
        uc.mem_map(0, 0x2000)
        uc.mem_write(0, b"\x88\x04\x25\x00\x10\x00\x00")      # mov [0x1000], al
        before = _raw(uc)
        uc.emu_start(0, 7)
        after = _raw(uc)
        found = [i for i in range(0, len(after) - 7, 8) if before[i:i + 8] != after[i:i + 8] and any(after[i + 4:i + 8])]
        if len(found) != 1:
            raise RuntimeError("this build of Unicorn keeps its own addresses otherwise; install unicorn 2.1.4")
        return found[0]


@cache
def _places() -> _Places:
    return _Places()
