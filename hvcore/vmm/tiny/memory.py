"""Guest 2's memory by its guest-physical addresses, as a loader writes it."""

import numpy as np
from numpy.typing import NDArray

from ...errors import Unreadable
from ...machine.memory import Memory

__all__ = ["GuestMemory"]


class GuestMemory:
    """Guest-physical 0 and up is the host-physical range [start, end) of `memory`.  Raises Unreadable beyond it."""

    def __init__(self, memory: Memory, start: int, end: int):
        self.memory, self.start, self.end = memory, start, end

    def host(self, address: int, length: int) -> int:
        """The host-physical address of [address, address + length)."""
        if not 0 <= address <= address + length <= self.end - self.start:
            raise Unreadable(address, length, "it is none of guest 2's memory")
        return self.start + address

    def write(self, address: int, data: bytes) -> None:
        """Bytes."""
        self.memory.write(self.host(address, len(data)), data)

    def write64(self, address: int, value: int) -> None:
        """A little-endian 64-bit word."""
        self.memory.write64(self.host(address, 8), value)

    def u8(self, address: int, count: int) -> NDArray[np.uint8]:
        """A writable view of `count` bytes."""
        return self.memory.u8(self.host(address, count), count)

    def u64(self, address: int, count: int) -> NDArray[np.uint64]:
        """A writable view of `count` words."""
        return self.memory.u64(self.host(address, 8 * count), count)
