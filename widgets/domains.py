"""Which PCI function reaches which memory by which tables: tree of functions, units, domains, tables, memory, from left to right."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf
from statistics import fmean

from hvcore.inspect.domains import Domain
from hvcore.inspect.format import address, devices, size
from hvcore.inspect.functions import Function
from hvcore.inspect.records import html_table
from hvcore.inspect.units import Unit

from .drawing import MUTED, ROW, Drawing, Figure, box_height, device_part, domain_part, path_part, range_part
from .paths import BLOCKED, EMPTY, NO_UNIT, OFF, Path, paths_of
from .pcitree import Row, tree_rows
from .permissions import FILLS, UNTRANSLATED
from .selection import domain_key

__all__ = ["domains_figure"]

WIDTH = 1080.0
COLUMNS = {"PCI functions": (4, 252), "unit": (318, 142), "domain": (506, 118), "tables": (668, 138), "memory": (848, 228)}
"""Left edge and width of each column."""
INDENT, PITCH, GAP, RUN_PITCH = 13.0, 20.0, 16.0, 20.0
SHOWN_RUNS = 6


@dataclass(frozen=True, slots=True)
class Hub:
    """A unit (or, where its paths have none, what stands for it) at height `middle`, with its paths and their middles."""

    middle: float
    paths: tuple[tuple[Path, float], ...]

    @property
    def lines(self) -> list[str]:
        """What its node says."""
        return _unit_lines(self.paths[0][0])

    @property
    def bottom(self) -> float:
        """Where it ends."""
        return max([self.middle + box_height(self.lines) / 2, *(middle + _height(path) / 2 for path, middle in self.paths)])


def domains_figure(units: Sequence[Unit], domains: Iterable[Domain], functions: Iterable[Function],
                   other: Sequence[Path] | None = None) -> Figure:
    """The graph from PCI functions to memory, as configuration space and the units' registers and tables have it.

    With the paths of an `other` graph, those that are not the same there are marked.
    """
    functions = list(functions)
    paths = paths_of(units, list(domains), functions)
    way = {(f.segment, f.source): path for path in paths for f in path.functions}
    rows = tree_rows(functions, lambda f: id(way[f.segment, f.source]))
    drawing = Drawing(WIDTH)
    top = _head(drawing, paths)
    hubs = _layout(paths, _wished(rows, way, top), top)
    for hub in hubs:
        _draw_hub(drawing, hub)
    hub_of = {id(path): hub for hub in hubs for path, _ in hub.paths}
    for i, row in enumerate(rows):
        path = way[row.functions[0].segment, row.functions[0].source] if row.functions else None
        _draw_row(drawing, row, top + PITCH * i, path, hub_of[id(path)].middle if path else top)
    if other is not None:
        _mark(drawing, hubs, {*map(str, other)})
    drawing.height = max([top + PITCH * len(rows), *(hub.bottom for hub in hubs)]) + 8
    title = "Domains: which device reaches which memory"
    alt = "; ".join(map(str, paths)) if units else NO_UNIT
    return Figure(title, alt, drawing.svg(title, alt), _table(paths))


def _head(drawing: Drawing, paths: Sequence[Path]) -> float:
    """Legend and headings; returns where the nodes begin."""
    used = {run.perm for path in paths if path.domain for run in path.domain.runs[:SHOWN_RUNS]}
    used |= {UNTRANSLATED for path in paths if path.open}
    y = drawing.legend(18, [("Memory:", [fill for perm, fill in FILLS.items() if perm in used])] if used else []) + 8
    for name, (x, _) in COLUMNS.items():
        drawing.text(x, y, name, colour=MUTED)
    return y + 12


# --- where things go

def _wished(rows: Sequence[Row], way: Mapping[tuple[int, int], Path], top: float) -> dict[int, float]:
    """The height at which each path (by its id) would be straight opposite its functions' rows."""
    heights: dict[int, list[float]] = {}
    for i, row in enumerate(rows):
        for f in row.functions[:1]:
            heights.setdefault(id(way[f.segment, f.source]), []).append(top + PITCH * i + ROW / 2)
    return {path: fmean(found) for path, found in heights.items()}


