"""The pair of 8259A interrupt controllers of a PC (Intel 8259A data sheet; ELCR: Intel ICH data sheets, section 13.4)."""

from collections.abc import Callable
from dataclasses import dataclass

from .bus import Bus
from .ports import ByteDevice

__all__ = ["Pic"]

MASTER, SLAVE, ELCR, CASCADE = 0x20, 0xA0, 0x4D0, 2
"""Ports of the two chips and of the edge/level registers; the master's input that the slave drives."""

FIRMWARE_LEVELS = 0x0C00
"""Lines 10 and 11, where firmware routes the PCI interrupts, are level-triggered."""

_ELCR_WRITABLE = 0xDEF8
"""Lines 0, 1, 2, 8 and 13 are always edge-triggered."""

SPURIOUS = 7


def _first(bits: int) -> int:
    """The number of the lowest bit set, which has the highest priority; 8 where none is."""
    return (bits & -bits).bit_length() - 1 if bits else 8


@dataclass(slots=True)
class _Chip:
    """One 8259A.  `lines` are the input levels, `irr` the requests, `isr` what is in service, `imr` what is masked; bit = input."""

    base: int
    lines: int = 0
    irr: int = 0
    isr: int = 0
    imr: int = 0xFF
    levels: int = 0
    expect: int = 0
    needs_icw4: bool = False
    auto_eoi: bool = False
    read_isr: bool = False

    def set_line(self, n: int, level: bool) -> None:
        """An input changes: an edge is latched until it is acknowledged, a level is not."""
        bit = 1 << n
        if level and (self.levels & bit or not self.lines & bit):
            self.irr |= bit
        elif not level and self.levels & bit:
            self.irr &= ~bit
        self.lines = self.lines | bit if level else self.lines & ~bit

    def set_levels(self, mask: int) -> None:
        """Which inputs are level-triggered: those request as long as they are high."""
        self.levels = mask
        self.irr = self.irr & ~mask | self.lines & mask

    def request(self) -> int | None:
        """The input that would interrupt: unmasked and of higher priority than what is in service."""
        n = _first(self.irr & ~self.imr)
        return n if n < _first(self.isr) else None

    def acknowledge(self) -> int:
        """The vector of the request, now in service; the spurious one where there is none."""
        n = self.request()
        if n is None:
            return self.base + SPURIOUS
        if not self.levels & 1 << n:
            self.irr &= ~(1 << n)
        if not self.auto_eoi:
            self.isr |= 1 << n
        return self.base + n

    def command(self, value: int) -> None:
        """The even port: ICW1, OCW2 or OCW3."""
        if value & 0x10:
            self._initialize(value)
        elif value & 0x08:
            if value & 0x02:
                self.read_isr = bool(value & 0x01)
        elif value & 0x60 == 0x60:
            self.isr &= ~(1 << (value & 7))
        elif value & 0x20:
            self.isr &= self.isr - 1

    def _initialize(self, icw1: int) -> None:
        """ICW1 clears all but the inputs; a line that is high now counts as no new edge."""
        self.irr = self.lines & self.levels
        self.isr, self.imr, self.auto_eoi, self.read_isr = 0, 0, False, False
        self.expect, self.needs_icw4 = 2, bool(icw1 & 1)

    def data(self, value: int) -> None:
        """The odd port: ICW2 to ICW4 while initializing, else the mask."""
        if self.expect == 0:
            self.imr = value
        elif self.expect == 2:
            self.base, self.expect = value & 0xF8, 3
        elif self.expect == 3:
            self.expect = 4 if self.needs_icw4 else 0
        else:
            self.auto_eoi, self.expect = bool(value & 2), 0


def _unheard() -> None:
    """Where nobody hears of interrupts."""


class Pic(ByteDevice):
    """Both controllers, the slave on the master's line 2.  After reset every line is masked, as before an operating system sets them up.

    Fully nested mode; rotation, polling and the special mask mode are not modelled.  `changed` is called whenever what is `pending` may be
    another.
    """

    def __init__(self, bus: Bus):
        self.changed: Callable[[], None] = _unheard
        self.reset()
        for port in (MASTER, SLAVE, ELCR):
            bus.map_ports(port, 2, self)

    def reset(self) -> None:
        """Vectors as a PC's firmware sets them, all masked."""
        self._master, self._slave = _Chip(0x08), _Chip(0x70)
        self._set_levels(FIRMWARE_LEVELS)

    def _set_levels(self, mask: int) -> None:
        """Bit n: line n is level-triggered.  The cascade is, inside: the slave's output is no pulse."""
        self.levels = mask & _ELCR_WRITABLE
        self._master.set_levels(self.levels & 0xFF | 1 << CASCADE)
        self._slave.set_levels(self.levels >> 8)

    def set_line(self, irq: int, level: bool) -> None:
        """Drives line `irq` (0 to 15) high or low."""
        if irq >= 8:
            self._slave.set_line(irq - 8, level)
        else:
            self._master.set_line(irq, level)
        self._cascade()

    def _cascade(self) -> None:
        self._master.set_line(CASCADE, self._slave.request() is not None)
        self.changed()

    def pending(self) -> int | None:
        """The vector that the CPU would be given now; None where no interrupt is requested.  Changes nothing."""
        n = self._master.request()
        if n is None:
            return None
        slave = self._slave.request()
        return self._slave.base + slave if n == CASCADE and slave is not None else self._master.base + n

    def acknowledge(self) -> int:
        """What the CPU's acknowledge cycle returns: the vector, whose request is now in service."""
        cascaded = self._master.request() == CASCADE
        vector = self._master.acknowledge()
        if cascaded:
            vector = self._slave.acknowledge()
        self._cascade()
        return vector

    def _chip(self, port: int) -> _Chip | None:
        return {MASTER: self._master, SLAVE: self._slave}.get(port & ~1)

    def byte_read(self, port: int) -> int:
        """IN."""
        if port & ~1 == ELCR:
            return self.levels >> 8 * (port & 1) & 0xFF
        chip = self._chip(port)
        if chip is None:
            return 0xFF
        if port & 1:
            return chip.imr
        return chip.isr if chip.read_isr else chip.irr

    def byte_write(self, port: int, value: int) -> None:
        """OUT."""
        if port & ~1 == ELCR:
            shift = 8 * (port & 1)
            self._set_levels(self.levels & ~(0xFF << shift) | value << shift)
        elif chip := self._chip(port):
            (chip.data if port & 1 else chip.command)(value)
        self._cascade()
