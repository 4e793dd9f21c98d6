"""Walks and scans of page tables: against hand-built bytes and against a plain reading of random tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inspecttables import PAGE, Plain, identity, memory_with, merged

from hvcore.inspect import scan as scan_module
from hvcore.inspect.reader import Words
from hvcore.inspect.scan import LIMIT, TableScan, scan
from hvcore.inspect.walk import Kind, Verdict, walk
from hvcore.machine.memory import Memory
from hvcore.spec.paging import EPT, LONG_MODE, NESTED, VTD, PagingFormat, vtd_format

GIB, MIB2 = 1 << 30, 2 << 20
OUTSIDE = 0x4000_0000
"""An address where the small memory has nothing."""


def runs(found: TableScan) -> list[tuple[int, int, str, int]]:
    return [(r.start, r.end, r.perm, r.offset) for r in found.runs]


# --- runs by hand

def test_neighbours_merge_only_where_rights_and_offset_agree() -> None:
    memory = memory_with({0x1000: {0: 0x2003}, 0x2000: {0: 0x3003}, 0x3000: {
        1: 0x1003, 2: 0x2003, 3: 0x3001, 4: 0x4002, 5: 0x9003, 6: 0xA003, 8: 0x8003}})
    assert runs(scan(memory, VTD, 0x1000, 3)) == [
        (0x1000, 0x3000, "rw", 0), (0x3000, 0x4000, "r", 0), (0x4000, 0x5000, "w", 0), (0x5000, 0x7000, "rw", 0x4000),
        (0x8000, 0x9000, "rw", 0)]


def test_permissions_and_down_the_levels() -> None:
    memory = memory_with({0x1000: {0: 0x2001, 1: 0x2002}, 0x2000: {0: 0x3003}, 0x3000: {0: 0x5003, 1: 0x6001}})
    assert runs(scan(memory, VTD, 0x1000, 3)) == [
        (0, 0x2000, "r", 0x5000), (GIB, GIB + 0x1000, "w", 0x5000 - GIB), (GIB + 0x1000, GIB + 0x2000, "-", 0x5000 - GIB)]


def test_an_entry_that_holds_an_address_but_grants_nothing_is_a_run_and_zero_is_none() -> None:
    memory = memory_with({0x1000: {0: 0x2003, 1: 0x7000}, 0x2000: {0: 0x3003, 3: 0x20_0080, 4: 0x80}, 0x3000: {0: 0x4000, 1: 0x800}})
    found = scan(memory, VTD, 0x1000, 3)
    assert runs(found) == [(0, 0x1000, "-", 0x4000), (3 * MIB2, 4 * MIB2, "-", -2 * MIB2), (GIB, 2 * GIB, "-", 0x7000 - GIB)]
    assert found.leaves == {"4K": 1, "2M": 1, "1G": 0}
    assert found.table_pages == 3


def test_superpages_join_with_small_pages() -> None:
    memory = memory_with({0x1000: {0: 0x2003, 1: GIB | 0x83}, 0x2000: {510: 0x3003, 511: 511 * MIB2 | 0x83},
                          0x3000: {511: 511 * MIB2 - 0x1000 | 3}})
    found = scan(memory, VTD, 0x1000, 3)
    assert runs(found) == [(511 * MIB2 - 0x1000, 2 * GIB, "rw", 0)]
    assert found.leaves == {"4K": 1, "2M": 1, "1G": 1}


def test_a_unit_without_superpages_refuses_them() -> None:
    memory = memory_with({0x1000: {0: 0x2003}, 0x2000: {1: MIB2 | 0x83}})
    found = scan(memory, vtd_format(0, 0, 39), 0x1000, 3)
    assert runs(found) == [(MIB2, 2 * MIB2, "-", 0)]
    assert (found.reserved, found.leaves["2M"]) == (1, 0)


def test_address_bits_beyond_the_host_width_are_refused() -> None:
    memory = memory_with({0x1000: {0: 0x2003}, 0x2000: {0: 0x3003}, 0x3000: {0: 1 << 40 | 3, 1: 0x1003}})
    assert runs(scan(memory, vtd_format(0, 0, 39), 0x1000, 3)) == [(0, 0x1000, "-", 1 << 40), (0x1000, 0x2000, "rw", 0)]
    assert runs(scan(memory, VTD, 0x1000, 3))[0] == (0, 0x1000, "rw", 1 << 40)


def test_unreadable_is_not_absent() -> None:
    memory = memory_with({0x1000: {0: OUTSIDE | 3, 2: 0x2003}})
    found = scan(memory, VTD, 0x1000, 3)
    assert runs(found) == []
    assert [(r.start, r.end, r.offset) for r in found.unreadable] == [(0, GIB, OUTSIDE)]
    lost = scan(memory, VTD, OUTSIDE, 3)
    assert [(r.start, r.end, r.offset) for r in lost.unreadable] == [(0, 512 * GIB, OUTSIDE)]
    assert lost.table_pages == 0


def test_nested_tables_give_execute_and_need_user() -> None:
    memory = memory_with({0x1000: {0: 0x2007}, 0x2000: {0: 0x3007}, 0x3000: {0: 0x4007}, 0x4000: {
        0: 0x7, 1: 0x1007 | 1 << 63, 2: 0x2005, 3: 0x3003}})
    assert runs(scan(memory, NESTED, 0x1000, 4)) == [(0, 0x1000, "rwx", 0), (0x1000, 0x2000, "rw", 0), (0x2000, 0x3000, "rx", 0),
                                                   (0x3000, 0x4000, "-", 0)]


def test_levels_that_are_not_scanned() -> None:
    with pytest.raises(ValueError, match="1 to 5"):
        scan(memory_with({}), VTD, 0x1000, 6)


# --- large, shared, self-referencing, random

def test_a_whole_identity_map() -> None:
    memory = Memory([(0, 64 << 20)])
    pages = 3 * GIB // PAGE
    root = identity(memory, 0x10000, pages)
    found = scan(memory, vtd_format(0, 0, 39), root, 3)
    assert runs(found) == [(0, 3 * GIB, "rw", 0)]
    assert found.leaves == {"4K": pages, "2M": 0, "1G": 0}
    assert found.table_pages == pages // 512 + 3 + 1
    assert (found.truncated, found.scanned_to) == (False, 512 * GIB)


def test_a_self_map_ends() -> None:
    memory = memory_with({0x1000: {511: 0x1003}})
    found = scan(memory, VTD, 0x1000, 4)
    assert runs(found) == [((1 << 48) - 0x1000, 1 << 48, "rw", 0x1000 - ((1 << 48) - 0x1000))]
    assert found.table_pages == 1


def test_a_table_full_of_itself_is_cut_and_says_so() -> None:
    memory = memory_with({})
    memory.u64(0x1000, 512)[:] = 0x1003
    found = scan(memory, VTD, 0x1000, 4, limit=4096)
    assert found.truncated
    assert 4096 <= len(found.runs) <= 4096 + 512
    assert found.scanned_to == int(found.runs.end[-1])
    assert found.leaves["4K"] == 512 ** 4
    assert set(map(int, np.unique(found.runs.start + found.runs.offset.astype(np.uint64)))) == {0x1000}


def test_an_empty_table_shared_by_all_costs_nothing() -> None:
    memory = memory_with({})
    for table, below in ((0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000), (0x4000, 0x5000)):
        memory.u64(table, 512)[:] = below | 3
    found = scan(memory, VTD, 0x1000, 5)
    assert (runs(found), found.table_pages, found.truncated) == ([], 5, False)


def test_tables_beyond_the_page_limit_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "MAX_TABLES", 3)
    memory = memory_with({0x1000: {0: 0x2003}, 0x2000: {0: 0x3003, 5: 0x4003}, 0x3000: {0: 0x3}, 0x4000: {0: 0x3}})
    found = scan(memory, VTD, 0x1000, 3)
    assert (runs(found), found.truncated, found.scanned_to) == ([(0, 0x1000, "rw", 0)], True, 5 * MIB2)


class Counting:
    """A reader that notes which table pages were asked for."""

    def __init__(self, memory: Memory):
        self.memory, self.asked = memory, np.zeros(0, np.uint64)

    def read(self, address: int, length: int, /) -> bytes:
        return self.memory.read(address, length)

    def tables(self, addresses: Words, /) -> tuple[Words, np.ndarray]:
        self.asked = np.append(self.asked, addresses)
        return self.memory.tables(addresses)


def test_a_shared_table_is_read_once_per_level() -> None:
    memory = memory_with({0x3000: {0: 0x3}})
    memory.u64(0x1000, 512)[:] = 0x2003
    memory.u64(0x2000, 512)[:] = 0x3003
    reader = Counting(memory)
    assert scan(reader, VTD, 0x1000, 3, limit=1 << 20).leaves["4K"] == 512 * 512
    assert reader.asked.tolist() == [0x1000, 0x2000, 0x3000]


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
@pytest.mark.parametrize("keep", [(1 << 64) - 1, (4 << 20) - 1, (4 << 20) - 1 & ~0x80])
def test_noise_neither_raises_nor_runs_away(levels: int, keep: int) -> None:
    memory = Memory([(0, 4 << 20)])
    words = memory.u64(0, memory.end // 8)
    words[:] = np.random.default_rng(levels).integers(0, 1 << 64, len(words), np.uint64, endpoint=False) & np.uint64(keep)
    for fmt in (VTD, LONG_MODE, EPT, NESTED, vtd_format(0, 0, 39)):
        found = scan(memory, fmt, 0x5000, levels, limit=20_000)
        assert len(found.runs) <= 20_000 + 512 * levels
        assert found.table_pages <= memory.end // PAGE
        for run in found.runs[:: max(len(found.runs) // 20, 1)]:
            assert walk(memory, fmt, 0x5000, levels, run.start).rights == run.perm
    assert LIMIT <= 4 << 20


# --- against a plain reading

POOL = [0x1000 * n for n in range(1, 8)]
INDEX = st.sampled_from([0, 1, 2, 3, 510, 511])
LOW = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 0x80, 0x83, 0x800, 0x803, 0x103])
HIGH = st.sampled_from([0, 0, 0, 0, 1 << 63, 1 << 62, 1 << 55, 1 << 45])
TARGET = st.one_of(st.sampled_from([0, *POOL, OUTSIDE, MIB2, 2 * MIB2, GIB, 2 * GIB]), st.integers(0, 5).map(lambda n: n << 12))
TABLE = st.dictionaries(INDEX, st.builds(lambda low, high, target: low | high | target, LOW, HIGH, TARGET), max_size=6)
TREE = st.fixed_dictionaries(dict.fromkeys(POOL, TABLE))
FORMATS = [VTD, EPT, LONG_MODE, NESTED, vtd_format(3 << 34, 0x84, 45), vtd_format(0, 0, 39)]


@settings(max_examples=150)
@given(TREE, st.integers(1, 4), st.sampled_from(FORMATS))
def test_runs_equal_a_plain_reading(tree: dict[int, dict[int, int]], levels: int, fmt: PagingFormat) -> None:
    memory = memory_with(tree)
    plain = Plain(memory, fmt)
    plain.read(0x1000, levels, 0, "".join(p.letter for p in fmt.permissions))
    found = scan(memory, fmt, 0x1000, levels)
    assert runs(found) == merged(plain.found)
    assert [(r.start, r.end, "?", r.offset) for r in found.unreadable] == merged(plain.unreadable)
    assert found.leaves == plain.leaves
    assert set(found.tables.tolist()) == plain.pages
    assert not found.truncated


@settings(max_examples=100)
@given(TREE, st.integers(1, 4), st.sampled_from(FORMATS), st.data())
def test_walks_agree_with_runs(tree: dict[int, dict[int, int]], levels: int, fmt: PagingFormat, data: st.DataObject) -> None:
    memory = memory_with(tree)
    found = scan(memory, fmt, 0x1000, levels)
    edges = sorted({0, *found.runs.start.tolist(), *(found.runs.end - np.uint64(1)).tolist(), *found.unreadable.start.tolist()})
    top = fmt.span(levels) * 512
    for address in data.draw(st.lists(st.one_of(st.sampled_from(edges), st.integers(0, top - 1)), max_size=20)):
        run, way = found.runs.at(address), walk(memory, fmt, 0x1000, levels, address)
        assert way.rights == (run.perm if run else "-")
        if way.verdict is Verdict.MAPPED:
            assert run is not None
            assert way.host == address + run.offset
        assert (way.verdict is Verdict.UNREADABLE) == (found.unreadable.at(address) is not None)


# --- walks by hand

def test_a_walk_keeps_its_evidence() -> None:
    memory = memory_with({0x1000: {1: 0x2003}, 0x2000: {511: 0x3001}, 0x3000: {511: 0x1234_5003}})
    way = walk(memory, VTD, 0x1000, 3, 0x7FFF_F123)
    assert [(s.level, s.table, s.index, s.entry, s.raw) for s in way.steps] == [
        (3, 0x1000, 1, 0x1008, 0x2003), (2, 0x2000, 511, 0x2FF8, 0x3001), (1, 0x3000, 511, 0x3FF8, 0x1234_5003)]
    assert [s.kind for s in way.steps] == [Kind.TABLE, Kind.TABLE, Kind.LEAF]
    assert (way.verdict, way.host, way.rights, way.page_size) == (Verdict.MAPPED, 0x1234_5123, "r", 4096)
    assert "r, level 1 table at 0x3000" in str(way)
    assert "0x7ffff123 -> 0x12345123, r, page of 4 KiB" in str(way)


def test_a_walk_through_a_superpage_keeps_the_offset() -> None:
    memory = memory_with({0x1000: {0: 0x2003}, 0x2000: {3: 0x4020_0083}})
    way = walk(memory, VTD, 0x1000, 3, 3 * MIB2 + 0x12345)
    assert (way.host, way.page_size, len(way.steps)) == (0x4020_0000 + 0x12345, MIB2, 2)


@pytest.mark.parametrize(("tables", "address", "verdict", "kind"), [
    ({}, 0, Verdict.ABSENT, Kind.ABSENT),
    ({0x1000: {0: 0x5000}}, 0, Verdict.ABSENT, Kind.WITHHELD),
    ({0x1000: {0: OUTSIDE | 3}}, 0, Verdict.UNREADABLE, Kind.UNREADABLE),
    ({0x1000: {0: 0x2803}}, 0, Verdict.RESERVED, Kind.RESERVED),
])
def test_walks_that_end_early(tables: dict[int, dict[int, int]], address: int, verdict: Verdict, kind: Kind) -> None:
    way = walk(memory_with(tables), vtd_format(0, 0, 39), 0x1000, 3, address)
    assert (way.verdict, way.steps[-1].kind, way.host, way.rights) == (verdict, kind, None, "-")


def test_an_address_beyond_the_table() -> None:
    way = walk(memory_with({}), VTD, 0x1000, 3, 512 * GIB)
    assert (way.verdict, way.steps) == (Verdict.BEYOND, ())


def test_reserved_bits_are_named_in_hex() -> None:
    way = walk(memory_with({0x1000: {0: 0x2803}}), vtd_format(0, 0, 39), 0x1000, 3, 0)
    assert way.steps[0].text == "present, but bits 0x800 must be zero"
    other = walk(memory_with({0x1000: {0: 0x2003 | 1 << 52}}), vtd_format(0, 0, 39), 0x1000, 3, 0)
    assert "other bits 0x10000000000000" in other.steps[0].text
