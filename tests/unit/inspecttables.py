"""Hand-built page tables for the tests of the inspectors, and a slow, plain reading of them to compare with."""

import numpy as np

from hvcore.machine.memory import Memory
from hvcore.spec.paging import PagingFormat

PAGE = 4096


def memory_with(tables: dict[int, dict[int, int]], size: int = 1 << 20) -> Memory:
    """RAM of `size` bytes with words {index: value} in the tables at the given addresses."""
    memory = Memory([(0, size)])
    for address, words in tables.items():
        for index, value in words.items():
            memory.write64(address + 8 * index, value)
    return memory


class Plain:
    """Reads a whole table entry by entry, by the rules of the permission runs as a person would write them down."""

    def __init__(self, memory: Memory, fmt: PagingFormat):
        self.memory, self.fmt = memory, fmt
        self.found: list[tuple[int, int, str, int]] = []
        self.unreadable: list[tuple[int, int, str, int]] = []
        self.pages: set[int] = set()
        self.leaves = {"4K": 0, "2M": 0, "1G": 0}

    def read(self, table: int, level: int, base: int, rights: str) -> None:
        span = 1 << 12 + 9 * (level - 1)
        if not self.memory.backed(table, PAGE):
            self.unreadable.append((base, base + 512 * span, "?", table))
            return
        self.pages.add(table)
        for index in range(512):
            word = self.memory.read64(table + 8 * index)
            if word:
                self.entry(word, level, base + index * span, span, rights)

    def entry(self, word: int, level: int, start: int, span: int, rights: str) -> None:
        large = level == 1 or level in self.fmt.superpage_levels and word >> 7 & 1
        masks = self.fmt.reserved_leaf if large else self.fmt.reserved_table
        refused = bool(masks) and bool(word & masks[level - 1])
        mine = "" if refused else "".join(p.letter for p in self.fmt.permissions if p.granted(word))
        alive = bool(word & self.fmt.present) and not refused
        address = word & self.fmt.address
        if not alive and not address:
            return
        if large or not alive:
            if large:
                self.leaves[{1: "4K", 2: "2M", 3: "1G"}[level]] += 1
                address -= address % span
            both = "".join(letter for letter in rights if letter in mine) or "-"
            self.found.append((start, start + span, both, address - start))
        else:
            self.read(address, level - 1, start, "".join(letter for letter in rights if letter in mine))


def merged(ranges: list[tuple[int, int, str, int]]) -> list[tuple[int, int, str, int]]:
    """Neighbours that touch and agree, joined."""
    out: list[tuple[int, int, str, int]] = []
    for start, end, perm, offset in ranges:
        if out and out[-1][1:] == (start, perm, offset):
            out[-1] = (out[-1][0], end, perm, offset)
        else:
            out.append((start, end, perm, offset))
    return out


def identity(memory: Memory, first: int, pages: int, bits: int = 3) -> int:
    """A 3-level identity map of `pages` 4 KiB pages from table page `first` on; returns the root, the last page used."""
    tables = -(-pages // 512)
    leaf = np.arange(pages, dtype=np.uint64) << np.uint64(12) | np.uint64(bits)
    memory.u64(first, pages)[:] = leaf
    middle = first + tables * PAGE
    memory.u64(middle, tables)[:] = (np.arange(tables, dtype=np.uint64) << np.uint64(12)) + np.uint64(first) | np.uint64(bits)
    top = middle + -(-tables // 512) * PAGE
    for i in range(-(-tables // 512)):
        memory.write64(top + 8 * i, middle + i * PAGE | bits)
    return top
