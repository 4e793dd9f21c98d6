"""What CPUID tells of the machine's processor: the emulator's EPYC without RDRAND, by which this computer's randomness would come in."""

from functools import cache, lru_cache

from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn import x86_const as x86

from . import emulator

__all__ = ["MODEL", "cpuid", "without_rdrand"]

MODEL = x86.UC_CPU_X86_EPYC
_RDRAND, _OSXSAVE = 1 << 30, 1 << 27
_REGISTERS = (x86.UC_X86_REG_RAX, x86.UC_X86_REG_RBX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX)


@lru_cache(4096)
def cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX."""
    uc = _asked()
    uc.reg_write(x86.UC_X86_REG_RAX, leaf)
    uc.reg_write(x86.UC_X86_REG_RCX, subleaf)
    uc.emu_start(0, 2)
    eax, ebx, ecx, edx = (uc.reg_read(register) & 0xFFFF_FFFF for register in _REGISTERS)
    return eax, ebx, ecx & ~_RDRAND if leaf == 1 else ecx, edx


def without_rdrand(state: emulator.State) -> None:
    """RDRAND and RDSEED are invalid opcodes on the processor of `state`, as CPUID tells, where this build shows what its code may use."""
    at = _features()
    if at is not None:
        state.q[at] &= ~_RDRAND


@cache
def _features() -> int | None:
    """Which word of the state holds the features that CPUID tells in ECX of leaf 1: the only one behind the registers with that value."""
    uc = _asked()
    uc.reg_write(x86.UC_X86_REG_RAX, 1)
    uc.emu_start(0, 2)
    state, told = emulator.state(uc), uc.reg_read(x86.UC_X86_REG_RCX) | _OSXSAVE
    words = enumerate(state.q) if state is not None else ()
    found = [at for at, word in words if at >= emulator.Env.EIP // 8 and word | _OSXSAVE == told]
    return found[0] if len(found) == 1 else None


@cache
def _asked() -> Uc:
    """An emulator that does nothing but CPUID."""
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_cpu_model(MODEL)
    uc.mem_map(0, 0x1000)
    uc.mem_write(0, b"\x0f\xa2")
    return uc
