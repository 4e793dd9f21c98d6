"""How the core reaches the machine, and nothing else: memory, MMIO, ports, the processor it runs on, its interrupt controller."""

from typing import Protocol

from ..machine.bus import Bus
from ..machine.cpu import Cpu
from ..machine.memory import Memory

__all__ = ["Console", "Interrupts", "Platform", "SplitPlatform", "config_read"]

DEBUG_PORT = 0xE9
CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC


class Interrupts(Protocol):
    """The interrupt controller as the processor sees it."""

    def pending(self) -> int | None:
        """The vector that waits; None where none does."""
        ...

    def acknowledge(self) -> int:
        """Takes the vector that waits."""
        ...


class Platform(Protocol):
    """What a hypervisor core finds."""

    memory: Memory
    bus: Bus
    cpu: Cpu

    @property
    def interrupts(self) -> Interrupts:
        """The interrupt controller."""
        ...


class SplitPlatform(Platform, Protocol):
    """A platform with a second processor."""

    def second(self) -> Platform:
        """The second processor with the ports of its own."""
        ...


class Console:
    """The core's console: the machine's debug port."""

    def __init__(self, bus: Bus):
        self.bus = bus

    def print(self, text: str, end: str = "\n") -> None:
        """Text, byte by byte."""
        for byte in (text + end).encode("ascii", "replace"):
            self.bus.port_write(DEBUG_PORT, 1, byte)


def config_read(bus: Bus, source: int, offset: int, width: int) -> int:
    """A read of PCI configuration space of segment 0 by mechanism 1."""
    bus.port_write(CONFIG_ADDRESS, 4, 1 << 31 | source << 8 | offset & 0xFC)
    return bus.port_read(CONFIG_DATA + (offset & 3), width)
