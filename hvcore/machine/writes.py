"""Who wrote what: the newest writer of every word of memory, as far as this instrument sees writers.

Seen always: writes that go through `Memory.write`, which are all DMA, the units' own messages and completions, and what firmware and the
core's policy write word by word.  Not seen: what the core writes as whole arrays (domain tables, cleared pages), what the emulator's world
switch puts into a VMCB, the accessed and dirty bits that the processor's walks set.

Stores of code on a processor are seen once they are watched.  A hook for that costs nothing in the ranges but makes every store anywhere
27 ns slower (1 or 4 ns else), and each of the world switch's register saves 2 us; so it sleeps.  It wakes for the core's region when
somebody else than the core has written there (a device, or a notebook while the guest waits) to what keeps the guest out (`opens`), for
without that the guest's stores cannot get there; or when it is told to (`watch`).

Memory is bounded: in the core's region and in watched ranges the newest writer of every word is kept, which takes at most twice the
ranges' own size; elsewhere that of the `ELSEWHERE` pages that were written last.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..spec.dma import DmaRequest
from ..spec.writes import Write, Writer
from .clock import Clock
from .cpu import Stores
from .memory import PAGE

__all__ = ["ELSEWHERE", "WriteLog"]

ELSEWHERE = 4096
"""Pages outside the kept ranges whose writers are remembered."""
_WORDS = PAGE // 8
Range = tuple[int, int]
Noted = tuple[Any, ...]
"""The fields of a `Write`, which is made when it is asked for."""
Words = list[Noted | None]


def _no_ranges() -> list[Range]:
    return []


def _no_top() -> int | None:
    return None


def _may(_address: int) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class _Mark:
    """A phase of the boot, and the host-physical address of the core's next free page when it began."""

    phase: str
    top: int | None


class WriteLog:
    """The log of one machine since power-on.

    `clock` is virtual time; `arm(ranges, stores)` lets every processor call `stores(address, data, rip, guest)` for each
    store to host-physical ranges; `idle()` is whether no processor runs.  Whoever knows the core sets `region`, its ranges now, `top`, its
    next free page, and `opens`, whether a change at an address of the region might let the guest in.
    """

    def __init__(self, clock: Clock, arm: Callable[[list[Range], Stores], None], idle: Callable[[], bool]):
        self._clock, self._arm, self._idle = clock, arm, idle
        self.region: Callable[[], list[Range]] = _no_ranges
        self.top: Callable[[], int | None] = _no_top
        self.opens: Callable[[int], bool] = _may
        self._asked: list[Range] = []
        self._awake: list[tuple[int, int, int]] = []
        self._kept: dict[int, Words] = {}
        self._others: OrderedDict[int, Words] = OrderedDict()
        self._marks: list[_Mark] = [_Mark("", None)]
        self._phase, self._software = "", Writer.FIRMWARE
        self.forgotten = 0

    # --- what writes

    def phase(self, name: str) -> None:
        """A phase of the boot begins."""
        self._marks.append(_Mark(name, self.top()))
        self._phase, self._software = name, Writer.FIRMWARE if name == "firmware" else Writer.CORE

    def written(self, address: int, data: bytes, by: object) -> None:
        """Something went through `Memory.write`: `by` is the request of a device, the name of what else wrote, None for software."""
        time, phase = self._clock.now, self._phase
        if by is None:
            self._record(address, len(data), (self._software, address, data, time, phase))
        elif isinstance(by, DmaRequest):
            self._record(address, len(data), (Writer.DMA, address, data, time, phase, by.source, by.segment, by.iova))
        else:
            self._record(address, len(data), (Writer.HARDWARE, address, data, time, phase, None, 0, None, None, str(by)))
            return
        if by is not None or phase == "guest runs" and self._idle():
            self._wake_for(address, address + len(data))

    def stored(self, address: int, data: bytes, rip: int, guest: bool) -> None:
        """Code on a processor stored to a watched range."""
        kind = Writer.GUEST if guest else Writer.HOST
        self._record(address, len(data), (kind, address, data, self._clock.now, self._phase, None, 0, None, rip))

    def _record(self, address: int, length: int, write: Noted) -> None:
        """The newest writer of each word that a write touches."""
        kept = self._kept.get(address >> 12)
        if kept is not None and 0 < length <= 8 - (address & 7):
            kept[address >> 3 & _WORDS - 1] = write
            return
        first, last = address // 8, (address + length - 1) // 8
        while length and first <= last:
            page, end = first // _WORDS, min(last + 1, (first // _WORDS + 1) * _WORDS)
            words = self._words(page)
            words[first % _WORDS:(end - 1) % _WORDS + 1] = [write] * (end - first)
            first = end

    def _words(self, page: int) -> Words:
        """The writers of a page's words, ready to be changed."""
        words = self._kept.get(page)
        if words is not None:
            return words
        words = self._others.pop(page, None)
        words = words or [None] * _WORDS
        if self.keeps(page * PAGE):
            self._kept[page] = words
            return words
        self._others[page] = words
        if len(self._others) > ELSEWHERE:
            self._others.popitem(last=False)
            self.forgotten += 1
        return words

    # --- processors

    def watch(self, start: int, end: int) -> None:
        """From now on stores of code on the processors to host-physical [start, end) are seen, and writers there are never forgotten."""
        self._asked.append((start, end))
        self._wake([(start, end)])

    def _wake_for(self, start: int, end: int) -> None:
        """Somebody wrote: where that was the core's region, its stores are watched from now on."""
        hit = [(a, b) for a, b in self.region() if a < end and start < b and self.stores_seen_since(a) is None]
        if hit and self.opens(start):
            self._wake(hit)

    def _wake(self, ranges: list[Range]) -> None:
        if ranges:
            self._awake += [(a, b, self._clock.now) for a, b in ranges]
            self._arm(ranges, self.stored)

    def rearm(self, arm: Callable[[list[Range], Stores], None]) -> None:
        """Another processor has come."""
        if self._awake:
            arm([(a, b) for a, b, _ in self._awake], self.stored)

    # --- what is known

    def keeps(self, address: int) -> bool:
        """Whether writers of an address are never forgotten."""
        return any(a <= address < b for a, b in (*self.region(), *self._asked))

    def stores_seen_since(self, address: int) -> int | None:
        """Since when stores of code on a processor to an address are seen (virtual ns); None: they are not."""
        return min((since for a, b, since in self._awake if a <= address < b), default=None)

    def newest(self, address: int) -> Write | None:
        """The newest writer that was seen of the 8-byte word that holds a host-physical address."""
        page, word = divmod(address // 8, _WORDS)
        words = self._kept.get(page) or self._others.get(page)
        noted = words[word] if words else None
        return Write(*noted) if noted else None

    def handed_out_in(self, address: int) -> str | None:
        """The phase in which the core took the page of its heap that holds an address; None where it took none there."""
        top = self.top()
        if top is None or address >= top:
            return None
        begun = [mark for mark in self._marks if mark.top is not None and mark.top <= address]
        return begun[-1].phase if begun else None

    def top_when(self, phase: str) -> int | None:
        """The core's next free page when a phase began for the first time; None where it did not yet."""
        return next((mark.top for mark in self._marks if mark.phase == phase), None)

    @property
    def pages(self) -> Iterable[int]:
        """Host-physical pages of which some writer is known."""
        return (PAGE * page for page in (*self._kept, *self._others))
