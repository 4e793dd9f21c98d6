"""The address decoders of the PC: which device answers a physical address or an I/O port."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

from .memory import Memory

__all__ = ["Bus", "MmioDevice", "PortDevice", "Window"]


class MmioDevice(Protocol):
    """A device with memory-mapped registers.  `offset` counts from its window's start, `width` is 1, 2, 4 or 8 bytes."""

    def mmio_read(self, offset: int, width: int) -> int: ...
    def mmio_write(self, offset: int, width: int, value: int) -> None: ...


class PortDevice(Protocol):
    """A device with I/O ports.  `port` is absolute, `width` is 1, 2 or 4 bytes."""

    def port_read(self, port: int, width: int) -> int: ...
    def port_write(self, port: int, width: int, value: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open range of physical addresses that one device answers."""

    start: int
    end: int
    name: str
    device: MmioDevice


class Bus:
    """Decodes physical addresses (MMIO windows first, then RAM) and I/O ports.  What nobody answers reads as all ones."""

    def __init__(self, memory: Memory):
        self.memory = memory
        self.windows: list[Window] = []
        self._starts: list[int] = []
        self._ports: dict[int, PortDevice] = {}

    def map_mmio(self, start: int, size: int, name: str, device: MmioDevice) -> None:
        """Lets `device` answer [start, start+size).  A window that overlaps another is refused (False machine description or BAR)."""
        new = Window(start, start + size, name, device)
        for w in self.windows:
            if w.start < new.end and new.start < w.end:
                raise ValueError(f"MMIO of {name} at {start:#x}-{start + size:#x} overlaps {w.name} at {w.start:#x}-{w.end:#x}")
        self._keep([*self.windows, new])

    def unmap_mmio(self, device: MmioDevice, start: int) -> None:
        """Takes the window of `device` at `start` away."""
        self._keep([w for w in self.windows if not (w.device is device and w.start == start)])

    def _keep(self, windows: list[Window]) -> None:
        self.windows = sorted(windows, key=lambda w: w.start)
        self._starts = [w.start for w in self.windows]

    def window(self, address: int) -> Window | None:
        """The window that holds a physical address."""
        i = bisect_right(self._starts, address) - 1
        return self.windows[i] if i >= 0 and address < self.windows[i].end else None

    def read(self, address: int, width: int) -> int:
        """What a load of `width` bytes from a physical address returns."""
        if w := self.window(address):
            return w.device.mmio_read(address - w.start, width) & (1 << 8 * width) - 1
        if self.memory.backed(address, width):
            return int.from_bytes(self.memory.map[address:address + width], "little")
        return (1 << 8 * width) - 1

    def write(self, address: int, width: int, value: int) -> None:
        """A store of `width` bytes to a physical address; lost where nobody answers."""
        value &= (1 << 8 * width) - 1
        if w := self.window(address):
            w.device.mmio_write(address - w.start, width, value)
        elif self.memory.backed(address, width):
            self.memory.write(address, value.to_bytes(width, "little"))

    def map_ports(self, start: int, count: int, device: PortDevice) -> None:
        """Lets `device` answer the I/O ports [start, start+count)."""
        for port in range(start, start + count):
            self._ports[port] = device

    def port_read(self, port: int, width: int) -> int:
        """IN."""
        device = self._ports.get(port)
        return (device.port_read(port, width) if device else -1) & (1 << 8 * width) - 1

    def port_write(self, port: int, width: int, value: int) -> None:
        """OUT."""
        if device := self._ports.get(port):
            device.port_write(port, width, value & (1 << 8 * width) - 1)
