"""What the guest's CPU and every domain may do where: one lane each over one axis of addresses."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray

from hvcore.inspect.format import address, size
from hvcore.inspect.records import html_table
from hvcore.inspect.runs import Runs
from hvcore.spec.e820 import E820Entry, type_name

from .drawing import MUTED, Drawing, Figure, Fill, range_part
from .e820 import DIFFERENT, LEFT, RIGHT, WIDTH, axis, fill_of, legend_fills, mark_ranges
from .scale import Scale, anchors, edges_of, make_scale

__all__ = ["FILLS", "UNTRANSLATED", "Lane", "Piece", "outline", "permissions_figure", "pieces_of", "reached"]

FILLS = {
    "rw": Fill("read and write", "#009E73"),
    "r": Fill("read only", "#56B4E9", "\\"),
    "w": Fill("write only", "#E69F00", "/"),
    "rwx": Fill("read, write, execute", "#0072B2", "."),
    "rx": Fill("read, execute", "#0072B2", "\\"),
    "-": Fill("entry without access", "#CC79A7", "x"),
    "one page": Fill("one and the same page everywhere", "#F0E442", "|"),
    "untranslated": Fill("not translated: everything allowed", "#D55E00", "-"),
    "mixed": Fill("several within one pixel", "#999999", "+"),
}
UNTRANSLATED = "untranslated"
"""The permission of a lane whose devices no unit translates for."""

FEW = 1500
"""Up to so many runs a lane is drawn run by run, beyond it pixel by pixel."""
TOLD = 64
"""Runs of a lane in the table."""
LANE, PITCH = 30.0, 42.0
NAME = 15
"""Characters of a lane's name that fit on a line before it."""


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring runs that are one thing to a reader: one run, or `repeats` pages that all lead to the same host-physical page."""

    start: int
    end: int
    perm: str
    target: int
    repeats: int

    @property
    def shown(self) -> str:
        """How it is drawn: by its permission, unless all its pages lead to one page and so to nothing of what lies there."""
        return "one page" if self.repeats > 1 else self.perm

    @property
    def lands(self) -> str:
        """Where it leads, host-physical."""
        return address(self.target) + (", each page" if self.repeats > 1 else "")

    def __str__(self) -> str:
        moved = f", to host-physical {self.lands}" if self.repeats > 1 or self.target != self.start else ""
        return f"{address(self.start)}-{address(self.end)} {self.perm}, {size(self.end - self.start)}{moved}"


@dataclass(frozen=True)
class Lane:
    """Who, and their runs, whose addresses are in `space`: "iova", or "physical".  What lies in no run is not mapped."""

    name: str
    runs: Runs
    space: str = "physical"

    @cached_property
    def firsts(self) -> NDArray[np.int64]:
        """Index of each span's first run."""
        runs = self.runs
        target = runs.start.astype(np.int64) + runs.offset
        new = np.ones(len(runs), bool)
        new[1:] = (runs.start[1:] != runs.end[:-1]) | (runs.rights[1:] != runs.rights[:-1]) | (target[1:] != target[:-1])
        return np.flatnonzero(new)

    @cached_property
    def spans(self) -> list[Span]:
        """The runs, folded where a row of pages leads to one page; of many only the first `FEW`."""
        bounds = [*self.firsts[:FEW + 1].tolist(), len(self.runs)]
        return [self._span(first, after) for first, after in pairwise(bounds)][:FEW]

    def _span(self, first: int, after: int) -> Span:
        run = self.runs[first]
        return Span(run.start, int(self.runs.end[after - 1]), run.perm, run.start + run.offset, after - first)


@dataclass(frozen=True, slots=True)
class Piece:
    """What is drawn as one rectangle: addresses, how it is filled, and what is said of it."""

    start: int
    end: int
    perm: str
    tip: str


