"""MSI-X where the core remaps interrupts: tables are answered here, in the device's place.

The guest writes the address and data of a vector as it would without a hypervisor.  They are kept in pages of the core's heap, where the
guest reads them back; the device gets the index of an entry of the unit's interrupt remapping table in their place, and the entry lets this
one requester send what the guest wants, as far as that is harmless: a fixed or lowest-priority interrupt of a vector from 16 on.  What it
may not send (NMI, SMI, INIT) has no entry, so the unit blocks it.

A table is answered where firmware laid it.  A guest that moves it, by the base address or a bridge's window (a Linux does that for devices
that were removed and are found again), writes to the device itself: what that sends then is blocked, and the guest waits for it in vain.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..machine.bus import Bus
from ..machine.memory import PAGE, Memory
from ..spec import pci
from ..spec.bits import align_down, align_up
from ..spec.interrupts import FORMAT, REMAPPABLE_ADDRESS
from ..spec.pci import format_bdf
from .dmar import Unit, matched_unit
from .iommu import Iommu
from .irte import EntryTables, entry_for, remaps
from .mmio import Trap
from .nested import REACH
from .pci import Function, capability, requesters
from .platform import config_read

__all__ = ["MessageTable", "trap_tables"]

_MSIX, _ENTRY = 0x11, 16


@dataclass(frozen=True)
class _Found:
    """An MSI-X table: of requester `source` behind `unit`, `vectors` entries from host-physical `start` on."""

    source: int
    unit: Unit
    start: int
    vectors: int


def trap_tables(entries: EntryTables, functions: list[Function]) -> list[Trap]:
    """A trap for the pages of every MSI-X table, with entries of the units' interrupt remapping tables for its vectors."""
    iommu, traps = entries.iommu, []
    for found in _tables(iommu, functions, requesters(iommu.bus, functions)):
        first = entries.take(found.unit, found.vectors)
        if first is None:
            iommu.console.print(f"(IOMMU) no interrupt entries left for {format_bdf(found.source)}")
            continue
        kept = int(iommu.heap.alloc_pages(align_up(_ENTRY * found.vectors, PAGE) // PAGE)[0])
        iommu.memory.u8(kept, _ENTRY * found.vectors)[:] = 0
        start, end = align_down(found.start, PAGE), align_up(found.start + _ENTRY * found.vectors, PAGE)
        traps.append(Trap(start, end, MessageTable(entries, found.unit, found.source, start, found.start, found.vectors, first, kept)))
    return traps


def _tables(iommu: Iommu, functions: Iterable[Function], seen: dict[int, int]) -> Iterator[_Found]:
    for function in functions:
        unit = matched_unit(iommu.units, seen.get(function.source, function.source))
        at = capability(iommu.bus, function.source, _MSIX) if unit and remaps(iommu, unit) else None
        if unit is None or at is None:
            continue
        vectors = (config_read(iommu.bus, function.source, at + 2, 2) & 0x7FF) + 1
        place = config_read(iommu.bus, function.source, at + 4, 4)
        start = _bar(iommu.bus, function.source, place & 7) + (place & ~7)
        if place & ~7 < start and start + _ENTRY * vectors <= REACH:
            yield _Found(seen.get(function.source, function.source), unit, start, vectors)


def _bar(bus: Bus, source: int, index: int) -> int:
    """The address of a memory BAR; 0 where it has none."""
    low = config_read(bus, source, pci.BAR0 + 4 * index, 4)
    high = config_read(bus, source, pci.BAR0 + 4 * index + 4, 4) if low & 6 == 4 and index < 5 else 0
    return 0 if low & 1 else high << 32 | low & ~0xF


class MessageTable:
    """An MSI-X table as the guest sees it, in the trap of pages from `page` on; it lies at `start` and has `vectors` entries.

    `first` is the table entry of the unit for vector 0, `kept` the host-physical address of what the guest wrote.
    """

    def __init__(self, entries: EntryTables, unit: Unit, source: int, page: int, start: int, vectors: int, first: int, kept: int):
        self.entries, self.iommu, self.unit, self.source, self.page = entries, entries.iommu, unit, source, page
        self.start, self.vectors, self.first, self.kept = start, vectors, first, kept

    @property
    def _memory(self) -> Memory:
        return self.iommu.memory

    def _inside(self, offset: int, width: int) -> int | None:
        """The offset in the table of an access of aligned 4 or 8 bytes; None for one beside it."""
        at = self.page + offset - self.start
        return at if width in (4, 8) and at % width == 0 and 0 <= at < _ENTRY * self.vectors else None

    def mmio_read(self, offset: int, width: int) -> int:
        """A load: address and data as the guest wrote them, vector control and all else from the device."""
        at = self._inside(offset, width)
        value = self.iommu.bus.read(self.page + offset, width)
        if at is None or at % _ENTRY == 12:
            return value
        kept = int.from_bytes(self._memory.read(self.kept + at, width), "little")
        return kept | value >> 32 << 32 if width == 8 and at % _ENTRY == 8 else kept

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """A store: address and data are kept, and the device and the unit's table told; all else goes to the device."""
        at = self._inside(offset, width)
        if at is None:
            self.iommu.bus.write(self.page + offset, width, value)
            return
        for i in range(0, width, 4):
            word = value >> 8 * i & 0xFFFF_FFFF
            if (at + i) % _ENTRY == 12:
                self.iommu.bus.write(self.page + offset + i, 4, word)
            else:
                self._memory.write32(self.kept + at + i, word)
                self._tell(at // _ENTRY)

    def _tell(self, vector: int) -> None:
        """The unit's entry first, its cache, then the device's own: until then the device has the old one."""
        index, at = self.first + vector, self.kept + _ENTRY * vector
        self.entries.put(self.unit, index, entry_for(self._memory.read64(at), self._memory.read32(at + 8), self.source))
        address = REMAPPABLE_ADDRESS.make(HEAD=0xFEE, HANDLE=index & 0x7FFF, HANDLE15=index >> 15) | FORMAT
        for offset, word in ((0, address), (4, 0), (8, 0)):
            self.iommu.bus.write(self.start + _ENTRY * vector + offset, 4, word)
