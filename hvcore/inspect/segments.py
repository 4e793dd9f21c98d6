"""Table pages to items: neighbouring 4 KiB leaves that agree in rights and offset are one, every other entry is one by itself.

A leaf table is mostly words that grow by one page from entry to entry.  One subtraction and one comparison find where that ends; all else
is then asked of the first word of each stretch only:

    words       3003 4003 5003 9003 a001 b001    0    0 ...
    starts      ^              ^    ^         ^               the step to the left is not one page
    items       [---- rw ----] [rw] [--- r --]                zeros are left out

What a stretch's first and last word cannot answer for the words between is cut into single entries first (`_doubtful`).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..spec.paging import ENTRIES, PAGE, PagingFormat
from .reader import Words
from .runs import I64, U8

__all__ = ["CHILD", "LEAF", "UNREADABLE", "UNSCANNED", "WITHHELD", "Items", "items_of", "joined", "whole_tables"]

LEAF, CHILD, WITHHELD, UNREADABLE, UNSCANNED = range(5)
"""Kinds of items; `WITHHELD` is an entry above the leaves that holds an address but is not present."""

_PIECE = 64 * ENTRIES
"""Words compared at a time, so that the differences stay in a processor's cache."""
_STEP = np.uint64(PAGE)
_CARRY = np.uint64(ENTRIES - 1 << 12)
"""Address bits that take every value within 512 pages; the bits above them are those of the first or of the last page."""


class Items(NamedTuple):
    """Items of some tables: table number, first entry, number of entries, kind, the rights they alone grant, physical address.

    `value` is what a leaf maps, where a child table or an unreadable or unscanned table lies, what a withheld entry holds.
    """

    table: I64
    entry: I64
    length: I64
    kind: U8
    rights: U8
    value: I64

    def by_table(self) -> "Items":
        """The items by ascending table number, those of one table in their order."""
        if (self.table[1:] >= self.table[:-1]).all():
            return self
        return self.chosen(np.argsort(self.table, kind="stable"))

    def chosen(self, index: NDArray[Any]) -> "Items":
        """Those of a mask or of numbers."""
        return Items(*(column[index] for column in self))


def joined(parts: list[Items]) -> Items:
    """All items of the parts, in their order."""
    table, entry, length, kind, rights, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Items(table, entry, length, kind, rights, value)


def whole_tables(tables: I64, addresses: Words, kind: int) -> Items:
    """One item for each of `tables` that covers the whole table."""
    n = len(tables)
    return Items(tables.astype(np.int64), np.zeros(n, np.int64), np.full(n, ENTRIES, np.int64), np.full(n, kind, np.uint8),
                 np.zeros(n, np.uint8), addresses[tables].astype(np.int64))


