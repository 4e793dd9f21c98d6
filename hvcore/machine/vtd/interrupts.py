"""Interrupt remapping of a unit: what becomes of a message-signalled interrupt (VT-d, sections 5.1 and 9.10).

    IRES clear                                          goes on as it is
    compatibility format     EIME, or CFIS clear        0x25
                             else                       goes on as it is
    remappable format        reserved bits of the data  0x20
                             index beyond the table     0x21
                             entry cannot be read       0x23
                             entry not present          0x22   (from here on FPD of the entry silences)
                             reserved bits of it        0x24
                             source is not the entry's  0x26
                             else                       goes on as the entry says

Posted interrupts are not modelled.  The unit's own messages (fault and invalidation events) do not come this way.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ...errors import Unreadable
from ...spec.bits import align_down, bit
from ...spec.dma import Direction, DmaRequest, RemapFault
from ...spec.interrupts import (
    FORMAT,
    IRTE,
    IRTE_LOW,
    Interrupt,
    as_written,
    by_entry,
    index_of,
    irte_reserved,
    source_accepted,
    table_entries,
)
from ...spec.vtd import CAP, ECAP, FPD_SILENCES, GSTS, IRTA, FaultReason
from ..description import UnitDescription
from ..memory import Memory
from .faults import FaultLog
from .registers import RegisterFile

__all__ = ["InterruptEntry", "InterruptEntryCache", "InterruptRemapper"]


@dataclass(frozen=True, slots=True)
class InterruptEntry:
    """A table entry as the unit caches it: its raw words, and why no message gets through it whoever sends it (None: some may)."""

    index: int
    low: int
    high: int
    reason: FaultReason | None = None


class InterruptEntryCache:
    """Table entries by index, stale until they are invalidated (section 6.2.5); the largest table has 65,536.

    `_empty` are the blocks (bits of their size, number) invalidated since an entry came in: a long queue that says the same over and over
    is done with fast.
    """

    def __init__(self) -> None:
        self.entries: dict[int, InterruptEntry] = {}
        self._empty: set[tuple[int, int]] = set()

    def insert(self, entry: InterruptEntry) -> None:
        """Remembers an entry."""
        self.entries[entry.index] = entry
        self._empty.clear()

    def invalidate_all(self) -> None:
        """Global invalidation."""
        self.entries.clear()

    def invalidate_indices(self, index: int, im: int) -> None:
        """Forgets the 2**`im` entries around `index`, aligned to their number."""
        block = im, index >> im
        if block in self._empty:
            return
        self._empty.add(block)
        if 1 << im < len(self.entries):
            for i in range(block[1] << im, block[1] + 1 << im):
                self.entries.pop(i, None)
        else:
            self.entries = {i: e for i, e in self.entries.items() if i >> im != block[1]}


class InterruptRemapper:
    """The part of a unit that messages of devices go through.  `note(register, value, text)` remembers what software cannot have meant."""

    def __init__(self, description: UnitDescription, memory: Memory, file: RegisterFile, faults: FaultLog,
                 note: Callable[[str, int, str], None], host_address_width: int, ideal_caches: bool):
        self.description, self.memory, self.file, self.faults, self.note = description, memory, file, faults, note
        self.cache = InterruptEntryCache()
        self._reachable = bit(host_address_width) - 1
        self._caching_mode, self._ideal = bool(CAP.get(description.cap, "CM")), ideal_caches
        self._reserved = {eime: irte_reserved(description.cap, eime) for eime in (False, True)}
        self.reset()

    def reset(self) -> None:
        """No table, nothing remembered."""
        self.table = 0
        self.cache.invalidate_all()

    @property
    def _eime(self) -> bool:
        return bool(IRTA.get(self.table, "EIME"))

    def latch(self) -> None:
        """SIRTP: the table register counts from now on; bits beyond the host address width are not there."""
        self.table = self.file["IRTA"] & self._reachable

    def switched(self) -> None:
        """IRE was written."""
        gsts = self.file["GSTS"]
        if GSTS.get(gsts, "IRES") and not GSTS.get(gsts, "IRTPS"):
            self.note("GCMD", gsts, "interrupt remapping enabled without a table: entries are read at physical address 0")

    def invalidate(self, by_index: bool, index: int, im: int) -> bool:
        """Interrupt-entry-cache invalidation: all, or 2**`im` entries at `index`; False where `im` is beyond ECAP.MHMV."""
        if not by_index:
            self.cache.invalidate_all()
        elif im > ECAP.get(self.description.ecap, "MHMV"):
            return False
        else:
            self.cache.invalidate_indices(index, im)
        return True

    def interrupt(self, source: int, address: int, data: int) -> Interrupt | RemapFault:
        """What becomes of the message `data` at `address` of requester `source`; a fault is recorded."""
        gsts = self.file["GSTS"]
        if not GSTS.get(gsts, "IRES"):
            return as_written(source, address, data)
        request = DmaRequest(source, address, 4, Direction.WRITE, self.description.segment)
        if not address & FORMAT:
            blocked = self._eime or not GSTS.get(gsts, "CFIS")
            return self._refuse(request, FaultReason.IR_COMPATIBILITY_BLOCKED) if blocked else as_written(source, address, data)
        return self._remapped(request, data)

    def _remapped(self, request: DmaRequest, data: int) -> Interrupt | RemapFault:
        index = index_of(request.iova, data)
        if index is None:
            return self._refuse(request, FaultReason.IR_REQUEST_RESERVED)
        if index >= table_entries(self.table):
            return self._refuse(request, FaultReason.IR_INDEX_BEYOND_TABLE, index)
        entry = self.cache.entries.get(index) or self.fetch(index)
        if entry is None:
            return self._refuse(request, FaultReason.IR_TABLE_UNREACHABLE, index)
        if entry.reason is None and IRTE_LOW.get(entry.low, "IM"):
            return self._posted(request, entry)
        reason = entry.reason or (None if source_accepted(entry.high, request.source) else FaultReason.IR_SOURCE_REFUSED)
        if reason:
            return self._refuse(request, reason, index, bool(IRTE_LOW.get(entry.low, "FPD")))
        return by_entry(request.source, request.iova, data, index, entry.low, self._eime)

    def fetch(self, index: int) -> InterruptEntry | None:
        """An entry from the table, None where no memory is; remembered if messages can get through it, or in caching mode."""
        entry = self.read(index)
        if entry is not None and not self._ideal and (entry.reason is None or self._caching_mode):
            self.cache.insert(entry)
        return entry

    def read(self, index: int) -> InterruptEntry | None:
        """An entry as the table has it now, None where no memory is."""
        try:
            raw = self.memory.read(align_down(self.table, 4096) + IRTE * index, IRTE)
        except Unreadable:
            return None
        low, high = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")
        return InterruptEntry(index, low, high, self.judge(low, high))

    def judge(self, low: int, high: int) -> FaultReason | None:
        """Why no message gets through an entry.  Of a posted one only P is looked at: its other fields lie elsewhere."""
        if not low & 1:
            return FaultReason.IR_NOT_PRESENT
        if IRTE_LOW.get(low, "IM") and CAP.get(self.description.cap, "PI"):
            return None
        reserved_low, reserved_high = self._reserved[self._eime]
        return FaultReason.IR_ENTRY_RESERVED if low & reserved_low or high & reserved_high else None

    def _posted(self, request: DmaRequest, entry: InterruptEntry) -> RemapFault:
        """A unit with CAP.PI would post; this one drops the message and says so."""
        self.note("IRTA", self.table, f"interrupt entry {entry.index} is posted, which is not modelled: a message of it is dropped")
        return RemapFault(request, self.description.base, int(FaultReason.IR_ENTRY_RESERVED), entry.index, recorded=False)

    def _refuse(self, request: DmaRequest, reason: FaultReason, index: int = 0, fpd: bool = False) -> RemapFault:
        recorded = not (fpd and reason in FPD_SILENCES) and self.faults.record_interrupt(request.source, index, reason)
        return RemapFault(request, self.description.base, int(reason), index, recorded)
