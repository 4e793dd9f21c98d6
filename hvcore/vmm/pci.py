"""The PCI functions the core finds in configuration space."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..machine.bus import Bus
from ..spec import pci
from ..spec.pci import HEADER_TYPE, SECONDARY_BUS, SUBORDINATE_BUS, PortType, bdf
from .platform import config_read

__all__ = ["Function", "capability", "find_devices", "requesters", "with_aliases"]

_PORT_TYPES = {int(kind): kind for kind in PortType}


@dataclass(frozen=True)
class Function:
    """A function of segment 0; `source` is its requester id, bus numbers are those a bridge holds."""

    source: int
    bridge: bool
    secondary: int = 0
    subordinate: int = 0


def find_devices(bus: Bus) -> list[Function]:
    """Every function of segment 0 that answers, on all 256 buses."""
    return [f for number in range(256) for device in range(32) for f in _device(bus, number, device)]


def _device(bus: Bus, number: int, device: int) -> list[Function]:
    first = bdf(number, device, 0)
    if config_read(bus, first, 0, 2) == 0xFFFF:
        return []
    several = config_read(bus, first, HEADER_TYPE, 1) & 0x80
    return [_function(bus, first | n) for n in range(8 if several else 1) if n == 0 or config_read(bus, first | n, 0, 2) != 0xFFFF]


def _function(bus: Bus, source: int) -> Function:
    if config_read(bus, source, HEADER_TYPE, 1) & 0x7F != 1:
        return Function(source, False)
    return Function(source, True, config_read(bus, source, SECONDARY_BUS, 1), config_read(bus, source, SUBORDINATE_BUS, 1))


def with_aliases(bus: Bus, functions: Iterable[Function]) -> list[Function]:
    """The functions, and one for each requester id besides theirs under which bridges let their DMA through."""
    functions = list(functions)
    seen = requesters(bus, functions)
    return [*functions, *(Function(source, False) for source in sorted(set(seen.values()) - set(seen)))]


def requesters(bus: Bus, functions: list[Function]) -> dict[int, int]:
    """The requester id above all bridges of each function, by its own."""
    bridges = {f.secondary: f for f in functions if f.secondary > f.source >> 8}
    types = {b: _port_type(bus, b.source) for b in bridges.values()}
    return {f.source: _requester(bus, f.source, bridges, types) for f in functions}


def _requester(bus: Bus, source: int, bridges: dict[int, Function], types: dict[Function, PortType | None]) -> int:
    """The requester id of function `source` above all bridges."""
    bridge = bridges.get(source >> 8)
    while bridge:
        above = bridges.get(bridge.source >> 8)
        vendor, device = (config_read(bus, bridge.source, offset, 2) for offset in (pci.VENDOR_ID, pci.DEVICE_ID))
        kind = pci.forwarding_type(vendor, device, types[bridge], types[above] if above else None)
        source = pci.requester_behind(source, kind, bridge.source, bridge.secondary)
        bridge = above
    return source


def _port_type(bus: Bus, source: int) -> PortType | None:
    """The port type in a function's PCI Express capability; None where it has none."""
    at = capability(bus, source, pci.EXPRESS)
    return None if at is None else _PORT_TYPES.get(config_read(bus, source, at + 2, 2) >> 4 & 0xF)


def capability(bus: Bus, source: int, number: int) -> int | None:
    """The offset in configuration space of a function's capability `number`; None where it has none."""
    at, left = config_read(bus, source, pci.CAPABILITIES, 1) & 0xFC, 48
    while at >= 0x40 and left:
        if config_read(bus, source, at, 1) == number:
            return at
        at, left = config_read(bus, source, at + 1, 1) & 0xFC, left - 1
    return None
