"""Remapping units of a machine that somebody else runs: their registers as QEMU has them, as Linux printed them, or assumed."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadSource
from ..spec import vtd
from ..spec.paging import PAGE
from .debugfs import parse_regset, read_text

__all__ = ["ASSUMED_CAP", "ASSUMED_ECAP", "OutsideUnit", "UnitPlace", "assumed", "load_registers"]

ASSUMED_CAP = vtd.CAP.make(ND=6, SAGAW=0b1110, MGAW=56, ZLR=1, SLLPS=0b11, FRO=0x22)
"""Of a unit of which nothing is known: 3 to 5 levels, 57 bits, pages of 4 KiB, 2 MiB and 1 GiB."""
ASSUMED_ECAP = vtd.ECAP.make(C=1, DT=1, PT=1, SC=1, IRO=0x23)
"""Every translation type, SNP and TM in leaves."""


@dataclass(frozen=True, slots=True)
class UnitPlace:
    """What is known of a unit beside its registers: register base (host-physical), capabilities, segment, INCLUDE_PCI_ALL."""

    base: int
    cap: int
    ecap: int
    segment: int = 0
    include_all: bool = False


class Nothing:
    """What a unit remembers, as far as that can be seen from outside."""

    contexts: Sequence[Any] = ()
    mappings: Sequence[Any] = ()
    interrupts: Sequence[Any] = ()


class OutsideUnit:
    """A unit by the bytes of its register page.

    `page()` gives them as they are now; registers beyond them read as zero.  `known` says which bytes were told (None: all).  What it
    remembers cannot be seen from outside: its caches seem empty.
    """

    def __init__(self, base: int, page: Callable[[], bytes], segment: int = 0, include_all: bool = False, known: bytes | None = None):
        self._page, self._known = page, known
        self.cached = Nothing()
        self.description = UnitPlace(base, self.peek(0x08, 8), self.peek(0x10, 8), segment, include_all)

    def peek(self, offset: int, width: int, /) -> int:
        """`width` bytes of the register page, little-endian."""
        return int.from_bytes(self._page()[offset:offset + width], "little")

    @property
    def records_faults(self) -> bool:
        """Whether its fault records are among what is known."""
        if self._known is None:
            return True
        cap = self.description.cap
        first, count = vtd.frcd_offset(cap), vtd.frcd_count(cap)
        return all(self._known[first:first + 16 * count]) and len(self._known) >= first + 16 * count

    def placed(self, segment: int, include_all: bool) -> "OutsideUnit":
        """The same unit, with what the DMAR table says of it."""
        return OutsideUnit(self.description.base, self._page, segment, include_all, self._known)


def _of_values(base: int, values: Iterable[tuple[int, int, int]], segment: int = 0, include_all: bool = False) -> OutsideUnit:
    """A unit from (offset, bytes, value) of its registers; only those inside one 4 KiB page count."""
    page, known = bytearray(PAGE), bytearray(PAGE)
    for offset, size, value in values:
        if 0 <= offset <= PAGE - size:
            page[offset:offset + size] = value.to_bytes(size, "little")
            known[offset:offset + size] = b"\1" * size
    return OutsideUnit(base, lambda: bytes(page), segment, include_all, bytes(known))


def assumed(base: int, root: int, segment: int = 0, cap: int = ASSUMED_CAP, ecap: int = ASSUMED_ECAP) -> OutsideUnit:
    """A unit that translates from the root table at `root`, with everything else as after a reset."""
    set_ = {"GSTS": vtd.GSTS.make(TES=1, RTPS=1), "RTADDR": root}
    values = ((r.offset, r.size, set_.get(r.name, r.reset)) for r in vtd.registers(cap, ecap))
    return _of_values(base, values, segment, True)


def load_registers(path: Path | str) -> tuple[OutsideUnit, ...]:
    """Units from a copy of Linux's `iommu_regset`, or from the `registers.json` of `hvlab dump`.  Raises BadSource."""
    text = read_text(path)
    if not text.lstrip().startswith("{"):
        return _checked([_of_values(u.base, u.values) for u in parse_regset(text, str(path))], path)
    try:
        return _checked([_of_json(unit) for unit in json.loads(text)["units"]], path)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise BadSource(f"{path} is no registers.json: give what `hvlab dump` wrote, or a copy of iommu_regset") from None


def _checked(units: list[OutsideUnit], path: Path | str) -> tuple[OutsideUnit, ...]:
    bases = [u.description.base for u in units]
    wrong = next((base for base in bases if not 0 < base < 1 << 52 or base % PAGE or bases.count(base) > 1), None)
    if wrong is not None or not units:
        what = "no units" if wrong is None else f"a unit at {wrong:#x}, where none can be, or two"
        raise BadSource(f"{path} tells of {what}: give what `hvlab dump` wrote, or a copy of iommu_regset")
    return tuple(units)


def _of_json(unit: dict[str, Any]) -> OutsideUnit:
    held = unit["registers"]
    declared = vtd.registers(held["CAP"], held["ECAP"])
    values = [(r.offset, r.size, held[r.name]) for r in declared if r.name in held]
    return _of_values(int(unit["base"]), values, int(unit["segment"]), bool(unit["include_all"]))
