"""Interrupt remapping as it lies in memory: the entries of a unit's table; and the messages that got through (VT-d, sections 5.1, 9.10)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..spec import interrupts as spec
from ..spec import vtd
from ..spec.bits import bit
from ..spec.interrupts import DeliveryMode, Interrupt, SourceCheck
from ..spec.paging import PAGE
from ..spec.pci import format_bdf
from . import format as show
from .reader import MemoryReader, UnitReader
from .records import Column, Record, Records
from .units import read_register

__all__ = ["InterruptEntry", "InterruptMessage", "InterruptTable", "read_interrupt_table", "read_interrupts", "read_messages"]

_DELIVERIES = {mode.value: mode.name.lower().replace("_", " ") for mode in DeliveryMode}


@dataclass(frozen=True, slots=True)
class InterruptTable:
    """Where a unit's interrupt remapping table lies by its registers: host-physical `base`, `entries`, and what decides beside it.

    `on` is GSTS.IRES, `extended` IRTA.EIME (x2APIC), `compatible` GSTS.CFIS.  `base` is None where none was set (IRTPS clear) and none is
    used.
    """

    on: bool
    base: int | None
    entries: int
    extended: bool
    compatible: bool

    @property
    def compatibility(self) -> str:
        """What becomes of a message in compatibility format."""
        return "passes" if self.compatible and not self.extended else "is blocked"

    def __str__(self) -> str:
        ids = "32-bit destinations" if self.extended else "8-bit destinations"
        where = "no table" if self.base is None else f"{self.entries} entries at {self.base:#x}, {ids}"
        return f"remapping {'on' if self.on else 'off'}: {where}"


@dataclass(frozen=True, slots=True, repr=False)
class InterruptEntry(Record):
    """One present entry of the table of the unit with register base `unit`: its raw words `low` and `high`.

    `extended` is whether its destination has 32 bits; `problem` why no message gets through it as it should, None where nothing is wrong.
    """

    unit: int
    index: int
    low: int
    high: int
    extended: bool
    problem: str | None = None

    title = "Interrupt remapping entries"
    legend = "unit: register base; destination: APIC id, logical where it says so; from: who may use the entry"
    columns = (
        Column("unit", lambda e: e.unit, show.address, True), Column("index", lambda e: e.index, right=True),
        Column("vector", lambda e: e.vector, show.address, True), Column("destination", lambda e: e.destination, show.address, True),
        Column("mode", lambda e: e.mode), Column("delivery", lambda e: e.delivery), Column("trigger", lambda e: e.trigger),
        Column("from", lambda e: e.source_check), Column("fpd", lambda e: e.fpd, show.yes_no),
        Column("raw_low", lambda e: e.low, show.address, True), Column("raw_high", lambda e: e.high, show.address, True),
        Column("problem", lambda e: e.problem),
    )

    @property
    def vector(self) -> int:
        """Vector."""
        return spec.IRTE_LOW.get(self.low, "V")

    @property
    def destination(self) -> int:
        """APIC id, physical or logical."""
        return spec.irte_destination(self.low, self.extended)

    @property
    def mode(self) -> str:
        """Destination mode, and the redirection hint."""
        return _mode(bool(spec.IRTE_LOW.get(self.low, "DM")), bool(spec.IRTE_LOW.get(self.low, "RH")))

    @property
    def delivery(self) -> str:
        """Delivery mode."""
        return _delivery(spec.IRTE_LOW.get(self.low, "DLM"))

    @property
    def trigger(self) -> str:
        """Trigger mode."""
        return _trigger(bool(spec.IRTE_LOW.get(self.low, "TM")))

    @property
    def fpd(self) -> bool:
        """Fault processing disabled: its faults are not recorded."""
        return bool(spec.IRTE_LOW.get(self.low, "FPD"))

    @property
    def posted(self) -> bool:
        """IM: an entry for posted interrupts, whose other fields lie elsewhere."""
        return bool(spec.IRTE_LOW.get(self.low, "IM"))

    @property
    def source_check(self) -> str:
        """SVT, SQ and SID in words."""
        return _source_check(self.high)


@dataclass(frozen=True, slots=True, repr=False)
class InterruptMessage(Record):
    """A message of a device that got through: as it was sent, the entry that decided (None: none), and what the APICs see."""

    interrupt: Interrupt

    title = "Interrupt messages"
    legend = "sent: address and data as the device wrote them; index: table entry, none where the message went on as it was"
    columns = (
        Column("source", lambda m: format_bdf(m.interrupt.source)),
        Column("sent_address", lambda m: m.interrupt.address, show.address, True),
        Column("sent_data", lambda m: m.interrupt.data, show.address, True), Column("index", lambda m: m.interrupt.index, right=True),
        Column("vector", lambda m: m.interrupt.vector, show.address, True),
        Column("destination", lambda m: m.interrupt.destination, show.address, True),
        Column("mode", lambda m: _mode(m.interrupt.logical, m.interrupt.redirectable)),
        Column("delivery", lambda m: _delivery(m.interrupt.delivery)), Column("trigger", lambda m: _trigger(m.interrupt.level)),
    )


def read_messages(interrupts: Iterable[Interrupt]) -> Records[InterruptMessage]:
    """Messages that got through, in their order."""
    return Records(InterruptMessage, [InterruptMessage(i) for i in interrupts])


def read_interrupt_table(unit: UnitReader, host_address_width: int | None = None) -> InterruptTable:
    """What a unit's registers say of its table; address bits beyond the host address width do not count."""
    gsts, irta = read_register(unit, "GSTS"), read_register(unit, "IRTA")
    on = bool(vtd.GSTS.get(gsts, "IRES"))
    base = irta & -PAGE & bit(host_address_width or 52) - 1
    known = base if vtd.GSTS.get(gsts, "IRTPS") else 0 if on else None
    return InterruptTable(on, known, spec.table_entries(irta), bool(vtd.IRTA.get(irta, "EIME")), bool(vtd.GSTS.get(gsts, "CFIS")))


