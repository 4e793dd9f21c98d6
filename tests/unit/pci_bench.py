"""A small PC for the device tests: memory, bus, clock, DMA, a root complex with chosen functions; software's view of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from hvcore.machine.bus import Bus
from hvcore.machine.clock import Clock
from hvcore.machine.description import DiskDescription, EcamDescription, MachineDescription, PciDescription, UnitDescription
from hvcore.machine.dma import DmaFabric
from hvcore.machine.memory import Memory
from hvcore.machine.pci import RootComplex
from hvcore.spec.dma import DmaRequest, RemapFault
from hvcore.spec.e820 import E820Entry
from hvcore.spec.interrupts import Interrupt, as_written
from hvcore.spec.pci import bdf

ECAM = 0xB0000000
LOW, HIGH = 64 << 20, (4 << 30) + (16 << 20)
RUNS = ((0, LOW), (4 << 30, HIGH))

HOST_BRIDGE = PciDescription(bdf(0, 0, 0), 0x8086, 0x29C0, 0x060000)
NVME = PciDescription(bdf(0, 2, 0), 0x1B36, 0x0010, 0x010802, "nvme", revision=2, subsystem=(0x1AF4, 0x1100))
DISK, WINDOW = DiskDescription(size=1 << 20, seed=7), EcamDescription(ECAM, 0, 15)
EDU = PciDescription(bdf(0, 3, 0), 0x1234, 0x11E8, 0x00FF00, "edu", revision=0x10)


class Lines:
    """Interrupt lines that only remember their levels and rises."""

    def __init__(self) -> None:
        self.levels: dict[int, bool] = {}
        self.rises: list[int] = []

    def set_line(self, irq: int, level: bool) -> None:
        if level and not self.levels.get(irq):
            self.rises.append(irq)
        self.levels[irq] = level


class Gate:
    """A remapping unit that refuses what `blocks` says and passes the rest."""

    def __init__(self) -> None:
        self.blocks: Callable[[DmaRequest], bool] = lambda request: False
        self.seen: list[DmaRequest] = []

    def remap(self, request: DmaRequest) -> int | RemapFault:
        self.seen.append(request)
        return RemapFault(request, 0xFED90000, 6, request.iova & ~0xFFF) if self.blocks(request) else request.iova

    def interrupt(self, source: int, address: int, data: int) -> Interrupt | RemapFault:
        return as_written(source, address, data)


@dataclass
class Bench:
    pci: tuple[PciDescription, ...] = (HOST_BRIDGE, NVME, EDU)
    disk: DiskDescription = DISK
    ecam: EcamDescription | None = WINDOW
    units: tuple[UnitDescription, ...] = ()
    messages: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        e820 = tuple(E820Entry(a, b, 1) for a, b in RUNS)
        self.machine = MachineDescription("bench", e820, RUNS, 0, units=self.units, pci=self.pci, ecam=self.ecam, disk=self.disk)
        self.memory, self.clock, self.lines, self.gate = Memory(RUNS), Clock(), Lines(), Gate()
        self.bus = Bus(self.memory)
        self.fabric = DmaFabric(self.memory, lambda segment, source: self.gate, lambda *message: self.messages.append(message))
        self.root = RootComplex(self.bus, self.fabric, self.clock, self.machine, self.lines)

    def config_read(self, source: int, offset: int, width: int = 4) -> int:
        """By configuration mechanism 1."""
        self.bus.port_write(0xCF8, 4, 1 << 31 | source << 8 | offset & 0xFC)
        return self.bus.port_read(0xCFC + (offset & 3), width)

    def config_write(self, source: int, offset: int, value: int, width: int = 4) -> None:
        self.bus.port_write(0xCF8, 4, 1 << 31 | source << 8 | offset & 0xFC)
        self.bus.port_write(0xCFC + (offset & 3), width, value)

    def capability(self, source: int, number: int) -> int:
        """The offset of a capability, found as software finds it."""
        at = self.config_read(source, 0x34, 1)
        while at:
            found, link = self.config_read(source, at, 1), self.config_read(source, at + 1, 1)
            if found == number:
                return at
            at = link
        raise AssertionError(f"no capability {number:#x}")

    def bar0(self, source: int) -> int:
        """The address in BAR 0."""
        low = self.config_read(source, 0x10)
        high = self.config_read(source, 0x14) if low & 6 == 4 else 0
        return high << 32 | low & ~0xF
