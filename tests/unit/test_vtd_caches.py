"""Context cache and IOTLB: what stays stale, and which invalidation mends it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vtd_bench import CONTEXTS, NVME, QEMU_CAP, QEMU_ECAP, ROOT, TABLE1, TABLE2, TABLE3, Bench

from hvcore.machine.vtd.caches import Iotlb
from hvcore.machine.vtd.walk import Mapping
from hvcore.spec.dma import RemapFault

CM, PSI = 1 << 7, 1 << 39
NO_PSI = QEMU_CAP & ~PSI
OTHER = 0x00FB
"""Requester id 00:1f.3, in domain 9 with the same tables where a test puts it there."""


def remap(bench: Bench, page: int, entry: int) -> None:
    bench.memory.write64(TABLE1 + 8 * page, entry)


def with_other(**kwargs: int) -> Bench:
    bench = Bench(**kwargs)
    bench.context(OTHER, TABLE3 | 1, 9 << 8 | 1)
    assert bench.ask(0x5000) == bench.ask(0x5000, source=OTHER) == 0x9000
    return bench


def test_a_stale_translation_answers_until_it_is_invalidated():
    bench = Bench()
    assert bench.ask(0x5000) == 0x9000
    remap(bench, 5, 0)
    assert bench.ask(0x5008, "write") == 0x9008
    assert bench.unit.walk(NVME, 0x5008).address is None
    assert bench.invalidate_iotlb(1) == 1
    assert bench.reason(0x5008, "write") == 5


def test_not_present_to_present_needs_no_invalidation():
    bench = Bench()
    assert bench.reason(0x8000) == 6 and bench.reason(0x5000, source=OTHER) == 2
    remap(bench, 8, 0xC003)
    bench.context(OTHER, TABLE3 | 1, 9 << 8 | 1)
    assert bench.ask(0x8000) == 0xC000 and bench.ask(0x5000, source=OTHER) == 0x9000


def test_a_page_in_the_interrupt_range_is_a_fault_and_is_not_remembered():
    bench = Bench()
    remap(bench, 5, 0xFEE0_0003)
    assert bench.reason(0x5000) == 0xE
    remap(bench, 5, 0x9003)
    assert bench.ask(0x5000) == 0x9000


def test_permissions_are_cached_as_they_were():
    bench = Bench()
    assert bench.ask(0x6000) == 0xA000
    remap(bench, 6, 0xA003)
    assert bench.reason(0x6000, "write") == 5
    bench.invalidate_iotlb(3, 7, 0x6000)
    assert bench.ask(0x6000, "write") == 0xA000


def test_ideal_caches_remember_nothing():
    bench = Bench(ideal_caches=True)
    assert bench.ask(0x5000) == 0x9000
    remap(bench, 5, 0xD003)
    assert bench.ask(0x5000) == 0xD000
    bench.context(NVME, 0, 0)
    assert bench.reason(0x5000) == 2
    assert bench.unit.cached.contexts == () == bench.unit.cached.mappings


def test_both_truths_can_be_seen():
    bench = with_other()
    bench.ask(0x20_1000)
    bench.ask(0x4000_0000)
    cached = bench.unit.cached
    assert [(c.source, c.did, c.root) for c in cached.contexts] == [(NVME, 7, TABLE3), (OTHER, 9, TABLE3)]
    assert [(m.did, m.start, m.end, m.mapping.base, m.mapping.permission) for m in cached.mappings] == [
        (7, 0x5000, 0x6000, 0x9000, 3), (7, 0x20_0000, 0x40_0000, 0x40_0000, 3), (7, 0x4000_0000, 0x8000_0000, 0x8000_0000, 3),
        (9, 0x5000, 0x6000, 0x9000, 3)]


def test_domain_invalidation_of_the_iotlb_spares_other_domains():
    bench = with_other()
    remap(bench, 5, 0xD003)
    assert bench.invalidate_iotlb(2, 9) == 2
    assert (bench.ask(0x5000), bench.ask(0x5000, source=OTHER)) == (0x9000, 0xD000)


@pytest.mark.parametrize(("address", "am", "gone"), [
    (0x5000, 0, {5}), (0x6000, 0, {6}), (0x6000, 1, {6, 7}), (0x4000, 2, {5, 6, 7}), (0x5000, 2, {5, 6, 7}), (0, 2, set()),
    (0, 9, {5, 6, 7})])
def test_page_invalidation_takes_naturally_aligned_powers_of_two(address, am, gone):
    bench = Bench()
    for page in (5, 6, 7):
        bench.ask(page << 12, "write" if page == 7 else "read")
        remap(bench, page, page + 0x10 << 12 | 3)
    assert bench.invalidate_iotlb(3, 7, address, am) == 3
    fresh = {page for page in (5, 6, 7) if bench.ask(page << 12, "write" if page == 7 else "read") == page + 0x10 << 12}
    assert fresh == gone


@pytest.mark.parametrize(("address", "am", "mended"), [(0x2A_5000, 0, True), (0x20_0000, 9, True), (0, 18, True), (0x40_0000, 9, False)])
def test_page_invalidation_inside_a_superpage_drops_it_whole(address, am, mended):
    bench = Bench()
    assert bench.ask(0x20_0000) == 0x40_0000
    bench.memory.write64(TABLE2 + 8, 0)
    bench.invalidate_iotlb(3, 7, address, am)
    assert isinstance(bench.ask(0x20_0000), RemapFault) == mended


def test_page_invalidation_of_another_domain_does_nothing():
    bench = Bench()
    bench.ask(0x5000)
    remap(bench, 5, 0)
    bench.invalidate_iotlb(3, 8, 0x5000)
    assert bench.ask(0x5000) == 0x9000


def test_page_request_without_psi_does_the_domain():
    bench = Bench(NO_PSI)
    bench.ask(0x5000)
    remap(bench, 5, 0)
    assert bench.invalidate_iotlb(3, 7, 0x7000) == 2
    assert bench.reason(0x5000) == 6


@pytest.mark.parametrize(("granularity", "am"), [(0, 0), (3, 19)])
def test_a_wrong_iotlb_request_reports_0_and_does_nothing(granularity, am):
    bench = Bench()
    bench.ask(0x5000)
    remap(bench, 5, 0)
    assert bench.invalidate_iotlb(granularity, 7, 0, am) == 0
    assert bench.ask(0x5000) == 0x9000
    assert bench.unit.notes[-1].register == "IOTLB" and "nothing invalidated" in bench.unit.notes[-1].text


def test_a_stale_context_walks_the_old_tables():
    bench = Bench()
    bench.ask(0x5000)
    other = 0x20_0000
    bench.memory.write64(other, TABLE2 | 1)
    bench.context(NVME, other | 1, 8 << 8 | 1)
    bench.invalidate_iotlb(1)
    assert bench.ask(0x5000, "write") == 0x9000, "the old table still grants the write"
    assert bench.invalidate_contexts(1) == 1
    assert bench.reason(0x5000, "write") == 5 and bench.ask(0x5000) == 0x9000


def test_context_invalidation_leaves_the_iotlb():
    bench = Bench()
    bench.ask(0x5000)
    remap(bench, 5, 0)
    bench.invalidate_contexts(1)
    assert bench.ask(0x5000) == 0x9000


@pytest.mark.parametrize(("granularity", "did", "source", "fm", "mended"), [
    (1, 0, 0, 0, {NVME, OTHER}), (2, 7, 0, 0, {NVME}), (2, 9, 0, 0, {OTHER}), (3, 9, OTHER, 0, {OTHER}), (3, 9, OTHER & ~7, 0, set()),
    (3, 9, OTHER & ~3, 0, set()), (3, 9, OTHER & ~3, 2, set()), (3, 9, OTHER | 4, 1, {OTHER}), (3, 9, OTHER ^ 6, 2, {OTHER}),
    (3, 9, OTHER & ~7, 3, {OTHER}), (3, 7, OTHER, 0, set()), (0, 9, OTHER, 0, set()),
])
def test_context_invalidation_by_granularity(granularity, did, source, fm, mended):
    bench = with_other()
    bench.context(NVME, 0, 0)
    bench.context(OTHER, 0, 0)
    assert bench.invalidate_contexts(granularity, did, source, fm) == granularity
    assert {s for s in (NVME, OTHER) if isinstance(bench.ask(0x5000, source=s), RemapFault)} == mended


def test_devices_that_share_a_domain_id_share_its_translations():
    bench = Bench()
    bench.context(OTHER, 0x20_0000 | 1, 7 << 8 | 1)
    assert bench.ask(0x5000) == 0x9000
    assert bench.ask(0x5000, source=OTHER) == 0x9000, "its own table is empty"
    bench.invalidate_iotlb(1)
    assert bench.reason(0x5000, source=OTHER) == 6


def test_domain_id_bits_beyond_nd_do_not_count():
    bench = Bench(QEMU_CAP & ~7 | 2)
    bench.context(NVME, TABLE3 | 1, 0x1234 << 8 | 1)
    bench.ask(0x5000)
    assert bench.unit.cached.contexts[0].did == 0x34
    remap(bench, 5, 0)
    bench.invalidate_iotlb(2, 0xFF34)
    assert bench.reason(0x5000) == 6


def test_caching_mode_remembers_what_is_not_present():
    bench = Bench(QEMU_CAP | CM)
    assert bench.reason(0x8000) == 6
    remap(bench, 8, 0xC003)
    assert bench.reason(0x8000) == 6
    bench.invalidate_iotlb(3, 7, 0x8000)
    assert bench.ask(0x8000) == 0xC000


def test_caching_mode_tags_contexts_that_are_not_present_with_domain_0():
    bench = Bench(QEMU_CAP | CM)
    assert bench.reason(0x5000, source=OTHER) == 2
    bench.context(OTHER, TABLE3 | 1, 9 << 8 | 1)
    bench.invalidate_contexts(3, 9, OTHER)
    assert bench.reason(0x5000, source=OTHER) == 2
    bench.invalidate_contexts(3, 0, OTHER)
    assert bench.ask(0x5000, source=OTHER) == 0x9000


def test_turning_translation_off_and_on_keeps_the_caches():
    bench = Bench()
    bench.ask(0x5000)
    remap(bench, 5, 0)
    bench.write(0x18, 4, 0)
    assert bench.ask(0x5000) == 0x5000
    bench.write(0x18, 4, 1 << 31)
    assert bench.ask(0x5000) == 0x9000


def test_a_full_iotlb_drops_its_oldest_entry():
    iotlb = Iotlb(capacity=3)
    for page in range(4):
        iotlb.insert(1, page << 12, Mapping(page << 12, 4096, 3, None, None))
    assert [e.start >> 12 for e in iotlb.entries()] == [1, 2, 3]
    assert iotlb.find(1, 0) is None and iotlb.find(1, 0x3FFF) is not None and iotlb.find(2, 0x3000) is None


steps = st.lists(st.one_of(
    st.tuples(st.just("map"), st.integers(0, 7), st.sampled_from([0, 0x9001, 0xA002, 0xB003, 0xC803])),
    st.tuples(st.just("ask"), st.integers(0, 7), st.sampled_from(["read", "write"])),
    st.tuples(st.just("page"), st.integers(0, 7), st.integers(0, 3)),
    st.tuples(st.just("context"), st.integers(7, 9), st.just(0)),
    st.tuples(st.just("flush"), st.integers(1, 2), st.just(0))), max_size=40)


@given(steps, st.booleans())
def test_an_answer_was_true_at_some_moment_since_the_last_invalidation(steps, caching_mode):
    """Every answer is one that the tables gave since that page was last invalidated; after a global invalidation it is today's."""
    bench = Bench(QEMU_CAP | CM if caching_mode else QEMU_CAP, QEMU_ECAP)
    domain = 7

    def today(page: int, access: str) -> int | None:
        walk = bench.unit.walk(NVME, page << 12)
        return walk.address if (walk.read if access == "read" else walk.write) is None else None

    seen = {(page, access): {today(page, access)} for page in range(8) for access in ("read", "write")}

    def forget(pages: range) -> None:
        seen.update({(page, access): {today(page, access)} for page in pages for access in ("read", "write")})

    for verb, a, b in steps:
        if verb == "map":
            remap(bench, a, b)
            for access in ("read", "write"):
                seen[a, access].add(today(a, access))
        elif verb == "ask":
            result = bench.ask(a << 12, b)
            assert (None if isinstance(result, RemapFault) else result) in seen[a, b]
        elif verb == "page":
            bench.invalidate_iotlb(3, domain, a << 12, b)
            forget(range(a >> b << b, (a >> b) + 1 << b))
        elif verb == "context":
            bench.context(NVME, TABLE3 | 1, a << 8 | 1)
            bench.invalidate_contexts(1)
            bench.invalidate_iotlb(1)
            domain = a
            forget(range(8))
        else:
            bench.invalidate_iotlb(a, domain)
            forget(range(8))
    assert (bench.unit.root, bench.unit.walk(NVME, 0).steps[1].table) == (ROOT, CONTEXTS)
    bench.memory.close()


