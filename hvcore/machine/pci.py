"""The root complex: all PCI functions of a machine, and the two ways to their configuration space (PCI Local Bus 3.0, section 3.2.2.3;
PCI Express Base 4.0, section 7.2.2)."""

from collections.abc import Callable, Iterator

from ..errors import BadMachine
from ..spec.pci import bdf, format_bdf
from .bus import Bus
from .clock import Clock
from .description import MachineDescription, PciDescription
from .dma import DmaFabric
from .edu import Edu
from .nvme import Nvme
from .pcifunction import Bridge, Host, IntxWires, PciFunction
from .pciplace import place, reserved_ranges, set_bridge_windows
from .ports import Lines

__all__ = ["MODELS", "RootComplex"]

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
_ENABLE, _ADDRESS_BITS = 1 << 31, 0x80FFFFFC

MODELS: dict[str, Callable[..., PciFunction]] = {"nvme": Nvme, "edu": Edu, "bridge": Bridge, "stub": PciFunction}
"""What answers a function, by `PciDescription.model`."""

Devices = dict[int, PciFunction]


class RootComplex:
    """Builds the functions of `machine.pci`, lets firmware set them up and routes configuration cycles to them.

    `functions` are all of them by (segment, requester id) as described; `notes` tells in a sentence each what of the description could not
    be had.  Configuration mechanism 1 reaches segment 0, an ECAM window its own segment.  Raises BadMachine for impossible functions.
    """

    def __init__(self, bus: Bus, fabric: DmaFabric, clock: Clock, machine: MachineDescription, lines: Lines):
        self.notes: list[str] = []
        self.functions: dict[tuple[int, int], PciFunction] = {}
        self._roots: dict[tuple[int, int], Devices] = {}
        self._on_bus: dict[tuple[int, int], Devices] = {}
        self._address = 0
        self._host = Host(bus, fabric, clock, IntxWires(lines), machine.disk, reserved_ranges(machine))
        self._map_windows(bus, machine)
        self._build(machine)
        self._place(machine)
        bus.map_ports(CONFIG_ADDRESS, 1, self)
        bus.map_ports(CONFIG_DATA, 4, self)

    def find(self, model: str) -> list[PciFunction]:
        """The functions that a model answers, in the order of their requester ids."""
        return [f for f in self.functions.values() if f.description.model == model]

    def reset(self) -> None:
        """Power-on, and firmware's settings again."""
        self._address = 0
        self._on_bus.clear()
        for function in self.functions.values():
            function.reset()
        self._firmware()

    # Building

    def _map_windows(self, bus: Bus, machine: MachineDescription) -> None:
        """The configuration windows, those of the description's that lie where nothing else does."""
        for ecam in machine.ecams:
            taken = [*machine.ram_runs, *((w.start, w.end) for w in bus.windows)]
            other = next((r for r in taken if r[0] < ecam.base + ecam.size and ecam.base < r[1]), None)
            if other:
                self.notes.append(f"the configuration window at {ecam.base:#x} does not answer: it overlaps {other[0]:#x}-{other[1]:#x}")
            else:
                bus.map_mmio(ecam.base, ecam.size, "ECAM", _Ecam(self, ecam.segment, ecam.first))

    def _build(self, machine: MachineDescription) -> None:
        """The functions, bridges before what lies behind them: bus numbers grow downwards."""
        bridges: dict[tuple[int, int], Bridge] = {}
        devices = {(d.segment, d.source & ~7) for d in machine.pci if d.source & 7}
        for d in sorted(machine.pci, key=lambda d: (d.segment, d.source)):
            key = d.segment, d.source
            if key in self.functions:
                raise BadMachine(f"the PCI function {format_bdf(d.source)} of segment {d.segment} is described twice: remove one")
            parent = bridges.get((d.segment, d.source >> 8))
            function = _model(d)(d, self._host, parent, (d.segment, d.source & ~7) in devices)
            self.functions[key] = function
            siblings = parent.children if parent else self._roots.setdefault((d.segment, d.source >> 8), {})
            siblings[d.source & 0xFF] = function
            if isinstance(function, Bridge):
                self._register(function, bridges)

    def _register(self, bridge: Bridge, bridges: dict[tuple[int, int], Bridge]) -> None:
        """Makes what has the bridge's secondary bus number lie behind it."""
        d = bridge.description
        if d.secondary <= d.source >> 8:
            self.notes.append(f"nothing lies behind {bridge}: its secondary bus number {d.secondary} is not above its own bus")
        elif (d.segment, d.secondary) in bridges:
            self.notes.append(f"nothing lies behind {bridge}: another bridge leads to bus {d.secondary}")
        else:
            bridges[d.segment, d.secondary] = bridge

    def _place(self, machine: MachineDescription) -> None:
        windows = [(w.start, w.end) for w in self._host.bus.windows]
        self.notes += place(_depth_first(self._roots), machine, [*self._host.reserved, *windows])
        self._firmware()

    def _firmware(self) -> None:
        for function in self.functions.values():
            if isinstance(function, Bridge):
                set_bridge_windows(function)
            function.firmware()

    # Configuration cycles

    def route(self, segment: int, bus: int, devfn: int) -> PciFunction | None:
        """The function that a configuration cycle reaches, by the bus numbers that the bridges hold now; None: nobody answers."""
        if (segment, bus) not in self._on_bus:
            self._on_bus[segment, bus] = self._find_bus(segment, bus)
        return self._on_bus[segment, bus].get(devfn)

    def _find_bus(self, segment: int, bus: int) -> Devices:
        """The devices on a bus: a root's own, or those behind the bridges that forward there."""
        if (segment, bus) in self._roots:
            return self._roots[segment, bus]
        roots = (d for (s, _), d in self._roots.items() if s == segment)
        return next((found for root in roots if (found := _downstream(root, bus)) is not None), {})

    def config_read(self, segment: int, source: int, offset: int, width: int) -> int:
        """What a configuration read returns; all ones where nobody answers."""
        function = self.route(segment, source >> 8, source & 0xFF)
        return function.config_read(offset, width) if function else (1 << 8 * width) - 1

    def config_write(self, segment: int, source: int, offset: int, width: int, value: int) -> None:
        """A configuration write; lost where nobody answers."""
        if function := self.route(segment, source >> 8, source & 0xFF):
            function.config_write(offset, width, value, source >> 8)
            if isinstance(function, Bridge):
                self._on_bus.clear()

    def port_read(self, port: int, width: int) -> int:
        """IN from 0xCF8 (all 32 bits) or from the data window."""
        if port == CONFIG_ADDRESS:
            return self._address if width == 4 else -1
        inside = min(width, CONFIG_DATA + 4 - port)
        if not self._address & _ENABLE:
            return -1
        value = self.config_read(0, self._address >> 8 & 0xFFFF, (self._address & 0xFC) + port - CONFIG_DATA, inside)
        return value | -1 << 8 * inside

    def port_write(self, port: int, width: int, value: int) -> None:
        """OUT; only a write of 32 bits changes the address."""
        if port == CONFIG_ADDRESS:
            self._address = value & _ADDRESS_BITS if width == 4 else self._address
        elif self._address & _ENABLE:
            inside = min(width, CONFIG_DATA + 4 - port)
            self.config_write(0, self._address >> 8 & 0xFFFF, (self._address & 0xFC) + port - CONFIG_DATA, inside, value)


