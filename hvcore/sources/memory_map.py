"""What follows from a firmware's E820 map: whether it can be right, where the DRAM is, where firmware keeps its tables.

All addresses are host-physical, all ranges half-open.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

from ..errors import BadMachine
from ..machine.description import EcamDescription
from ..machine.memory import LIMIT, PAGE
from ..spec.bits import align_down, align_up
from ..spec.e820 import E820Entry, E820Type

__all__ = ["FOUR_GIB", "GUEST_ROOM", "MMIO", "Range", "acpi_place", "check_bootable", "check_e820", "dram_runs", "fill_low_memory",
           "find_window", "free_ecam", "guess_ecam", "overlaps", "unsaid"]

Range: TypeAlias = tuple[int, int]

ONE_MIB, ONE_GIB, FOUR_GIB = 1 << 20, 1 << 30, 1 << 32
MMIO: Range = (0xFEC00000, FOUR_GIB)
"""IOAPIC, local APIC, chipset and firmware ROM: never RAM."""
GUEST_ROOM = 32 * ONE_MIB
"""Usable bytes from 1 MiB up without which nothing can boot."""
_MOST_ENTRIES = 1024
_RESERVED_END = 0xF0000000
"""Reserved entries are taken for DRAM up to here at most, so that devices keep some room below 4 GiB."""
_TABLES = 64 << 10
"""Bytes that are wanted for firmware's tables."""
_SHADOW = 0xE0000
"""Firmware's tables go here where the map has no better place."""
_ECAM_BUSES = (256, 128, 64)

_DRAM_TYPES = frozenset({1, 3, 4, 5, 20})
_STRICTNESS: dict[int, int] = {E820Type.USABLE: 0, E820Type.ACPI_DATA: 1, E820Type.ACPI_NVS: 3, E820Type.UNUSABLE: 4, E820Type.RESERVED: 5}
_OTHER = 2
"""How strict every other type is."""


def overlaps(a: Range, b: Range) -> bool:
    """Whether two ranges share a byte."""
    return a[0] < b[1] and b[0] < a[1]


def check_e820(entries: Sequence[E820Entry], where: Sequence[str] = ()) -> tuple[tuple[E820Entry, ...], tuple[str, ...]]:
    """The map sorted and free of overlaps, and a sentence for each thing that was put right.

    `where` names each entry's origin (`line 12`).  Raises `BadMachine` for no entries, far too many, one that ends before it starts, and
    RAM beyond what hvlab emulates.
    """
    if not 1 <= len(entries) <= _MOST_ENTRIES:
        raise BadMachine(f"an E820 map has 1 to {_MOST_ENTRIES} entries, this one {len(entries)}")
    for i, e in enumerate(entries):
        if e.end <= e.start:
            place = where[i] if i < len(where) else f"entry {i + 1}"
            what = "no bytes" if e.end == e.start else "its end before its start"
            raise BadMachine(f"{place}: the E820 entry [{e.start:#x}, {e.end:#x}) has {what}: correct it or take it out")
    notes = []
    ordered = tuple(sorted(entries, key=lambda e: e.start))
    if ordered != tuple(entries):
        notes.append("The E820 entries were not in ascending order: they were sorted.")
    flat = _flatten(ordered)
    if flat != ordered:
        notes.append(f"E820 entries overlap ({_first_overlap(ordered)}): where they do, the stricter type was kept.")
    end = max((e.end for e in flat if e.usable), default=0)
    if end > LIMIT:
        raise BadMachine(f"usable RAM ends at {end:#x}, beyond the {LIMIT >> 40} TiB that hvlab emulates: shorten the E820 entry there")
    return flat, tuple(notes)


def unsaid(entries: Iterable[E820Entry]) -> tuple[str, ...]:
    """A sentence on holes between entries below the top of low RAM, where there are some: real maps leave none there."""
    entries = sorted(entries)
    top = max((e.end for e in entries if e.usable and e.end <= FOUR_GIB), default=0)
    holes = [f"[{a.end:#x}, {b.start:#x})" for a, b in pairwise(entries) if b.start - a.end >= ONE_MIB <= a.end and b.start <= top]
    more = f" and {len(holes) - 3} more" if len(holes) > 3 else ""
    return (f"The E820 map does not say what lies at {', '.join(holes[:3])}{more}: a line may be missing; no RAM was taken to be there.",
            ) if holes else ()


