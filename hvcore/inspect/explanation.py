"""The record of a request's way through a unit: its steps, and the verdict."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..spec import vtd
from ..spec.interrupts import INTERRUPT_REASONS
from ..spec.pci import format_bdf
from . import format as show
from .evidence import Evidence, Word
from .records import Column, Record, Records, html_table, text_table

__all__ = ["ExplainStep", "Explanation", "refusal"]


@dataclass(frozen=True, slots=True, repr=False)
class ExplainStep(Record):
    """One thing the unit looked at: what it is and says in words, whether the request went on from here, and what that rests on."""

    what: str
    text: str
    ok: bool
    seen: Evidence

    title = "Step"
    legend = "addresses host-physical; raw words low first"
    columns = (
        Column("what", lambda s: s.what), Column("address", lambda s: s.address, show.address, True),
        Column("raw", lambda s: s.raw, lambda v: " ".join(f"{w:#x}" for w in v) if isinstance(v, tuple) else "", True),
        Column("meaning", lambda s: s.text), Column("goes_on", lambda s: s.ok, lambda v: "yes" if v else "NO"),
    )

    @property
    def address(self) -> int | None:
        """The entry, host-physical; None for a register or a rule."""
        return self.seen.place.address if self.seen.place else None

    @property
    def raw(self) -> tuple[int, ...]:
        """The raw words, low first."""
        return tuple(word.value for word in self.seen.words)

    def to_json(self) -> dict[str, Any]:
        """Plain values: words with their fields, where the entry lies."""
        place = self.seen.place
        where = {"table": place.table, "index": place.index, "level": place.level} if place else {}
        return {"what": self.what, "address": self.address, "raw": list(self.raw), "text": self.text, "ok": self.ok,
                "section": self.seen.section, "words": [_word_json(w) for w in self.seen.words]} | where


@dataclass(frozen=True, slots=True, repr=False)
class Explanation(Record):
    """Why a request of `source` at `iova` does or does not go through the unit at register base `unit`.

    `reason` is the VT-d fault reason (None: it goes through; 0: blocked by a protected memory region, which is not reported), `host` the
    host-physical address it reaches (None: none), `recorded` whether the unit would record the fault; `verdict` says it in a sentence.
    """

    unit: int
    source: int
    iova: int
    access: str
    steps: tuple[ExplainStep, ...]
    reason: int | None
    host: int | None
    recorded: bool
    verdict: str

    title = "Explanation"
    legend = ExplainStep.legend
    columns: ClassVar[tuple[Column, ...]] = (
        Column("unit", lambda e: e.unit, show.address), Column("source", lambda e: format_bdf(e.source)),
        Column("iova", lambda e: e.iova, show.address), Column("access", lambda e: e.access),
        Column("reason", lambda e: e.reason, show.address), Column("host", lambda e: e.host, show.address),
        Column("recorded", lambda e: e.recorded, show.yes_no), Column("verdict", lambda e: e.verdict),
    )

    @property
    def table(self) -> Records[ExplainStep]:
        """The steps as a table."""
        return Records(ExplainStep, self.steps, title=self.heading)

    @property
    def heading(self) -> str:
        """What was asked."""
        return f"{format_bdf(self.source)} {self.access} at IOVA {self.iova:#x}, unit {self.unit:#x}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, the steps among them."""
        return {"unit": self.unit, "source": format_bdf(self.source), "iova": self.iova, "access": self.access, "reason": self.reason,
                "host": self.host, "recorded": self.recorded, "verdict": self.verdict,
                "steps": [s.to_json() for s in self.steps]}

    def _cells(self) -> tuple[list[str], list[list[str]], list[bool]]:
        columns = ExplainStep.columns
        return [c.label for c in columns], [[c.show(c.value(s)) for c in columns] for s in self.steps], [c.right for c in columns]

    def __str__(self) -> str:
        return text_table(f"{self.heading}  ({self.legend})", *self._cells()) + f"\n=> {self.verdict}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(f"{self.heading}  ({self.legend})\n{self.verdict}", *self._cells())


def _word_json(word: Word) -> dict[str, Any]:
    return {"name": word.name, "layout": word.layout.name, "value": word.value, "offends": word.offends, "lacks": word.lacks,
            "fields": {f.field.name: f.value for f in word.fields}}


def refusal(reason: int, recorded: bool) -> str:
    """The verdict on a request that is blocked."""
    if reason == vtd.PROTECTED:
        return f"blocked: {vtd.CONDITION[reason]}"
    silent = "" if recorded else f"; not recorded, for the {'table' if reason in INTERRUPT_REASONS else 'context'} entry has FPD set"
    return f"blocked with reason {reason:#x} ({vtd.LINUX_TEXT[reason]}): {vtd.CONDITION[reason]}{silent}"
