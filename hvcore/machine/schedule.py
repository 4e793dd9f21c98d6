"""Whose turn it is among the processors of a machine: one runs until it halts, then the other; where all wait, time jumps.

One that does not halt gives way after `SLICE` of virtual time.  Where blocks of code are not counted, one that neither halts nor touches a
device takes no virtual time at all: whoever watches the machine calls `tick` now and then, which takes it off its processor, and a slice of
time passes for what it computed.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from .clock import Clock
from .cpu import Cpu, Stop, StopKind

__all__ = ["SLICE", "Schedule", "Seat", "waits"]

SLICE = 5_000_000
"""Nanoseconds of virtual time, which are 5,000 accesses to devices."""
PATIENCE, TURN = 0.2, 0.02
"""Seconds of work of this computer without virtual time, after which a processor is taken for one that only computes; and what such a one
gets from then on."""


class Interrupts(Protocol):
    """What a processor asks its interrupt controllers."""

    def pending(self) -> int | None:
        """The vector that waits; None where none does."""
        ...


class Seat(Protocol):
    """A processor with its interrupt controller.  `halted`: it stands behind an HLT of the host; `parked`: it never runs again."""

    cpu: Cpu

    @property
    def interrupts(self) -> Interrupts:
        """Its interrupt controllers."""
        ...

    halted: bool
    parked: bool


def waits(seat: Seat) -> bool:
    """Whether nothing makes a seat's processor run now."""
    if seat.cpu.stopping and not seat.parked:
        return False
    return seat.parked or seat.halted and seat.interrupts.pending() is None


class Schedule:
    """The processors of `seats` in the time of `clock`; `turn` is the one that runs or ran last."""

    def __init__(self, seats: Sequence[Seat], clock: Clock):
        self.seats, self.clock = tuple(seats), clock
        self.turn = self.seats[0]
        self._preempted = self._computed = False
        self._slice_end = self._seen = 0
        self._since = 0.0
        self._computer: Seat | None = None
        self._spent: Callable[[], float] = time.monotonic

    def forget_wall_time(self) -> None:
        """What a processor has spent of this computer's time counts from now on, on another thread or in another process."""
        self._spent, self._since = time.monotonic, 0.0

    def run(self, gate: Callable[[], None], awaited: Callable[[], Seat | None]) -> tuple[Seat, Stop] | None:
        """Runs until a processor stops for good (which, and how), or until nothing could wake any of them (None).

        Where there is one that is `awaited`, also None once that one waits and no timer is left, whatever the others do.  `gate` as for one
        processor: where the machine can be held.
        """
        self._spent = _work_of_this_thread()
        while True:
            gate()
            wanted = awaited()
            if wanted is not None and waits(wanted) and self.clock.next() is None:
                return None
            seat = self._next()
            if seat is None:
                if all(s.parked for s in self.seats) or not self.clock.skip():
                    return None
                continue
            stop = self._run(seat)
            seat.halted = stop.kind is StopKind.HALT
            if stop.kind not in (StopKind.HALT, StopKind.PAUSE):
                return seat, stop

    def _next(self) -> Seat | None:
        """Who runs next: the one whose turn it is, unless it waits or was preempted; None where all wait."""
        at = self.seats.index(self.turn)
        first = 1 if self._preempted else 0
        self._preempted = False
        order = [self.seats[(at + first + i) % len(self.seats)] for i in range(len(self.seats))]
        return next((seat for seat in order if not waits(seat)), None)

    def _run(self, seat: Seat) -> Stop:
        if seat is not self.turn or self.clock.now >= self._slice_end:
            self.turn, self._slice_end = seat, self.clock.now + SLICE
        seat.halted = False
        timer = self.clock.after(self._slice_end - self.clock.now, self._preempt)
        stop = seat.cpu.run()
        timer.cancel()
        if self._computed:
            self._computed = False
            self.clock.advance(SLICE)
        if stop.kind is StopKind.HALT:
            self._preempted, self._computer = True, None
        return stop

    def _preempt(self) -> None:
        """The slice of the one that runs is over."""
        self._preempted = True
        self.turn.cpu.pause()

    def tick(self) -> None:
        """From any thread, many times a second: where a processor has long done nothing that takes time, the other's turn comes."""
        if all(seat.cpu.meter.works for seat in self.seats):
            return
        now, spent, seat = self.clock.now, self._spent(), self.turn
        if now != self._seen or not seat.cpu.running:
            self._seen, self._since = now, spent
        elif spent - self._since >= (TURN if seat is self._computer else PATIENCE):
            self._computer, self._computed, self._since = seat, True, spent
            self._preempt()

    def pause(self, at_once: bool = False) -> None:
        """Lets the processor that runs come back soon, as `Cpu.pause`."""
        self.turn.cpu.pause(at_once)

    def stop(self, kind: StopKind, detail: str) -> None:
        """Ends the run of the processor that runs or ran last; of another where that one never runs again."""
        seat = next((s for s in (self.turn, *self.seats) if not s.parked), self.turn)
        seat.cpu.stop(kind, detail)


def _work_of_this_thread() -> Callable[[], float]:
    """Seconds that this thread has worked, to be asked from any thread while it lives; by the wall clock where the system cannot tell.

    A processor that waits for this computer's own is not one that computes.
    """
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    clock = time.pthread_getcpuclockid(threading.get_ident())

    def spent() -> float:
        try:
            return time.clock_gettime(clock)
        except OSError:
            return 0.0
    return spent