def _first_overlap(ordered: Sequence[E820Entry]) -> str:
    return next(f"{a} and {b}" for a, b in pairwise(ordered) if b.start < a.end)


def _flatten(ordered: Sequence[E820Entry]) -> tuple[E820Entry, ...]:
    """The same map without overlaps: every byte gets the strictest type that is said of it, of equals the first."""
    if all(a.end <= b.start for a, b in pairwise(ordered)):
        return tuple(ordered)
    pieces: list[tuple[int, int, int]] = []
    for start, end in pairwise(sorted({p for e in ordered for p in (e.start, e.end)})):
        over = [(_STRICTNESS.get(e.type, _OTHER), -i) for i, e in enumerate(ordered) if e.start <= start and end <= e.end]
        if over:
            winner = -max(over)[1]
            first = pieces.pop()[0] if pieces and pieces[-1][1:] == (start, winner) else start
            pieces.append((first, end, winner))
    return tuple(E820Entry(start, end, ordered[winner].type) for start, end, winner in pieces)


def fill_low_memory(entries: Sequence[E820Entry]) -> tuple[tuple[E820Entry, ...], tuple[str, ...]]:
    """The map with what every PC has below 1 MiB, where a log has lost it: RAM to 0x9fc00, firmware's memory above."""
    if any(e.usable and e.start < 0xA0000 for e in entries):
        return tuple(entries), ()
    low = (E820Entry(0, 0x9FC00, 1), E820Entry(0x9FC00, 0xA0000, 2), E820Entry(0xF0000, ONE_MIB, 2))
    kept = [e for e in entries if e.end > e.start]
    added = [piece for e in low for piece in _outside(e, kept)]
    said = ", ".join(str(e) for e in added)
    return tuple(sorted([*added, *kept])), (f"The E820 map has no usable memory below 640 KiB: {said} were added.",)


def _outside(entry: E820Entry, others: Iterable[E820Entry]) -> Iterator[E820Entry]:
    """The parts of `entry` that none of `others` covers."""
    at = entry.start
    for o in sorted(others):
        if o.start < entry.end and o.end > at:
            if o.start > at:
                yield E820Entry(at, o.start, entry.type)
            at = o.end
    if at < entry.end:
        yield E820Entry(at, entry.end, entry.type)


def check_bootable(entries: Iterable[E820Entry]) -> None:
    """Raises `BadMachine` where no guest could be put: too little usable RAM at 1 MiB, or RAM where the PC has its chipset."""
    entries = tuple(entries)
    for e in entries:
        if e.usable and overlaps((e.start, e.end), MMIO):
            raise BadMachine(f"the E820 entry {e} covers memory from {MMIO[0]:#x} to 4 GiB, where a PC has its IOAPIC, local APIC and ROM: "
                             "correct it")
    room = max((min(e.end, FOUR_GIB) - ONE_MIB for e in entries if e.usable and e.start <= ONE_MIB < e.end), default=0)
    if room < GUEST_ROOM:
        raise BadMachine(f"the E820 map has {room >> 10} KiB of usable RAM at 1 MiB and a guest needs {GUEST_ROOM >> 20} MiB there: "
                         "if entries are missing, add the log from its first line on")


def dram_runs(entries: Iterable[E820Entry], blocked: Iterable[Range]) -> tuple[Range, ...]:
    """Where DRAM is: from 0 to the top of low RAM, and what lies above 4 GiB, in whole pages.

    Reserved entries that touch RAM are RAM that firmware keeps (graphics, management), unless they lie in `blocked`: configuration
    window, registers.  Above 4 GiB only those below 1 GiB in size.  Raises `BadMachine` where a run ends beyond what hvlab emulates.
    """
    entries, blocked = sorted(entries), sorted(blocked)
    low = _low_top(entries, blocked)
    high = _high_runs([e for e in entries if e.start >= FOUR_GIB], blocked)
    runs = ((0, low), *high)
    if runs[-1][1] > LIMIT:
        raise BadMachine(f"RAM ends at {runs[-1][1]:#x}, beyond the {LIMIT >> 40} TiB that hvlab emulates")
    return runs


