"""When a guest comes to rest though its timers go on for ever: its shell waits for a line, or the time that it was given is over.

A shell is known to wait by what it prints.  busybox's line editor asks the terminal for its cursor (`ESC [ 6 n`) whenever it begins to wait
and nothing was typed ahead: that is looked for, so that a line of the kernel's behind a prompt does not hide it, and what a program prints
is not taken for one.  Where a shell never asks, its console must end with the prompt.
"""

from collections.abc import Callable

from .clock import Clock, Timer

__all__ = ["ASKS", "Rest"]

ASKS = b"\x1b[6n"
"""Device Status Report: where is the cursor?  (ECMA-48, section 8.3.35.)"""


class Rest:
    """What a guest waits for, in the time of `clock`; `pause` is called when its time is over.

    `prompt` is that of its shell, None for a guest without one, which is at rest when nothing could wake it.  `asking` says whether the
    shell waits for input, `at_prompt` whether for a new command; with `through_prompt` the machine goes on nevertheless.  `late` says
    whether the time that `allow` gave is over.
    """

    def __init__(self, clock: Clock, pause: Callable[[], None]):
        self._clock, self._pause = clock, pause
        self.prompt: bytes | None = None
        self.asking = self.at_prompt = self.late = self.through_prompt = False
        self._asks = False
        self._tail = b""
        self._timer: Timer | None = None

    def sent(self, data: bytes) -> None:
        """The guest has printed something."""
        if self.prompt is None:
            return
        self._tail = (self._tail + data)[-len(self.prompt) - len(ASKS):]
        if self._tail.endswith(ASKS):
            self._asks = self.asking = True
            self.at_prompt = self._tail[:-len(ASKS)].endswith(self.prompt)
        elif not self._asks:
            self.asking = self.at_prompt = self._tail.endswith(self.prompt)

    def typed(self) -> None:
        """There is input for the guest."""
        self.asking = self.at_prompt = False
        self._tail = b""

    def allow(self, duration: int | None, through_prompt: bool = False) -> None:
        """From now on the guest has `duration` nanoseconds of virtual time; None for as long as it takes."""
        if self._timer is not None:
            self._timer.cancel()
        self.late, self.through_prompt = False, through_prompt
        self._timer = None if duration is None else self._clock.after(duration, self._over)

    def _over(self) -> None:
        self._timer, self.late = None, True
        self._pause()

    @property
    def idle(self) -> bool:
        """Whether a processor that halts has nothing to do but to wait for somebody who types."""
        return self.asking and not self.through_prompt
