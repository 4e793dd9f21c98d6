"""DMAR_PASS_THROUGH: random registers through the trap, and tables of the guest's that may hold anything."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from passthrough_bench import CAP_ALL_LEVELS, MIB, Watched
from vtd_bench import BASE, CCMD, GCMD, NOWHERE, QEMU_CAP, QEMU_ECAP, RTADDR, SRTP, TE, XEON_CAP, XEON_ECAP

from hvcore.machine.memory import PAGE, Memory
from hvcore.spec import vtd
from hvcore.vmm.passthrough import CAP_HIDDEN, ECAP_HIDDEN, spans

# --- registers through the trap

@given(st.integers(0, 0x300), st.sampled_from([1, 2, 4, 8]), st.sampled_from([(QEMU_CAP, QEMU_ECAP), (XEON_CAP, XEON_ECAP),
       (0x1C0000C40660462, 0x7E3FF0505E), (QEMU_CAP | CAP_HIDDEN & ~(1 << 23), QEMU_ECAP | ECAP_HIDDEN)]))
@settings(max_examples=150)
def test_reads_are_the_units_but_for_the_hidden_bits(offset: int, width: int, caps: tuple[int, int]) -> None:
    w = Watched(*caps)
    page = bytearray(w.unit.size)
    for at in range(0, w.unit.size, 4):
        page[at:at + 4] = w.unit.peek(at, 4).to_bytes(4, "little")
    for at, hidden in ((8, CAP_HIDDEN), (16, ECAP_HIDDEN)):
        page[at:at + 8] = (int.from_bytes(page[at:at + 8], "little") & ~hidden).to_bytes(8, "little")
    assert w.watched.mmio_read(offset, width) == int.from_bytes(page[offset:offset + width], "little")
    assert w.bus.read(BASE + 8, 8) == caps[0] and w.bus.read(BASE + 16, 8) == caps[1]


_VALUES = st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([
    0, TE, SRTP, TE | SRTP, TE | 1 << 26, 1 << 26, (1 << 64) - 1, 1 << 63 | 1 << 61, 1 << 63 | 1 << 60, Watched.ROOT, Watched.TABLES, 16]))
_OFFSETS = st.one_of(st.integers(0, 0x240), st.sampled_from([GCMD, RTADDR, CCMD, 0x34, 0x38, 0x64, 0x88, 0x90, 0xB8, 0xF0, 0xF8, 0x228]))


@given(st.lists(st.tuples(_OFFSETS, st.sampled_from([1, 2, 4, 4, 4, 8, 8]), _VALUES), max_size=25),
       st.sampled_from([(QEMU_CAP, QEMU_ECAP), (XEON_CAP, XEON_ECAP), (QEMU_CAP | 0x60, QEMU_ECAP | 0x8)]))
@settings(max_examples=150)
def test_writes_have_the_effect_of_direct_ones(writes: list[tuple[int, int, int]], caps: tuple[int, int]) -> None:
    """The same words to a unit behind the trap and to one without; both have the same tables, which map the region."""
    through, direct = Watched(*caps), Watched(*caps)
    for w in (through, direct):
        w.context(w.TABLES, 3)
        w.memory.write64(w.TABLES, w.TABLES + PAGE | 3)
        w.memory.u64(w.TABLES + PAGE + 8 * 16, 4)[:] = [32 * MIB + i * 2 * MIB | 0x83 for i in range(4)]
        w.memory.write(w.TABLES + 32 * PAGE, (0x12).to_bytes(16, "little") + (1 << 32 | 0x25).to_bytes(8, "little"))
    for offset, width, value in writes:
        value &= (1 << 8 * width) - 1
        through.write(offset, width, value)
        direct.bus.write(BASE + offset, width, value)
        assert through.unit.file.bytes == direct.unit.file.bytes
        assert (through.unit.root, through.unit.protected) == (direct.unit.root, direct.unit.protected)
        assert through.unit.notes == direct.unit.notes
        assert through.reaches(33 * MIB) == direct.reaches(33 * MIB)
    assert through.unit.cached == direct.unit.cached
    assert all((a == b).all() for a, b in zip(through.words(), direct.words(), strict=True))


# --- the guest's tables may hold anything

PAGES = [Watched.TABLES + i * PAGE for i in range(6)]
_ENTRIES = st.one_of(
    st.just(0), st.sampled_from(PAGES).map(lambda p: p | 3), st.sampled_from([p | bits for p in PAGES for bits in (1, 2, 0x83)]),
    st.sampled_from([Watched.ROOT | 3, Watched.CONTEXTS | 3, NOWHERE | 3]),
    st.sampled_from([32 * MIB, 33 * MIB, 40 * MIB - PAGE]).map(lambda p: p | 3), st.integers(0, 31).map(lambda i: i * 2 * MIB | 0x83),
    st.integers(0, (1 << 64) - 1))
_HOSTILE = st.tuples(st.lists(st.tuples(st.sampled_from(PAGES), st.sampled_from([0, 15, 16, 17, 18, 19, 20, 511]), _ENTRIES), max_size=24),
                     st.lists(st.tuples(st.sampled_from(PAGES), st.sampled_from([1, 511, 512]), _ENTRIES), max_size=2),
                     st.sampled_from([*PAGES, Watched.ROOT, Watched.CONTEXTS, 32 * MIB, 40 * MIB - PAGE, NOWHERE]),
                     st.integers(2, 7), st.sampled_from([Watched.ROOT, Watched.ROOT, *PAGES[:1], 32 * MIB, NOWHERE]), st.booleans())


def _walk(memory: Memory, table: int, levels: int, iova: int) -> str:
    """A page of the region, walked plainly: `absent`, `mapped`, or `foreign` where a table is not the guest's."""
    for level in range(levels, 0, -1):
        if Watched.REGION[0] <= table < Watched.REGION[1] or not memory.backed(table, PAGE):
            return "foreign"
        entry = memory.read64(table + 8 * (iova >> 12 + 9 * (level - 1) & 511))
        if not entry & 3:
            return "absent"
        if level == 1 or level < 4 and entry & 0x80:
            return "mapped"
        table = entry & vtd.ADDRESS
    raise AssertionError


