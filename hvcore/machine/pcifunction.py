"""One PCI function: configuration space, base address registers, capabilities, bus mastering (PCI Local Bus 3.0, section 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import BadMachine
from ..spec import pci
from ..spec.dma import Direction, DmaRequest, DmaResult
from .bus import Bus
from .clock import Clock
from .description import BarDescription, DiskDescription, PciDescription
from .dma import DmaFabric
from .express import express_type
from .ports import Lines

__all__ = ["Bar", "Bridge", "Host", "IntxWires", "PciFunction", "intx_line"]

CONFIG_SIZE = 256
_COMMAND_WRITABLE = 0x0547
_STATUS_CAPABILITIES, _STATUS_INTX, _STATUS_CLEARABLE = 1 << 4, 1 << 3, 0xF900
_MULTIFUNCTION = 0x80
_FIRST_CAPABILITY = 0x40
_KINDS = {"mem32": (0x0, 1), "mem64": (0x4, 2), "io": (0x1, 1)}
"""The low bits of a base address register and how many dwords it takes."""

_PREFETCHABLE = 0x8
_ROUTES = (10, 11, 10, 11)
"""Interrupt lines of the four PCI interrupt wires."""


def intx_line(devices: int, pin: int) -> int:
    """The line at which pin 1 to 4 ends, `devices` being the sum of the device numbers of the function and the bridges above it."""
    return _ROUTES[(devices + pin - 1) % len(_ROUTES)]


class IntxWires:
    """The shared interrupt wires: a line is high while any function pulls it."""

    def __init__(self, lines: Lines):
        self._lines = lines
        self._pulling: dict[int, set[PciFunction]] = {irq: set() for irq in _ROUTES}

    def pull(self, function: PciFunction, irq: int, level: bool) -> None:
        """`function` raises or drops its interrupt on line `irq`."""
        users = self._pulling[irq]
        (users.add if level else users.discard)(function)
        self._lines.set_line(irq, bool(users))


@dataclass(frozen=True, slots=True)
class Host:
    """What every function of a machine shares.  `reserved` are half-open host-physical ranges that no base address register may take."""

    bus: Bus
    fabric: DmaFabric
    clock: Clock
    wires: IntxWires
    disk: DiskDescription
    reserved: tuple[tuple[int, int], ...]

    def free(self, start: int, end: int) -> bool:
        """Whether [start, end) is neither RAM nor reserved nor answered by another device."""
        taken = [*self.bus.memory.runs, *self.reserved, *((w.start, w.end) for w in self.bus.windows)]
        return all(end <= a or b <= start for a, b in taken)


@dataclass(slots=True)
class Bar:
    """A base address register at configuration offset `offset`; `address` is where firmware placed it, None where it did not."""

    description: BarDescription
    offset: int = field(init=False)
    flags: int = field(init=False)
    dwords: int = field(init=False)
    address: int | None = field(init=False)

    def __post_init__(self) -> None:
        d = self.description
        flags, self.dwords = _KINDS[d.kind]
        self.flags = flags | (_PREFETCHABLE if d.prefetchable and d.kind != "io" else 0)
        self.offset, self.address = pci.BAR0 + 4 * d.index, d.address

    @property
    def size(self) -> int:
        """Bytes."""
        return self.description.size

    @property
    def flag_bits(self) -> int:
        """The low bits that are no address."""
        return 0x3 if self.description.kind == "io" else 0xF

    @property
    def writable(self) -> int:
        """The address bits that software may set: writing all ones tells it the size."""
        return ((1 << 32 * self.dwords) - 1) & ~(self.size - 1) & ~self.flag_bits


class PciFunction:
    """A function with a type 0 header.  As it stands, the model `stub`: configuration space and nothing behind it.

    `config` are the 256 bytes that software sees, `writable` the bits it may change, `clearable` those that a written 1 clears.  `parent`
    is the bridge it lies behind, None on a root bus; `express` the type in its PCI Express capability, None where it has none.  A model
    with `has_window` answers its BAR 0 at `mmio_read` and `mmio_write` while COMMAND and the bridges above enable it.  `source` is its own
    requester id; like a real function it takes its bus number from the configuration writes that reach it.  `port.source` is the id that
    the rest of the machine sees: a bridge above may have put another in its place.
    """

    has_window = False
    pin = 0
    header_type = 0
    bar_count = 6
    default_bars: tuple[BarDescription, ...] = ()

    def __init__(self, description: PciDescription, host: Host, parent: Bridge | None = None, multifunction: bool = False):
        self.description, self.host, self.parent, self.source = description, host, parent, description.source
        self.express: pci.PortType | None = express_type(description, parent is None, parent.express if parent else None)
        self.port = host.fabric.port(description.source, description.segment)
        self.bars = tuple(Bar(b) for b in _checked(description, self.bar_count, description.bars or self.default_bars))
        self.config, self.writable, self.clearable = bytearray(CONFIG_SIZE), bytearray(CONFIG_SIZE), bytearray(CONFIG_SIZE)
        self._capability_end, self._last_link = _FIRST_CAPABILITY, pci.CAPABILITIES
        self._mapped: int | None = None
        self._lay_header()
        if multifunction:
            self.config[pci.HEADER_TYPE] |= _MULTIFUNCTION
        if self.express is not None:
            self.add_express(self.express)
        self.add_capabilities()
        self._power_on = bytes(self.config)

    def __str__(self) -> str:
        d = self.description
        return f"{pci.format_bdf(d.source)} [{d.vendor:04x}:{d.device_id:04x}] {d.model}"

    # What the configuration space holds

    def put(self, offset: int, width: int, value: int, writable: int = 0) -> None:
        """Lays a register of `width` bytes; `writable` are the bits that software may change."""
        self.config[offset:offset + width] = value.to_bytes(width, "little")
        self.writable[offset:offset + width] = writable.to_bytes(width, "little")

    def get(self, offset: int, width: int) -> int:
        """A register's value, without side effects."""
        return int.from_bytes(self.config[offset:offset + width], "little")

    def _lay_header(self) -> None:
        d = self.description
        self.put(pci.VENDOR_ID, 2, d.vendor)
        self.put(pci.DEVICE_ID, 2, d.device_id)
        self.put(pci.COMMAND, 2, 0, _COMMAND_WRITABLE)
        self.clearable[pci.STATUS:pci.STATUS + 2] = _STATUS_CLEARABLE.to_bytes(2, "little")
        self.put(pci.REVISION, 1, d.revision)
        self.put(pci.CLASS, 3, d.class_code)
        self.put(0x0C, 2, 0, 0xFFFF)
        self.put(pci.HEADER_TYPE, 1, self.header_type)
        self.put(pci.INTERRUPT_LINE, 1, 0, 0xFF)
        self.put(pci.INTERRUPT_PIN, 1, self.pin)
        for bar in self.bars:
            self.put(bar.offset, 4 * bar.dwords, bar.flags, bar.writable)
        if self.header_type == 0:
            self.put(pci.SUBSYSTEM_VENDOR_ID, 2, d.subsystem[0])
            self.put(pci.SUBSYSTEM_ID, 2, d.subsystem[1])

    def add_capability(self, number: int, body: bytes, writable: bytes = b"") -> int:
        """Appends a capability to the list, `body` being what follows its id and link; the offset where it lies."""
        at = self._capability_end
        self.config[at], self.config[at + 1] = number, 0
        self.config[at + 2:at + 2 + len(body)] = body
        self.writable[at + 2:at + 2 + len(writable)] = writable
        self.config[self._last_link] = at
        self.config[pci.STATUS] |= _STATUS_CAPABILITIES
        self._last_link, self._capability_end = at + 1, (at + 2 + len(body) + 3) & ~3
        return at

    def add_express(self, kind: pci.PortType) -> None:
        """The PCI Express capability, version 2 (PCI Express Base 4.0, section 7.5.3); a 2.5 GT/s x1 link."""
        link = 0x11
        body = bytearray(58)
        body[0:2] = (kind << 4 | 2).to_bytes(2, "little")
        body[2:6] = (1 << 15).to_bytes(4, "little")
        if kind is not pci.PortType.INTEGRATED_ENDPOINT:
            body[10:14] = link.to_bytes(4, "little")
            body[16:18] = link.to_bytes(2, "little")
        writable = bytearray(8)
        writable[6:8] = (0xFFFF & ~(1 << 15)).to_bytes(2, "little")
        self.add_capability(pci.EXPRESS, bytes(body), bytes(writable))

    def add_capabilities(self) -> None:
        """A model's own capabilities: none here."""

    # What firmware does at power-on

    def firmware(self) -> None:
        """Leaves the function as firmware does: BARs set, decoding and bus mastering enabled, an interrupt line chosen."""
        for bar in self.bars:
            if bar.address is not None:
                self.put_masked(bar.offset, 4 * bar.dwords, bar.address)
        io = pci.COMMAND_IO if any(b.description.kind == "io" for b in self.bars) else 0
        self.put_masked(pci.COMMAND, 2, pci.COMMAND_MEMORY | pci.COMMAND_BUS_MASTER | io)
        if self.pin:
            self.config[pci.INTERRUPT_LINE] = self.irq
        self.refresh()

    def reset(self) -> None:
        """Power-on state; the root complex then lets firmware set it up."""
        self.set_intx(False)
        self.config[:] = self._power_on
        self.source = self.description.source
        self.refresh()

    # Configuration cycles

    def config_read(self, offset: int, width: int) -> int:
        """Configuration space, 4 KiB for a PCI Express function; all ones where there is none."""
        end = self.config[offset:offset + width]
        beyond = b"\0" if self.express is not None else b"\xff"
        return int.from_bytes(bytes(end).ljust(width, beyond), "little")

    def config_write(self, offset: int, width: int, value: int, bus: int) -> None:
        """A write by software that reached the function on bus number `bus`."""
        self.source = bus << 8 | self.description.source & 0xFF
        self.put_masked(offset, width, value)
        self.config_written(offset, width)
        self.refresh()

    def put_masked(self, offset: int, width: int, value: int) -> None:
        """Changes the bits that may be changed."""
        for i in range(offset, min(offset + width, CONFIG_SIZE)):
            byte = value >> 8 * (i - offset) & 0xFF
            self.config[i] = (self.config[i] & ~self.writable[i] | byte & self.writable[i]) & ~(byte & self.clearable[i])

    def config_written(self, offset: int, width: int) -> None:
        """For models: something in [offset, offset + width) was written."""

    # What COMMAND gates

    @property
    def path(self) -> Iterator[PciFunction]:
        """The function and the bridges above it."""
        function: PciFunction | None = self
        while function:
            yield function
            function = function.parent

    def enabled(self, bit: int) -> bool:
        """Whether a bit of COMMAND is set here and in every bridge above."""
        return all(f.get(pci.COMMAND, 2) & bit for f in self.path)

    def requester(self) -> int:
        """The requester id that leaves the topmost bridge above, by the bus numbers that the bridges hold now."""
        source = self.source
        for bridge in bridges_above(self):
            source = pci.requester_behind(source, bridge.forwards_as, bridge.source, bridge.get(pci.SECONDARY_BUS, 1))
        return source

    def refresh(self) -> None:
        """Puts the port under the requester id of now, and the BAR 0 window where configuration space says; nowhere while that is RAM or
        another's."""
        self.port.source = self.requester()
        wanted = self.window_address()
        if wanted == self._mapped:
            return
        if self._mapped is not None:
            self.host.bus.unmap_mmio(self, self._mapped)
        size = self.bars[0].size
        self._mapped = wanted if wanted is not None and self.host.free(wanted, wanted + size) else None
        if self._mapped is not None:
            self.host.bus.map_mmio(self._mapped, size, str(self), self)

    def window_address(self) -> int | None:
        """The host-physical address that BAR 0 holds; None while it is not decoded."""
        if not (self.has_window and self.bars and self.enabled(pci.COMMAND_MEMORY)):
            return None
        bar = self.bars[0]
        return self.get(bar.offset, 4 * bar.dwords) & bar.writable

    @property
    def window(self) -> tuple[int, int] | None:
        """The half-open host-physical range where BAR 0 answers now; None where it does not."""
        return None if self._mapped is None else (self._mapped, self._mapped + self.bars[0].size)

    def mmio_read(self, offset: int, width: int) -> int:
        """A load from BAR 0's window."""
        return -1

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """A store to BAR 0's window."""

    # Bus mastering

    def dma_read(self, iova: int, length: int) -> DmaResult:
        """`length` bytes from an I/O virtual address; without bus mastering nothing goes out and nothing comes."""
        if not self.enabled(pci.COMMAND_BUS_MASTER):
            return DmaResult(DmaRequest(self.port.source, iova, length, Direction.READ, self.port.segment), None)
        return self.port.read(iova, length)

    def dma_write(self, iova: int, data: bytes) -> DmaResult:
        """`data` to an I/O virtual address, under the same condition."""
        if not self.enabled(pci.COMMAND_BUS_MASTER):
            return DmaResult(DmaRequest(self.port.source, iova, len(data), Direction.WRITE, self.port.segment), None)
        return self.port.write(iova, data)

    # Interrupt wire

    @property
    def irq(self) -> int:
        """The line of the interrupt controllers that the pin ends at: turned at each slot (PCI-to-PCI Bridge 1.2, section 9.1)."""
        return intx_line(sum(f.description.source >> 3 & 0x1F for f in self.path), self.pin)

    def set_intx(self, level: bool) -> None:
        """Raises or drops the interrupt pin; COMMAND's interrupt disable keeps it down."""
        if not self.pin:
            return
        status = self.get(pci.STATUS, 2) & ~_STATUS_INTX | (_STATUS_INTX if level else 0)
        self.config[pci.STATUS:pci.STATUS + 2] = status.to_bytes(2, "little")
        self.host.wires.pull(self, self.irq, level and not self.get(pci.COMMAND, 2) & pci.COMMAND_INTX_DISABLE)


