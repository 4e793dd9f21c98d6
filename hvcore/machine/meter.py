"""How much code the processor has executed: a counter of blocks that the emulator's own code counts down, and stops at zero.

A block is what runs without a jump.  The counter is a dozen bytes of machine code behind the emulator's block hook, for x86-64 computers
with the System V calling convention; it costs a few percent.  Elsewhere nothing is counted and computing takes no virtual time.

Also the hooks that the emulator has and its Python part does not: RDTSC and RDTSCP.
"""

import ctypes
import mmap
import platform
from collections.abc import Callable
from typing import Any

from unicorn import UC_HOOK_BLOCK, UC_HOOK_INSN, Uc
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

__all__ = ["Meter", "hook_tsc"]

_COUNT = bytes.fromhex("48897110 48ff09 7401 c3 ff6108")
"""mov [rcx + 16], rsi; dec qword [rcx]; je +1; ret; jmp [rcx + 8]: rdi is the emulator, rsi the block's address, rcx the `_Fuel`; the jump
goes to `uc_emu_stop`."""


_NOWHERE = (1 << 64) - 1


class _Fuel(ctypes.Structure):
    _fields_ = (("left", ctypes.c_int64), ("stop", ctypes.c_uint64), ("block", ctypes.c_uint64))


class Meter:
    """Counts the blocks that `uc` executes from now on.  `total` is what `take` has taken so far."""

    def __init__(self, uc: Uc):
        self._fuel, self._filled, self.total = _Fuel(1 << 62, 0, _NOWHERE), 1 << 62, 0
        self._was_empty = False
        self._page = _machine_code()
        self.works = self._page is not None
        if self._page is not None:
            self._fuel.stop = ctypes.cast(uclib.uc_emu_stop, ctypes.c_void_p).value or 0
            code = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
            _hook(uc, UC_HOOK_BLOCK, ctypes.c_void_p(code), ctypes.c_void_p(ctypes.addressof(self._fuel)))

    def take(self) -> int:
        """Blocks since it was last asked."""
        left = int(self._fuel.left)
        done, self._filled = self._filled - left, left
        self.total += done
        return done

    def fill(self, blocks: int) -> None:
        """Lets so many blocks run before the emulator is stopped; those not yet taken are lost."""
        self._fuel.left = self._filled = blocks + 1

    def stopped_at(self, rip: int) -> None:
        """Emulation has stopped: a stop comes at the beginning of a block that is counted already and has not run yet."""
        self._was_empty = self.empty
        if self._fuel.block == rip:
            self._fuel.left += 1
        self._fuel.block = _NOWHERE

    @property
    def was_empty(self) -> bool:
        """Whether all of them had run when emulation stopped last."""
        return self._was_empty

    @property
    def empty(self) -> bool:
        """Whether all of them have run."""
        return bool(self._fuel.left <= 0)


def _machine_code() -> mmap.mmap | None:
    """An executable page with the counter; None where that cannot be."""
    if platform.machine() not in ("x86_64", "AMD64") or platform.system() == "Windows":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page[:len(_COUNT)] = _COUNT
    return page


_ANSWER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def hook_tsc(uc: Uc, answer: Callable[[bool], None]) -> Any:
    """From now on `answer` is called for each RDTSC (False) and RDTSCP (True) and sets the registers itself.  Keep what is returned for as
    long as `uc` lives."""
    calls = []
    for instruction, with_number in ((x86.UC_X86_INS_RDTSC, False), (x86.UC_X86_INS_RDTSCP, True)):
        def answered(_uc: int, _data: int, with_number: bool = with_number) -> int:
            answer(with_number)
            return 1

        calls.append(_ANSWER(answered))
        _hook(uc, UC_HOOK_INSN, calls[-1], None, ctypes.c_int(instruction))
    return calls


def _hook(uc: Uc, kind: int, function: Any, data: Any, *more: Any) -> None:
    """`uc_hook_add` for all addresses."""
    number = ctypes.c_size_t()
    error = uclib.uc_hook_add(uc._uch, ctypes.byref(number), ctypes.c_int(kind), function, data, ctypes.c_uint64(1), ctypes.c_uint64(0),
                              *more)
    if error:
        raise RuntimeError(f"Unicorn refuses a hook of kind {kind} (error {error}); install unicorn 2.1.2 to 2.1.4")
