"""Register and entry declarations against values read from real machines and written out by hand."""

import pytest
from vtd_bench import QEMU_CAP, QEMU_ECAP

from hvcore.spec import vtd


@pytest.mark.parametrize(("cap", "levels", "mgaw", "domains", "leaves", "records", "fro"), [
    (QEMU_CAP, (3,), 39, 65536, (1, 2, 3), 1, 0x220),
    (0x1C0000C40660462, (4,), 39, 256, (1, 2, 3), 1, 0x400),
    (0xD2008C40660462, (4,), 39, 256, (1, 2, 3), 1, 0x400),
    (0xC0000020630272, (3,), 36, 256, (1,), 1, 0x200),
    (0xD2078C106F0462, (4,), 48, 256, (1, 2, 3), 8, 0x100),
    (0x8D2078C106F0466, (4,), 48, 65536, (1, 2, 3), 8, 0x100),
])
def test_capabilities_of_real_units(cap, levels, mgaw, domains, leaves, records, fro):
    assert vtd.sagaw_levels(cap) == levels
    assert (vtd.mgaw(cap), vtd.ndoms(cap), vtd.leaf_levels(cap)) == (mgaw, domains, leaves)
    assert (vtd.frcd_count(cap), vtd.frcd_offset(cap)) == (records, fro)


def test_measured_unit_decodes_as_measured():
    cap, ecap = vtd.CAP.decode(QEMU_CAP), vtd.ECAP.decode(QEMU_ECAP)
    assert {k: v for k, v in cap.items() if v} == {
        "DRD": 1, "DWD": 1, "MAMV": 18, "PSI": 1, "SLLPS": 3, "FRO": 0x22, "MGAW": 38, "SAGAW": 2, "ND": 6}
    assert {k: v for k, v in ecap.items() if v} == {"QI": 1, "PT": 1, "IRO": 0xF}


@pytest.mark.parametrize(("ecap", "iro"), [(0xF42, 0xF0), (0x1000, 0x100), (0xF020DF, 0x200), (0xF050DA, 0x500), (0x19E2FF0505E, 0x500)])
def test_iotlb_registers_follow_ecap(ecap, iro):
    named = {r.name: r for r in vtd.registers(QEMU_CAP, ecap)}
    assert (named["IVA"].offset, named["IOTLB"].offset) == (iro, iro + 8)


def test_registers_are_ordered_and_keep_reserved_bits():
    regs = vtd.registers(QEMU_CAP, QEMU_ECAP)
    assert [r.offset for r in regs] == sorted(r.offset for r in regs)
    named = {r.name: r for r in regs}
    assert named["CAP"].reset == QEMU_CAP and named["FECTL"].reset == 1 << 31
    assert named["PMEN"].write_mask == named["PLMBASE"].write_mask == named["IRTA"].write_mask == 0
    assert named["RTADDR"].write_mask & 0xFFF == 0
    assert {r.name for r in regs if not r.section.startswith("10.4.")} == {"IQERCD"}, "which came after revision 2.4"
    assert all(not (r.write_mask | r.w1c_mask) >> r.width for r in regs)


def test_entries_are_made_bit_for_bit():
    assert vtd.root_entry(0x127F42000) == 0x127F42001
    assert vtd.context_entry(0x12D8AB000, aw=2, did=0x15) == (0x12D8AB001, 0x1502)
    assert vtd.context_entry(0x1000, aw=1, did=0xFFFF, tt=2, fpd=True) == (0x100B, 0xFFFF01)


@pytest.mark.parametrize(("level", "leaf", "cap", "ecap", "reserved"), [
    (1, True, QEMU_CAP, QEMU_ECAP, 0x400F_FF80_0000_0800),
    (2, False, QEMU_CAP, QEMU_ECAP, 0x400F_FF80_0000_0800),
    (3, False, QEMU_CAP, QEMU_ECAP, 0x400F_FF80_0000_0800),
    (4, False, QEMU_CAP, QEMU_ECAP, 0x400F_FF80_0000_0880),
    (2, True, QEMU_CAP, QEMU_ECAP, 0x400F_FF80_001F_F800),
    (3, True, QEMU_CAP, QEMU_ECAP, 0x400F_FF80_3FFF_F800),
    (1, True, QEMU_CAP, 0xF020DF, 0x000F_FF80_0000_0000),
    (2, False, QEMU_CAP, 0xF020DF, 0x400F_FF80_0000_0800),
    (2, False, 0xC0000020630272, 0x1000, 0x400F_FF80_0000_0880),
])
def test_reserved_bits_of_paging_entries(level, leaf, cap, ecap, reserved):
    assert vtd.entry_reserved(level, leaf, cap, ecap, 39) == reserved


def test_address_split():
    iova = 0x1A << 39 | 0x123 << 30 | 0x0F1 << 21 | 0x1FF << 12 | 0xABC
    assert [vtd.level_index(iova, level) for level in (4, 3, 2, 1)] == [0x1A, 0x123, 0x0F1, 0x1FF]
    assert [vtd.level_shift(level) for level in (1, 2, 3, 4)] == [12, 21, 30, 39]
    assert [(vtd.aw_levels(aw), vtd.aw_bits(aw)) for aw in range(5)] == [(2, 30), (3, 39), (4, 48), (5, 57), (6, 64)]
    assert vtd.input_bits(0x1C0000C40660462, 2) == 39


def test_every_reason_has_linux_text():
    assert set(vtd.LINUX_TEXT) == {int(r) for r in vtd.FaultReason} == set(range(1, 0xF)) | set(range(0x20, 0x27))
    assert vtd.LINUX_TEXT[6] == "PTE Read access is not set"
    assert {0x1, 0x8, 0x9, 0xA} == set(range(1, 0xF)) - vtd.FPD_SILENCES


def test_registers_of_page_requests_and_of_queue_errors():
    there = {r.offset: (r.name, r.width) for r in vtd.registers(QEMU_CAP, QEMU_ECAP) if 0xB0 <= r.offset < 0xF0}
    assert there == {0xB0: ("IQERCD", 64), 0xB8: ("IRTA", 64), 0xC0: ("PQH", 64), 0xC8: ("PQT", 64), 0xD0: ("PQA", 64), 0xDC: ("PRS", 32),
                     0xE0: ("PECTL", 32), 0xE4: ("PEDATA", 32), 0xE8: ("PEADDR", 32), 0xEC: ("PEUADDR", 32)}
    for ecap, masked, taken in ((QEMU_ECAP, 0, 0), (QEMU_ECAP | 1 << 29, 1 << 31, 0xFFFF_FFFF_FFFF_F007)):
        named = {r.name: r for r in vtd.registers(QEMU_CAP, ecap)}
        assert (named["PECTL"].reset, named["PQA"].write_mask) == (masked, taken)
