"""The real-time clock and its CMOS memory (Motorola MC146818A; memory sizes where PC firmware keeps them)."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from .bus import Bus
from .clock import Clock
from .ports import ByteDevice

__all__ = ["CENTURY", "INDEX", "POWER_ON", "Cmos"]

INDEX, DATA = 0x70, 0x71
POWER_ON = datetime(2026, 1, 1, tzinfo=UTC)
"""The date at virtual time 0: always the same, so that runs repeat."""

CENTURY = 0x32
"""The register that holds the century."""
STATUS_A, STATUS_B, STATUS_C, STATUS_D, SHUTDOWN = 0x0A, 0x0B, 0x0C, 0x0D, 0x0F
_A_DIVIDER, _B_24_HOURS, _B_BINARY, _D_VALID = 0x26, 1 << 1, 1 << 2, 0x80
_READ_ONLY = {0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, CENTURY, STATUS_C, STATUS_D}


class Cmos(ByteDevice):
    """128 bytes behind ports 0x70 and 0x71.  The time is the virtual clock's since `POWER_ON` and cannot be set; no alarms, no interrupts.

    `ram` are the half-open host-physical RAM ranges, from which the memory sizes come.
    """

    def __init__(self, bus: Bus, clock: Clock, ram: Iterable[tuple[int, int]]):
        self._clock, self._ram = clock, tuple(ram)
        self.reset()
        bus.map_ports(INDEX, 2, self)

    def reset(self) -> None:
        """As firmware leaves it at power-on."""
        self._index = 0
        self._bytes = bytearray(128)
        self._bytes[STATUS_A], self._bytes[STATUS_B], self._bytes[STATUS_D] = _A_DIVIDER, _B_24_HOURS, _D_VALID
        low = max((b for _, b in self._ram if b <= 1 << 32), default=0)
        high = sum(b - a for a, b in self._ram if a >= 1 << 32)
        extended = min(max(low - (1 << 20), 0) >> 10, 0xFFFF).to_bytes(2, "little")
        self._bytes[0x15:0x17] = (640).to_bytes(2, "little")
        self._bytes[0x17:0x19] = self._bytes[0x30:0x32] = extended
        self._bytes[0x34:0x36] = min(max(low - (16 << 20), 0) >> 16, 0xFFFF).to_bytes(2, "little")
        self._bytes[0x5B:0x5E] = min(high >> 16, 0xFFFFFF).to_bytes(3, "little")

    def _time(self) -> dict[int, int]:
        """The time registers as numbers."""
        t = POWER_ON + timedelta(microseconds=self._clock.now // 1000)
        return {0x00: t.second, 0x02: t.minute, 0x04: t.hour, 0x06: t.isoweekday() % 7 + 1, 0x07: t.day, 0x08: t.month,
                0x09: t.year % 100, CENTURY: t.year // 100}

    def byte_read(self, port: int) -> int:
        """IN."""
        if port != DATA:
            return 0xFF
        number = self._time().get(self._index)
        if number is None:
            return self._bytes[self._index]
        return number if self._bytes[STATUS_B] & _B_BINARY else number // 10 << 4 | number % 10

    def byte_write(self, port: int, value: int) -> None:
        """OUT.  Bit 7 of the index (the NMI mask) is not modelled."""
        if port == INDEX:
            self._index = value & 0x7F
        elif port == DATA and self._index not in _READ_ONLY:
            self._bytes[self._index] = value
