"""When a guest comes to rest though its timers go on for ever: its shell waits for a command, or the time that it was given is over."""

from collections.abc import Callable

from .clock import Clock, Timer
from .printed import Printed

__all__ = ["Rest"]


class Rest:
    """What a guest waits for, in the time of `clock`; `pause` is called when its time is over.

    `prompt` is that of its shell, None for a guest without one, which is at rest when nothing could wake it.  `at_prompt` says whether the
    shell takes a command: its prompt is the last thing on the console but for lines of the kernel, which begin with a bracket and come
    when they like; once the processor has halted there, whatever comes.  With `through_prompt` the machine goes on nevertheless.  `late`
    says whether the time that `allow` gave is over; `said` is what was printed since somebody last typed.
    """

    def __init__(self, clock: Clock, pause: Callable[[], None]):
        self._clock, self._pause = clock, pause
        self.prompt: bytes | None = None
        self.at_prompt = self.late = self.through_prompt = False
        self.said = Printed()
        self._tail = b""
        self._begins = self._settled = False
        self._timer: Timer | None = None

    def sent(self, data: bytes) -> None:
        """The guest has printed something."""
        if self.prompt is not None:
            self.said.put(data)
            for byte in data:
                self._sent(byte)

    def _sent(self, byte: int) -> None:
        self._tail = (self._tail + bytes((byte,)))[-len(self.prompt or b""):]
        if self._tail == self.prompt:
            self.at_prompt = self._begins = True
        elif self.at_prompt and not self._settled:
            self.at_prompt = not self._begins or byte == _BRACKET
            self._begins = byte == _LINE_FEED

    def typed(self) -> None:
        """There is input for the guest."""
        self.at_prompt = self._settled = False
        self.said, self._tail = Printed(), b""

    def allow(self, duration: int | None, through_prompt: bool = False) -> None:
        """From now on the guest has `duration` nanoseconds of virtual time; None for as long as it takes."""
        if self._timer is not None:
            self._timer.cancel()
        self.late, self.through_prompt = False, through_prompt
        self._timer = None if duration is None else self._clock.after(duration, self._over)

    def _over(self) -> None:
        self._timer, self.late = None, True
        self._pause()

    def halted(self) -> bool:
        """The processor halts; whether it has nothing more to do, because its time is over or because it waits for somebody who types."""
        self._settled = self.at_prompt
        return self.late or self.at_prompt and not self.through_prompt


_BRACKET, _LINE_FEED = b"[\n"
