"""Every verdict of a walk by a named scenario, and the unit against a second walk written from the specification alone."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vtd_bench import CONTEXTS, NOWHERE, NVME, QEMU_CAP, QEMU_ECAP, ROOT, TABLE1, TABLE2, TABLE3, Bench

from hvcore.machine.dma import DmaFabric
from hvcore.machine.memory import Memory
from hvcore.machine.vtd.walk import Found, Walk
from hvcore.spec.dma import AddressType, Direction, DmaRequest, RemapFault

NO_SUPERPAGES = QEMU_CAP & ~(0xF << 34)
FOUR_LEVELS = QEMU_CAP & ~(0x1F << 8) | 0x4 << 8
DT, PT, SC = 1 << 2, 1 << 6, 1 << 7
HIGH_BIT = 1 << 40
"""A bit above the bench's host address width of 39."""


@pytest.mark.parametrize(("iova", "access", "address"), [
    (0x5000, "read", 0x9000), (0x5FF8, "write", 0x9FF8), (0x6010, "read", 0xA010), (0x7020, "write", 0xB020),
    (0x20_0000, "read", 0x40_0000), (0x3F_FFF8, "write", 0x5F_FFF8),
    (0x4000_0000, "read", 0x8000_0000), (0x7FFF_FFF8, "write", 0xBFFF_FFF8),
])
def test_what_is_mapped_goes_through(iova, access, address):
    assert Bench().ask(iova, access) == address


@pytest.mark.parametrize(("iova", "access", "reason"), [
    (0x6000, "write", 5), (0x7000, "read", 6), (0x8000, "read", 6), (0x8000, "write", 5), (0x40_0000, "read", 6),
    (0x80_0000_0000, "read", 4), (0xFFFF_90D5_3FAD_A000, "read", 4), (0xFEE0_0000, "read", 0xE),
])
def test_what_is_not_mapped_faults(iova, access, reason):
    bench = Bench()
    assert bench.reason(iova, access) == reason
    assert bench.record()[0] == iova & ~0xFFF and bench.record()[1] >> 32 & 0xFF == reason


def test_each_bus_has_its_root_entry_and_each_function_its_context():
    bench, other = Bench(), 0x20_0000
    bench.memory.write64(ROOT + 16 * 0x83, other | 1)
    bench.context(0x83FF, TABLE3 | 1, 3 << 8 | 1, other)
    assert bench.ask(0x5000, source=0x83FF) == 0x9000
    assert bench.reason(0x5000, source=0x83FE) == 2 and bench.reason(0x5000, source=0x82FF) == 1
    walk = bench.unit.walk(0x83FF, 0x5000)
    assert [(s.table, s.index, s.address) for s in walk.steps[:2]] == [(ROOT, 0x83, ROOT + 0x830), (other, 0xFF, other + 0xFF0)]


def test_1_root_not_present():
    bench = Bench()
    assert bench.reason(0x5000, source=0x0100) == 1
    bench.memory.write64(ROOT, CONTEXTS)
    assert bench.reason(0x5000) == 1


def test_2_context_not_present():
    bench = Bench()
    assert bench.reason(0x5000, source=0x18) == 2


@pytest.mark.parametrize(("low", "high"), [
    (TABLE3 | 1, 7 << 8 | 2), (TABLE3 | 1, 7 << 8), (TABLE3 | 1, 7 << 8 | 5), (TABLE3 | 1 | 1 << 2, 7 << 8 | 1),
    (TABLE3 | 1 | 3 << 2, 7 << 8 | 1), (NOWHERE | 1, 7 << 8 | 1),
], ids=["4 levels", "2 levels", "reserved AW", "ATS without ECAP.DT", "reserved TT", "top table unreachable"])
def test_3_context_invalid(low, high):
    bench = Bench()
    bench.context(NVME, low, high)
    assert bench.reason(0x5000) == 3 and bench.reason(0x5000, "write") == 3


def test_3_pass_through_without_the_capability():
    bench = Bench(ecap=QEMU_ECAP & ~PT)
    bench.context(NVME, 1 | 2 << 2, 1)
    assert bench.reason(0x5000) == 3


def test_4_is_the_smaller_of_mgaw_and_aw():
    bench = Bench(QEMU_CAP & ~(0x1F << 8) | 0x6 << 8)
    bench.context(NVME, TABLE3 | 1, 2)
    assert bench.reason(1 << 39) == 4, "MGAW 39 under a context of 48 bits"
    assert bench.reason((1 << 39) - 4096) == 6
    bench = Bench(QEMU_CAP & ~(0x3F << 16) | 47 << 16)
    assert bench.reason(1 << 39) == 4, "39 bits under an MGAW of 48"


