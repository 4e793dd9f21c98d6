"""One interrupt message, step by step, in the order the unit takes: format, table, entry, requester (VT-d, section 5.1.4).

What the table says now; the interrupt-entry cache may still answer otherwise.
"""

from typing import ClassVar

from ..errors import Unreadable
from ..spec import interrupts as spec
from ..spec import vtd
from ..spec.pci import format_bdf
from ..spec.vtd import FaultReason
from . import format as show
from .evidence import Evidence, Place, Word, requester_cut
from .explanation import ExplainStep, Explanation, refusal
from .faults import Fault
from .interrupts import InterruptEntry, read_interrupt_table
from .reader import MemoryReader, UnitReader
from .records import Column
from .units import read_register

__all__ = ["InterruptExplanation", "explain_interrupt", "explain_interrupt_fault"]

_BASE = 0xFEE0_0000
_SUBHANDLE_VALID = spec.REMAPPABLE_ADDRESS["SHV"].mask


class InterruptExplanation(Explanation):
    """Why a message of `source` does or does not get through; `iova` is the address it is written to, and no host address is reached."""

    __slots__ = ()
    columns: ClassVar[tuple[Column, ...]] = tuple(Column("address", c.value, show.address) if c.name == "iova" else c
                                                  for c in Explanation.columns if c.name not in ("access", "host"))

    @property
    def heading(self) -> str:
        """What was asked."""
        return f"{format_bdf(self.source)} interrupt message to {self.iova:#x}, unit {self.unit:#x}"


def explain_interrupt(reader: MemoryReader, unit: UnitReader, source: int, address: int, data: int,
                      host_address_width: int | None = None) -> InterruptExplanation:
    """What a unit does with the message `data` at `address` of requester `source`, by its registers and table as they are now."""
    way = _Way(reader, unit, source, address, data, host_address_width)
    way.follow()
    return way.explanation()


def explain_interrupt_fault(reader: MemoryReader, unit: UnitReader, fault: Fault,
                            host_address_width: int | None = None) -> InterruptExplanation:
    """A recorded interrupt fault step by step.

    The record holds the requester and the interrupt index, not the message: here it is the plainest one that comes to that.
    """
    handle = (fault.address & 0x7FFF) << 5 | fault.address >> 15 << 2
    address, data = _BASE | spec.FORMAT | handle, 0
    if fault.reason == FaultReason.IR_COMPATIBILITY_BLOCKED:
        address = _BASE
    elif fault.reason == FaultReason.IR_REQUEST_RESERVED:
        address, data = address | _SUBHANDLE_VALID, spec.REMAPPABLE_DATA["RSVD"].mask
    return explain_interrupt(reader, unit, fault.source, address, data, host_address_width)


