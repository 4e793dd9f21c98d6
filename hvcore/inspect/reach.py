"""Every way by which devices come to memory: what the units' registers, tables and caches let each requester reach, as runs.

Of every unit all 65,536 requester ids are asked for, not only those of known functions: a device may say that it is another one.  Where a
cache and the tables differ both count, whatever of the cache is dropped next.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np

from ..spec import vtd
from ..spec.paging import PAGE, PagingFormat
from ..spec.vtd import TranslationType
from .cached import CachedEntry
from .domains import Context, Domain, context_problem, unit_format
from .explain import protected_regions
from .reader import MemoryReader, UnitFacts
from .runs import I64, U8, U64, Runs
from .scan import MAX_LEVELS, TableScan, scan
from .units import Unit, read_unit

__all__ = ["ATS", "CONTEXT_CACHE", "EVERYBODY", "IOTLB", "OFF", "PASSES", "TABLES", "UNCOVERED", "CachingUnit", "Scans", "UnitReach", "Way",
           "letters", "of_runs", "read_reach"]

OFF, PASSES, TABLES, IOTLB, CONTEXT_CACHE, ATS, UNCOVERED = (
    "translation that is off", "pass-through", "second-level tables", "an entry of the IOTLB", "an entry of the context cache",
    "requests that say they are translated (ATS)", "no unit on its way")
"""The ways, by what lets a request through."""
EVERYBODY = np.arange(1 << 16)
"""All requester ids."""
_END = 1 << 62
"""Where an address space ends that is passed through: beyond every memory, and within signed 64 bits."""
_MOST_RUNS, _LEAST_COST = 1 << 20, 1 << 14
"""Runs of a scan that nobody has made before, and the least that a scan counts, of four times as many in all."""


class CachedContext(Protocol):
    """A context as a unit remembers it; `reason` is why it refuses everything (None: it does not)."""

    @property
    def source(self) -> int: ...
    @property
    def reason(self) -> int | None: ...
    @property
    def tt(self) -> TranslationType: ...
    @property
    def root(self) -> int: ...
    @property
    def levels(self) -> int: ...
    @property
    def bits(self) -> int: ...
    @property
    def did(self) -> int: ...


class CachedInterrupt(Protocol):
    """An interrupt remapping entry as a unit remembers it."""

    @property
    def index(self) -> int: ...
    @property
    def low(self) -> int: ...
    @property
    def high(self) -> int: ...
    @property
    def reason(self) -> int | None: ...


class CachedState(Protocol):
    """All that a unit remembers."""

    @property
    def contexts(self) -> Sequence[CachedContext]: ...
    @property
    def mappings(self) -> Sequence[CachedEntry]: ...
    @property
    def interrupts(self) -> Sequence[CachedInterrupt]: ...


class CachingUnit(Protocol):
    """A unit whose registers and caches can be looked at without side effects."""

    @property
    def description(self) -> UnitFacts:
        """What the machine's description says of it."""
        ...

    @property
    def cached(self) -> CachedState:
        """Its caches now."""
        ...

    def peek(self, offset: int, width: int, /) -> int:
        """The register bytes at `offset`."""
        ...


@dataclass(frozen=True, slots=True)
class Way:
    """What the requesters `sources` reach by one way: IOVA ranges [start, end), `rights` (bit 0 read, bit 1 write), offset to the host.

    `unit` is the unit's register base, None where no unit is on the way.  `offset` is host-physical - IOVA.
    """

    how: str
    unit: int | None
    sources: I64
    start: U64
    end: U64
    rights: U8
    offset: I64
    segment: int = 0


