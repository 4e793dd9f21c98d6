"""Whose rights a page map shows: the guest's CPU, each domain with what is cached of it, and devices that no unit translates for."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvcore.inspect.domains import Domain
from hvcore.inspect.format import address
from hvcore.inspect.runs import Runs

from .permissions import UNTRANSLATED
from .selection import domain_key

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["MapLane", "aligned", "lanes_of"]

NOTHING = Runs.of([])


@dataclass(frozen=True)
class MapLane:
    """Who, and their runs; what lies in no run is not mapped.

    Addresses are in `space`: "iova", or "physical" for the guest's CPU (guest-physical) and for devices that are not translated.
    `keys` are the selection's names of the domain, one for each unit that shares it.  `tables` is for a lane of cached translations
    what the tables say now; None: the lane is itself what tables say.  `units` are the register bases of the units that it is of, and
    `translated` says whether they translate.
    """

    name: str
    runs: Runs
    space: str = "physical"
    keys: tuple[str, ...] = ()
    tables: Runs | None = None
    units: tuple[int, ...] = ()
    translated: bool = True


def lanes_of(run: "Run", domains: Iterable[Domain] | None = None) -> list[MapLane]:
    """The lanes of a run, from the guest's CPU down; `domains` are the run's, if they have been read already."""
    return [*_cpu(run), *_domains(run, run.domains if domains is None else domains), *_untranslated(run)]


def _cpu(run: "Run") -> Iterator[MapLane]:
    if len(run.cpu):
        yield MapLane("guest CPU", run.cpu)


def _domains(run: "Run", domains: Iterable[Domain]) -> Iterator[MapLane]:
    """The domains that are enforced, each followed by what units hold cached of it; units that share a table share its lane."""
    on = {unit.base for unit in run.units if unit.translating}
    shared: dict[tuple[int, int, int], list[Domain]] = {}
    for domain in domains:
        if domain.unit in on:
            shared.setdefault((domain.did, domain.root, domain.levels), []).append(domain)
    alike = Counter(did for did, _, _ in shared)
    for (did, root, _), same in shared.items():
        name = f"domain {did}" + (f", table {address(root)}" if alike[did] > 1 else "")
        keys = tuple(domain_key(domain.unit, did) for domain in same)
        yield MapLane(name, same[0].runs, "iova", keys, None, tuple(d.unit for d in same if d.unit is not None))
        yield from _cached(run, name, same)
    yield from _orphans(run, on, {(d.unit, d.did) for same in shared.values() for d in same})


def _cached(run: "Run", name: str, same: list[Domain]) -> Iterator[MapLane]:
    """What the units that share a domain hold of it; one empty lane where they hold nothing."""
    units = {domain.unit for domain in same}
    held = [c for c in run.cached if c.unit in units and c.did == same[0].did]
    for c in held:
        whose = "IOTLB" if len(held) == 1 else f"IOTLB of {address(c.unit)}"
        yield MapLane(f"{name}, cached ({whose})", c.runs, "iova", (domain_key(c.unit, c.did),), same[0].runs)
    if not held:
        yield MapLane(f"{name}, cached (IOTLB)", NOTHING, "iova", (domain_key(same[0].unit, same[0].did),), same[0].runs)


def _orphans(run: "Run", on: set[int], known: set[tuple[int | None, int]]) -> Iterator[MapLane]:
    """Cached translations of domains that are in no table any more: all of them are stale."""
    for c in run.cached:
        if c.unit in on and (c.unit, c.did) not in known:
            yield MapLane(f"domain {c.did}, cached (IOTLB of {address(c.unit)})", c.runs, "iova", (domain_key(c.unit, c.did),), NOTHING)


def _untranslated(run: "Run") -> Iterator[MapLane]:
    """The devices that no unit translates for: they reach all there is."""
    end = max((e.end for e in run.e820.firmware), default=0)
    everything = Runs.of([(0, end, UNTRANSLATED, 0)] if end else [])
    if not len(run.units):
        yield MapLane("all devices", everything)
    for unit in run.units:
        if not unit.translating:
            yield MapLane(f"unit {address(unit.base)}, untranslated", everything, units=(unit.base,), translated=False)


# --- two runs

def aligned(before: "Run", after: "Run") -> Iterator[tuple[MapLane, Runs, Runs]]:
    """The lanes of two runs by name, with the runs of each.

    Where a unit translates in one run only, its domains stand beside everything, for that is what their devices reach in the other.
    """
    old, new = ({lane.name: lane for lane in lanes_of(run)} for run in (before, after))
    for name in {**old, **new}:
        lane = new.get(name) or old[name]
        alone = name not in old or name not in new
        if not (alone and _told_by_domains(lane, (old if name in new else new).values())):
            yield lane, _runs_of(lane, old), _runs_of(lane, new)


def _told_by_domains(lane: MapLane, others: Iterable[MapLane]) -> bool:
    """Whether a lane of a unit that does not translate is told by the other run's domains of that unit."""
    return not lane.translated and any(set(lane.units) & set(other.units) for other in others)


def _runs_of(lane: MapLane, side: dict[str, MapLane]) -> Runs:
    """What a run has of a lane; for a domain of a unit that does not translate there, everything."""
    if lane.name in side:
        return side[lane.name].runs
    return next((other.runs for other in side.values() if not other.translated and set(other.units) & set(lane.units)), NOTHING)