def test_7_table_below_the_top_unreachable():
    bench = Bench()
    bench.memory.write64(TABLE3, NOWHERE | 3)
    assert bench.reason(0x5000) == 7
    bench = Bench()
    bench.memory.write64(TABLE2, NOWHERE | 3)
    assert bench.reason(0x5000, "write") == 7


def test_8_root_table_unreachable():
    bench = Bench(on=False)
    bench.enable(NOWHERE)
    assert bench.reason(0x5000) == 8


def test_8_a_root_table_that_is_not_in_legacy_mode():
    bench = Bench(ecap=QEMU_ECAP | 1 << 24, on=False)
    bench.enable(ROOT | 1 << 11)
    assert bench.reason(0x5000) == 8 and "legacy" in bench.unit.notes[0].text


def test_9_context_table_unreachable():
    bench = Bench()
    bench.memory.write64(ROOT, NOWHERE | 1)
    assert bench.reason(0x5000) == 9


@pytest.mark.parametrize(("word", "bits"), [(0, 1 << 1), (0, 1 << 11), (0, HIGH_BIT), (0, 1 << 63), (8, 1), (8, 1 << 63)])
def test_a_reserved_bit_in_the_root_entry(word, bits):
    bench = Bench()
    bench.memory.write64(ROOT + word, bench.memory.read64(ROOT + word) | bits)
    assert bench.reason(0x5000) == 0xA
    assert bench.unit.walk(NVME, 0x5000).steps[0].reserved == bits << 8 * word


@pytest.mark.parametrize(("word", "bits"), [(0, 1 << 4), (0, 1 << 11), (0, HIGH_BIT), (0, 1 << 63), (8, 1 << 7), (8, 1 << 24)])
def test_b_reserved_bit_in_the_context_entry(word, bits):
    bench = Bench()
    entry = CONTEXTS + 16 * NVME + word
    bench.memory.write64(entry, bench.memory.read64(entry) | bits)
    assert bench.reason(0x5000) == 0xB
    assert bench.unit.walk(NVME, 0x5000).steps[1].reserved == bits << 8 * word


def test_bits_of_a_context_entry_left_to_software_are_ignored():
    bench = Bench()
    bench.context(NVME, TABLE3 | 1, 7 << 8 | 0xF << 3 | 1)
    assert bench.ask(0x5000) == 0x9000


@pytest.mark.parametrize(("entry", "iova", "bits"), [
    (TABLE1 + 40, 0x5000, 1 << 11), (TABLE1 + 40, 0x5000, HIGH_BIT), (TABLE1 + 40, 0x5000, 1 << 62), (TABLE2, 0x5000, 1 << 11),
    (TABLE2, 0x5000, 1 << 62), (TABLE3, 0x5000, HIGH_BIT), (TABLE2 + 8, 0x20_0000, 1 << 12), (TABLE2 + 8, 0x20_0000, 1 << 20),
    (TABLE3 + 8, 0x4000_0000, 1 << 29), (TABLE3 + 8, 0x4000_0000, 1 << 11),
])
def test_c_reserved_bit_in_a_paging_entry(entry, iova, bits):
    bench = Bench()
    bench.memory.write64(entry, bench.memory.read64(entry) | bits)
    assert bench.reason(iova) == 0xC and bench.reason(iova, "write") == 0xC
    assert bench.unit.walk(NVME, iova).steps[-1].reserved == bits


def test_c_superpages_without_the_capability():
    bench = Bench(NO_SUPERPAGES)
    assert bench.reason(0x20_0000) == 0xC and bench.reason(0x4000_0000) == 0xC
    assert bench.ask(0x5000) == 0x9000


def test_c_superpage_bit_at_level_4():
    bench = Bench(FOUR_LEVELS)
    bench.context(NVME, 0x20_0001, 7 << 8 | 2)
    bench.memory.write64(0x20_0000, TABLE3 | 0x83)
    assert bench.reason(0x5000) == 0xC
    bench.memory.write64(0x20_0000, TABLE3 | 3)
    assert bench.ask(0x5000) == 0x9000


@pytest.mark.parametrize("bits", [1 << 2, 0xF << 3, 1 << 7, 1 << 8, 1 << 9, 1 << 10, 0x3FF << 52, 1 << 63])
def test_ignored_bits_of_a_4k_leaf(bits):
    bench = Bench()
    bench.memory.write64(TABLE1 + 40, 0x9003 | bits)
    assert bench.ask(0x5008) == 0x9008


