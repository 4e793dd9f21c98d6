"""Scans of tables that are full of words, whole and in pieces, against a plain reading; what a scan of hostile tables may cost."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inspecttables import PAGE, Plain, memory_with, merged

from hvcore.inspect import scan as scan_module
from hvcore.inspect import segments
from hvcore.inspect.scan import TableScan, scan
from hvcore.machine.memory import Memory
from hvcore.spec.paging import EPT, LONG_MODE, NESTED, VTD, PagingFormat, vtd_format

MIB2 = 2 << 20
ROOT, SIZE = 0x1000, 0x10000
LEAVES = [0x3000, 0x4000, 0x5000, 0x9000]
"""Two neighbours and one more behind them, and one apart."""
ODD = replace(VTD, name="odd", reserved_table=(0,) * 6, reserved_leaf=(1 << 14,) * 6)
"""One reserved address bit that pages in the middle of a table have, and neither the first nor the last one."""
FORMATS = [VTD, EPT, LONG_MODE, NESTED, vtd_format(3 << 34, 0x84, 45), vtd_format(0, 0, 39), ODD]


def runs(found: TableScan) -> list[tuple[int, int, str, int]]:
    return [(r.start, r.end, r.perm, r.offset) for r in found.runs]


# --- dense tables

LOW = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 0x80, 0x800, 0x803, 0x103])
HIGH = st.sampled_from([0, 0, 0, 0, 1 << 63, 1 << 62, 1 << 55, 1 << 52, 0xFFF << 52])
NEAR = st.sampled_from([0, PAGE, MIB2, 1 << 39, 1 << 45, 1 << 52])
"""Page addresses begin near these: at 0, where a carry goes far up, at the host address width, at the end of the address field."""


@st.composite
def ramps(draw: st.DrawFn) -> np.ndarray:
    """512 words that grow by one page from entry to entry, or by nothing, from anywhere up to the end of 64 bits and around it."""
    address = draw(NEAR) + draw(st.integers(-520, 5)) * PAGE & 0x000F_FFFF_FFFF_F000
    first = np.uint64(draw(LOW) | draw(HIGH) | address)
    return first + np.arange(512, dtype=np.uint64) * np.uint64(draw(st.sampled_from([PAGE, PAGE, PAGE, 0])))


@st.composite
def leaf_tables(draw: st.DrawFn) -> np.ndarray:
    """A ramp of which parts are cleared, have bits turned over, or begin anew."""
    words = draw(st.one_of(st.just(np.zeros(512, np.uint64)), ramps()))
    for _ in range(draw(st.integers(0, 4))):
        part = slice(draw(st.integers(0, 511)), draw(st.integers(1, 512)), draw(st.sampled_from([1, 1, 2, 7])))
        change = draw(st.sampled_from(["clear", "bits", "anew"]))
        if change == "clear":
            words[part] = 0
        elif change == "bits":
            words[part] ^= np.uint64(draw(LOW) | draw(HIGH))
        else:
            words[part] = draw(ramps())[part]
    return words


def dense(tables: list[np.ndarray], upper: dict[int, int]) -> Memory:
    memory = memory_with({ROOT: upper}, SIZE)
    for address, words in zip(LEAVES, tables, strict=True):
        memory.u64(address, 512)[:] = words
    return memory


UPPER = st.dictionaries(st.sampled_from([0, 1, 2, 3, 9, 510, 511]), st.builds(
    lambda table, low: table | low, st.sampled_from([*LEAVES, *LEAVES, SIZE, 5 * MIB2]), st.sampled_from([1, 3, 3, 7, 0x83])), max_size=6)


def check(memory: Memory, fmt: PagingFormat) -> None:
    plain = Plain(memory, fmt)
    plain.read(ROOT, 2, 0, "".join(p.letter for p in fmt.permissions))
    found = scan(memory, fmt, ROOT, 2)
    assert runs(found) == merged(plain.found)
    assert [(r.start, r.end, "?", r.offset) for r in found.unreadable] == merged(plain.unreadable)
    assert found.leaves == plain.leaves
    assert set(found.tables.tolist()) == plain.pages
    assert not found.truncated


@settings(max_examples=150, deadline=None)
@given(st.lists(leaf_tables(), min_size=len(LEAVES), max_size=len(LEAVES)), UPPER, st.sampled_from(FORMATS))
def test_dense_tables_equal_a_plain_reading(tables: list[np.ndarray], upper: dict[int, int], fmt: PagingFormat) -> None:
    check(dense(tables, upper), fmt)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f"{f.name}{sum(f.reserved_leaf):x}")
@pytest.mark.parametrize("first", [
    0, 3, 4, 0x803, PAGE | 3, (1 << 39) - 5 * PAGE | 3, (1 << 45) - 5 * PAGE | 1, (1 << 52) - 5 * PAGE | 7, (1 << 64) - 5 * PAGE | 3,
    (1 << 63) - 5 * PAGE | 7, 1 << 62 | 3, 0xFFF << 52 | PAGE, 0x80, (1 << 52) - PAGE, (1 << 64) - PAGE])
def test_one_ramp_in_every_format(first: int, fmt: PagingFormat) -> None:
    ramp = np.uint64(first) + np.arange(512, dtype=np.uint64) * np.uint64(PAGE)
    late = np.concatenate([np.zeros(300, np.uint64), ramp[:212]])
    sparse = np.where(np.arange(512) % 3 == 0, ramp, 0).astype(np.uint64)
    noisy = ramp ^ (np.arange(512, dtype=np.uint64) % np.uint64(2) << np.uint64(5))
    check(dense([ramp, late, sparse, noisy], dict(enumerate(address | 7 for address in LEAVES))), fmt)


def test_reserved_bits_between_a_good_first_and_a_good_last_entry_are_found() -> None:
    words = np.arange(512, dtype=np.uint64) << np.uint64(12) | np.uint64(3)
    words[5] |= np.uint64(1 << 62)
    words[7] |= np.uint64(1 << 39)
    found = scan(dense([words] * 4, {0: LEAVES[0] | 3}), vtd_format(0, 0, 39), ROOT, 2)
    assert found.reserved == 2
    assert runs(found) == [(0, 5 * PAGE, "rw", 0), (5 * PAGE, 6 * PAGE, "-", 0), (6 * PAGE, 7 * PAGE, "rw", 0),
                           (7 * PAGE, 8 * PAGE, "-", 1 << 39), (8 * PAGE, MIB2, "rw", 0)]


def test_tables_with_the_same_words_stay_apart() -> None:
    words = np.arange(512, dtype=np.uint64) << np.uint64(12) | np.uint64(3)
    check(dense([words] * 4, dict(enumerate(address | 3 for address in LEAVES))), VTD)


def test_a_reserved_bit_of_pages_in_the_middle_only() -> None:
    words = np.zeros(512, np.uint64)
    words[:9] = np.arange(9, dtype=np.uint64) << np.uint64(12) | np.uint64(3)
    memory = dense([words] * 4, {0: LEAVES[0] | 3})
    check(memory, ODD)
    assert scan(memory, ODD, ROOT, 2).reserved == 4


def test_an_unreadable_table_beside_an_entry_that_looks_alike() -> None:
    found = scan(memory_with({ROOT: {0: 0x4000_0003, 1: 0x3003}, 0x3000: {0: 0x4020_0000}}, SIZE), VTD, ROOT, 2)
    assert [(r.start, r.end, r.offset) for r in found.unreadable] == [(0, MIB2, 0x4000_0000)]
    assert runs(found) == [(MIB2, MIB2 + PAGE, "-", 0x4000_0000)]


def test_many_tables_in_a_row_and_apart_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, pieces and slices of every size find what one walk over all words finds; page addresses in a row are not copied."""
    memory = Memory([(0, 4 << 20)])
    rng = np.random.default_rng(7)
    tables = np.arange(0x100000, 0x100000 + 300 * PAGE, PAGE, dtype=np.uint64)
    ramp = np.arange(300 * 512, dtype=np.uint64) << np.uint64(12) | np.uint64(3)
    ramp[rng.integers(0, len(ramp), 40)] = 0
    memory.u64(0x100000, len(ramp))[:] = ramp
    memory.u64(0x2000, 300)[:] = np.where(np.arange(300) < 200, tables, tables[::-1]) | np.uint64(3)
    memory.write64(ROOT, 0x2003)
    plain = Plain(memory, VTD)
    plain.read(ROOT, 3, 0, "rw")
    for chunk, piece, size in ((512, 64, 1 << 15), (7, 64, 1), (64, 3, 100), (1, 1, 1 << 15)):
        monkeypatch.setattr(scan_module, "_CHUNK", chunk)
        monkeypatch.setattr(segments, "_PIECE", piece * 512)
        monkeypatch.setattr(scan_module, "_SLICE", size)
        found = scan(memory, VTD, ROOT, 3)
        assert runs(found) == merged(plain.found)
        assert found.leaves == plain.leaves


