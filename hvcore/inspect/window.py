"""The protection window: since the core laid its code and key, when was its memory open to the devices behind a unit?

Read off what the machine noted when it happened (`run.history`).  A unit that translates, and one whose protected memory (PMEN) holds all
of the core's region, counts as closed here: what its tables granted meanwhile was not kept.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..spec.vtd import ADDRESS
from . import format as show
from .history import Event
from .records import Column, Record, Records

__all__ = ["LAID", "Opening", "UnitThen", "read_window"]

LAID = "vmm laid"
"""The phase from whose beginning on there is something of the core's to protect."""


@dataclass(frozen=True, slots=True)
class UnitThen:
    """What the history says of a unit at one moment: translation, the root table latched (host-physical) and whether it was empty when
    translation was switched on, protected ranges (host-physical, None: PMEN off), whether the core has laid anything."""

    translating: bool = False
    root: int | None = None
    empty: bool = False
    protected: tuple[tuple[int, int], ...] | None = None
    laid: bool = False

    def after(self, event: Event, unit: int) -> "UnitThen":
        """The same when `event` has happened, of the unit at register base `unit`."""
        if event.what == "phase":
            return replace(self, laid=self.laid or event.phase == LAID)
        if event.unit == unit and event.what in ("TE on", "TE off"):
            return replace(self, translating=event.what == "TE on", empty=event.empty)
        if event.unit == unit and event.what == "SRTP":
            return replace(self, root=None if event.address is None else event.address & ADDRESS, empty=False)
        if event.unit == unit and event.what in ("PMEN on", "PMEN off"):
            return replace(self, protected=event.ranges if event.what == "PMEN on" else None)
        return self

    def protects(self, region: tuple[int, int]) -> bool:
        """Whether protected memory holds all of a half-open host-physical region."""
        return any(start <= region[0] and region[1] <= end for start, end in self.protected or ())

    def opens(self, region: tuple[int, int]) -> bool:
        """Whether devices behind the unit reach what the core has laid in its region."""
        return self.laid and not self.translating and not self.protects(region)


@dataclass(frozen=True, slots=True, repr=False)
class Opening(Record):
    """A stretch in which devices behind `unit` (register base; None: behind no unit) reached all of the core's memory.

    From event `since` to event `until` of the history (None: it is open now); `phases` are those of the boot that lie within, `began` and
    `ended` the events in words.
    """

    unit: int | None
    since: int
    until: int | None
    began: str
    ended: str
    phases: tuple[str, ...]

    title = "When the core's memory was open"
    legend = "since and until: events of run.history; unit: register base"
    columns = (
        Column("unit", lambda o: o.unit, show.address, True), Column("since", lambda o: o.since, right=True),
        Column("until", lambda o: o.until, right=True), Column("began", lambda o: o.began), Column("ended", lambda o: o.ended),
        Column("phases", lambda o: o.phases, lambda p: ", ".join(p) if isinstance(p, tuple) else ""),
    )

    @property
    def sentence(self) -> str:
        """It in words."""
        where = f"behind the unit at {self.unit:#x}" if self.unit is not None else "behind no unit"
        return f"devices {where} reached it from {self.began} to {self.ended}"


def read_window(history: Sequence[Event], units: Iterable[int], region: tuple[int, int] | None) -> Records[Opening]:
    """Every opening of the core's half-open host-physical `region`, unit by unit (register bases); none before the core laid anything."""
    laid = next((i for i, e in enumerate(history) if e.what == "phase" and e.phase == LAID), None)
    if laid is None or region is None:
        return Records(Opening, (), note="The core has laid nothing in its memory, or what happened then is not kept.")
    bases = list(units)
    found = [o for unit in bases for o in _openings(history, unit, region)] if bases else [_opening(history, laid, None, None)]
    return Records(Opening, found)


def _openings(history: Sequence[Event], unit: int, region: tuple[int, int]) -> Iterator[Opening]:
    state = UnitThen()
    since: int | None = None
    for i, event in enumerate(history):
        state = state.after(event, unit)
        if since is not None and not state.opens(region):
            yield _opening(history, since, i, unit)
            since = None
        elif since is None and state.opens(region):
            since = i
    if since is not None:
        yield _opening(history, since, None, unit)


def _opening(history: Sequence[Event], since: int, until: int | None, unit: int | None) -> Opening:
    phases = tuple(e.phase for e in history[since:until] if e.what == "phase")
    ended = "now" if until is None else _words(history[until])
    return Opening(unit, history[since].order, None if until is None else history[until].order, _words(history[since]), ended, phases)


def _words(event: Event) -> str:
    return f"{event.what} {event.phase}" if event.phase else event.what