def test_snoop_and_transient_bits_with_the_capabilities():
    bench = Bench(ecap=QEMU_ECAP | SC | DT)
    bench.memory.write64(TABLE1 + 40, 0x9003 | 1 << 11 | 1 << 62)
    assert bench.ask(0x5000) == 0x9000


def test_an_absent_entry_is_never_checked_for_reserved_bits():
    bench = Bench()
    bench.memory.write64(TABLE1 + 40, (1 << 64) - 4)
    assert (bench.reason(0x5000), bench.reason(0x5000, "write")) == (6, 5)


def test_reserved_bits_come_before_permission_of_the_same_entry_and_after_that_of_the_upper():
    bench = Bench()
    bench.memory.write64(TABLE1 + 40, 0x9002 | 1 << 11)
    assert bench.reason(0x5000, "read") == 0xC
    bench.memory.write64(TABLE2, TABLE1 | 2)
    assert (bench.reason(0x5000, "read"), bench.reason(0x5000, "write")) == (6, 0xC)


def test_permissions_are_anded_over_the_levels():
    bench = Bench()
    bench.memory.write64(TABLE3, TABLE2 | 1)
    assert bench.ask(0x5000) == 0x9000 and bench.reason(0x5000, "write") == 5
    bench.memory.write64(TABLE2, TABLE1 | 2)
    bench.invalidate_iotlb(1)
    walk = bench.unit.walk(NVME, 0x5000)
    assert (walk.permission, walk.address, walk.read, walk.write) == (0, None, 6, 5)


def test_pass_through_ignores_the_table_but_not_the_width():
    bench = Bench()
    bench.context(NVME, NOWHERE | 1 | 2 << 2, 1)
    assert bench.ask(0x12_3456, "write") == 0x12_3456
    assert bench.reason(1 << 39) == 4


def test_ats_contexts_translate_with_the_capability():
    bench = Bench(ecap=QEMU_ECAP | DT)
    bench.context(NVME, TABLE3 | 1 | 1 << 2, 7 << 8 | 1)
    assert bench.ask(0x5000) == 0x9000


def ask_as(bench, address_type, iova=0x5000, access="read"):
    return bench.unit.remap(DmaRequest(NVME, iova, 4, Direction(access), address_type=address_type))


@pytest.mark.parametrize("tt", [0, 2])
@pytest.mark.parametrize("address_type", [AddressType.TRANSLATION, AddressType.TRANSLATED])
@pytest.mark.parametrize("iova", [0x5000, 0x8000, 1 << 50, 0xFEE0_0000])
def test_d_requests_of_ats_without_a_context_that_allows_them(tt, address_type, iova):
    bench = Bench(QEMU_CAP, QEMU_ECAP | 1 << 2 | 1 << 6)
    bench.context(NVME, TABLE3 | 1 | tt << 2, 7 << 8 | 1)
    result = ask_as(bench, address_type, iova, "write")
    assert isinstance(result, RemapFault) and result.reason == 0xD and result.recorded
    assert bench.record() == (iova, 1 << 63 | address_type << 60 | 0xD << 32 | NVME)


def test_d_comes_after_what_is_wrong_with_the_context():
    bench = Bench()
    for low, high, reason in ((0, 0, 2), (TABLE3 | 1 | 1 << 4, 1, 0xB), (TABLE3 | 1, 5, 3), (TABLE3 | 1, 1, 0xD)):
        bench.context(NVME, low, high)
        bench.invalidate_contexts(1)
        result = ask_as(bench, AddressType.TRANSLATED)
        assert isinstance(result, RemapFault) and result.reason == reason


def test_ats_allowed_trusts_the_device():
    bench = Bench(QEMU_CAP, QEMU_ECAP | 1 << 2)
    bench.context(NVME, TABLE3 | 1 | 1 << 2, 7 << 8 | 1)
    assert ask_as(bench, AddressType.TRANSLATION) == 0x9000
    assert ask_as(bench, AddressType.TRANSLATED) == 0x5000, "whatever the tables say"
    refused = [ask_as(bench, AddressType.TRANSLATION, 0x8000), ask_as(bench, AddressType.TRANSLATED, 0xFEE0_0000, "write")]
    assert [r.reason for r in refused if isinstance(r, RemapFault)] == [6, 0xE]


