"""A guest instruction by instruction.  The machine stands still meanwhile but for what is done here."""

import threading

from unicorn import x86_const as x86

from .errors import Unreadable
from .inspect.records import Records
from .inspect.steps import ExitStep, Registers, Step
from .machine.longmode import translate_nested
from .machine.pc import Pc
from .spec.svm import ControlArea, SaveArea, exit_name
from .vmm.exits import Exits
from .vmm.layout import GUEST_REGISTERS, Data, Part
from .vmm.vmcb import Vmcb

__all__ = ["exit_at_door", "read_registers", "run_steps"]

LONGEST = 15
"""Bytes of the longest instruction."""
HOST_STEPS = 100_000
"""Instructions of the host between two of the guest, after which it is taken for lost."""

_SAVED = {"rip": SaveArea.RIP, "rflags": SaveArea.RFLAGS, "cr0": SaveArea.CR0, "cr2": SaveArea.CR2, "cr3": SaveArea.CR3,
          "cr4": SaveArea.CR4}
_SELECTORS = {"cs": SaveArea.CS, "ss": SaveArea.SS}
_LIVE = {name: getattr(x86, f"UC_X86_REG_{name.upper()}") for name in (*GUEST_REGISTERS, *_SAVED, *_SELECTORS)}


def read_registers(pc: Pc, base: int) -> Registers:
    """The guest's registers: from the processor where guest code is on it, else from VMCB and data page of the core at `base`.

    Raises Unreadable where the core's pointer to the VMCB leads nowhere any more.
    """
    if pc.cpu.in_guest():
        return Registers(dict(zip(_LIVE, pc.cpu.uc.reg_read_batch(list(_LIVE.values())), strict=True)))
    vmcb = Vmcb(pc.memory, base)
    values = {name: vmcb.register(number) for number, name in enumerate(GUEST_REGISTERS)}
    values |= {name: vmcb.get(offset) for name, offset in _SAVED.items()}
    return Registers(values | {name: vmcb.get(offset) & 0xFFFF for name, offset in _SELECTORS.items()})


def exit_at_door(exits: Exits) -> ExitStep | None:
    """The exit that the stub has come to the door with; None where the processor only woke from a halt, or no VMCB tells of an exit."""
    if exits.memory.map[exits.base + Part.DATA + Data.WAIT]:
        return None
    try:
        vmcb = Vmcb(exits.memory, exits.base)
    except Unreadable:
        return None
    code, rip = vmcb.get(ControlArea.EXITCODE), vmcb.get(SaveArea.RIP)
    return ExitStep(code, rip, vmcb.get(ControlArea.EXITINFO1), vmcb.get(ControlArea.EXITINFO2))


def run_steps(pc: Pc, base: int, n: int, halt: threading.Event) -> Records[Step]:
    """Executes up to `n` instructions of the guest of the core at `base`; the note says why where they are fewer.

    They run on a thread of their own, for in the emulator's there is no KeyboardInterrupt; `halt` ends them early.
    """
    stepper = _Stepper(pc, base, halt)
    thread = threading.Thread(target=stepper.run, args=(n,), name="hvlab steps", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        halt.set()
        thread.join()
        raise
    if stepper.error is not None:
        raise stepper.error
    return Records(Step, stepper.steps, note=stepper.why)


class _Stepper:
    def __init__(self, pc: Pc, base: int, halt: threading.Event):
        self.pc, self.cpu, self.base, self.halt = pc, pc.cpu, base, halt
        self.steps: list[Step] = []
        self.why = ""
        self.error: BaseException | None = None

    def run(self, n: int) -> None:
        try:
            while len(self.steps) < n and not self.why:
                self.why = "Stopped." if self.halt.is_set() else self._to_guest() or self._step()
        except Unreadable as fault:
            self.why = f"The guest's state cannot be told: {fault}."
        except BaseException as e:  # noqa: BLE001 - raised again where the steps are waited for
            self.error = e

    def _step(self) -> str:
        """One instruction of the guest; what the core does at its exit, if it has one, belongs to it."""
        before = read_registers(self.pc, self.base)
        fetched = self._fetch(before)
        self.cpu.step()
        note = self._exit_name()
        why = self._to_guest()
        after = read_registers(self.pc, self.base)
        self.steps.append(Step(before["rip"], fetched, before.changed(after), note))
        return why

    def _exit_name(self) -> str:
        return "" if self.cpu.in_guest() else exit_name(Vmcb(self.pc.memory, self.base).get(ControlArea.EXITCODE))

    def _to_guest(self) -> str:
        """Lets the host do what it does until guest code is on the processor; why not, where that does not come."""
        for _ in range(HOST_STEPS):
            if self.cpu.stopping:
                return "The guest cannot go on."
            if self.pc.halted and not self.pc.wake():
                return "The guest waits for input."
            if self.cpu.in_guest():
                return ""
            self.pc.halted = self.cpu.step() is not None and not self.cpu.stopping
        return "The host runs and does not come back to the guest."

    def _fetch(self, registers: Registers) -> bytes | None:
        """Bytes at RIP through the guest's tables and the nested ones."""
        n_cr3 = Vmcb(self.pc.memory, self.base).get(ControlArea.N_CR3)
        code, at = b"", registers["rip"]
        while len(code) < LONGEST:
            physical = translate_nested(self.pc.memory, registers["cr3"], n_cr3, at & (1 << 64) - 1)
            length = min(LONGEST - len(code), 4096 - at % 4096)
            if physical is None or not self.pc.memory.backed(physical, length):
                break
            code += self.pc.memory.read(physical, length)
            at += length
        return code or None
