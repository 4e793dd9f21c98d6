"""Runs as pieces of a whole address space, for the page map: what is where, what differs between two maps, what is stale in a cache."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvcore.inspect.runs import I64, U8, U64, Runs

from .drawing import Fill
from .permissions import FILLS, UNTRANSLATED, Lane

__all__ = ["KINDS", "MAP_FILLS", "NOTHING", "Kind", "Kinds", "Pieces", "change", "compared", "pieces_of", "staleness"]

F64 = NDArray[np.float64]
PAGE = 4096

MAP_FILLS = FILLS | {
    "stale": Fill("cached, but the tables differ", "#D55E00", "x"),
    "gained": Fill("gained", "#0072B2", "/"),
    "lost": Fill("lost", "#E69F00", "\\"),
    "changed": Fill("changed", "#CC79A7", "x"),
    "same": Fill("as before", "#BBBBBB"),
}
KINDS = 255
"""Different kinds that one map can hold; a number of a kind is one byte."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a piece is: the name of its fill in `MAP_FILLS` ("": drawn as nothing), and in words."""

    fill: str
    words: str


NOTHING = Kind("", "not mapped")
Describe = Callable[[str, str, bool], Kind]
"""From the rights of two sides ("": no run) and whether they lead to different memory to a kind."""


class Kinds:
    """Kinds with their numbers, given as they are met; number 0 is `NOTHING`."""

    def __init__(self) -> None:
        self.known = {NOTHING: 0}

    def number(self, kind: Kind) -> int:
        """The number of a kind.  Raises ValueError for one too many."""
        if kind not in self.known and len(self.known) > KINDS:
            raise ValueError(f"a page map holds {KINDS} kinds of pages, and {kind.words!r} is one more: compare fewer lanes at once")
        return self.known.setdefault(kind, len(self.known))


@dataclass(frozen=True)
class Pieces:
    """A whole address space in pieces: piece i holds the pages from `start[i]` up to `start[i + 1]`, the last one all that follow.

    `start` and `offset` (host-physical - address) are in pages and whole numbers (float64 holds them exactly up to 57 address bits),
    `kind` numbers of `Kinds`.  The first piece starts at 0, the last is `NOTHING`.
    """

    start: F64
    kind: U8
    offset: F64

    def pages(self) -> dict[int, int]:
        """Pages of each kind, but for the endless last piece."""
        sums = np.bincount(self.kind[:-1], np.diff(self.start), KINDS + 1)
        return {int(kind): int(sums[kind]) for kind in np.flatnonzero(sums)}

    @property
    def end(self) -> float:
        """The page after the last one that is something."""
        return float(self.start[-1])


