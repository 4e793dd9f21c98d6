"""Primary fault logging: the ring of fault records, the fault status and the fault event (VT-d, sections 7.3, 10.4.9 to 10.4.14).

Advanced fault logging (CAP.AFL) has its command and status bits only: faults always go to the fault records.
"""

from ...spec.bits import mask
from ...spec.dma import Direction, DmaRequest
from ...spec.vtd import FRCD_HIGH, FRCD_LOW, FSTS, FaultReason, frcd_count
from .registers import EventRegisters, RegisterFile

__all__ = ["FaultLog"]

_F = FRCD_HIGH["F"].mask
_PPF, _PFO = FSTS["PPF"].mask, FSTS["PFO"].mask
_STATUS = 0x7F
"""The bits of FSTS that a fault event reports."""


class FaultLog:
    """Writes fault records into the register page and raises the fault event."""

    def __init__(self, file: RegisterFile, event: EventRegisters):
        self.file, self.event = file, event
        self.count = frcd_count(file["CAP"])
        self.next = 0

    def reset(self) -> None:
        """The next fault goes into record 0."""
        self.next = 0

    def record(self, request: DmaRequest, reason: int) -> bool:
        """Records the fault of a DMA request; False where it is lost."""
        return self._log(request.iova & FRCD_LOW["FI"].mask, int(request.access is Direction.READ), reason, request.source,
                         request.address_type)

    def record_interrupt(self, source: int, index: int, reason: FaultReason) -> bool:
        """Records the fault of a message of requester `source`, FI 63:48 the low bits of the interrupt index; False where it is lost."""
        return self._log(index << 48 & mask(63), 0, reason, source)

    def _log(self, low: int, read: int, reason: int, source: int, at: int = 0) -> bool:
        """A record, unless it is lost.

        It is lost while PFO is set, where the next record is still pending (which sets PFO), and where a pending record says the same
        already: hardware may collapse a repeated fault, and this one does.
        """
        high = FRCD_HIGH.make(F=1, T=read, AT=at, FR=reason, SID=source)
        if self.file["FSTS"] & _PFO or self._pending(low, high):
            return False
        if self.file[f"FRCD{self.next}_HIGH"] & _F:
            self.raise_status(_PFO)
            return False
        self._store(low, high)
        return True

    def _pending(self, low: int, high: int) -> bool:
        return any(self.file[f"FRCD{i}_HIGH"] == high and self.file[f"FRCD{i}_LOW"] == low for i in range(self.count))

    def _store(self, low: int, high: int) -> None:
        index, self.next = self.next, (self.next + 1) % self.count
        self.file[f"FRCD{index}_LOW"], self.file[f"FRCD{index}_HIGH"] = low, high
        if not self.file["FSTS"] & _PPF:
            self.file["FSTS"] = FSTS["FRI"].put(self.file["FSTS"], index)
            self.raise_status(_PPF)

    def raise_status(self, bits: int) -> None:
        """Sets bits of FSTS; the fault event is raised where none was pending."""
        before = self.file["FSTS"]
        self.file["FSTS"] = before | bits
        if not before & _STATUS:
            self.event.raise_event()

    def status_written(self) -> None:
        """After software cleared records or status bits: PPF is the OR of every F.

        An event that waits for its mask is withdrawn once nothing is pending.
        """
        pending = any(self.file[f"FRCD{i}_HIGH"] & _F for i in range(self.count))
        self.file["FSTS"] = FSTS["PPF"].put(self.file["FSTS"], int(pending))
        if not self.file["FSTS"] & _STATUS:
            self.event.withdraw()
