"""Many DMA requests at once: what each would get of a unit if it came next, as arrays and without any effect."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Mapping as Lookup
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import BadRequest
from ...spec.dma import Direction
from ...spec.pci import format_bdf
from ...spec.vtd import FaultReason, TranslationType
from .batchwalk import I64, U8, U64, BatchWalker, Landing, interrupts
from .walk import Context, Mapping

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Batch", "How", "Remembered", "Requests", "Translations", "untranslated"]

_PAGE = 4096
_BITS = 1 << 16
_CODES = {Direction.READ: 0, Direction.WRITE: 1, "read": 0, "write": 1}


class How(IntEnum):
    """What became of a request."""

    BLOCKED = 0
    TRANSLATED = 1
    PASS_THROUGH = 2
    INTERRUPT_RANGE = 3
    OFF = 4
    PROTECTED = 5

    @property
    def text(self) -> str:
        """In words: `pass-through`."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests as flat arrays of one length: requester ids, IOVAs, whether it is a write (1) or a read (0), bytes.

    `source`, `write` and `length` may be arrays of one element that stands for all.
    """

    source: I64
    iova: U64
    write: U8
    length: I64
    shape: tuple[int, ...]

    @staticmethod
    def of(sources: ArrayLike, iovas: ArrayLike, accesses: object, lengths: ArrayLike) -> "Requests":
        """Requests from arrays or single values that are broadcast together.  Raises BadRequest for what no device can ask."""
        source, length = _whole("source", sources, 0, _BITS), _whole("length", lengths, 0, _PAGE + 1)
        iova, write = _addresses(iovas), _writes(accesses)
        try:
            shape = np.broadcast_shapes(source.shape, iova.shape, write.shape, length.shape)
        except ValueError as e:
            raise BadRequest(f"sources, iovas, accesses and lengths do not fit together: {e}") from None
        requests = Requests(_flat(source, shape), _flat(iova, shape), _flat(write, shape), _flat(length, shape), shape)
        requests._check_pages()
        return requests

    def __len__(self) -> int:
        return len(self.iova)

    def _check_pages(self) -> None:
        if not len(self) or int(self.length.max()) <= 1:
            return
        beyond = np.flatnonzero((self.iova & np.uint64(_PAGE - 1)).astype(np.int64) + self.length > _PAGE)
        if len(beyond):
            i = int(beyond[0])
            raise BadRequest(f"request {i}, {int(self.length[i])} bytes at {int(self.iova[i]):#x}, crosses a 4 KiB page: ask for each page")

    def part(self, at: I64) -> "Requests":
        """Some of them."""
        return Requests(self.source[at], self.iova[at], self.write[at], self.length[at], (len(at),))


def _flat(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return np.broadcast_to(values, shape).reshape(-1)


def _numbers(what: str, values: ArrayLike) -> NDArray[Any]:
    """Whole numbers as they are, of any integer type or as objects.  Raises BadRequest."""
    array = np.asarray(values)
    if array.dtype.kind == "f" and not isinstance(values, (np.ndarray, np.generic)):
        array = np.asarray(values, object)
    if array.size and (array.dtype.kind not in "iuO" or array.dtype.kind == "O" and any(type(v) is not int for v in array.flat)):
        raise BadRequest(f"{what}s are whole numbers, not {array.dtype}: {array.flat[0]!r}")
    return array


def _whole(what: str, values: ArrayLike, low: int, end: int) -> I64:
    """Whole numbers in [low, end)."""
    array = _numbers(what, values)
    if array.size and array.dtype != np.uint16 and not low <= int(array.min()) <= int(array.max()) < end:
        wrong = int(array.min()) if int(array.min()) < low else int(array.max())
        raise BadRequest(f"a {what} is a number from {low} to {end - 1}, not {wrong}")
    return array.astype(np.int64, copy=False)


def _addresses(values: ArrayLike) -> U64:
    array = _numbers("iova", values)
    if array.size and array.dtype != np.uint64 and not 0 <= int(array.min()) <= int(array.max()) < 1 << 64:
        raise BadRequest(f"an iova has 64 bits: {int(array.min()):#x} to {int(array.max()):#x} are not all addresses")
    return array.astype(np.uint64, copy=False)


def _writes(accesses: object) -> U8:
    """0 for a read and 1 for a write, from `Direction`s, their names, or booleans (True: write)."""
    array = np.asarray(accesses)
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    if array.dtype.kind == "U":
        array = array.astype(object)
    try:
        codes = [_CODES[value] for value in array.flat]
    except (KeyError, TypeError):
        raise BadRequest("an access is a Direction, 'read' or 'write', or a boolean that says whether it is a write") from None
    return np.array(codes, np.uint8).reshape(array.shape)


@dataclass(frozen=True, slots=True, repr=False)
class Translations:
    """What each request would get: arrays of the requests' common shape.

    `address` is host-physical, `shift` tells the page that the request lies in (2**shift bytes; 12 where none is translated), `reason` the
    fault reason (0: none), `how` a `How` as a number.  Where `ok` is False the address means nothing.  `source`, `iova` and `write` are
    the requests themselves.
    """

    source: I64
    iova: U64
    write: U8
    address: U64
    shift: U8
    reason: U8
    how: U8

    @property
    def page_size(self) -> I64:
        """Bytes of the page that each request lies in; 4096 where none is translated."""
        return np.int64(1) << self.shift.astype(np.int64)

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Whether each request goes through."""
        return np.isin(self.how, (How.BLOCKED, How.PROTECTED), invert=True)

    def __len__(self) -> int:
        return self.iova.size

    def __repr__(self) -> str:
        counts = [(how.text, int((self.how == how).sum())) for how in How]
        met = [FaultReason(r) for r in np.unique(self.reason).tolist() if r]
        reasons = [f"{int((self.reason == r).sum()):,} for reason {r.value:#x} {r.name}" for r in met]
        said = ", ".join(f"{n:,} {text}" for text, n in counts if n) or "none"
        return f"Translations: {len(self):,} requests: {said}" + (f" ({'; '.join(reasons)})" if reasons else "")

    @property
    def frame(self) -> "pd.DataFrame":
        """A pandas frame, one row a request; no address and no page size where it does not go through, no reason where it does."""
        import pandas as pd
        ok, reason = self.ok.reshape(-1), self.reason.reshape(-1)
        names = np.array([how.text for how in How], object)
        columns = {
            "source": [format_bdf(s) for s in self.source.reshape(-1).tolist()], "iova": self.iova.reshape(-1),
            "access": np.where(self.write.reshape(-1), "write", "read"), "how": names[self.how.reshape(-1)],
            "address": pd.Series(self.address.reshape(-1), dtype="UInt64").where(ok),
            "page_size": pd.Series(self.page_size.reshape(-1), dtype="Int64").where(ok),
            "reason": pd.Series(reason, dtype="UInt8").where(reason != 0),
        }
        return pd.DataFrame(columns, index=pd.RangeIndex(len(self), name="request"))


