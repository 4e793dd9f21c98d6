"""The PCI functions the core finds in configuration space."""

from dataclasses import dataclass

from ..machine.bus import Bus
from ..spec.pci import HEADER_TYPE, SECONDARY_BUS, SUBORDINATE_BUS, bdf
from .platform import config_read

__all__ = ["Function", "find_devices"]


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
