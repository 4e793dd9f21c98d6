"""By what message a device forges an interrupt: one that its unit does not check, or one that an entry takes from anybody."""

import numpy as np

from ..spec import interrupts as spec
from ..spec import vtd
from ..spec.paging import PAGE
from ..spec.pci import format_bdf
from .explain_interrupt import explain_interrupt
from .interrupts import InterruptTable, read_interrupt_table
from .proof import Counterexample
from .reach import UnitReach
from .reader import MemoryReader
from .runs import U64

__all__ = ["forged", "interrupt_pages"]

_COMPATIBLE = vtd.INTERRUPT_RANGE.start
_LOW_WRONG = np.uint64(spec.IRTE_LOW["IM"].mask)


def interrupt_pages(u: UnitReach, host_address_width: int | None) -> U64:
    """The pages of a unit's interrupt remapping table, in memory or not; none where it uses none."""
    table = read_interrupt_table(u.registers, host_address_width)
    if table.base is None:
        return np.zeros(0, np.uint64)
    return np.arange(table.base, table.base + table.entries * spec.IRTE, PAGE, dtype=np.uint64)


def forged(reader: MemoryReader, u: UnitReach, source: int, host_address_width: int | None) -> Counterexample | None:
    """A message of requester `source` that the unit lets through although no entry is for that requester; None where there is none."""
    table = read_interrupt_table(u.registers, host_address_width)
    if not table.on:
        return _example(reader, u, source, _COMPATIBLE, "interrupt remapping that is off", host_address_width)
    if table.compatibility == "passes":
        return _example(reader, u, source, _COMPATIBLE, "the compatibility format, which is let through,", host_address_width)
    index = _open_entry(reader, u, table, host_address_width)
    if index is not None:
        return _example(reader, u, source, _message(index), f"entry {index}, which takes messages of anybody, of the interrupt table",
                        host_address_width)
    remembered = [e.index for e in u.registers.cached.interrupts if e.reason is None and _anybody(e.high)
                  and not spec.IRTE_LOW.get(e.low, "IM")]
    if remembered:
        how = f"entry {remembered[0]}, which takes messages of anybody, of the interrupt-entry cache"
        return Counterexample(format_bdf(source), how, u.unit.base, source, _message(remembered[0]), None, "w", "interrupts")
    return None


def _anybody(high: int) -> bool:
    return spec.IRTE_HIGH.get(high, "SVT") == spec.SourceCheck.NONE


def _message(index: int) -> int:
    """The address of the plainest message that asks for an entry."""
    return _COMPATIBLE | spec.FORMAT | (index & 0x7FFF) << 5 | index >> 15 << 2


def _open_entry(reader: MemoryReader, u: UnitReach, table: InterruptTable, host_address_width: int | None) -> int | None:
    """The first entry that a message of any requester gets through."""
    words, _ = reader.tables(interrupt_pages(u, host_address_width))
    low, high = words.reshape(-1, 2)[:table.entries].T
    reserved_low, reserved_high = (np.uint64(bits) for bits in spec.irte_reserved(u.unit.cap, table.extended))
    good = (low & np.uint64(1) == 1) & (low & (reserved_low | _LOW_WRONG) == 0) & (high & reserved_high == 0)
    anybody = good & (high & np.uint64(spec.IRTE_HIGH["SVT"].mask) == 0)
    found = np.flatnonzero(anybody)
    return int(found[0]) if len(found) else None


def _example(reader: MemoryReader, u: UnitReach, source: int, address: int, how: str, host_address_width: int | None) -> Counterexample:
    told = explain_interrupt(reader, u.registers, source, address, 0, host_address_width)
    return Counterexample(format_bdf(source), how, u.unit.base, source, address, None, "w", "interrupts", told)
