"""What devices could reach from power-on to now: a lane for each unit, with the phases of the boot above and the events between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import log2
from textwrap import wrap

from hvcore.inspect.format import address, size
from hvcore.inspect.history import Event
from hvcore.inspect.records import html_table
from hvcore.inspect.window import UnitThen
from hvcore.phases import doing

from .drawing import MUTED, ROW, Drawing, Figure, Fill, Part, range_part

__all__ = ["AXES", "FILLS", "Now", "Stretch", "exposure", "stretches", "timeline_figure"]

AXES = ("even", "time")
"""`even` gives each event the same room; `time` is the machine's virtual time by its logarithm."""

FILLS = {
    "early": Fill("everything; the VMM is not there yet", "#E69F00", "/"),
    "open": Fill("the VMM's memory, too", "#D55E00", "x"),
    "partly": Fill("everything but protected memory (PMEN)", "#F0E442", "\\"),
    "tables": Fill("what the domains' tables grant", "#009E73"),
    "nothing": Fill("nothing", "#56B4E9", "-"),
}
_MEANING = {"even": "number of the event; each has the same room",
            "time": "virtual time since power-on, logarithmic; until the guest runs it is nominal: only the order counts"}
PHASES = (Fill("phase", "#E8E8E8"), Fill("next phase", "#CFCFCF"))
WIDTH, LEFT, RIGHT, BAR, PITCH, PHASE_BAR = 980.0, 126.0, 968.0, 30.0, 52.0, 24.0
LABEL, LETTERS = 110.0, 130
"""Width of a unit's label, letters of a line of words."""
_TOLD_FIRST = ("TE on", "TE off", "PMEN on", "PMEN off")
"""Events whose names go before others' where there is not room for all."""


@dataclass(frozen=True, slots=True)
class Now:
    """What the tables of a unit grant now: how much or `nothing`, the same in words, and whether some of the VMM's memory is among it."""

    short: str
    words: str
    exposed: bool = False


@dataclass(frozen=True, slots=True)
class Stretch:
    """From event number `first` to event number `last` (None: until now) devices of a unit could reach `words`, in `short` so much;
    `state` is of `FILLS`, `root` the root table that decided it (host-physical, None: none did)."""

    first: int
    last: int | None
    state: str
    words: str
    short: str
    root: int | None = None


def stretches(events: Sequence[Event], unit: int, ram: int, vmm: tuple[int, int] | None, now: Now | None = None) -> list[Stretch]:
    """What the devices of `unit` (register base) could reach, from the first event on.

    `ram` is how much memory the machine has, in bytes; `vmm` the core's half-open host-physical range; `now` what the tables grant
    now: what they granted in an earlier stretch is not kept.
    """
    state = UnitThen()
    out: list[Stretch] = []
    for event in events:
        state = state.after(event, unit)
        kind, words, short = _reach(state, ram, vmm)
        root = state.root if state.translating else None
        if not out or (out[-1].state, out[-1].words, out[-1].root) != (kind, words, root):
            out = [*out[:-1], *(replace(s, last=event.order) for s in out[-1:]), Stretch(event.order, None, kind, words, short, root)]
    if out and out[-1].state in ("tables", "nothing") and now:
        kind = "open" if now.exposed else "nothing" if now.short == "nothing" else "tables"
        out[-1] = replace(out[-1], words=now.words, short=now.short, state=kind)
    return out


def _reach(state: UnitThen, ram: int, vmm: tuple[int, int] | None) -> tuple[str, str, str]:
    """A state as one of `FILLS`, in words, and how much it is."""
    if state.translating and state.empty:
        return "nothing", "nothing: the root table was empty when translation was switched on", "nothing"
    if state.translating:
        return "tables", FILLS["tables"].name, "by tables"
    exposed = bool(vmm) and state.opens(vmm or (0, 0))
    if state.protected:
        kept = sum(end - start for start, end in state.protected)
        among = "" if not state.laid or not vmm else ", the VMM's memory among it" if exposed else ", the VMM not among it"
        return "open" if exposed else "partly", f"everything but {size(kept)} protected{among}", f"all but {size(kept)}"
    if exposed:
        return "open", f"everything ({size(ram)}), the VMM's memory among it", size(ram)
    return "early", f"everything ({size(ram)})", size(ram)


# --- the figure

