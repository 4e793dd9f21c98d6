"""Two runs of a machine, aligned: what only one of them has, and what is different."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..spec.e820 import type_name
from ..spec.pci import format_bdf
from . import format as show
from .domains import Domain
from .e820 import E820Map
from .faults import Fault
from .records import Column, Record, Records
from .runs import U64, Runs
from .units import Unit

__all__ = ["Change", "Comparable", "diff_domains", "diff_e820", "diff_faults", "diff_runs", "diff_units", "range_changes"]

T = TypeVar("T")
_LAST = (1 << 64) - 1
KEPT = 100_000
"""Changes kept of one comparison."""


@dataclass(frozen=True, slots=True, repr=False)
class Change(Record):
    """One difference: in which part, of what (or in which half-open range [start, end)), and what each side has; None: nothing."""

    part: str
    item: str
    left: str | None
    right: str | None
    start: int | None = None
    end: int | None = None

    title = "Differences"
    legend = "ranges half-open; an empty cell: that side has nothing there"
    columns = (
        Column("part", lambda c: c.part), Column("item", lambda c: c.item), Column("start", lambda c: c.start, show.address, True),
        Column("end", lambda c: c.end, show.address, True), Column("left", lambda c: c.left), Column("right", lambda c: c.right),
        Column("status", lambda c: c.status),
    )

    @property
    def status(self) -> str:
        """`only left`, `only right` or `changed`."""
        return "only right" if self.left is None else "only left" if self.right is None else "changed"


class Comparable(Protocol):
    """What is compared of a run."""

    @property
    def config(self) -> Any:
        """Its options, with `to_dict()`."""
        ...

    @property
    def outcome(self) -> str:
        """How it ended."""
        ...

    @property
    def e820(self) -> E820Map:
        """Its memory maps."""
        ...

    @property
    def units(self) -> Records[Unit]:
        """Its remapping units."""
        ...

    @property
    def domains(self) -> Records[Domain]:
        """Its domains."""
        ...

    @property
    def faults(self) -> Records[Fault]:
        """Its recorded faults."""
        ...


def diff_runs(left: Comparable, right: Comparable) -> Records[Change]:
    """Everything that is different between two runs."""
    a, b = left.config.to_dict(), right.config.to_dict()
    changes = [Change("option", name, _text(a.get(name)), _text(b.get(name))) for name in {**a, **b} if a.get(name) != b.get(name)]
    if left.outcome != right.outcome:
        changes.append(Change("outcome", "", left.outcome, right.outcome))
    parts = (diff_e820(left.e820, right.e820), diff_units(left.units, right.units), diff_domains(left.domains, right.domains),
             diff_faults(left.faults, right.faults))
    return _kept([*changes, *(c for part in parts for c in part)])


def _kept(changes: Iterable[Change]) -> Records[Change]:
    kept = list(islice(changes, KEPT + 1))
    return Records(Change, kept[:KEPT], note=f"Only the first {KEPT:,} are here." if len(kept) > KEPT else "")


def _text(value: object) -> str | None:
    return None if value is None else str(value)


# --- ranges

def range_changes(part: str, item: str, left: Runs, right: Runs) -> Iterator[Change]:
    """Where two sets of runs disagree in rights or offset."""
    edges: U64 = np.unique(np.concatenate([left.start, left.end, right.start, right.end]))
    at, ends = edges[:-1], edges[1:]
    letters = sorted({*left.letters, *right.letters})
    a, b = _covering(left, at, letters), _covering(right, at, letters)
    differs = (a != b).any(axis=0)
    joined = np.ones(len(at), np.bool_)
    joined[1:] = (a[:, 1:] != a[:, :-1]).any(axis=0) | (b[:, 1:] != b[:, :-1]).any(axis=0)
    first = np.flatnonzero(joined)
    last = np.append(first[1:] - 1, len(at) - 1) if len(first) else first
    for i, j in zip(first.tolist(), last.tolist(), strict=True):
        if differs[i]:
            yield Change(part, item, _words(a[:, i], letters), _words(b[:, i], letters), int(at[i]), int(ends[j]))


def _covering(runs: Runs, at: U64, letters: list[str]) -> NDArray[np.int64]:
    """For each address: number of the rights in `letters` (-1: no run) and offset (0 where there is no run)."""
    found = np.full((2, len(at)), -1, np.int64)
    found[1] = 0
    if len(runs):
        i = np.searchsorted(runs.start, at, "right").astype(np.int64) - 1
        inside = (i >= 0) & (at < runs.end[np.maximum(i, 0)])
        number = np.array([letters.index(text) for text in runs.letters], np.int64)
        found[0, inside] = number[runs.rights[i[inside]]]
        found[1, inside] = runs.offset[i[inside]]
    return found


def _words(cell: NDArray[np.int64], letters: list[str]) -> str | None:
    number, offset = int(cell[0]), int(cell[1])
    if number < 0:
        return None
    return letters[number] + (f" at offset {offset:+#x}" if offset else "")


def diff_e820(left: E820Map, right: E820Map) -> Records[Change]:
    """Where the firmware's or the guest's memory maps disagree, below the last address of 64 bits."""
    def runs(rows: E820Map, name: str) -> Runs:
        return Runs.of((r.start, min(r.end, _LAST), type_name(kind), 0) for r in rows
                       if (kind := getattr(r, name)) is not None and r.start < _LAST)

    return _kept(c for name in ("firmware", "guest") for c in range_changes("E820", name, runs(left, name), runs(right, name)))


# --- things with a name

def _pairs(left: Iterable[T], right: Iterable[T], name: Callable[[T], str]) -> Iterator[tuple[str, T | None, T | None]]:
    """Both sides by name, in the order of the left, then what only the right has; the second of a name pairs with the second."""
    a, b = _named(left, name), _named(right, name)
    for key in {**a, **b}:
        yield key, a.get(key), b.get(key)


def _named(items: Iterable[T], name: Callable[[T], str]) -> dict[str, T]:
    named: dict[str, T] = {}
    seen: Counter[str] = Counter()
    for item in items:
        text = name(item)
        seen[text] += 1
        named[text if seen[text] == 1 else f"{text} (number {seen[text]})"] = item
    return named


def _fields(part: str, item: str, left: Record, right: Record) -> Iterator[Change]:
    """The shown fields in which two records differ."""
    for c in left.columns:
        a, b = c.value(left), c.value(right)
        if a != b:
            shown = (c.show(a), c.show(b)) if c.show(a) != c.show(b) else (str(a), str(b))
            yield Change(part, f"{item}: {c.label}", *shown)


def _unit_name(base: int | None) -> str:
    return f"unit {base:#x}" if base is not None else "file"


def diff_units(left: Iterable[Unit], right: Iterable[Unit]) -> Records[Change]:
    """Units that only one side has, and registers or devices that differ."""
    return _kept(_unit_changes(left, right))


def _unit_changes(left: Iterable[Unit], right: Iterable[Unit]) -> Iterator[Change]:
    for name, a, b in _pairs(left, right, lambda u: _unit_name(u.base)):
        if a and b:
            yield from _fields("units", name, a, b)
        else:
            yield Change("units", name, "there" if a else None, "there" if b else None)


def diff_domains(left: Iterable[Domain], right: Iterable[Domain]) -> Records[Change]:
    """Domains that only one side has; for the others what differs, and where their permissions do."""
    return _kept(_domain_changes(left, right))


def _domain_changes(left: Iterable[Domain], right: Iterable[Domain]) -> Iterator[Change]:
    for name, a, b in _pairs(left, right, lambda d: f"domain {d.did} of {_unit_name(d.unit)}"):
        if a and b:
            yield from _fields("domains", name, a, b)
            yield from range_changes("permissions", name, a.runs, b.runs)
        else:
            yield Change("domains", name, _summary(a) if a else None, _summary(b) if b else None)


def _summary(domain: Domain) -> str:
    return (f"{domain.translation}, {domain.levels} levels, {domain.table_pages} table pages, {show.size(domain.mapped)} mapped for "
            f"{show.devices(domain.devices)}")


def diff_faults(left: Iterable[Fault], right: Iterable[Fault]) -> Records[Change]:
    """Faults that only one side recorded."""
    pairs = _pairs(left, right, _fault_name)
    return _kept(Change("faults", name, a.text if a else None, b.text if b else None) for name, a, b in pairs if not (a and b))


def _fault_name(fault: Fault) -> str:
    return f"{format_bdf(fault.source)} {fault.access} at {fault.address:#x}, reason {fault.reason:#x}, {_unit_name(fault.unit)}"
