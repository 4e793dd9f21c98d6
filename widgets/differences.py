"""Two runs aligned: memory maps and rights of both, one above the other, and below what the second has gained, lost or changed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from hvcore.inspect.diff import range_changes
from hvcore.inspect.e820 import E820Map
from hvcore.inspect.format import address, size
from hvcore.inspect.records import html_table
from hvcore.inspect.runs import Runs
from hvcore.spec.e820 import type_name

from .drawing import MUTED, Drawing, Figure, Fill, range_part
from .e820 import FILLS as TYPES
from .e820 import LEFT, OTHER, RIGHT, WIDTH, axis
from .permissions import FILLS as RIGHTS
from .permissions import UNTRANSLATED, Lane, Piece, outline, pieces_of
from .scale import Scale, anchors, edges_of, make_scale

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["KINDS", "Subject", "changes_of", "differences_figure", "everything", "subjects_of"]

KINDS = {
    "gained": Fill("+ gained", "#0072B2", "/"),
    "lost": Fill("− lost", "#E69F00", "\\"),
    "changed": Fill("≠ changed", "#CC79A7", "x"),
}
"""What became of a range in the second run.  A range that is not reported, or grants nothing, is there to be gained or lost."""
TOLD = 64
"""Differences of one subject in the table."""
BAR, HEAD, PITCH = 18.0, 22.0, 21.0
NOTHING = Runs.of([])
Bar = tuple[str, list[Piece]]
"""A bar's name and what is drawn of it."""
_GRANTED = {None: "", "-": "", UNTRANSLATED: "rw"}


@dataclass(frozen=True)
class Subject:
    """What is compared: a name, what the first run has of it and what the second has."""

    name: str
    before: Runs
    after: Runs

    @cached_property
    def differences(self) -> Runs:
        """The half-open ranges that differ; their letters are names of `KINDS`."""
        return changes_of(self.before, self.after)


def changes_of(before: Runs, after: Runs) -> Runs:
    """Where two sets of runs differ in what they grant or where they lead; the letters are names of `KINDS`."""
    changes = range_changes("", "", before, after)
    kinds = ((c.start, c.end, _kind(_letters(c.left), _letters(c.right))) for c in changes)
    return Runs.of((start, end, kind, 0) for start, end, kind in kinds if kind and start is not None and end is not None)


def _letters(words: str | None) -> str:
    return _GRANTED.get(words, words or "")


def _kind(left: str, right: str) -> str:
    """What became of a range with these rights or this type; "" where it is the same to whoever uses it."""
    if left == right:
        return ""
    if not left or (set(left) < set(right) <= set("rwx")):
        return "gained"
    return "lost" if not right or (set(right) < set(left) <= set("rwx")) else "changed"


# --- what is compared

def everything(run: "Run") -> Runs:
    """What a device reaches that no unit translates for: all there is."""
    end = max((e.end for e in run.e820.firmware), default=0)
    return Runs.of([(0, end, UNTRANSLATED, 0)] if end else [])


def subjects_of(left: "Run", right: "Run") -> list[Subject]:
    """The memory maps, the guest's CPU, and the devices of each unit; units whose devices fare alike are one subject."""
    maps = [Subject(f"E820 of the {who}", _map(left.e820, who), _map(right.e820, who)) for who in ("firmware", "guest")]
    return [*maps, Subject("guest CPU", left.cpu, right.cpu), *_joined(_devices(left, right))]


def _map(e820: E820Map, who: str) -> Runs:
    return Runs.of((row.start, row.end, type_name(kind), 0) for row in e820 if (kind := getattr(row, who)) is not None)


def _devices(left: "Run", right: "Run") -> Iterator[Subject]:
    """Unit by unit, domain by domain; where a unit translates in one run only, each domain beside everything."""
    bases = dict.fromkeys(unit.base for run in (left, right) for unit in run.units)
    for base in bases:
        a, b = _domains(left, base), _domains(right, base)
        for did in sorted({*(a or ()), *(b or ())}) or [None]:
            name = f"unit {address(base)}" + ("" if did is None else f", domain {did}")
            yield Subject(name, _runs(a, did, left), _runs(b, did, right))
    if not bases:
        yield Subject("all devices", everything(left), everything(right))


def _domains(run: "Run", base: int) -> Mapping[int | None, Runs] | None:
    """What each domain of a unit grants; None where the unit is not there or does not translate."""
    on = any(unit.base == base and unit.translating for unit in run.units)
    return {d.did: d.runs for d in run.domains if d.unit == base} if on else None


def _runs(domains: Mapping[int | None, Runs] | None, did: int | None, run: "Run") -> Runs:
    return everything(run) if domains is None else domains.get(did, NOTHING)


