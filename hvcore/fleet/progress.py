"""How far a fleet is, on stderr: a bar on a terminal, else a plain line now and then."""

import sys
import time
from collections import deque
from typing import TextIO

__all__ = ["Progress"]

_WIDTH = 30
_EVERY = {True: 0.2, False: 10.0}
"""Seconds between two pictures on a terminal, and between two lines elsewhere."""
_RECENT = 200
"""Items of which the rate is taken."""


class Progress:
    """Counts finished items; `already` were so before."""

    def __init__(self, total: int, already: int, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self.total, self.done, self.failed = total, already, 0
        self._times = deque([time.monotonic()], maxlen=_RECENT)
        self._said = 0.0
        if already:
            self._line(f"{already:,} of {total:,} were done before")

    def step(self, failed: bool) -> None:
        """One more item is done."""
        self.done += 1
        self.failed += failed
        now = time.monotonic()
        self._times.append(now)
        if now - self._said >= _EVERY[self._terminal] or self.done == self.total:
            self._said = now
            self._show()

    def end(self) -> None:
        """Takes the bar away."""
        if self._terminal:
            print("\r\033[K", end="", file=self._stream, flush=True)

    @property
    def rate(self) -> float:
        """Items a second, of late."""
        span = self._times[-1] - self._times[0]
        return (len(self._times) - 1) / span if span > 0 else 0.0

    @property
    def text(self) -> str:
        """Items done, rate, time left."""
        rate = self.rate
        left = f", {duration((self.total - self.done) / rate)} left" if rate and self.done < self.total else ""
        failed = f", {self.failed:,} could not be examined" if self.failed else ""
        return f"{self.done:,} of {self.total:,} items, {rate:.3g}/s{left}{failed}"

    def _show(self) -> None:
        if self._terminal:
            full = _WIDTH * self.done // max(1, self.total)
            print(f"\r\033[K[{'#' * full}{'.' * (_WIDTH - full)}] {self.text}", end="", file=self._stream, flush=True)
        else:
            self._line(self.text)

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `40 s`, `12 min`, `3 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
