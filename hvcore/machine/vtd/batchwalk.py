"""Second-level tables walked for many IOVAs at once, with the answers of `Walker.mapping` (VT-d, sections 3.7 and 9.8).

    down    from the top to above level 1, for each 2 MiB cell between the lowest and the highest IOVA rather than for each request
    across  level 1: one look into the cells and one into memory for each request, in chunks that stay in the processor's cache

Where the IOVAs lie so far apart that there are more cells than requests, every request is a cell of its own.  Either way the work is
bounded by requests and levels, whatever the tables hold.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...spec.vtd import ADDRESS, ENTRY_BITS, INTERRUPT_RANGE, SP, FaultReason, R, W, entry_reserved, leaf_levels, level_shift
from ..memory import Memory

__all__ = ["I64", "U8", "U64", "BatchWalker", "Landing", "MemoryPages", "TablePages", "interrupts"]

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

_CHUNK = 1 << 14
_CELL = np.uint64(level_shift(2))
_PAGE_SHIFT, _OFFSET, _INDEX = np.uint64(12), np.uint64(0xFFF), np.uint64((1 << ENTRY_BITS) - 1)
_MEGABYTE, _INTERRUPT = np.uint64(20), np.uint64(INTERRUPT_RANGE.start >> 20)
_ADDRESS, _R, _W, _RW = np.uint64(ADDRESS), np.uint64(R), np.uint64(W), np.uint64(R | W)
_DENIED = np.array([FaultReason.READ_DENIED, FaultReason.WRITE_DENIED], np.uint8)


class TablePages(Protocol):
    """Table pages by their words."""

    @property
    def words(self) -> U64:
        """All words that can be read, and perhaps others."""
        ...

    def locate(self, addresses: U64, /) -> I64:
        """Where in `words` each page at a page-aligned host-physical address begins; -1 where it cannot be read."""
        ...


class MemoryPages:
    """The pages of a machine's memory, in place."""

    def __init__(self, memory: Memory):
        self.memory, self.words = memory, memory.words

    def locate(self, addresses: U64, /) -> I64:
        """Where in `words` each page begins; -1 where it is not RAM."""
        return np.where(self.memory.readable(addresses), (addresses >> np.uint64(3)).astype(np.int64), -1)


@dataclass(frozen=True, slots=True)
class Landing:
    """What becomes of each request: host-physical `address`, `shift` (the page has 2**shift bytes), `reason` (0: it goes through).

    Where there is a reason the address is 0 and the shift 12.
    """

    address: U64
    shift: U8
    reason: U8

    @staticmethod
    def empty(count: int) -> "Landing":
        """Arrays to be filled: the address anything, the shift 12, no reason."""
        return Landing(np.empty(count, np.uint64), np.full(count, 12, np.uint8), np.zeros(count, np.uint8))

    def put(self, at: I64, other: "Landing") -> None:
        """Replaces what becomes of the requests numbered `at`."""
        self.address[at], self.shift[at], self.reason[at] = other.address, other.shift, other.reason

    def part(self, part: slice) -> "Landing":
        """Some of the requests, as views."""
        return Landing(self.address[part], self.shift[part], self.reason[part])

    def refuse(self, at: I64, reason: int | U8) -> None:
        """The requests numbered `at` are refused."""
        self.address[at], self.shift[at], self.reason[at] = 0, 12, reason


@dataclass(frozen=True, slots=True)
class _Cells:
    """What the levels above 1 say of each cell.

    `refused` [2, n] is why reads and why writes are refused there (0: they are not); `table` the level-1 table as a place in the words
    (-1: the walk ended above); `base` and `shift` the superpage that it ended at.
    """

    refused: U8
    table: I64
    base: U64
    shift: U8

    @staticmethod
    def empty(count: int) -> "_Cells":
        return _Cells(np.zeros((2, count), np.uint8), np.full(count, -1, np.int64), np.zeros(count, np.uint64),
                      np.full(count, 12, np.uint8))

    def refuse(self, at: I64, reason: int) -> None:
        """Every access to the cells `at` is refused, for `reason` unless an upper level had another."""
        for access in (0, 1):
            self.deny(access, at, reason)

    def deny(self, access: int, at: I64, reason: int) -> None:
        """One access to the cells `at` is refused."""
        refused = self.refused[access]
        refused[at] = np.where(refused[at], refused[at], np.uint8(reason))