def timeline_figure(events: Sequence[Event], units: Sequence[int], ram: int, vmm: tuple[int, int] | None = None,
                    now: Mapping[int, Now] | None = None, *, axis: str = "even") -> Figure:
    """The lanes over one axis of time.

    `units` are register bases; `ram`, `vmm` and `now` (by register base) are as for `stretches`; `axis` is one of `AXES`.  Raises
    ValueError for another axis.
    """
    if axis not in AXES:
        raise ValueError(f"no axis named {axis!r}: choose one of {', '.join(AXES)}")
    lanes = {unit: stretches(events, unit, ram, vmm, (now or {}).get(unit)) for unit in units}
    place = _places(events, axis)
    drawing = Drawing(WIDTH)
    used = {s.state for lane in lanes.values() for s in lane}
    told = exposure(lanes, events) if vmm else []
    top = drawing.legend(_say(drawing, told, 18), [("Devices reach:", [fill for state, fill in FILLS.items() if state in used])]) + 8
    top = _phases(drawing, events, place, top)
    for unit, lane in lanes.items():
        _lane(drawing, unit, lane, [e for e in events if e.unit == unit], place, top, vmm)
        top += PITCH
    _axis(drawing, events, place, top + 4, axis)
    drawing.height = top + 52
    title = "Protection window: what devices could reach since power-on"
    story = "; ".join(f"unit {address(unit)}: {_story(lane, events)}" for unit, lane in lanes.items()) or "there is no remapping unit"
    alt = " ".join([*told, story])
    return Figure(title, alt, drawing.svg(title, alt), _table(lanes, events))


def _places(events: Sequence[Event], axis: str) -> dict[int, float]:
    """Where each event is, by its number; after the last there is room for what lasts until now."""
    if axis == "even":
        return {e.order: LEFT + (RIGHT - LEFT) * i / len(events) for i, e in enumerate(events)}
    full = log2(1 + max((e.time for e in events), default=0) / 1000) or 1
    return {e.order: LEFT + 0.9 * (RIGHT - LEFT) * log2(1 + e.time / 1000) / full for e in events}


def _end(place: Mapping[int, float], last: int | None) -> float:
    return RIGHT if last is None else place[last]


def _phases(drawing: Drawing, events: Sequence[Event], place: Mapping[int, float], top: float) -> float:
    """The phases as a band of numbered pieces, their names below; returns where the lanes begin."""
    phases = [e for e in events if e.what == "phase"]
    drawing.text(LEFT - 8, top + PHASE_BAR / 2 + 4, "phases", anchor="end", bold=True)
    ends = [*(place[e.order] for e in phases[1:]), RIGHT]
    for i, (event, end) in enumerate(zip(phases, ends, strict=False), 1):
        x = place[event.order]
        drawing.rect(x, top, end - x, PHASE_BAR, PHASES[i % 2], f"phase {i}, {event.phase}: {doing(event.phase)}")
        if end - x >= 9:
            drawing.text((x + end) / 2, top + PHASE_BAR / 2 + 4, str(i), anchor="middle", size=11, colour="#111")
    return _keys(drawing, [f"{i} {e.phase}" for i, e in enumerate(phases, 1)], top + PHASE_BAR + 16) + 24


def _keys(drawing: Drawing, names: Sequence[str], y: float) -> float:
    """Names in lines; returns the last line's baseline."""
    x = LEFT
    for name in names:
        room = 6.6 * len(name) + 16
        if x + room > RIGHT:
            x, y = LEFT, y + 16
        drawing.text(x, y, name, size=11, colour=MUTED)
        x += room
    return y


def _say(drawing: Drawing, sentences: Sequence[str], y: float) -> float:
    """Sentences in lines as wide as the drawing, from baseline `y`; returns the baseline after them."""
    for sentence in sentences:
        for i, line in enumerate(wrap(sentence, LETTERS)):
            drawing.text(8 if i == 0 else 20, y, line, bold=True)
            y += 18
    return y + 4 if sentences else y


def _stands_for(s: Stretch, unit: int, vmm: tuple[int, int] | None) -> Part:
    """What a stretch stands for: the core's memory where that is open, the root table where one decides, else the unit's registers."""
    if s.state == "open" and vmm:
        return range_part(*vmm)
    return range_part(s.root, s.root + 4096) if s.root is not None else range_part(unit, unit + 4096)


def _lane(drawing: Drawing, unit: int, lane: Sequence[Stretch], events: Sequence[Event], place: Mapping[int, float], top: float,
          vmm: tuple[int, int] | None) -> None:
    """A unit's stretches as a bar, with its events above."""
    drawing.row(LEFT - 8 - LABEL, top + (BAR - ROW) / 2, LABEL, address(unit), f"registers of the unit at {address(unit)}",
                range_part(unit, unit + 4096))
    for s in lane:
        x, end = place[s.first], _end(place, s.last)
        drawing.rect(x, top, end - x, BAR, FILLS[s.state], f"unit {address(unit)}: {s.words}", part=_stands_for(s, unit, vmm))
        shown = next((words for words in (s.words, s.short) if end - x > 7 * len(words) + 12), "")
        if shown:
            drawing.badge((x + end) / 2, top + BAR / 2 + 4, shown)
    taken: list[tuple[float, float]] = []
    for event in sorted(events, key=lambda e: e.what not in _TOLD_FIRST):
        x, room = place[event.order], 6.4 * len(event.what) + 6
        drawing.line(x, top - 12, x, top, colour=MUTED)
        if x + room < WIDTH and all(x + room <= start or end <= x for start, end in taken):
            drawing.text(x + 3, top - 4, event.what, size=10, colour=MUTED)
            taken.append((x, x + room))


