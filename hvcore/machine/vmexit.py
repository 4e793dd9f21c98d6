"""The hardware's part of a #VMEXIT, which the emulator leaves to us: by its own exported function, or by its public interface alone."""

import ctypes
from typing import Any, Protocol

from unicorn import Uc
from unicorn import unicorn_const as uc_const
from unicorn import x86_const as x86

from ..spec.svm import ControlArea, SaveArea
from . import emulator
from .context import of_context, to_context
from .memory import Memory

__all__ = ["Exit", "ExportedExit", "PublicExit", "choose"]


class Exit(Protocol):
    """How an exit is finished and stale code dropped."""

    stale: bool
    """Whether the emulator must stop for what could not be done inside a hook."""

    @property
    def stops_between_instructions(self) -> bool:
        """Whether the emulator, stopped from another thread, finishes the instruction it is at."""
        ...

    def at_door(self) -> None:
        """Host code hands over to its policy, the first time before any VMRUN."""
        ...

    def finish(self, code: int, hsave: int) -> None:
        """World switch from the guest to the host whose state lies at host-physical `hsave`."""
        ...

    def drop_code(self, start: int, end: int, running: bool) -> None:
        """Forgets translated code of [start, end) in the emulator's RAM blocks; `running`: inside a hook."""
        ...

    def settle(self) -> bool:
        """Called outside emulation: what could not be done inside a hook.  True: emulation was only interrupted for that."""
        ...

    def step_exactly(self, on: bool) -> None:
        """Called outside emulation: from now on (not) one instruction at a time."""
        ...

    def save(self) -> bytes | None:
        """What it remembers of the host, for `load` of another."""
        ...

    def load(self, kept: bytes | None) -> None:
        """Remembers what another one did."""
        ...


class ExportedExit:
    """By the emulator's own function: exact, 20 us an exit."""

    stale = False

    def __init__(self, uc: Uc, private: emulator.Private):
        self.uc, self.private = uc, private
        if private.no_exit_request is not None:
            private.no_exit_request.value = 1
        self._reset = uc.context_save()

    def at_door(self) -> None:
        """Nothing to remember."""

    def finish(self, code: int, hsave: int) -> None:
        """All of it happens in the emulator."""
        self.private.finish_exit()

    def drop_code(self, start: int, end: int, running: bool) -> None:
        """At once."""
        self.private.drop_code(start, end)

    def settle(self) -> bool:
        """Nothing is left over."""
        return False

    @property
    def stops_between_instructions(self) -> bool:
        """With the flag of the emulator by which it looks for a request at the end of a block only."""
        return self.private.no_exit_request is not None

    def step_exactly(self, on: bool) -> None:
        """Code is translated anew, with or without a look for a request before each instruction."""
        if self.private.no_exit_request is not None:
            self.private.no_exit_request.value = not on
        if not on:
            self._forget_steps()
        self.uc.ctl_flush_tb()

    def _forget_steps(self) -> None:
        """Where the emulator has counted instructions, its next start looks all their addresses up: in the guest's page tables, where it
        would mark them accessed, unless the processor is as after reset meanwhile.  There it starts, and stops before it does anything.
        """
        now = self.uc.context_save()
        self._put(self._reset)
        self.uc.ctl_set_exits([0])
        self.uc.emu_start(0, 0)
        self.uc.ctl_set_exits([])
        self._put(now)

    def _put(self, context: Any) -> None:
        self.uc.context_restore(context)
        self.uc.ctl(uc_const.UC_CTL_TLB_FLUSH, uc_const.UC_CTL_IO_WRITE)

    def save(self) -> bytes | None:
        """Nothing."""
        return None

    def load(self, kept: bytes | None) -> None:
        """Nothing."""


_STATE = ((x86.UC_X86_REG_RIP, SaveArea.RIP), (x86.UC_X86_REG_RSP, SaveArea.RSP), (x86.UC_X86_REG_RAX, SaveArea.RAX),
          (x86.UC_X86_REG_RFLAGS, SaveArea.RFLAGS), (x86.UC_X86_REG_CR0, SaveArea.CR0), (x86.UC_X86_REG_CR2, SaveArea.CR2),
          (x86.UC_X86_REG_CR3, SaveArea.CR3), (x86.UC_X86_REG_CR4, SaveArea.CR4))
_HOST = _STATE[:4]
_SELECTORS = ((x86.UC_X86_REG_ES, SaveArea.ES), (x86.UC_X86_REG_CS, SaveArea.CS), (x86.UC_X86_REG_SS, SaveArea.SS),
              (x86.UC_X86_REG_DS, SaveArea.DS))
_DESCRIPTOR_TABLES = ((x86.UC_X86_REG_GDTR, SaveArea.GDTR), (x86.UC_X86_REG_IDTR, SaveArea.IDTR))
_GENERAL = (x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RBX, x86.UC_X86_REG_RBP, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RDI,
            x86.UC_X86_REG_R8, x86.UC_X86_REG_R9, x86.UC_X86_REG_R10, x86.UC_X86_REG_R11, x86.UC_X86_REG_R12, x86.UC_X86_REG_R13,
            x86.UC_X86_REG_R14, x86.UC_X86_REG_R15)


