"""What is private in the emulator, in one place: where it lies is read out of the machine code of functions the library exports.

Unicorn hands a #VMEXIT to a hook (interrupt 0x100 + exit code) and stops short of the world switch.  The library's own exported function
`x86_cpu_do_interrupt_x86_64` finishes it; it needs the pointer to the emulated processor.  A whole operating system needs more: exceptions
and SYSCALL of the guest are left to hooks, which must change registers that the public interface does not give, and the processor's
interrupt pin is a word inside.  All of it is found and checked here at start: `find` for the exit, `layout` for the rest.  Where one does
not fit (another platform or version), the lab guest runs by the public interface alone (`vmexit.PublicExit`), and Linux is refused.
"""

import ctypes
import re
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

from unicorn import UC_ARCH_X86, UC_HOOK_INTR, UC_MODE_64, Uc, UcError
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

from ..spec.svm import EFER, EFER_SCE

__all__ = ["CONDITIONS", "Env", "Layout", "Private", "State", "find", "layout", "release", "state"]


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


class Env(IntEnum):
    """Byte offsets in the emulator's processor state: `CPUX86State` of QEMU 5, on which Unicorn 2.1 is built.

    A segment or descriptor table register is selector u32, base u64 (at +8), limit u32 (at +16), attributes u32 (at +20); SEGS holds ES,
    CS, SS, DS, FS, GS, each 24 bytes.
    """

    REGS = 0x000
    EIP = 0x080
    EFLAGS = 0x088
    CC_SRC = 0x098
    CC_OP = 0x0A8
    DF = 0x0AC
    HFLAGS = 0x0B0
    SEGS = 0x0B8
    LDT = 0x148
    TR = 0x160
    GDT = 0x178
    IDT = 0x190
    CR0 = 0x1A8
    CR2 = 0x1B8
    CR3 = 0x1C0
    CR4 = 0x1C8


_ENV_SIZE = 0x2000
CONDITIONS = 1
"""CC_OP where the condition codes are in CC_SRC: none of them waits to be computed."""


@dataclass(frozen=True)
class Layout:
    """Where the rest lies, in bytes: `cpu` from the handle; `env`, `interrupt_request` and `halted` from the processor; what follows
    from `env`."""

    cpu: int
    env: int
    interrupt_request: int
    halted: int
    error_code: int
    exception_is_int: int
    old_exception: int
    star: int
    lstar: int
    cstar: int
    fmask: int
    efer: int


