"""Which PCI function reaches which memory by which tables: functions, units, domains, tables, memory, from left to right."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hvcore.inspect.domains import Domain
from hvcore.inspect.format import address, devices, size
from hvcore.inspect.records import html_table
from hvcore.inspect.units import Unit

from .drawing import MUTED, Drawing, Figure, box_height, device_part, domain_part, range_part
from .permissions import FILLS, UNTRANSLATED
from .selection import domain_key

__all__ = ["domains_figure"]

WIDTH = 980.0
COLUMNS = {"PCI functions": (4, 200), "unit": (240, 150), "domain": (426, 132), "tables": (594, 140), "memory": (770, 206)}
"""Left edge and width of each column."""

SHOWN_FUNCTIONS, SHOWN_RUNS, A_LINE = 12, 6, 3
GAP = 16.0
NO_UNIT = "no remapping unit: every device reaches all memory"
_OFF, _BLOCKED, _EMPTY = "translation is off", "no context entry: all blocked", "covers no function that is here"


@dataclass(frozen=True, slots=True)
class Path:
    """Functions of one unit that share a fate: a domain; or, without one, what `fate` says."""

    unit: Unit
    functions: tuple[int, ...]
    domain: Domain | None
    fate: str = ""


def domains_figure(units: Sequence[Unit], domains: Sequence[Domain]) -> Figure:
    """The graph from PCI functions to memory, as the units' registers and tables have it."""
    paths = [path for unit in units for path in _paths(unit, domains)]
    drawing = Drawing(WIDTH)
    used = {run.perm for path in paths if path.domain for run in path.domain.runs[:SHOWN_RUNS]}
    used |= {UNTRANSLATED for path in paths if path.fate == _OFF}
    y = drawing.legend(18, [("Memory:", [fill for perm, fill in FILLS.items() if perm in used])] if used else []) + 8
    for name, (x, _) in COLUMNS.items():
        drawing.text(x, y, name, colour=MUTED)
    y += 12
    for unit in units:
        y = _unit(drawing, unit, [path for path in paths if path.unit is unit], y)
    if not units:
        drawing.text(COLUMNS["PCI functions"][0], y + 16, NO_UNIT)
    drawing.height = y + (0 if units else 30)
    title = "Domains: which device reaches which memory"
    alt = "; ".join(_words(path) for path in paths) or NO_UNIT
    return Figure(title, alt, drawing.svg(title, alt), _table(paths))


def _paths(unit: Unit, domains: Sequence[Domain]) -> Iterator[Path]:
    if not unit.translating:
        yield Path(unit, tuple(unit.devices), None, _OFF)
        return
    here = [domain for domain in domains if domain.unit == unit.base]
    for domain in here:
        yield Path(unit, tuple(domain.devices), domain)
    rest = sorted(set(unit.devices) - {source for domain in here for source in domain.devices})
    if rest or not here:
        yield Path(unit, tuple(rest), None, _BLOCKED if rest else _EMPTY)


def _unit(drawing: Drawing, unit: Unit, paths: Sequence[Path], y: float) -> float:
    """One unit with its paths, from height `y`; returns where the next begins."""
    lines = _unit_lines(unit)
    height = sum(_height(path) + GAP for path in paths) - GAP
    total = max(height, box_height(lines))
    centre = y + total / 2
    x, width = COLUMNS["unit"]
    tip = f"CAP {address(unit.cap)}, ECAP {address(unit.ecap)}, GSTS {address(unit.gsts)}"
    drawing.box(x, centre - box_height(lines) / 2, width, lines, tip)
    top = centre - height / 2
    for path in paths:
        _path(drawing, path, top + _height(path) / 2, centre)
        top += _height(path) + GAP
    return y + total + GAP


def _path(drawing: Drawing, path: Path, middle: float, unit_middle: float) -> None:
    """Everything of one path but the unit, centred at height `middle`."""
    lines = _function_lines(path)
    x, width = COLUMNS["PCI functions"]
    drawing.box(x, middle - box_height(lines) / 2, width, lines, " ".join(devices([source]) for source in path.functions),
                device_part(path.functions))
    ux, uwidth = COLUMNS["unit"]
    drawing.link(x + width, middle, ux, unit_middle, dashed=path.fate in (_BLOCKED, _EMPTY), tip=path.fate)
    if path.domain is None:
        if path.fate == _OFF:
            drawing.link(ux + uwidth, unit_middle, COLUMNS["memory"][0], middle, dashed=True, tip=_OFF)
            _run(drawing, UNTRANSLATED, "everything", middle)
        return
    previous, height = ux + uwidth, unit_middle
    parts = (domain_part(domain_key(path.domain.unit, path.domain.did)), range_part(path.domain.root, path.domain.root + 4096))
    columns = (("domain", _domain_lines(path.domain)), ("tables", _table_lines(path.domain)))
    for part, (name, words) in zip(parts, columns, strict=True):
        x, width = COLUMNS[name]
        drawing.link(previous, height, x, middle)
        drawing.box(x, middle - box_height(words) / 2, width, words, path.domain.remark or "", part)
        previous, height = x + width, middle
    _memory(drawing, path.domain, previous, middle)


