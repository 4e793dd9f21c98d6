"""The processor: Unicorn on the machine's own memory, finished where the emulator stops short: AMD-V, exceptions, interrupts, time.

Nothing of the machine's state lives here but the processor's own: registers, its pin, what VMRUN injects.  Memory is the machine's, MMIO
and ports go to its bus.  Code that runs in host mode talks to its policy by OUT to the port DOOR; a guest's OUT to that port goes to the
bus like any other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_HOOK_INSN_INVALID, UC_HOOK_INTR, UC_MODE_64, UC_PROT_ALL, Uc, UcError
from unicorn import x86_const as x86

from ..errors import Unreadable
from ..spec.svm import (
    EFER,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    EVENT_EXTERNAL,
    EVENT_TYPE,
    EVENT_VALID,
    INTERCEPTS_1,
    ControlArea,
    ExitCode,
    SaveArea,
)
from . import context, emulator, ioexit, untranslatable
from .bus import Bus
from .clock import Clock
from .codepages import CodePages
from .cpuid import MODEL, cpuid
from .events import deliver_injected_exception
from .exceptions import Exceptions
from .instructions import Instructions
from .longmode import PHYSICAL_BITS, translate
from .memory import PAGE, Memory
from .meter import Meter
from .storewatch import Stores, StoreWatch
from .vmexit import Exit, choose

__all__ = ["DOOR", "Cpu", "Stop", "StopKind", "Stores"]

DOOR = 0xE0
"""The port by which the core's machine code hands over to its policy."""
ACCESS_NS = 1000
"""Virtual time that one access to a device takes."""
HLT = 0xF4
TRANSLATED = 128 << 20
"""Bytes of this computer's memory that translated code may take before all of it is dropped.  A Linux boots as fast with a quarter of it;
a guest that rewrites its code for ever would fill the emulator's own gibibyte."""


class StopKind(Enum):
    """Why the processor came back."""

    HALT = "halted in the host"
    GUEST_HALT = "halted in the guest, with no exit"
    REQUEST = "stopped by request"
    OFF = "switched off by software"
    CRASH = "crashed"
    TIMEOUT = "made no progress"
    PAUSE = "paused; it can go on"


@dataclass(frozen=True)
class Stop:
    """How a run of the processor ended; `rip` is a linear address, `guest` whether it was the guest's code."""

    kind: StopKind
    detail: str
    rip: int
    guest: bool


