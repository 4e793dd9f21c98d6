"""DMAR_PASS_THROUGH: the core's region in the guest's own tables, and when the core looks at them."""

import pytest
from passthrough_bench import CAP_ALL_LEVELS, GIB, MIB, Watched
from vtd_bench import BASE, CCMD, GCMD, GSTS, NVME, QEMU_CAP, QEMU_ECAP, RTADDR, SRTP, TE

from hvcore.machine.memory import PAGE
from hvcore.spec import vtd
from hvcore.vmm.heap import Panic
from hvcore.vmm.passthrough import ECAP_HIDDEN, Passed, watch
from hvcore.vmm.platform import Console


@pytest.mark.parametrize("superpages", [False, True])
@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_an_empty_domain_gets_the_region_and_nothing_else(levels: int, superpages: bool) -> None:
    w = Watched(CAP_ALL_LEVELS, superpages=superpages)
    w.context(w.TABLES, levels)
    used = w.heap.used
    w.enable()
    edges = [w.REGION[0], w.REGION[0] + 5 * PAGE, 36 * MIB, w.REGION[1] - 8]
    assert [w.reaches(a) for a in edges] == edges
    assert w.reaches(w.REGION[0] - 8) == w.reaches(w.REGION[1]) == w.reaches(0) == vtd.FaultReason.WRITE_DENIED
    assert w.heap.used == used, "what it writes was built before the guest began"
    assert w.console == "acpi_dmar_force_map: force map for 00:02.0\n"


def test_absent_tables_are_filled_where_the_guests_end() -> None:
    """The guest has tables of its own on the way, with other pages beside the region: those stay."""
    w = Watched()
    table, middle, low = w.TABLES, w.TABLES + PAGE, w.TABLES + 2 * PAGE
    w.context(table, 3)
    w.memory.write64(table, middle | 3)
    w.memory.write64(middle + 8 * 16, low | 3)  # 32 to 34 MiB
    w.memory.write64(middle + 8 * 8, (16 * MIB) | 0x83)
    w.enable()
    assert w.memory.u64(low, 512).tolist() == [32 * MIB + i * PAGE | 3 for i in range(512)]
    assert w.memory.u64(middle, 512).tolist() == [
        {8: 16 * MIB | 0x83, 16: low | 3, 17: 34 * MIB | 0x83, 18: 36 * MIB | 0x83, 19: 38 * MIB | 0x83}.get(i, 0) for i in range(512)]
    assert w.reaches(16 * MIB + 8) == 16 * MIB + 8 and w.reaches(33 * MIB) == 33 * MIB


@pytest.mark.parametrize("entry", [32 * MIB | 3, 9 * MIB | 1, 9 * MIB | 2])
def test_a_region_that_is_mapped_in_part_is_the_guests_own_doing(entry: int) -> None:
    w = Watched()
    table, middle, low = w.TABLES, w.TABLES + PAGE, w.TABLES + 2 * PAGE
    w.context(table, 3)
    for at, value in ((table, middle | 3), (middle + 8 * 19, low | 3), (low + 8 * 511, entry)):
        w.memory.write64(at, value)
    before = w.memory.read(w.ROOT, 6 * PAGE)
    w.enable()
    assert w.memory.read(w.ROOT, 6 * PAGE) == before and not w.console


def test_a_device_whose_dma_is_not_translated_is_left_alone() -> None:
    w = Watched(ecap=QEMU_ECAP | 0x40)
    w.context(w.TABLES, 3, tt=2)
    w.enable()
    assert not any(w.memory.read(w.TABLES, PAGE)) and not w.console
    assert w.reaches(w.REGION[0]) == w.REGION[0]


def test_a_region_beyond_the_tables_width_cannot_be_mapped() -> None:
    w = Watched(CAP_ALL_LEVELS, region=(GIB - 4 * MIB, GIB + 4 * MIB))
    w.context(w.TABLES, 2)
    w.context(w.TABLES + PAGE, 3, NVME + 8)
    w.enable()
    assert not any(w.memory.read(w.TABLES, PAGE))
    assert [w.reaches(a, NVME + 8) for a in w.region] == [w.region[0], vtd.FaultReason.WRITE_DENIED]
    assert w.reaches(GIB, NVME + 8) == GIB, "in two tables of level 2"


