"""What the guest's CPU and every domain may do where: one lane each over one axis of addresses."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from hvcore.inspect.format import address, size
from hvcore.inspect.records import html_table
from hvcore.inspect.runs import Runs
from hvcore.spec.e820 import E820Entry, type_name

from .drawing import MUTED, Drawing, Figure, Fill
from .e820 import LEFT, RIGHT, WIDTH, axis, fill_of, legend_fills
from .scale import Scale, edges_of, make_scale

__all__ = ["FILLS", "UNTRANSLATED", "Lane", "permissions_figure"]

FILLS = {
    "rw": Fill("read and write", "#009E73"),
    "r": Fill("read only", "#56B4E9", "\\"),
    "w": Fill("write only", "#E69F00", "/"),
    "rwx": Fill("read, write, execute", "#0072B2", "."),
    "rx": Fill("read, execute", "#0072B2", "\\"),
    "-": Fill("entry without access", "#CC79A7", "x"),
    "untranslated": Fill("not translated: everything allowed", "#D55E00", "-"),
    "mixed": Fill("several within one pixel", "#999999", "+"),
}
UNTRANSLATED = "untranslated"
"""The permission of a lane whose devices no unit translates for."""

FEW = 1500
"""Up to so many runs a lane is drawn run by run, beyond it pixel by pixel."""
LANE, PITCH = 30.0, 42.0


@dataclass(frozen=True, slots=True)
class Lane:
    """Who, and their runs.  What lies in no run is not mapped."""

    name: str
    runs: Runs


@dataclass(frozen=True, slots=True)
class Piece:
    """What is drawn as one rectangle: addresses, how it is filled, and what is said of it."""

    start: int
    end: int
    perm: str
    tip: str


def permissions_figure(lanes: Sequence[Lane], guest: Sequence[E820Entry] = (), vmm: tuple[int, int] | None = None, *,
                       scale: str = "compressed") -> Figure:
    """Every lane over one axis, with the guest's E820 above them for orientation and the VMM's half-open range across all.

    A lane's axis is IOVA for a domain and guest-physical for the CPU; the VMM's range is host-physical, the same numbers where
    offsets are 0.
    """
    ranges = [(e.start, e.end) for e in guest] + ([vmm] if vmm else []) + [r for lane in lanes for r in _outline(lane)]
    place = make_scale(scale, ranges, LEFT, RIGHT)
    pieces = [list(_pieces(lane, place)) for lane in lanes]
    used = {piece.perm for row in pieces for piece in row}
    drawing = Drawing(WIDTH)
    top = drawing.legend(18, [("Permission:", [fill for perm, fill in FILLS.items() if perm in used]), ("E820:", legend_fills(guest))]) + 10
    bottom = top + PITCH * (len(lanes) + 1)
    _lane(drawing, place, "E820", [], top)
    for e in guest:
        tip = f"{address(e.start)}-{address(e.end)} {type_name(e.type)}, {size(e.size)}"
        drawing.rect(place(e.start), top + 6, place(e.end) - place(e.start), LANE - 12, fill_of(e.type), tip)
    for i, (lane, row) in enumerate(zip(lanes, pieces, strict=True), 1):
        _lane(drawing, place, lane.name, row, top + PITCH * i)
    if vmm:
        _frame(drawing, place, vmm, top - 8, bottom - top + 4)
    axis(drawing, place, edges_of(ranges), bottom + 2)
    drawing.height = bottom + 48
    drawing.text(LEFT, bottom + 44, f"address, {scale} scale; a dashed line is not mapped", size=11, colour=MUTED)
    title = "Permissions: who may read and write which pages"
    alt = "; ".join(_words(lane, vmm) for lane in lanes) or "nobody may do anything: there is no lane"
    return Figure(title, alt, drawing.svg(title, alt), _table(lanes))


def _frame(drawing: Drawing, place: Scale, vmm: tuple[int, int], top: float, height: float) -> None:
    """The VMM's range, across all lanes."""
    x, end = place(vmm[0]), place(vmm[1])
    drawing.rect(x, top, end - x, height, None, f"VMM {address(vmm[0])}-{address(vmm[1])}", dashed=True)
    drawing.text((x + end) / 2, top - 4, "VMM", size=11, anchor="middle", bold=True)


def _outline(lane: Lane) -> Iterator[tuple[int, int]]:
    """The ranges that shape the axis: each run, or only the whole where there are many."""
    if len(lane.runs) <= 64:
        yield from ((r.start, r.end) for r in lane.runs)
    else:
        yield lane.runs[0].start, lane.runs[-1].end


def _lane(drawing: Drawing, place: Scale, name: str, pieces: Iterable[Piece], top: float) -> None:
    drawing.text(LEFT - 8, top + LANE / 2 + 4, name, anchor="end", bold=True)
    drawing.line(LEFT, top + LANE / 2, RIGHT, top + LANE / 2, dashed=True)
    for piece in pieces:
        x, end = place(piece.start), place(piece.end)
        drawing.rect(x, top, end - x, LANE, FILLS.get(piece.perm, FILLS["mixed"]), f"{name}: {piece.tip}")
        if end - x > 7 * len(piece.perm) + 12:
            drawing.badge((x + end) / 2, top + LANE / 2 + 4, piece.perm)


def _pieces(lane: Lane, place: Scale) -> Iterator[Piece]:
    if len(lane.runs) <= FEW:
        for r in lane.runs:
            moved = f", to host-physical {address(r.start + r.offset)}" if r.offset else ""
            yield Piece(r.start, r.end, r.perm, f"{address(r.start)}-{address(r.end)} {r.perm}, {size(r.end - r.start)}{moved}")
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
    """Whether any run leads into the VMM's memory with a right."""
    if not vmm:
        return ""
    start, end = (edge.astype(np.int64) + runs.offset for edge in (runs.start, runs.end))
    into = ((start < vmm[1]) & (end > vmm[0]) & runs.granting).any()
    return ", the VMM's memory among it" if into else ", nothing of the VMM's memory"


def _table(lanes: Sequence[Lane]) -> str:
    rows = [[lane.name, address(r.start), address(r.end), size(r.end - r.start), r.perm, address(r.start + r.offset)]
            for lane in lanes for r in lane.runs[:64]]
    rows += [[lane.name, f"and {len(lane.runs) - 64:,} more runs", "", "", "", ""] for lane in lanes if len(lane.runs) > 64]
    labels = ["who", "start", "end", "size", "permission", "to host-physical"]
    return html_table("Permissions  (half-open)", labels, rows, [False, True, True, True, False, True])
