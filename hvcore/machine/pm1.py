"""ACPI's fixed registers PM1_STS, PM1_EN and PM1_CNT (ACPI 6.5, sections 4.8.1 and 4.8.3): the timer's event, and the way to switch off."""

from collections.abc import Callable

from .bus import Bus
from .clock import Clock, Timer
from .pmtimer import BITS, FREQUENCY
from .ports import ByteDevice, Lines

__all__ = ["CONTROL", "EVENT", "S5_TYPE", "SCI", "Pm1"]

EVENT, CONTROL = 0x600, 0x604
"""Ports: status and enable, two bytes each; control, two bytes."""
SCI = 9
"""The interrupt line of ACPI's events, level-triggered."""
S5_TYPE = 7
"""SLP_TYP of the state S5, soft off."""

_TMR = 1 << 0
_EVENTS = _TMR | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10
"""Timer, global lock, power and sleep button, clock."""
_SCI_EN, _BM_RLD, _SLP_EN = 1 << 0, 1 << 1, 1 << 13
_SLP_TYP_SHIFT, _SLP_TYP = 10, 7 << 10
_HALF = 1 << BITS - 1
"""Ticks after which the timer's highest bit changes."""
_SECOND = 1_000_000_000


class Pm1(ByteDevice):
    """Registers of a PC that is always in ACPI mode: SCI_EN reads 1.  `off` is called when software enters S5.

    The one event is the timer's: TMR_STS is set each time the highest bit of the power-management timer has changed.  The others can be
    enabled and never come: no firmware runs beside the system, there are no buttons and no alarm.  S5 is the only sleep.
    """

    def __init__(self, bus: Bus, clock: Clock, lines: Lines, off: Callable[[], None]):
        self._clock, self._lines, self._off = clock, lines, off
        self._timer: Timer | None = None
        self.reset()
        bus.map_ports(EVENT, 4, self)
        bus.map_ports(CONTROL, 2, self)

    def reset(self) -> None:
        """Nothing enabled, nothing pending."""
        self._enable = self._control = 0
        self._cleared = self._changes()
        self._update()

    def _changes(self) -> int:
        """How often the timer's highest bit has changed since power-on."""
        return self._clock.now * FREQUENCY // _SECOND // _HALF

    @property
    def status(self) -> int:
        """PM1_STS."""
        return _TMR if self._changes() != self._cleared else 0

    def _update(self) -> None:
        """Drives the interrupt line; where the timer's event is awaited a deadline stands for it."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        pending = self.status & self._enable
        self._lines.set_line(SCI, bool(pending))
        if self._enable & _TMR and not pending:
            at = -(-(self._cleared + 1) * _HALF * _SECOND // FREQUENCY)
            self._timer = self._clock.after(at - self._clock.now, self._update)

    def byte_read(self, port: int) -> int:
        """IN."""
        register = self.status | self._enable << 16 if port < CONTROL else self._control | _SCI_EN
        return register >> 8 * (port - (EVENT if port < CONTROL else CONTROL)) & 0xFF

    def byte_write(self, port: int, value: int) -> None:
        """OUT: a 1 clears a status bit."""
        if port == EVENT and value & _TMR:
            self._cleared = self._changes()
        elif port == EVENT + 2:
            self._enable = self._enable & ~0xFF | value & _EVENTS
        elif port == EVENT + 3:
            self._enable = self._enable & 0xFF | value << 8 & _EVENTS
        elif port == CONTROL:
            self._control = self._control & ~0xFF | value & _BM_RLD
        elif port == CONTROL + 1:
            self._control = self._control & 0xFF | value << 8 & _SLP_TYP
            if value << 8 & _SLP_EN and self._control >> _SLP_TYP_SHIFT == S5_TYPE:
                self._off()
        self._update()