def test_a_translation_request_moves_no_data():
    bench = Bench(QEMU_CAP, QEMU_ECAP | 1 << 2)
    bench.context(NVME, TABLE3 | 1 | 1 << 2, 7 << 8 | 1)
    bench.memory.write(0x9000, b"secret!!")
    fabric = DmaFabric(bench.memory, lambda segment, source: bench.unit)
    request = DmaRequest(NVME, 0x5000, 8, Direction.READ, address_type=AddressType.TRANSLATION)
    assert (fabric.issue(request).data, fabric.issue(request).landing) == (b"", 0x9000)


def test_interrupt_range_as_input():
    bench = Bench()
    bench.memory.write64(TABLE3 + 24, 0x83 | 0xC000_0000)
    assert bench.ask(0xFEE0_0000, "write", length=4) == 0xFEE0_0000, "an interrupt message is never translated"
    assert bench.reason(0xFEE0_0000, "write", length=8) == 0xE
    assert bench.reason(0xFEE0_0002, "write", length=4) == 0xE
    assert bench.reason(0xFEEF_F000, "read") == 0xE
    assert bench.ask(0xFEF0_0000) == 0xFEF0_0000 and bench.ask(0xFEDF_F000) == 0xFEDF_F000


def test_interrupt_range_as_output():
    bench = Bench()
    bench.memory.write64(TABLE1 + 40, 0xFEE0_0003)
    assert bench.reason(0x5000, "write", length=4) == 0xE
    walk = bench.unit.walk(NVME, 0x5000)
    assert (walk.address, walk.read, walk.write) == (None, 0xE, 0xE)


def test_zero_length_reads_of_write_only_pages():
    bench = Bench(QEMU_CAP | 1 << 22)
    assert bench.ask(0x7000, "read", length=0) == 0xB000 and bench.ask(0x7000, "read", length=0) == 0xB000
    assert bench.reason(0x8000, "read", length=0) == 6 and bench.reason(0x7000, "read", length=1) == 6
    assert Bench().reason(0x7000, "read", length=0) == 6, "the measured unit has no CAP.ZLR"


@pytest.mark.parametrize("spoil", [
    lambda b: b.context(NVME, 2, 0),
    lambda b: b.context(NVME, TABLE3 | 3, 7 << 8 | 2),
    lambda b: b.context(NVME, TABLE3 | 3 | 1 << 5, 7 << 8 | 1),
    lambda b: b.memory.write64(TABLE2, NOWHERE | 3),
    lambda b: b.memory.write64(TABLE1 + 40, 0x9803),
    lambda b: b.memory.write64(TABLE1 + 40, 0xFEE0_0003),
    lambda b: b.memory.write64(TABLE1 + 40, 0),
], ids=["2", "3", "B", "7", "C", "E", "6"])
def test_fpd_silences_the_faults_of_a_context(spoil):
    bench = Bench()
    bench.context(NVME, TABLE3 | 3, 7 << 8 | 1)
    spoil(bench)
    fault = bench.ask(0x5000)
    assert isinstance(fault, RemapFault) and not fault.recorded
    assert bench.read(0x34, 4) == 0 and bench.record() == (0, 0)


def test_fpd_does_not_silence_faults_above_the_context():
    bench = Bench()
    bench.context(NVME, TABLE3 | 3, 7 << 8 | 1)
    bench.memory.write64(ROOT, CONTEXTS | 3)
    assert bench.ask(0x5000).recorded


def test_a_walk_is_evidence():
    bench = Bench()
    walk = bench.unit.walk(NVME, 0x5123)
    assert [(s.kind, s.level, s.table, s.index, s.address, s.entry, s.high, s.found) for s in walk.steps] == [
        ("root", None, ROOT, 0, ROOT, CONTEXTS | 1, 0, Found.TABLE),
        ("context", None, CONTEXTS, 16, CONTEXTS + 256, TABLE3 | 1, 0x701, Found.TABLE),
        ("page", 3, TABLE3, 0, TABLE3, TABLE2 | 3, None, Found.TABLE),
        ("page", 2, TABLE2, 0, TABLE2, TABLE1 | 3, None, Found.TABLE),
        ("page", 1, TABLE1, 5, TABLE1 + 40, 0x9003, None, Found.LEAF)]
    assert (walk.address, walk.size, walk.permission, walk.read, walk.write) == (0x9123, 4096, 3, None, None)
    assert (walk.context.did, walk.context.levels, walk.context.bits, walk.context.root) == (7, 3, 39, TABLE3)
    large = bench.unit.walk(NVME, 0x3F_0000)
    assert (large.address, large.size, large.steps[-1].level) == (0x5F_0000, 2 << 20, 2)