def _hostile(scene: tuple[object, ...]) -> Watched:
    single, filled, table, levels, root, superpages = scene
    w = Watched(CAP_ALL_LEVELS, superpages=bool(superpages))
    for page, count, entry in filled:  # type: ignore[attr-defined]
        w.memory.u64(page, count)[:] = entry
    for page, index, entry in single:  # type: ignore[attr-defined]
        w.memory.write64(page + 8 * index, entry)
    w.context(table, levels)  # type: ignore[arg-type]
    w.write(RTADDR, 8, root)  # type: ignore[arg-type]
    return w


@given(_HOSTILE)
@settings(max_examples=200)
def test_no_table_makes_the_core_write_into_itself_or_over_what_is_there(scene: tuple[object, ...]) -> None:
    w = _hostile(scene)
    before, itself = w.words()
    w.write(GCMD, 4, SRTP)
    w.write(GCMD, 4, TE)
    w.write(CCMD, 8, 1 << 63 | 1 << 61)
    after, still = w.words()
    assert (itself == still).all(), "its own memory"
    own = {w.own.entry(level, address) for level in range(2, 7) for _, address in spans(w.REGION, level, w.REGION[0])}
    leaves = set(range(w.REGION[0] | 3, w.REGION[1] | 3, PAGE))
    for index in np.flatnonzero(before != after).tolist():
        assert not int(before[index]) & 3, "only absent entries"
        assert int(after[index]) in own or int(after[index]) in leaves


@given(_HOSTILE)
@settings(max_examples=150)
def test_a_region_that_was_all_absent_is_all_there_afterwards(scene: tuple[object, ...]) -> None:
    w = _hostile(scene)
    table, levels, root = scene[2:5]
    if root != w.ROOT or not isinstance(levels, int) or levels > 6 or not isinstance(table, int):
        return
    pages = range(*w.REGION, PAGE)
    before = {_walk(w.memory, table, levels, page) for page in pages}
    w.write(GCMD, 4, SRTP)
    w.write(GCMD, 4, TE)
    if before == {"absent"}:
        assert {_walk(w.memory, table, levels, page) for page in pages} <= {"mapped", "foreign"}, "foreign: by the core's own tables"
        assert "force map" in w.console
    else:
        assert not w.console


def test_ever_new_tables_take_none_of_the_cores_memory() -> None:
    w = Watched(superpages=False)
    w.enable()
    used = w.heap.used
    for i in range(200):
        w.context(w.TABLES + i * PAGE, 3)
        w.write(CCMD, 8, 1 << 63 | 1 << 61)
    assert w.heap.used == used and w.console.count("force map") == 200
