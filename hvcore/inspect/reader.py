"""What an inspector reads from: physical memory and a unit's registers, of a running machine or of a file."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["MemoryReader", "UnitFacts", "UnitReader", "Words", "read_table"]

Words = NDArray[np.uint64]


class MemoryReader(Protocol):
    """Physical memory that can be looked at without changing it."""

    def read(self, address: int, length: int, /) -> bytes:
        """Bytes at a physical address; raises `Unreadable` where there is no memory."""
        ...

    def tables(self, addresses: Words, /) -> tuple[Words, NDArray[np.bool_]]:
        """The 4 KiB pages at many page-aligned physical addresses: words [n, 512] and readable [n]."""
        ...


class UnitFacts(Protocol):
    """What is known of a remapping unit from the machine's description: register base (host-physical), segment, scope, capabilities."""

    @property
    def base(self) -> int:
        """Register base, host-physical."""
        ...

    @property
    def cap(self) -> int:
        """The CAP register."""
        ...

    @property
    def ecap(self) -> int:
        """The ECAP register."""
        ...

    @property
    def segment(self) -> int:
        """PCI segment."""
        ...

    @property
    def include_all(self) -> bool:
        """INCLUDE_PCI_ALL of its DRHD."""
        ...


class UnitReader(Protocol):
    """A remapping unit whose registers can be looked at without side effects."""

    @property
    def description(self) -> UnitFacts:
        """What the machine's description says of it."""
        ...

    def peek(self, offset: int, width: int, /) -> int:
        """The register bytes at `offset`, `width` bytes of them, as a little-endian number."""
        ...


def read_table(reader: MemoryReader, address: int) -> Words | None:
    """The 512 words of one table page at a physical address; None where it cannot be read."""
    words, readable = reader.tables(np.array([address], np.uint64))
    return words[0] if readable[0] else None