def permissions_figure(lanes: Sequence[Lane], guest: Sequence[E820Entry] = (), vmm: tuple[int, int] | None = None, *,
                       scale: str = "compressed", axis_of: Sequence[tuple[int, int]] = (), marks: Sequence[tuple[int, int]] = ()) -> Figure:
    """Every lane over one axis, with the guest's E820 above them for orientation and the VMM's half-open range across all.

    A lane's axis is IOVA for a domain and guest-physical for the CPU; the VMM's range is host-physical, the same numbers where
    offsets are 0.  `axis_of` are more half-open ranges for which the axis has room, `marks` those that are marked as different.
    """
    ranges = [*outline(lanes, guest, vmm), *axis_of]
    place = make_scale(scale, ranges, LEFT, RIGHT)
    pieces = [list(pieces_of(lane, place)) for lane in lanes]
    used = {piece.perm for row in pieces for piece in row}
    drawing = Drawing(WIDTH)
    top = drawing.legend(18, [("Permission:", [fill for perm, fill in FILLS.items() if perm in used]), ("E820:", legend_fills(guest)),
                              *([("≠", [DIFFERENT])] if marks else [])]) + 10
    bottom = top + PITCH * (len(lanes) + 1)
    _lane(drawing, place, "E820", [], top)
    for e in guest:
        tip = f"{address(e.start)}-{address(e.end)} {type_name(e.type)}, {size(e.size)}"
        x, part = place(e.start), range_part(e.start, e.end)
        drawing.rect(x, top + 6, place(e.end) - x, LANE - 12, fill_of(e.type), tip, part=part)
    for i, (lane, row) in enumerate(zip(lanes, pieces, strict=True), 1):
        _lane(drawing, place, lane.name, row, top + PITCH * i, lane.space)
    if vmm:
        _frame(drawing, place, vmm, top - 8, bottom - top + 4)
    mark_ranges(drawing, place, marks, bottom - 8)
    axis(drawing, place, edges_of(ranges), bottom + 2)
    drawing.height = bottom + 48
    drawing.text(LEFT, bottom + 44, f"address, {scale} scale; a dashed line is not mapped", size=11, colour=MUTED)
    title = "Permissions: who may read and write which pages"
    alt = "; ".join(_words(lane, vmm) for lane in lanes) or "nobody may do anything: there is no lane"
    return Figure(title, alt, drawing.svg(title, alt, anchors(place, edges_of(ranges))), _table(lanes))


def _frame(drawing: Drawing, place: Scale, vmm: tuple[int, int], top: float, height: float) -> None:
    """The VMM's range, across all lanes."""
    x, end = place(vmm[0]), place(vmm[1])
    drawing.rect(x, top, end - x, height, None, f"VMM {address(vmm[0])}-{address(vmm[1])}", dashed=True)
    drawing.text((x + end) / 2, top - 4, "VMM", size=11, anchor="middle", bold=True)


def outline(lanes: Iterable[Lane], guest: Iterable[E820Entry] = (), vmm: tuple[int, int] | None = None) -> list[tuple[int, int]]:
    """The half-open ranges that shape the axis."""
    return [(e.start, e.end) for e in guest] + ([vmm] if vmm else []) + [r for lane in lanes for r in _outline(lane)]


def _outline(lane: Lane) -> Iterator[tuple[int, int]]:
    """The ranges that shape the axis: each span, or only the whole where there are many."""
    if len(lane.firsts) <= TOLD:
        yield from ((span.start, span.end) for span in lane.spans)
    else:
        yield int(lane.runs.start[0]), int(lane.runs.end[-1])


def _name_lane(drawing: Drawing, name: str, top: float) -> None:
    """The lane's name before it, on as many lines as it takes."""
    lines = wrap(name, NAME) or [""]
    for i, words in enumerate(lines):
        drawing.text(LEFT - 8, top + LANE / 2 + 4 + 12 * (i - (len(lines) - 1) / 2), words, anchor="end", bold=True)


