"""Physical memory from outside: who reads it, and a file that holds parts of it."""

import mmap
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import BadSource, Unreadable
from ..spec.paging import ENTRIES, PAGE

__all__ = ["ADDRESS_END", "Buffer", "FileMemory", "PhysicalMemory", "Piece", "joined", "mapped", "ranges"]

U64 = NDArray[np.uint64]
Buffer = bytes | mmap.mmap
ADDRESS_END = 1 << 52
"""No x86 processor has physical addresses from here on."""
_SHOWN = 6


class PhysicalMemory(Protocol):
    """Memory of a machine that somebody else runs or ran; it can be looked at and not changed.  All addresses are host-physical."""

    @property
    def runs(self) -> Sequence[tuple[int, int]]:
        """The half-open ranges that can be read, ascending and apart."""
        ...

    def read(self, address: int, length: int, /) -> bytes:
        """Bytes at an address; raises `Unreadable` where there are none."""
        ...

    def tables(self, addresses: U64, /) -> tuple[U64, NDArray[np.bool_]]:
        """The 4 KiB pages at many page-aligned addresses: words [n, 512], zeros where a page cannot be read, and readable [n]."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """The half-open range [start, end) whose bytes begin at `offset` of a file."""

    start: int
    end: int
    offset: int


def joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Pieces in order and apart; those that touch or overlap and agree are one.  Raises BadSource where two say different things."""
    found: list[Piece] = []
    for piece in sorted(p for p in pieces if p.start < p.end):
        last = found[-1] if found else None
        if last is None or piece.start > last.end or piece.start == last.end and not _agree(last, piece):
            found.append(piece)
        elif _agree(last, piece):
            found[-1] = Piece(last.start, max(last.end, piece.end), last.offset)
        else:
            raise BadSource(f"two segments give different bytes for address {piece.start:#x}: this is no dump of a machine's memory "
                            "(of a process?), or its headers are damaged")
    return tuple(found)


def _agree(one: Piece, other: Piece) -> bool:
    return one.offset - one.start == other.offset - other.start


def ranges(runs: Iterable[tuple[int, int]]) -> str:
    """Ranges in words; after the first few the rest is counted."""
    texts = [f"{start:#x}-{end:#x}" for start, end in runs]
    return " ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else "")


class FileMemory:
    """Memory that lies in a file, piece by piece.  The file is mapped: what nobody asks for is not read.

    `notes` say in a sentence each what was assumed or is missing.  Raises BadSource where the file cannot be mapped.
    """

    def __init__(self, path: Path, pieces: Iterable[Piece], notes: Iterable[str] = ()):
        self.path, self.pieces, self.notes = path, joined(pieces), tuple(notes)
        self._map = mapped(path)
        end = len(self._map)
        if any(p.offset < 0 or p.offset + p.end - p.start > end for p in self.pieces):
            raise BadSource(f"{path}: a piece lies beyond the end of the file")
        self._starts = [p.start for p in self.pieces]
        self._start = np.array(self._starts, np.uint64)
        self._end = np.array([p.end for p in self.pieces], np.uint64)
        self._offset = np.array([p.offset for p in self.pieces], np.int64)
        self._views: dict[int, U64] = {}

    def __repr__(self) -> str:
        return f"{self.path}: {ranges(self.runs) or 'nothing'} (host-physical)"

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The half-open ranges that the file holds, ascending and apart."""
        found: list[tuple[int, int]] = []
        for p in self.pieces:
            if found and found[-1][1] == p.start:
                found[-1] = found[-1][0], p.end
            else:
                found.append((p.start, p.end))
        return tuple(found)

    def read(self, address: int, length: int, /) -> bytes:
        """Bytes at an address, across pieces where they touch.  Raises `Unreadable`."""
        data, at, end = b"", address, address + length
        while at < end:
            piece = self._piece(at)
            if piece is None:
                raise Unreadable(address, length, "the dump does not hold it")
            stop = min(end, piece.end)
            offset = piece.offset + at - piece.start
            data += self._map[offset:offset + stop - at]
            at = stop
        return data

    def _piece(self, address: int) -> Piece | None:
        i = bisect_right(self._starts, address) - 1
        return self.pieces[i] if i >= 0 and address < self.pieces[i].end else None

    def tables(self, addresses: U64, /) -> tuple[U64, NDArray[np.bool_]]:
        """The 4 KiB pages at many page-aligned addresses: words [n, 512], zeros where the file has no such page, and readable [n]."""
        addresses = np.asarray(addresses, np.uint64)
        if (view := self._consecutive(addresses)) is not None:
            return view, np.ones(len(addresses), np.bool_)
        words = np.zeros((len(addresses), ENTRIES), np.uint64)
        if not len(addresses) or not self.pieces:
            return words, np.zeros(len(addresses), np.bool_)
        i = np.searchsorted(self._start, addresses, "right").astype(np.int64) - 1
        piece = np.maximum(i, 0)
        held = (i >= 0) & (addresses < self._end[piece]) & (addresses % np.uint64(PAGE) == 0)
        whole = held & (self._end[piece] - addresses >= PAGE)
        offset = (addresses - self._start[piece]).astype(np.int64) + self._offset[piece]
        for rest in np.unique(offset[whole] % PAGE).tolist():
            here = np.flatnonzero(whole & (offset % PAGE == rest))
            words[here] = self._view(rest)[offset[here] // PAGE]
        for index in np.flatnonzero(held & ~whole).tolist():
            whole[index] = self._across(int(addresses[index]), words[index])
        return words, whole

    def _consecutive(self, addresses: U64) -> U64 | None:
        """Pages of one piece one after another, as a view; None for others."""
        count = len(addresses)
        piece = self._piece(int(addresses[0])) if count else None
        first = int(addresses[0]) if count else 0
        if piece is None or first % PAGE or first + PAGE * count > piece.end or not (np.diff(addresses) == PAGE).all():
            return None
        offset = piece.offset + first - piece.start
        return self._view(offset % PAGE)[offset // PAGE:][:count]

    def _view(self, rest: int) -> U64:
        """The file as pages that begin at `rest` modulo 4096."""
        if rest not in self._views:
            count = (len(self._map) - rest) // PAGE * ENTRIES
            self._views[rest] = np.frombuffer(self._map, np.uint64, count, rest).reshape(-1, ENTRIES)
        return self._views[rest]

    def _across(self, address: int, words: U64) -> bool:
        """A page that begins in one piece and ends in the next; whether it is whole."""
        try:
            words[:] = np.frombuffer(self.read(address, PAGE), np.uint64)
        except Unreadable:
            return False
        return True


def mapped(path: Path) -> mmap.mmap:
    """A file's bytes, to be read only.  Raises BadSource for what is no file, or an empty one."""
    try:
        if not path.is_file():
            raise BadSource(f"{path} is no file: give a memory dump, or qemu:SOCKET")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as e:
        raise BadSource(f"{path} cannot be read ({e.strerror or e})") from e
    except (ValueError, OverflowError) as e:
        raise BadSource(f"{str(path)!r} cannot be read ({e})") from e
