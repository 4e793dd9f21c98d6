"""Registers, global commands, fault records, fault event and protected regions of a remapping unit, as software sees them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vtd_bench import (
    BASE,
    FEADDR,
    FECTL,
    FEDATA,
    FEUADDR,
    FSTS,
    GCMD,
    GSTS,
    NVME,
    QEMU_CAP,
    QEMU_ECAP,
    RTADDR,
    SRTP,
    TE,
    XEON_CAP,
    XEON_ECAP,
    Bench,
)

from hvcore.errors import BadMachine
from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.spec.dma import RemapFault

F = 1 << 63


def power_on_bytes(cap: int, ecap: int) -> bytes:
    """The register page after power-on, by hand: VER, CAP, ECAP and the two interrupt masks."""
    page = bytearray(4096)
    page[0:4] = (0x10).to_bytes(4, "little")
    page[8:24] = cap.to_bytes(8, "little") + ecap.to_bytes(8, "little")
    page[0x38:0x3C] = page[0xA0:0xA4] = (1 << 31).to_bytes(4, "little")
    return bytes(page)


@pytest.mark.parametrize(("cap", "ecap"), [(QEMU_CAP, QEMU_ECAP), (XEON_CAP, XEON_ECAP)])
def test_reset_is_power_on_byte_for_byte(cap, ecap):
    bench = Bench(cap, ecap, haw=46, on=False)
    assert bytes(bench.unit.file.bytes) == power_on_bytes(cap, ecap)
    for offset in range(0, 0x600, 4):
        bench.write(offset, 4, 0xFFFF_FFFF)
    bench.ask(0x5000)
    assert bytes(bench.unit.file.bytes) != power_on_bytes(cap, ecap)
    bench.unit.reset()
    assert bytes(bench.unit.file.bytes) == power_on_bytes(cap, ecap)
    assert bench.unit.cached.contexts == () and bench.unit.cached.mappings == () and not bench.unit.notes
    assert bench.ask(0x5000) == 0x5000


def test_set_up_as_the_core_does_it():
    bench = Bench(on=False)
    bench.write(RTADDR, 8, 0x10_0000)
    bench.write(GCMD, 4, SRTP)
    assert bench.read(GSTS, 4) == 1 << 30
    assert bench.invalidate_contexts(1) == 1
    assert bench.read(0x28, 8) == 0x2800_0000_0000_0000
    bench.write(0xF8, 8, 1 << 63 | 1 << 60 | 3 << 48)
    assert bench.read(0xF8, 8) == 1 << 60 | 1 << 57 | 3 << 48
    bench.write(FECTL, 4, 0)
    bench.write(GCMD, 4, TE)
    assert (bench.read(GSTS, 4), bench.read(GCMD, 4), bench.read(FECTL, 4)) == (0xC000_0000, 0, 0)
    assert bench.ask(0x5123) == 0x9123
    assert not bench.unit.notes


def test_a_guest_that_writes_0_to_gcmd_turns_translation_off():
    bench = Bench()
    assert bench.reason(0x1000) == 6
    bench.write(GCMD, 4, 0)
    assert bench.read(GSTS, 4) == 1 << 30
    assert bench.ask(0x1000) == 0x1000


def test_read_only_registers_stay():
    bench = Bench()
    for offset in (0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x80):
        before = bench.read(offset, 4)
        bench.write(offset, 4, ~before & 0xFFFF_FFFF)
        assert bench.read(offset, 4) == before


@pytest.mark.parametrize(("offset", "ecap", "taken"), [
    (RTADDR, QEMU_ECAP, 0xFFFF_FFFF_FFFF_F000), (RTADDR, QEMU_ECAP | 1 << 24, 0xFFFF_FFFF_FFFF_F800),
    (RTADDR, QEMU_ECAP | 1 << 43, 0xFFFF_FFFF_FFFF_FC00), (0x90, QEMU_ECAP, 0xFFFF_FFFF_FFFF_F007), (0x88, QEMU_ECAP, 0x7_FFF0),
    (0xB8, QEMU_ECAP, 0), (0xB8, QEMU_ECAP | 8, 0xFFFF_FFFF_FFFF_F00F), (0xB8, QEMU_ECAP | 0x18, 0xFFFF_FFFF_FFFF_F80F),
    (0x28, QEMU_ECAP, 0x6000_0000_0000_FFFF), (0xF0, QEMU_ECAP, 0), (0xF8, QEMU_ECAP, 0x3003_FFFF_0000_0000),
])
def test_reserved_bits_of_a_register_stay_0(offset, ecap, taken):
    bench = Bench(ecap=ecap, on=False)
    bench.write(offset, 8, (1 << 64) - 1 & ~(1 << 63 if offset in (0x28, 0xF8) else 0))
    assert bench.read(offset, 8) == taken


def test_64_bit_registers_in_halves():
    bench = Bench(on=False)
    bench.write(RTADDR + 4, 4, 0x12)
    bench.write(RTADDR, 4, 0x3456_7FFF)
    assert bench.read(RTADDR, 8) == 0x12_3456_7000
    assert (bench.read(RTADDR, 4), bench.read(RTADDR + 4, 4)) == (0x3456_7000, 0x12)
    bench.write(0x28, 4, 0x0010_0007)
    assert bench.read(0x28, 8) == 7
    bench.write(0x2C, 4, 1 << 31 | 1 << 29)
    assert bench.read(0x28, 8) == 0x2800_0000_0000_0007


def test_write_only_fields_read_0_and_count():
    """SID and FM of CCMD (section 10.4.7) and all of IVA (10.4.8.2)."""
    bench = Bench()
    bench.ask(0x5000)
    bench.write(0x28, 8, 1 << 63 | 3 << 61 | 3 << 32 | (NVME ^ 7) << 16 | 7)
    assert bench.read(0x28, 8) == 0x7800_0000_0000_0007 and not bench.unit.cached.contexts
    bench.write(0xF0, 8, 0x4000 | 1)
    bench.write(0xF8, 8, 1 << 63 | 3 << 60 | 7 << 32)
    assert bench.read(0xF0, 8) == 0 and bench.unit.peek(0xF0, 8) == 0 and not bench.unit.cached.mappings


def test_8_byte_store_over_two_registers_is_two_stores():
    bench = Bench(on=False)
    bench.write(FEDATA - 4, 8, 0x4123 << 32)
    assert (bench.read(FECTL, 4), bench.read(FEDATA, 4)) == (0, 0x4123)


@pytest.mark.parametrize(("offset", "width"), [(GCMD, 1), (GCMD, 2), (GCMD + 2, 4), (GCMD + 3, 1), (0x23, 8)])
def test_other_widths_are_lost_and_noted(offset, width):
    bench = Bench(on=False)
    before = bytes(bench.unit.file.bytes)
    bench.write(offset, width, (1 << 8 * width) - 1)
    assert bytes(bench.unit.file.bytes) == before
    assert "lost" in bench.unit.notes[-1].text


def test_narrow_loads_get_the_bytes_as_they_lie():
    bench = Bench()
    assert [bench.read(0x08 + i, 1) for i in range(8)] == list(QEMU_CAP.to_bytes(8, "little"))
    assert bench.read(GSTS + 2, 2) == 0xC000
    assert bench.read(0x5000, 8) == 0 and bench.unit.peek(0xFFC, 8) == 0


def test_two_commands_in_one_write_go_in_order_and_are_noted():
    bench = Bench(on=False)
    bench.write(RTADDR, 8, 0x10_0000)
    bench.write(GCMD, 4, SRTP | TE)
    assert bench.read(GSTS, 4) == 0xC000_0000 and bench.ask(0x5000) == 0x9000
    assert bench.unit.notes[-1].text.endswith("in this order: SRTP, TE")


def test_commands_without_the_capability_do_nothing():
    bench = Bench(on=False)
    for bit, name in ((29, "SFL"), (28, "EAFL"), (25, "IRE"), (24, "SIRTP"), (23, "CFI")):
        bench.write(GCMD, 4, 1 << bit)
        assert bench.read(GSTS, 4) == 0 and name in bench.unit.notes[-1].text
    bench.write(GCMD, 4, 1 << 27)
    assert bench.read(GSTS, 4) == 0


def test_interrupt_remapping_commands_show_their_state():
    bench = Bench(XEON_CAP, XEON_ECAP, haw=46, on=False)
    bench.write(0xB8, 8, 0x20_0000 | 0xF)
    bench.write(GCMD, 4, 1 << 24)
    assert bench.read(GSTS, 4) == 1 << 24 and bench.read(0xB8, 8) == 0x20_000F
    bench.write(GCMD, 4, 1 << 25)
    assert bench.read(GSTS, 4) == 3 << 24
    bench.write(GCMD, 4, 1 << 25 | 1 << 23)
    assert bench.read(GSTS, 4) == 3 << 24 | 1 << 23
    bench.write(GCMD, 4, 0)
    assert bench.read(GSTS, 4) == 1 << 24


def test_rtaddr_counts_only_when_latched():
    bench = Bench()
    bench.write(RTADDR, 8, 0x20_0000)
    assert bench.ask(0x5000) == 0x9000 and bench.unit.root == 0x10_0000
    bench.write(GCMD, 4, TE | SRTP)
    assert bench.unit.root == 0x20_0000
    assert bench.ask(0x5000) == 0x9000, "the caches still answer"
    bench.invalidate_contexts(1)
    assert bench.reason(0x5000) == 1


def test_te_without_a_root_table_walks_from_0():
    bench = Bench(on=False)
    bench.write(GCMD, 4, TE)
    assert bench.reason(0x5000) == 1 and bench.unit.walk(NVME, 0).steps[0].table == 0
    assert "without a root table" in bench.unit.notes[-1].text


def test_fault_record_is_what_was_measured():
    bench = Bench()
    bench.write(FECTL, 4, 0)
    fault = bench.ask(0x1_01E6_3040, "read", NVME, 64)
    assert isinstance(fault, RemapFault)
    assert (fault.reason, fault.address, fault.unit, fault.recorded) == (6, 0x1_01E6_3000, BASE, True)
    assert bench.read(FSTS, 4) == 2
    assert bench.record() == (0x1_01E6_3000, F | 1 << 62 | 6 << 32 | 0x10)


def test_write_fault_has_t_clear():
    bench = Bench()
    bench.ask(0x6000, "write", length=16)
    assert bench.record() == (0x6000, F | 5 << 32 | 0x10)


def test_same_fault_again_is_collapsed_and_another_overflows():
    bench = Bench()
    assert bench.ask(0x1000).recorded
    assert not bench.ask(0x1008).recorded and bench.read(FSTS, 4) == 2
    assert not bench.ask(0x2000).recorded and bench.read(FSTS, 4) == 3
    assert bench.record()[0] == 0x1000


def test_overflow_stops_recording_until_pfo_is_cleared():
    bench = Bench()
    bench.ask(0x1000)
    bench.ask(0x2000)
    bench.write(bench.fro + 12, 4, 1 << 31)
    assert bench.read(FSTS, 4) == 1, "PPF follows F; PFO stays"
    assert not bench.ask(0x3000).recorded and bench.read(FSTS, 4) == 1
    bench.write(FSTS, 4, 1)
    assert bench.read(FSTS, 4) == 0
    assert bench.ask(0x3000).recorded and bench.record()[0] == 0x3000


def test_ring_of_eight_records_and_fri():
    bench = Bench(XEON_CAP & ~(0x1F << 8) | 0x2 << 8, XEON_ECAP, haw=46)
    for i in range(6):
        bench.ask(0x10_0000 + 0x1000 * i)
        bench.write(bench.fro + 16 * i + 8, 8, F)
    assert bench.read(FSTS, 4) & 2 == 0
    for i in range(8):
        assert bench.ask(0x11_0000 + 0x1000 * i).recorded
    assert bench.read(FSTS, 4) == 0x602
    assert [bench.record(i % 8)[0] for i in range(6, 14)] == [0x11_0000 + 0x1000 * i for i in range(8)]
    assert not bench.ask(0x12_0000).recorded and bench.read(FSTS, 4) == 0x603


def test_records_cannot_be_written_but_f_cleared():
    bench = Bench()
    bench.ask(0x1000)
    low, high = bench.record()
    bench.write(bench.fro, 8, 0)
    bench.write(bench.fro + 8, 8, F - 1)
    assert bench.record() == (low, high)
    bench.write(bench.fro + 8, 8, F)
    assert bench.record() == (low, high & ~F) and bench.read(FSTS, 4) == 0


def arm(bench: Bench) -> None:
    bench.write(FEADDR, 4, 0xFEE0_1004)
    bench.write(FEUADDR, 4, 0x2)
    bench.write(FEDATA, 4, 0x4061)


def test_fault_event_is_sent_once_while_faults_are_pending():
    bench = Bench()
    arm(bench)
    bench.write(FECTL, 4, 0)
    bench.ask(0x1000)
    bench.ask(0x2000)
    assert bench.messages == [(0x2_FEE0_1004, 0x4061)]
    bench.write(bench.fro + 12, 4, 1 << 31)
    bench.write(FSTS, 4, 1)
    bench.ask(0x3000)
    assert len(bench.messages) == 2


def test_masked_event_waits_in_ip_and_goes_out_when_unmasked():
    bench = Bench()
    arm(bench)
    bench.ask(0x1000)
    assert bench.messages == [] and bench.read(FECTL, 4) == 3 << 30
    bench.write(FECTL, 4, 0)
    assert bench.messages == [(0x2_FEE0_1004, 0x4061)] and bench.read(FECTL, 4) == 0


def test_masked_event_is_withdrawn_when_the_fault_is_cleared():
    bench = Bench()
    bench.ask(0x1000)
    bench.write(bench.fro + 8, 8, F)
    assert bench.read(FECTL, 4) == 1 << 31
    bench.write(FECTL, 4, 0)
    assert bench.messages == []


def test_fectl_ip_is_read_only():
    bench = Bench()
    bench.write(FECTL, 4, 0xFFFF_FFFF)
    assert bench.read(FECTL, 4) == 1 << 31


def protecting() -> Bench:
    """Low region 0x400000-0x7fffff, high region 0x1_0000_0000-0x1_001f_ffff."""
    bench = Bench(QEMU_CAP | 3 << 5, on=False)
    for offset, width, value in ((0x68, 4, 0x40_0000), (0x6C, 4, 0x60_0000), (0x70, 8, 1 << 32), (0x78, 8, 1 << 32)):
        bench.write(offset, width, value)
    bench.write(0x64, 4, 1 << 31)
    return bench


def test_protected_regions_block_in_silence_while_translation_is_off():
    bench = protecting()
    assert bench.read(0x64, 4) == 1 << 31 | 1
    for iova in (0x40_0000, 0x7F_FFFF, 1 << 32, 0x1_001F_FFF8):
        fault = bench.ask(iova, length=1)
        assert isinstance(fault, RemapFault) and (fault.reason, fault.address, fault.recorded) == (0, iova & ~0xFFF, False)
    for iova in (0x3F_F000, 0x80_0000, 0xFFFF_F000, 0x1_0020_0000):
        assert bench.ask(iova) == iova
    assert bench.read(FSTS, 4) == 0
    bench.write(0x64, 4, 0)
    assert bench.read(0x64, 4) == 0 and bench.ask(0x40_0000) == 0x40_0000


def test_protected_regions_block_pass_through_but_leave_translated_requests():
    bench = protecting()
    bench.memory.write64(0x10_4000 + 8 * 5, 0x40_0003)
    bench.context(0x18, 1 | 2 << 2, 1)
    bench.enable()
    assert bench.ask(0x5000) == 0x40_0000
    assert bench.reason(0x40_0000, source=0x18) == 0 and bench.ask(0x80_0000, source=0x18) == 0x80_0000


def test_granule_of_protected_regions_can_be_sized():
    bench = Bench(QEMU_CAP | 3 << 5, on=False)
    bench.write(0x68, 4, 0xFFFF_FFFF)
    assert bench.read(0x68, 4) == 0xFFE0_0000
    bench = Bench(on=False)
    bench.write(0x68, 4, 0xFFFF_FFFF)
    bench.write(0x64, 4, 0xFFFF_FFFF)
    assert bench.read(0x68, 4) == 0 and bench.read(0x64, 4) == 0, "the unit has no such region"


@pytest.mark.parametrize(("cap", "ecap"), [(0, 0xF42), (QEMU_CAP, 0), (QEMU_CAP & ~(0x3FF << 24) | 0xF << 24, 0xF42)])
def test_overlapping_registers_are_the_descriptions_mistake(cap, ecap):
    with pytest.raises(BadMachine, match=r"0xfed90000.*FRO.*IRO"):
        Bench(cap, ecap)


def test_two_units_share_nothing():
    a, b = Bench(), Bench(on=False)
    a.ask(0x1000)
    assert b.read(FSTS, 4) == 0 and b.read(GSTS, 4) == 0 and b.unit.base == BASE


@given(st.lists(st.tuples(st.integers(0, 0x2F0), st.sampled_from((1, 2, 4, 8)), st.one_of(
    st.integers(0, (1 << 64) - 1), st.integers(0, 63).map(lambda n: 1 << n)))))
def test_no_sequence_of_stores_breaks_the_unit(stores):
    bench = Bench()
    for offset, width, value in stores:
        bench.write(offset & ~3, width, value)
    assert (bench.read(0x08, 8), bench.read(0x10, 8), bench.read(GCMD, 4)) == (QEMU_CAP, QEMU_ECAP, 0)
    assert isinstance(bench.ask(0x5000), int | RemapFault)
    pending = bool(bench.record()[1] & F)
    assert bool(bench.read(FSTS, 4) & 2) == pending
    bench.unit.reset()
    assert bytes(bench.unit.file.bytes) == power_on_bytes(QEMU_CAP, QEMU_ECAP)
    bench.memory.close()


def test_description_is_kept():
    description = UnitDescription(0xFED9_1000, QEMU_CAP, QEMU_ECAP, version=0x40)
    unit = RemappingUnit(description, Memory([(0, 1 << 20)]), 39)
    assert unit.description is description and unit.base == 0xFED9_1000 and unit.size == 4096
    assert unit.mmio_read(0, 4) == 0x40 and unit.register("VER") == 0x40
