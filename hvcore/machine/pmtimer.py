"""The ACPI power-management timer (ACPI 6.5, section 4.8.2.1): a free-running counter, the guest's clock."""

from .bus import Bus
from .clock import Clock

__all__ = ["FREQUENCY", "PORT", "PmTimer"]

PORT, FREQUENCY, BITS = 0x608, 3_579_545, 24
"""I/O port, ticks a second, width of the counter."""


class PmTimer:
    """Counts virtual time at 3.579545 MHz in 24 bits.  It has no state of its own."""

    def __init__(self, bus: Bus, clock: Clock):
        self._clock = clock
        bus.map_ports(PORT, 4, self)

    def reset(self) -> None:
        """Nothing to do: the count is the clock's."""

    def port_read(self, port: int, width: int) -> int:
        """The count, or those bytes of it that lie at `port`."""
        count = self._clock.now * FREQUENCY // 1_000_000_000 & (1 << BITS) - 1
        return count >> 8 * (port - PORT)

    def port_write(self, port: int, width: int, value: int) -> None:
        """Lost: the counter is read-only."""
