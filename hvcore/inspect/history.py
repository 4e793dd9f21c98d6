"""What happened to translation since power-on, as it was noted when it happened."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..spec.happening import Happening
from . import format as show
from .records import Column, Record, Records

__all__ = ["Event", "read_history"]


def _ranges(value: object) -> str:
    """Ranges in words."""
    return ", ".join(f"{start:#x}-{end:#x}" for start, end in value) if isinstance(value, tuple) else ""


@dataclass(frozen=True, slots=True, repr=False)
class Event(Record):
    """Something that happened, the `order`-th since power-on.

    `time` is in nanoseconds since power-on.  Where it is `nominal` only the order means something: virtual time stands still while firmware
    and the core run.  `what`: `power-on`, `SRTP`, `SIRTP`, `TE on`, `TE off`, `IRE on`, `IRE off`, `PMEN on`, `PMEN off`, `phase` or
    `guest ready`; `unit` is the register base of the unit it happened to, `address` the table that SRTP or SIRTP latched, `ranges` the
    protected regions (host-physical, half-open) since PMEN on, `phase` the name of the phase that began.  `empty` says of SRTP and TE on
    that no entry of the root table was present at that moment.
    """

    order: int
    time: int
    nominal: bool
    what: str
    unit: int | None = None
    address: int | None = None
    ranges: tuple[tuple[int, int], ...] = ()
    phase: str = ""
    empty: bool = False

    title = "History of translation"
    legend = "time: virtual ns since power-on; where nominal, only the order counts; unit: register base"
    columns = (
        Column("order", lambda e: e.order, right=True), Column("time", lambda e: e.time, right=True),
        Column("nominal", lambda e: e.nominal, show.yes_no), Column("what", lambda e: e.what),
        Column("unit", lambda e: e.unit, show.address, True), Column("address", lambda e: e.address, show.address, True),
        Column("ranges", lambda e: e.ranges, _ranges), Column("phase", lambda e: e.phase),
        Column("empty", lambda e: e.empty, lambda empty: "root table" if empty else ""),
    )


def read_history(happenings: Iterable[Happening], count: int) -> Records[Event]:
    """The newest happenings of a machine, oldest first, of `count` since power-on."""
    newest = list(happenings)
    first = count - len(newest)
    events = [Event(first + i, h.time, h.nominal, h.what, h.unit, h.address, h.ranges, h.phase, h.empty) for i, h in enumerate(newest)]
    return Records(Event, events, note=f"{first} older events are not kept." if first else "")