class Remembered:
    """IOTLB entries of one domain and one page size, as arrays to look many pages up in."""

    def __init__(self, shift: int, entries: Lookup[int, Mapping]):
        self.shift = np.uint64(shift)
        self.page = np.array(sorted(entries), np.uint64)
        found = [entries[page] for page in self.page.tolist()]
        self.landing = Landing(np.array([m.base or 0 for m in found], np.uint64), np.full(len(found), shift, np.uint8),
                               np.zeros(len(found), np.uint8))
        self.refused = np.array([[m.read or 0 for m in found], [m.write or 0 for m in found]], np.uint8)
        self._maybe = np.zeros(_BITS, np.bool_)
        self._maybe[self._low_bits(self.page)] = True

    @staticmethod
    def _low_bits(page: U64) -> I64:
        return (page & np.uint64(_BITS - 1)).view(np.int64)

    def answer(self, iova: U64, write: U8, landing: Landing) -> None:
        """Puts what is remembered in place of what the tables say now."""
        page = iova >> self.shift
        at = np.flatnonzero(self._maybe.take(self._low_bits(page)))
        entry = np.minimum(np.searchsorted(self.page, page[at]), len(self.page) - 1)
        hit = self.page[entry] == page[at]
        at, entry = at[hit], entry[hit]
        inside = (np.uint64(1) << self.shift) - np.uint64(1)
        found = Landing(self.landing.address[entry] + (iova[at] & inside), self.landing.shift[entry], self.landing.reason[entry])
        found.refuse(interrupts(found.address), FaultReason.INTERRUPT_RANGE)
        reason = self.refused[write[at], entry]
        refused = np.flatnonzero(reason)
        found.refuse(refused, reason[refused])
        landing.put(at, found)