def test_a_walk_ends_where_it_is_refused():
    bench = Bench()
    assert [s.found for s in bench.unit.walk(0x18, 0).steps] == [Found.TABLE, Found.ABSENT]
    refused = bench.unit.walk(NVME, 0x8000)
    assert (refused.refusal(Direction.READ), refused.refusal(Direction.WRITE)) == (6, 5)
    bench.memory.write64(TABLE3, NOWHERE | 3)
    last = bench.unit.walk(NVME, 0x5000).steps[-1]
    assert (last.found, last.entry, last.address) == (Found.UNREADABLE, None, NOWHERE)


def test_looking_changes_nothing():
    bench = Bench()
    before, memory = bytes(bench.unit.file.bytes), bench.memory.read(0, 4 << 20)
    bench.unit.walk(NVME, 0x5000)
    bench.unit.walk(0x4444, 1 << 50)
    bench.unit.peek(0x220, 8)
    assert bytes(bench.unit.file.bytes) == before and bench.memory.read(0, 4 << 20) == memory
    assert bench.unit.cached.contexts == () == bench.unit.cached.mappings


# A second walk, from the specification's tables, with nothing of hvcore but memory.

def word(memory: Memory, address: int) -> int | None:
    if not memory.backed(address, 8):
        return None
    return int.from_bytes(bytes(memory.u8(address, 8)), "little")


def second_walk(memory: Memory, cap: int, ecap: int, haw: int, source: int, iova: int, write: bool) -> tuple[str, int]:
    """("address", a) or ("fault", reason) of an 8-byte request."""
    above = (1 << 64) - (1 << haw)
    low, high = word(memory, ROOT + (source >> 8) * 16), word(memory, ROOT + (source >> 8) * 16 + 8)
    if low is None or high is None:
        return "fault", 8
    if low & 1 == 0:
        return "fault", 1
    if low & 0xFFE or low & above or high:
        return "fault", 0xA
    at = (low >> 12 << 12) + (source & 255) * 16
    low, high = word(memory, at), word(memory, at + 8)
    if low is None or high is None:
        return "fault", 9
    if low & 1 == 0:
        return "fault", 2
    if low & 0xFF0 or low & above or high & 0x80 or high >> 24:
        return "fault", 0xB
    aw, tt = high & 7, low >> 2 & 3
    if not (cap >> 8 & 0x1F) >> aw & 1:
        return "fault", 3
    if tt == 3 or (tt == 1 and not ecap & 4) or (tt == 2 and not ecap & 64):
        return "fault", 3
    width = min((cap >> 16 & 63) + 1, (30, 39, 48, 57, 64)[aw])
    if iova >= 1 << width:
        return "fault", 4
    if 0xFEE00000 <= iova <= 0xFEEFFFFF:
        return "fault", 0xE
    if tt == 2:
        return "address", iova
    table, top, denied = low >> 12 << 12, aw + 2, 5 if write else 6
    for level in range(top, 0, -1):
        shift = {1: 12, 2: 21, 3: 30, 4: 39, 5: 48, 6: 57}[level]
        entry = word(memory, table + (iova >> shift) % 512 * 8)
        if entry is None:
            return "fault", 3 if level == top else 7
        if entry & 3 == 0:
            return "fault", denied
        page = level == 1 or (entry >> 7 & 1 and level in (2, 3) and cap >> 32 + level & 1)
        bad = above & 0x000F_FFFF_FFFF_F000
        bad |= 1 << 11 if not page or not ecap & 128 else 0
        bad |= 1 << 62 if not page or not ecap & 4 else 0
        bad |= 1 << 7 if not page else 0
        bad |= (1 << shift) - (1 << 12) if page else 0
        if entry & bad:
            return "fault", 0xC
        if not entry & (2 if write else 1):
            return "fault", denied
        table = entry & 0x000F_FFFF_FFFF_F000
        if page:
            address = table + iova % (1 << shift)
            return ("fault", 0xE) if 0xFEE00000 <= address <= 0xFEEFFFFF else ("address", address)
    raise AssertionError("a walk ends at level 1 at the latest")


POOL = [0x20_0000 + 0x1000 * i for i in range(4)]
SPOILABLE = ["root low", "root high", "context low", "context high", *POOL]