class _Ecam:
    """The memory-mapped configuration window: 4 KiB a function, from bus `first` on."""

    def __init__(self, root: RootComplex, segment: int, first: int):
        self._root, self._segment, self._first = root, segment, first

    def _source(self, offset: int) -> int:
        return bdf(self._first + (offset >> 20), offset >> 15 & 0x1F, offset >> 12 & 7)

    def mmio_read(self, offset: int, width: int) -> int:
        return self._root.config_read(self._segment, self._source(offset), offset & 0xFFF, width)

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        self._root.config_write(self._segment, self._source(offset), offset & 0xFFF, width, value)


def _model(description: PciDescription) -> Callable[..., PciFunction]:
    """The class for a function."""
    if description.model not in MODELS:
        raise BadMachine(f"PCI function {format_bdf(description.source)} has model {description.model!r}: it can be {', '.join(MODELS)}")
    return MODELS[description.model]


def _downstream(devices: Devices, bus: int) -> Devices | None:
    """The devices on bus number `bus` below one of these bridges; None where no bridge forwards there."""
    for function in devices.values():
        if isinstance(function, Bridge) and bus in function.buses:
            return function.children if bus == function.buses.start else _downstream(function.children, bus)
    return None


def _depth_first(roots: dict[tuple[int, int], Devices]) -> Iterator[PciFunction]:
    """Every function, each bridge's before its next sibling, so that what lies behind one bridge is placed together."""
    for devices in roots.values():
        yield from _below(devices)


def _below(devices: Devices) -> Iterator[PciFunction]:
    for function in devices.values():
        yield function
        if isinstance(function, Bridge):
            yield from _below(function.children)
