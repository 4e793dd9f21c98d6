"""A whole page table at once: what it grants anywhere, as runs.

The tables are read level by level, each table once per level, as arrays; then the tree is laid out over the address space:

    read      the distinct tables of a level -> segments (neighbouring entries with the same rights and offset), or child tables
    weigh     bottom up: how many segments hang under each table, so that empty subtrees are never laid out
    lay out   top down: segments get their addresses, rights AND down the levels, the result is cut where it grows beyond `LIMIT`
    merge     neighbours that agree in rights and offset become one run

So a shared, self-referencing or random table costs no more than its distinct pages and the runs that are kept.
"""

from dataclasses import dataclass, field
from typing import Any

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
"""Tables read at a time (2 MiB of words)."""
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
    """The distinct tables of one level and, sorted by table, their items: segments of entries or child tables.

    `table` is the item's table number, `entry` its first entry, `count` its entries; `value` is a physical address, or for a child its
    number in the next level.  `begin[t]:begin[t+1]` are the items of table t; `weight` counts the runs under each item.
    """

    level: int
    addresses: U64
    readable: NDArray[np.bool_]
    table: I64
    entry: I64
    count: I64
    kind: U8
    rights: U8
    value: I64
    begin: I64
    reserved: int
    weight: I64 = field(default_factory=lambda: np.zeros(0, np.int64))

    def per_table(self, values: I64) -> I64:
        """Sums of item values by table."""
        total = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
        return np.diff(total[self.begin])


def scan(reader: MemoryReader, fmt: PagingFormat, root: int, levels: int, limit: int = LIMIT) -> TableScan:
    """Everything that the table at physical `root` with `levels` levels grants.  Never raises for what the tables hold."""
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"a page table of {levels} levels cannot be scanned: 1 to {MAX_LEVELS}")
    tree = _read_tree(reader, fmt, root, levels, limit)
    for below, here in zip([None, *tree[:0:-1]], tree[::-1], strict=True):
        _weigh(here, below)
    return _result(fmt, tree, _lay_out(fmt, tree, limit))


def _read_tree(reader: MemoryReader, fmt: PagingFormat, root: int, levels: int, limit: int) -> list[_Level]:
    """The levels from the top down; the items of one are linked to the tables of the next."""
    tree: list[_Level] = []
    addresses = np.array([root], np.uint64)
    pages = MAX_TABLES
    for level in range(levels, 0, -1):
        here = _read_level(reader, fmt, addresses, level, pages, limit)
        pages -= int(here.readable.sum())
        tree.append(here)
        child = here.kind == CHILD
        addresses, here.value[child] = _distinct(here.value[child].astype(np.uint64))
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
    while done < min(len(addresses), pages) and items < limit:
        chunk = addresses[done:done + min(_CHUNK, pages - done)]
        words, ok = reader.tables(chunk)
        readable[done:done + len(chunk)] = ok
        part, refused = items_of(fmt, words if ok.all() else words[ok], level, np.flatnonzero(ok) + done)
        parts += [part, whole_tables(np.flatnonzero(~ok) + done, addresses, UNREADABLE)]
        items, reserved, done = items + len(part.table), reserved + refused, done + len(chunk)
    parts.append(whole_tables(np.arange(done, len(addresses)), addresses, UNSCANNED))
    found = joined(parts).by_table()
    begin = np.cumsum(np.bincount(found.table + 1, minlength=len(addresses) + 1))
    return _Level(level, addresses, readable, *found, begin, reserved)


def _weigh(here: _Level, below: _Level | None) -> None:
    """Counts the runs under every item; a child table weighs what its own items weigh."""
    here.weight = np.ones(len(here.kind), np.int64)
    if below is not None:
        child = here.kind == CHILD
        here.weight[child] = np.minimum(below.per_table(below.weight), _HEAVY)[here.value[child]]


@dataclass(slots=True)
class _Laid:
    """Runs in address order before merging, and where the layout was cut."""

    start: I64
    end: I64
    kind: U8
    rights: U8
    value: I64
    cut: int
    truncated: bool