def _layout(paths: Sequence[Path], wished: Mapping[int, float], top: float) -> list[Hub]:
    """Units from top to bottom in the order of their functions, none upon another, as near to these as that allows."""
    groups = [sorted(group, key=lambda p: wished.get(id(p), inf)) for _, group in groupby(paths, key=lambda p: p.unit)]
    hubs: list[Hub] = []
    for group in sorted(groups, key=lambda g: _mean(g, wished)):
        height = sum(_height(path) + GAP for path in group) - GAP
        extent = max(height, box_height(_unit_lines(group[0])))
        mean = _mean(group, wished)
        start = max(hubs[-1].bottom + GAP if hubs else top, mean - extent / 2 if mean < inf else top)
        hubs.append(_hub(group, start + (extent - height) / 2, start + extent / 2))
    return hubs


def _mean(group: Sequence[Path], wished: Mapping[int, float]) -> float:
    found = [wished[id(path)] for path in group if id(path) in wished]
    return fmean(found) if found else inf


def _hub(group: Sequence[Path], top: float, middle: float) -> Hub:
    spots = []
    for path in group:
        spots.append((path, top + _height(path) / 2))
        top += _height(path) + GAP
    return Hub(middle, tuple(spots))


def _height(path: Path) -> float:
    """Room a path takes."""
    if path.domain is None:
        return box_height([path.fate, ""])
    rows = min(len(path.domain.runs), SHOWN_RUNS + 1)
    return max(box_height(_domain_lines(path)), box_height(_table_lines(path.domain)), RUN_PITCH * rows)


# --- drawing

def _draw_row(drawing: Drawing, row: Row, y: float, path: Path | None, hub: float) -> None:
    x, width = COLUMNS["PCI functions"]
    indent = INDENT * min(row.depth, 6)
    if path is None:
        drawing.text(x, y + ROW - 5, row.words, size=11, bold=True)
        return
    ids = [i for f in row.functions for i in (f.source, f.requester)]
    members = path_part([*ids, *([domain_key(path.domain.unit, path.domain.did)] if path.domain else [])])
    part = {**device_part([f.source for f in row.functions]), **members}
    drawing.row(x + indent, y, width - indent, row.words, row.tip, part)
    drawing.link(x + width, y + ROW / 2, COLUMNS["unit"][0], hub, dashed=path.domain is None, tip=path.fate, part=members)


def _draw_hub(drawing: Drawing, hub: Hub) -> None:
    """A unit and all of its paths."""
    x, width = COLUMNS["unit"]
    unit = hub.paths[0][0].unit
    members = path_part(member for path, _ in hub.paths for member in path.members)
    tip = f"unit {address(unit.base)}: CAP {address(unit.cap)}, ECAP {address(unit.ecap)}, GSTS {address(unit.gsts)}" if unit else ""
    part = {**range_part(unit.base, unit.base + 4096), "space": "physical"} if unit else {}
    drawing.box(x, hub.middle - box_height(hub.lines) / 2, width, hub.lines, tip, {**part, **members})
    for path, middle in hub.paths:
        if path.domain:
            _draw_domain(drawing, path, path.domain, middle, hub.middle)
        else:
            _draw_fate(drawing, path, middle, hub.middle)


def _mark(drawing: Drawing, hubs: Iterable[Hub], known: Container[str]) -> None:
    """A mark on each path that is not among those of another graph."""
    drawing.text(WIDTH - 4, 18, "≠ not the same in the other run", anchor="end")
    for path, middle in (spot for hub in hubs for spot in hub.paths):
        if str(path) not in known:
            drawing.badge(COLUMNS["domain"][0] - 20, middle + 4, "≠")


def _draw_fate(drawing: Drawing, path: Path, middle: float, hub: float) -> None:
    """What becomes of functions that have no domain."""
    left = sum(COLUMNS["unit"])
    if path.open:
        drawing.link(left, hub, COLUMNS["memory"][0], middle, dashed=True, tip=path.fate, part=path_part(path.members))
        _draw_run(drawing, UNTRANSLATED, "everything", middle)
        return
    x, width = COLUMNS["domain"][0], sum(COLUMNS["tables"]) - COLUMNS["domain"][0]
    lines = ["blocked", "no context entry"] if path.fate == BLOCKED else ["nobody", EMPTY]
    drawing.link(left, hub, x, middle, dashed=True, tip=path.fate, part=path_part(path.members))
    drawing.box(x, middle - box_height(lines) / 2, width, lines, path.fate, path_part(path.members))


