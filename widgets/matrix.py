"""Every attack under every policy as a grid: a cell is chosen by pointer or keys, its evidence is beneath, the other views follow."""

import html
import time
from collections.abc import Callable, Iterable
from typing import Any

import traitlets

from hvcore.attack.result import VERDICTS
from hvcore.inspect.matrix import MARKS, Cell, Matrix
from hvcore.inspect.records import html_table
from hvcore.vmm.config import POLICIES

from .drawing import Drawing, Figure
from .evidence import VERDICT_FILLS, attack_words, evidence_html, policy_words, wire_attack
from .selection import Selection
from .view import View, module, style

__all__ = ["MatrixView"]

NOTHING = "Nothing has been tried yet."
OFTEN = 0.2
"""Seconds between two updates of the browser while cells come."""
LEFT, COLUMN, ROW, HEAD = 132.0, 104.0, 26.0, 34.0
"""Places of the picture."""


class MatrixView(View):
    """A `Matrix`, or cells as they come (`begin`, `add`, `end`).  Choosing a cell shows its evidence and sets `selection`.

    `on_press(what, policy)` is called for the buttons: `run` and `stop`, and `boot` with the chosen cell's policy; without it there are
    none.  An exported page has the evidence of every cell.
    """

    _esm = module("evidence", "matrix")
    _css = style("matrix")
    policies: traitlets.List[Any] = traitlets.List().tag(sync=True)
    attacks: traitlets.List[Any] = traitlets.List().tag(sync=True)
    cells: "traitlets.Dict[Any, Any]" = traitlets.Dict().tag(sync=True)
    chosen = traitlets.Unicode("").tag(sync=True)
    running = traitlets.Bool(False).tag(sync=True)
    said = traitlets.Unicode(NOTHING).tag(sync=True)
    buttons = traitlets.Bool(False).tag(sync=True)

    def __init__(self, matrix: Matrix | None = None, selection: Selection | None = None,
                 on_press: Callable[[str, str], None] | None = None, **values: Any):
        super().__init__(selection, buttons=on_press is not None, **values)
        self._on_press = on_press
        self._done: dict[str, Any] = {}
        self._sent = 0.0
        self.on_msg(self._received)
        self.begin("", (), ())
        if matrix is not None:
            self.show(matrix)

    def show(self, matrix: Matrix) -> None:
        """Shows a whole matrix."""
        with self.hold_sync():
            self.begin(matrix.machine, matrix.policies, matrix.attacks)
            self._done = {_key(cell): wire_attack(cell.result) for cell in matrix}
            self.end()

    def begin(self, machine: str, policies: Iterable[str], attacks: Iterable[str]) -> None:
        """An empty grid for these, to which cells will be added."""
        words = {a["name"]: a for a in attack_words()}
        bare = dict.fromkeys(("goal", "way", "against", "early"), "")
        with self.hold_sync():
            self.label = f"Attacks on {machine} under each policy" if machine else "Attacks under each policy"
            self.policies = [{"name": name, "words": policy_words(POLICIES[name]) if name in POLICIES else ""} for name in policies]
            self.attacks = [words.get(name, {"name": name} | bare) for name in attacks]
            self._done = {}
            self.cells, self.chosen, self.running, self.said = {}, "", bool(self.policies), NOTHING

    def tell(self, words: str) -> None:
        """What is being tried: `policy, attack`.  The browser hears of it, and of the cells that are done, a few times a second."""
        if time.monotonic() >= self._sent + OFTEN:
            with self.hold_sync():
                self.cells, self.said = dict(self._done), f"{len(self._done) + 1} of {self.whole}: {words}"
            self._sent = time.monotonic()

    def add(self, cell: Cell) -> None:
        """One more cell is done."""
        self._done[_key(cell)] = wire_attack(cell.result)

    def end(self, words: str = "") -> None:
        """No more cells come; `words` come before how many came to what."""
        with self.hold_sync():
            self.cells, self.running = dict(self._done), False
            self.said = " ".join(filter(None, (words, self.summary)))

    @property
    def whole(self) -> int:
        """Cells of the grid, done or not."""
        return len(self.policies) * len(self.attacks)

    @property
    def summary(self) -> str:
        """How many came to which verdict."""
        counts = {verdict: sum(c["verdict"] == verdict for c in self.cells.values()) for verdict in MARKS}
        told = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
        done = f"{len(self.cells)} attacks" if len(self.cells) == self.whole else f"{len(self.cells)} of {self.whole} attacks"
        return f"{done}: {told}" if self.cells else NOTHING

    def _received(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        what, policy = str(content.get("kind")), str(content.get("policy", ""))
        known = policy in {p["name"] for p in self.policies}
        if self._on_press and (what in ("run", "stop") or what == "boot" and known):
            self._on_press(what, policy)

    @property
    def figure(self) -> Figure:
        """The grid as a picture, with the evidence of every cell as a table."""
        if not self.cells:
            return Figure(self.label, self.said, "")
        alt = "; ".join(f"{p['name']}: {self._row_words(p['name'])}" for p in self.policies)
        return Figure(self.label, f"{self.summary}. {alt}", self._draw(alt), self._table())

    def _row_words(self, policy: str) -> str:
        groups = {v: [a["name"] for a in self.attacks if self.cells.get(f"{policy}/{a['name']}", {}).get("verdict") == v] for v in VERDICTS}
        return ", ".join(f"{verdict} {' '.join(names)}" for verdict, names in groups.items() if names) or "not run"

    def _draw(self, alt: str) -> str:
        drawing = Drawing(LEFT + COLUMN * len(self.attacks) + 8, HEAD + ROW * len(self.policies) + 8)
        for i, attack in enumerate(self.attacks):
            for j, part in enumerate(_in_two(attack["name"])):
                drawing.text(LEFT + COLUMN * (i + 0.5), 13 + 14 * j, part, size=11, anchor="middle", bold=True)
        for j, policy in enumerate(self.policies):
            y = HEAD + ROW * j
            drawing.text(LEFT - 8, y + 17, policy["name"], anchor="end", bold=True)
            for i, attack in enumerate(self.attacks):
                cell = self.cells.get(f"{policy['name']}/{attack['name']}")
                if cell:
                    x, words = LEFT + COLUMN * i, f"{cell['mark']} {cell['verdict']}"
                    tip = f"{policy['name']}, {attack['name']}: {words}"
                    drawing.rect(x + 1, y + 1, COLUMN - 2, ROW - 2, VERDICT_FILLS[cell["verdict"]], tip)
                    drawing.badge(x + COLUMN / 2, y + 17, words)
        return drawing.svg(self.label, alt)

    def _table(self) -> str:
        rows = [[*key.split("/"), c["verdict"], c["why"]] for key, c in self.cells.items()]
        table = html_table("", ("policy", "attack", "verdict", "why"), rows, (False,) * 4)
        more = "".join(f"<details><summary>{html.escape(', '.join(key.split('/')))}: {html.escape(c['verdict'])}</summary>"
                       f"{evidence_html(c)}</details>" for key, c in self.cells.items())
        return table + more


def _key(cell: Cell) -> str:
    return f"{cell.policy}/{cell.attack}"


def _in_two(name: str) -> list[str]:
    """A name in at most two lines, broken behind a hyphen near its middle."""
    breaks = [i + 1 for i, letter in enumerate(name) if letter == "-"]
    if len(name) < 13 or not breaks:
        return [name]
    at = min(breaks, key=lambda i: abs(i - len(name) / 2))
    return [name[:at], name[at:]]