@st.composite
def scenes(draw):
    """A unit, tables that hold together, at most two bits of them flipped, and one request."""
    aw, mgaw = draw(st.integers(0, 4)), draw(st.sampled_from([36, 39, 48, 57]))
    cap = QEMU_CAP & ~(0xF << 34 | 0x1F << 8 | 0x3F << 16) | draw(st.integers(0, 3)) << 34 | 1 << 8 + aw | mgaw - 1 << 16
    ecap = QEMU_ECAP & ~(DT | PT | SC) | draw(st.sampled_from([0, DT, PT, SC, DT | PT | SC]))
    width = draw(st.sampled_from([min(mgaw, 30 + 9 * aw)] * 7 + [40]))
    iova = draw(st.one_of(*[st.integers(0, (1 << width) - 1)] * 7, st.just(0xFEE0_0000))) & ~7
    words = {"root low": CONTEXTS | 1, "root high": 0, "context high": 7 << 8 | aw,
             "context low": POOL[0] | draw(st.sampled_from([1, 1, 1, 1, 1, 5, 9])) | draw(st.sampled_from([0, 2]))}
    tables = {}
    for page in POOL:
        leaf = draw(st.sampled_from([0, 0, 0x80]))
        target = draw(st.sampled_from([0x4000_0000, 0x8000_0000, 0xFEE0_0000] if leaf else POOL * 3 + [0xFEE0_0000]))
        tables[page] = target | leaf | draw(st.sampled_from([0, 1, 2, *[3] * 12]))
    for where, flipped in draw(st.lists(st.tuples(st.sampled_from(SPOILABLE), st.integers(0, 63)), max_size=2)):
        (words if isinstance(where, str) else tables)[where] ^= 1 << flipped
    return cap, ecap, iova, words, tables, draw(st.sampled_from(["read", "write"]))


@settings(max_examples=700)
@given(scenes())
def test_translation_equals_a_second_walk(scene):
    cap, ecap, iova, words, tables, access = scene
    bench = Bench(cap, ecap)
    for page, entry in tables.items():
        for shift in (12, 21, 30, 39, 48, 57):
            bench.memory.write64(page + 8 * (iova >> shift & 511), entry)
    bench.memory.write64(ROOT, words["root low"])
    bench.memory.write64(ROOT + 8, words["root high"])
    bench.context(NVME, words["context low"], words["context high"])
    kind, value = second_walk(bench.memory, cap, ecap, 39, NVME, iova, access == "write")
    for _ in range(2):
        result = bench.ask(iova, access)
        assert (("fault", result.reason) if isinstance(result, RemapFault) else ("address", result)) == (kind, value)
    walk = bench.unit.walk(NVME, iova)
    assert walk.refusal(Direction(access)) == (value if kind == "fault" else None)
    assert kind == "fault" or walk.address == value
    bench.memory.close()


@pytest.mark.parametrize("seed", range(6))
def test_noise_for_tables_never_raises(seed):
    rng, chance = np.random.default_rng(seed), random.Random(seed)
    bench = Bench(QEMU_CAP & ~(0x1F << 8) | 0xE << 8, QEMU_ECAP | DT | SC, ideal_caches=seed % 2 == 0)
    words = bench.memory.u64(0, 512 * 512)
    words[:] = rng.integers(0, 1 << 64, len(words), np.uint64)
    if seed >= 2:
        words[:] &= np.uint64(0x1F_F083 if seed % 2 else 0x1F_F003)
        bench.memory.u64(ROOT, 512)[1::2] = 0
        bench.memory.u64(ROOT, 512)[0::2] = CONTEXTS | 1
        bench.memory.u64(CONTEXTS, 512)[0::2] &= np.uint64(0x1F_F003)
        bench.memory.u64(CONTEXTS, 512)[1::2] &= np.uint64(0x3)
    content = bench.memory.read(0, 2 << 20)
    for _ in range(400):
        source, iova = chance.randrange(1 << 16), chance.getrandbits(chance.choice((20, 32, 39, 48, 64)))
        result = bench.ask(iova, chance.choice(("read", "write")), source, chance.choice((0, 1, 4, 64)))
        assert isinstance(result, int) or 1 <= result.reason <= 0xE
        assert isinstance(bench.unit.walk(source, iova), Walk)
    assert bench.memory.read(0, 2 << 20) == content


def test_tables_that_point_to_themselves_end():
    bench = Bench()
    bench.memory.write64(TABLE3, TABLE3 | 3)
    assert bench.ask(0x10) == TABLE3 + 0x10
