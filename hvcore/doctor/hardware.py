"""Problems of the remapping units: what they lack, and where they differ."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from ..inspect.units import Unit
from ..sources.assemble import LEFT_ON
from ..sources.dmar_lines import REGISTERS
from ..spec import vtd
from ..spec.dmar import DmarFlag
from .evidence import Evidence
from .records import Problem

__all__ = ["hardware_problems"]

_FIELDS: tuple[tuple[str, Callable[[Unit], object]], ...] = (
    ("input address width", lambda u: u.mgaw), ("levels of tables", lambda u: "/".join(map(str, u.levels))),
    ("superpages", lambda u: " ".join(u.superpages) or "none"), ("interrupt remapping", lambda u: _has(u, "IR")),
    ("x2APIC interrupts", lambda u: _has(u, "EIM")), ("queued invalidation", lambda u: _has(u, "QI")),
    ("pass-through", lambda u: _has(u, "PT")), ("snooped walks", lambda u: _has(u, "C")),
    ("protected memory", lambda u: "yes" if _protects(u) else "no"),
)
"""What units may differ in so that a core notices."""


def hardware_problems(found: Evidence) -> Iterator[Problem]:
    """All of them; none where there is no unit."""
    if found.units:
        taken = [u for u in found.units if any(a.startswith(REGISTERS) and f"{u.base:#x}" in a for a in found.description.assumptions)]
        note = f"; what {_bases(taken)} can do was not logged, usual registers were taken" if taken else ""
        for problem in (*_address_width(found), *_differing(found), *_no_superpages(found), *_no_protected_memory(found)):
            yield replace(problem, evidence=problem.evidence + note)
        yield from _interrupts(found)


def _has(unit: Unit, field: str) -> str:
    return "yes" if vtd.ECAP.get(unit.ecap, field) else "no"


def _protects(unit: Unit) -> bool:
    return bool(vtd.CAP.get(unit.cap, "PLMR") and vtd.CAP.get(unit.cap, "PHMR"))


def _bases(units: list[Unit]) -> str:
    named = ", ".join(f"{u.base:#x}" for u in units[:6]) + (f" and {len(units) - 6} more" if len(units) > 6 else "")
    return f"the unit{'s' if len(units) > 1 else ''} at {named}"


def _address_width(found: Evidence) -> Iterator[Problem]:
    """BitVisor asks all units for the width of the last one that it sees."""
    by_base = {u.base: u for u in found.units}
    last = by_base.get(found.seen[-1].base) if found.seen else None
    if last is None:
        return
    levels = -(-(last.mgaw - 12) // 9)
    lacking = [u for u in found.units if levels not in u.levels]
    spoilt = found.ending("no domain, for MGAW")
    if lacking:
        common = set.intersection(*(set(u.levels) for u in found.units))
        yield Problem("address-width-missing", "fatal" if spoilt else "serious", "bitvisor" if common else "machine",
                      f"the last unit's {last.mgaw} bits of input address ask for tables of {levels} levels, which {_bases(lacking)} "
                      f"cannot walk (offered: {', '.join(sorted({'/'.join(map(str, u.levels)) or 'none' for u in lacking}))})",
                      "PROFILE=mended" if common else "", spoilt)
    reach = 1 << 12 + 9 * levels
    if reach < found.ram_end:
        yield Problem("address-width-short", "serious", "bitvisor",
                      f"the last unit's {last.mgaw} bits of input address give tables that reach {reach:#x}, and RAM ends at "
                      f"{found.ram_end:#x}")


def _differing(found: Evidence) -> Iterator[Problem]:
    said = []
    for name, value in _FIELDS:
        groups: dict[object, list[Unit]] = {}
        for unit in found.units:
            groups.setdefault(value(unit), []).append(unit)
        if len(groups) > 1:
            said.append(f"{name} " + ", ".join(f"{v} ({_bases(units)})" for v, units in groups.items()))
    if said:
        widths = any(text.startswith(("input", "levels")) for text in said)
        yield Problem("units-differ", "serious" if widths else "note", "machine", "; ".join(said), "PROFILE=mended" if widths else "")


def _no_superpages(found: Evidence) -> Iterator[Problem]:
    lacking = [u for u in found.units if "2M" not in u.superpages]
    if lacking:
        costs = bool(found.ending("mm_page_alloc"))
        yield Problem("no-superpages", "serious" if costs else "note", "machine",
                      f"{_bases(lacking)} cannot walk to 2 MiB pages: each GiB that domain 0 maps costs 2 MiB of the core's memory")


def _no_protected_memory(found: Evidence) -> Iterator[Problem]:
    lacking = [u for u in found.units if not _protects(u)]
    if lacking:
        yield Problem("no-protected-memory", "note", "machine",
                      f"{_bases(lacking)} cannot protect memory by regions (CAP.PLMR, CAP.PHMR): until translation is on only an empty "
                      "root table closes the core's memory", "EARLY_PROTECTION=y")


def _interrupts(found: Evidence) -> Iterator[Problem]:
    lacking = [u for u in found.units if not vtd.ECAP.get(u.ecap, "IR")]
    table = found.table.table
    if lacking:
        yield Problem("no-interrupt-remapping", "serious", "machine",
                      f"{_bases(lacking)} cannot remap interrupts (ECAP.IR): a device can send any interrupt by a write")
    elif table is not None and not table.flags & DmarFlag.INTR_REMAP:
        yield Problem("interrupt-remapping-denied", "note", "firmware",
                      "every unit can remap interrupts, but the table's flag INTR_REMAP is clear: an operating system leaves it off")
    told = next((a for a in found.description.assumptions if a.startswith(LEFT_ON)), "")
    spoilt = found.ending("Conflict with VTD_TRANS")
    if told or spoilt:
        yield Problem("interrupt-remapping-left-on", "fatal", "firmware",
                      f"{told or f'{LEFT_ON}.'} BitVisor stops there if entries are present (Conflict with VTD_TRANS)",
                      "VTD_TRANS=n", spoilt)
