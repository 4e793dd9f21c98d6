"""DMAR_PASS_THROUGH: the rewritten table, the units behind the core's trap, the core's region in the guest's tables; and whole machines."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from vtd_bench import BASE, CCMD, GCMD, GSTS, NOWHERE, NVME, QEMU_CAP, QEMU_ECAP, RTADDR, SRTP, TE, XEON_CAP, XEON_ECAP

from hvcore import Config, Machine, Run
from hvcore.machine.bus import Bus
from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import PAGE, Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.sources import load
from hvcore.spec import acpi, dmar, vtd
from hvcore.spec.dma import Direction, DmaRequest
from hvcore.spec.dmar import Dmar, Drhd, Rmrr, Scope
from hvcore.spec.e820 import E820Entry
from hvcore.vmm.heap import Heap, Panic
from hvcore.vmm.layout import HEAP
from hvcore.vmm.passthrough import CAP_HIDDEN, ECAP_HIDDEN, OwnTables, Passed, WatchedUnit, install, rewritten, spans, watch
from hvcore.vmm.pci import Function
from hvcore.vmm.platform import Console

MIB, GIB = 1 << 20, 1 << 30
PASS = Config(VTD_TRANS=False, DMAR_PASS_THROUGH=True)
CORPUS = sorted((Path(__file__).parents[1] / "data" / "acpi").glob("DMAR-*.dat"))


# --- the table

FUNCTIONS = [Function(0x00F8, False), Function(0x0000, False), Function(0x00E0, True, 1, 2), Function(0x0100, True, 2, 2),
             Function(0x0200, False), Function(0x8010, True, 0x81, 0x81), Function(0x8100, False)]


def test_every_function_of_a_root_bus_is_asked_for_and_nothing_behind_a_bridge() -> None:
    table = rewritten(Dmar(39, 7, (Drhd(1, 0, 0, 0xFED90000),)), FUNCTIONS, (0x77C00000, 0x7FC00000))
    assert table.rmrrs == (Rmrr(0, 0x77C00000, 0x7FBFFFFF, (
        Scope(1, 0, 0, ((0, 0),)), Scope(2, 0, 0, ((0x1C, 0),)), Scope(1, 0, 0, ((0x1F, 0),)), Scope(2, 0, 0x80, ((2, 0),)))),)
    assert table.flags == 3, "DMA_CTRL_PLATFORM_OPT_IN (bit 2) is cleared, and nothing else"


def test_a_machine_without_functions_gets_no_region_without_devices() -> None:
    assert not rewritten(Dmar(39, 0, (Drhd(1, 0, 0, 0xFED90000),)), [], (0, 4 * MIB)).rmrrs


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_real_tables_keep_all_they_had_in_its_order(path: Path) -> None:
    old = dmar.parse(path.read_bytes())
    new = dmar.parse(dmar.build(rewritten(old, FUNCTIONS, (0x77C00000, 0x7FC00000))))
    added = [i for i, s in enumerate(new.structures) if s == new.rmrrs[-1] or isinstance(s, Rmrr) and s.base == 0x77C00000][-1]
    assert new.structures[:added] + new.structures[added + 1:] == old.structures
    assert all(dmar.type_of(s) <= 1 for s in new.structures[:added])
    assert added == len(old.structures) or dmar.type_of(old.structures[added]) > 1
    assert replace(new, structures=(), flags=0) == replace(old, structures=(), flags=0)


def _firmware(table: bytes, width: int = 8) -> tuple[Memory, Bus, int]:
    """A machine's memory with a table among others, found by an XSDT (entries of 8 bytes) or an RSDT (4)."""
    memory = Memory([(0, 16 * MIB)])
    root, at = 0xE1000, 0xE2000
    madt = acpi.build_madt(acpi.Madt(()))
    memory.write(0xE3000, madt)
    memory.write(at, table)
    entries = (0xE3000, at)
    if width == 8:
        memory.write(0xF8000, acpi.build_rsdp(acpi.Rsdp(root)))
        memory.write(root, acpi.build_xsdt(entries))
    else:
        raw = bytearray(acpi.build_rsdp(acpi.Rsdp(None, root, 0)))
        raw[8] = 0
        raw[8] = acpi.checksum(bytes(raw[:20]))
        memory.write(0xF8000, bytes(raw[:20]))
        memory.write(root, acpi.build_table(acpi.Header("RSDT"), b"".join(e.to_bytes(4, "little") for e in entries)))
    return memory, Bus(memory), at