def _joined(subjects: Iterable[Subject]) -> list[Subject]:
    out: list[Subject] = []
    for subject in subjects:
        same = next((i for i, s in enumerate(out) if s.before == subject.before and s.after == subject.after), None)
        if same is None:
            out.append(subject)
        else:
            out[same] = Subject(f"{out[same].name}; {subject.name}", subject.before, subject.after)
    return out


# --- the figure

def differences_figure(left: "Run", right: "Run", *, scale: str = "compressed") -> Figure:
    """What is different in `right`, range by range, each subject with three bars over one axis of addresses.

    The axis is IOVA for devices, guest-physical for the CPU and host-physical for the memory maps.
    """
    subjects = subjects_of(left, right)
    lanes = [[Lane("before", s.before), Lane("after", s.after), Lane("difference", s.differences)] for s in subjects]
    ranges = list(dict.fromkeys(r for rows in lanes for r in outline(rows)))
    place = make_scale(scale, ranges, LEFT, RIGHT)
    drawn = [[(lane.name, list(pieces_of(lane, place))) for lane in rows] for rows in lanes]
    drawing = Drawing(WIDTH)
    top = drawing.legend(18, [("Difference:", list(KINDS.values())), ("E820:", _used(TYPES.values(), drawn[:2])),
                              ("Permission:", _used(RIGHTS.values(), drawn[2:]))]) + 4
    for subject, rows in zip(subjects, drawn, strict=True):
        top = _subject(drawing, place, subject.name, rows, top)
    axis(drawing, place, edges_of(ranges), top + 6)
    drawing.height = top + 52
    drawing.text(LEFT, top + 48, f"address, {scale} scale", size=11, colour=MUTED)
    title = f"Differences: run {left.number} and run {right.number}"
    alt = "; ".join(_words(s) for s in subjects)
    return Figure(title, alt, drawing.svg(title, alt, anchors(place, edges_of(ranges))), _table(subjects))


def _fill(perm: str) -> Fill:
    """How a right, a type or a difference is filled."""
    types = {type_name(kind): fill for kind, fill in TYPES.items()}
    return KINDS.get(perm) or RIGHTS.get(perm) or types.get(perm, OTHER)


def _used(fills: Iterable[Fill], drawn: Iterable[Iterable[Bar]]) -> list[Fill]:
    """Those of `fills` that occur, each once."""
    used = {_fill(piece.perm) for rows in drawn for _, pieces in rows for piece in pieces}
    return [fill for fill in dict.fromkeys(fills) if fill in used]


def _subject(drawing: Drawing, place: Scale, name: str, rows: Sequence[Bar], top: float) -> float:
    """One subject's bars below its name; returns where the next begins."""
    same = not rows[-1][1]
    drawing.text(LEFT, top + 15, name + (": no difference" if same else ""), bold=True)
    shown = [("both", rows[0][1])] if same else rows
    for i, (who, pieces) in enumerate(shown):
        y = top + HEAD + PITCH * i
        drawing.text(LEFT - 8, y + 13, who, anchor="end", size=11)
        drawing.line(LEFT, y + BAR / 2, RIGHT, y + BAR / 2, dashed=True)
        for piece in pieces:
            _piece(drawing, place, piece, f"{name}, {who}: {piece.tip}", y)
    return top + HEAD + PITCH * len(shown) + 8


def _piece(drawing: Drawing, place: Scale, piece: Piece, tip: str, y: float) -> None:
    x, end = place(piece.start), place(piece.end)
    drawing.rect(x, y, end - x, BAR, _fill(piece.perm), tip, part=range_part(piece.start, piece.end))
    if piece.perm in KINDS and end - x > 16:
        drawing.badge((x + end) / 2, y + 13, KINDS[piece.perm].name[0])


# --- words

def _words(subject: Subject) -> str:
    sums: dict[str, int] = {}
    for run in subject.differences:
        sums[run.perm] = sums.get(run.perm, 0) + run.size
    return f"{subject.name}: " + (", ".join(f"{size(sums[kind])} {kind}" for kind in KINDS if kind in sums) or "no difference")


def _table(subjects: Sequence[Subject]) -> str:
    rows = []
    for s in subjects:
        differences = s.differences
        rows += [[s.name, address(r.start), address(r.end), size(r.size), r.perm, _at(s.before, r.start), _at(s.after, r.start)]
                 for r in differences[:TOLD]]
        if len(differences) > TOLD:
            rows.append([s.name, f"and {len(differences) - TOLD:,} more", "", "", "", "", ""])
    labels = ["of", "start", "end", "size", "difference", "before", "after"]
    return html_table("Differences  (half-open)", labels, rows, [False, True, True, True, False, False, False])


def _at(runs: Runs, start: int) -> str:
    run = runs.at(start)
    return "nothing" if run is None else run.perm