@dataclass(frozen=True, slots=True)
class _Group:
    """All that matters of a context for its requests; requesters with equal groups are treated alike."""

    reason: FaultReason | None
    tt: TranslationType
    root: int
    levels: int
    bits: int
    did: int

    @staticmethod
    def of(context: Context) -> "_Group":
        return _Group(context.reason, context.tt, context.root, context.levels, context.bits, context.did)


@dataclass(frozen=True, slots=True)
class _Answer:
    """Where requests land, and how each came there."""

    landing: Landing
    how: U8

    @staticmethod
    def blocked(count: int, reason: int) -> "_Answer":
        """All refused."""
        nowhere = Landing(np.zeros(count, np.uint64), np.full(count, 12, np.uint8), np.full(count, reason, np.uint8))
        return _Answer(nowhere, np.full(count, How.BLOCKED, np.uint8))

    @staticmethod
    def through(iova: U64, how: How) -> "_Answer":
        """All to their own addresses."""
        landing = Landing(iova.copy(), np.full(len(iova), 12, np.uint8), np.zeros(len(iova), np.uint8))
        return _Answer(landing, np.full(len(iova), how, np.uint8))

    @staticmethod
    def landed(landing: Landing) -> "_Answer":
        """As the tables say."""
        return _Answer(landing, np.where(landing.reason == 0, np.uint8(How.TRANSLATED), np.uint8(How.BLOCKED)))

    def put(self, at: I64, other: "_Answer") -> None:
        """Replaces the answers numbered `at`."""
        self.landing.put(at, other.landing)
        self.how[at] = other.how

    def protect(self, iova: U64, length: I64, regions: Iterable[tuple[int, int]]) -> None:
        """Blocks in silence what was not translated and touches a protected region."""
        last = iova + (np.maximum(length, 1) - 1).astype(np.uint64)
        loose = (self.how == How.OFF) | (self.how == How.PASS_THROUGH)
        for start, end in regions:
            at = np.flatnonzero(loose & (last >= np.uint64(start)) & (iova < np.uint64(end)))
            self.landing.refuse(at, 0)
            self.how[at] = How.PROTECTED

    def result(self, requests: Requests) -> Translations:
        """In the requests' shape."""
        landing, shape = self.landing, requests.shape
        return Translations(requests.source.reshape(shape), requests.iova.reshape(shape), requests.write.reshape(shape),
                            landing.address.reshape(shape), landing.shift.reshape(shape), landing.reason.reshape(shape),
                            self.how.reshape(shape))


def untranslated(requests: Requests, protected: Iterable[tuple[int, int]]) -> Translations:
    """What requests get while translation is off; `protected` are the half-open regions that PMEN protects."""
    answer = _Answer.through(requests.iova, How.OFF)
    answer.protect(requests.iova, requests.length, protected)
    return answer.result(requests)


