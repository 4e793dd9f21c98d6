"""Instructions that the processor carries out with our help where no VMCB intercepts them: RDTSC, RDTSCP and CPUID; and what it has not,
RDRAND and RDSEED."""

from typing import Any

from unicorn import UC_HOOK_INSN, Uc
from unicorn import x86_const as x86

from .clock import Clock
from .cpuid import cpuid, without_rdrand
from .emulator import State
from .meter import Meter
from .rawhook import hook_tsc

__all__ = ["Instructions", "tsc"]

TSC_NS = 100
"""Virtual time that reading the time-stamp counter takes: who waits for a time in a loop must come to it."""
_WORD = 0xFFFF_FFFF
_RAX, _RBX, _RCX, _RDX = x86.UC_X86_REG_RAX, x86.UC_X86_REG_RBX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX


def tsc(clock: Clock) -> int:
    """The time-stamp counter: virtual time at 2 GHz."""
    return 2 * clock.now


class Instructions:
    """Hooks of `uc`; the registers are reached by `state` where there is one, which is quicker."""

    def __init__(self, uc: Uc, meter: Meter, state: State | None):
        self._uc, self._meter, self._state = uc, meter, state
        uc.hook_add(UC_HOOK_INSN, self._cpuid, None, 1, 0, x86.UC_X86_INS_CPUID)
        self._kept = hook_tsc(uc, self._read_tsc)
        if state is not None:
            without_rdrand(state)

    def _read_tsc(self, with_number: bool) -> None:
        """RDTSC and, `with_number`, RDTSCP: the processor is number 0."""
        self._meter.elapse(TSC_NS)
        self._meter.refuel()
        ticks = tsc(self._meter.clock)
        if self._state is not None:
            q = self._state.q
            q[0], q[2] = ticks & _WORD, ticks >> 32 & _WORD
            if with_number:
                q[1] = 0
            return
        self._uc.reg_write(_RAX, ticks & _WORD)
        self._uc.reg_write(_RDX, ticks >> 32 & _WORD)
        if with_number:
            self._uc.reg_write(_RCX, 0)

    def _cpuid(self, uc: Uc, _data: Any) -> int:
        """1: the emulator need not answer any more."""
        values = cpuid(uc.reg_read(_RAX) & _WORD, uc.reg_read(_RCX) & _WORD)
        for register, value in zip((_RAX, _RBX, _RCX, _RDX), values, strict=True):
            uc.reg_write(register, value)
        return 1
