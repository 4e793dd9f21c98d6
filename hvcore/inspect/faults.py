"""Faults as a unit recorded them, read from its fault-recording registers without clearing any (VT-d, section 10.4.14)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..spec import vtd
from ..spec.interrupts import INTERRUPT_REASONS
from ..spec.pci import format_bdf
from . import format as show
from .reader import UnitReader
from .records import Column, Record, Records
from .units import read_register

__all__ = ["Fault", "read_faults"]



@dataclass(frozen=True, slots=True, repr=False)
class Fault(Record):
    """One recorded fault.

    `unit` is the register base of the unit, `source` the requester id, `address` the IOVA of the 4 KiB page (for an interrupt fault: the
    interrupt index), `access` is `read` or `write`, `reason` the number and `text` Linux's words for it; `record` is the register's index.
    """

    unit: int
    source: int
    address: int
    access: str
    reason: int
    text: str
    record: int = 0

    title = "Recorded faults"
    legend = "address: IOVA of the 4 KiB page, or an interrupt's index; unit: register base"
    columns = (
        Column("unit", lambda f: f.unit, show.address, True), Column("source", lambda f: format_bdf(f.source)),
        Column("access", lambda f: f.access), Column("address", lambda f: f.address, show.address, True),
        Column("reason", lambda f: f.reason, show.address, True), Column("text", lambda f: f.text),
    )

    @property
    def linux_line(self) -> str:
        """What a Linux kernel of 2023 prints for it."""
        device, reason = format_bdf(self.source), f"[fault reason {self.reason:#04x}] {self.text}"
        if self.reason in INTERRUPT_REASONS:
            return f"DMAR: [INTR-REMAP] Request device [{device}] fault index {self.address:#x} {reason}"
        return f"DMAR: [DMA {self.access.capitalize()} NO_PASID] Request device [{device}] fault addr {self.address:#x} {reason}"

    def to_json(self) -> dict[str, Any]:
        """Addresses as integers, the source as `00:02.0`."""
        return {"unit": self.unit, "source": format_bdf(self.source), "address": self.address, "access": self.access,
                "reason": self.reason, "text": self.text}


def read_faults(units: Iterable[UnitReader]) -> Records[Fault]:
    """The faults that are recorded and not yet cleared, unit by unit, from record FSTS.FRI on, as software goes through them.

    That is the order they were recorded in, unless software cleared some of a unit's records and left others pending.
    """
    faults: list[Fault] = []
    lost: list[str] = []
    for unit in units:
        status = read_register(unit, "FSTS")
        count = vtd.frcd_count(unit.description.cap)
        first = vtd.FSTS.get(status, "FRI") % count
        faults += [f for i in range(count) if (f := _record(unit, (first + i) % count))]
        if vtd.FSTS.get(status, "PFO"):
            lost.append(f"The unit at {unit.description.base:#x} lost faults: its records were full (FSTS.PFO).")
    return Records(Fault, faults, note=" ".join(lost))


def _record(unit: UnitReader, index: int) -> Fault | None:
    """The fault in one record; None where its F bit is clear."""
    offset = vtd.frcd_offset(unit.description.cap, index)
    low, high = unit.peek(offset, 8), unit.peek(offset + 8, 8)
    if not vtd.FRCD_HIGH.get(high, "F"):
        return None
    reason = vtd.FRCD_HIGH.get(high, "FR")
    address = low >> 48 if reason in INTERRUPT_REASONS else low & vtd.FRCD_LOW["FI"].mask
    access = "read" if vtd.FRCD_HIGH.get(high, "T") else "write"
    source, text = vtd.FRCD_HIGH.get(high, "SID"), vtd.LINUX_TEXT.get(reason, "Unknown")
    return Fault(unit.description.base, source, address, access, reason, text, index)
