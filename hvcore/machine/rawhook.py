"""Hooks that the emulator has and its Python part does not: machine code called for each block, and RDTSC, RDTSCP."""

import ctypes
from collections.abc import Callable
from typing import Any

from unicorn import UC_HOOK_INSN, Uc
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

__all__ = ["hook_tsc", "raw_hook"]

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
        raw_hook(uc, UC_HOOK_INSN, calls[-1], None, ctypes.c_int(instruction))
    return calls


def raw_hook(uc: Uc, kind: int, function: Any, data: Any, *more: Any) -> None:
    """`uc_hook_add` for all addresses; `function` is called by the emulator itself."""
    number = ctypes.c_size_t()
    error = uclib.uc_hook_add(uc._uch, ctypes.byref(number), ctypes.c_int(kind), function, data, ctypes.c_uint64(1), ctypes.c_uint64(0),
                              *more)
    if error:
        raise RuntimeError(f"Unicorn refuses a hook of kind {kind} (error {error}); install unicorn 2.1.4")
