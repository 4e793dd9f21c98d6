"""Devices and configuration space under hostile software: random registers, queues of noise, windows that move, DMA that is refused."""

from collections.abc import Callable
from itertools import pairwise
from random import Random

from hvcore.machine.apic import LocalApic
from hvcore.machine.bus import Bus
from hvcore.machine.clock import Clock
from hvcore.machine.cmos import Cmos
from hvcore.machine.description import BarDescription, DiskDescription, EcamDescription, MachineDescription, PciDescription
from hvcore.machine.dma import DmaFabric
from hvcore.machine.firmware import IOAPIC_ADDRESS
from hvcore.machine.interrupts import InterruptSystem
from hvcore.machine.ioapic import IoApic
from hvcore.machine.memory import Memory
from hvcore.machine.pci import RootComplex
from hvcore.machine.pic import Pic
from hvcore.machine.pit import Pit
from hvcore.machine.pm1 import Pm1
from hvcore.machine.pmtimer import PmTimer
from hvcore.machine.reset import ResetPorts
from hvcore.machine.uart import Uart
from hvcore.spec.apic import LOCAL, LOCAL_APIC_ADDRESS
from hvcore.spec.bits import bit
from hvcore.spec.dma import DmaRequest, RemapFault
from hvcore.spec.e820 import E820Entry
from hvcore.spec.interrupts import Interrupt, as_written
from hvcore.spec.nvme import AdminOpcode, Command, NvmOpcode
from hvcore.spec.pci import STATUS, bdf

from .mutate import number, often

__all__ = ["TARGETS"]

ECAM, RAM = 0xB000_0000, 4 << 20
NVME, EDU, BRIDGE, BEHIND = bdf(0, 2, 0), bdf(0, 3, 0), bdf(0, 4, 0), bdf(1, 0, 0)
_PCI = (PciDescription(bdf(0, 0, 0), 0x8086, 0x29C0, 0x060000), PciDescription(NVME, 0x1B36, 0x10, 0x010802, "nvme"),
        PciDescription(EDU, 0x1234, 0x11E8, 0x00FF00, "edu"),
        PciDescription(BRIDGE, 0x1B36, 0xC, 0x060400, "bridge", secondary=1, subordinate=2),
        PciDescription(BEHIND, 0x8086, 0x10D3, 0x020000, bars=(BarDescription(0, "mem32", 1 << 17), BarDescription(2, "io", 32))),
        PciDescription(bdf(1, 1, 0), 0x1234, 0x11E8, 0x00FF00, "edu"))
_INTX = 1 << 3
ASQ, ACQ, SQ, CQ, DATA, LISTS = 0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000, 0x20_0000, 0x30_0000


class _Fickle:
    """A remapping unit that refuses some requests, by lot."""

    def __init__(self, r: Random, chance: float):
        self.r, self.chance = r, chance

    def remap(self, request: DmaRequest) -> int | RemapFault:
        return RemapFault(request, 0, 6, request.iova & ~0xFFF) if often(self.r, self.chance) else request.iova

    def interrupt(self, source: int, address: int, data: int) -> Interrupt | RemapFault:
        return as_written(source, address, data)


