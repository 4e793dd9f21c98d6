"""Translation of many requests at once: the same answers as one at a time, and no effect."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vtd_bench import NOWHERE, NVME, QEMU_CAP, QEMU_ECAP, TABLE1, TABLE2, TABLE3, Bench

from hvcore.errors import BadRequest
from hvcore.machine.vtd.batch import How, Translations
from hvcore.spec.dma import Direction, DmaRequest, RemapFault
from hvcore.spec.vtd import CAP, ECAP, PROTECTED

PLMR, ZLR = CAP["PLMR"].mask, CAP["ZLR"].mask
PMEN, PLMBASE, PLMLIMIT = 0x64, 0x68, 0x6C
Asked = tuple[int, int, str, int]
"""A request: source, IOVA, access, length."""


def one_at_a_time(bench: Bench, requests: list[Asked]) -> list[tuple[int | None, int]]:
    """Address and reason of each request by `remap`, every one with the caches as they are before the first."""
    unit = bench.unit
    contexts, sizes = dict(unit._contexts.entries), [dict(entries) for entries in unit._iotlb._sizes]
    answers: list[tuple[int | None, int]] = []
    for source, iova, access, length in requests:
        result = unit.remap(DmaRequest(source, iova, length, Direction(access)))
        answers.append((None, result.reason) if isinstance(result, RemapFault) else (result, 0))
        unit._contexts.entries = dict(contexts)
        unit._iotlb._sizes = tuple(dict(entries) for entries in sizes)
    return answers


def batch(bench: Bench, requests: list[Asked]) -> Translations:
    source, iova, access, length = zip(*requests, strict=True)
    return bench.unit.translate(np.array(source, np.uint16), np.array(iova, np.uint64), list(access), np.array(length))


def answers(result: Translations) -> list[tuple[int | None, int]]:
    rows = zip(result.address.tolist(), result.reason.tolist(), result.ok.tolist(), strict=True)
    return [(address if ok else None, reason) for address, reason, ok in rows]


# --- noise: units, tables and requests of every kind

POOL = [0x10_0000 + 0x1000 * i for i in range(10)]
SOURCES = (0x0000, 0x0010, 0x0011, 0x00FB, 0x0108, 0x0200)
INDEXES = (0, 1, 2, 3, 503, 511)
FEE = (0xFEE0_0000, 0xFEE0_0004, 0xFEE0_0002, 0xFEE0_1000, 0xFEEF_FFFC, 0xFEDF_F000, 0xFEF0_0000)


def any_capabilities(r: Random) -> tuple[int, int, int]:
    width = r.choice((30, 39, 39, 48, 48, 57))
    cap = CAP.make(MGAW=width - 1, SAGAW=r.choice((0b10, 0b100, 0b110, 0b110, 0b110, 0b110, 0b1111)), SLLPS=r.choice((0, 1, 3, 3)),
                   ND=r.choice((0, 2, 6)), FRO=0x22, CM=r.random() < 0.3, ZLR=r.random() < 0.7, PLMR=1, PSI=1, MAMV=18)
    ecap = ECAP.make(IRO=0xF, QI=1, PT=r.random() < 0.8, SC=r.random() < 0.5, DT=r.random() < 0.5)
    return cap, ecap, r.choice((39, 39, 46, 52))


def any_entry(r: Random) -> int:
    kind = r.random()
    if kind < 0.06:
        return r.choice((0, 0xFFFF_FFFF_FFFF_FFFC, 1 << 11, 0x1000))
    if kind < 0.12:
        return 0x83 | r.choice((0, 0x4000_0000, 0x20_0000, 0xC000_0000, 0xFEE0_0000))
    target = r.choice(POOL) if kind < 0.9 else r.choice((0x4000_0000, 0x20_0000, 0xC000_0000, 0xFEE0_0000, NOWHERE))
    word = r.choice((1, 2, 3, 3, 3, 3, 3)) | target | (0x80 if r.random() < 0.12 else 0)
    return word | (1 << r.choice((2, 5, 8, 10, 11, 12, 20, 38, 45, 51, 52, 61, 62, 63)) if r.random() < 0.08 else 0)


def any_context(r: Random) -> tuple[int, int]:
    low = r.choice((*POOL[2:], *POOL[2:], NOWHERE)) | (r.random() < 0.95) | (r.random() < 0.2) << 1
    low |= r.choice((0, 0, 0, 0, 0, 0, 0, 1, 2, 2, 3)) << 2 | (1 << r.choice((4, 11, 39, 60)) if r.random() < 0.05 else 0)
    spoilt = 1 << r.choice((7, 24)) if r.random() < 0.05 else 0
    return low, r.choice((*(1, 2) * 8, 0, 3, 5)) | r.choice((0, 1, 1, 17, 0x101)) << 8 | spoilt


def poke(r: Random, bench: Bench, times: int) -> None:
    """Writes entries anywhere into the tables; the contexts of two buses lie in pool pages that are tables, too."""
    for _ in range(times):
        bench.memory.write64(r.choice(POOL[2:]) + 8 * r.choice(INDEXES), any_entry(r))


def any_bench(r: Random) -> Bench:
    cap, ecap, haw = any_capabilities(r)
    bench = Bench(cap, ecap, haw, ideal_caches=r.random() < 0.2, on=False)
    bench.memory.u64(POOL[0], 512 * len(POOL))[:] = 0
    poke(r, bench, r.choice((20, 60, 200)))
    for bus, table in enumerate((POOL[0], POOL[1], POOL[0] | (1 << 45 if r.random() < 0.2 else 0))):
        bench.memory.write64(0x8000 + 16 * bus, table | (r.random() < 0.95))
    for source in SOURCES:
        low, high = any_context(r)
        bench.context(source, low, high, POOL[source >> 8 & 1])
    if r.random() < 0.3:
        bench.write(PLMBASE, 4, 0)
        bench.write(PLMLIMIT, 4, r.choice((0x1F_FFFF, 0x3FFF_FFFF)))
        bench.write(PMEN, 4, 1 << 31)
    if r.random() < 0.93:
        bench.enable(NOWHERE if r.random() < 0.03 else 0x8000)
    return bench


def any_iova(r: Random, near: bool) -> int:
    if r.random() < 0.1:
        return r.choice(FEE)
    page = r.choice(INDEXES) << 12 | r.choice(INDEXES[:3]) << 21
    if not near:
        page |= r.choice(INDEXES) << 30 | r.choice((0, 0, 0, 1, 511)) << 39 | r.choice((0, 0, 0, 0, 1, 511)) << 48
        page = page if r.random() < 0.97 else 0xFFFF_FFFF_FFFF_F000
    return page | r.choice((0, 8, 0xABC, 0xFFF))


def any_requests(r: Random) -> list[Asked]:
    near = r.random() < 0.5
    asked = [(r.choice(SOURCES), any_iova(r, near), r.choice(("read", "write"))) for _ in range(r.randrange(1, 60))]
    return [(*request, r.choice((0, 1, 1, min(4, 4096 - request[1] % 4096)))) for request in asked]


def any_scene(r: Random) -> Bench:
    """A unit that may have remembered something, and tables that may have changed since."""
    bench = any_bench(r)
    for _ in range(r.choice((0, 0, 10, 60))):
        bench.ask(any_iova(r, r.random() < 0.5), r.choice(("read", "write")), r.choice(SOURCES), 1)
    poke(r, bench, r.choice((0, 10, 100)))
    for source in r.sample(SOURCES, r.choice((0, 0, 2))):
        bench.context(source, *any_context(r), POOL[source >> 8 & 1])
    if r.random() < 0.3:
        bench.invalidate_contexts(1)
    return bench


@settings(max_examples=300)
@given(st.integers(0, 1 << 48))
def test_the_same_answers_as_one_at_a_time(seed):
    r = Random(seed)
    bench = any_scene(r)
    requests = any_requests(r)
    assert answers(batch(bench, requests)) == one_at_a_time(bench, requests)


@settings(max_examples=50)
@given(st.integers(0, 1 << 48))
def test_nothing_comes_of_it(seed):
    r = Random(seed)
    bench = any_scene(r)
    before = bytes(bench.unit.file.bytes), bench.unit.cached, bench.memory.read(0, 0x11_0000), len(bench.unit.notes)
    batch(bench, any_requests(r))
    assert (bytes(bench.unit.file.bytes), bench.unit.cached, bench.memory.read(0, 0x11_0000), len(bench.unit.notes)) == before


@settings(max_examples=100)
@given(st.integers(0, 1 << 48))
def test_page_sizes_and_how(seed):
    """Of fresh requests, against the evidence of a single walk."""
    r = Random(seed)
    bench = any_bench(r)
    requests = any_requests(r)
    result = batch(bench, requests)
    for (source, iova, access, length), how, size in zip(requests, result.how.tolist(), result.page_size.tolist(), strict=True):
        walk = bench.unit.walk(source, iova)
        if how == How.TRANSLATED and length:
            assert walk.size == size and walk.refusal(Direction(access)) is None
        elif how == How.PASS_THROUGH:
            assert walk.context.tt == 2 and size == 4096
        elif how == How.INTERRUPT_RANGE:
            assert (access, length, iova % 4, iova >> 20) == ("write", 4, 0, 0xFEE)


# --- scenes by name

def test_every_way_in_one_batch():
    bench = Bench(QEMU_CAP, QEMU_ECAP | 1 << 6)
    bench.context(0x0018, NOWHERE | 1 | 2 << 2, 1)
    result = bench.unit.translate([NVME] * 6 + [0x0018, 0x0020], [0x5008, 0x6000, 0x8000, 0x20_1234, 0x4000_0000, 0xFEE0_0000, 0x123, 0],
                                  [False, True, False, True, True, True, False, False], [8, 8, 8, 8, 8, 4, 8, 8])
    assert result.address.tolist() == [0x9008, 0, 0, 0x40_1234, 0x8000_0000, 0xFEE0_0000, 0x123, 0]
    assert result.reason.tolist() == [0, 5, 6, 0, 0, 0, 0, 2]
    assert result.page_size.tolist() == [4096, 4096, 4096, 2 << 20, 1 << 30, 4096, 4096, 4096]
    assert [How(how).text for how in result.how.tolist()] == ["translated", "blocked", "blocked", "translated", "translated",
                                                              "interrupt-range", "pass-through", "blocked"]
    assert result.ok.tolist() == [True, False, False, True, True, True, True, False]
    assert repr(result) == ("Translations: 8 requests: 3 blocked, 3 translated, 1 pass-through, 1 interrupt-range (1 for reason 0x2 "
                            "CONTEXT_NOT_PRESENT; 1 for reason 0x5 WRITE_DENIED; 1 for reason 0x6 READ_DENIED)")


def test_the_frame_has_nothing_where_nothing_is():
    frame = Bench().unit.translate(NVME, [0x5008, 0x8000], "read").frame
    assert frame.iloc[0].tolist()[:6] == ["00:02.0", 0x5008, "read", "translated", 0x9008, 4096]
    assert frame["address"].isna().tolist() == frame["page_size"].isna().tolist() == [False, True]
    assert frame["reason"].isna().tolist() == [True, False] and frame["reason"][1] == 6


def test_what_is_remembered_answers_before_what_the_tables_say():
    bench = Bench()
    assert bench.ask(0x5000) == 0x9000 and bench.ask(0x20_0000) == 0x40_0000 and bench.ask(0x4000_0000) == 0x8000_0000
    bench.memory.write64(TABLE1 + 40, 0xD003)
    bench.memory.write64(TABLE2 + 8, 0)
    bench.memory.write64(TABLE3 + 8, 0)
    iovas = [0x5008, 0x20_0008, 0x4000_0008]
    assert bench.unit.translate(NVME, iovas, "read").address.tolist() == [0x9008, 0x40_0008, 0x8000_0008]
    bench.invalidate_iotlb(1)
    assert bench.unit.translate(NVME, iovas, "read").reason.tolist() == [0, 6, 6]
    assert bench.unit.translate(NVME, 0x5008, "read").address == 0xD008


def test_the_smallest_remembered_page_answers():
    bench = Bench()
    bench.memory.write64(TABLE2 + 8, TABLE1 | 3)
    assert bench.ask(0x20_5000) == 0x9000
    bench.memory.write64(TABLE2 + 8, 0x40_0083)
    assert bench.ask(0x20_8000) == 0x40_8000 and len(bench.unit.cached.mappings) == 2
    result = bench.unit.translate(NVME, [0x20_5008, 0x20_6008], "read")
    assert result.address.tolist() == [0x9008, 0x40_6008] and result.page_size.tolist() == [4096, 2 << 20]


def test_a_remembered_context_answers():
    bench = Bench()
    assert bench.ask(0x5000) == 0x9000
    bench.context(NVME, 0, 0)
    assert bench.unit.translate(NVME, [0x5000, 0x6000], "read").address.tolist() == [0x9000, 0xA000]
    bench.invalidate_contexts(1)
    assert bench.unit.translate(NVME, [0x5000, 0x6000], "read").reason.tolist() == [2, 2]


def test_translation_off_and_protected_memory():
    bench = Bench(QEMU_CAP | PLMR, on=False)
    bench.write(PLMBASE, 4, 0x20_0000)
    bench.write(PLMLIMIT, 4, 0x20_0000)
    bench.write(PMEN, 4, 1 << 31)
    result = bench.unit.translate(NVME, [0x1F_FFFF, 0x20_0000, 0x3F_FFFF, 0x40_0000, (1 << 64) - 1], "write")
    assert [How(how).text for how in result.how.tolist()] == ["off", "protected", "protected", "off", "off"]
    assert result.reason.tolist() == [PROTECTED] * 5 and result.ok.tolist() == [True, False, False, True, True]


def test_zero_length_reads_of_write_only_pages():
    bench = Bench(QEMU_CAP | ZLR)
    bench.memory.write64(TABLE1 + 64, 0xFEE0_0002)
    iovas = [0x5000, 0x6000, 0x7000, 0x8000, 0x9000]
    for repeat in (False, True):
        result = bench.unit.translate(NVME, iovas, "read", 0)
        assert (result.address.tolist(), result.reason.tolist()) == ([0x9000, 0xA000, 0xB000, 0, 0], [0, 0, 0, 0xE, 6]), repeat
        assert [bench.reason(iova, length=0) for iova in iovas[3:]] == [0xE, 6] and bench.ask(0x7000, length=0) == 0xB000
    assert bench.unit.translate(NVME, iovas, "read", 1).reason.tolist() == [0, 0, 6, 6, 6]
    assert Bench().unit.translate(NVME, 0x7000, "read", 0).reason == 6, "the measured unit has no CAP.ZLR"


def test_broadcasting():
    unit = Bench().unit
    result = unit.translate(np.array([[NVME], [0x0018]], np.uint16), np.array([0x5000, 0x6000, 0x7000]), Direction.READ)
    assert result.address.tolist() == [[0x9000, 0xA000, 0], [0, 0, 0]] and result.reason.tolist() == [[0, 0, 6], [2, 2, 2]]
    one = unit.translate(NVME, 0x5000, "write", 8)
    assert one.address.shape == () and one.address == 0x9000 and len(one) == 1
    none = unit.translate(np.zeros(0, np.uint16), np.zeros(0, np.uint64), np.zeros(0, bool))
    assert len(none) == 0 and none.ok.tolist() == [] and repr(none) == "Translations: 0 requests: none"


def test_a_table_that_points_to_itself():
    bench = Bench()
    bench.memory.write64(TABLE3, TABLE3 | 3)
    result = bench.unit.translate(NVME, [0x0, 0x1000, 0x5000], "read")
    assert result.address.tolist() == [TABLE3, 0x8000_0080 & ~0xFFF, 0], "entry 0 is the table, entry 1 the 1 GiB leaf's address"


def test_requests_far_apart_and_close_together_are_answered_alike():
    bench = Bench()
    near = np.arange(0, 8 << 20, 0x800, dtype=np.uint64)
    far = np.append(near, np.uint64(0x7F_FFFF_F000))
    sparse = [bench.unit.translate(NVME, [int(iova), 0x7F_FFFF_F000], "write") for iova in near[::64]]
    for result in (bench.unit.translate(NVME, near, "write"), bench.unit.translate(NVME, far, "write")):
        assert result.address[:len(near):64].tolist() == [int(s.address[0]) for s in sparse]
        assert result.reason[:len(near):64].tolist() == [int(s.reason[0]) for s in sparse]


@pytest.mark.parametrize(("arguments", "words"), [
    ((NVME, 0x5FFC, "read", 8), "crosses a 4 KiB page"), ((NVME, [0x5000, 0x5001], "read", 4096), "request 1"),
    ((NVME, -1, "read"), "64 bits"), ((NVME, [1, 1 << 64], "read"), "64 bits"), ((NVME, 1.5, "read"), "whole numbers"),
    ((1 << 16, 0, "read"), "65535"), ((-1, 0, "read"), "65535"), ((NVME, 0, "look"), "Direction"), ((NVME, 0, 2), "Direction"),
    ((NVME, 0, "read", -1), "length"), ((NVME, 0, "read", 4097), "length"), ((NVME, "0x5000", "read"), "whole numbers"),
    (([NVME] * 2, [0] * 3, "read"), "fit together"), ((NVME, [True], "read"), "whole numbers"), ((NVME, [None], "read"), "whole numbers"),
])
def test_what_no_device_can_ask(arguments, words):
    with pytest.raises(BadRequest, match=words) as caught:
        Bench().unit.translate(*arguments)
    assert "\n" not in str(caught.value)


def test_large_numbers_in_lists():
    result = Bench().unit.translate(NVME, [0x5000, 1 << 63, (1 << 64) - 1], "read")
    assert result.reason.tolist() == [0, 4, 4] and result.iova.tolist() == [0x5000, 1 << 63, (1 << 64) - 1]