def _lane(drawing: Drawing, place: Scale, name: str, pieces: Iterable[Piece], top: float, space: str = "physical") -> None:
    _name_lane(drawing, name, top)
    drawing.line(LEFT, top + LANE / 2, RIGHT, top + LANE / 2, dashed=True)
    for piece in pieces:
        x, end = place(piece.start), place(piece.end)
        part = {**range_part(piece.start, piece.end), "space": space}
        drawing.rect(x, top, end - x, LANE, FILLS.get(piece.perm, FILLS["mixed"]), f"{name}: {piece.tip}", part=part)
        if end - x > 7 * len(piece.perm) + 12:
            drawing.badge((x + end) / 2, top + LANE / 2 + 4, piece.perm)


def pieces_of(lane: Lane, place: Scale) -> Iterator[Piece]:
    """What is drawn of a lane: each span, or of many what shows at each pixel."""
    if len(lane.firsts) <= FEW:
        yield from (Piece(span.start, span.end, span.shown, str(span)) for span in lane.spans)
    else:
        yield from _pixels(lane.runs, place)


def _pixels(runs: Runs, place: Scale) -> Iterator[Piece]:
    """One piece for each stretch of pixels that show the same; a pixel with several runs of different permission says so."""
    columns = [bisect_left(range(1 << 57), float(x), key=place) for x in range(int(LEFT), int(RIGHT) + 1)]
    shown = []
    for start, end in pairwise(columns):
        first = bisect_right(runs, start, key=lambda r: r.end)
        last = bisect_left(runs, end, key=lambda r: r.start)
        perms = {runs[i].perm for i in range(first, min(last, first + 8))}
        shown.append((start, end, perms.pop() if len(perms) == 1 else "mixed" if perms else ""))
    for perm, group in groupby(shown, key=lambda column: column[2]):
        same = list(group)
        if perm:
            yield Piece(same[0][0], same[-1][1], perm, f"{address(same[0][0])}-{address(same[-1][1])} {_name(perm)}")


def _words(lane: Lane, vmm: tuple[int, int] | None) -> str:
    runs = lane.runs
    totals = np.bincount(runs.rights, runs.end - runs.start, len(runs.letters)).astype(int).tolist()
    sums = [f"{size(total)} {_name(perm)}" for perm, total in zip(runs.letters, totals, strict=True) if total]
    return f"{lane.name}: {', '.join(sums) or 'nothing'}{_reach(runs, vmm)}"


def _name(perm: str) -> str:
    return FILLS[perm].name if perm in FILLS else perm


def _reach(runs: Runs, vmm: tuple[int, int] | None) -> str:
    """How much of the VMM's memory the runs lead into, in words."""
    if not vmm:
        return ""
    among = reached(runs, vmm)
    return f", {size(among)} of the VMM's memory among it" if among else ", nothing of the VMM's memory"


def reached(runs: Runs, memory: tuple[int, int]) -> int:
    """Bytes of a half-open host-physical range that some run leads into with a right."""
    start, end = ((edge.astype(np.int64) + runs.offset)[runs.granting].clip(*memory) for edge in (runs.start, runs.end))
    order = np.argsort(start)
    covered = np.maximum.accumulate(np.append(memory[0], end[order]))
    return int(np.maximum(end[order] - np.maximum(start[order], covered[:-1]), 0).sum())


def _table(lanes: Sequence[Lane]) -> str:
    rows = []
    for lane in lanes:
        rows += [[lane.name, address(s.start), address(s.end), size(s.end - s.start), s.perm, s.lands] for s in lane.spans[:TOLD]]
        if len(lane.firsts) > TOLD:
            rows.append([lane.name, f"and {len(lane.firsts) - TOLD:,} more", "", "", "", ""])
    labels = ["who", "start", "end", "size", "permission", "to host-physical"]
    return html_table("Permissions  (half-open)", labels, rows, [False, True, True, True, False, True])
