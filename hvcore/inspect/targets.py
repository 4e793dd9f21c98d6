"""Pages that must not be reached, as sorted ranges, and which parts of them runs of an address space reach."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..spec.paging import PAGE
from .reach import Way
from .runs import I64, U64

__all__ = ["Pieces", "Targets", "reached_pages"]


class Pieces(NamedTuple):
    """Host-physical ranges [low, high) that runs of a way reach, and the number of the run that reaches each."""

    run: I64
    low: I64
    high: I64


@dataclass(frozen=True, slots=True)
class Targets:
    """Host-physical ranges [start, end), ascending and apart from each other."""

    start: I64
    end: I64

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]], pages: Iterable[U64] = ()) -> "Targets":
        """From ranges and from arrays of page addresses, which may overlap and come in any order."""
        rows = [(a, b) for a, b in ranges if a < b]
        single = np.concatenate([np.zeros(0, np.uint64), *pages]).astype(np.int64)
        start = np.concatenate([np.array([a for a, _ in rows], np.int64), single])
        end = np.concatenate([np.array([b for _, b in rows], np.int64), single + PAGE])
        return cls(*_union(start, end))

    def without(self, start: int, end: int) -> "Targets":
        """Without what lies in [start, end)."""
        starts = np.concatenate([self.start, np.maximum(self.start, end)])
        ends = np.concatenate([np.minimum(self.end, start), self.end])
        kept = starts < ends
        return Targets(*_union(starts[kept], ends[kept]))

    @property
    def pages(self) -> int:
        """How many 4 KiB pages they touch."""
        return _pages(self.start, self.end)

    def reached(self, way: Way, need: int) -> Pieces:
        """What of them the runs of a way reach that grant any of the rights `need`."""
        granting = np.flatnonzero(way.rights & np.uint8(need))
        low = way.start[granting].astype(np.int64) + way.offset[granting]
        high = low + (way.end - way.start)[granting].astype(np.int64)
        first = np.searchsorted(self.end, low, "right")
        count = np.maximum(np.searchsorted(self.start, high, "left") - first, 0)
        of = np.repeat(np.arange(len(granting)), count)
        target = np.repeat(first - np.cumsum(count) + count, count) + np.arange(len(of))
        return Pieces(granting[of], np.maximum(low[of], self.start[target]), np.minimum(high[of], self.end[target]))


def reached_pages(pieces: Iterable[Pieces]) -> int:
    """How many 4 KiB pages pieces touch, each counted once."""
    parts = list(pieces)
    if not parts:
        return 0
    return _pages(*_union(np.concatenate([p.low for p in parts]), np.concatenate([p.high for p in parts])))


def _pages(start: I64, end: I64) -> int:
    """Pages of ranges that are apart."""
    first, last = _union(start // PAGE, -(-end // PAGE))
    return int((last - first).sum())


def _union(start: I64, end: I64) -> tuple[I64, I64]:
    """Ranges as ascending ones that are apart."""
    order = np.argsort(start, kind="stable")
    start, end = start[order], np.maximum.accumulate(end[order]) if len(end) else end
    new = np.ones(len(start), np.bool_)
    new[1:] = start[1:] > end[:-1]
    last = np.append(new[1:], True)[:len(start)]
    return start[new], end[last]