@dataclass(slots=True)
class UnitReach:
    """The ways through one unit, the table pages that it walks (name, ascending addresses), and in words what could not be read."""

    unit: Unit
    registers: CachingUnit
    ways: list[Way] = field(default_factory=list)
    tables: list[tuple[str, U64]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Key:
    """All that matters of a context: requesters with equal keys reach the same."""

    tt: TranslationType
    root: int
    levels: int
    bits: int
    did: int

    @property
    def walks(self) -> bool:
        """Whether second-level tables are walked under it."""
        return self.tt != TranslationType.PASS_THROUGH


@dataclass(frozen=True, slots=True)
class _Held:
    """A context and the requesters that have it, by the tables or, where those say otherwise, by the context cache."""

    key: _Key
    sources: I64
    how: str


class Scanned(NamedTuple):
    """What a second-level table grants below IOVA `known_to`, and its table pages, ascending."""

    runs: Runs
    tables: U64
    known_to: int


class Scans:
    """Scans of second-level tables, each table once; those of domains that were read before are taken over."""

    def __init__(self, reader: MemoryReader, domains: Iterable[Domain] = ()):
        self.reader, self.left = reader, 4 * _MOST_RUNS
        self.done: dict[tuple[int | None, int, int], Scanned] = {}
        for d in domains:
            if (len(d.tables) or d.unreadable) and not d.truncated:
                self.done[d.unit, d.root, d.levels] = Scanned(d.runs, d.tables, _END)

    def of(self, unit: int, fmt: PagingFormat, root: int, levels: int) -> "Scanned | None":
        """One table; None where the work of one proof is spent or the depth is beyond all tables."""
        key = unit, root, levels
        if key not in self.done:
            if self.left <= 0 or levels > MAX_LEVELS:
                return None
            new: TableScan = scan(self.reader, fmt, root, levels, min(_MOST_RUNS, self.left))
            self.left -= max(_LEAST_COST, len(new.runs) + len(new.unreadable) + new.table_pages)
            self.done[key] = Scanned(new.runs, new.tables, new.scanned_to if new.truncated else _END)
        return self.done[key]


def letters(rights: int) -> str:
    """A set of rights: `rw`, `r`, `w`, `-`."""
    return ("-", "r", "w", "rw")[rights & 3]


def of_runs(runs: Runs) -> tuple[U64, U64, U8, I64]:
    """Start, end, rights as bits (0 read, 1 write) and offset of permission runs."""
    bits = np.array([("r" in perm) | ("w" in perm) << 1 for perm in runs.letters], np.uint8)
    return runs.start, runs.end, bits[runs.rights] if len(runs) else np.zeros(0, np.uint8), runs.offset


def read_reach(reader: MemoryReader, unit: CachingUnit, host_address_width: int | None, scans: Scans) -> UnitReach:
    """All ways of devices through one unit, by its registers, tables and caches as they are now."""
    found = UnitReach(read_unit(unit), unit)
    free = _unprotected(unit, found.unit)
    contexts = _contexts(reader, found, host_address_width)
    fmt = unit_format(found.unit, host_address_width)
    scanned = {c.key: scans.of(found.unit.base, fmt, c.key.root, c.key.levels) for c in contexts if c.key.walks}
    found.tables += [(f"second-level tables of the unit at {found.unit.base:#x}", s.tables) for s in scanned.values() if s]
    if not found.unit.translating:
        found.ways.append(_identity(OFF, found.unit, EVERYBODY, free))
        return found
    for context in contexts:
        _add_ways(found, context, scanned.get(context.key), free)
    _add_iotlb(found, contexts)
    return found


# --- contexts

def _contexts(reader: MemoryReader, found: UnitReach, host_address_width: int | None) -> list[_Held]:
    """The contexts that a unit takes, of its tables and of its cache; their table pages are added to what is found."""
    if found.unit.root_table is None:
        return []
    tables = _ContextTables(reader, found.unit, host_address_width)
    found.tables += tables.pages()
    groups = tables.groups() if found.unit.legacy else {}
    remembered = _remembered(found.registers, groups)
    return [_Held(key, sources, TABLES) for key, sources in groups.items()] + [
        _Held(key, sources, CONTEXT_CACHE) for key, sources in remembered.items()]


class _ContextTables:
    """The root table of a unit and the context tables behind it, as arrays."""

    def __init__(self, reader: MemoryReader, unit: Unit, host_address_width: int | None):
        self.reader, self.unit = reader, unit
        self.high_bits = -1 << (host_address_width or 52)
        self.root = np.array([unit.root_table or 0], np.uint64)
        words, readable = reader.tables(self.root)
        self.present = bool(readable[0])
        pairs = words[0].reshape(-1, 2)
        reserved = np.uint64((0xFFE | self.high_bits) & (1 << 64) - 1)
        good = (pairs[:, 0] & np.uint64(1) == 1) & (pairs[:, 0] & reserved == 0) & (pairs[:, 1] == 0)
        self.buses = np.flatnonzero(good) if self.present else np.zeros(0, np.int64)
        self.addresses = pairs[self.buses, 0] & np.uint64(vtd.ADDRESS)

    def pages(self) -> list[tuple[str, U64]]:
        """The root table and the context tables that lie in memory."""
        _, readable = self.reader.tables(self.addresses)
        at = f"of the unit at {self.unit.base:#x}"
        return [(f"root table {at}", self.root[:self.present]), (f"context tables {at}", np.unique(self.addresses[readable]))]

    def groups(self) -> dict[_Key, I64]:
        """The requesters of each different context that the unit takes."""
        pages, readable = self.reader.tables(self.addresses)
        entries = pages.reshape(len(self.buses), PAGE // 16, 2)
        bus, devfn = np.nonzero((entries[:, :, 0] & np.uint64(1)).astype(np.bool_) & readable[:, None])
        if not len(bus):
            return {}
        sources, pairs = self.buses[bus] << 8 | devfn, entries[bus, devfn]
        different, inverse = np.unique(pairs, axis=0, return_inverse=True)
        keys = [self._key(int(low), int(high)) for low, high in different]
        parts: dict[_Key, list[I64]] = {}
        order = np.argsort(inverse.reshape(-1), kind="stable")
        ends = np.cumsum(np.bincount(inverse.reshape(-1), minlength=len(keys)))
        for key, numbers in zip(keys, np.split(order, ends[:-1]), strict=True):
            if key is not None:
                parts.setdefault(key, []).append(sources[numbers])
        return {key: np.sort(np.concatenate(part)) for key, part in parts.items()}

    def _key(self, low: int, high: int) -> _Key | None:
        """What a context entry comes to; None where the unit refuses everything under it."""
        context = Context(0, low, high)
        if context_problem(context, self.unit, self.high_bits):
            return None
        bits = vtd.input_bits(self.unit.cap, context.levels - 2)
        return _Key(TranslationType(vtd.CONTEXT_LOW.get(low, "TT")), context.root, context.levels, bits,
                    context.did % vtd.ndoms(self.unit.cap))


def _remembered(unit: CachingUnit, groups: Mapping[_Key, I64]) -> dict[_Key, I64]:
    """Contexts of the context cache that are not those of the tables."""
    found: dict[_Key, list[int]] = {}
    for c in unit.cached.contexts:
        key = _Key(c.tt, c.root, c.levels, c.bits, c.did)
        if c.reason is None and not np.isin(c.source, groups.get(key, ())):
            found.setdefault(key, []).append(c.source)
    return {key: np.array(sorted(sources), np.int64) for key, sources in found.items()}


# --- ways

def _add_ways(found: UnitReach, context: _Held, scanned: Scanned | None, free: list[tuple[int, int]]) -> None:
    """What requesters reach under one context."""
    key, sources, base = context.key, context.sources, found.unit.base
    if not key.walks:
        through = [(start, min(end, 1 << key.bits)) for start, end in _without_messages(free) if start < 1 << key.bits]
        found.ways.append(_identity(PASSES if context.how == TABLES else context.how, found.unit, sources, through))
        return
    if key.tt == TranslationType.TRANSLATE_ATS:
        found.ways.append(_identity(ATS, found.unit, sources, _without_messages(free)))
    if scanned is None:
        found.unknown.append(f"the tables at {key.root:#x} of the unit at {base:#x} are more than one proof reads")
        return
    if scanned.known_to < 1 << key.bits:
        found.unknown.append(f"the tables at {key.root:#x} of the unit at {base:#x} grant more runs than are read")
    found.ways.append(_legal(Way(context.how, base, sources, *of_runs(scanned.runs), found.unit.segment), key.bits))


def _add_iotlb(found: UnitReach, contexts: list[_Held]) -> None:
    """What the IOTLB lets the requesters of each domain id do, entry by entry: any of them may be the next to be dropped."""
    entries: dict[int, list[CachedEntry]] = {}
    for e in found.registers.cached.mappings:
        if e.mapping.base is not None:
            entries.setdefault(e.did, []).append(e)
    for context in contexts:
        held = entries.get(context.key.did, []) if context.key.walks else []
        if held:
            rights = np.array([e.mapping.permission & 3 for e in held], np.uint8)
            offset = np.array([(e.mapping.base or 0) - e.start for e in held], np.int64)
            start, end = np.array([e.start for e in held], np.uint64), np.array([e.end for e in held], np.uint64)
            way = Way(IOTLB, found.unit.base, context.sources, start, end, rights, offset, found.unit.segment)
            found.ways.append(_legal(way, context.key.bits))


def _identity(how: str, unit: Unit, sources: I64, ranges: Sequence[tuple[int, int]]) -> Way:
    """Requests to their own addresses."""
    n = len(ranges)
    return Way(how, unit.base, sources, np.array([a for a, _ in ranges], np.uint64), np.array([b for _, b in ranges], np.uint64),
               np.full(n, 3, np.uint8), np.zeros(n, np.int64), unit.segment)


def _unprotected(registers: CachingUnit, unit: Unit) -> list[tuple[int, int]]:
    """What the protected memory regions leave of all addresses to requests that are not translated."""
    free = [(0, _END)]
    for _, start, end in protected_regions(registers, unit):
        if start < end:
            free = _without(free, start, end)
    return free


def _without_messages(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Without the interrupt range, where no unit that translates lets memory requests through."""
    return _without(ranges, vtd.INTERRUPT_RANGE.start, vtd.INTERRUPT_RANGE.stop)


def _without(ranges: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    parts = [part for a, b in ranges for part in ((a, min(b, start)), (max(a, end), b))]
    return [(a, b) for a, b in parts if a < b]


def _legal(way: Way, bits: int) -> Way:
    """What of a way lies within the context's width and outside the interrupt range, and grants anything."""
    first, last = np.uint64(vtd.INTERRUPT_RANGE.start), np.uint64(vtd.INTERRUPT_RANGE.stop)
    end = np.minimum(way.end, np.uint64(1 << min(bits, 62)))
    across = np.flatnonzero((way.start < last) & (end > first))
    starts = np.append(way.start, np.maximum(way.start[across], last))
    ends = np.append(end, end[across])
    ends[across] = np.minimum(end[across], first)
    rights, offset = np.append(way.rights, way.rights[across]), np.append(way.offset, way.offset[across])
    kept = np.flatnonzero((starts < ends) & (rights != 0))
    return replace(way, start=starts[kept], end=ends[kept], rights=rights[kept], offset=offset[kept])