def _lay_out(fmt: PagingFormat, tree: list[_Level], limit: int) -> _Laid:
    """Gives every item its addresses, from the top down.  At most about `limit` positions are held at a level."""
    whole = cut = 1 << fmt.shift(len(tree) + 1)
    table, base, rights = np.zeros(1, np.int64), np.zeros(1, np.int64), np.full(1, fmt.all, np.uint8)
    parts: list[tuple[Any, ...]] = []
    for here in tree:
        weight = here.per_table(here.weight)[table]
        fits = int(np.searchsorted(np.cumsum(weight) - weight, limit))
        if fits < len(table):
            cut, table, base, rights = min(cut, int(base[fits])), table[:fits], base[:fits], rights[:fits]
        item, at = _expand(here, table)
        span = fmt.span(here.level)
        start = base[at] + here.entry[item] * span
        kind, passed = here.kind[item], here.rights[item] & rights[at]
        done = kind != CHILD
        parts.append(tuple(a[done] for a in (start, start + here.count[item] * span, kind, passed, here.value[item])))
        table, base, rights = (a[~done] for a in (here.value[item], start, passed))
    return _in_order(parts, cut, whole)


def _expand(level: _Level, table: I64) -> tuple[I64, I64]:
    """The items of many tables one after another, empty subtrees left out: item numbers, and which of `table` each came from."""
    counts = level.begin[table + 1] - level.begin[table]
    at = np.repeat(np.arange(len(table)), counts)
    item = level.begin[table][at] + np.arange(len(at)) - (np.cumsum(counts) - counts)[at]
    keep = level.weight[item] > 0
    return item[keep], at[keep]


def _in_order(parts: list[tuple[Any, ...]], cut: int, whole: int) -> _Laid:
    start, end, kind, rights, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    unscanned = start[kind == UNSCANNED]
    cut = min(cut, int(unscanned.min())) if len(unscanned) else cut
    order = np.argsort(start, kind="stable")
    order = order[start[order] < cut]
    return _Laid(start[order], end[order], kind[order], rights[order], value[order], cut, cut < whole)


def _result(fmt: PagingFormat, tree: list[_Level], laid: _Laid) -> TableScan:
    tables = np.sort(np.concatenate([t.addresses[t.readable] for t in tree]))
    tables = tables[np.diff(tables, prepend=tables[:1] + np.uint64(1)) != 0]
    run, lost = (laid.kind == LEAF) | (laid.kind == WITHHELD), laid.kind == UNREADABLE
    runs = _merge(fmt, laid.start[run], laid.end[run], laid.rights[run], laid.value[run] - laid.start[run])
    unreadable = _merge(fmt, laid.start[lost], laid.end[lost], laid.rights[lost], laid.value[lost])
    return TableScan(runs, tables, _leaves(fmt, tree), unreadable, sum(t.reserved for t in tree), laid.truncated, laid.cut)


def _merge(fmt: PagingFormat, start: I64, end: I64, rights: U8, offset: I64) -> Runs:
    """Joins neighbours that touch and agree."""
    first = np.ones(len(start), np.bool_)
    first[1:] = (start[1:] != end[:-1]) | (rights[1:] != rights[:-1]) | (offset[1:] != offset[:-1])
    last = np.ones(len(start), np.bool_)
    last[:-1] = first[1:]
    letters = tuple(fmt.text(i) for i in range(fmt.all + 1))
    return Runs(start[first].astype(np.uint64), end[last].astype(np.uint64), rights[first], offset[first], letters)


def _leaves(fmt: PagingFormat, tree: list[_Level]) -> dict[str, int]:
    """Leaf entries that hold an address, by page size, each as often as its table is used."""
    leaves = dict.fromkeys(SIZE_NAMES.values(), 0)
    uses = np.ones(1, np.int64)
    for i, here in enumerate(tree):
        if here.level in SIZE_NAMES:
            count = np.where(here.kind == LEAF, here.count, 0)
            leaves[SIZE_NAMES[here.level]] = int((here.per_table(count) * uses).sum())
        if i + 1 < len(tree):
            child = here.kind == CHILD
            below = np.zeros(len(tree[i + 1].addresses), np.int64)
            np.add.at(below, here.value[child], uses[here.table[child]])
            uses = below
    return leaves