def items_of(fmt: PagingFormat, words: Words, level: int, tables: I64) -> tuple[Items, int]:
    """The items of tables of `level`, words [n, 512], with these numbers; and how many entries are refused for reserved bits."""
    flat = words.reshape(-1)
    starts = _stretches(fmt, flat) if level == 1 else np.flatnonzero(flat)
    word, refused = _refuse_reserved(fmt, flat[starts], level)
    word &= np.uint64(fmt.address | fmt.permission_bits | (fmt.superpage if level in fmt.superpage_levels else 0))
    word[(word & np.uint64(fmt.address | fmt.present)) == 0] = 0
    starts, word, count = _merged(starts, word, flat.size) if level == 1 else (starts, word, np.ones(len(starts), np.int64))
    kept = word != 0
    if not kept.all():
        starts, word, count = starts[kept], word[kept], count[kept]
    return Items(tables[starts // ENTRIES], starts % ENTRIES, count, *_read(fmt, word, level)), refused


def _stretches(fmt: PagingFormat, flat: Words) -> I64:
    """Where, counted over all tables, the stretches of words begin that grow by one page from entry to entry or are all zero."""
    reserved = fmt.reserved_leaf[0] if fmt.reserved_leaf else 0
    telling = np.uint64(fmt.address | fmt.permission_bits | reserved)
    change = _changes(flat, telling)
    starts = np.flatnonzero(change)
    lengths = np.append(starts[1:], flat.size) - starts
    doubtful = _doubtful(fmt, flat[starts] & telling, flat[starts + lengths - 1] & telling, np.uint64(reserved))
    if not doubtful.any():
        return starts
    return np.flatnonzero(change | np.repeat(doubtful, lengths))


def _changes(flat: Words, telling: np.uint64) -> NDArray[np.bool_]:
    """Which words do not continue the one before them.  The first of a table never does.

    Where many do not, the bits that tell nothing are taken away and zeros are taken as continuing zeros.
    """
    change = np.empty(flat.size, np.bool_)
    step = np.empty(_PIECE, np.uint64)
    for at in range(0, flat.size, _PIECE):
        piece, mine = flat[at:at + _PIECE], change[at + 1:at + _PIECE]
        np.not_equal(np.subtract(piece[1:], piece[:-1], out=step[:len(mine)]), _STEP, out=mine)
        if np.count_nonzero(mine) > len(piece) // 16:
            piece = piece & telling
            np.not_equal(np.subtract(piece[1:], piece[:-1], out=step[:len(mine)]), _STEP, out=mine)
            mine &= np.not_equal(np.bitwise_or(piece[1:], piece[:-1], out=step[:len(mine)]), 0)
    change[::ENTRIES] = True
    return change


def _doubtful(fmt: PagingFormat, first: Words, last: Words, reserved: np.uint64) -> NDArray[np.bool_]:
    """Which stretches may hold a reserved bit, grow out of the address field, or begin with an entry that holds nothing."""
    address = np.uint64(fmt.address)
    bad = ((first | last | _CARRY) & reserved) != 0
    wrapped = (last & address) < (first & address)
    nothing = (first & (address | np.uint64(fmt.present))) == 0
    return np.asarray((first != last) & (bad | wrapped | nothing), np.bool_)


def _refuse_reserved(fmt: PagingFormat, words: Words, level: int) -> tuple[Words, int]:
    """The words with presence taken from entries that have reserved bits set, and how many those are.  May change `words`."""
    if not fmt.reserved_leaf:
        return words, 0
    leaf_mask, table_mask = np.uint64(fmt.reserved_leaf[level - 1]), np.uint64(fmt.reserved_table[level - 1])
    if not np.bitwise_or.reduce(words) & (leaf_mask | table_mask):
        return words, 0
    masks = np.where(_leaf(fmt, words, level), leaf_mask, table_mask)
    bad = ((words & np.uint64(fmt.present)) != 0) & ((words & masks) != 0)
    words[bad] &= ~np.uint64(fmt.permission_bits)
    return words, int(bad.sum())


def _merged(starts: I64, word: Words, size: int) -> tuple[I64, Words, I64]:
    """Stretches that go on in the next one are one; with how many entries each has.  Zero words stay by themselves."""
    key = word - (starts % ENTRIES << 12).astype(np.uint64)
    change = np.ones(len(starts), np.bool_)
    change[1:] = (key[1:] != key[:-1]) | (word[1:] == 0) | (word[:-1] == 0) | (starts[1:] % ENTRIES == 0)
    starts = starts[change]
    return starts, word[change], np.append(starts[1:], size) - starts


def _read(fmt: PagingFormat, word: Words, level: int) -> tuple[U8, U8, I64]:
    """Kind, rights and physical address of each word, none of which is zero."""
    present, leaf = (word & np.uint64(fmt.present)) != 0, _leaf(fmt, word, level)
    target = word & np.uint64(fmt.address)
    value: I64 = np.where(leaf, target & np.uint64((1 << 64) - fmt.span(level)), target).astype(np.int64)
    kind: U8 = np.where(leaf, LEAF, np.where(present, CHILD, WITHHELD)).astype(np.uint8)
    return kind, _rights(fmt, word), value


def _leaf(fmt: PagingFormat, words: Words, level: int) -> NDArray[np.bool_]:
    """Which words map pages rather than name tables."""
    if level > 1 and level in fmt.superpage_levels:
        return np.asarray(words & np.uint64(fmt.superpage), np.bool_)
    return np.full(words.shape, level == 1, np.bool_)


def _rights(fmt: PagingFormat, words: Words) -> U8:
    """The set of rights that each entry alone grants."""
    rights = np.zeros(len(words), np.uint8)
    present = (words & np.uint64(fmt.present)) != 0
    for i, p in enumerate(fmt.permissions):
        granted = present & ((words & np.uint64(p.needs)) == p.needs) & ((words & np.uint64(p.forbids)) == 0)
        rights |= granted.astype(np.uint8) << np.uint8(i)
    return rights