def _whole(start: U64, end: U64, kind: U8, offset: I64) -> Pieces:
    """Pieces from ascending half-open byte ranges; bytes become the pages that hold them, gaps `NOTHING`."""
    first = (start // np.uint64(PAGE)).astype(np.float64)
    after = -(-end.astype(np.int64) // PAGE).astype(np.float64)
    following = np.append(first[1:], np.inf)
    gaps = np.concatenate([np.zeros(1), after[after < following]]) if not len(first) or first[0] > 0 else after[after < following]
    starts = np.concatenate([first, gaps])
    kinds = np.concatenate([kind, np.zeros(len(gaps), np.uint8)])
    offsets = np.concatenate([offset / PAGE, np.zeros(len(gaps))])
    order = np.argsort(starts, kind="stable")
    return _merged(starts[order], kinds[order], offsets[order])


def _merged(start: F64, kind: U8, offset: F64) -> Pieces:
    """Neighbours that agree are one."""
    new = np.ones(len(start), np.bool_)
    new[1:] = (kind[1:] != kind[:-1]) | (offset[1:] != offset[:-1])
    return Pieces(start[new], kind[new], offset[new])


def _name(perm: str) -> str:
    return MAP_FILLS[perm].name if perm in MAP_FILLS else perm


def _of_right(perm: str, repeats: bool) -> Kind:
    fill = "one page" if repeats else perm if perm in MAP_FILLS else "mixed"
    return Kind(fill, _name(perm) + ("; each page leads to one and the same" if repeats else ""))


def pieces_of(runs: Runs, kinds: Kinds) -> Pieces:
    """Runs as they are; a row of pages that all lead to one page is one piece, with the offset of its first page."""
    if not len(runs):
        return _whole(runs.start, runs.end, runs.rights, runs.offset)
    first = Lane("", runs).firsts
    last = np.append(first[1:], len(runs)) - 1
    code = runs.rights[first].astype(np.int64) * 2 + (last > first)
    numbers = np.zeros(2 * len(runs.letters), np.uint8)
    for n in np.unique(code).tolist():
        numbers[n] = kinds.number(_of_right(runs.letters[n >> 1], bool(n & 1)))
    return _whole(runs.start[first], runs.end[last], numbers[code], runs.offset[first])


# --- two maps

def compared(left: Runs, right: Runs, kinds: Kinds, describe: Describe, offsets: bool = False) -> Pieces:
    """Two maps of one address space as pieces of what `describe` says of both, with the left's `offsets` or without any."""
    edges: U64 = np.unique(np.concatenate([left.start, left.end, right.start, right.end]))
    if not len(edges):
        return pieces_of(left, kinds)
    letters = ("", *sorted({*left.letters, *right.letters}))
    a, a_offset = _covering(left, edges[:-1], letters)
    b, b_offset = _covering(right, edges[:-1], letters)
    code = (a * len(letters) + b) * 2 + (a_offset != b_offset)
    numbers = np.zeros(2 * len(letters) ** 2, np.uint8)
    for n in np.unique(code).tolist():
        numbers[n] = kinds.number(describe(letters[n // 2 // len(letters)], letters[n // 2 % len(letters)], bool(n & 1)))
    return _whole(edges[:-1], edges[1:], numbers[code], a_offset * offsets)


def _covering(runs: Runs, at: U64, letters: tuple[str, ...]) -> tuple[I64, I64]:
    """For each byte address the number of its rights in `letters`, and where they grant anything the offset, else 0."""
    right, offset = np.zeros(len(at), np.int64), np.zeros(len(at), np.int64)
    if len(runs):
        i = np.searchsorted(runs.start, at, "right").astype(np.int64) - 1
        inside = (i >= 0) & (at < runs.end[np.maximum(i, 0)])
        number = np.array([letters.index(text) for text in runs.letters], np.int64)
        right[inside] = number[runs.rights[i[inside]]]
        offset[inside] = np.where(runs.granting, runs.offset, 0)[i[inside]]
    return right, offset


def change(before: str, after: str, moved: bool) -> Kind:
    """What happened to pages between two runs: they `gained` or `lost` rights, `changed` rights or place, or none of it.

    What grants nothing before and after is drawn as nothing.
    """
    had, has = _granted(before), _granted(after)
    was, now = _name(before) if before else "not mapped", _name(after) if after else "not mapped"
    words = f"{now}, before and after" if before == after else f"{was} before, {now} after"
    if not had and not has:
        return Kind("", words) if before or after else NOTHING
    if moved and had and has:
        return Kind("changed", words + ", and leads to other memory")
    return Kind("same" if had == has else "gained" if had < has else "lost" if has < had else "changed", words)


def _granted(perm: str) -> frozenset[str]:
    """The rights that letters stand for."""
    return frozenset({"": "", "-": "", UNTRANSLATED: "rw"}.get(perm, perm))


def staleness(cached: str, tables: str, moved: bool) -> Kind:
    """What a cache holds, and whether the tables still say the same."""
    if not cached:
        return NOTHING
    if cached == tables and not moved:
        return _of_right(cached, False)
    now = _name(tables) if tables else "not mapped"
    elsewhere = ", leading to other memory" if moved and tables else ""
    return Kind("stale", f"stale: {_name(cached)} in the cache, {now} in the tables{elsewhere}")
