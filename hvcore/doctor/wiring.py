"""Problems of the DMAR table and the PCI tree: units that BitVisor does not see, functions that it gives to the wrong unit or to none."""

from collections.abc import Iterator

from ..inspect.functions import Function
from ..machine.description import MachineDescription
from ..spec.dmar import DmarFlag, Rmrr
from ..spec.pci import format_bdf
from ..spec.vtd import FaultReason
from ..vmm.dmar import matched_unit
from .evidence import Evidence
from .records import Problem

__all__ = ["is_amd", "wiring_problems"]

_NULL_POINTER = "no unit covers"
_NO_CONTEXT = (FaultReason.ROOT_NOT_PRESENT, FaultReason.CONTEXT_NOT_PRESENT)


def wiring_problems(found: Evidence) -> Iterator[Problem]:
    """All of them."""
    if not found.units:
        yield from _no_unit(found)
        return
    yield from _units_missed(found)
    yield from _functions(found)
    yield from _segments(found)
    yield from _include_all(found)
    yield from _opt_in(found)
    yield from _oddities(found)


def is_amd(description: MachineDescription) -> bool:
    """Whether the source shows an AMD machine with its own kind of unit."""
    return description.dmar is None and any("IVRS" in a for a in description.assumptions)


def _no_unit(found: Evidence) -> Iterator[Problem]:
    if is_amd(found.description):
        yield Problem("amd-iommu", "serious", "bitvisor",
                      "the machine has AMD-Vi units (IVRS) and no DMAR: the core has no driver for them, devices reach all memory")
    elif found.description.dmar is None:
        yield Problem("no-dmar", "serious", "firmware",
                      "there is no DMAR table: the machine has no VT-d or firmware has it switched off, devices reach all memory")
    else:
        yield Problem("no-units", "serious", "firmware", "the DMAR table names no remapping unit: devices reach all memory")


def _units_missed(found: Evidence) -> Iterator[Problem]:
    """Units that the table names and BitVisor's reading does not give."""
    seen = {u.base for u in found.seen}
    missed = [u for u in found.units if u.base not in seen]
    if not missed:
        return
    said = f" ({'; '.join(found.said[:2])})" if found.said else ""
    late = any("out of order" in o for row in found.table for o in row.oddities)
    yield Problem("units-missed", "serious", "firmware" if late else "bitvisor",
                  f"BitVisor reads {len(seen)} of {len(found.units)} units and stops there{said}: the unit at {missed[0].base:#x} is never "
                  "switched on, what it covers reaches all memory", "PROFILE=mended")


def _functions(found: Evidence) -> Iterator[Problem]:
    """Each function's unit by the wiring beside the one that BitVisor looks up for it."""
    units = list(found.seen)
    own = [f for f in found.functions if not f.segment]
    looked_up = {f.source: u.base if (u := matched_unit(units, f.source)) else None for f in own}
    seen = {u.base for u in units}
    uncovered = [f for f in own if f.unit is None]
    missed = [f for f in own if f.unit in seen and looked_up.get(f.requester) != f.unit]
    spoilt = found.ending(_NULL_POINTER)
    if uncovered:
        fatal = tuple(p for p in spoilt if any(looked_up[f.source] is None for f in uncovered))
        yield Problem("function-uncovered", "fatal" if fatal else "serious", "firmware",
                      f"no unit covers {_named(uncovered)}: " + ("BitVisor follows a null pointer there, and a core that passes over them "
                      "cannot restrain them" if fatal else "nothing restrains their DMA"), "PROFILE=mended" if fatal else "", fatal)
    if missed:
        yield _missed(found, missed, looked_up, spoilt)


def _missed(found: Evidence, missed: list[Function], looked_up: dict[int, int | None], null_pointer: tuple[str, ...]) -> Problem:
    nowhere = [f for f in missed if looked_up.get(f.source) is None]
    aliased = [f for f in missed if f.requester != f.source]
    requesters = {f.requester for f in missed}
    lost = tuple(b.policy for b in found.boots.values() if b.outcome == "disk-lost"
                 and any(f.reason in _NO_CONTEXT and f.source in requesters for f in b.faults))
    spoilt = (*(null_pointer if nowhere else ()), *lost)
    if nowhere:
        how = "BitVisor finds no unit for it by its own number and follows a null pointer"
    elif aliased:
        how = f"its DMA arrives as {format_bdf(aliased[0].requester)}, for which BitVisor makes no context entry"
    else:
        how = "BitVisor gives it to another unit by its own number, so its own unit refuses its DMA"
    first = (nowhere or aliased or missed)[0]
    return Problem("behind-bridge-missed", "fatal" if spoilt else "serious", "bitvisor",
                   f"{_named(missed)}: not looked up as they are wired; of {format_bdf(first.source)}: {how}", "PROFILE=mended", spoilt)


def _named(functions: list[Function]) -> str:
    said = ", ".join(f"{format_bdf(f.source)} ({f.kind})" for f in functions[:4])
    return said + (f" and {len(functions) - 4} more" if len(functions) > 4 else "")


def _segments(found: Evidence) -> Iterator[Problem]:
    table = found.table.table
    segments = {d.segment for d in table.drhds} if table else set()
    segments |= {f.segment for f in found.functions} | {e.segment for e in found.description.ecams}
    if len(segments) > 1:
        yield Problem("several-segments", "serious", "bitvisor",
                      f"there are PCI segments {', '.join(f'{s:04x}' for s in sorted(segments))}, and the core looks at 0000 only: devices "
                      "of the others work only where no unit restrains them")


def _include_all(found: Evidence) -> Iterator[Problem]:
    if not any(u.include_all for u in found.units if not u.segment):
        yield Problem("no-include-all", "note", "firmware",
                      "no unit of segment 0 has INCLUDE_PCI_ALL: what no scope names, a device plugged in later too, is covered by none")


def _opt_in(found: Evidence) -> Iterator[Problem]:
    table = found.table.table
    if table is not None and table.flags & DmarFlag.DMA_CTRL_PLATFORM_OPT_IN:
        yield Problem("platform-opt-in", "note", "firmware",
                      "the table's flag DMA_CTRL_PLATFORM_OPT_IN asks that devices be restrained from the start; the core closes its "
                      "memory late, and its guest does not see the flag", "EARLY_PROTECTION=y")


def _oddities(found: Evidence) -> Iterator[Problem]:
    said = [f"{row.structure}{f' {row.start:#x}' if row.start is not None else ''}: {o}"
            for row in found.table if not isinstance(row.raw, Rmrr) and row.firmware is not False for o in row.all_oddities]
    if said:
        more = f" and {len(said) - 4} more" if len(said) > 4 else ""
        yield Problem("table-odd", "note", "firmware", "; ".join(said[:4]) + more)