class _Board:
    """A small PC without a processor."""

    def __init__(self, seed: int):
        self.r = r = Random(seed)
        self.memory, self.clock, self.resets = Memory([(0, RAM)]), Clock(), 0
        self.bus = Bus(self.memory)
        self.unit = _Fickle(r, r.choice((0, 0, 0.02, 0.5)))
        self.fabric = DmaFabric(self.memory, lambda segment, source: self.unit)
        self.pic, self.sent = Pic(self.bus), bytearray()
        self.devices = (Pit(self.bus, self.clock, self.pic), PmTimer(self.bus, self.clock), Cmos(self.bus, self.clock, self.memory.runs),
                        ResetPorts(self.bus, self._reset), Pm1(self.bus, self.clock, self.pic, self._reset))
        self.uart = Uart(self.bus, self.pic, self.sent.extend)
        machine = MachineDescription("board", (E820Entry(0, RAM, 1),), self.memory.runs, 0, pci=_PCI, ecam=EcamDescription(ECAM, 0, 3),
                                     disk=DiskDescription(size=1 << 20))
        self.root = RootComplex(self.bus, self.fabric, self.clock, machine, self.pic)
        self.at_first = {key: bytes(f.config) for key, f in self.root.functions.items()}

    def _reset(self) -> None:
        self.resets += 1

    def wait(self, timers: int) -> None:
        """Lets up to so many timers run out."""
        for _ in range(timers):
            before = self.clock.now
            if not self.clock.skip():
                break
            assert self.clock.now >= before

    def window(self, source: int) -> int:
        """Where a function's BAR 0 is now, or some address."""
        window = self.root.functions[0, source].window
        return window[0] if window else number(self.r, 40)

    def touch(self, address: int, width: int) -> None:
        """A load, a store, or both."""
        if often(self.r, 0.6):
            self.bus.write(address, width, number(self.r, 8 * width))
        if often(self.r, 0.5):
            assert 0 <= self.bus.read(address, width) < bit(8 * width)

    def configure(self) -> None:
        """A configuration cycle, by ports or through the window."""
        r = self.r
        source = r.choice((*(s for _, s in self.root.functions), number(r, 16)))
        at, width = r.choice((0x04, 0x06, 0x10, 0x14, 0x18, 0x19, 0x1A, 0x3C, 0x42, 0x50, 0x7C, r.randrange(256))), r.choice((1, 2, 4, 4))
        if often(r, 0.5):
            self.touch(ECAM + (source << 12) + r.choice((at, number(r, 12))), width)
            return
        self.bus.port_write(0xCF8, 4, r.choice((bit(31), bit(31), 0)) | source << 8 | at & 0xFC)
        self.port(0xCFC + (at & 3), width)

    def port(self, port: int, width: int) -> None:
        """An IN, an OUT, or both."""
        if often(self.r, 0.6):
            self.bus.port_write(port, width, number(self.r, 8 * width))
        if often(self.r, 0.6):
            assert 0 <= self.bus.port_read(port, width) < bit(8 * width)

    def check(self) -> None:
        """Windows lie apart, bits that software cannot change have not changed."""
        assert all(a.end <= b.start for a, b in pairwise(self.bus.windows)), "two windows overlap"
        for key, f in self.root.functions.items():
            fixed = [~(w | c) & 0xFF for w, c in zip(f.writable, f.clearable, strict=True)]
            fixed[STATUS] &= ~_INTX
            changed = [i for i, (a, b, m) in enumerate(zip(f.config, self.at_first[key], fixed, strict=True)) if (a ^ b) & m]
            assert not changed, f"{f}: configuration bytes {changed} are read-only and changed"


# --- NVMe

def _command(r: Random) -> Command:
    """A command with a meaning in most of its fields."""
    opcode = r.choice((*AdminOpcode, *NvmOpcode, r.randrange(256)))
    numbers = [r.choice((0, 1, 2, 8, 0xF0000, 0x30001, 0xFFFFFFFF, number(r, 32))) for _ in range(6)]
    places = (DATA, DATA, DATA + 8, LISTS, LISTS + 4088, SQ, CQ, 0, RAM - 4096, RAM, number(r, 64))
    return Command(opcode, r.choice((0, 0, 0, 0, r.randrange(256))), r.getrandbits(16), r.choice((1, 1, 0, 0xFFFFFFFF, number(r, 32))),
                   prp1=r.choice(places), prp2=r.choice(places), **{f"cdw{10 + i}": n for i, n in enumerate(numbers)})


