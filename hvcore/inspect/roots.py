"""Pages of a memory that could be a root table: a guess for dumps that come without registers (VT-d, sections 9.1 and 9.3)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..spec import vtd
from ..spec.paging import PAGE
from . import format as show
from .reader import MemoryReader, Words
from .records import Column, Record, Records
from .runs import U64

__all__ = ["RootGuess", "find_roots"]

_CHUNK = 4096
"""Pages looked at together (16 MiB)."""
_MOST_TABLES = 1 << 16
"""Context tables that one search reads."""
_SHOWN = 64
_ROOT_LOW = np.uint64(vtd.ROOT_RESERVED[0] | 0xFFF0_0000_0000_0000)
_CONTEXT_LOW = np.uint64(vtd.CONTEXT_RESERVED[0] | 0xFFF0_0000_0000_0000)
_CONTEXT_HIGH = np.uint64(vtd.CONTEXT_RESERVED[1])
_ONE = np.uint64(1)


@dataclass(frozen=True, slots=True, repr=False)
class RootGuess(Record):
    """A page that reads as a root table; nothing but its words says that it is one.

    `address` is host-physical; `buses` have a root entry, `contexts` present context entries are in their tables, `domains` different
    domain ids, `tables` different second-level tables among them.
    """

    address: int
    buses: tuple[int, ...]
    contexts: int
    domains: int
    tables: int

    title = "Guessed root tables"
    legend = "host-physical; a guess: give the right one as the root"
    columns = (
        Column("address", lambda g: g.address, show.address, True), Column("buses", lambda g: g.buses, lambda v: _buses(v)),
        Column("contexts", lambda g: g.contexts, right=True), Column("domains", lambda g: g.domains, right=True),
        Column("tables", lambda g: g.tables, right=True),
    )


def _buses(values: object) -> str:
    names = [f"{bus:02x}" for bus in values] if isinstance(values, tuple) else []
    return " ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def find_roots(reader: MemoryReader, runs: Iterable[tuple[int, int]]) -> Records[RootGuess]:
    """Every page in the half-open host-physical `runs` that could be a root table, the one with most context entries first.

    It must have all its reserved bits clear and an entry for some bus; in the tables behind its entries there must be context entries, none
    with a reserved bit set and all with a second-level table that can be read.  A search that meets too many is cut, and the note says so.
    """
    search = _Search(reader)
    found = [g for addresses in _batches(runs) for g in search.among(addresses)]
    note = "The search was cut: too many pages look like root tables." if search.left <= 0 else ""
    return Records(RootGuess, sorted(found, key=lambda g: (-g.contexts, g.address))[:_SHOWN], note=note)


def _batches(runs: Iterable[tuple[int, int]]) -> Iterator[U64]:
    """The addresses of the whole pages of runs, some thousands at a time."""
    held, count = list[U64](), 0
    for start, end in runs:
        first, last = -(-start // PAGE), end // PAGE
        while first < last:
            take = min(_CHUNK - count, last - first)
            held.append(np.arange(first, first + take, dtype=np.uint64) * np.uint64(PAGE))
            first, count = first + take, count + take
            if count == _CHUNK:
                yield np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)


class _Search:
    """One search; `left` context tables may still be read."""

    def __init__(self, reader: MemoryReader):
        self.reader, self.left = reader, _MOST_TABLES

    def among(self, addresses: U64) -> Iterator[RootGuess]:
        if self.left <= 0:
            return
        words, readable = self.reader.tables(addresses)
        for i in np.flatnonzero(readable & _root_like(words)).tolist():
            guess = self._judged(int(addresses[i]), words[i]) if self.left > 0 else None
            if guess:
                yield guess

    def _judged(self, address: int, words: Words) -> RootGuess | None:
        """The guess, if all its context tables are some."""
        low = words[0::2]
        buses = np.flatnonzero(low & _ONE)
        tables: U64 = low[buses] & np.uint64(vtd.ADDRESS)
        self.left -= len(tables)
        pages, readable = self.reader.tables(tables)
        if not readable.all() or (tables == address).any():
            return None
        pairs = pages.reshape(len(buses), -1, 2)
        held = pairs[(pairs[:, :, 0] & _ONE).astype(np.bool_)]
        if not len(held) or not _contexts_good(self.reader, held):
            return None
        return RootGuess(address, tuple(buses.tolist()), len(held), len(np.unique(held[:, 1] >> np.uint64(8))),
                         len(np.unique(held[:, 0] & np.uint64(vtd.ADDRESS))))


def _root_like(words: Words) -> NDArray[np.bool_]:
    """Which pages [n, 512] have root entries only: upper words zero, lower ones zero or an address with P."""
    some = np.flatnonzero((words[:, 1] | words[:, 3] | words[:, 255] | words[:, 511]) == 0)
    some = some[np.bitwise_or.reduce(words[some], axis=1) != 0]
    low, high = words[some, 0::2], words[some, 1::2]
    fits = (low == 0) | (low & _ONE == _ONE) & (low & _ROOT_LOW == 0) & (low >= PAGE)
    found = np.zeros(len(words), np.bool_)
    found[some[fits.all(axis=1) & ~high.any(axis=1)]] = True
    return found


def _contexts_good(reader: MemoryReader, held: Words) -> bool:
    """Whether present context entries [n, 2] ask for what some unit does, and for tables that are there."""
    low, high = held[:, 0], held[:, 1]
    kind, width = low >> np.uint64(2) & np.uint64(3), high & np.uint64(7)
    reserved = (low & _CONTEXT_LOW).any() or (high & _CONTEXT_HIGH).any()
    if reserved or (kind == 3).any() or not ((width >= 1) & (width <= 3)).all():
        return False
    walked = np.unique(low[kind != vtd.TranslationType.PASS_THROUGH] & np.uint64(vtd.ADDRESS))
    return bool(reader.tables(walked)[1].all())