class PublicExit:
    """By the public interface alone: right for a flat 64-bit guest at CPL 0 (the lab guest), 240 us an exit.

    Hidden parts of the guest's segments are taken as unchanged since VMRUN, FS, GS, TR and LDTR as the host's; EXITINFO2 of a page fault
    is CR2.
    """

    def __init__(self, uc: Uc, memory: Memory):
        self.uc, self.memory = uc, memory
        self.host: Any = None
        self.scratch = uc.context_save()
        self.error_code = _error_code_offset()
        self.stale = False

    def at_door(self) -> None:
        """Remembers the host's segments, which VMRUN's save area cannot give back."""
        if self.host is None:
            self.host = self.uc.context_save()

    def finish(self, code: int, hsave: int) -> None:
        """Guest registers into the VMCB (RAX held its address at VMRUN: the host's saved RAX), host registers back."""
        vmcb = self.memory.read64(hsave + SaveArea.RAX)
        names = [r for r, _ in _STATE] + list(_GENERAL)
        values = self.uc.reg_read_batch(names)
        for (_, offset), value in zip(_STATE, values, strict=False):
            self.memory.write64(vmcb + offset, value)
        self._save_segments(vmcb)
        self.uc.context_update(self.scratch)
        self.memory.write64(vmcb + ControlArea.EXITCODE, code)
        self.memory.write32(vmcb + ControlArea.EVENTINJ, 0)
        self.memory.write64(vmcb + ControlArea.EXITINFO1, self._error_code())
        if code == 0x40 + 14:
            self.memory.write64(vmcb + ControlArea.EXITINFO2, self.uc.reg_read(x86.UC_X86_REG_CR2))
        back = [(r, self.memory.read64(hsave + offset)) for r, offset in _HOST]
        self.host.reg_write_batch(back + list(zip(_GENERAL, values[len(_STATE):], strict=True)))
        self.uc.context_restore(self.host)
        self.uc.ctl(uc_const.UC_CTL_TLB_FLUSH, uc_const.UC_CTL_IO_WRITE)

    def _save_segments(self, vmcb: int) -> None:
        for register, offset in _SELECTORS:
            self.memory.write(vmcb + offset, (self.uc.reg_read(register) & 0xFFFF).to_bytes(2, "little"))
        for register, offset in _DESCRIPTOR_TABLES:
            _, base, limit, _ = self.uc.reg_read(register)
            self.memory.write32(vmcb + offset + 4, limit)
            self.memory.write64(vmcb + offset + 8, base)

    def _error_code(self) -> int:
        at = ctypes.cast(self.scratch.context, ctypes.c_void_p).value
        return ctypes.c_int32.from_address((at or 0) + self.error_code).value & 0xFFFFFFFF

    def drop_code(self, start: int, end: int, running: bool) -> None:
        """All code.  Not allowed inside a hook: the emulator is to stop first, and `settle` does it."""
        if running:
            self.stale = True
        else:
            self.uc.ctl_flush_tb()

    def settle(self) -> bool:
        """Drops all translated code if any was stale."""
        was, self.stale = self.stale, False
        if was:
            self.uc.ctl_flush_tb()
        return was

    stops_between_instructions = False

    def step_exactly(self, on: bool) -> None:
        """The public interface counts instructions exactly."""
        self.uc.ctl_flush_tb()

    def save(self) -> bytes | None:
        """The host's segments."""
        return None if self.host is None else of_context(self.host)

    def load(self, kept: bytes | None) -> None:
        """The host's segments."""
        self.host = None if kept is None else to_context(self.uc, kept)


def _error_code_offset() -> int:
    """Where an exception's error code lies in a saved context: two #GPs with known selectors tell."""
    found: set[int] | None = None
    for selector in (0x5A58, 0x3C30):
        hits = _find_word(_context_after_gp(selector), selector)
        found = hits if found is None else found & hits
    if not found or len(found) != 1:
        raise RuntimeError("this build of Unicorn does not show error codes; install unicorn 2.1.4")
    return found.pop()


def _context_after_gp(selector: int) -> bytes:
    uc = Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
    uc.mem_map(0, 0x1000)
    uc.mem_write(0, b"\xb8" + (selector | 0x11110000).to_bytes(4, "little") + b"\x8e\xd8")      # mov eax, selector; mov ds, eax
    saved: list[bytes] = []

    def on_fault(machine: Uc, _number: int, _data: Any) -> None:
        saved.append(bytes(machine.context_save()))
        machine.emu_stop()

    uc.hook_add(uc_const.UC_HOOK_INTR, on_fault)
    uc.emu_start(0, 7)
    return saved[0]


def _find_word(data: bytes, word: int) -> set[int]:
    return {i for i in range(0, len(data) - 4, 4) if int.from_bytes(data[i:i + 4], "little") == word}


def choose(uc: Uc, memory: Memory, public_only: bool = False) -> Exit:
    """The exact way where this build of the emulator has it, else the public one."""
    private = None if public_only else emulator.find(uc)
    return ExportedExit(uc, private) if private else PublicExit(uc, memory)