@pytest.mark.parametrize("width", [4, 8])
def test_the_table_of_tables_points_to_the_copy(width: int) -> None:
    firmware = dmar.build(Dmar(39, 4, (Drhd(1, 0, 0, BASE),)))
    memory, bus, at = _firmware(firmware, width)
    before = memory.read(0, 16 * MIB)
    passed = install(memory, bus, at, (E820Entry(MIB, 16 * MIB, 1),), (8 * MIB, 16 * MIB), Console(bus))
    assert passed is not None and passed.address == 8 * MIB - 3 * PAGE and passed.units == ((BASE, 0),)
    assert [t.address for t in acpi.tables(memory)[1:]] == [0xE3000, passed.address]
    found = acpi.table(memory, "DMAR")
    assert found is not None and dmar.parse(found) == Dmar(39, 0, (Drhd(1, 0, 0, BASE),)), "its checksum is right, OPT_IN is gone"
    after = memory.read(0, 16 * MIB)
    changed = {i // PAGE * PAGE for i in np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)).tolist()}
    assert changed == {0xE1000, passed.address}, "firmware's table itself is not touched by this"


def test_no_room_below_the_core_is_a_panic() -> None:
    memory, bus, at = _firmware(dmar.build(Dmar(39, 0, (Drhd(1, 0, 0, BASE),))))
    with pytest.raises(Panic, match="alloc_uppermem failed"):
        install(memory, bus, at, (E820Entry(8 * MIB - 3 * PAGE, 16 * MIB, 1),), (8 * MIB, 16 * MIB), Console(bus))


def test_a_table_that_cannot_be_read_is_not_passed_on() -> None:
    memory, bus, at = _firmware(dmar.build(Dmar(39, 0, (Drhd(1, 0, 0, BASE),))))
    memory.write(at + 48, b"\0\0\2\0")
    before = memory.read(0, 16 * MIB)
    assert install(memory, bus, at, (E820Entry(MIB, 16 * MIB, 1),), (8 * MIB, 16 * MIB), Console(bus)) is None
    assert memory.read(0, 16 * MIB) == before


# --- a unit behind the trap

class Watched:
    """4 MiB of the guest's, the core at 32 to 40 MiB, a unit; the guest's root table at 1 MiB, its contexts at 1 MiB + 4 KiB."""

    REGION = (32 * MIB, 40 * MIB)
    ROOT, CONTEXTS, TABLES = MIB, MIB + PAGE, MIB + 2 * PAGE

    def __init__(self, cap: int = QEMU_CAP, ecap: int = QEMU_ECAP, superpages: bool = True, region: tuple[int, int] = REGION):
        self.region = region
        self.memory = Memory([(0, 4 * MIB), region])
        self.unit = RemappingUnit(UnitDescription(BASE, cap, ecap), self.memory, 39)
        self.bus, self.printed = Bus(self.memory), bytearray()
        self.bus.map_mmio(BASE, self.unit.size, "unit", self.unit)
        self.bus.map_ports(0xE9, 1, self)
        self.heap = Heap(self.memory, region[0] + HEAP, region[1], region[0] + 0x1000)
        self.own = OwnTables(self.memory, self.heap, region, superpages)
        self.watched = WatchedUnit(self.memory, self.bus, BASE, self.own, (NVME, NVME + 8), Console(self.bus))

    def port_read(self, _port: int, _width: int) -> int:
        return 0

    def port_write(self, _port: int, _width: int, value: int) -> None:
        self.printed.append(value)

    def context(self, table: int, levels: int, source: int = NVME, tt: int = 0) -> None:
        self.memory.write64(self.ROOT, self.CONTEXTS | 1)
        low, high = vtd.context_entry(table, levels - 2, 7, tt)
        self.memory.write64(self.CONTEXTS + 16 * source + 8, high)
        self.memory.write64(self.CONTEXTS + 16 * source, low)

    def write(self, offset: int, width: int, value: int) -> None:
        self.watched.mmio_write(offset, width, value)

    def enable(self, root: int = ROOT) -> None:
        self.write(RTADDR, 8, root)
        self.write(GCMD, 4, SRTP)
        self.write(GCMD, 4, TE)

    def reaches(self, iova: int, source: int = NVME) -> object:
        """Where a write of a device comes out, or the reason of the fault."""
        found = self.unit.remap(DmaRequest(source, iova, 8, Direction.WRITE))
        return found if isinstance(found, int) else vtd.FaultReason(found.reason) if found.reason else "protected"

    def words(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """A copy of the guest's memory and of the core's."""
        return self.memory.u64(0, 4 * MIB // 8).copy(), self.memory.u64(self.REGION[0], 8 * MIB // 8).copy()

    @property
    def console(self) -> str:
        return self.printed.decode()


CAP_ALL_LEVELS = QEMU_CAP | 0x1F00 | 0x3F0000


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


# --- whole machines

@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine.load("q35-6g") as m:
        yield m


@pytest.fixture(scope="module")
def run(machine: Machine) -> Run:
    """q35-6g, its unit switched on by the guest."""
    run = machine.boot(PASS)
    assert run.guest.command("iommu on").splitlines()[-1].startswith("iommu: on, 7 functions, 3 levels, leaves of 2 MiB")
    return run


def test_the_guest_finds_the_table_below_the_core(machine: Machine) -> None:
    run = machine.boot(PASS)
    assert run.outcome == "up" and run.vmm.base == 0x77C00000
    assert "Installing a modified DMAR table at 0x77bfd000." in run.console.vmm
    assert re.search(r"^DMAR 0x0000000077bfd000 0000d0 ", run.guest.command("acpi"), re.MULTILINE)
    assert run.guest.command("iommu").splitlines()[:2] == [
        "DMAR 0x77bfd000, 208 bytes, host address width 39, flags 0x0", "RMRR 0x77c00000-0x7fbfffff"]
    assert max(e.end for e in run.e820.guest if e.usable and e.end < 4 * GIB) == 0x77BFD000
    assert not any(e.start < 0x7FC00000 and e.end > 0x77BFD000 for e in run.e820.guest)


def test_run_dmar_shows_what_the_guest_finds(run: Run) -> None:
    assert (run.dmar.address, run.dmar.hidden) == (0x77BFD000, False)
    assert [(s.structure, s.firmware, s.guest) for s in run.dmar] == [("DRHD", True, True), ("RMRR", False, True)]
    assert (run.dmar[1].start, run.dmar[1].end) == (0x77C00000, 0x7FC00000)
    assert run.dmar[1].oddities == ("not reserved in E820: [0x77c00000, 0x7fc00000) is in no entry",), "by the guest's map, not firmware's"
    assert {s.short for s in run.dmar[1].scopes} == {f"endpoint 00:{f}" for f in ("00.0", "01.0", "02.0", "03.0", "1f.0", "1f.2", "1f.3")}


@pytest.mark.needs("iasl")
@pytest.mark.parametrize("name", ["q35-2g-bridges", "server-64g"])
def test_iasl_reads_the_table(name: str, tmp_path: Path) -> None:
    with Machine.load(name) as m:
        run = m.boot(PASS)
        assert run.dmar.table is not None and run.dmar.address is not None
        (tmp_path / "dmar.dat").write_bytes(m.pc.memory.read(run.dmar.address, m.pc.memory.read32(run.dmar.address + 4)))
    done = subprocess.run(["iasl", "-d", "dmar.dat"], cwd=tmp_path, capture_output=True, text=True, check=True)
    text = (tmp_path / "dmar.dsl").read_text("latin-1")
    assert not re.search("incorrect checksum|invalid|unknown|error|warning", text + done.stdout + done.stderr, re.IGNORECASE)
    assert f"{run.vmm.base:016X}" in text


def test_the_guests_domain_works_and_holds(run: Run) -> None:
    assert run.units[0].translating
    assert [(d.did, d.levels, len(d.devices)) for d in run.domains] == [(1, 3, 7)]
    runs = run.domains[0].runs
    assert (0x77C00000, 0x7FC00000, "rw") in [(r.start, r.end, r.perm) for r in runs]
    assert "nvme nvme0: 1/0/0 default/read/poll queues" in run.guest.command("nvme probe")
    key = run.guest.command("dma r 0x77c09000 32")
    assert key.startswith("0000000077c09000  ") and key != run.guest.command("peek 0x77c09000 32"), "the RMRR means: devices reach the core"
    assert not run.faults
    assert run.guest.command("dma r 0xa0000000 8") == "dma: no data arrived"
    assert [(f.source, f.address, f.reason) for f in run.faults] == [(0x18, 0xA0000000, 6)]
    run.guest.command(f"poke {BASE + 0x22C:#x} 0x80000000")
    assert not run.faults, "cleared through the trap"
    run.guest.command("dma w 0xf0000 8")
    assert [(f.source, f.address, f.reason) for f in run.faults] == [(0x18, 0xF0000, 5)]
    assert run.outcome == "up"


def test_ignoring_the_rmrr_comes_to_the_same(machine: Machine, run: Run) -> None:
    honoured = [(r.start, r.end, r.perm, r.offset) for r in run.domains[0].runs]
    run.guest.command("iommu on norms")
    assert run.console.vmm.endswith("acpi_dmar_force_map: force map for 00:00.0\n")
    assert [(r.start, r.end, r.perm, r.offset) for r in run.domains[0].runs] == honoured
    assert run.guest.command("dma r 0x77c00000 8").startswith("0000000077c00000  ")
    assert run.guest.command("iommu off") == "iommu: off" and not run.units[0].translating


@pytest.mark.parametrize("name", ["gigabyte-b150m-16g", "server-64g", "hp-compaq-8000-elite-4g", "q35-2g-bridges", "laptop-16g"])
def test_other_machines(name: str) -> None:
    """Many units, units without superpages, bridges; the guest sees no hidden bit, the unit keeps its own."""
    with Machine.load(name) as m:
        run = m.boot(PASS)
        assert run.outcome == "up", run.why
        assert run.guest.command("iommu on norms").splitlines()[-1].startswith("iommu: on, ")
        assert all(u.translating for u in run.units)
        seen = [(int(a, 16), int(b, 16)) for a, b in re.findall(r"CAP (0x\w+), ECAP (0x\w+),", run.guest.command("iommu"))]
        assert seen == [(u.cap & ~CAP_HIDDEN, u.ecap & ~ECAP_HIDDEN) for u in run.units]
        base, end = run.vmm.base, run.vmm.base + run.vmm.size
        assert all(any(r.start <= base and end <= r.end and r.perm == "rw" and not r.offset for r in d.runs) for d in run.domains)
        assert "1/0/0 default/read/poll queues" in run.guest.command("nvme probe") or "nvme: no controller" in run.console.guest
        assert run.outcome == "up"


def test_the_mended_core_withholds_no_registers_from_a_guest_that_drives_them(machine: Machine) -> None:
    run = machine.boot(Config(PROFILE="mended", VTD_TRANS=False, DMAR_PASS_THROUGH=True))
    assert run.outcome == "up" and run.guest.command("iommu on").splitlines()[-1].startswith("iommu: on, ")


def test_memory_beyond_the_guests_tables_is_named_and_stays_unmapped() -> None:
    """32 GiB by 4 KiB pages take 16384 tables; the guest takes 8192."""
    description = load("q35-32g")
    units = tuple(replace(u, cap=u.cap & ~(0xF << 34)) for u in description.units)
    with Machine(replace(description, units=units)) as m:
        run = m.boot(PASS)
        text = run.guest.command("iommu on")
        start = re.search(r"iommu: no more tables after 8192, (0x[0-9a-f]+)-0x87fffffff is not mapped", text)
        assert start and "leaves of 4 KiB, 8192 tables" in text
        assert run.domains[0].runs.rights_at([int(start[1], 16) - PAGE, int(start[1], 16)]).tolist() == ["rw", "-"]
        assert "iommu: no more" not in text.replace(start[0], ""), "the RMRRs had come first"


def test_without_pass_through_there_is_no_table(machine: Machine) -> None:
    assert machine.boot(Config(VTD_TRANS=False)).guest.command("iommu on") == "iommu: no DMAR table"


def test_a_guest_that_uses_an_extended_root_table_brings_the_core_down() -> None:
    description = load("q35-6g")
    units = tuple(replace(u, ecap=u.ecap | 1 << 24) for u in description.units)
    with Machine(replace(description, units=units)) as m:
        run = m.boot(PASS)
        for offset, value, width in ((RTADDR, 0x2000800, 8), (GCMD, SRTP, 4), (GCMD, TE, 4)):
            run.guest.command(f"poke {BASE + offset:#x} {value:#x} {width}")
        assert run.outcome == "vmm-panic"
        assert run.why == "do_acpi_dmar_translate: Root Table Type is Extended Root Table!"
        assert run.console.vmm.endswith("panic: do_acpi_dmar_translate: Root Table Type is Extended Root Table!\n")
