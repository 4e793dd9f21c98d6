"""Every attack under every policy: a grid of verdicts, each with the evidence it rests on."""

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from zlib import crc32

from ..errors import HvlabError, quoted
from . import format as show
from .records import Column, Record, Records, text_table

__all__ = ["MARKS", "Cell", "Matrix", "cells", "matrix"]

MARKS = {"blocked": "#", "succeeded": "!", "crashed": "x", "boot failed": "-", "not tried": "?"}
"""A sign for each verdict, so that colour is never the only one."""
_STYLES = {"blocked": "background:#005A43;color:#fff", "succeeded": "background:#D55E00;color:#000",
           "crashed": "background:#E69F00;color:#000", "boot failed": "background:#666;color:#fff",
           "not tried": "background:#bbb;color:#000"}
_PAD = "padding:2px 6px;text-align:left"


class Attackable(Protocol):
    """A machine that can be attacked."""

    @property
    def name(self) -> str: ...
    @property
    def policies(self) -> Mapping[str, Any]: ...
    @property
    def attacks(self) -> Mapping[str, Any]: ...

    def attack(self, name: str, config: Any = None, device: str | None = None) -> Any:
        """Boots with `config`, or attacks the guest that waits, and gives the result."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class Cell(Record):
    """One attack under one policy: its verdict, the request that was refused (None: none), and the whole result as evidence."""

    policy: str
    attack: str
    verdict: str
    result: Any

    title = "Attacks under policies"
    columns = (
        Column("policy", lambda c: c.policy), Column("attack", lambda c: c.attack), Column("verdict", lambda c: c.verdict),
        Column("fault", lambda c: c.fault, lambda f: "" if f is None else str(f)), Column("why", lambda c: c.result.why),
    )

    @property
    def fault(self) -> Any:
        """The first request that a unit refused, where that blocked the attack."""
        return self.result.fault

    def to_json(self) -> dict[str, Any]:
        """Policy, attack, verdict, fault and evidence as plain values."""
        fault = self.fault.to_json() if self.fault is not None else None
        return {"policy": self.policy, "attack": self.attack, "verdict": self.verdict, "fault": fault, "evidence": self.result.evidence}


class Matrix(Records[Cell]):
    """The cells, policy by policy; `machine` is its name.  It shows itself as a grid, each field with a link to its evidence."""

    def __init__(self, machine: str, cells: Iterable[Cell]):
        super().__init__(Cell, tuple(cells), title=f"Attacks on {machine}")
        self.machine = machine

    @property
    def policies(self) -> tuple[str, ...]:
        """The policies, in order."""
        return tuple(dict.fromkeys(c.policy for c in self))

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks, in order."""
        return tuple(dict.fromkeys(c.attack for c in self))

    def cell(self, policy: str, attack: str) -> Cell:
        """One cell.  Raises HvlabError where there is none."""
        found = next((c for c in self if (c.policy, c.attack) == (policy, attack)), None)
        if found is None:
            raise HvlabError(f"the matrix has no cell {quoted(policy)}, {quoted(attack)}: its policies are {', '.join(self.policies)}, "
                             f"its attacks {', '.join(self.attacks)}")
        return found

    def report(self) -> dict[str, Any]:
        """The machine and every cell, fit for JSON."""
        return {"machine": self.machine, "cells": self.to_json()}

    @property
    def legend(self) -> str:
        """The signs in words."""
        return ", ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items() if any(c.verdict == verdict for c in self))

    def __str__(self) -> str:
        grid = self._grid(lambda c: f"{MARKS[c.verdict]} {c.verdict}")
        head = f"{self.title}  ({self.legend})"
        evidence = text_table("Evidence", ["policy", "attack", "verdict", "why"],
                              [[c.policy, c.attack, c.verdict, c.result.why] for c in self], [False] * 4)
        return "\n".join([text_table(head, ["policy", *self.attacks], grid, [False] * (1 + len(self.attacks))), "", evidence])

    __repr__ = __str__

    def _grid(self, show_cell: Callable[[Cell], str]) -> list[list[str]]:
        return [[policy, *(show_cell(self.cell(policy, attack)) for attack in self.attacks)] for policy in self.policies]

    def _repr_html_(self) -> str:
        prefix = f"hvlab-{crc32(repr(self.to_json()).encode()):x}"
        return "".join([self._html_grid(prefix), *self._html_evidence(prefix)])

    def _html_grid(self, prefix: str) -> str:
        caption = html.escape(f"{self.title} ({self.legend}; a field leads to its evidence)")
        head = "".join(f'<th scope="col" style="{_PAD}">{html.escape(name)}</th>' for name in ("policy", *self.attacks))
        rows = "".join(self._html_row(prefix, policy) for policy in self.policies)
        return (f'<table style="border-collapse:separate;border-spacing:2px">'
                f'<caption style="text-align:left;font-weight:600;color:inherit">{caption}</caption>'
                f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")

    def _html_row(self, prefix: str, policy: str) -> str:
        cells = "".join(_html_cell(prefix, self.cell(policy, attack)) for attack in self.attacks)
        return f'<tr><th scope="row" style="{_PAD}">{html.escape(policy)}</th>{cells}</tr>'

    def _html_evidence(self, prefix: str) -> Iterator[str]:
        for c in self:
            said = html.escape("\n".join(c.result.evidence.get("console", ())))
            yield (f'<details id="{prefix}-{c.policy}-{c.attack}"><summary>{html.escape(c.policy)}, {html.escape(c.attack)}: '
                   f"<b>{html.escape(c.verdict)}</b></summary><p>{html.escape(c.result.why)}</p>{_html_proof(c.result.evidence)}"
                   f'<pre style="white-space:pre-wrap">{said}</pre></details>')


def _html_cell(prefix: str, c: Cell) -> str:
    link = f'<a style="color:inherit;text-decoration:underline" href="#{prefix}-{c.policy}-{c.attack}" title="{html.escape(c.result.why)}">'
    return f'<td style="{_PAD};{_STYLES[c.verdict]}">{link}{MARKS[c.verdict]} {html.escape(c.verdict)}</a></td>'


def _html_proof(evidence: Mapping[str, Any]) -> str:
    proof = evidence.get("proof") or {}
    items = "".join(f"<dt>{html.escape(str(k))}</dt><dd><code>{html.escape(_shown(v))}</code></dd>" for k, v in proof.items())
    return f"<dl>{items}</dl>" if items else ""


def _shown(value: Any) -> str:
    return show.address(value) if isinstance(value, int) and value > 9 else str(value)


def matrix(machine: Attackable, policies: Sequence[str] | None = None, attacks: Sequence[str] | None = None, device: str | None = None,
           progress: Callable[[str], None] | None = None) -> Matrix:
    """Runs every attack under every policy on `machine` and shows what came of each; 64 cells take some 10 s on a small machine.

    `policies` and `attacks` are names, None for all; `device` as `Machine.attack` takes it; `progress` is told each cell before it runs.
    Each attack that got somewhere is followed by a boot, so that no cell lives on another's.  Raises HvlabError for unknown names
    and for what is no machine.
    """
    if not hasattr(machine, "attack"):
        raise HvlabError(f"matrix takes a machine, as in matrix(Machine.load('q35-6g')), not {quoted(machine)}")
    return Matrix(machine.name, cells(machine, policies, attacks, device, progress))


def cells(machine: Attackable, policies: Sequence[str] | None = None, attacks: Sequence[str] | None = None, device: str | None = None,
          progress: Callable[[str], None] | None = None) -> Iterator[Cell]:
    """The cells of `matrix` one by one, each as soon as it is there."""
    for policy in _known("policy", policies, machine.policies):
        intact, failed = False, None
        for attack in _known("attack", attacks, machine.attacks):
            if progress:
                progress(f"{policy}, {attack}")
            result = failed or machine.attack(attack, None if intact else machine.policies[policy], device)
            failed = result if result.verdict == "boot failed" else None
            intact = result.verdict == "blocked" and not result.changed
            yield Cell(policy, attack, result.verdict, result)


def _known(kind: str, names: Sequence[str] | None, known: Mapping[str, Any]) -> list[str]:
    if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
        raise HvlabError(f"the {kind} names are a list, as in [{next(iter(known))!r}], not {quoted(names)}")
    for name in names or ():
        if not isinstance(name, str) or name not in known:
            raise HvlabError(f"there is no {kind} {quoted(name)}: there are {', '.join(known)}")
    return list(known if names is None else names)