def read_interrupts(reader: MemoryReader, unit: UnitReader, host_address_width: int | None = None) -> Records[InterruptEntry]:
    """The present entries of a unit's table as they lie in memory, by index; what the unit has cached may be older."""
    table = read_interrupt_table(unit, host_address_width)
    if table.base is None:
        return Records(InterruptEntry)
    pages = np.arange(table.base, table.base + table.entries * spec.IRTE, PAGE, dtype=np.uint64)
    words, readable = reader.tables(pages)
    pairs = words.reshape(-1, 2)[:table.entries]
    rows = [_entry(unit, table, int(i), int(pairs[i, 0]), int(pairs[i, 1])) for i in np.flatnonzero(pairs[:, 0] & np.uint64(1))]
    return Records(InterruptEntry, rows, note=_note(unit, table, pages[~readable].tolist()))


def _entry(unit: UnitReader, table: InterruptTable, index: int, low: int, high: int) -> InterruptEntry:
    problem = "; ".join(_problems(unit.description.cap, table.extended, low, high)) or None
    return InterruptEntry(unit.description.base, index, low, high, table.extended, problem)


def _problems(cap: int, extended: bool, low: int, high: int) -> Iterator[str]:
    """What is wrong with a present entry, in words."""
    reserved_low, reserved_high = spec.irte_reserved(cap, extended)
    if spec.IRTE_LOW.get(low, "IM"):
        yield "posted, which " + ("is not modelled" if vtd.CAP.get(cap, "PI") else "the unit does not do")
        return
    if low & reserved_low or high & reserved_high:
        yield f"bits that must be zero are set: low {low & reserved_low:#x}, high {high & reserved_high:#x}"
    svt, sid = spec.IRTE_HIGH.get(high, "SVT"), spec.IRTE_HIGH.get(high, "SID")
    if svt == SourceCheck.BUS_RANGE and sid >> 8 > sid & 0xFF:
        yield "the bus range ends before it begins"
    if spec.IRTE_LOW.get(low, "DLM") not in _DELIVERIES:
        yield "no APIC takes a reserved delivery mode"


def _note(unit: UnitReader, table: InterruptTable, unreadable: list[int]) -> str:
    lost = f"; unreadable from {unreadable[0]:#x}, {len(unreadable)} pages" if unreadable else ""
    return f"Unit {unit.description.base:#x}: {table}; a message in compatibility format {table.compatibility}{lost}."


def _mode(logical: bool, redirectable: bool) -> str:
    return ("logical" if logical else "physical") + (", any of them" if redirectable else "")


def _delivery(mode: int) -> str:
    return _DELIVERIES.get(mode, f"reserved {mode}")


def _trigger(level: bool) -> str:
    return "level" if level else "edge"


def _source_check(high: int) -> str:
    e = spec.IRTE_HIGH.decode(high)
    if e["SVT"] == SourceCheck.REQUESTER:
        ignored = ("", ", function bit 2 ignored", ", function bits 2:1 ignored", ", any function")[e["SQ"]]
        return format_bdf(e["SID"]) + ignored
    if e["SVT"] == SourceCheck.BUS_RANGE:
        return f"buses {e['SID'] >> 8:02x}-{e['SID'] & 0xFF:02x}"
    return "anybody" if e["SVT"] == SourceCheck.NONE else "nobody: reserved check"
