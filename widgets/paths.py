"""Which way each function's DMA goes: through which unit, into which domain, or what else becomes of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from hvcore.inspect.domains import Domain
from hvcore.inspect.format import address, size
from hvcore.inspect.functions import Function
from hvcore.inspect.units import Unit

from .selection import domain_key

__all__ = ["BLOCKED", "EMPTY", "NO_UNIT", "OFF", "UNCOVERED", "Path", "paths_of"]

OFF, BLOCKED, EMPTY = "translation is off", "no context entry: all blocked", "covers no function that is here"
UNCOVERED, NO_UNIT = "no unit covers these", "no remapping unit: every device reaches all memory"
SUMMED_RUNS = 1000
"""Runs of a domain that are summed up in words; a domain with more is told by their number."""


@dataclass(slots=True, eq=False)
class Path:
    """Functions that share a way: a unit (None: none sees them) and a domain; or, without one, what `fate` says.

    `strangers` are requester ids with a context entry here that no function has.
    """

    unit: Unit | None
    domain: Domain | None = None
    fate: str = ""
    functions: list[Function] = field(default_factory=list)
    strangers: tuple[int, ...] = ()

    @property
    def members(self) -> list[int | str]:
        """Whose way it is: the functions' ids, those under which they are seen, and the domain."""
        ids = [i for f in self.functions for i in (f.source, f.requester)]
        key = [domain_key(self.domain.unit, self.domain.did)] if self.domain else []
        return [*dict.fromkeys(ids), *key]

    @property
    def open(self) -> bool:
        """Whether nothing stands between these functions and all memory."""
        return self.fate in (OFF, UNCOVERED, NO_UNIT)

    def __str__(self) -> str:
        count = len(self.functions)
        who = f"{count} function{'' if count == 1 else 's'}" + (f" of unit {address(self.unit.base)}" if self.unit else "")
        return f"{who} in domain {self.domain.did}: {_granted(self.domain)}" if self.domain else f"{who}: {self.fate}"


def paths_of(units: Sequence[Unit], domains: Iterable[Domain], functions: Iterable[Function]) -> list[Path]:
    """The ways that are taken, unit by unit in the order of `units`, those that no unit sees last."""
    by_unit = {unit.base: _of_unit(unit, [d for d in domains if d.unit == unit.base]) for unit in units}
    nowhere = Path(None, fate=UNCOVERED if units else NO_UNIT)
    for f in functions:
        _choose(by_unit.get(f.unit, [nowhere]) if f.unit is not None else [nowhere], f.requester).functions.append(f)
    return [p for ways in by_unit.values() for p in _taken(ways)] + ([nowhere] if nowhere.functions or not units else [])


def _of_unit(unit: Unit, domains: Sequence[Domain]) -> list[Path]:
    """All ways through a unit, the one for those without a domain last."""
    if not unit.translating:
        return [Path(unit, fate=OFF)]
    return [*(Path(unit, domain) for domain in domains), Path(unit, fate=BLOCKED)]


def _choose(ways: Sequence[Path], requester: int) -> Path:
    return next((p for p in ways if p.domain and requester in p.domain.devices), ways[-1])


def _taken(ways: Sequence[Path]) -> Iterator[Path]:
    """The domains, and the last way where some function takes it or there is no other."""
    seen = {f.requester for p in ways for f in p.functions}
    for path in ways[:-1]:
        path.strangers = tuple(i for i in path.domain.devices if i not in seen) if path.domain else ()
        yield path
    last = ways[-1]
    if last.functions or len(ways) == 1:
        last.fate = last.fate if last.functions or last.fate == OFF else EMPTY
        yield last


def _granted(domain: Domain) -> str:
    """What a domain grants, in words."""
    if len(domain.runs) > SUMMED_RUNS:
        return f"{len(domain.runs):,} runs"
    granted: dict[str, int] = {}
    for run in domain.runs:
        granted[run.perm] = granted.get(run.perm, 0) + run.size
    return ", ".join(f"{size(count)} {perm}" for perm, count in granted.items()) or "nothing mapped"
