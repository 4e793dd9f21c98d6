"""The record of a proof: claims, each with its verdict, and what speaks against those that do not hold."""

import html
from dataclasses import dataclass
from typing import Any

from . import format as show
from .explanation import Explanation
from .records import Column, Record, Records
from .walk import Walk

__all__ = ["Claim", "Counterexample", "Proof"]


@dataclass(frozen=True, slots=True, repr=False)
class Counterexample(Record):
    """One access that a claim rules out and the machine lets through.

    `who` asks: a requester (`source`, its id, through the unit with register base `unit`; None: through none), the guest's CPU, or a unit.
    `address` is what it asks for: an IOVA, or a guest-physical address.  `host` is the host-physical 4 KiB page that it reaches (None:
    it is an interrupt), `rights` what it may do there, `lies` what lies there, `how` what lets it through, `walk` the way with its raw
    entries (None: there is none to be shown).
    """

    who: str
    how: str
    unit: int | None
    source: int | None
    address: int
    host: int | None
    rights: str
    lies: str
    walk: Explanation | Walk | None = None
    note: str = ""

    title = "Counterexample"
    legend = "address: IOVA, or guest-physical for the guest's CPU; host: host-physical page"
    columns = (
        Column("who", lambda c: c.who), Column("how", lambda c: c.how), Column("unit", lambda c: c.unit, show.address),
        Column("source", lambda c: c.source, show.source), Column("address", lambda c: c.address, show.address),
        Column("host", lambda c: c.host, show.address), Column("rights", lambda c: c.rights), Column("lies", lambda c: c.lies),
        Column("note", lambda c: c.note),
    )

    @property
    def sentence(self) -> str:
        """It in words."""
        by = f"by {self.how}" + (f" of the unit at {self.unit:#x}" if self.unit is not None and self.source is not None else "")
        note = f" ({self.note})" if self.note else ""
        if self.host is None:
            return f"{self.who} gets an interrupt message to {self.address:#x} through {by}{note}"
        return f"{self.who} reaches {self.host:#x} ({self.lies}) {self.rights} at {self.address:#x} {by}{note}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, the walk's steps among them."""
        return {**super(Counterexample, self).to_json(), "walk": self.walk.to_json() if self.walk else None}

    def __str__(self) -> str:
        return self.sentence + (f"\n{self.walk}" if self.walk else "")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.sentence)}</p>" + (self.walk._repr_html_() if self.walk else "")


@dataclass(frozen=True, slots=True, repr=False)
class Claim(Record):
    """One sentence about the machine as it is now, whether it holds, and why.

    `pages` counts the 4 KiB pages that the claim rules out and somebody reaches; `counterexample` is one of them, None where the claim
    holds or could not be decided (`why` says so).
    """

    claim: str
    holds: bool
    why: str
    counterexample: Counterexample | None = None
    pages: int = 0

    title = "Claims"
    legend = "each judged by memory and registers as they are now; pages: of 4 KiB, reached although the claim rules it out"
    columns = (
        Column("claim", lambda c: c.claim), Column("holds", lambda c: c.holds, lambda v: "yes" if v else "NO"),
        Column("pages", lambda c: c.pages, lambda v: f"{v:,}" if v else "", True), Column("why", lambda c: c.why),
    )

    def to_json(self) -> dict[str, Any]:
        """Plain values, the counterexample among them."""
        example = self.counterexample.to_json() if self.counterexample else None
        return {**super(Claim, self).to_json(), "counterexample": example}


@dataclass(frozen=True, slots=True, repr=False)
class Proof(Record):
    """Whether the core is out of reach of devices and of the guest: its claims one by one; `note` says what they leave out."""

    claims: tuple[Claim, ...]
    note: str = ""

    title = "Proof"
    columns = (Column("holds", lambda p: p.holds, show.yes_no), Column("claims", lambda p: len(p.claims), right=True),
               Column("open", lambda p: sum(not c.holds for c in p.claims), right=True))

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return bool(self.claims) and all(c.holds for c in self.claims)

    @property
    def verdict(self) -> str:
        """The whole in a sentence."""
        bad = sum(not c.holds for c in self.claims)
        return f"all {len(self.claims)} claims hold" if self.holds else f"{bad} of {len(self.claims)} claims do not hold"

    @property
    def table(self) -> Records[Claim]:
        """The claims as a table."""
        return Records(Claim, self.claims, title=f"Proof: {self.verdict}; claims", note=self.note)

    @property
    def counterexamples(self) -> Records[Counterexample]:
        """What speaks against the claims that do not hold."""
        return Records(Counterexample, [c.counterexample for c in self.claims if c.counterexample])

    def claim(self, words: str) -> Claim:
        """The first claim whose sentence has `words` in it.  Raises KeyError where none has."""
        found = next((c for c in self.claims if words in c.claim), None)
        if found is None:
            raise KeyError(words)
        return found

    def to_json(self) -> dict[str, Any]:
        """`holds`, the claims and the note."""
        return {"holds": self.holds, "claims": self.table.to_json(), "note": self.note}

    def __str__(self) -> str:
        return str(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        details = [f"<details><summary>{html.escape(c.claim)} Not so:</summary>{c.counterexample._repr_html_()}</details>"
                   for c in self.claims if c.counterexample]
        return self.table._repr_html_() + "".join(details)
