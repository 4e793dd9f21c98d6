"""A diagnosis: the verdict of each policy, the problems found, and what could not be known."""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..inspect.records import Column, Record, Records

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BLAMES", "SEVERITIES", "Diagnosis", "Problem", "Verdict"]

SEVERITIES = {
    "fatal": "the core gives up or the guest loses its disk",
    "serious": "something stays unprotected, or a device cannot work",
    "note": "to be known",
}
"""The worst first."""
BLAMES = {"firmware": "what firmware says or leaves behind", "bitvisor": "what the core does with it", "machine": "what the hardware lacks"}


@dataclass(frozen=True, slots=True, repr=False)
class Verdict(Record):
    """How the machine fares under one policy: the run's outcome, and why."""

    policy: str
    outcome: str
    why: str

    title = "Verdicts"
    columns = (Column("policy", lambda v: v.policy), Column("outcome", lambda v: v.outcome), Column("why", lambda v: v.why))


@dataclass(frozen=True, slots=True, repr=False)
class Problem(Record):
    """One problem by its `id`: how bad, whose, what shows it, and what mends it (empty: no option does).

    `policies` are those whose verdict it explains.
    """

    id: str
    severity: str
    blame: str
    evidence: str
    mend: str = ""
    policies: tuple[str, ...] = ()

    title = "Problems"
    columns = (Column("id", lambda p: p.id), Column("severity", lambda p: p.severity), Column("blame", lambda p: p.blame),
               Column("evidence", lambda p: p.evidence), Column("mend", lambda p: p.mend),
               Column("policies", lambda p: p.policies, lambda v: ", ".join(v) if isinstance(v, tuple) else ""))

    def to_json(self) -> dict[str, Any]:
        """Id, severity, blame, evidence and mend."""
        return {"id": self.id, "severity": self.severity, "blame": self.blame, "evidence": self.evidence, "mend": self.mend}

    def __str__(self) -> str:
        spoils = f" [{', '.join(self.policies)}]" if self.policies else ""
        lines = (f"{self.severity:7}  {self.id} ({self.blame}){spoils}", self.evidence, f"mend: {self.mend or 'no option helps'}")
        return "\n         ".join(lines)

    __repr__ = __str__


class Diagnosis:
    """What was found on one machine.  `unknown` says in a sentence each what was assumed, or could not be seen at all; `guest` which guest
    was booted, empty for the lab guest."""

    def __init__(self, machine: str, verdicts: Iterable[Verdict], problems: Iterable[Problem], unknown: Iterable[str] = (),
                 guest: str = ""):
        self.machine, self.guest = machine, guest
        title = f"{machine} under each policy{f', with {guest}' if guest else ''}"
        self.verdicts: Records[Verdict] = Records(Verdict, tuple(verdicts), title=title)
        order = list(SEVERITIES)
        self.problems: Records[Problem] = Records(Problem, tuple(sorted(problems, key=lambda p: order.index(p.severity))))
        self.unknown = tuple(unknown)

    def verdict(self, policy: str) -> Verdict:
        """The verdict of one policy.  Raises KeyError where there is none."""
        found = next((v for v in self.verdicts if v.policy == policy), None)
        if found is None:
            raise KeyError(policy)
        return found

    def problem(self, name: str) -> Problem | None:
        """The first problem with this id; None where the machine has none."""
        return next((p for p in self.problems if p.id == name), None)

    @property
    def frame(self) -> "pd.DataFrame":
        """The problems as a pandas frame."""
        return self.problems.frame

    def to_json(self) -> dict[str, Any]:
        """`machine`, `verdicts`, `problems`, `unknown`, fit for JSON; `guest`, where one was named."""
        named = {"guest": self.guest} if self.guest else {}
        return {"machine": self.machine, **named, "verdicts": self.verdicts.to_json(), "problems": self.problems.to_json(),
                "unknown": list(self.unknown)}

    @property
    def summary(self) -> str:
        """How many problems of each severity, in words."""
        counts = {s: sum(p.severity == s for p in self.problems) for s in SEVERITIES}
        return ", ".join(f"{n} {s}" for s, n in counts.items() if n) or "none"

    def __str__(self) -> str:
        lines = [str(self.verdicts), "", f"Problems: {self.summary}", *(str(p) for p in self.problems)]
        if self.unknown:
            lines += ["", "Not known:", *(f"  {text}" for text in self.unknown)]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        unknown = "".join(f"<li>{html.escape(text)}</li>" for text in self.unknown)
        tail = f"<details open><summary>Not known</summary><ul>{unknown}</ul></details>" if unknown else ""
        return self.verdicts._repr_html_() + self.problems._repr_html_() + tail
