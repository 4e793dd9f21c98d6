"""The past of a machine that runs: light snapshots in memory, to step back into.

Each is the graph of the machine's state and what it takes to go from the memory of the next one back to its own; only of the newest there
is a whole copy.  They are taken on the machine's own thread, where it can be held, at the first such point after every `every` nanoseconds
of virtual time in which there was something to do; so the same boot has them at the same places, and what follows a step back is what
followed before.
"""

import marshal
from collections import deque
from dataclasses import dataclass
from typing import Any

from ..booting import Booting
from ..errors import HvlabError, quoted
from ..inspect import format as show
from ..inspect.counterfactual import blocked_request
from ..inspect.faults import Fault
from ..inspect.history import Event
from ..inspect.records import Column, Record, Records
from ..inspect.trace import Dma
from . import state
from .graph import Graph
from .image import Image, Undo

__all__ = ["History", "Moment"]

PERIODIC, BEGINNING = "every so often", "the guest begins"
_LEAST_NS = 1000


@dataclass(frozen=True, slots=True, repr=False)
class Moment(Record):
    """A moment of the current run that the machine can go back to: `number` counts them, `time` is virtual nanoseconds since power-on,
    `what` says why it is kept, `size` are the bytes that it takes."""

    number: int
    time: int
    what: str
    size: int

    title = "Moments that the machine can go back to"
    legend = "time: virtual ns since power-on; size: bytes of this computer's memory"
    columns = (Column("number", lambda m: m.number, right=True), Column("time", lambda m: m.time, right=True),
               Column("what", lambda m: m.what), Column("size", lambda m: m.size, show.size, True))


@dataclass
class _Kept:
    """A moment: its state, packed, and what leads from the memory of the next one to its own, None of the newest."""

    number: int
    time: int
    what: str
    nodes: bytes
    rest: Graph
    undo: Undo | None = None

    @property
    def size(self) -> int:
        own = len(self.nodes) + sum(map(len, self.rest.shared or ())) // 4
        return own + (self.undo.size if self.undo else 0)

    @property
    def moment(self) -> Moment:
        return Moment(self.number, self.time, self.what, self.size)

    def graph(self) -> Graph:
        """The machine's state."""
        return Graph(self.rest.root, marshal.loads(self.nodes), self.rest.shapes, b"", self.rest.shared)


class History:
    """The moments of `booting`'s current run: one every `every` nanoseconds of busy virtual time, None for those that are asked for only.

    The oldest go when all of them take more than `most` bytes; the newest always stays.
    """

    def __init__(self, booting: Booting, every: int | None, most: int):
        if every is not None and every < _LEAST_NS:
            raise HvlabError(f"a moment every {every} ns is more than can be kept: ask for one every {_LEAST_NS} ns or less often")
        self.booting, self.every, self.most = booting, every, most
        self._kept: deque[_Kept] = deque()
        self._image = Image()
        self._run, self._count, self._due = booting.boots, 0, 0

    # --- on the machine's own thread

    def visit(self) -> None:
        """The machine stands where it can be held."""
        self.renew()
        if self.every is not None and self.booting.pc.clock.busy >= self._due:
            exits = self.booting.exits
            first = not self._kept and exits is not None and not exits.count
            self.keep(BEGINNING if first else PERIODIC)
        self._set_alarm()

    def renew(self) -> None:
        """In another run the moments of the one before are gone."""
        if self._run != self.booting.boots:
            self._kept.clear()
            self._image = Image()
            self._run, self._count, self._due = self.booting.boots, 0, 0

    def _set_due(self) -> None:
        if self.every is not None:
            self._due = (self.booting.pc.clock.busy // self.every + 1) * self.every

    def _set_alarm(self) -> None:
        clock = self.booting.pc.clock
        if self.every is not None:
            clock.alarm_at, clock.alarm = max(self._due, clock.busy + 1), self.booting.pc.pause

    def keep(self, what: str) -> Moment:
        """Keeps the moment that is now, while the machine stands still."""
        state.must_be_storable(self.booting)
        now = self.booting.pc.clock.now
        self._set_due()
        graph = state.of(self.booting, share=True)
        undo = self._image.follow(self.booting.pc.memory)
        if self._kept:
            self._kept[-1].undo = undo
        self._count += 1
        self._kept.append(_Kept(self._count, now, what, marshal.dumps(graph.nodes), Graph(graph.root, [], graph.shapes, b"", graph.shared)))
        while len(self._kept) > 1 and self.size > self.most:
            self._kept.popleft()
        return self._kept[-1].moment

    # --- from other threads, while it stands still

    @property
    def size(self) -> int:
        """Bytes that all of it takes."""
        return self._image.size + sum(kept.size for kept in self._kept)

    @property
    def moments(self) -> Records[Moment]:
        """All of them, the oldest first."""
        kept = self._kept if self._run == self.booting.boots else ()
        return Records(Moment, [each.moment for each in kept], note=f"With the copy of memory {show.size(self.size)} in all.")

    def back(self, moment: Moment) -> None:
        """Makes the machine, which is at rest, what it was at a moment; those after it are gone."""
        kept = self._found(moment)
        while self._kept[-1] is not kept:
            self._kept.pop()
            undo = self._kept[-1].undo
            assert undo is not None
            self._image.undo(undo)
        kept.undo = None
        ready = state.prepare(kept.graph(), self.booting, check=False)
        self.booting.pc.close_processors()
        self._image.put(self.booting.pc.memory)
        ready.take(self.booting, same_run=True)
        self._set_due()
        self._set_alarm()

    def choose(self, to: object, trace: Records[Dma]) -> Moment:
        """The moment to go back to: `to` itself, or the last one before that number of nanoseconds, request of `trace`, fault or event;
        None is now.  Raises HvlabError where there is none."""
        if isinstance(to, Moment):
            return self._found(to).moment
        time = self.booting.pc.clock.now if to is None else self._time(to, trace)
        found = [kept for kept in self._kept if kept.time < time]
        if not found or self._run != self.booting.boots:
            raise HvlabError(f"no moment before {time} ns is kept: m.snapshots has those that are, and keep_history() keeps them")
        return found[-1].moment

    def _found(self, moment: Moment) -> _Kept:
        found = next((k for k in self._kept if (k.number, k.time) == (moment.number, moment.time)), None)
        if found is None or self._run != self.booting.boots:
            raise HvlabError(f"moment {moment.number} is not kept any more: m.snapshots has those that are")
        return found

    def _time(self, to: Any, trace: Records[Dma]) -> int:
        """When something was, by the machine's clock."""
        if type(to) is int:
            return to
        if isinstance(to, Dma):
            return to.time
        if isinstance(to, Fault):
            return blocked_request(trace, to).time
        if isinstance(to, Event):
            return 0 if to.nominal else to.time - self.booting.pc.journal.ahead
        raise HvlabError(f"{quoted(to)} is no moment: give one of m.snapshots, nanoseconds, or one of run.faults, run.dma or run.history")
