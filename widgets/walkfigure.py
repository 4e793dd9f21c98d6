"""The way of one request through a unit as a picture: a chain of boxes, each with what was read, and the verdict."""

from textwrap import wrap

from hvcore.inspect.evidence import Place
from hvcore.inspect.explanation import ExplainStep, Explanation

from .drawing import Drawing, Figure, Fill, box_height

__all__ = ["arithmetic", "walk_figure"]

_WIDTH, _LEFT, _GAP, _EDGE = 660.0, 26.0, 14.0, 14.0
_COLUMNS = 96
"""Characters to a line of a box."""
_OUTCOMES = {True: Fill("goes on", "#009E73"), False: Fill("stops", "#D55E00", "x")}
"""The edge of a box."""


def walk_figure(way: Explanation) -> Figure:
    """The steps of `way` from the first to the verdict; addresses are host-physical unless they are said to be an IOVA."""
    drawing = Drawing(_WIDTH)
    y = 8.0
    for number, step in enumerate(way.steps, 1):
        y = _node(drawing, y, [f"{number}. {step.what}", *_lines(step)], step.ok) + _GAP
        drawing.line(_LEFT + 40, y - _GAP, _LEFT + 40, y)
    through = way.reason is None
    y = _node(drawing, y, ["goes through" if through else "blocked", *wrap(way.verdict, _COLUMNS)], through)
    drawing.height = drawing.legend(y + 22, [("edge", list(_OUTCOMES.values()))])
    alt = f"{way.heading}. {_alt(way)}"
    return Figure(way.heading, alt, drawing.svg(way.heading, alt), way._repr_html_())


def _node(drawing: Drawing, y: float, lines: list[str], ok: bool) -> float:
    height = box_height(lines)
    drawing.rect(_LEFT - _EDGE, y, _EDGE, height, _OUTCOMES[ok])
    drawing.box(_LEFT, y, _WIDTH - _LEFT - 4, lines)
    return y + height


def _lines(step: ExplainStep) -> list[str]:
    words = "   ".join(f"{w.name} {w.value:#0{w.width // 4 + 2}x}" for w in step.seen.words)
    return [*([arithmetic(step.seen.place)] if step.seen.place else []), *([words] if words else []), *wrap(step.text, _COLUMNS)]


def arithmetic(place: Place) -> str:
    """How the entry's address comes about."""
    return f"table {place.table:#x} + {place.size} \N{MULTIPLICATION SIGN} index {place.index:#x} = entry {place.address:#x}"


def _alt(way: Explanation) -> str:
    told = "; ".join(f"{i}: {s.what}, {s.text}" for i, s in enumerate(way.steps, 1))
    return f"The unit takes {len(way.steps)} steps. {told}. Verdict: {way.verdict}."
