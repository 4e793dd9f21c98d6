"""A whole page table at once: what it grants anywhere, as runs.

The tables are read level by level, each table once per level, as arrays; then the tree is laid out over the address space:

    read      the distinct tables of a level -> segments (neighbouring entries with the same rights and offset), or child tables
    weigh     bottom up: how many segments hang under each table, so that empty subtrees are never laid out
    lay out   top down: segments get their addresses, rights AND down the levels, the result is cut where it grows beyond `LIMIT`
    merge     neighbours that agree in rights and offset become one run

So a shared, self-referencing or random table costs no more than its distinct pages and the runs that are kept.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..spec.paging import SIZE_NAMES, PagingFormat
from .reader import MemoryReader
from .runs import I64, U8, U64, Runs
from .segments import CHILD, LEAF, UNREADABLE, UNSCANNED, WITHHELD, Items, items_of, joined, whole_tables

__all__ = ["LIMIT", "MAX_LEVELS", "MAX_TABLES", "TableScan", "scan"]

LIMIT = 4 << 20
"""Runs of one scan; beyond it the scan stops and says `truncated`."""
MAX_TABLES = 2 << 20
"""Table pages that one scan reads (enough for 4 TiB in 4 KiB pages)."""
MAX_LEVELS = 5
"""Deepest table that is scanned: 57 address bits."""

_CHUNK = 512
"""Leaf tables read at a time (2 MiB of words)."""
_UPPER_CHUNK = 64
"""Tables above the leaves read at a time: each of their entries may be an item, so that this bounds the arrays beside the words."""
_SLICE = 1 << 15
"""Items laid out at a time, to the next whole table."""
_HEAVY = 1 << 30
"""Weights are counted up to here, far beyond `LIMIT`, so that sums of them fit 64 bits."""


@dataclass(frozen=True, slots=True)
class TableScan:
    """What a page table grants over its whole address space.

    `tables` are the distinct physical addresses of the table pages that were read, ascending; `leaves` counts the leaf entries that hold an
    address, over the address space, by page size; `unreadable` are address ranges whose tables cannot be read (not the same as absent;
    `offset` there is the table's physical address); `reserved` counts entries that the hardware refuses for reserved bits (they are
    `-` runs).  Where `truncated`, everything at and above `scanned_to` is unknown.
    """

    runs: Runs
    tables: U64
    leaves: dict[str, int]
    unreadable: Runs
    reserved: int
    truncated: bool
    scanned_to: int

    @property
    def table_pages(self) -> int:
        """Distinct 4 KiB table pages."""
        return len(self.tables)


@dataclass(slots=True)
class _Level:
    """The distinct tables of one level and their items by table: segments of entries or child tables.

    A child's `value` is its table number in the next level.  `begin[t]:begin[t+1]` are the items of table t; `weight` counts the runs under
    each item.
    """

    level: int
    addresses: U64
    readable: NDArray[np.bool_]
    items: Items
    begin: I64
    reserved: int
    weight: I64 = field(default_factory=lambda: np.zeros(0, np.int64))

    def per_table(self, values: I64) -> I64:
        """Sums of item values by table."""
        total = np.zeros(len(values) + 1, np.int64)
        np.cumsum(values, out=total[1:])
        return total[self.begin[1:]] - total[self.begin[:-1]]

    def keep(self, wanted: NDArray[np.bool_]) -> None:
        """Takes out the items that are not wanted."""
        if not wanted.all():
            self.begin = np.append(np.zeros(1, np.int64), np.cumsum(self.per_table(wanted.astype(np.int64))))
            self.items, self.weight = self.items.chosen(wanted), self.weight[wanted]


def scan(reader: MemoryReader, fmt: PagingFormat, root: int, levels: int, limit: int = LIMIT) -> TableScan:
    """Everything that the table at physical `root` with `levels` levels grants.  Never raises for what the tables hold."""
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"a page table of {levels} levels cannot be scanned: 1 to {MAX_LEVELS}")
    tree = _read_tree(reader, fmt, root, levels, limit)
    for below, here in zip([None, *tree[:0:-1]], tree[::-1], strict=True):
        _weigh(here, below)
    return _result(fmt, tree, *_lay_out(fmt, tree, limit))


def _read_tree(reader: MemoryReader, fmt: PagingFormat, root: int, levels: int, limit: int) -> list[_Level]:
    """The levels from the top down; the items of one are linked to the tables of the next."""
    tree: list[_Level] = []
    addresses = np.array([root], np.uint64)
    pages = MAX_TABLES
    for level in range(levels, 0, -1):
        here = _read_level(reader, fmt, addresses, level, pages, limit)
        pages -= int(here.readable.sum())
        tree.append(here)
        child, value = here.items.kind == CHILD, here.items.value
        addresses, value[child] = _distinct(value[child].astype(np.uint64))
    return tree


def _distinct(addresses: U64) -> tuple[U64, I64]:
    """Different addresses in the order of their first appearance, and the number of each input among them."""
    if (addresses[1:] > addresses[:-1]).all():
        return addresses, np.arange(len(addresses))
    different, first, inverse = np.unique(addresses, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return different[order], rank[inverse]


def _read_level(reader: MemoryReader, fmt: PagingFormat, addresses: U64, level: int, pages: int, limit: int) -> _Level:
    """Reads tables until `pages` tables or `limit` items are reached; the tables after that are one unscanned item each."""
    parts: list[Items] = []
    readable = np.zeros(len(addresses), np.bool_)
    done = items = reserved = 0
    most = _CHUNK if level == 1 else _UPPER_CHUNK
    while done < min(len(addresses), pages) and items < limit:
        chunk = addresses[done:done + min(most, pages - done)]
        words, ok = reader.tables(chunk)
        readable[done:done + len(chunk)] = ok
        part, refused = items_of(fmt, words if ok.all() else words[ok], level, np.flatnonzero(ok) + done)
        parts += [part, whole_tables(np.flatnonzero(~ok) + done, addresses, UNREADABLE)]
        items, reserved, done = items + len(part.table), reserved + refused, done + len(chunk)
    parts.append(whole_tables(np.arange(done, len(addresses)), addresses, UNSCANNED))
    found = joined(parts).by_table()
    begin = np.cumsum(np.bincount(found.table + 1, minlength=len(addresses) + 1))
    return _Level(level, addresses, readable, found, begin, reserved)


def _weigh(here: _Level, below: _Level | None) -> None:
    """Counts the runs under every item; a child table weighs what its own items weigh, and one without any is taken out."""
    here.weight = np.ones(len(here.items.kind), np.int64)
    if below is not None:
        child = here.items.kind == CHILD
        here.weight[child] = np.minimum(below.per_table(below.weight), _HEAVY)[here.items.value[child]]
        here.keep(here.weight > 0)


class _Ranges(NamedTuple):
    """Address ranges [start, end), the kind of item they come from, and the rights down the levels.

    `offset` is physical - address; of an unreadable or unscanned table it is the table's physical address.
    """

    start: I64
    end: I64
    kind: U8
    rights: U8
    offset: I64

    def chosen(self, index: NDArray[Any]) -> "_Ranges":
        """Those of a mask or of numbers."""
        return _Ranges(self.start[index], self.end[index], self.kind[index], self.rights[index], self.offset[index])

    def merged(self) -> "_Ranges":
        """Neighbours that touch and agree as one."""
        first, last = np.ones(len(self.start), np.bool_), np.ones(len(self.start), np.bool_)
        first[1:] = self.start[1:] != self.end[:-1]
        for column in (self.kind, self.rights, self.offset):
            first[1:] |= column[1:] != column[:-1]
        last[:-1] = first[1:]
        return self.chosen(first)._replace(end=self.end[last])


class _Places(NamedTuple):
    """Where tables of one level are used: table number, first address, rights down to there."""

    table: I64
    base: I64
    rights: U8

    def part(self, part: slice | NDArray[np.bool_]) -> "_Places":
        """Some of them."""
        return _Places(self.table[part], self.base[part], self.rights[part])


def _lay_out(fmt: PagingFormat, tree: list[_Level], limit: int) -> tuple[_Ranges, int]:
    """Everything in address order, and where it was cut.  At most about `limit` positions are held at a level."""
    cut = 1 << fmt.shift(len(tree) + 1)
    here = _Places(np.zeros(1, np.int64), np.zeros(1, np.int64), np.full(1, fmt.all, np.uint8))
    parts: list[_Ranges] = []
    for level in tree:
        weight = level.per_table(level.weight)[here.table]
        fits = int(np.searchsorted(np.cumsum(weight) - weight, limit))
        if fits < len(weight):
            cut, here = min(cut, int(here.base[fits])), here.part(slice(fits))
        placed = [_place(fmt, level, here.part(part)) for part in _slices(level, here.table)]
        parts += [ranges for ranges, _ in placed]
        table, base, rights = (np.concatenate(column) for column in zip(*(below for _, below in placed), strict=True))
        here = _Places(table, base, rights)
    return _in_order(parts, cut)


def _slices(level: _Level, table: I64) -> list[slice]:
    """These tables cut into slices of about `_SLICE` items; always at least one slice."""
    number = np.cumsum(level.begin[table + 1] - level.begin[table]) // _SLICE
    edges = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(table)]
    return [slice(a, b) for a, b in pairwise(edges)]


def _place(fmt: PagingFormat, level: _Level, here: _Places) -> tuple[_Ranges, _Places]:
    """The items of tables at their addresses: what they grant, merged, and the tables below."""
    counts = level.begin[here.table + 1] - level.begin[here.table]
    at = np.repeat(np.arange(len(counts)), counts)
    item = (level.begin[here.table] - np.cumsum(counts) + counts)[at] + np.arange(len(at))
    _, entry, length, kind, rights, value = level.items.chosen(item)
    span, child, mapped = fmt.span(level.level), kind == CHILD, (kind == LEAF) | (kind == WITHHELD)
    start, rights = here.base[at] + entry * span, rights & here.rights[at]
    ranges = _Ranges(start, start + length * span, kind, rights, np.where(mapped, value - start, value))
    return ranges.chosen(~child).merged(), _Places(value, start, rights).part(child)


def _in_order(parts: list[_Ranges], cut: int) -> tuple[_Ranges, int]:
    start, end, kind, rights, offset = (np.concatenate(column) for column in zip(*parts, strict=True))
    cut = int(np.min(start, where=kind == UNSCANNED, initial=cut))
    order = np.argsort(start, kind="stable")
    return _Ranges(start, end, kind, rights, offset).chosen(order[start[order] < cut]), cut


def _result(fmt: PagingFormat, tree: list[_Level], laid: _Ranges, cut: int) -> TableScan:
    tables = np.sort(np.concatenate([t.addresses[t.readable] for t in tree]))
    different = np.ones(len(tables), np.bool_)
    different[1:] = tables[1:] != tables[:-1]
    lost = laid.kind == UNREADABLE
    mapped, unreadable = (_runs(fmt, laid.chosen(which)) for which in (~lost, lost))
    return TableScan(mapped, tables[different], _leaves(tree), unreadable, sum(t.reserved for t in tree),
                     cut < 1 << fmt.shift(len(tree) + 1), cut)


def _runs(fmt: PagingFormat, ranges: _Ranges) -> Runs:
    """The ranges as runs; what kind of entry they come from is forgotten."""
    ranges = ranges._replace(kind=np.zeros_like(ranges.kind)).merged()
    letters = tuple(fmt.text(i) for i in range(fmt.all + 1))
    return Runs(ranges.start.astype(np.uint64), ranges.end.astype(np.uint64), ranges.rights, ranges.offset, letters)


def _leaves(tree: list[_Level]) -> dict[str, int]:
    """Leaf entries that hold an address, by page size, each as often as its table is used."""
    leaves = dict.fromkeys(SIZE_NAMES.values(), 0)
    uses = np.ones(1, np.int64)
    for i, here in enumerate(tree):
        items = here.items
        if here.level in SIZE_NAMES:
            count = np.where(items.kind == LEAF, items.length, 0)
            leaves[SIZE_NAMES[here.level]] = int((here.per_table(count) * uses).sum())
        if i + 1 < len(tree):
            child = items.kind == CHILD
            below = np.zeros(len(tree[i + 1].addresses), np.int64)
            np.add.at(below, items.value[child], uses[items.table[child]])
            uses = below
    return leaves