class _NvmeAttack(_Board):
    """Software that sets the controller up and then loses its mind."""

    def __init__(self, seed: int):
        super().__init__(seed)
        for i in range(0, 8192, 8):
            self.memory.write64(LISTS + i, self.r.choice((DATA, LISTS, LISTS + 4096, DATA + 4, 0)) if i % 64 else LISTS)
        self.statuses: set[int] = set()

    def enable(self) -> None:
        """Right, but for a field now and then."""
        base, r = self.window(NVME), self.r
        for at, width, value in ((0x14, 4, 0), (0x24, 4, 0x7_0007), (0x28, 8, ASQ), (0x30, 8, ACQ), (0x14, 4, 0x460001)):
            self.bus.write(base + at, width, value if often(r, 0.97) else number(r, 8 * width))
        self.wait(2)

    def create_queues(self) -> None:
        """A pair of I/O queues by commands that are right."""
        commands = (Command(AdminOpcode.CREATE_CQ, cid=1, prp1=CQ, cdw10=0xF_0001, cdw11=3),
                    Command(AdminOpcode.CREATE_SQ, cid=2, prp1=SQ, cdw10=0xF_0001, cdw11=0x1_0001))
        for i, command in enumerate(commands):
            self.memory.write(ASQ + 64 * i, command.pack())
        self.ring(0, 2)

    def submit(self) -> None:
        """Commands of noise in a queue, and its doorbell."""
        number_, base = self.r.choice(((0, ASQ), (1, SQ), (1, SQ)))
        for i in range(8):
            self.memory.write(base + 64 * i, _command(self.r).pack() if often(self.r, 0.95) else self.r.randbytes(64))
        self.ring(number_, self.r.choice((1, 4, 7, self.r.getrandbits(16))))

    def ring(self, queue: int, value: int) -> None:
        """A tail; then a head, so that there is room."""
        base = self.window(NVME) + 0x1000 + 8 * queue
        self.bus.write(base, 4, value)
        self.wait(self.r.choice((1, 3, 20)))
        self.bus.write(base + 4, 4, self.r.choice((0, 1, 3, number(self.r, 16))))

    def anywhere(self) -> None:
        """Any register, doorbell, or vector of the table."""
        at = self.r.choice((self.r.randrange(0x40), 0x1000 + self.r.randrange(0x200), 0x2000 + self.r.randrange(0x210), 0x3000, 0x3FF8,
                            self.r.randrange(0x4000)))
        self.touch(self.window(NVME) + at, self.r.choice((1, 2, 4, 4, 8)))

    def check(self) -> None:
        """The status register, too, shows only what it may."""
        super().check()
        controller = self.root.functions[0, NVME]
        status = controller.register("CSTS")  # type: ignore[attr-defined]
        assert not status & ~0xF
        self.statuses.add(status)


_NVME_STEPS: tuple[tuple[Callable[[_NvmeAttack], None], int], ...] = (
    (_NvmeAttack.enable, 2), (_NvmeAttack.create_queues, 3), (_NvmeAttack.submit, 8), (_NvmeAttack.anywhere, 6), (_NvmeAttack.configure, 1),
    (lambda a: a.wait(50), 2))


def nvme(seed: int) -> str:
    """The NVMe controller."""
    a = _NvmeAttack(seed)
    a.enable()
    a.create_queues()
    for step in a.r.choices(*zip(*_NVME_STEPS, strict=True), k=30):
        step(a)
        a.check()
    entries = sum(bool(a.memory.read64(CQ + 16 * i + 8)) for i in range(16))
    return f"{'completions' if entries else 'none'}, {'failed once' if 2 in a.statuses else 'never failed'}"


# --- edu, configuration space, ports

def edu(seed: int) -> str:
    """Both `edu` devices: DMA from anywhere to anywhere, factorials, interrupts."""
    a = _Board(seed)
    r, read = a.r, 0
    for _ in range(60):
        base = a.window(r.choice((EDU, bdf(1, 1, 0))))
        for at in (0x80, 0x88, 0x90):
            value = r.choice((0x40000, 0x40FFF, DATA, RAM - 8, 64, 4096, number(r, 64)))
            a.bus.write(base + at, r.choice((4, 8)), value)
        a.bus.write(base + 0x98, 4, r.choice((1, 3, 5, 7, number(r, 32))))
        a.touch(base + r.choice((0, 4, 8, 0x20, 0x24, 0x60, 0x64, 0x98, number(r, 20))), r.choice((1, 2, 4, 8)))
        a.wait(r.randrange(4))
        if often(r, 0.1):
            a.configure()
        read += any(result.ok for result in a.fabric.trace)
        a.check()
    return "DMA" if read else "no DMA"


def config(seed: int) -> str:
    """Configuration space: windows that move over one another and over RAM, bus numbers that change, power-on in between."""
    a = _Board(seed)
    for _ in range(120):
        a.configure()
        a.check()
    for source in (NVME, EDU, BEHIND):
        a.touch(a.window(source) + a.r.randrange(64), 4)
    moved = sum(f.window is None for f in a.root.functions.values() if f.has_window)
    a.root.reset()
    a.check()
    assert all(bytes(f.config) == a.at_first[key] for key, f in a.root.functions.items()), "reset leaves something"
    return "windows off" if moved else "windows on"


