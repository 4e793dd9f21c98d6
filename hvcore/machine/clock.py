"""Virtual time: nanoseconds since power-on, which pass when the machine says so and never by the wall clock."""

import heapq
from collections.abc import Callable

__all__ = ["Clock", "Timer"]


class Timer:
    """A deadline on a clock.  `cancel()` takes it off."""

    __slots__ = ("at", "callback")

    def __init__(self, at: int, callback: Callable[[], None]):
        self.at, self.callback = at, callback

    def cancel(self) -> None:
        """The callback will not run."""
        self.callback = _nothing


def _nothing() -> None:
    pass


_CROWD = 64
"""So many timers on a clock are looked through for cancelled ones."""


class Clock:
    """`now` is virtual nanoseconds since power-on, of which `idle` were jumped over because nobody had anything to do.

    `alarm` is called once `busy` has reached `alarm_at`, where that is set.  It is no timer: no time passes because of it.
    """

    alarm_at: int | None = None
    alarm: Callable[[], None] = staticmethod(_nothing)

    def __init__(self) -> None:
        self.now = self.idle = 0
        self._queue: list[tuple[int, int, Timer]] = []
        self._order = 0
        self._crowd = _CROWD

    def after(self, delay: int, callback: Callable[[], None]) -> Timer:
        """Runs `callback` when `delay` more nanoseconds have passed."""
        if len(self._queue) >= self._crowd:
            self._sweep()
        timer = Timer(self.now + max(delay, 0), callback)
        heapq.heappush(self._queue, (timer.at, self._order, timer))
        self._order += 1
        return timer

    def _sweep(self) -> None:
        """Forgets the cancelled timers, which otherwise pile up where software starts one anew again and again."""
        self._queue = [entry for entry in self._queue if entry[2].callback is not _nothing]
        heapq.heapify(self._queue)
        self._crowd = max(_CROWD, 2 * len(self._queue))

    def advance(self, duration: int) -> None:
        """Lets `duration` nanoseconds pass; timers run in order, each at its own time."""
        end = self.now + duration
        while self._queue and self._queue[0][0] <= end:
            at, _, timer = heapq.heappop(self._queue)
            self.now = max(self.now, at)
            timer.callback()
        self.now = end
        if self.alarm_at is not None and end - self.idle >= self.alarm_at:
            self.alarm_at = None
            self.alarm()

    def next(self) -> int | None:
        """Time of the next live timer; None where nothing is due, ever."""
        while self._queue and self._queue[0][2].callback is _nothing:
            heapq.heappop(self._queue)
        return self._queue[0][0] if self._queue else None

    def skip(self) -> bool:
        """Jumps to the next timer and runs it; False where there is none."""
        at = self.next()
        if at is None:
            return False
        jump = max(at - self.now, 0)
        self.idle += jump
        self.advance(jump)
        return True

    @property
    def busy(self) -> int:
        """Nanoseconds in which somebody had something to do."""
        return self.now - self.idle
