"""What units' IOTLBs hold, as runs: what a device is let do until an invalidation, whatever the tables say by now (VT-d, section 6.2.4)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from . import format as show
from .reader import UnitFacts
from .records import Column, Record, Records
from .runs import Runs

__all__ = ["CachedDomain", "CachingUnit", "cached_runs", "read_cached"]

_LETTERS = ("-", "r", "w", "rw")


class CachedPage(Protocol):
    """What an entry says: the page's host-physical base (None: it grants nothing), bit 0 read, bit 1 write."""

    @property
    def base(self) -> int | None: ...
    @property
    def permission(self) -> int: ...


class CachedEntry(Protocol):
    """One IOTLB entry: domain id and the half-open IOVA range [start, end)."""

    @property
    def did(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def mapping(self) -> CachedPage: ...


class CachedState(Protocol):
    """What a unit remembers."""

    @property
    def mappings(self) -> Sequence[CachedEntry]: ...


class CachingUnit(Protocol):
    """A unit whose caches can be looked at."""

    @property
    def description(self) -> UnitFacts:
        """What the machine's description says of it."""
        ...

    @property
    def cached(self) -> CachedState:
        """Its caches now."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class CachedDomain(Record):
    """The IOTLB entries of one domain id in the unit with register base `unit`: how many, and what they let through by IOVA."""

    unit: int
    did: int
    entries: int
    runs: Runs

    title = "Cached translations"
    legend = "unit: register base; held: bytes of IOVA that the IOTLB answers for"
    columns = (
        Column("unit", lambda c: c.unit, show.address, True), Column("did", lambda c: c.did, right=True),
        Column("entries", lambda c: c.entries, right=True), Column("runs", lambda c: len(c.runs), right=True),
        Column("held", lambda c: c.held, show.size, True),
    )

    @property
    def held(self) -> int:
        """Bytes of IOVA space in some entry."""
        return int((self.runs.end - self.runs.start).sum())

    def to_json(self) -> dict[str, Any]:
        """Addresses as integers, runs half-open."""
        return {"unit": self.unit, "did": self.did, "entries": self.entries, "runs": self.runs.to_json()}


def read_cached(units: Iterable[CachingUnit]) -> Records[CachedDomain]:
    """What each unit's IOTLB holds, domain id by domain id; looking fills and drops nothing."""
    return Records(CachedDomain, [domain for unit in units for domain in _domains(unit)])


def _domains(unit: CachingUnit) -> Iterator[CachedDomain]:
    entries: dict[int, list[CachedEntry]] = {}
    for entry in unit.cached.mappings:
        entries.setdefault(entry.did, []).append(entry)
    for did, held in sorted(entries.items()):
        yield CachedDomain(unit.description.base, did, len(held), cached_runs(held))


def cached_runs(entries: Iterable[CachedEntry]) -> Runs:
    """IOTLB entries of one domain id as runs by IOVA; where pages of several sizes hold an address the smallest answers."""
    held = {(e.start, e.end - e.start): e.mapping for e in entries}
    sizes = sorted({size for _, size in held})
    edges = sorted({edge for start, size in held for edge in (start, start + size)})
    runs: list[tuple[int, int, str, int]] = []
    for start, end in pairwise(edges):
        answers = next((key for size in sizes if (key := (start - start % size, size)) in held), None)
        if answers:
            _append(runs, start, end, *_rights(held[answers], answers[0]))
    return Runs.of(runs)


def _rights(page: CachedPage, start: int) -> tuple[str, int]:
    """Letters and offset of a page that begins at IOVA `start`."""
    return ("-", 0) if page.base is None else (_LETTERS[page.permission & 3], page.base - start)


def _append(runs: list[tuple[int, int, str, int]], start: int, end: int, perm: str, offset: int) -> None:
    """Adds a run, or lengthens the last one where the two touch and agree."""
    if runs and runs[-1][1:] == (start, perm, offset):
        runs[-1] = (runs[-1][0], end, perm, offset)
    else:
        runs.append((start, end, perm, offset))