class BatchWalker:
    """Walks tables in `pages` as a unit with `cap` and `ecap` does on a platform of `haw` host address bits."""

    def __init__(self, pages: TablePages, cap: int, ecap: int, haw: int):
        self.pages = pages
        self._leaf_levels = frozenset(leaf_levels(cap))
        self._reserved = {(level, leaf): np.uint64(entry_reserved(level, leaf, cap, ecap, haw))
                          for level in range(1, 7) for leaf in (False, True)}

    def walk(self, root: int, levels: int, iova: U64, write: U8) -> Landing:
        """What the second-level table at host-physical `root` says of each IOVA; `write` is 1 where the access is a write, else 0."""
        landing = Landing.empty(len(iova))
        if not len(iova):
            return landing
        first, last = int(iova.min() >> _CELL), int(iova.max() >> _CELL)
        if last - first < len(iova):
            cells = self._descend(root, levels, np.arange(first, last + 1, dtype=np.uint64) << _CELL)
        else:
            first, cells = -1, self._descend(root, levels, iova)
        self._cross(cells, first, iova, write, landing)
        return landing

    # Down.

    def _descend(self, root: int, levels: int, iova: U64) -> _Cells:
        """The cells that hold each IOVA, from the top table down to level 2."""
        cells = _Cells.empty(len(iova))
        at, table = np.arange(len(iova)), np.full(len(iova), root, np.uint64)
        for level in range(levels, 1, -1):
            at, words = self._readable(cells, at, table, top=level == levels)
            index = (iova[at] >> np.uint64(level_shift(level)) & _INDEX).astype(np.int64)
            at, table = self._judge(cells, at, self.pages.words[words + index], level)
        at, cells.table[at] = self._readable(cells, at, table, top=False)
        return cells

    def _readable(self, cells: _Cells, at: I64, table: U64, top: bool) -> tuple[I64, I64]:
        """Those cells whose next table can be read, and where it is; the others are refused."""
        words = self.pages.locate(table)
        there = words >= 0
        if not there.all():
            cells.refuse(at[~there], FaultReason.CONTEXT_INVALID if top else FaultReason.PAGE_TABLE_UNREACHABLE)
        return at[there], words[there]

    def _judge(self, cells: _Cells, at: I64, entry: U64, level: int) -> tuple[I64, U64]:
        """What an entry of `level` says to each cell: those that go on, and the host-physical address of their next table."""
        leaf = (entry & np.uint64(SP) != 0) & (level in self._leaf_levels)
        reserved = entry & np.where(leaf, self._reserved[level, True], self._reserved[level, False]) != 0
        present = entry & _RW != 0
        cells.refuse(at[present & reserved], FaultReason.PAGE_RESERVED)
        for access, need in enumerate((_R, _W)):
            cells.deny(access, at[entry & need == 0], int(_DENIED[access]))
        ends = at[leaf & present]
        cells.base[ends], cells.shift[ends] = entry[leaf & present] & _ADDRESS, level_shift(level)
        on = present & ~reserved & ~leaf
        return at[on], entry[on] & _ADDRESS

    # Across.

    def _cross(self, cells: _Cells, first: int, iova: U64, write: U8, landing: Landing) -> None:
        """Level 1 for each request, chunk by chunk.  Cell 0 is number `first` of the address space; -1: each request has its own."""
        special = cells.refused.any(axis=0) | (cells.table < 0)
        some, table = bool(special.any()), np.maximum(cells.table, 0)
        for start in range(0, len(iova), _CHUNK):
            part = slice(start, start + _CHUNK)
            asked, access, here = iova[part], write[part], landing.part(part)
            cell = np.arange(start, start + len(asked)) if first < 0 else (asked >> _CELL).view(np.int64) - first
            self._leaves(table.take(cell), asked, access, here)
            if some:
                ends = np.flatnonzero(special.take(cell))
                _ended(cells, cell[ends], ends, asked[ends], access[ends], here)
            stray = interrupts(here.address)
            if len(stray):
                here.refuse(stray, FaultReason.INTERRUPT_RANGE)

    def _leaves(self, table: I64, iova: U64, write: U8, landing: Landing) -> None:
        """Where the level-1 entries lead: `table` is the place of each request's level-1 table in the words."""
        scratch = iova >> _PAGE_SHIFT
        scratch &= _INDEX
        table += scratch.view(np.int64)
        entry = self.pages.words.take(table, mode="clip")
        need = np.add(write, 1, dtype=np.uint64)
        np.bitwise_or(need, self._reserved[1, True], out=scratch)
        scratch &= entry
        bad = np.flatnonzero(scratch != need)
        np.bitwise_and(entry, _ADDRESS, out=landing.address)
        np.bitwise_or(landing.address, np.bitwise_and(iova, _OFFSET, out=scratch), out=landing.address)
        if len(bad):
            found = entry[bad]
            reserved = (found & _RW != 0) & (found & self._reserved[1, True] != 0)
            landing.refuse(bad, np.where(reserved, np.uint8(FaultReason.PAGE_RESERVED), _DENIED[write[bad]]))


def _ended(cells: _Cells, cell: I64, at: I64, iova: U64, write: U8, landing: Landing) -> None:
    """The requests `at`, whose walks may have ended above level 1: in a superpage, or refused."""
    reason = cells.refused[write, cell]
    refused, page = reason != 0, (reason == 0) & (cells.table[cell] < 0)
    landing.refuse(at[refused], reason[refused])
    shift = cells.shift[cell[page]]
    inside = (np.uint64(1) << shift.astype(np.uint64)) - np.uint64(1)
    zero = np.zeros(len(shift), np.uint8)
    landing.put(at[page], Landing(cells.base[cell[page]] | iova[page] & inside, shift, zero))


def interrupts(addresses: U64) -> I64:
    """The numbers of those addresses that lie in the interrupt range."""
    found = [np.flatnonzero(addresses[start:start + _CHUNK] >> _MEGABYTE == _INTERRUPT) + start
             for start in range(0, len(addresses), _CHUNK)]
    return np.concatenate(found) if found else np.zeros(0, np.int64)
