"""What a fleet came to: tables for pandas and Parquet, and a summary in words, JSON and HTML."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inspect.records import text_table
from .page import page
from .progress import duration
from .result import FAILURES, Done

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Report", "Table", "shown"]

_SLOWEST, _NAMED, _ERRORS = 10, 3, 200
"""How many slow items, examples of a problem, and failed items a summary names."""
ITEMS = ("item", "kind", "digest", "machine", "problems", "unknown", "failure", "why", "seconds", "cpu_seconds")
VERDICTS = ("item", "digest", "machine", "policy", "outcome", "why")
PROBLEMS = ("item", "digest", "machine", "id", "severity", "blame", "evidence", "mend")


@dataclass(frozen=True, slots=True)
class Table:
    """A table to be shown: title, labels, rows of words, which columns line up on the right, and a line on what is left out."""

    title: str
    labels: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[bool]
    note: str = ""

    def __str__(self) -> str:
        return text_table(self.title, self.labels, self.rows, self.right) + (f"\n{self.note}" if self.note else "")


@dataclass(frozen=True)
class Report:
    """The results of all items, by path; `folder` names the fleet."""

    folder: str
    items: Sequence[Done] = field(repr=False)

    @cached_property
    def item_rows(self) -> list[dict[str, Any]]:
        """A row an item."""
        return [dict(zip(ITEMS, _item_row(d), strict=True)) for d in self.items]

    @cached_property
    def verdict_rows(self) -> list[dict[str, Any]]:
        """A row an item and policy; only of items that could be examined."""
        return [{**_named(d), **_texts(v, VERDICTS[3:])} for d in self.items for v in _parts(d, "verdicts")]

    @cached_property
    def problem_rows(self) -> list[dict[str, Any]]:
        """A row a problem."""
        return [{**_named(d), **_texts(p, PROBLEMS[3:])} for d in self.items for p in _parts(d, "problems")]

    @property
    def outcomes(self) -> "pd.DataFrame":
        """A pandas frame: one row an item and policy."""
        return _frame(self.verdict_rows, VERDICTS)

    @property
    def problems(self) -> "pd.DataFrame":
        """A pandas frame: one row a problem."""
        return _frame(self.problem_rows, PROBLEMS)

    @property
    def frame(self) -> "pd.DataFrame":
        """A pandas frame: one row an item, with its times and its failure."""
        return _frame(self.item_rows, ITEMS)

    def save(self, folder: Path) -> list[Path]:
        """Writes `outcomes.parquet`, `problems.parquet`, `items.parquet`, `summary.json` and `report.html`; returns their paths."""
        frames = {"outcomes": self.outcomes, "problems": self.problems, "items": self.frame}
        for name, frame in frames.items():
            frame.to_parquet(folder / f"{name}.parquet", index=False)
        (folder / "summary.json").write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(self.html, encoding="utf-8")
        return [*(folder / f"{name}.parquet" for name in frames), folder / "summary.json", folder / "report.html"]

    @cached_property
    def failed(self) -> list[dict[str, Any]]:
        """The rows of items that could not be examined."""
        return [row for row in self.item_rows if row["failure"]]

    def counts(self) -> dict[str, dict[str, int]]:
        """How many items came to each outcome, by policy; policies in the doctor's order, the commonest outcome first."""
        by_policy: dict[str, Counter[str]] = {}
        for row in self.verdict_rows:
            by_policy.setdefault(row["policy"], Counter())[row["outcome"]] += 1
        return {policy: dict(sorted(c.items(), key=lambda pair: (-pair[1], pair[0]))) for policy, c in by_policy.items()}

    def by_problem(self) -> list[dict[str, Any]]:
        """Each kind of problem: on how many items, by severity and blame, and some of them; the commonest first."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in self.problem_rows:
            groups.setdefault(row["id"], []).append(row)
        found = [{"id": name, "items": len({r["item"] for r in rows}), "severity": dict(Counter(r["severity"] for r in rows)),
                  "blame": dict(Counter(r["blame"] for r in rows)), "examples": list(dict.fromkeys(r["item"] for r in rows))[:_NAMED]}
                 for name, rows in groups.items()]
        return sorted(found, key=lambda f: (-f["items"], f["id"]))

    def slowest(self) -> list[dict[str, Any]]:
        """The items that took longest, in seconds."""
        rows = sorted(self.item_rows, key=lambda r: (-r["seconds"], r["item"]))[:_SLOWEST]
        return [{name: r[name] for name in ("item", "machine", "seconds", "cpu_seconds")} for r in rows]

    def to_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        failures = Counter(r["failure"] for r in self.failed)
        return {
            "folder": shown(self.folder), "items": len(self.items), "examined": len(self.items) - len(self.failed),
            "failed": dict(sorted(failures.items())), "seconds": round(sum(d.seconds for d in self.items), 3),
            "cpu_seconds": round(sum(d.cpu for d in self.items), 3), "outcomes": self.counts(), "problems": self.by_problem(),
            "slowest": self.slowest(), "failures": [{name: r[name] for name in ("item", "failure", "why")} for r in self.failed],
        }

    @property
    def heading(self) -> str:
        """How many items, how many of them failed, and how long they took."""
        failed = f", {len(self.failed):,} could not be examined" if self.failed else ""
        cpu = sum(d.cpu for d in self.items)
        return f"{shown(self.folder)}: {len(self.items):,} items{failed}; {duration(cpu)} of CPU time"

    @property
    def tables(self) -> list[Table]:
        """The summary's tables."""
        failures = [_failure_table(self.failed)] if self.failed else []
        problems = _problem_table(self.by_problem(), len(self.items) - len(self.failed))
        return [_outcome_table(self.counts()), problems, _slow_table(self.slowest()), *failures]

    @property
    def html(self) -> str:
        """The summary as a page that needs nothing else."""
        return page(self.heading, self.tables)

    def __str__(self) -> str:
        return "\n\n".join([self.heading, *map(str, self.tables)])


