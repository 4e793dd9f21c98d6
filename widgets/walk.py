"""One request step by step, with the raw bits: translation on?, root entry, context entry, each level, verdict."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import traitlets

from hvcore.errors import HvlabError
from hvcore.inspect.evidence import Cut, FieldValue, Word
from hvcore.inspect.explanation import ExplainStep, Explanation
from hvcore.inspect.faults import Fault
from hvcore.spec.pci import format_bdf

from .drawing import Figure
from .lens import Guard
from .selection import Selection
from .table import fault_choices, wire_choice
from .view import View, module, style
from .walkfigure import arithmetic, walk_figure

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["WalkExplainer"]

Choice = dict[str, Any]
"""Arguments of `Selection.choose`."""
AT_ONCE = 32
"""Faults whose ways go to the browser at once; a later one is explained when it is chosen."""
NOTHING = "No fault is recorded: ask what would become of a request."


class WalkExplainer(View):
    """The way of the fault that is chosen in `selection`, of a device's IOVA that is, or of a request that is asked about.

    It is the way through the tables as they are now.  `guard` is held while the run is read.  The first faults' ways are in the browser and
    need no kernel.
    """

    _esm = module("walk")
    _css = style("walk")
    walks: traitlets.List[Any] = traitlets.List().tag(sync=True)
    asked: "traitlets.Dict[Any, Any]" = traitlets.Dict().tag(sync=True)
    devices: traitlets.List[Any] = traitlets.List().tag(sync=True)
    said = traitlets.Unicode("").tag(sync=True)
    without: "traitlets.Dict[Any, Any]" = traitlets.Dict().tag(sync=True)
    """For which fault's number, and in words: what would have become of its request without the unit."""

    def __init__(self, run: "Run", selection: Selection | None = None, guard: Guard = nullcontext, **values: Any):
        super().__init__(selection, label="What becomes of a request, step by step", **values)
        self._guard = guard
        self._answers = 0
        self._request: tuple[int, int, str, int] | None = None
        self.on_msg(self._received)
        self.selection.observe(lambda change: self._follow(change.new), "fault")
        self.selection.observe(lambda _change: self._follow_request(), ["address", "space", "device"])
        self.show_run(run)

    def show_run(self, run: "Run") -> None:
        """The faults of another run, or of this one as it is now; what was asked about is asked again."""
        self._run, self._ways, said = run, list[Explanation](), ""
        with self._guard():
            faults = list(run.faults)
            try:
                self._ways = [run.explain(f) for f in faults[:AT_ONCE]]
            except HvlabError as e:
                said = str(e)
            self._choices = fault_choices(run, faults)
            devices = [[d, u.segment, _device(d, u.segment)] for u in run.units for d in u.devices]
        self._shown = self._ways[0] if self._ways else None
        with self.hold_sync():
            self.walks = [_wire(w, c, f) for w, c, f in zip(self._ways, self._choices, faults, strict=False)]
            self.devices, self.asked, self.said = devices, {}, said or ("" if self.walks else NOTHING)
            self.without = {}
            if self._request:
                self._answer_request()
            self._follow(self.selection.fault)

    def ask(self, source: int, iova: int, access: str = "read", segment: int = 0) -> None:
        """Shows what would become of a request of requester `source` at `iova`; a mistake is told in the view."""
        self._request = source, iova, access, segment
        self._answers += 1
        self._answer_request()

    def _answer_request(self) -> None:
        assert self._request is not None
        source, iova, access, segment = self._request
        try:
            with self._guard():
                way = self._run.what_if(source, iova, access, segment)
        except HvlabError as e:
            self.said = str(e)
            return
        self._answer(way, {"address": iova, "space": "iova", "device": source})

    def _received(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        if content.get("kind") != "ask":
            return
        try:
            source, segment, address = int(content["source"]), int(content["segment"]), int(content["address"], 16)
        except (KeyError, TypeError, ValueError):
            self.said = "That is no request: choose a device, and write an address like 0x7a3e1000."
            return
        self.ask(source, address, str(content.get("access")), segment)

    def _follow(self, number: int | None) -> None:
        """Another fault is chosen: one that is not in the browser yet is explained now."""
        if number is None:
            return
        self._imagine(number)
        if number < len(self._ways):
            self._shown = self._ways[number]
        elif AT_ONCE <= number < len(self._choices):
            self._explain_late(number)

    def _imagine(self, number: int) -> None:
        """What the chosen fault's request would have done without a unit, where it is still kept."""
        try:
            with self._guard():
                self.without = {"fault": number, "words": self._run.would_have(self._run.faults[number]).sentence}
        except (HvlabError, IndexError):
            self.without = {}

    def _follow_request(self) -> None:
        """A device's IOVA is chosen, and no fault: what becomes of a read there, or where only a write goes through, of that."""
        s = self.selection
        if s.fault is not None or s.space != "iova" or s.address is None or s.device is None or not self._run.live:
            return
        if (s.device, s.address) == self._request_at:
            return
        segment = next((segment for device, segment, _ in self.devices if device == s.device), 0)
        self.ask(s.device, s.address, self._way_in(s.device, s.address, segment), segment)

    @property
    def _request_at(self) -> tuple[int, int] | None:
        return self._request[:2] if self._request else None

    def _way_in(self, source: int, iova: int, segment: int) -> str:
        try:
            with self._guard():
                ways = {access: self._run.what_if(source, iova, access, segment) for access in ("read", "write")}
        except HvlabError:
            return "read"
        return "write" if ways["read"].reason is not None and ways["write"].reason is None else "read"

    def _explain_late(self, number: int) -> None:
        try:
            with self._guard():
                fault = self._run.faults[number]
                way = self._run.explain(fault)
        except HvlabError as e:
            self.said = str(e)
            return
        self._request = None
        self._answers += 1
        self._answer(way, self._choices[number], fault)

    def _answer(self, way: Explanation, choice: Choice, fault: Fault | None = None) -> None:
        self._shown = way
        with self.hold_sync():
            self.asked, self.said = _wire(way, choice, fault) | {"number": self._answers}, ""

    @property
    def figure(self) -> Figure:
        """The way that is shown."""
        return walk_figure(self._shown) if self._shown else Figure(self.label, self.said, "")


def _device(source: int, segment: int) -> str:
    return f"{segment:04x}:{format_bdf(source)}" if segment else format_bdf(source)


# --- as the browser has it: numbers in hex

def _wire(way: Explanation, choice: Choice, fault: Fault | None = None) -> dict[str, Any]:
    return {"heading": way.heading, "verdict": way.verdict, "through": way.reason is None, "choice": wire_choice(choice),
            "note": _changed(way, fault), "steps": [_step(s) for s in way.steps]}


def _changed(way: Explanation, fault: Fault | None) -> str:
    """Where the tables no longer say what the fault says."""
    if fault is None or way.reason == fault.reason:
        return ""
    now = "lets it through" if way.reason is None else f"gives reason {way.reason:#x}"
    return f"The fault was recorded with reason {fault.reason:#x} ({fault.text}). What is in tables and registers now {now}."


def _step(step: ExplainStep) -> dict[str, Any]:
    seen = step.seen
    return {"what": step.what, "text": step.text, "ok": step.ok, "section": seen.section,
            "address": None if step.address is None else hex(step.address), "sum": arithmetic(seen.place) if seen.place else "",
            "cut": _cut(seen.cut) if seen.cut else None, "words": [_word(w) for w in seen.words]}


def _cut(cut: Cut) -> dict[str, Any]:
    return {"name": cut.layout.name, "value": hex(cut.value), "used": list(cut.used), "fields": [_field(f) for f in cut.fields]}


def _word(word: Word) -> dict[str, Any]:
    return {"name": word.name, "layout": word.layout.name, "value": hex(word.value), "width": word.width, "offends": hex(word.offends),
            "lacks": hex(word.lacks), "fields": [_field(f) for f in word.fields]}


def _field(field: FieldValue) -> list[Any]:
    """Name, high and low bit, value, meaning or the specification's note, whether it counts."""
    return [field.field.name, field.field.high, field.field.low, hex(field.value), field.meaning or field.field.note,
            field.meaning is not None]
