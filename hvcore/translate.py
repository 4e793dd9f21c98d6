"""What a remapping unit makes of DMA requests from a file, under tables from a file.

The tables are a `tables.npz`; further RAM, which reads as zero, can be named; everything else is absent memory.  The unit has no caches
filled, no protected regions, and translation is on.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BadConfig, BadRequest, Unreadable, quoted
from .inspect import format as show
from .inspect.dump import PageStore
from .inspect.records import Column, Record, text_table
from .machine.vtd.batch import Batch, How, Requests, Translations
from .machine.vtd.batchwalk import I64, U8, U64, BatchWalker
from .machine.vtd.walk import Walker
from .sources.files import read_bytes
from .spec.bits import parse_number
from .spec.paging import ENTRIES, PAGE
from .spec.pci import format_bdf, parse_bdf
from .spec.vtd import CAP, CONDITION, ECAP, mgaw

__all__ = ["GENERIC_CAP", "GENERIC_ECAP", "LARGEST", "Answer", "Asked", "FilePages", "FileUnit", "answer_table", "read_requests"]

GENERIC_CAP = CAP.make(ND=6, SAGAW=0b110, MGAW=47, ZLR=1, SLLPS=0b11)
"""A unit that takes 3 and 4 levels, 48 bits, pages of 4 KiB, 2 MiB and 1 GiB, and zero-length reads."""
GENERIC_ECAP = ECAP.make(C=1, QI=1, DT=1, PT=1, SC=1)
"""A unit that takes every translation type, and SNP and TM in leaves."""
LARGEST = 1 << 30
"""Bytes of one request."""

_OFFSET = np.uint64(PAGE - 1)
_NOWHERE = np.uint64(1)
"""The address of no page."""
_LARGEST_FILE = 4 << 30
_AT_ONCE = 1 << 20
"""Pages that are translated at a time."""
_TYPES = {"read": 0, "write": 1}
_KEYS = ("bdf", "addr", "size", "type")
_SHOWN = 4


class FilePages:
    """Physical memory: the pages of a file, zeros in the half-open ranges `ram` where the file holds no page, nothing else.

    RAM counts in whole 4 KiB pages: what is left of one at the ends of a range is no RAM.
    """

    def __init__(self, store: PageStore, ram: Iterable[tuple[int, int]] = ()):
        runs = _whole_pages(ram)
        self._first, self._end = (np.array([run[i] for run in runs], np.uint64) for i in (0, 1))
        self._address, self._zeros = np.append(store.address, _NOWHERE), len(store) * ENTRIES
        spare = np.zeros(ENTRIES, np.uint64)
        self.words: U64 = np.concatenate([store.page.reshape(-1), spare]) if runs or not len(store) else store.page.reshape(-1)

    def locate(self, addresses: U64, /) -> I64:
        """Where in `words` each page at a page-aligned address begins; -1 where there is no memory."""
        place = np.searchsorted(self._address[:-1], addresses)
        held = self._address[place] == addresses
        return np.where(held, place * ENTRIES, np.where(self._in_ram(addresses >> np.uint64(12)), self._zeros, -1))

    def _in_ram(self, page: U64) -> NDArray[np.bool_]:
        run = np.searchsorted(self._first, page, "right")
        return page < np.append(np.uint64(0), self._end)[run]

    def read(self, address: int, length: int, /) -> bytes:
        """Bytes of one page.  Raises `Unreadable`."""
        place, offset = int(self.locate(np.array([address & -PAGE], np.uint64))[0]), address % PAGE
        if place < 0 or offset + length > PAGE:
            raise Unreadable(address, length, "neither the file nor the named RAM has that page")
        return self.words[place:place + ENTRIES].tobytes()[offset:offset + length]

    def read64(self, address: int, /) -> int:
        """A little-endian word.  Raises `Unreadable`."""
        return int.from_bytes(self.read(address, 8), "little")


def _whole_pages(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Page numbers of the whole pages in the union of byte ranges, ascending and apart."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            start, end = merged[-1][0], max(end, merged.pop()[1])
        merged.append((start, end))
    return [(-(-start // PAGE), end // PAGE) for start, end in merged if -(-start // PAGE) < end // PAGE]


# --- requests

@dataclass(frozen=True, slots=True)
class Asked:
    """Requests of a file, in its order: requester ids, addresses (IOVA), bytes, 1 for a write and 0 for a read."""

    source: I64
    iova: U64
    size: I64
    write: U8

    def __len__(self) -> int:
        return len(self.iova)

    def part(self, part: slice) -> "Asked":
        """Some of them, in order."""
        return Asked(self.source[part], self.iova[part], self.size[part], self.write[part])


def read_requests(path: Path) -> Asked:
    """The requests of a file, one JSON object a line; empty lines do not count.  Raises BadRequest with the line that is wrong."""
    raw = read_bytes(path, _LARGEST_FILE, "a file of requests")
    try:
        lines = raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as e:
        number = raw[:e.start].count(10) + 1
        raise BadRequest(f"{path}, line {number}: not text in UTF-8") from None
    reader = _Reader()
    rows = []
    for number, line in enumerate(lines, 1):
        if line and not line.isspace():
            try:
                rows.append(reader.row(line))
            except ValueError as e:
                raise BadRequest(f"{path}, line {number}: {e}") from None
    source, iova, size, write = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Asked(np.array(source, np.int64), np.array(iova, np.uint64), np.array(size, np.int64), np.array(write, np.uint8))


class _Reader:
    """Reads lines; names of functions that were read before are known."""

    def __init__(self) -> None:
        self._sources: dict[str, int] = {}

    def row(self, line: str) -> tuple[int, int, int, int]:
        """Requester id, address, bytes, whether it is a write.  Raises ValueError with what is wrong."""
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"not a JSON object: {quoted(line)}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"not a JSON object: {quoted(line)}")
        missing = [key for key in _KEYS if key not in fields]
        if missing:
            raise ValueError(f"`{missing[0]}` is missing: a request has {', '.join(_KEYS)}")
        iova, size = _number("addr", fields["addr"]), _number("size", fields["size"])
        if size > LARGEST:
            raise ValueError(f"`size` {size:#x} is more than {LARGEST >> 30} GiB: cut the request")
        if iova + size > 1 << 64:
            raise ValueError(f"the request at {iova:#x} with {size:#x} bytes goes beyond 64 bits")
        return self._source(fields["bdf"]), iova, size, _type(fields["type"])

    def _source(self, bdf: object) -> int:
        if not isinstance(bdf, str):
            raise ValueError(f"`bdf` is text like '00:02.0', not {quoted(bdf)}")
        if bdf not in self._sources:
            segment, self._sources[bdf] = parse_bdf(bdf)
            if segment:
                del self._sources[bdf]
                raise ValueError(f"`bdf` {quoted(bdf)} is of PCI segment {segment:#x}, the tables are of one unit: leave the segment out")
        return self._sources[bdf]


def _number(key: str, value: object) -> int:
    """A whole number of at most 64 bits, as such or as text like "0x1000"."""
    number = value
    if isinstance(value, str):
        try:
            number = parse_number(value)
        except ValueError:
            number = None
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"`{key}` is a whole number, not {quoted(value)}")
    if not 0 <= number < 1 << 64:
        raise ValueError(f"`{key}` has 64 bits and no sign, {quoted(value)} has not")
    return number


def _type(value: object) -> int:
    if not isinstance(value, str) or value not in _TYPES:
        raise ValueError(f"`type` is 'read' or 'write', not {quoted(value)}")
    return _TYPES[value]


# --- answers

def _ranges(value: object) -> str:
    ranges = [f"{start:#x}-{end:#x}" for start, end in value] if isinstance(value, tuple) else []
    return " ".join(ranges[:_SHOWN]) + (f" and {len(ranges) - _SHOWN} more" if len(ranges) > _SHOWN else "")


@dataclass(frozen=True, slots=True, repr=False)
class Answer(Record):
    """What becomes of one request of `size` bytes at `iova`.

    `how` is `translated`, `pass-through`, `interrupt-range` or `blocked`; `phys` the half-open host-physical ranges it reaches, in its
    order and merged where they touch; `page_size` is that of its first page, 4096 where it is blocked; `reason` why it is (0: it is not)
    and `page` the IOVA of the first 4 KiB page that is refused (None: none is).
    """

    source: int
    iova: int
    size: int
    access: str
    how: str
    phys: tuple[tuple[int, int], ...]
    page_size: int
    reason: int
    page: int | None

    title = "Translations"
    legend = "addr: IOVA; phys: host-physical, half-open; page size: of the first page"
    columns = (
        Column("source", lambda a: format_bdf(a.source)), Column("type", lambda a: a.access),
        Column("addr", lambda a: a.iova, show.address, True), Column("size", lambda a: a.size, show.size, True),
        Column("how", lambda a: a.how), Column("phys", lambda a: a.phys, _ranges),
        Column("page_size", lambda a: None if a.reason else a.page_size, show.size, True),
        Column("fault", lambda a: f"{a.reason:#x} at {a.page:#x}: {CONDITION[a.reason]}" if a.reason else None),
    )

    def to_json(self) -> dict[str, Any]:
        """`ok`, `how`, `phys`, `page_size`, `fault`; addresses as integers."""
        fault = {"reason": self.reason, "source": format_bdf(self.source), "addr": self.page, "type": self.access} if self.reason else None
        return {"ok": not self.reason, "how": self.how, "phys": self.phys, "page_size": self.page_size, "fault": fault}


class FileUnit:
    """A unit over `pages` whose root-table register is `root`; `haw` host address bits, as many as input address bits if None."""

    def __init__(self, pages: FilePages, root: int, cap: int = GENERIC_CAP, ecap: int = GENERIC_ECAP, haw: int | None = None):
        for name, value in (("root", root), ("cap", cap), ("ecap", ecap)):
            if not 0 <= value < 1 << 64:
                raise BadConfig(f"--{name} {value:#x} is no register value: give 64 bits without a sign")
        if haw is None and mgaw(cap) <= 12:
            raise BadConfig(f"--cap {cap:#x} is of no unit: its input addresses (MGAW) have {mgaw(cap)} bits, pages alone take 12")
        haw = mgaw(cap) if haw is None else haw
        if not 12 < haw <= 64:
            raise BadConfig(f"--haw {haw} is no width of host addresses: give bits, 13 to 64")
        walker = Walker(pages, cap, ecap, haw)
        self._batch = Batch(BatchWalker(pages, cap, ecap, haw), lambda source: walker.context(root, source), bool(CAP.get(cap, "ZLR")))

    def answers(self, asked: Asked) -> Iterator[Answer]:
        """An answer for each request, in order; the requests know nothing of each other."""
        pages = np.cumsum(_pages(asked))
        cuts = np.flatnonzero(np.diff(pages // _AT_ONCE, prepend=0)).tolist()
        for start, end in zip([0, *cuts], [*cuts, len(asked)], strict=True):
            if start < end:
                part = asked.part(slice(start, end))
                pieces = _Pieces.of_requests(part)
                yield from _answers(part, pieces, self._batch.translate(pieces.requests))


def _pages(asked: Asked) -> I64:
    """How many 4 KiB pages each request touches; one of no bytes touches one."""
    offset = (asked.iova & _OFFSET).astype(np.int64)
    return (offset + np.maximum(asked.size, 1) + PAGE - 1) // PAGE


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Requests cut at 4 KiB pages: the pieces, the request `of` each and its bytes `size`; `first` is each request's first piece."""

    requests: Requests
    of: I64
    size: I64
    first: I64

    @staticmethod
    def of_requests(asked: Asked) -> "_Pieces":
        """A request that is cut is no interrupt message, whatever the size of its pieces: each is asked for as a whole page."""
        count = _pages(asked)
        first = np.cumsum(count) - count
        of = np.repeat(np.arange(len(asked)), count)
        number = np.arange(len(of)) - first[of]
        skip = np.where(number > 0, number * PAGE - (asked.iova & _OFFSET).astype(np.int64)[of], 0)
        iova = asked.iova[of] + skip.astype(np.uint64)
        requests = Requests(asked.source[of], iova, asked.write[of], np.where(count > 1, PAGE, asked.size)[of], iova.shape)
        return _Pieces(requests, of, np.minimum(PAGE - (iova & _OFFSET).astype(np.int64), asked.size[of] - skip), first)

    def runs(self, found: Translations) -> tuple[list[tuple[int, int]], list[int]]:
        """Ranges of pieces that touch, and where those of each request begin among them; the last is where they end."""
        end = found.address + self.size.astype(np.uint64)
        joined = (self.of[1:] == self.of[:-1]) & (found.address[1:] == end[:-1])
        run = np.flatnonzero(np.append(True, ~joined))
        starts, sizes = found.address[run].tolist(), np.add.reduceat(self.size, run).tolist()
        begin = np.searchsorted(run, self.first).tolist()
        return [(start, start + size) for start, size in zip(starts, sizes, strict=True)], [*begin, len(run)]

    def refused(self, found: Translations) -> dict[int, int]:
        """The first refused piece of each request that has one."""
        failed = np.flatnonzero(~found.ok)[::-1]
        return dict(zip(self.of[failed].tolist(), failed.tolist(), strict=True))