class Bridge(PciFunction):
    """A PCI-to-PCI bridge (type 1 header).  It forwards configuration cycles by its bus numbers, and memory and DMA of what lies behind
    it while its COMMAND allows; its windows' limits are registers only.  `forwards_as` says under whose requester id."""

    header_type = 1
    bar_count = 2

    def __init__(self, description: PciDescription, host: Host, parent: Bridge | None = None, multifunction: bool = False):
        self.children: dict[int, PciFunction] = {}
        super().__init__(description, host, parent, multifunction)
        above = parent.express if parent else None
        self.forwards_as = pci.forwarding_type(description.vendor, description.device_id, self.express, above)

    def _lay_header(self) -> None:
        super()._lay_header()
        for offset, width, writable in ((pci.PRIMARY_BUS, 4, 0xFFFFFFFF), (0x1C, 2, 0xF0F0), (0x20, 4, 0xFFF0FFF0),
                                        (0x28, 8, (1 << 64) - 1), (0x3E, 2, 0x0003)):
            self.put(offset, width, 0, writable)
        self.put(0x24, 4, 0x00010001, 0xFFF0FFF0)

    def firmware(self) -> None:
        """Bus numbers too."""
        d = self.description
        for offset, number in ((pci.PRIMARY_BUS, d.source >> 8), (pci.SECONDARY_BUS, d.secondary), (pci.SUBORDINATE_BUS, d.subordinate)):
            self.put_masked(offset, 1, number)
        super().firmware()

    @property
    def buses(self) -> range:
        """The bus numbers behind the bridge, as its registers say now; empty while it has none."""
        return range(self.get(pci.SECONDARY_BUS, 1) or 256, self.get(pci.SUBORDINATE_BUS, 1) + 1)

    def refresh(self) -> None:
        """What lies behind appears or disappears with the bridge's own decoding."""
        super().refresh()
        for function in self.children.values():
            function.refresh()


def bridges_above(function: PciFunction) -> Iterator[Bridge]:
    """The bridges between a function and the root bus, from the nearest on."""
    bridge = function.parent
    while bridge:
        yield bridge
        bridge = bridge.parent


def _checked(description: PciDescription, count: int, bars: tuple[BarDescription, ...]) -> tuple[BarDescription, ...]:
    """The base address registers in order, if they are possible."""
    name, used = pci.format_bdf(description.source), set[int]()
    for bar in bars:
        if bar.kind not in _KINDS:
            raise BadMachine(f"BAR {bar.index} of {name} is of kind {bar.kind!r}: it can be mem32, mem64 or io")
        least, slots = 4 if bar.kind == "io" else 16, set(range(bar.index, bar.index + _KINDS[bar.kind][1]))
        if bar.size < least or bar.size & bar.size - 1:
            raise BadMachine(f"BAR {bar.index} of {name} has {bar.size:#x} bytes: it must be a power of two from {least} on")
        if used & slots or not slots <= set(range(count)):
            raise BadMachine(f"BAR {bar.index} of {name} does not fit among its {count} registers: look at all their indices")
        used |= slots
    return tuple(sorted(bars, key=lambda b: b.index))