def _draw_domain(drawing: Drawing, path: Path, domain: Domain, middle: float, hub: float) -> None:
    """A domain, its tables and memory, linked to the unit at height `hub`."""
    key, members = domain_key(domain.unit, domain.did), path_part(path.members)
    root = {**range_part(domain.root, domain.root + 4096), "space": "physical"} if domain.root else {}
    x, height = sum(COLUMNS["unit"]), hub
    for name, lines, part in (("domain", _domain_lines(path), domain_part(key)), ("tables", _table_lines(domain), root)):
        left, width = COLUMNS[name]
        drawing.link(x, height, left, middle, part=members)
        tip = ": ".join(filter(None, ["; ".join(lines), domain.remark]))
        drawing.box(left, middle - box_height(lines) / 2, width, lines, tip, {**part, **members})
        x, height = left + width, middle
    _draw_memory(drawing, path, domain, x, middle)


def _draw_memory(drawing: Drawing, path: Path, domain: Domain, x: float, middle: float) -> None:
    """The domain's first runs, each with a link from `x`."""
    left, more = COLUMNS["memory"][0], len(domain.runs) - SHOWN_RUNS
    members = path_part(path.members)
    top = middle - RUN_PITCH / 2 * min(len(domain.runs), SHOWN_RUNS + 1) + RUN_PITCH / 2
    for i, run in enumerate(domain.runs[:SHOWN_RUNS]):
        drawing.link(x, middle, left, top + RUN_PITCH * i, part=members)
        part = {**range_part(run.start, run.end), "space": "iova", **domain_part(domain_key(domain.unit, domain.did)), **members}
        _draw_run(drawing, run.perm, f"{address(run.start)}-{address(run.end)}", top + RUN_PITCH * i, part)
    if more > 0:
        drawing.text(left + 26, top + RUN_PITCH * SHOWN_RUNS + 4, f"and {more:,} more runs", size=11, colour=MUTED)
    if not len(domain.runs):
        words = "every request is refused" if domain.problem else "nothing is mapped"
        drawing.text(left + 6, middle + 4, words, size=11, colour=MUTED)


def _draw_run(drawing: Drawing, perm: str, words: str, middle: float, part: Mapping[str, str] | None = None) -> None:
    x, _ = COLUMNS["memory"]
    letters = "" if perm == UNTRANSLATED else f"{perm} "
    drawing.rect(x, middle - 7, 20, 14, FILLS.get(perm, FILLS["mixed"]), letters + words, part=part or {})
    drawing.text(x + 26, middle + 4, letters + words, size=11)


# --- words

def _unit_lines(path: Path) -> list[str]:
    unit = path.unit
    if unit is None:
        return ["no unit", "not translated"]
    return [f"unit {address(unit.base)}", "INCLUDE_PCI_ALL" if unit.include_all else f"segment {unit.segment}",
            "translating" if unit.translating else OFF]


def _domain_lines(path: Path) -> list[str]:
    domain = path.domain
    assert domain is not None
    strangers = [f"{len(path.strangers)} unused id{'s' * (len(path.strangers) > 1)}"] if path.strangers else []
    return [f"domain {domain.did}", f"{domain.levels} levels", *strangers, *(["see its remark"] if domain.remark else [])]


def _table_lines(domain: Domain) -> list[str]:
    if domain.translation == "pass-through":
        return ["no table", "pass-through"]
    leaves = [f"{count:,} × {name}" for name, count in domain.leaves.items() if count]
    return [f"{domain.table_pages:,} table pages", size(domain.table_pages * 4096), f"root {address(domain.root)}", *leaves]


def _cells(domain: Domain) -> list[str]:
    leaves = ", ".join(_table_lines(domain)[3:])
    return [str(domain.did), str(domain.levels), address(domain.root), f"{domain.table_pages:,}", leaves, f"{len(domain.runs):,}"]


def _table(paths: Sequence[Path]) -> str:
    labels = ["unit", "functions", "domain", "levels", "root", "table pages", "leaves", "runs", "remark"]
    rows = [[address(path.unit.base) if path.unit else "none", devices(list(dict.fromkeys([f.source for f in path.functions]))),
             *(_cells(path.domain) if path.domain else [""] * 6), (path.domain.remark or "") if path.domain else path.fate]
            for path in paths]
    return html_table("Domains  (root is host-physical)", labels, rows, [False] * len(labels))