def _answers(asked: Asked, pieces: _Pieces, found: Translations) -> Iterator[Answer]:
    """The answers to requests from those to their pieces."""
    runs, begin = pieces.runs(found)
    refused, texts = pieces.refused(found), [how.text for how in How]
    rows = zip(asked.source.tolist(), asked.iova.tolist(), asked.size.tolist(), asked.write.tolist(), found.how[pieces.first].tolist(),
               found.page_size[pieces.first].tolist(), strict=True)
    for i, (source, iova, size, write, how, page_size) in enumerate(rows):
        access = "write" if write else "read"
        at = refused.get(i)
        if at is None:
            yield Answer(source, iova, size, access, texts[how], tuple(runs[begin[i]:begin[i + 1]]), page_size, 0, None)
        else:
            page = int(pieces.requests.iova[at]) & -PAGE
            yield Answer(source, iova, size, access, How.BLOCKED.text, (), PAGE, int(found.reason[at]), page)


def answer_table(answers: Sequence[Answer]) -> str:
    """All answers as a table."""
    labels, right = [c.label for c in Answer.columns], [c.right for c in Answer.columns]
    rows = [[c.show(c.value(answer)) for c in Answer.columns] for answer in answers]
    return text_table(f"{Answer.title}: {len(rows):,}  ({Answer.legend})", labels, rows, right)