def ports(seed: int) -> str:
    """The legacy devices: interrupt controllers, timers, serial line, CMOS, reset ports."""
    a = _Board(seed)
    r, acknowledged = a.r, 0
    known = (0x20, 0x21, 0xA0, 0xA1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x70, 0x71, 0x60, 0x64, 0x80, 0xCF8, 0xCF9, 0xCFC, 0xCFE, 0x608, 0x4D0,
             *range(0x3F8, 0x400), *range(0x600, 0x606))
    for _ in range(150):
        a.port(r.choice(known) if often(r, 0.9) else number(r, 16), r.choice((1, 1, 1, 2, 4)))
        if often(r, 0.2):
            a.clock.advance(r.choice((1, 1000, 1_000_000, 30_000_000)))
        a.wait(r.randrange(3))
        if often(r, 0.1):
            a.uart.receive(r.randbytes(r.randrange(40)))
        pending = a.pic.pending()
        assert pending is None or 0 <= pending < 256
        if pending is not None and often(r, 0.5):
            assert 0 <= a.pic.acknowledge() < 256
            acknowledged += 1
    return f"{'interrupts' if acknowledged else 'no interrupt'}, {'reset' if a.resets else 'no reset'}"


def controllers(seed: int) -> str:
    """Local APIC, I/O APIC and 8259 pair together: random registers, lines, messages and time, and a processor that takes interrupts."""
    r, clock, bus = Random(seed), Clock(), Bus(Memory([(0, 4096)]))
    apic = LocalApic(clock)
    system = InterruptSystem(Pic(bus), IoApic(lambda address, data: system.message(address, data)), apic)
    Pit(bus, clock, system)
    bus.map_mmio(LOCAL_APIC_ADDRESS, 4096, "local APIC", apic)
    bus.map_mmio(IOAPIC_ADDRESS, 4096, "I/O APIC", system.ioapic)
    wire, taken = [False], set[int]()
    system.changed = lambda: wire.append(system.pending() is not None)
    for _ in range(200):
        _disturb(r, bus, system)
        clock.advance(r.choice((0, 0, 1, 1000, 100_000)))
        pending = system.pending()
        assert wire[-1] == (pending is not None) and all(a != b for a, b in pairwise(wire)), "the processor was told something else"
        assert not (apic.irr | apic.isr) & 0xFFFF and not (apic.irr | apic.isr) >> 256
        if pending is not None and often(r, 0.6):
            assert system.acknowledge() == pending
            taken.add(pending)
    assert all(0 <= v < 256 for v in taken)
    return "interrupts" if taken else "no interrupt"


def _disturb(r: Random, bus: Bus, system: InterruptSystem) -> None:
    """One access, line or message."""
    what, value = r.randrange(8), r.choice((0, 0x1FF, 0x700, r.randrange(256), r.randrange(256) | 0x8000, number(r, 32)))
    if what < 3:
        at = r.choice(LOCAL).offset if often(r, 0.9) else r.randrange(4096)
        bus.read(LOCAL_APIC_ADDRESS + at, 4)
        bus.write(LOCAL_APIC_ADDRESS + at, r.choice((4, 4, 4, 4, 1, 8)), value)
    elif what < 5:
        bus.write(IOAPIC_ADDRESS, 4, r.choice((*range(0x10, 0x40), 0, 1, number(r, 8))))
        bus.write(IOAPIC_ADDRESS + r.choice((0x10, 0x10, 0x40, r.randrange(256))), 4, value)
    elif what == 5:
        system.set_line(r.randrange(24), often(r, 0.5))
    elif what == 6:
        system.message(0xFEE00000 | number(r, 20), value)
    else:
        bus.port_write(r.choice((0x20, 0x21, 0xA0, 0xA1, 0x40, 0x43, 0x4D0, 0x4D1)), 1, r.randrange(256))


TARGETS: dict[str, Callable[[int], str]] = {"nvme": nvme, "edu": edu, "config": config, "ports": ports, "controllers": controllers}
