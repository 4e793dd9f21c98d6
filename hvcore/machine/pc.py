"""The PC, assembled from its description.  Power-on builds everything anew on the same memory."""

from collections import deque
from collections.abc import Callable

from ..errors import BadMachine, BadTable
from ..spec import dmar
from ..spec.apic import LOCAL_APIC_ADDRESS
from . import apic, firmware, ioapic
from .bus import Bus
from .clock import Clock
from .cmos import Cmos
from .cpu import Cpu, Stop, StopKind, Stores
from .description import MachineDescription
from .dma import MSI, DmaFabric
from .interrupts import InterruptSystem
from .journal import Journal
from .memory import Memory
from .partition import Partition
from .pci import RootComplex
from .pic import Pic
from .pit import Pit
from .pm1 import Pm1
from .pmtimer import PmTimer
from .printed import Printed
from .reset import ResetPorts
from .rest import Rest
from .schedule import Schedule, waits
from .topology import Topology
from .uart import Uart
from .vtd.unit import RemappingUnit
from .writes import WriteLog

__all__ = ["Pc"]

DEBUG_PORT = 0xE9


def _open() -> None:
    """A gate at which nobody is held."""


def _unread(line: bytes) -> None:
    """Where nobody reads what the guest prints."""


class _DebugPort:
    """What is written to port 0xE9, as Bochs and QEMU have it."""

    def __init__(self) -> None:
        self.output = Printed()

    def port_read(self, port: int, width: int) -> int:
        """0xE9, which tells software that the port is there."""
        return DEBUG_PORT

    def port_write(self, port: int, width: int, value: int) -> None:
        """One byte."""
        self.output.put(bytes((value & 0xFF,)))


