"""The tables that keep two guests apart: domain 1 and what domain 0 loses, guest 2's nested tables and what guest 1's lose."""

from collections.abc import Iterable

import numpy as np

from ...machine.longmode import ADDRESS, LARGE
from ...machine.memory import PAGE, Memory
from ...spec import vtd
from ...spec.bits import align_down, align_up
from ..heap import Heap
from ..nested import MIB2, P, Tables, U, W

__all__ = ["map_range", "nested_of_its_own", "take_from_domain", "take_from_nested"]

_RW = vtd.R | vtd.W
Range = tuple[int, int]


# --- remapping domains

def map_range(memory: Memory, heap: Heap, levels: int, start: int, end: int) -> int:
    """A second-level table that leads IOVA 0 and up to the host-physical [start, end), in whole 2 MiB, and nothing else anywhere.

    4 KiB leaves, read and write.  Returns its root; panics where the heap ends.
    """
    root = heap.alloc_page()
    for iova in range(0, end - start, MIB2):
        leaves = memory.u64(_leaf_table(memory, heap, root, levels, iova), 512)
        leaves[:] = np.arange(start + iova, start + iova + MIB2, PAGE, dtype=np.uint64) | np.uint64(_RW)
    return root


def _leaf_table(memory: Memory, heap: Heap, root: int, levels: int, iova: int) -> int:
    """The level-1 table for an IOVA; those on the way are made."""
    table = root
    for level in range(levels - 1, 0, -1):
        slot = table + 8 * (iova >> 12 + 9 * level & 511)
        if not memory.read64(slot):
            memory.write64(slot, heap.alloc_page() | _RW)
        table = memory.read64(slot) & vtd.ADDRESS
    return table


def take_from_domain(memory: Memory, root: int, levels: int, start: int, end: int) -> None:
    """Takes the rights of [start, end) away from the table at `root`, which maps it to itself in 4 KiB leaves.

    The addresses stay, as in the core's own hole.  Tables that were never made need nothing.
    """
    for iova in range(start, end, MIB2):
        table = root
        for level in range(levels - 1, 0, -1):
            table = memory.read64(table + 8 * (iova >> 12 + 9 * level & 511)) & vtd.ADDRESS
            if not table:
                break
        else:
            memory.u64(table, 512)[:] &= ~np.uint64(_RW)


# --- nested tables

class _Existing(Tables):
    """Tables that somebody has built."""

    def __init__(self, memory: Memory, heap: Heap, root: int):
        self.memory, self.heap, self.root = memory, heap, root & ADDRESS


def nested_of_its_own(memory: Memory, heap: Heap, start: int, end: int, windows: Iterable[Range], readable: Iterable[int]) -> int:
    """Guest 2's nested tables: guest-physical 0 and up is the host-physical [start, end); each of `windows` is itself, as is each page of
    `readable`, read-only; everything else is absent.  Returns the root."""
    tables = Tables(memory, heap)
    for address in range(0, end - start, MIB2):
        tables.map(address, start + address, P | W | U, 1)
    for first, last in windows:
        for page in range(align_down(first, PAGE), align_up(last, PAGE), PAGE):
            tables.map(page, page, P | W | U, 0)
    for page in readable:
        tables.map(page, page, P | U, 0)
    return tables.root


def take_from_nested(memory: Memory, heap: Heap, root: int, ram: Range, windows: Iterable[Range], readable: Iterable[int]) -> None:
    """Makes `ram` (whole 2 MiB) and the pages of `windows` absent from the tables at `root`, and the pages of `readable` read-only."""
    tables = _Existing(memory, heap, root)
    for address in range(*ram, MIB2):
        memory.write64(tables.slot(address, 1), 0)
    for first, last in windows:
        for page in range(align_down(first, PAGE), align_up(last, PAGE), PAGE):
            memory.write64(tables.slot(page, 0), 0)
    for page in readable:
        slot = tables.slot(page, 0)
        memory.write64(slot, memory.read64(slot) & ~W)


def writable(memory: Memory, root: int, address: int) -> bool:
    """Whether the nested tables at `root` let the guest write to a guest-physical address."""
    table = root & ADDRESS
    for level in (3, 2, 1, 0):
        entry = memory.read64(table + 8 * (address >> 12 + 9 * level & 511))
        if not entry & P or not entry & W:
            return False
        if level and entry & LARGE:
            return True
        table = entry & ADDRESS
    return True