def _low_top(entries: Sequence[E820Entry], blocked: Sequence[Range]) -> int:
    """The top of low RAM, of page size."""
    top = max((e.end for e in entries if e.type in _DRAM_TYPES and e.end <= MMIO[0]), default=0)
    for e in entries:
        if e.type not in _DRAM_TYPES and e.start <= align_up(top, PAGE) < e.end:
            stop = min([e.end, _RESERVED_END, *(start for start, end in blocked if end > top)])
            top = max(top, stop)
    return align_up(top, PAGE)


def _high_runs(entries: Sequence[E820Entry], blocked: Sequence[Range]) -> list[Range]:
    """Usable entries above 4 GiB with the small reserved ones that touch them, merged, out to whole pages."""
    runs: list[Range] = []
    for e in entries:
        span = (align_down(e.start, PAGE), align_up(e.end, PAGE))
        small = e.size < ONE_GIB and e.type != E820Type.PERSISTENT and not any(overlaps(span, b) for b in blocked)
        touches = bool(runs) and span[0] <= runs[-1][1]
        if e.usable and not touches:
            runs += [_before(entries, e, span)]
        elif touches and (e.usable or small):
            runs[-1] = (runs[-1][0], max(runs[-1][1], span[1]))
    return runs


def _before(entries: Sequence[E820Entry], entry: E820Entry, span: Range) -> Range:
    """`span` with the small reserved entry just below `entry`, where there is one."""
    start = next((e.start for e in entries if e.end == entry.start and e.size < ONE_GIB), entry.start)
    return align_down(start, PAGE), span[1]


def guess_ecam(entries: Iterable[E820Entry]) -> EcamDescription | None:
    """The configuration window, if a reserved entry between 2 GiB and the chipset ends like one: an aligned 256, 128 or 64 MiB."""
    for e in entries:
        for buses in _ECAM_BUSES:
            size = buses << 20
            inside = e.end - size >= 2 * ONE_GIB and e.start <= e.end - size and e.end <= MMIO[0]
            if e.type == E820Type.RESERVED and inside and e.end % size == 0:
                return EcamDescription(e.end - size, 0, buses - 1)
    return None


def free_ecam(taken: Iterable[Range], top: int) -> EcamDescription | None:
    """The highest free place for a configuration window between the top of low RAM and the chipset; None where there is none."""
    taken = tuple(taken)
    for buses in _ECAM_BUSES:
        size = buses << 20
        for base in range(align_down(MMIO[0] - size, size), top - 1, -size):
            if not any(overlaps((base, base + size), t) for t in taken):
                return EcamDescription(base, 0, buses - 1)
    return None


def find_window(span: Range, avoid: Iterable[Range], size: int = _TABLES) -> int | None:
    """The first page in `span` from which `size` bytes are free of `avoid`; None where there is none."""
    at = align_up(span[0], PAGE)
    for start, end in sorted(avoid):
        if overlaps((at, at + size), (start, end)):
            at = align_up(end, PAGE)
    return at if at + size <= span[1] else None


def acpi_place(entries: Iterable[E820Entry], runs: Sequence[Range], rmrrs: Iterable[Range], logged: int | None) -> tuple[int, str | None]:
    """Where firmware's tables go, and a sentence if that is a makeshift.  `logged` is the real DMAR's address, if known.

    In the entry that holds the real one, else in ACPI data, else in reserved RAM, else below 1 MiB.
    """
    entries, rmrrs = tuple(entries), tuple(rmrrs)
    closed = [e for e in entries if not e.usable and e.start >= ONE_MIB and e.end <= runs[0][1]]
    real = [e for e in closed if logged is not None and e.start <= logged < e.end]
    of_type = {t: [e for e in closed if e.type == t] for t in (E820Type.ACPI_DATA, E820Type.RESERVED, E820Type.ACPI_NVS)}
    for e in (*real, *of_type[E820Type.ACPI_DATA], *of_type[E820Type.RESERVED], *of_type[E820Type.ACPI_NVS]):
        place = find_window((e.start, e.end), rmrrs)
        if place is not None:
            return place, None
    usable = any(e.usable and overlaps((e.start, e.end), (_SHADOW, _SHADOW + _TABLES)) for e in entries)
    warning = ", which the map calls usable, so a guest may overwrite them" if usable else ""
    return _SHADOW, f"No ACPI or reserved entry has 64 KiB of RAM: firmware's tables lie at {_SHADOW:#x}{warning}."