class _Way:
    """The way of one message: `steps` taken so far, then `reason`, or None with what arrives in `verdict`."""

    def __init__(self, reader: MemoryReader, unit: UnitReader, source: int, address: int, data: int, host_address_width: int | None):
        self.reader, self.unit, self.source, self.address, self.data = reader, unit, source, address, data
        self.table = read_interrupt_table(unit, host_address_width)
        self.steps: list[ExplainStep] = []
        self.reason: int | None = None
        self.fpd = self.posted = False
        self.verdict = ""

    def follow(self) -> None:
        """Takes every step up to the one that decides."""
        seen = Evidence("10.4.5", (Word("GSTS", vtd.GSTS, read_register(self.unit, "GSTS"), 32),))
        if not self.table.on:
            self._pass("interrupt remapping", "off: GSTS.IRES is clear, messages go on as they are", seen)
            return self._arrives(spec.as_written(self.source, self.address, self.data))
        self._pass("interrupt remapping", str(self.table), seen)
        return self._remappable() if self.address & spec.FORMAT else self._compatible()

    def explanation(self) -> InterruptExplanation:
        """The record of the way."""
        recorded = self.reason is not None and not self.posted and not (self.fpd and self.reason in vtd.FPD_SILENCES)
        verdict = self.verdict if self.reason is None or self.posted else refusal(self.reason, recorded)
        return InterruptExplanation(self.unit.description.base, self.source, self.address, "write", tuple(self.steps), self.reason, None,
                                    recorded, verdict)

    def _pass(self, what: str, text: str, seen: Evidence) -> None:
        self.steps.append(ExplainStep(what, text, True, seen))

    def _refuse(self, reason: int, what: str, text: str, seen: Evidence) -> None:
        self.steps.append(ExplainStep(what, text, False, seen))
        self.reason = reason

    def _arrives(self, sent: spec.Interrupt) -> None:
        where = f"{'logical destination' if sent.logical else 'APIC'} {sent.destination:#x}"
        self.verdict = f"gets through: vector {sent.vector:#x} for {where}"

    def _compatible(self) -> None:
        """Bit 4 of the address is clear: reason 0x25."""
        if self.table.compatibility == "passes":
            self._pass("compatibility format", "GSTS.CFIS is set and EIME is not: goes on as it is", self._message())
            return self._arrives(spec.as_written(self.source, self.address, self.data))
        why = "EIME is set" if self.table.extended else "GSTS.CFIS is clear"
        return self._refuse(FaultReason.IR_COMPATIBILITY_BLOCKED, "compatibility format", f"{why}: the format is blocked",
                            self._message(lacks=spec.FORMAT))

    def _message(self, lacks: int = 0) -> Evidence:
        """Address and data of the message, of whose address the bits `lacks` had to be set.  Without SHV the data does not count."""
        reserved = spec.REMAPPABLE_DATA["RSVD"].mask if self.address & _SUBHANDLE_VALID else 0
        return Evidence("5.1.2", (Word("address", spec.REMAPPABLE_ADDRESS, self.address, lacks=lacks),
                                  Word("data", spec.REMAPPABLE_DATA, self.data, 32, offends=self.data & reserved)))

    def _remappable(self) -> None:
        """Bit 4 is set: reasons 0x20, 0x21, 0x23, then the entry."""
        index = spec.index_of(self.address, self.data)
        if index is None:
            return self._refuse(FaultReason.IR_REQUEST_RESERVED, "remappable format", "subhandle and bits 31:16 of the data set",
                                self._message())
        self._pass("remappable format", f"asks for entry {index}", self._message())
        if index >= self.table.entries:
            irta = Word("IRTA", vtd.IRTA, read_register(self.unit, "IRTA"))
            return self._refuse(FaultReason.IR_INDEX_BEYOND_TABLE, "table", f"has {self.table.entries} entries", Evidence("5.1.3", (irta,)))
        place = Place(self.table.base or 0, index, spec.IRTE)
        try:
            words = self.reader.read(place.address, spec.IRTE)
        except Unreadable:
            return self._refuse(FaultReason.IR_TABLE_UNREACHABLE, f"entry {index}", "no memory is there", Evidence("5.1.3", place=place))
        return self._entry(place, int.from_bytes(words[:8], "little"), int.from_bytes(words[8:], "little"))

    def _entry(self, place: Place, low: int, high: int) -> None:
        """Reasons 0x22, 0x24, 0x26; what the entry makes of the message."""
        what, cap = f"entry {place.index}", self.unit.description.cap
        entry = InterruptEntry(self.unit.description.base, place.index, low, high, self.table.extended)
        wrong = self._wrong(entry)
        seen = Evidence("9.10", (Word("low", spec.IRTE_LOW, low, offends=wrong[0], lacks=1 & ~low),
                                 Word("high", spec.IRTE_HIGH, high, offends=wrong[1])), place)
        self.fpd = entry.fpd
        if not low & 1:
            return self._refuse(FaultReason.IR_NOT_PRESENT, what, "P is clear: nothing is set up for this interrupt", seen)
        if entry.posted and vtd.CAP.get(cap, "PI"):
            self.posted, self.verdict = True, "dropped here: the entry is posted, and posted interrupts are not modelled"
            return self._refuse(FaultReason.IR_ENTRY_RESERVED, what, "IM is set: the unit would post the interrupt", seen)
        if any(wrong):
            text = f"bits that must be zero are set: low {wrong[0]:#x}, high {wrong[1]:#x}"
            return self._refuse(FaultReason.IR_ENTRY_RESERVED, what, text, seen)
        quiet = "FPD: faults are not recorded; " if entry.fpd else ""
        where = f"{entry.mode} destination {entry.destination:#x}"
        self._pass(what, f"P; {quiet}vector {entry.vector:#x}, {entry.delivery}, {entry.trigger}, {where}", seen)
        return self._requester(entry)

    def _wrong(self, entry: InterruptEntry) -> tuple[int, int]:
        """Bits of an entry for remapping that must be zero and are not, low and high; none of one that is not present or posted."""
        cap = self.unit.description.cap
        if not entry.low & 1 or entry.posted and vtd.CAP.get(cap, "PI"):
            return 0, 0
        low, high = spec.irte_reserved(cap, self.table.extended)
        return entry.low & low, entry.high & high

    def _requester(self, entry: InterruptEntry) -> None:
        what, text = f"requester {format_bdf(self.source)}", f"the entry is for {entry.source_check}"
        seen = Evidence("9.10", (Word("high", spec.IRTE_HIGH, entry.high),), cut=requester_cut(self.source, "bus", "device", "function"))
        if not spec.source_accepted(entry.high, self.source):
            return self._refuse(FaultReason.IR_SOURCE_REFUSED, what, text, seen)
        self._pass(what, text, seen)
        return self._arrives(spec.by_entry(self.source, self.address, self.data, entry.index, entry.low, entry.extended))
