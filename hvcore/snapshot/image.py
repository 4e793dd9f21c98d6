"""A copy of a machine's memory that follows it, and what it takes to go back from each copy to the one before."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..machine.memory import PAGE, Memory
from .pages import CHUNK, Pages, by_huge_pages, fill, touched

__all__ = ["Image", "Undo"]

Rows = NDArray[np.uint64]
"""The words of pages: [n, 512]."""
_WORDS = PAGE // 8


@dataclass(frozen=True)
class Undo:
    """What was there before: `pages` held `rows`, the pages in `empty` nothing but zeros."""

    pages: Pages
    rows: Rows
    empty: Pages

    @property
    def size(self) -> int:
        """Bytes."""
        return self.rows.nbytes + self.pages.nbytes + self.empty.nbytes


class Image:
    """The pages of memory that are not all zero, as they were when `follow` was last called; `size` in bytes."""

    def __init__(self) -> None:
        self._pages: Pages = np.zeros(0, np.int64)
        self._slots: Pages = np.zeros(0, np.int64)
        self._rows: Rows = np.zeros((0, _WORDS), np.uint64)
        self._free: list[int] = []

    @property
    def size(self) -> int:
        """Bytes."""
        return self._rows.nbytes

    def follow(self, memory: Memory) -> Undo:
        """Becomes what memory is now; what that undoes."""
        now, words = touched(memory), memory.words.reshape(-1, _WORDS)
        kept, at, _ = np.intersect1d(self._pages, now, assume_unique=True, return_indices=True)
        changed = self._changed(words, kept, self._slots[at])
        fresh = np.setdiff1d(now, self._pages, assume_unique=True)
        gone = np.flatnonzero(np.isin(self._pages, now, assume_unique=True, invert=True))
        pages = np.concatenate([kept[changed], self._pages[gone]])
        slots = np.concatenate([self._slots[at][changed], self._slots[gone]])
        undo = Undo(pages, self._rows[slots], fresh)
        self._rows[self._slots[at][changed]] = words[kept[changed]]
        self._drop(gone)
        self._add(fresh, words)
        return undo

    def _changed(self, words: Rows, pages: Pages, slots: Pages) -> NDArray[np.bool_]:
        """Which pages of memory are not what the rows in `slots` are."""
        parts = [(words[pages[i:i + CHUNK]] != self._rows[slots[i:i + CHUNK]]).any(axis=1) for i in range(0, len(pages), CHUNK)]
        return np.concatenate(parts) if parts else np.zeros(0, np.bool_)

    def _drop(self, at: Pages) -> None:
        self._free += self._slots[at].tolist()
        self._pages, self._slots = np.delete(self._pages, at), np.delete(self._slots, at)

    def _add(self, pages: Pages, words: Rows) -> None:
        """New pages of memory, which are in none of the rows yet."""
        slots = self._take(len(pages))
        self._rows[slots] = words[pages]
        self._insert(pages, slots)

    def _take(self, count: int) -> Pages:
        """Rows that nothing is in."""
        short = count - len(self._free)
        if short > 0:
            first = len(self._rows)
            more = max(short, first // 4)
            self._rows = np.concatenate([self._rows, np.zeros((more, _WORDS), np.uint64)])
            self._free += range(first, first + more)
        taken, self._free = self._free[:count], self._free[count:]
        return np.array(taken, np.int64)

    def _insert(self, pages: Pages, slots: Pages) -> None:
        pages, slots = np.concatenate([self._pages, pages]), np.concatenate([self._slots, slots])
        order = np.argsort(pages, kind="stable")
        self._pages, self._slots = pages[order], slots[order]

    def undo(self, undo: Undo) -> None:
        """Becomes what it was before."""
        self._drop(np.flatnonzero(np.isin(self._pages, undo.empty, assume_unique=True)))
        here = np.isin(undo.pages, self._pages, assume_unique=True)
        at = np.searchsorted(self._pages, undo.pages[here])
        self._rows[self._slots[at]] = undo.rows[here]
        slots = self._take(int((~here).sum()))
        self._rows[slots] = undo.rows[~here]
        self._insert(undo.pages[~here], slots)

    def put(self, memory: Memory) -> None:
        """Memory becomes what this is; whoever translated code there must be told."""
        memory.reset()
        by_huge_pages(memory, self._pages)
        for i in range(0, len(self._pages), CHUNK):
            fill(memory, self._pages[i:i + CHUNK], self._rows[self._slots[i:i + CHUNK]].view(np.uint8))