def _memory(drawing: Drawing, domain: Domain, x: float, middle: float) -> None:
    """The domain's first runs, each with a link from `x`."""
    more = len(domain.runs) - SHOWN_RUNS
    top = middle - 10.0 * _run_rows(domain) + 10
    for i, run in enumerate(domain.runs[:SHOWN_RUNS]):
        drawing.link(x, middle, COLUMNS["memory"][0], top + 20 * i)
        _run(drawing, run.perm, f"{address(run.start)}-{address(run.end)}", top + 20 * i)
    if more > 0:
        drawing.text(COLUMNS["memory"][0] + 26, top + 20 * SHOWN_RUNS + 4, f"and {more:,} more runs", size=11, colour=MUTED)
    if not len(domain.runs):
        words = "every request is refused" if domain.problem else "nothing is mapped"
        drawing.text(COLUMNS["memory"][0] + 6, middle + 4, words, size=11, colour=MUTED)


def _run(drawing: Drawing, perm: str, words: str, middle: float) -> None:
    x, _ = COLUMNS["memory"]
    drawing.rect(x, middle - 7, 20, 14, FILLS.get(perm, FILLS["mixed"]), perm)
    letters = "" if perm == UNTRANSLATED else f"{perm} "
    drawing.text(x + 26, middle + 4, letters + words, size=11)


def _run_rows(domain: Domain) -> int:
    return min(len(domain.runs), SHOWN_RUNS + 1)


def _height(path: Path) -> float:
    """Room a path takes."""
    heights = [box_height(_function_lines(path))]
    if path.domain:
        heights += [box_height(_domain_lines(path.domain)), box_height(_table_lines(path.domain)), 20.0 * _run_rows(path.domain)]
    return max(heights)


def _count(path: Path) -> str:
    return f"{len(path.functions)} function{'' if len(path.functions) == 1 else 's'}"


def _function_lines(path: Path) -> list[str]:
    names = [devices([source]) for source in path.functions[:SHOWN_FUNCTIONS]]
    count = len(path.functions)
    lines = [_count(path)] + ["  ".join(names[i:i + A_LINE]) for i in range(0, len(names), A_LINE)]
    if count > SHOWN_FUNCTIONS:
        lines.append(f"and {count - SHOWN_FUNCTIONS} more")
    return lines + ([path.fate] if path.fate in (_BLOCKED, _EMPTY) else [])


def _unit_lines(unit: Unit) -> list[str]:
    return [f"unit {address(unit.base)}", "INCLUDE_PCI_ALL" if unit.include_all else f"segment {unit.segment}",
            "translating" if unit.translating else _OFF]


def _domain_lines(domain: Domain) -> list[str]:
    return [f"domain {domain.did}", f"{domain.levels} levels", *(["see its remark"] if domain.remark else [])]


def _table_lines(domain: Domain) -> list[str]:
    if domain.translation == "pass-through":
        return ["no table", "pass-through"]
    leaves = [f"{count:,} × {name}" for name, count in domain.leaves.items() if count]
    return [f"{domain.table_pages:,} table pages", size(domain.table_pages * 4096), f"root {address(domain.root)}", *leaves]


def _words(path: Path) -> str:
    who = f"{_count(path)} of unit {address(path.unit.base)}"
    if path.domain is None:
        return f"{who}: {path.fate}"
    granted: dict[str, int] = {}
    for run in path.domain.runs[:SHOWN_RUNS]:
        granted[run.perm] = granted.get(run.perm, 0) + run.size
    total = ", ".join(f"{size(count)} {perm}" for perm, count in granted.items()) or "nothing mapped"
    return f"{who} in domain {path.domain.did}: {total}"


def _cells(domain: Domain) -> list[str]:
    leaves = ", ".join(_table_lines(domain)[3:])
    return [str(domain.did), str(domain.levels), address(domain.root), f"{domain.table_pages:,}", leaves, f"{len(domain.runs):,}"]


def _table(paths: Sequence[Path]) -> str:
    labels = ["unit", "functions", "domain", "levels", "root", "table pages", "leaves", "runs", "remark"]
    rows = [[address(path.unit.base), devices(path.functions), *(_cells(path.domain) if path.domain else [""] * 6),
             (path.domain.remark or "") if path.domain else path.fate]
            for path in paths]
    return html_table("Domains  (root is host-physical)", labels, rows, [False] * len(labels))
