"""Claims about the whole machine with their verdicts, and for each that does not hold an access that speaks against it."""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import traitlets

from hvcore.inspect.explanation import Explanation
from hvcore.inspect.proof import Claim, Counterexample, Proof
from hvcore.inspect.walk import Walk

from .drawing import Figure
from .evidence import brief
from .lens import Guard
from .selection import Selection
from .table import wire_choice
from .view import View, module, style

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["ProofView", "counter_choice"]

NOT_YET = "Nothing is proved yet: Prove looks at every table, cache and register of the machine as it is now."


class ProofView(View):
    """`run.proof`, made when `prove` is called; `at_once` calls it.  Choosing a counterexample chooses its address and device.

    `guard` is held while the run is read.  A proof is of one moment: the view says of which run, and by `clock`, whose value grows as the
    machine goes on, whether that has passed.
    """

    _esm = module("proof")
    _css = style("proof")
    claims: traitlets.List[Any] = traitlets.List().tag(sync=True)
    verdict = traitlets.Unicode("").tag(sync=True)
    holds = traitlets.Bool(False).tag(sync=True)
    of = traitlets.Unicode("").tag(sync=True)
    note = traitlets.Unicode("").tag(sync=True)
    stale = traitlets.Unicode("").tag(sync=True)
    said = traitlets.Unicode(NOT_YET).tag(sync=True)

    def __init__(self, run: "Run", selection: Selection | None = None, guard: Guard = nullcontext,
                 clock: Callable[[], int] = lambda: 0, at_once: bool = True, **values: Any):
        super().__init__(selection, label="Is the core out of reach?", **values)
        self._guard, self._clock = guard, clock
        self._proved: tuple[weakref.ref[Run], int] | None = None
        self._run = run
        self.on_msg(self._received)
        if at_once:
            self.prove()

    def prove(self) -> Proof:
        """Makes the proof anew, of the run as it is now, and shows it."""
        with self._guard():
            proof = self._run.proof
            moment, of = self._moment(), f"run {self._run.number}, {brief(self._run.config)}"
        with self.hold_sync():
            self._proved, self.of, self.stale, self.said = moment, of, "", ""
            self.claims = [_wire(claim) for claim in proof.claims]
            self.verdict, self.holds, self.note = proof.verdict, proof.holds, proof.note
        return proof

    def show_run(self, run: "Run", prove: bool = False) -> None:
        """Another run, or this one as it is now: with `prove` a boot since the last proof brings a new one; else it says that it is old."""
        self._run = run
        now = self._moment()
        if prove and (self._proved is None or self._proved[0] != now[0]):
            self.prove()
        elif self._proved is not None and self._proved != now:
            since = "was booted" if self._proved[0] != now[0] else "went on"
            self.stale = f"The machine {since} since: prove again to see whether this still is so."

    def _moment(self) -> "tuple[weakref.ref[Run], int]":
        """Which run, and how far it has come."""
        return weakref.ref(self._run), self._clock()

    def _received(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        if content.get("kind") == "prove":
            self.prove()

    @property
    def figure(self) -> Figure:
        """The claims as a table, without a picture."""
        from hvcore.inspect.records import html_table
        rows = [[c["claim"], "✓ holds" if c["holds"] else "✗ does not hold", c["why"]] for c in self.claims]
        words = f"{self.verdict}. {self.of}" if self.claims else self.said
        return Figure(self.label, words, "", html_table(words, ("claim", "holds", "why"), rows, (False,) * 3) if rows else "")


def counter_choice(example: Counterexample) -> dict[str, Any]:
    """What choosing a counterexample chooses: the device with its IOVA, or where the guest's processor or a unit gets to."""
    if example.source is None:
        return {"address": example.address if example.host is None else example.host, "space": "physical"}
    return {"address": example.address, "space": "iova", "device": example.source}


def _wire(claim: Claim) -> dict[str, Any]:
    example = claim.counterexample
    return {"claim": claim.claim, "holds": claim.holds, "why": claim.why, "example": None if example is None else _wire_example(example)}


def _wire_example(example: Counterexample) -> dict[str, Any]:
    facts = [["who", example.who], ["asks for", f"{example.address:#x}"], ["through", f"unit {example.unit:#x}" if example.unit else ""],
             ["let through by", example.how], ["reaches", "" if example.host is None else f"the page at {example.host:#x}"],
             ["what lies there", example.lies], ["rights", example.rights], ["note", example.note]]
    return {"facts": [f for f in facts if f[1]], "choice": wire_choice(counter_choice(example)), "steps": _steps(example.walk)}


def _steps(walk: Explanation | Walk | None) -> list[list[str]]:
    """The way's steps: what was looked at, what it says, the raw words."""
    if isinstance(walk, Explanation):
        return [[s.what, s.text, " ".join(map(hex, s.raw)), "" if s.address is None else hex(s.address)] for s in walk.steps]
    if walk is None:
        return []
    return [[f"level {s.level}", s.text, "" if s.raw is None else f"{s.raw:#x}", f"{s.entry:#x}"] for s in walk.steps]