# --- both truths

def test_the_tables_stand_beside_the_caches_and_differ_where_these_are_stale():
    b = Bench()
    assert b.ask(0x5000) == 0x9000
    assert b.ask(0x200000) == 0x400000
    assert b.unit.tables == b.unit.cached
    b.memory.write64(TABLE1 + 8 * 5, 0xD000 | 1)
    held, true = b.unit.cached, b.unit.tables
    assert held.contexts == true.contexts
    assert [(h.start, h.mapping.base, t.mapping.base) for h, t in zip(held.mappings, true.mappings, strict=True)] == [
        (0x5000, 0x9000, 0xD000), (0x200000, 0x400000, 0x400000)]
    assert true.mappings[0].mapping.permission == 1
    assert b.unit.cached == held


def test_the_tables_of_a_domain_that_no_device_has_any_more_map_nothing():
    b = Bench()
    b.ask(0x5000)
    b.memory.write64(CONTEXTS + 16 * NVME, 0)
    (context,), (entry,) = b.unit.tables.contexts, b.unit.tables.mappings
    assert context.reason == 2
    assert (entry.mapping.base, entry.mapping.permission) == (None, 0)
    other = CONTEXTS + 16 * 0x30
    b.memory.write64(other + 8, 7 << 8 | 1)
    b.memory.write64(other, TABLE3 | 1)
    assert b.unit.tables.mappings[0].mapping.base == 0x9000


def test_a_machine_with_ideal_caches_remembers_nothing():
    from hvcore import Machine
    for ideal in (False, True):
        with Machine.load("q35-2g", ideal_caches=ideal) as m:
            assert m.boot().outcome == "up"
            assert bool(m.pc.units[0].cached.mappings) is not ideal
