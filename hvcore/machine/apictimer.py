"""The timer of a local APIC (Intel SDM volume 3, section 10.5.4), in virtual time: one-shot or periodic, no TSC deadline."""

from collections.abc import Callable

from .clock import Clock, Timer

__all__ = ["BUS_FREQUENCY", "DENSEST_NS", "ApicTimer"]

BUS_FREQUENCY = 1_000_000_000
"""Ticks a second before the divider: one each nanosecond, as in QEMU and KVM."""
DENSEST_NS = 1000
"""A shorter period is told every few times only: processors merge such interrupts anyway, for one access to a device takes as long."""


class ApicTimer:
    """Counts down from `initial` every `divisor` nanoseconds; `expired` is called at zero while the timer is `armed`.

    Unarmed (its entry masked) it counts as well but nobody waits for it, so that it keeps no clock going.
    """

    def __init__(self, clock: Clock, expired: Callable[[], None]):
        self._clock, self._expired = clock, expired
        self.initial, self.divisor, self.periodic, self.armed = 0, 2, False, False
        self._since: int | None = None
        self._loaded = 0
        self._timer: Timer | None = None

    def start(self, count: int) -> None:
        """A write of the initial count; 0 stops the timer."""
        self.initial = self._loaded = count
        self._since = self._clock.now if count else None
        self._schedule()

    def set_divisor(self, divisor: int) -> None:
        """Counts on from where it is, at another speed."""
        if divisor != self.divisor:
            self._hold()
            self.divisor = divisor
            self._schedule()

    def set_mode(self, periodic: bool, armed: bool) -> None:
        """Counts on from where it is; a one-shot that is over stays so until it is started anew."""
        if periodic != self.periodic:
            self._hold()
            self.periodic = periodic
        self.armed = armed
        self._schedule()

    def _hold(self) -> None:
        """Takes the count of now for the one that was loaded."""
        self._loaded = self.current()
        self._since = self._clock.now if self._loaded else None

    def current(self) -> int:
        """What the counter holds."""
        if self._since is None:
            return 0
        left = self._loaded - (self._clock.now - self._since) // self.divisor
        if left > 0:
            return left
        return self.initial - -left % self.initial if self.periodic else 0

    def _next(self) -> int | None:
        """The virtual time at which the count is zero next; None where it never will be, or nobody waits for it."""
        left = self.current()
        if not left or self._since is None or not self.armed:
            return None
        now = self._clock.now
        at = now - (now - self._since) % self.divisor + left * self.divisor
        if self.periodic and at - now < DENSEST_NS:
            period = self.initial * self.divisor
            at += -(-(DENSEST_NS - at + now) // period) * period
        return at

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        at = self._next()
        self._timer = None if at is None else self._clock.after(at - self._clock.now, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self.periodic:
            self._schedule()
        self._expired()