class Pc:
    """A machine that can be switched on.  `power_on` gives fresh devices; memory, the largest part, is only emptied.

    `halted`: the processor stands behind an HLT of the host; `parked`: nobody lets it run any more.  There is a second processor,
    `partition`, once somebody has asked for it (`second`), and then `schedule` says whose turn it is.  `serial` is what was sent on COM1,
    `debug` what was written to port 0xE9, `messages` the newest message-signalled interrupts as (source, address, data) behind the
    remapping units, as the local APIC sees them; the source is None where a unit sent it, or an I/O APIC that no unit names: those nothing
    remaps.  `journal` has what happened to translation since power-on; `on_line` is called with each line that was sent on COM1.
    `rest` knows when a guest that always has a timer running has nothing more to do.
    """

    memory: Memory
    bus: Bus
    cpu: Cpu
    interrupts: InterruptSystem

    def __init__(self, machine: MachineDescription, public_only: bool = False, ideal_caches: bool = False):
        self.machine, self.public_only, self.ideal_caches = machine, public_only, ideal_caches
        self.on_line: Callable[[bytes], None] = _unread
        self.memory = Memory(machine.ram_runs)
        self.topology = Topology(_parsed(machine.dmar), machine.pci)
        self.power_on()

    def power_on(self) -> None:
        """Empty memory, fresh devices and disk, firmware's tables laid."""
        if hasattr(self, "cpu"):
            self.close_processors()
        self.partition: Partition | None = None
        self.schedule: Schedule | None = None
        self.memory.reset()
        self.clock = Clock()
        self.bus = Bus(self.memory)
        self.journal = Journal(self.clock)
        self._log_writes()
        self.units = self._units()
        self.messages: deque[tuple[int | None, int, int]] = deque(maxlen=256)
        self.fabric = DmaFabric(self.memory, self._unit_of, self._message, self._now)
        self._legacy()
        self.root = RootComplex(self.bus, self.fabric, self.clock, self.machine, self.interrupts)
        self.layout = firmware.lay(self.memory, self.machine, self.root.functions.values(), self.interrupts.ioapic.id >> 24)
        self.cpu = Cpu(self.memory, self.bus, self.clock, self.public_only)
        self.interrupts.changed = self._interrupts_changed
        self.halted = self.parked = False

    def _interrupts_changed(self) -> None:
        self.cpu.pin(self.interrupts.pending() is not None)

    def second(self) -> Partition:
        """The machine's second processor with its ports, which has waited since power-on."""
        if self.partition is None:
            self.partition = Partition(self)
            self.writes.rearm(self.partition.cpu.watch_stores)
            self.schedule = Schedule((self, self.partition), self.clock)
        return self.partition

    def _log_writes(self) -> None:
        """`writes` has who wrote what since power-on."""
        self.writes = WriteLog(self.clock, self._watch_stores, self._idle)
        self.memory.recorder = self.writes.written
        self.journal.begun = self.writes.phase

    def _idle(self) -> bool:
        """Whether no processor runs at this moment."""
        return not self.cpu.running and (self.partition is None or not self.partition.cpu.running)

    def _processors(self) -> list[Cpu]:
        return [self.cpu] if self.partition is None else [self.cpu, self.partition.cpu]

    def _watch_stores(self, ranges: list[tuple[int, int]], stores: Stores) -> None:
        for cpu in self._processors():
            cpu.watch_stores(ranges, stores)

    def _units(self) -> list[RemappingUnit]:
        units = [RemappingUnit(u, self.memory, self.machine.host_address_width, self._unit_message, self.ideal_caches)
                 for u in self.machine.units]
        for unit in units:
            unit.changed = self.journal.unit_changed
            try:
                self.bus.map_mmio(unit.base, unit.size, f"VT-d unit at {unit.base:#x}", unit)
            except ValueError as e:
                raise BadMachine(f"the machine's remapping units collide: {e}") from e
        return units

    def _legacy(self) -> None:
        self.serial = Printed()
        self.rest = Rest(self.clock, self.pause)
        self.interrupts = self._controllers()
        self.pit = Pit(self.bus, self.clock, self.interrupts)
        self.pm_timer = PmTimer(self.bus, self.clock)
        self.cmos = Cmos(self.bus, self.clock, self.machine.ram_runs)
        self.uart = Uart(self.bus, self.interrupts, self._sent)
        self.pm1 = Pm1(self.bus, self.clock, self.interrupts, self.switch_off)
        self.reset_ports = ResetPorts(self.bus, self.reset)
        self._debug = _DebugPort()
        self.bus.map_ports(DEBUG_PORT, 1, self._debug)
        self.reset_requested = False

    def _controllers(self) -> InterruptSystem:
        """8259 pair, I/O APIC and local APIC.  The I/O APIC sends as the requester that the DMAR gives it, else past the units."""
        place = self.topology.ioapic
        self._ioapic_port = self.fabric.port(place.source, place.segment) if place and place.source is not None else None
        io = ioapic.IoApic(self._ioapic_message, place.scope.enumeration_id if place else 0)
        local = apic.LocalApic(self.clock)
        for start, size, name, device in ((firmware.IOAPIC_ADDRESS, ioapic.SIZE, "I/O APIC", io),
                                          (LOCAL_APIC_ADDRESS, apic.SIZE, "local APIC", local)):
            try:
                self.bus.map_mmio(start, size, name, device)
            except ValueError as e:
                raise BadMachine(f"the machine's remapping units collide with its interrupt controllers: {e}") from e
        return InterruptSystem(Pic(self.bus), io, local)

    def _ioapic_message(self, address: int, data: int) -> None:
        if self._ioapic_port is not None:
            self._ioapic_port.write(address, data.to_bytes(4, "little"))
        else:
            self._message(None, address, data)

    @property
    def debug(self) -> bytes:
        """Everything written to port 0xE9."""
        return bytes(self._debug.output)

    def _sent(self, data: bytes) -> None:
        self.serial.put(data)
        self.rest.sent(data)
        if data.endswith(b"\n"):
            self.on_line(bytes(self.serial[self.serial.rfind(b"\n", 0, -1) + 1:]))

    def _now(self) -> int:
        return self.clock.now

    def _unit_of(self, segment: int, source: int) -> RemappingUnit | None:
        index = self.topology.unit_index(segment, source)
        return self.units[index] if index is not None and index < len(self.units) else None

    def _message(self, source: int | None, address: int, data: int) -> None:
        self.messages.append((source, address, data))
        self.interrupts.message(address, data)

    def _unit_message(self, address: int, data: int) -> None:
        """A unit's own event: a 4-byte write, which software that left the address at 0 finds in its memory."""
        if address in MSI:
            self._message(None, address, data)
        elif self.memory.backed(address, 4):
            self.memory.write(address, data.to_bytes(4, "little"), "a remapping unit's own message")

    def reset(self) -> None:
        """Somebody pulls the reset line: whoever runs the machine finds `reset_requested` and switches it on anew."""
        self.reset_requested = True
        self.stop(StopKind.REQUEST, "the guest reset the machine")

    def switch_off(self) -> None:
        """Software asked for the state S5, soft off."""
        self.stop(StopKind.OFF, "the guest entered S5, soft off")

    def stop(self, kind: StopKind, detail: str) -> None:
        """Ends the run of the processor that runs."""
        (self.schedule or self.cpu).stop(kind, detail)

    def pause(self, at_once: bool = False) -> None:
        """Lets the processor that runs come back soon, as `Cpu.pause`."""
        (self.schedule or self.cpu).pause(at_once)

    def tick(self) -> None:
        """To be called now and then while the machine runs: no processor that only computes keeps the other waiting."""
        if self.schedule is not None:
            self.schedule.tick()

    def run(self, gate: Callable[[], None] = _open) -> Stop | None:
        """Runs until the processor stops for good (the stop), or halts with nothing left that could wake it or its guest at rest (None).

        `gate` is called where the machine can be held and go on later: before the processor runs, after each pause of it, and while it
        waits.  In the emulator there is no KeyboardInterrupt: let it run on another thread than the main one.
        """
        while True:
            gate()
            if self.rest.late or self.halted and not self.wake(gate):
                return None
            stop = self.cpu.run()
            self.halted = stop.kind is StopKind.HALT
            if stop.kind not in (StopKind.HALT, StopKind.PAUSE):
                return stop

    def wake(self, gate: Callable[[], None] = _open) -> bool:
        """The processor halts: time jumps from timer to timer until an interrupt waits or somebody says stop; False where none comes, and
        where the guest is at rest."""
        while self.interrupts.pending() is None and not self.cpu.stopping:
            gate()
            if self.rest.halted() or not self.clock.skip():
                return False
        self.halted = False
        return True

    @property
    def prompt(self) -> bytes | None:
        """What the guest's shell prints when it waits for a command; None for a guest that is at rest when no timer runs."""
        return self.rest.prompt

    @prompt.setter
    def prompt(self, prompt: bytes | None) -> None:
        self.rest.prompt = prompt

    @property
    def waiting(self) -> bool:
        """Whether the processor halts and no interrupt waits for it, and its shell, if it has one, asks for input; of two, both."""
        if self.schedule is not None:
            return all(waits(seat) for seat in self.schedule.seats)
        return self.halted and self.interrupts.pending() is None and (self.rest.prompt is None or self.rest.at_prompt)

    def type(self, data: bytes) -> None:
        """Input on COM1."""
        self.rest.typed()
        self.uart.receive(data)

    def close(self) -> None:
        """Gives the memory back."""
        self.close_processors()
        self.memory.close()

    def close_processors(self) -> None:
        """No processor runs again; others may take their place."""
        self.cpu.close()
        if self.partition is not None:
            self.partition.close()


def _parsed(table: bytes | None) -> dmar.Dmar | None:
    """The machine's DMAR, where it has one that can be read."""
    try:
        return dmar.parse(table) if table else None
    except BadTable:
        return None