class State:
    """The registers of one emulated processor, as the emulator has them; only inside a hook or while nothing runs.

    `q` are 64-bit words, `d` 32-bit words, indexed by a byte offset of `Env` divided by 8 or 4.
    """

    def __init__(self, where: Layout, handle: int):
        self.where = where
        cpu = ctypes.c_void_p.from_address(handle + where.cpu).value or 0
        self._env = cpu + where.env
        self.q = memoryview((ctypes.c_uint64 * (_ENV_SIZE // 8)).from_address(self._env)).cast("B").cast("Q")
        self.d = memoryview((ctypes.c_uint32 * (_ENV_SIZE // 4)).from_address(self._env)).cast("B").cast("I")
        self.interrupt_request = ctypes.c_uint32.from_address(cpu + where.interrupt_request)
        self.halted = ctypes.c_uint32.from_address(cpu + where.halted)
        self._flags = _returning("cpu_cc_compute_all_x86_64", ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int)

    def rflags(self) -> int:
        """RFLAGS, with the condition codes that the emulator computes only when somebody asks."""
        down = 1 << 10 if self.d[Env.DF // 4] >> 31 else 0
        return self.q[Env.EFLAGS // 8] | int(self._flags(self._env, self.d[Env.CC_OP // 4])) | down | 2


@cache
def _function(name: str, *arguments: Any) -> Any:
    """An exported function of the library that returns nothing."""
    return _returning(name, None, *arguments)


@cache
def _returning(name: str, result: Any, *arguments: Any) -> Any:
    """An exported function of the library."""
    function = getattr(uclib, name)
    function.argtypes, function.restype = list(arguments), result
    return function


def _code(function: str, size: int) -> bytes:
    """The machine code of an exported function; empty where there is none of that name."""
    symbol: Any = getattr(uclib, function, None)
    address = ctypes.cast(symbol, ctypes.c_void_p).value if symbol is not None else None
    return ctypes.string_at(address, size) if address else b""


def _offset(function: str, size: int, pattern: bytes) -> int | None:
    """The displacement, 32 bits or 8, that `pattern` captures in the machine code of an exported function."""
    found = re.search(pattern, _code(function, size), re.DOTALL)
    return int.from_bytes(found[1], "little", signed=True) if found else None


def release(uc: Uc) -> None:
    """Gives back what an emulator holds outside Python, at once; nothing of it may be used any more.

    The library does that when its object goes, but object and hooks hold each other until the garbage collector comes by.  Where this
    version keeps no such finalizer, it is left to that.
    """
    finalizer = getattr(uc, "_Uc__finalizer", None)
    if finalizer is not None:
        finalizer()


def _handle(uc: Uc) -> int:
    return int(getattr(uc._uch, "value", uc._uch))


_AT_CPU = ("uc_reg_read", 128, rb"\x48\x8b\x83(....)")
_AT_INT = ("x86_cpu_do_interrupt_x86_64", 96, rb"\x8b\x97(....)")


def find(uc: Uc) -> Private | None:
    """The private parts of `uc` that an exit needs; None where this build of the library has them elsewhere."""
    if ctypes.sizeof(ctypes.c_void_p) != 8 or not hasattr(uclib, "tb_invalidate_phys_range_x86_64"):
        return None
    uc.reg_read(x86.UC_X86_REG_RAX)
    handle, at_cpu, at_int = _handle(uc), _offset(*_AT_CPU), _offset(*_AT_INT)
    if at_cpu is None or at_int is None or not 0 < at_cpu <= 0x2000 or not 0 < at_int <= 0x10000:
        return None
    cpu = ctypes.c_void_p.from_address(handle + at_cpu).value
    if not cpu:
        return None
    if ctypes.c_uint32.from_address(cpu + at_int).value not in (0, 1):
        return None
    at_exit = _offset("check_exit_request_x86_64", 32, rb"\x80[\xb8-\xbf](....)\x00")
    no_exit = ctypes.c_uint8.from_address(handle + at_exit) if at_exit is not None and 0 < at_exit < 0x4000 else None
    return Private(handle, cpu, no_exit)


def state(uc: Uc) -> State | None:
    """The registers of `uc`; None where `layout` does not fit."""
    where = layout()
    return State(where, _handle(uc)) if where and find(uc) else None


@cache
def layout() -> Layout | None:
    """Where registers, interrupt pin and MSRs lie, found once and checked on an emulator of its own; None where this build differs."""
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    try:
        if find(uc) is None:
            return None
        found = _from_code()
        where = found and _with_msrs(uc, found)
        return where if where and _registers_fit(uc, where) else None
    except UcError:
        return None
    finally:
        release(uc)


def _from_code() -> Layout | None:
    """What exported functions tell: displacements in their machine code, each within reach."""
    do = "x86_cpu_do_interrupt_x86_64"
    cpu, env = _offset(*_AT_CPU), _offset(do, 96, rb"\x48\x8d\xbf(....)")
    from_cpu = [_offset("x86_cpu_exec_interrupt_x86_64", 0x180, rb"\x81\x65(.)\xff\xfe\xff\xff"),
                _offset(do, 96, rb"\x8b\x8f(....)"), _offset(*_AT_INT), _offset(do, 96, rb"\xc7\x83(....)\xff\xff\xff\xff")]
    halted = _offset("helper_hlt_x86_64", 96, rb"\xc7\x83(....)\x01\x00\x00\x00")
    if cpu is None or env is None or halted is None or not 0 < cpu <= 0x2000 or not 0 < env + halted < env <= 0x20000:
        return None
    if any(at is None or not 0 < at < env + _ENV_SIZE for at in from_cpu):
        return None
    request, error, is_int, old = (at or 0 for at in from_cpu)
    return Layout(cpu, env, request, env + halted, error - env, is_int - env, old - env, 0, 0, 0, 0, 0)


def _with_msrs(uc: Uc, where: Layout) -> Layout | None:
    """The same with EFER, and with STAR, LSTAR, CSTAR and SFMASK: the only word of the state that takes a marker written to each."""
    words, found = State(where, _handle(uc)).q, []
    for msr in (0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084):
        uc.msr_write(msr, _MARKER)
        hits = [8 * i for i, word in enumerate(words) if word == _MARKER]
        uc.msr_write(msr, 0)
        if len(hits) != 1 or words[hits[0] // 8]:
            return None
        found += hits
    efer = _efer(uc, words)
    msrs = zip(("star", "lstar", "cstar", "fmask", "efer"), (*found, efer), strict=True)
    return Layout(**{**where.__dict__, **dict(msrs)}) if efer is not None else None


def _efer(uc: Uc, words: memoryview) -> int | None:
    """Where EFER lies: the only word that is EFER whether SCE is set or not."""
    before, places = uc.msr_read(EFER), []
    for value in (before | EFER_SCE, before):
        uc.msr_write(EFER, value)
        places.append({8 * i for i, word in enumerate(words) if word == value})
    both = places[0] & places[1]
    return both.pop() if len(both) == 1 else None


_MARKER = 0x1122334455667788


def _registers_fit(uc: Uc, where: Layout) -> bool:
    """Whether markers written by the public interface turn up where `Env` says, and what an exception leaves is an exception's."""
    words = State(where, _handle(uc))
    uc.mem_map(0, 0x1000)
    plain = ((x86.UC_X86_REG_RAX, Env.REGS), (x86.UC_X86_REG_RSP, Env.REGS + 32), (x86.UC_X86_REG_R15, Env.REGS + 120),
             (x86.UC_X86_REG_RIP, Env.EIP), (x86.UC_X86_REG_CR2, Env.CR2))
    for n, (register, at) in enumerate(plain):
        uc.reg_write(register, _MARKER + n)
        if words.q[at // 8] != _MARKER + n:
            return False
    for n, (register, at) in enumerate(((x86.UC_X86_REG_GDTR, Env.GDT), (x86.UC_X86_REG_IDTR, Env.IDT), (x86.UC_X86_REG_TR, Env.TR))):
        uc.reg_write(register, (0x28, 0x5000 + n, 0x777, 0))
        if (words.q[at // 8 + 1], words.d[at // 4 + 4]) != (0x5000 + n, 0x777):
            return False
    uc.reg_write(x86.UC_X86_REG_CR4, 0x620)
    return words.q[Env.CR4 // 8] == 0x620 and _exception_fits(uc, words)


def _exception_fits(uc: Uc, words: State) -> bool:
    """A #GP by a bad selector: its error code, no INT, 64-bit code of CPL 0 in HFLAGS, the flags of the SUB before it; then an INT n."""
    seen: list[tuple[int, ...]] = []

    def on_fault(machine: Uc, number: int, _data: Any) -> None:
        where, d = words.where, words.d
        told = (number, d[where.error_code // 4], d[where.old_exception // 4]) if number == 13 else (number,)
        seen.append((*told, d[where.exception_is_int // 4], d[Env.HFLAGS // 4] & 0x8003, words.rflags() & 0x8D5, words.q[Env.EIP // 8]))
        machine.emu_stop()

    uc.hook_add(UC_HOOK_INTR, on_fault)
    uc.mem_write(0, b"\xb8\x58\x5a\x00\x00\x83\xe9\x01\x8e\xd8\xcd\x80")         # mov eax, 0x5a58; sub ecx, 1; mov ds, eax; int 0x80
    uc.reg_write(x86.UC_X86_REG_RCX, 0)
    uc.emu_start(0, 12)
    uc.emu_start(10, 12)
    return seen == [(13, 0x5A58, 13, 0, 0x8000, 0x95, 8), (0x80, 1, 0x8000, 0x95, 12)]
