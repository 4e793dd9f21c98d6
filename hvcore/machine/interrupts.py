"""The interrupt controllers of the PC as its processor and its devices see them: 8259 pair, I/O APIC and local APIC together.

    line -> 8259 pair ----------- LINT0, if it passes them --+-> processor
         -> I/O APIC -> message ---> local APIC -------------+
    device -> message (MSI, MSI-X) --^
"""

from collections.abc import Callable

from .apic import LocalApic
from .ioapic import IoApic
from .pic import Pic

__all__ = ["InterruptSystem", "pin_of"]

_TIMER_IRQ, _TIMER_PIN = 0, 2
_CASCADE = 2


def pin_of(irq: int) -> int | None:
    """The input of the I/O APIC where a line of the board ends, as the MADT says: the timer's at 2, others at their own number; None for
    the cascade of the 8259 pair."""
    return _TIMER_PIN if irq == _TIMER_IRQ else None if irq == _CASCADE else irq


def _nothing() -> None:
    """Nobody asks whether an interrupt waits."""


class InterruptSystem:
    """Drives `pic` and `ioapic` with the board's lines and tells the processor what waits.

    `changed` is called when an interrupt waits and none did before, and when none waits any more.  An interrupt of the 8259 pair goes
    before those of the local APIC, whose priorities do not concern it, as in QEMU.
    """

    def __init__(self, pic: Pic, ioapic: IoApic, apic: LocalApic):
        self.pic, self.ioapic, self.apic = pic, ioapic, apic
        self.changed: Callable[[], None] = _nothing
        self._lines = 0
        self._requested = self._waiting = False
        pic.changed, apic.changed, apic.ended = self._pic_changed, self._tell, ioapic.end

    def set_line(self, irq: int, level: bool) -> None:
        """Drives line `irq` (0 to 15; the I/O APIC's go on to 23) high or low."""
        bit = 1 << irq
        if bool(self._lines & bit) == level:
            return
        self._lines ^= bit
        pin = pin_of(irq)
        if pin is not None:
            self.ioapic.set_pin(pin, level)
        if irq < 16:
            self.pic.set_line(irq, level)

    def pending(self) -> int | None:
        """The vector that the processor would take now; None where no interrupt waits.  Changes nothing."""
        if self.apic.passes_pic:
            vector = self.pic.pending()
            if vector is not None:
                return vector
        return self.apic.deliverable

    def acknowledge(self) -> int:
        """Takes the vector that waits, which is then in service; a spurious one where none does."""
        apic = self.apic
        by_pic = apic.passes_pic and (apic.deliverable is None or self.pic.pending() is not None)
        vector = self.pic.acknowledge() if by_pic else apic.acknowledge()
        self._tell()
        return vector

    def message(self, address: int, data: int) -> None:
        """A message-signalled interrupt that got through the remapping units."""
        self.apic.message(address, data)

    def _tell(self) -> None:
        waiting = self.pending() is not None
        if waiting != self._waiting:
            self._waiting = waiting
            self.changed()

    def _pic_changed(self) -> None:
        if self.apic.edge_from_pic:
            requested = self.pic.pending() is not None
            if requested and not self._requested:
                self.apic.from_pic()
            self._requested = requested
        self._tell()