# --- pages in a row

def test_pages_in_a_row_are_a_view_that_cannot_be_written() -> None:
    memory = memory_with({0x2000: {5: 7}}, SIZE)
    words, readable = memory.tables(np.array([0x1000, 0x2000, 0x3000], np.uint64))
    assert (words.shape, readable.tolist(), int(words[1, 5])) == ((3, 512), [True] * 3, 7)
    with pytest.raises(ValueError, match="read-only"):
        words[1, 5] = 1
    memory.write64(0x2000 + 8 * 5, 9)
    assert int(words[1, 5]) == 9


@pytest.mark.parametrize("addresses", [[0x2000, 0x1000], [0x1000, 0x3000], [0x2000, 0x2000], [SIZE - PAGE, SIZE], [0x1008, 0x2008], []])
def test_other_pages_are_a_copy(addresses: list[int]) -> None:
    memory = memory_with({0x1000: {1: 1}, 0x2000: {1: 2}, 0x3000: {1: 3}, SIZE - PAGE: {1: 15}}, SIZE)
    words, readable = memory.tables(np.array(addresses, np.uint64))
    there = [a % PAGE == 0 and a < SIZE for a in addresses]
    assert (words.flags.writeable, readable.tolist()) == (True, there)
    assert words[:, 1].tolist() == [a // PAGE * ok for a, ok in zip(addresses, there, strict=True)]


# --- truncation and hostile tables

POOL = [0x1000 * n for n in range(1, 6)]
WORD = st.builds(lambda page, low: page << 12 | low, st.integers(0, 6), st.sampled_from([0, 1, 3, 3, 0x83]))
TREE = st.fixed_dictionaries(dict.fromkeys(POOL, st.dictionaries(st.sampled_from([0, 1, 2, 510, 511]), WORD, max_size=5)))


@settings(max_examples=150, deadline=None)
@given(TREE, st.integers(1, 4), st.integers(1, 60))
def test_what_is_kept_under_a_limit_is_right(tree: dict[int, dict[int, int]], levels: int, limit: int) -> None:
    memory = memory_with(tree, 0x6000)
    whole, found = scan(memory, VTD, 0x1000, levels), scan(memory, VTD, 0x1000, levels, limit)
    assert not whole.truncated
    assert found.truncated == (found.scanned_to < 512 * VTD.span(levels))
    for name in ("runs", "unreadable"):
        kept = [(r.start, min(r.end, found.scanned_to), r.perm, r.offset) for r in getattr(whole, name) if r.start < found.scanned_to]
        assert [(r.start, r.end, r.perm, r.offset) for r in getattr(found, name)] == kept
    plain = Plain(memory, VTD)
    plain.read(0x1000, levels, 0, "rw")
    assert not found.truncated or len(plain.found) + len(plain.unreadable) > limit


def test_empty_tables_beside_one_that_is_not_cost_nothing() -> None:
    """Each table has one page below it and 511 children without any: laying those out would take 512 times the limit."""
    memory = memory_with({0x5000: {0: 3}})
    for table, below in ((0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)):
        memory.u64(table, 512)[:] = below | 3
    memory.u64(0x4000, 512)[:] = 0x6003
    memory.write64(0x4000, 0x5003)
    tracemalloc.start()
    found = scan(memory, VTD, 0x1000, 5, limit=1 << 14)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.truncated
    assert len(found.runs) == 1 << 14
    assert peak < 64 << 20
