"""What the legacy devices share: registers of one byte behind I/O ports, and interrupt lines."""

from abc import ABC, abstractmethod
from typing import Protocol

__all__ = ["ByteDevice", "Lines"]


class Lines(Protocol):
    """Where interrupt lines end: the interrupt controllers."""

    def set_line(self, irq: int, level: bool) -> None:
        """Drives the line `irq` (0 to 15) high or low."""
        ...


class ByteDevice(ABC):
    """A device whose registers are bytes: a wider IN or OUT is carried out byte by byte, lowest port first, as the bus does."""

    @abstractmethod
    def byte_read(self, port: int) -> int:
        """IN of one byte; 0xFF where the device has no such port."""

    @abstractmethod
    def byte_write(self, port: int, value: int) -> None:
        """OUT of one byte; lost where the device has no such port."""

    def port_read(self, port: int, width: int) -> int:
        """IN of `width` bytes."""
        return sum(self.byte_read(port + i) << 8 * i for i in range(width))

    def port_write(self, port: int, width: int, value: int) -> None:
        """OUT of `width` bytes."""
        for i in range(width):
            self.byte_write(port + i, value >> 8 * i & 0xFF)