@pytest.mark.parametrize("superpages", [False, True])
def test_one_table_in_many_places_is_filled_once(superpages: bool) -> None:
    """A large core, and a guest whose tables are the same page again and again: what is written first stays."""
    w = Watched(superpages=superpages, region=(GIB, 2 * GIB + 64 * MIB))
    table, middle, low = w.TABLES, w.TABLES + PAGE, w.TABLES + 2 * PAGE
    w.context(table, 3)
    w.memory.u64(table, 4)[:] = middle | 3
    w.memory.u64(middle, 32)[:] = low | 3
    before = w.memory.read(*w.region[:1], 64 * MIB)
    w.enable()
    assert w.memory.u64(low, 512).tolist() == [GIB + i * PAGE | 3 for i in range(512)]
    assert w.memory.u64(middle, 33).tolist() == [*[low | 3] * 32, w.own.entry(2, GIB + 64 * MIB)]
    assert w.memory.read(*w.region[:1], 64 * MIB) == before


@pytest.mark.parametrize(("level", "entry"), [(2, 0x83), (3, 0x83), (2, 0x81), (3, 0x82)])
def test_a_superpage_of_the_guests_maps_the_region(level: int, entry: int) -> None:
    w = Watched()
    w.context(w.TABLES, 3)
    if level == 2:
        w.memory.write64(w.TABLES, w.TABLES + PAGE | 3)
    w.memory.write64(w.TABLES + PAGE + 8 * 17 if level == 2 else w.TABLES, entry)
    before = w.memory.read(0, 4 * MIB)
    w.enable()
    assert w.memory.read(0, 4 * MIB) == before and not w.console


def _by_queue(w: Watched) -> None:
    """A global IOTLB invalidation by the queue, which the guest has switched on."""
    queue = w.TABLES + 32 * PAGE
    w.memory.write64(queue, 0x12)
    w.write(0x90, 8, queue)
    w.write(GCMD, 4, TE | 1 << 26)
    w.memory.write64(w.TABLES, 0)
    w.printed.clear()
    w.write(0x88, 8, 16)
    assert w.bus.read(BASE + 0x80, 8) == 16


def _by_iotlb(w: Watched) -> None:
    w.write(0xF8, 8, 1 << 63 | 1 << 60)


def _by_context_command(w: Watched) -> None:
    w.write(CCMD, 8, 1 << 63 | 1 << 61)


def _by_halves(w: Watched) -> None:
    w.write(CCMD, 4, 0)
    assert not w.console, "the low half begins nothing"
    w.write(CCMD + 4, 4, 0xA000_0000)


@pytest.mark.parametrize("invalidate", [_by_queue, _by_iotlb, _by_context_command, _by_halves])
def test_what_the_guest_takes_away_comes_back_at_its_next_invalidation(invalidate: object) -> None:
    w = Watched()
    w.context(w.TABLES, 3)
    w.enable()
    w.memory.write64(w.TABLES, 0)
    w.printed.clear()
    invalidate(w)  # type: ignore[operator]
    assert w.console == "acpi_dmar_force_map: force map for 00:02.0\n"
    assert w.reaches(w.REGION[0]) == w.REGION[0]


def test_a_new_root_table_is_looked_at_before_the_unit_uses_it() -> None:
    w = Watched()
    w.context(w.TABLES, 3)
    w.enable()
    second = w.TABLES + 8 * PAGE
    w.memory.write64(second, second + PAGE | 1)
    w.memory.write(second + PAGE + 16 * NVME, (w.TABLES + 16 * PAGE | 1).to_bytes(8, "little") + (0x701).to_bytes(8, "little"))
    w.write(RTADDR, 8, second)
    assert not any(w.memory.read(w.TABLES + 16 * PAGE, PAGE)), "nothing is latched yet"
    w.write(GCMD, 4, TE | SRTP)
    assert any(w.memory.read(w.TABLES + 16 * PAGE, PAGE)) and w.unit.root == second