def shown(text: object) -> str:
    """Words from outside as they can be shown anywhere: no control characters, nothing that is no Unicode."""
    safe = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in safe)


def _named(done: Done) -> dict[str, Any]:
    return {"item": shown(done.path), "digest": done.digest, "machine": _machine(done)}


def _machine(done: Done) -> str:
    """The machine's name as the record has it; empty where there is none."""
    said = done.record.get("machine", "") if done.record else ""
    return shown(said.get("name", "") if isinstance(said, Mapping) else said)


def _parts(done: Done, name: str) -> Iterable[Mapping[str, Any]]:
    return done.record.get(name) or () if done.record else ()


def _texts(part: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """The fields as text; what is no text as JSON."""
    values = {name: part.get(name) for name in names}
    return {n: shown("" if v is None else v if isinstance(v, str) else json.dumps(v)) for n, v in values.items()}


def _item_row(done: Done) -> tuple[Any, ...]:
    problems, unknown = len(list(_parts(done, "problems"))), len(list(_parts(done, "unknown")))
    failure, why = (done.failure.kind, shown(done.failure.text)) if done.failure else ("", "")
    times = round(done.seconds, 4), round(done.cpu, 4)
    return shown(done.path), done.kind, done.digest, _machine(done), problems, unknown, failure, why, *times


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd
    return pd.DataFrame(rows, columns=list(columns))


def _outcome_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    outcomes = sorted({o for row in counts.values() for o in row}, key=lambda o: (o != "up", o))
    rows = [[policy, *(f"{row[o]:,}" if o in row else "" for o in outcomes)] for policy, row in counts.items()]
    return Table("Outcomes by policy", ["policy", *outcomes], rows, [False, *(True for _ in outcomes)])


def _problem_table(problems: Sequence[Mapping[str, Any]], examined: int) -> Table:
    rows = [[p["id"], f"{p['items']:,}", f"{100 * p['items'] / examined:.1f} %", _counted(p["severity"]), _counted(p["blame"]),
             ", ".join(p["examples"]) + (" ..." if p["items"] > len(p["examples"]) else "")] for p in problems]
    return Table("Problems", ["id", "items", "of all", "severity", "blame", "for example"], rows, [False, True, True, False, False, False])


def _counted(counts: Mapping[str, int]) -> str:
    """One word, or each with its number."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{n:,} {word}" if len(counts) > 1 else word for word, n in ordered)


def _slow_table(slow: Sequence[Mapping[str, Any]]) -> Table:
    rows = [[r["item"], r["machine"], f"{r['seconds']:.2f}", f"{r['cpu_seconds']:.2f}"] for r in slow]
    return Table("Slowest (seconds)", ["item", "machine", "wall", "CPU"], rows, [False, False, True, True])


def _failure_table(failed: Sequence[Mapping[str, Any]]) -> Table:
    rows = [[r["item"], FAILURES.get(r["failure"], r["failure"]), r["why"]] for r in failed[:_ERRORS]]
    note = f"{len(failed) - _ERRORS:,} more are in items.parquet." if len(failed) > _ERRORS else ""
    return Table("Could not be examined", ["item", "what", "why"], rows, [False, False, False], note)