def _axis(drawing: Drawing, events: Sequence[Event], place: Mapping[int, float], y: float, axis: str) -> None:
    """A line with numbers of events or times below it, as many as fit, and what it means."""
    drawing.line(LEFT, y, RIGHT, y)
    right = 0.0
    for event in events:
        x, words = place[event.order], str(event.order) if axis == "even" else duration(event.time)
        half = 3.4 * len(words)
        if x - half >= right:
            drawing.line(x, y, x, y + 5)
            drawing.text(x, y + 17, words, size=10, anchor="middle")
            right = x + half + 10
    drawing.text(LEFT, y + 38, _MEANING[axis], size=11, colour=MUTED)


def duration(ns: int) -> str:
    """Nanoseconds in the largest unit that fits: `6.003 ms`."""
    for unit, name in ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs")):
        if ns >= unit:
            return f"{ns / unit:.4g} {name}"
    return f"{ns} ns"


# --- words

def exposure(lanes: Mapping[int, Sequence[Stretch]], events: Sequence[Event]) -> list[str]:
    """For how long, or in which phases, the core's memory was open to devices: a sentence for each unit, one for units that were alike."""
    told: dict[str, list[str]] = {}
    for unit, lane in lanes.items():
        told.setdefault(_exposed(lane, events), []).append(address(unit))
    return [f"Behind {'unit' if len(units) == 1 else 'units'} {', '.join(units)} {words}" for words, units in told.items()]


def _exposed(lane: Sequence[Stretch], events: Sequence[Event]) -> str:
    windows = [list(group) for state, group in groupby(lane, lambda s: s.state) if state == "open"]
    if not windows:
        return "the core's memory was never open to devices once its code and key lay in it."
    return "the core's memory was open to devices " + "; and again ".join(_window(w[0].first, w[-1].last, events) for w in windows) + "."


def _window(first: int, last: int | None, events: Sequence[Event]) -> str:
    """From event number `first` to event number `last` (None: until now) in words: phases, and time where time is not nominal."""
    began = next(e for e in events if e.order == first)
    ended = next((e for e in events if e.order == last), None)
    if ended is None:
        return f"from {_at(began)} on, and is open now"
    if not began.nominal and not ended.nominal:
        return f"for {duration(ended.time - began.time)} of virtual time, from {_at(began)} to {_at(ended)}"
    phases = [e for e in events if e.what == "phase" and e.order < ended.order]
    begun = max((i for i, e in enumerate(phases) if e.order <= began.order), default=0)
    named = [e.phase for e in phases[begun:]]
    which = "the phase" if len(named) == 1 else f"{len(named)} phases of the boot:"
    return f"in {which} {', '.join(named)}, until {ended.phase or ended.what}"


def _at(event: Event) -> str:
    return f"the phase {event.phase}" if event.phase else f"{event.what} (event {event.order})"


def _story(lane: Sequence[Stretch], events: Sequence[Event]) -> str:
    names = {e.order: _name(e) for e in events}
    return ", ".join((f"since {names[s.first]}" if s.last is None else f"from {names[s.first]} to {names[s.last]}") + f": {s.words}"
                     for s in lane)


def _name(event: Event) -> str:
    return f"{event.what} {event.phase}" if event.phase else event.what


def _table(lanes: Mapping[int, Sequence[Stretch]], events: Sequence[Event]) -> str:
    names = {e.order: f"{e.order} {_name(e)}" for e in events}
    rows = [[address(unit), names[s.first], "now" if s.last is None else names[s.last], s.words]
            for unit, lane in lanes.items() for s in lane]
    labels = ["unit", "from event", "to event", "reachable by DMA"]
    reached = html_table("What devices could reach", labels, rows, [True, False, False, False])
    told = [[str(e.order), duration(e.time), "nominal" if e.nominal else "", e.what, address(e.unit),
             address(e.address) or ", ".join(f"{address(a)}-{address(b)}" for a, b in e.ranges), e.phase] for e in events]
    labels = ["event", "time", "", "what", "unit", "table or protected", "phase"]
    return reached + html_table("Events", labels, told, [True, True, False, False, True, False, False])