class Batch:
    """A unit that translates, as it is now.

    `context(source)` is what it holds or would find for a requester; `iotlb` the entries it remembers by domain id, smallest pages first;
    `zlr` is CAP.ZLR; `protected` are the half-open regions that PMEN protects.
    """

    def __init__(self, walker: BatchWalker, context: Callable[[int], Context], zlr: bool,
                 iotlb: Lookup[int, Iterable[Remembered]] | None = None, protected: Iterable[tuple[int, int]] = ()):
        self.walker, self.context, self.zlr = walker, context, zlr
        self.iotlb, self.protected = iotlb or {}, tuple(protected)

    def translate(self, requests: Requests) -> Translations:
        """What each request would get if it came next."""
        answer = _Answer.blocked(0, 0)
        for group, at in self._groups(requests.source):
            if at is None:
                answer = self._answer(group, requests)
                continue
            if not len(answer.how):
                answer = _Answer.blocked(len(requests), 0)
            answer.put(at, self._answer(group, requests.part(at)))
        messages = _messages(requests)
        answer.put(messages, _Answer.through(requests.iova[messages], How.INTERRUPT_RANGE))
        if self.protected:
            answer.protect(requests.iova, requests.length, self.protected)
        return answer.result(requests)

    def _groups(self, source: I64) -> Iterator[tuple[_Group, I64 | None]]:
        """The different contexts of the requests, and the numbers of the requests of each; None: all of them."""
        seen = np.zeros(_BITS, np.bool_)
        seen[source] = True
        numbers: dict[_Group, int] = {}
        number_of = np.zeros(_BITS, np.uint16)
        for requester in np.flatnonzero(seen).tolist():
            number_of[requester] = numbers.setdefault(_Group.of(self.context(requester)), len(numbers))
        if len(numbers) == 1:
            yield next(iter(numbers)), None
        elif numbers:
            number = number_of[source]
            order = np.argsort(number, kind="stable")
            ends = np.cumsum(np.bincount(number, minlength=len(numbers)))
            yield from zip(numbers, np.split(order, ends[:-1]), strict=True)

    def _answer(self, group: _Group, requests: Requests) -> _Answer:
        """Requests under one context, in the unit's order: the context, the address, the tables."""
        if group.reason:
            return _Answer.blocked(len(requests), group.reason)
        within = _within(requests.iova, group.bits)
        if within is None:
            return self._legal(group, requests)
        answer = _Answer.blocked(len(requests), FaultReason.BEYOND_WIDTH)
        answer.put(within, self._legal(group, requests.part(within)))
        return answer

    def _legal(self, group: _Group, requests: Requests) -> _Answer:
        """Requests within the context's width.  The tables are looked at for all; in the interrupt range their word does not count."""
        answer = self._through(group, requests)
        stray = interrupts(requests.iova)
        answer.put(stray, _Answer.blocked(len(stray), FaultReason.INTERRUPT_RANGE))
        return answer

    def _through(self, group: _Group, requests: Requests) -> _Answer:
        """Requests that the context lets go on."""
        if group.tt is TranslationType.PASS_THROUGH:
            return _Answer.through(requests.iova, How.PASS_THROUGH)
        landing = self._land(group, requests.iova, requests.write)
        if self.zlr and len(requests) and not requests.length.min():
            refused = np.flatnonzero((requests.length == 0) & (requests.write == 0) & (landing.reason != 0))
            self._retry_as_writes(group, requests.iova, refused, landing)
        return _Answer.landed(landing)

    def _retry_as_writes(self, group: _Group, iova: U64, refused: I64, landing: Landing) -> None:
        """The zero-length reads `refused` get what a write would, where the page can be written."""
        written = self._land(group, iova[refused], np.ones(len(refused), np.uint8))
        may = np.flatnonzero((written.reason == 0) | (written.reason == FaultReason.INTERRUPT_RANGE))
        landing.put(refused[may], Landing(written.address[may], written.shift[may], written.reason[may]))

    def _land(self, group: _Group, iova: U64, write: U8) -> Landing:
        """From the tables, then from what is remembered; the smallest page comes last and so has the last word."""
        landing = self.walker.walk(group.root, group.levels, iova, write)
        for remembered in reversed(tuple(self.iotlb.get(group.did, ()))):
            remembered.answer(iova, write, landing)
        return landing


def _within(iova: U64, bits: int) -> I64 | None:
    """The numbers of the addresses that have no more than `bits` bits; None: all of them."""
    if bits >= 64 or not len(iova) or not int(iova.max()) >> bits:
        return None
    return np.flatnonzero(iova >> np.uint64(bits) == 0)


def _messages(requests: Requests) -> I64:
    """The numbers of the interrupt messages: writes of 4 aligned bytes in the interrupt range."""
    at = interrupts(requests.iova)
    message = (requests.write[at] == 1) & (requests.length[at] == 4) & (requests.iova[at] % np.uint64(4) == 0)
    return at[np.flatnonzero(message)]
