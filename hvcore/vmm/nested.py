"""Page tables of the core's own paging and of the guest's nested paging: long-mode entries in pages of the heap.

The guest sees physical memory as it is (guest-physical = host-physical) but for the core's region: there every page is one blank page,
read-only.  Units' registers are withheld in the same way where the configuration says so.  Entries are born accessed and dirty, so that the
processor, which would mark them, never writes into the core's memory.
"""

from collections.abc import Iterable

from ..machine.longmode import ADDRESS, LARGE, PHYSICAL_BITS, PRESENT
from ..machine.memory import PAGE, Memory
from ..spec.bits import align_down
from .heap import Heap

__all__ = ["Tables", "build_host", "build_nested"]

P, W, U, NX = PRESENT, 1 << 1, 1 << 2, 1 << 63
USED = 1 << 5 | 1 << 6
"""Accessed and, in leaves, dirty."""
GIB, MIB2 = 1 << 30, 2 << 20
REACH = 1 << PHYSICAL_BITS


class Tables:
    """Four levels of long-mode tables in emulated memory.  Levels count from 0 (4 KiB leaves) to 3."""

    def __init__(self, memory: Memory, heap: Heap):
        self.memory, self.heap = memory, heap
        self.root = heap.alloc_page()

    def map(self, address: int, physical: int, flags: int, level: int) -> None:
        """One leaf of 4 KiB, 2 MiB or 1 GiB (level 0, 1, 2)."""
        self.memory.write64(self.slot(address, level), physical | flags | USED | (LARGE if level else 0))

    def point(self, address: int, table: int, flags: int, level: int) -> None:
        """A table of level `level` - 1 that exists already."""
        self.memory.write64(self.slot(address, level), table | flags | USED)

    def slot(self, address: int, level: int) -> int:
        """Host-physical address of the entry for `address` at a level; tables are made, large leaves split, on the way."""
        table = self.root
        for depth in range(3, level, -1):
            at = table + 8 * (address >> 12 + 9 * depth & 511)
            entry = self.memory.read64(at)
            if not entry & P or entry & LARGE:
                entry = self._below(entry, depth) | P | W | U | USED
                self.memory.write64(at, entry)
            table = entry & ADDRESS
        return table + 8 * (address >> 12 + 9 * level & 511)

    def _below(self, leaf: int, depth: int) -> int:
        """A new table for depth - 1: empty, or the same mapping as the large `leaf` in smaller ones."""
        table = self.heap.alloc_page()
        if leaf & P:
            step = 1 << 12 + 9 * (depth - 1)
            first = leaf & ~LARGE if depth == 1 else leaf
            self.memory.u64(table, 512)[:] = [first + i * step for i in range(512)]
        return table


def build_host(memory: Memory, heap: Heap, text: int) -> int:
    """The core's own tables: RAM to itself in 1 GiB pages, not executable, but the text page read and execute.  Returns the root."""
    tables = Tables(memory, heap)
    for start, end in memory.runs:
        for address in range(align_down(start, GIB), min(end, REACH), GIB):
            tables.map(address, address, P | W | NX, 2)
    tables.map(text, text, P, 0)
    return tables.root


def build_nested(memory: Memory, heap: Heap, region: tuple[int, int], blank: int, withheld: Iterable[int] = (),
                 trapped: Iterable[int] = ()) -> int:
    """The guest's nested tables: everything the processor reaches, to itself; the core's half-open `region` and the `withheld` pages as
    the blank page, read-only; the `trapped` pages absent.  Returns the root."""
    tables = Tables(memory, heap)
    for address in range(0, REACH, GIB):
        tables.map(address, address, P | W | U, 2)
    curtain = heap.alloc_page()
    memory.u64(curtain, 512)[:] = blank | P | U | USED
    for address in range(*region, MIB2):
        tables.point(address, curtain, P | W | U, 1)
    for page in withheld:
        tables.map(align_down(page, PAGE), blank, P | U, 0)
    for page in trapped:
        memory.write64(tables.slot(page, 0), 0)
    return tables.root
