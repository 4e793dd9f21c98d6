"""The core's page heap: pages of its own region, handed out upwards, until there are no more."""

import numpy as np
from numpy.typing import NDArray

from ..machine.memory import PAGE, Memory

__all__ = ["Heap", "Panic"]


class Panic(Exception):
    """The core gives up; the message is what it prints behind `panic: `."""


class Heap:
    """Pages of the half-open host-physical range [start, end).  The next free one is kept in memory, in the word at `cursor`."""

    def __init__(self, memory: Memory, start: int, end: int, cursor: int):
        self.memory, self.start, self.end, self.cursor = memory, start, end, cursor
        self.top = start

    @property
    def top(self) -> int:
        """Host-physical address of the next page to be handed out."""
        return self.memory.read64(self.cursor)

    @top.setter
    def top(self, address: int) -> None:
        self.memory.write64(self.cursor, address)

    @property
    def used(self) -> int:
        """Pages handed out."""
        return (self.top - self.start) // PAGE

    @property
    def total(self) -> int:
        """Pages there are."""
        return (self.end - self.start) // PAGE

    @property
    def free(self) -> int:
        """Pages left."""
        return self.total - self.used

    def alloc_page(self) -> int:
        """One zeroed page, by host-physical address; panics as `mm_page_alloc` does when there is none."""
        address = self.top
        if not self.free:
            raise Panic("mm_page_alloc(0): Out of memory")
        self.top = address + PAGE
        self.memory.u64(address, PAGE // 8)[:] = 0
        return address

    def alloc_pages(self, count: int) -> NDArray[np.uint64]:
        """Addresses of up to `count` pages in the order single allocations would give them; fewer where the heap ends.  Not zeroed."""
        count = min(count, self.free)
        first = self.top
        self.top = first + count * PAGE
        return np.arange(first, first + count * PAGE, PAGE, dtype=np.uint64)
