"""Memory maps side by side: what firmware reports and what the guest is told."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..spec.e820 import E820Entry, type_name
from . import format as show
from .records import Column, Record, Records

__all__ = ["E820Map", "E820Row", "type_at"]


def _type(value: object) -> str:
    return type_name(value) if isinstance(value, int) else "not reported"


@dataclass(frozen=True, slots=True, repr=False)
class E820Row(Record):
    """The half-open host-physical range [start, end) with the type that each map gives it; None where a map says nothing of it."""

    start: int
    end: int
    firmware: int | None
    guest: int | None

    title = "E820"
    legend = "half-open; `not reported`: in no entry of that map"
    columns = (
        Column("start", lambda r: r.start, show.address, True), Column("end", lambda r: r.end, show.address, True),
        Column("size", lambda r: r.end - r.start, show.size, True), Column("firmware", lambda r: r.firmware, _type),
        Column("guest", lambda r: r.guest, _type), Column("changed", lambda r: r.changed, lambda v: "changed" if v else ""),
    )

    @property
    def changed(self) -> bool:
        """Whether the guest is told something else than firmware says."""
        return self.firmware != self.guest


class E820Map(Records[E820Row]):
    """Two maps as rows that cover both; `firmware` and `guest` are the entries as they are in memory, in their order."""

    def __init__(self, firmware: Iterable[E820Entry], guest: Iterable[E820Entry] = ()):
        self.firmware, self.guest = tuple(firmware), tuple(guest)
        super().__init__(E820Row, _rows(self.firmware, self.guest))

    def to_json(self) -> Any:
        """`firmware` and `guest`, each a list of start, end (half-open) and type number, in the maps' own order."""
        return {name: [{"start": e.start, "end": e.end, "type": e.type} for e in entries]
                for name, entries in (("firmware", self.firmware), ("guest", self.guest))}


def type_at(entries: Iterable[E820Entry], address: int) -> int | None:
    """The type number that a map gives an address; where entries overlap the stricter (higher) one, None where none covers it."""
    return max((e.type for e in entries if e.start <= address < e.end), default=None)


def _rows(firmware: tuple[E820Entry, ...], guest: tuple[E820Entry, ...]) -> Iterator[E820Row]:
    """Rows between all edges of both maps; what neither map reports is left out."""
    edges = sorted({edge for e in (*firmware, *guest) for edge in (e.start, e.end) if e.start < e.end})
    for start, end in pairwise(edges):
        row = E820Row(start, end, type_at(firmware, start), type_at(guest, start))
        if row.firmware is not None or row.guest is not None:
            yield row