def test_as_long_as_nothing_is_translated_nothing_is_written() -> None:
    w = Watched()
    w.context(w.TABLES, 3)
    w.write(RTADDR, 8, w.ROOT)
    w.write(GCMD, 4, SRTP)
    _by_context_command(w)
    _by_iotlb(w)
    assert not any(w.memory.read(w.TABLES, PAGE)) and not w.console
    assert w.reaches(w.REGION[0]) == w.REGION[0], "and the core is open to every device"


def test_tables_for_two_devices_are_looked_at_once_and_for_each_depth() -> None:
    w = Watched(CAP_ALL_LEVELS)
    w.context(w.TABLES, 3)
    w.context(w.TABLES, 3, NVME + 8)
    w.enable()
    assert w.console.count("force map") == 1
    assert w.reaches(w.REGION[0], NVME + 8) == w.REGION[0]


@pytest.mark.parametrize("bits", [0x800, 0xC00])
def test_an_extended_root_table_is_a_panic_once_it_is_used(bits: int) -> None:
    w = Watched(ecap=QEMU_ECAP | 1 << 24 | 1 << 43)
    w.write(RTADDR, 8, w.ROOT | bits)
    w.write(GCMD, 4, SRTP)
    with pytest.raises(Panic, match="Root Table Type is Extended Root Table!"):
        w.write(GCMD, 4, TE)
    assert not w.bus.read(BASE + GSTS, 4) >> 31, "the unit never saw it"


def test_other_table_types_are_not_taken_for_legacy_ones() -> None:
    w = Watched(ecap=QEMU_ECAP | 1 << 43)
    w.context(w.TABLES, 3)
    w.enable(w.ROOT | 0x400)
    assert not any(w.memory.read(w.TABLES, PAGE))


def test_entries_with_one_right_only_lead_on() -> None:
    w = Watched()
    table, middle, low = w.TABLES, w.TABLES + PAGE, w.TABLES + 2 * PAGE
    w.context(table, 3)
    for at, value in ((table, middle | 2), (middle + 8 * 16, low | 1)):
        w.memory.write64(at, value)
    w.enable()
    assert (w.memory.read64(table), w.memory.read64(middle + 8 * 16)) == (middle | 2, low | 1)
    assert w.memory.read64(low) == 32 * MIB | 3 and w.memory.read64(middle + 8 * 17) == 34 * MIB | 0x83


def test_above_level_3_there_are_no_superpages() -> None:
    w = Watched(CAP_ALL_LEVELS)
    w.context(w.TABLES, 4)
    w.memory.write64(w.TABLES, w.TABLES + PAGE | 0x83)
    w.enable()
    assert w.memory.read64(w.TABLES + PAGE) == w.own.entry(3, w.REGION[0])
    assert w.reaches(w.REGION[0]) == vtd.FaultReason.PAGE_RESERVED, "which the guest has brought about"


def test_only_units_that_answer_are_trapped_with_all_their_pages() -> None:
    w = Watched(QEMU_CAP & ~(0x3FF << 24) | 0x1F0 << 24)
    units = ((BASE, 0), (33 * MIB, 0), (BASE + 0x8004, 0), (BASE + 0x9000, 0))
    traps = watch(w.memory, w.bus, w.heap, Passed(MIB, units, (NVME,)), w.REGION, Console(w.bus))
    assert [(t.start, t.end) for t in traps] == [(BASE, BASE + 0x2000)]


def test_of_another_segments_unit_the_tables_are_not_looked_at() -> None:
    w = Watched()
    w.context(w.TABLES, 3)
    trap, = watch(w.memory, w.bus, w.heap, Passed(MIB, ((BASE, 1),), (NVME,)), w.REGION, Console(w.bus))
    for offset, width, value in ((RTADDR, 8, w.ROOT), (GCMD, 4, SRTP), (GCMD, 4, TE)):
        trap.device.mmio_write(offset, width, value)
    assert w.unit.root == w.ROOT and not any(w.memory.read(w.TABLES, PAGE))
    assert trap.device.mmio_read(16, 8) == QEMU_ECAP & ~ECAP_HIDDEN
