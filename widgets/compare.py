"""Two runs side by side: the same figures of both on the same axes, with what differs marked in both."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvcore.inspect.runs import Runs

from .differences import subjects_of
from .domains import domains_figure
from .drawing import Figure
from .e820 import e820_figure
from .paths import paths_of
from .permissions import outline, permissions_figure
from .views import table_lanes, vmm_range

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["Comparison", "Pair", "compare_figures"]

MARKS = 200
"""Ranges that are marked; of more only the whole is."""
Ranges = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Pair:
    """The same figure of two runs."""

    before: Figure
    after: Figure


@dataclass(frozen=True)
class Comparison:
    """Pairs of figures: memory maps, graph, permissions.  Displays itself, side by side where there is room."""

    names: tuple[str, str]
    e820: Pair
    graph: Pair
    permissions: Pair

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All of them, from top to bottom."""
        return self.e820, self.graph, self.permissions

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {figure!r}" for pair in self.pairs
                         for name, figure in zip(self.names, (pair.before, pair.after), strict=True))

    def _repr_html_(self) -> str:
        cell = '<div style="flex:1 1 480px;min-width:0">'
        rows = (f"{cell}<strong>{html.escape(name)}</strong>{figure.html}</div>" for pair in self.pairs
                for name, figure in zip(self.names, (pair.before, pair.after), strict=True))
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px 20px">{"".join(rows)}</div>'


def compare_figures(left: "Run", right: "Run", *, scale: str = "compressed") -> Comparison:
    """The figures of both runs; `scale` is one of `widgets.scale.SCALES`."""
    names = tuple(f"run {run.number}: {run.outcome}" for run in (left, right))
    return Comparison((names[0], names[1]), _e820(left, right, scale), _graphs(left, right), _permissions(left, right, scale))


def _e820(left: "Run", right: "Run", scale: str) -> Pair:
    subjects = subjects_of(left, right)[:2]
    marks = _marks([s.differences for s in subjects])
    ranges = [(e.start, e.end) for run in (left, right) for e in (*run.e820.firmware, *run.e820.guest)]
    ranges += [r for run in (left, right) if (r := vmm_range(run))]
    return Pair(*(e820_figure(run.e820.firmware, run.e820.guest, vmm_range(run), scale=scale, axis_of=ranges, marks=marks)
                  for run in (left, right)))


def _graphs(left: "Run", right: "Run") -> Pair:
    before, after = (paths_of(run.units, run.domains, run.functions) for run in (left, right))
    return Pair(domains_figure(left.units, left.domains, left.functions, after),
                domains_figure(right.units, right.domains, right.functions, before))


def _permissions(left: "Run", right: "Run", scale: str) -> Pair:
    marks = _marks([s.differences for s in subjects_of(left, right)[2:]])
    lanes = [table_lanes(run, run.domains) for run in (left, right)]
    maps = [run.e820.guest or run.e820.firmware for run in (left, right)]
    ranges = [r for run, own, e820 in zip((left, right), lanes, maps, strict=True) for r in outline(own, e820, vmm_range(run))]
    return Pair(*(permissions_figure(own, e820, vmm_range(run), scale=scale, axis_of=ranges, marks=marks)
                  for run, own, e820 in zip((left, right), lanes, maps, strict=True)))


def _marks(differences: Sequence[Runs]) -> Ranges:
    """The half-open ranges where any of these has a difference."""
    ranges = sorted({(r.start, r.end) for runs in differences for r in runs[:MARKS + 1]})
    return ranges if len(ranges) <= MARKS else [(ranges[0][0], max(end for _, end in ranges))]
