"""How a run stands, in words: its outcome, why, how far it is, what is pending, and what to make of it with a button for what to change."""

import html
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as ipw

from hvcore.inspect.advice import Advice, advise
from hvcore.outcome import OUTCOMES
from hvcore.phases import Progress

from .screen import lines_of

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["Verdict"]

COLOURS = {"up": "#009E73", "running": "#E69F00", "stopped": "#0072B2", "looking": "#56B4E9", "off": "#777777"}
BAD = "#D55E00"
"""The edge of the status line; its words say the same."""
MARKS = {"up": "\u2714", "running": "\u2026", "stopped": "\u2016", "looking": "\u2026", "off": "\u25CB"}
"""A sign beside the words."""
TOLD = 3
"""Pieces of advice that are shown."""
OFTEN = 0.2
"""Seconds between two looks at how far a machine is."""


class Verdict(ipw.VBox):
    """The status line, how far it is, the advice, and what is pending; `on_apply(options)` is called when advice is to be followed.

    `can_apply` says whether it can be followed now.
    """

    def __init__(self, on_apply: Callable[[Mapping[str, Any]], None]):
        self._on_apply = on_apply
        self.status, self.progress, self.pending = ipw.HTML(), ipw.HTML(), ipw.HTML()
        self.advice = ipw.VBox()
        self._told: tuple[Advice, ...] = ()
        self._looked, self._can_apply = 0.0, True
        self.progress.layout.display = "none"
        super().__init__([self.status, self.progress, self.pending, self.advice])

    @property
    def can_apply(self) -> bool:
        """Whether the buttons of the advice do something."""
        return self._can_apply

    @can_apply.setter
    def can_apply(self, can: bool) -> None:
        self._can_apply = can
        for button in self.advice.children:
            if isinstance(button, ipw.Button):
                button.disabled = not can

    def say(self, outcome: str, words: str, guest: str = "") -> None:
        """The status line: an outcome or what is being done, which guest it is of, and words."""
        meaning = OUTCOMES.get(outcome, "")
        said = f"{meaning}. {words}" if meaning else words
        mark = f'<span aria-hidden="true">{MARKS.get(outcome, chr(0x2716))}</span> '
        whose = f' <span class="hvlab-runs">{html.escape(guest)}:</span>' if guest else ""
        inside = (f'{mark}<strong class="hvlab-outcome">{html.escape(outcome)}</strong>{whose} '
                  f'<span class="hvlab-why">{html.escape(said)}</span>')
        edge = f"border-left:6px solid {COLOURS.get(outcome, BAD)};padding:4px 10px;overflow-wrap:anywhere"
        self.status.value = _div("hvlab-status", f'<div style="{edge}">{inside}</div>', ' role="status" aria-live="polite"')

    def show_progress(self, name: str, guest: str, far: Progress) -> None:
        """A machine is at work: its phase in the status line, which is read out, and what changes all the time in a line of its own."""
        self.say("running", f"{name}, {guest}: {far.phase or 'at work'}")
        now = time.monotonic()
        if now - self._looked < OFTEN:
            return
        self._looked = now
        counted = f", about {far.instructions / 1e6:,.0f} M instructions" if far.blocks else ""
        line = f'<br><code style="{_ONE_LINE}">{html.escape(lines_of(far.line)[:_LONGEST])}</code>' if far.line.strip() else ""
        self.say_progress(f"{far.virtual_ns / 1e9:.3f} s of virtual time in {far.seconds:.1f} s{counted}", line)

    def say_progress(self, words: str, more: str = "") -> None:
        """How far something is, in words, with HTML behind them; nothing where both are empty."""
        there = bool(words or more)
        self.progress.value = _div("hvlab-progress", f'<div style="padding:0 10px">{html.escape(words)}{more}</div>') if there else ""
        self.progress.layout.display = None if there else "none"

    def say_pending(self, words: str) -> None:
        """What the next boot will change, as HTML."""
        self.pending.value = _div("hvlab-pending", words, ' role="status"')

    def show_run(self, run: "Run", guest: str) -> None:
        """Outcome and advice of a run; `guest` says which guest it has."""
        self.say_progress("")
        self.say(run.outcome, run.why, guest)
        told = tuple(advise(run))[:TOLD]
        if told != self._told:
            self._told = told
            self.advice.children = [row for a in told for row in self._rows(a)]

    def _rows(self, advice: Advice) -> list[ipw.Widget]:
        price = f" &ndash; price: {html.escape(advice.price)}" if advice.price else ""
        words = (f"<strong>{html.escape(advice.what)}</strong><br>Why: {html.escape(advice.why)}<br>"
                 f"To change: <code>{html.escape(advice.change)}</code>{price}")
        told = ipw.HTML(_div("hvlab-advice", f'<div style="padding:4px 16px;overflow-wrap:anywhere">{words}</div>'))
        if not advice.options:
            return [told]
        layout = ipw.Layout(width="auto", margin="0 0 4px 16px", align_self="flex-start")
        button = ipw.Button(description=f"Set {advice.change} and reboot", disabled=not self._can_apply, layout=layout)
        button.on_click(lambda _button: self._on_apply(advice.options))
        return [told, button]

    @property
    def html(self) -> str:
        """The same without a kernel."""
        parts = [self.status, *(c for c in self.advice.children if isinstance(c, ipw.HTML))]
        return "".join(str(part.value) for part in parts)


_ONE_LINE = "display:block;width:0;min-width:100%;white-space:pre;overflow:hidden;text-overflow:ellipsis"
_LONGEST = 300
"""Characters of a console's line that are shown."""


def _div(name: str, inside: str, more: str = "") -> str:
    return f'<div class="{name}" style="line-height:1.4"{more}>{inside}</div>'