class Cpu:
    """One processor on `memory` and `bus`, living in the time of `clock`.  `on_door` is called when host code writes to DOOR, `on_io`,
    where there is one, for an access of the guest to a port that its VMCB intercepts.  With `public_only` it keeps to the emulator's public
    interface."""

    def __init__(self, memory: Memory, bus: Bus, clock: Clock, public_only: bool = False):
        self.memory, self.bus, self.clock = memory, bus, clock
        self.on_door: Callable[[], None] = _nothing
        self.on_io: Callable[[], None] | None = None
        untranslatable.mend()
        self.uc = Uc(UC_ARCH_X86, UC_MODE_64)
        self.uc.ctl_set_cpu_model(MODEL)
        self.uc.ctl_set_tcg_buffer_size(TRANSLATED)
        self._blocks = list(_map_memory(self.uc, memory))
        self._map_holes()
        self.uc.ctl_exits_enabled(True)
        self.exit: Exit = choose(self.uc, memory, public_only)
        self.meter = Meter(self.uc, clock)
        self.state = None if public_only else emulator.state(self.uc)
        ram = max((block + last - first for block, first, last in self._blocks), default=0)
        self.code_pages = CodePages(self.uc, 0 if public_only else ram)
        self._exceptions = Exceptions(memory, self.state) if self.state else None
        self._instructions = Instructions(self.uc, self.meter, self.state)
        self._watch = StoreWatch(self.uc, self.in_guest)
        self.rip = self.hsave = 0
        self._stop: Stop | None = None
        self._running = self._closed = self._stepping = False
        self._pausing = self._exited = self._pin = self._nudged = False
        self._injected: int | None = None
        self._hook()
        memory.listeners.append(self._written)

    # --- wiring

    def _map_holes(self) -> None:
        """Everything below 1 TiB that is not RAM is the bus's."""
        at = 0
        for start, end in [*self.memory.runs, (1 << PHYSICAL_BITS, 1 << PHYSICAL_BITS)]:
            start, end = min(start, 1 << PHYSICAL_BITS), min(end, 1 << PHYSICAL_BITS)
            if start > at:
                self.uc.mmio_map(at, start - at, self._mmio_read, at, self._mmio_write, at)
            at = max(at, end)

    def _hook(self) -> None:
        self.uc.hook_add(UC_HOOK_INTR, self._on_interrupt)
        self.uc.hook_add(UC_HOOK_INSN_INVALID, self._on_invalid)
        self.uc.hook_add(UC_HOOK_INSN, self._on_out, None, 1, 0, x86.UC_X86_INS_OUT)
        self.uc.hook_add(UC_HOOK_INSN, self._on_in, None, 1, 0, x86.UC_X86_INS_IN)
        if self._exceptions is not None:
            self.uc.hook_add(UC_HOOK_INSN, self._on_syscall, None, 1, 0, x86.UC_X86_INS_SYSCALL)
            self.uc.hook_add(UC_HOOK_INSN, self._on_sysenter, None, 1, 0, x86.UC_X86_INS_SYSENTER)

    def _mmio_read(self, _uc: Uc, offset: int, width: int, base: int) -> int:
        self._access()
        value = self.bus.read(base + offset, width)
        self.meter.refuel()
        return value

    def _mmio_write(self, _uc: Uc, offset: int, width: int, value: int, base: int) -> None:
        self._access()
        self.bus.write(base + offset, width, value)
        self.meter.refuel()

    def _on_in(self, _uc: Uc, port: int, width: int, _data: Any) -> int:
        self._access()
        value = self._port_read(port, width)
        self.meter.refuel()
        return value

    def _port_read(self, port: int, width: int) -> int:
        """What the guest is told: nothing where it may not ask, the answer of its VMCB's policy, or the device's."""
        if self._refused(port, width):
            return (1 << 8 * width) - 1
        if self._io_exit(port, width, None):
            return ioexit.answer(self.memory, self.vmcb, width)
        return self.bus.port_read(port, width)

    def _on_out(self, _uc: Uc, port: int, width: int, value: int, _data: Any) -> None:
        if port == DOOR and not self.in_guest():
            self._at_door()
        else:
            self._access()
            if not self._refused(port, width) and not self._io_exit(port, width, value):
                self.bus.port_write(port, width, value)
            self.meter.refuel()

    def _refused(self, port: int, width: int) -> bool:
        """Whether code of an outer ring may not use the port.  A processor raises #GP; the emulator cannot: the device hears nothing."""
        exceptions = self._exceptions
        return exceptions is not None and exceptions.without_io and not exceptions.may_use_port(port, width, self.vmcb)

    def _io_exit(self, port: int, width: int, value: int | None) -> bool:
        """Whether the guest's VMCB intercepts the port; then its policy has answered."""
        if self.on_io is None or not self.in_guest() or not ioexit.intercepted(self.memory, self.vmcb, port, width):
            return False
        ioexit.describe(self.memory, self.vmcb, port, width, value)
        self.on_io()
        return True

    def _access(self) -> None:
        """An access to a device takes its time, and is where any processor can be paused."""
        self.meter.elapse(ACCESS_NS)
        if self._pausing and not self._exited:
            self._leave()

    def _leave(self) -> None:
        """Emulation stops soon, between two instructions: at the next block where blocks are counted."""
        if self.meter.works:
            self.meter.poke()
        else:
            self.uc.emu_stop()

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """What CPUID tells of the processor: EAX, EBX, ECX, EDX."""
        return cpuid(leaf, subleaf)

    # --- interrupts

    def pin(self, level: bool) -> None:
        """The interrupt controller's wire: high while it has an interrupt for this processor.

        While code runs this is to be called from its hooks only.  Where this build of the emulator does not show the wire, an interrupt
        waits for the next exit.
        """
        self._pin = level
        self._drive_pin()
        if level and self._running and self.state is not None:
            self._nudged = True
            self._leave()

    def _drive_pin(self) -> None:
        """An interrupt that the VMCB does not intercept would need the vector at once: it waits for an exit."""
        if self.state is None or self._closed:
            return
        vmcb = self.vmcb if self.hsave else 0
        wanted = self._pin and self.memory.backed(vmcb, PAGE) and self.memory.read32(vmcb + ControlArea.INTERCEPTS_1) & _INTR
        request = self.state.interrupt_request
        request.value = request.value | _HARD if wanted else request.value & ~_HARD

    def _on_syscall(self, _uc: Uc, _data: Any) -> None:
        if self._exceptions is not None and not self._exceptions.syscall(self.vmcb):
            self._shutdown(_INVALID_OPCODE, self.uc.reg_read(x86.UC_X86_REG_RIP))

    def _on_sysenter(self, _uc: Uc, _data: Any) -> None:
        if self._exceptions is not None and not self._exceptions.undefined(self.vmcb):
            self._shutdown(_INVALID_OPCODE, self.uc.reg_read(x86.UC_X86_REG_RIP))

    def _at_door(self) -> None:
        self._exited = False
        self.meter.elapse()
        self.exit.at_door()
        self.on_door()
        self._drive_pin()
        self.meter.refuel()
        if vmcb := self.memory.read64(self.hsave + SaveArea.RAX):
            self._enter_guest(vmcb)
        if self._pausing:
            self._leave()

    def _on_interrupt(self, _uc: Uc, number: int, _data: Any) -> None:
        if number >= 0x100:
            self._finish_exit(number - 0x100)
        elif number == self._injected:
            self._echo()
        elif self._exceptions is None or not self.in_guest():
            self._crash(f"exception {number} that nobody takes")
        elif not self._exceptions.deliver(number, self.vmcb):
            self._shutdown(number, self.uc.reg_read(x86.UC_X86_REG_RIP))

    def _finish_exit(self, code: int) -> None:
        """The world switch; where the save area names a VMCB that is no memory, there is nowhere to go."""
        try:
            self.exit.finish(code, self.hsave)
        except Unreadable as fault:
            self._crash(f"a #VMEXIT whose state nothing can hold ({fault})")
        else:
            self.memory.write64(self.hsave + SaveArea.RIP, 0)
            self._exited, self._injected = True, None

    def _echo(self) -> None:
        """An external interrupt that was delivered is told again where the emulator is stopped before the next exit: so it stops anew."""
        self._injected = None
        if self._stop or self._pausing or self._nudged or self.meter.empty:
            self._leave()

    def _on_invalid(self, _uc: Uc, _data: Any) -> bool:
        if self._exceptions is not None and self.in_guest():
            if self._exceptions.deliver(_INVALID_OPCODE, self.vmcb):
                return True
            self._shutdown(_INVALID_OPCODE, self.uc.reg_read(x86.UC_X86_REG_RIP))
        else:
            self._crash("invalid opcode that nobody takes")
        return False

    def _shutdown(self, vector: int, rip: int) -> None:
        """No handler takes an exception, nor the double fault that comes of it."""
        self.stop(StopKind.CRASH, f"triple fault: the guest's descriptor tables cannot take exception {vector} of RIP {rip:#x}")

    def _enter_guest(self, vmcb: int) -> None:
        """The processor's part of VMRUN that the emulator leaves out; RAX in the save area is the VMCB of the last entry."""
        if not self.memory.backed(vmcb, PAGE):
            return
        event = self.memory.read64(vmcb + ControlArea.EVENTINJ)
        self._injected = event & 0xFF if event & EVENT_VALID and event & EVENT_TYPE == EVENT_EXTERNAL else None
        vector = deliver_injected_exception(self.memory, vmcb)
        if vector is not None:
            self._shutdown(vector, self.memory.read64(vmcb + SaveArea.RIP))

    def _crash(self, what: str) -> None:
        guest, rip = self.in_guest(), self.uc.reg_read(x86.UC_X86_REG_RIP)
        self.stop(StopKind.CRASH, f"{what}, in the {'guest' if guest else 'host'} at RIP {rip:#x}")

    def _written(self, start: int, end: int) -> None:
        """Memory changed behind the processor's back: what was translated there is stale."""
        for block, first, last in self._blocks:
            if start < last and first < end:
                self.exit.drop_code(block + max(start, first) - first, block + min(end, last) - first, self._running)
        if self._running and self.exit.stale:
            self._leave()

    # --- use

    def watch_stores(self, ranges: Iterable[tuple[int, int]], stores: Stores) -> None:
        """From now on `stores(address, data, rip, guest)` is called before each store of code on this processor to the host-physical
        half-open `ranges`: a linear `rip`, and whether it is the guest's.  Every store, wherever it goes, takes 27 ns longer then.
        """
        self._watch.want(ranges, stores)
        if not self._closed:
            self._leave() if self._running else self._watch.begin()

    def in_guest(self) -> bool:
        """Whether guest code runs: VMRUN stores the host's RIP in the save area, an exit clears it."""
        return bool(self.hsave) and self.memory.read64(self.hsave + SaveArea.RIP) != 0

    @property
    def running(self) -> bool:
        """Whether code runs on it at this moment."""
        return self._running

    @property
    def vmcb(self) -> int:
        """The VMCB of the last VMRUN (host-physical), which the save area keeps as the host's RAX."""
        return self.memory.read64(self.hsave + SaveArea.RAX)

    def start(self, rip: int, cr3: int, hsave: int) -> None:
        """As a boot loader leaves it: long mode, paging by the tables at `cr3`, no-execute on, interrupts off.

        `hsave` is where the code that starts there will have the host's state saved (VM_HSAVE_PA).
        """
        self.uc.msr_write(EFER, EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE)
        self.uc.reg_write(x86.UC_X86_REG_CR4, 0x620)
        self.uc.reg_write(x86.UC_X86_REG_CR3, cr3)
        self.uc.reg_write(x86.UC_X86_REG_CR0, 0x80010011)
        self.uc.reg_write(x86.UC_X86_REG_EFLAGS, 2)
        self.rip, self.hsave = rip, hsave

    def run(self) -> Stop:
        """Runs until host code halts or someone calls `stop` or `pause` (before it began, too)."""
        if self._stepping:
            self._stepping = False
            self.exit.step_exactly(False)
        ran = self._stop is None and not self._pausing
        if ran:
            self._emulate()
        paused, self._pausing = self._pausing, False
        stop, self._stop = self._stop, None
        if stop:
            return stop
        guest = self.in_guest()
        if paused and not (ran and self._halted()):
            return Stop(StopKind.PAUSE, "", self.rip, guest)
        return Stop(StopKind.GUEST_HALT if guest else StopKind.HALT, "", self.rip, guest)

    def _emulate(self) -> None:
        """Where a pause comes between an exit and the door, the guest's registers are in nobody's hands: there it goes on to the door."""
        interrupted = True
        while interrupted:
            self._nudged = False
            self.meter.refuel()
            self._emulate_once()
            due = self.state is not None or self._nudged or self.meter.was_empty
            self.meter.elapse()
            again = self.exit.settle() or self._watch.begin() or (self._exited if self._pausing else due and not self._halted())
            interrupted = again and self._stop is None

    def _emulate_once(self, count: int = 0) -> None:
        self._running = True
        self.meter.begin()
        if self.state is not None:
            self.state.halted.value = 0
        self.code_pages.begin()
        try:
            self.uc.emu_start(self.rip, 0, count=count)
        except UcError as e:
            self._crash(str(e))
        finally:
            self._running = False
            self.code_pages.end()
        self.rip = self.uc.reg_read(x86.UC_X86_REG_RIP)
        self.meter.stopped_at(self.rip)

    def _halted(self) -> bool:
        """Whether the last instruction was HLT; by the public interface alone that cannot be told in the guest."""
        if self.state is not None:
            return bool(self.state.halted.value)
        if self.in_guest():
            return False
        at = translate(self.memory, self.uc.reg_read(x86.UC_X86_REG_CR3), self.rip - 1)
        return at is not None and self.memory.backed(at) and self.memory.map[at] == HLT

    def step(self) -> Stop | None:
        """One instruction, the guest's or the host's; a repeated string instruction counts each turn.  20 us.

        Returns a stop where the processor halted or cannot go on; the next `run` tells it too, but for a halt.
        """
        self._pausing = False
        if not self._stepping:
            self._stepping = True
            self.exit.step_exactly(True)
        self.meter.refuel()
        self._emulate_once(1)
        self.meter.elapse()
        self.exit.settle()
        self._watch.begin()
        if self._stop or not self._halted():
            return self._stop
        return Stop(StopKind.HALT, "", self.rip, False)

    def stop(self, kind: StopKind = StopKind.REQUEST, detail: str = "") -> None:
        """Ends `run` at the next chance; the first reason given stays."""
        if self._stop is None:
            self._stop = Stop(kind, detail, self.rip, False)
        if not self._closed:
            self.uc.emu_stop()

    def pause(self, at_once: bool = False) -> None:
        """Lets `run` come back soon with PAUSE, from any thread; the processor goes on with the next `run` as if nothing had been.

        It comes back where the guest's registers can be told, and where this build of the emulator would split an instruction, at an
        access to a device or an exit; `at_once`, wherever it is.  A pause is missed while `run` begins: ask again until it has come back.
        """
        self._pausing = True
        if at_once:
            self._exited = False
        if not self._closed and (at_once or self.meter.works or self.exit.stops_between_instructions):
            self._leave()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called and `run` has not yet told so."""
        return self._stop is not None

    def save(self) -> dict[str, Any]:
        """All of the processor that is no memory, as values for `load`, while it does not run."""
        return {"rip": self.rip, "hsave": self.hsave, "stop": self._stop, "exited": self._exited, "injected": self._injected,
                "pin": self._pin, "blocks": self.meter.total, "registers": context.save(self.uc), "host": self.exit.save()}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Makes a processor that has not run yet what another one was, on memory that is what that one's was.

        Raises ValueError for registers of another emulator.
        """
        self.rip, self.hsave, self._stop, self._pin = saved["rip"], saved["hsave"], saved["stop"], saved["pin"]
        self._exited, self._injected, self.meter.total = saved["exited"], saved["injected"], saved["blocks"]
        context.restore(self.uc, saved["registers"])
        self.exit.load(saved["host"])
        self._drive_pin()

    def close(self) -> None:
        """Lets go of the emulator and of the machine's memory; it never runs again."""
        if self._written in self.memory.listeners:
            self.memory.listeners.remove(self._written)
        if not self._closed:
            self._closed = True
            emulator.release(self.uc)


def _map_memory(uc: Uc, memory: Memory) -> Iterator[tuple[int, int, int]]:
    """Gives the emulator every run of RAM below 1 TiB; yields (offset among its RAM blocks, start, end)."""
    block = 0
    for start, end in memory.runs:
        end = min(end, 1 << PHYSICAL_BITS)
        if start < end:
            uc.mem_map_ptr(start, end - start, UC_PROT_ALL, memory.host + start)
            yield block, start, end
            block += -(-(end - start) // _BLOCK) * _BLOCK


_BLOCK = 64 * 4096
"""The emulator places its RAM blocks at multiples of this."""


_HARD = 1 << 1
"""The interrupt pin among the emulator's interrupt requests."""
_INTR = INTERCEPTS_1[ExitCode.INTR]
_INVALID_OPCODE = 6


def _nothing() -> None:
    pass
