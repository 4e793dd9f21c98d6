"""The 8254 interval timer and port 0x61 (Intel 8254 data sheet): channel 0 drives interrupt line 0, channel 2 the speaker."""

from .bus import Bus
from .clock import Clock, Timer
from .ports import ByteDevice, Lines

__all__ = ["FREQUENCY", "Pit"]

FREQUENCY = 1_193_182
"""Ticks a second."""

COUNTERS, CONTROL, SYSTEM = 0x40, 0x43, 0x61
_SECOND = 1_000_000_000
_REFRESH = 15_085
"""Nanoseconds between changes of port 0x61's refresh bit."""

_LOW, _HIGH = 1, 2
_ONCE, _RATE, _SQUARE, _STROBE = 0, 2, 3, 4
_PERIODIC = (_RATE, _SQUARE)


def _nanoseconds(ticks: int) -> int:
    """The time after which so many ticks have passed."""
    return -(-ticks * _SECOND // FREQUENCY)


class _Channel:
    """One counter.

    `reload` is 1 to 65536; the count runs since virtual time `start`, or stands still at `held` ticks where that is None.
    """

    def __init__(self, clock: Clock):
        self._clock = clock
        self.mode, self.access, self.reload, self.gate = _SQUARE, _LOW | _HIGH, 65536, True
        self.start: int | None = None
        self.loaded, self.held = False, 0
        self._low: int | None = None
        self._latched: list[int] = []
        self._status: int | None = None
        self._high_next = False

    def elapsed(self) -> int:
        """Ticks since the count was loaded."""
        return self.held if self.start is None else (self._clock.now - self.start) * FREQUENCY // _SECOND

    def out(self) -> bool:
        """The level of OUT."""
        if not self.loaded:
            return self.mode != _ONCE
        ticks = self.elapsed()
        if self.mode == _ONCE:
            return ticks >= self.reload
        if self.mode == _RATE:
            return ticks % self.reload != self.reload - 1
        if self.mode == _SQUARE:
            return ticks % self.reload < (self.reload + 1) // 2
        return not (self.mode == _STROBE and ticks == self.reload)

    def count(self) -> int:
        """What the counter holds: it counts down, in the square mode by two."""
        ticks = self.elapsed()
        if self.mode == _SQUARE:
            return (self.reload - 2 * ticks % self.reload) & 0xFFFF
        return (self.reload - (ticks % self.reload if self.mode == _RATE else ticks)) & 0xFFFF

    def next_rise(self) -> int | None:
        """The virtual time at which OUT goes up next; None where it never will by itself."""
        if not self.loaded or self.start is None:
            return None
        ticks, rise = self.elapsed(), {_ONCE: self.reload, _STROBE: self.reload + 1}.get(self.mode)
        if self.mode in _PERIODIC:
            rise = (ticks // self.reload + 1) * self.reload
        return None if rise is None or rise <= ticks else self.start + _nanoseconds(rise)

    def set_mode(self, mode: int, access: int) -> None:
        """A control word: the counter waits for its count."""
        self.mode, self.access = mode if mode < 6 else mode - 4, access
        self.start, self.held, self.loaded = None, 0, False
        self._low, self._latched, self._status, self._high_next = None, [], None, False

    def set_gate(self, gate: bool) -> None:
        """The gate input: low stops the count; a rise goes on in mode 0 and starts anew in modes 2 and 3."""
        if gate == self.gate:
            return
        self.held, self.start, self.gate = self.elapsed(), None, gate
        if gate and self.loaded:
            self._run(0 if self.mode in _PERIODIC else self.held)

    def _run(self, ticks: int) -> None:
        """Counts from now on, `ticks` being done; stands still while the gate is low."""
        self.held = ticks
        self.start = self._clock.now - _nanoseconds(ticks) if self.gate else None

    def write(self, value: int) -> bool:
        """A byte of the count; True where the count is now complete and runs."""
        if self.access == _LOW | _HIGH and self._low is None:
            self._low = value
            return False
        count = value << 8 if self.access == _HIGH else value if self.access == _LOW else value << 8 | (self._low or 0)
        self._low, self.reload, self.loaded = None, count or 65536, True
        self._run(0)
        return True

    def latch_count(self) -> None:
        """Keeps the count for the next reads; a second latch before them changes nothing."""
        if not self._latched:
            self._latched = self._bytes(self.count())

    def latch_status(self) -> None:
        """Keeps OUT, whether a count was loaded, and the mode for the next read."""
        if self._status is None:
            self._status = self.out() << 7 | (not self.loaded) << 6 | self.access << 4 | self.mode << 1

    def _bytes(self, count: int) -> list[int]:
        both = [count & 0xFF, count >> 8]
        return both if self.access == _LOW | _HIGH else both[self.access - 1:self.access]

    def read(self) -> int:
        """Status if latched, else the latched count, else the running one."""
        if self._status is not None:
            status, self._status = self._status, None
            return status
        if self._latched:
            return self._latched.pop(0)
        live = self._bytes(self.count())
        value = live[self._high_next and len(live) > 1]
        self._high_next = not self._high_next
        return value


class Pit(ByteDevice):
    """Three counters at 1193182 Hz of virtual time.  Channel 0's OUT is interrupt line 0.

    Modes 0, 2, 3 and 4; the two that the gate triggers (1, 5) raise nothing, and counts are binary, never BCD.  A new count takes effect
    at once.
    """

    def __init__(self, bus: Bus, clock: Clock, lines: Lines):
        self._clock, self._lines = clock, lines
        self._timer: Timer | None = None
        self.reset()
        bus.map_ports(COUNTERS, 4, self)
        bus.map_ports(SYSTEM, 1, self)

    def reset(self) -> None:
        """No counter runs until software loads it."""
        self._channels = tuple(_Channel(self._clock) for _ in range(3))
        self._channels[2].gate = False
        self._speaker = 0
        self._schedule()

    def byte_read(self, port: int) -> int:
        """IN.  The control port cannot be read."""
        if port == SYSTEM:
            refresh = self._clock.now // _REFRESH & 1
            return self._channels[2].gate | self._speaker | refresh << 4 | self._channels[2].out() << 5
        return self._channels[port - COUNTERS].read() if port < CONTROL else 0xFF

    def byte_write(self, port: int, value: int) -> None:
        """OUT."""
        if port == SYSTEM:
            self._speaker = value & 2
            self._channels[2].set_gate(bool(value & 1))
        elif port == CONTROL:
            self._control(value)
        elif port < CONTROL and self._channels[port - COUNTERS].write(value) and port == COUNTERS:
            self._schedule()

    def _control(self, value: int) -> None:
        """A control word, a latch command or a read-back command."""
        selected = value >> 6
        if selected == 3:
            self._read_back(value)
        elif value & 0x30 == 0:
            self._channels[selected].latch_count()
        else:
            self._channels[selected].set_mode(value >> 1 & 7, value >> 4 & 3)
            if selected == 0:
                self._schedule()

    def _read_back(self, value: int) -> None:
        for n, channel in enumerate(self._channels):
            if value & 2 << n:
                if not value & 0x20:
                    channel.latch_count()
                if not value & 0x10:
                    channel.latch_status()

    def _schedule(self) -> None:
        """Drives line 0 with OUT as it is now and waits for its next rise."""
        if self._timer:
            self._timer.cancel()
        self._lines.set_line(0, self._channels[0].out())
        rise = self._channels[0].next_rise()
        self._timer = None if rise is None else self._clock.after(rise - self._clock.now, self._rise)

    def _rise(self) -> None:
        self._lines.set_line(0, False)
        self._schedule()
