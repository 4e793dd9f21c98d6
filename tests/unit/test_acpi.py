"""ACPI tables: hand-built bytes, random records, damage, and the search in memory."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.errors import BadTable, Unreadable
from hvcore.spec import acpi
from hvcore.spec.acpi import (
    Header,
    InterruptOverride,
    IoApic,
    LocalApic,
    LocalApicNmi,
    Madt,
    Mcfg,
    McfgWindow,
    Rsdp,
    TableRef,
    UnknownEntry,
)

MADT = Madt((LocalApic(0, 0), LocalApic(1, 2, 0), IoApic(2, 0xFEC00000), InterruptOverride(0, 2), InterruptOverride(9, 9, 0xD),
             LocalApicNmi(0xFF, 5, 1), UnknownEntry(9, bytes(14))))


class Ram:
    """Bytes at addresses; everything else is unreadable."""

    def __init__(self, *pieces: tuple[int, bytes]):
        self.pieces = pieces

    def read(self, address: int, length: int) -> bytes:
        for start, data in self.pieces:
            if start <= address and address + length <= start + len(data):
                return data[address - start:address - start + length]
        raise Unreadable(address, length)


def test_a_table_by_hand() -> None:
    data = acpi.build_table(Header("TEST", 3, b"ABCDEF", b"01234567", 0x11223344, b"WXYZ", 0x55667788), b"\xaa\xbb")
    assert data == b"TEST\x26\0\0\0\3" + data[9:10] + b"ABCDEF01234567\x44\x33\x22\x11WXYZ\x88\x77\x66\x55\xaa\xbb"
    assert sum(data) % 256 == 0
    header, whole = acpi.parse_header(data + b"beyond", "TEST")
    assert (header.oem_id, header.creator_revision, whole) == (b"ABCDEF", 0x55667788, data)
    assert str(header) == "TEST revision 3, ABCDEF 01234567 0x11223344, by WXYZ 0x55667788"


def test_madt_by_hand() -> None:
    body = acpi.build_madt(MADT)[36:]
    assert body == struct.pack("<II", 0xFEE00000, 1) + b"".join([
        b"\x00\x08\x00\x00\x01\x00\x00\x00", b"\x00\x08\x01\x02\x00\x00\x00\x00", b"\x01\x0c\x02\x00\x00\x00\xc0\xfe\x00\x00\x00\x00",
        b"\x02\x0a\x00\x00\x02\x00\x00\x00\x00\x00", b"\x02\x0a\x00\x09\x09\x00\x00\x00\x0d\x00", b"\x04\x06\xff\x05\x00\x01",
        b"\x09\x10" + bytes(14)])


@pytest.mark.parametrize("entry", [b"\x00\x09" + bytes(7), b"\x01\x02"])
def test_a_known_madt_structure_of_another_length_is_unknown(entry: bytes) -> None:
    assert acpi.parse_madt(acpi.build_table(Header("APIC"), bytes(8) + entry)).entries == (UnknownEntry(entry[0], entry[2:]),)


def test_mcfg_by_hand() -> None:
    data = acpi.build_mcfg(Mcfg((McfgWindow(0xB0000000, 0, 255), McfgWindow(0x80000000, 1, 63, 2))))
    assert data[36:] == bytes(8) + bytes.fromhex("000000b00000000000 00 00 ff 00000000 0000008000000000 0200 01 3f 00000000")


def test_rsdp_by_hand() -> None:
    data = acpi.build_rsdp(Rsdp(0x1_2345_6780, 0x77))
    assert data[:8] + data[9:32] + data[33:] == b"RSD PTR HVLAB \2\x77\0\0\0\x24\0\0\0\x80\x67\x45\x23\1\0\0\0" + bytes(3)
    assert sum(data[:20]) % 256 == sum(data) % 256 == 0


def test_what_a_console_shows() -> None:
    assert str(MADT) == """\
APIC revision 4, HVLAB HVLAB 0x1, by HVLB 0x1; local APICs at 0xfee00000, flags 0x1
  processor 0: local APIC 0, enabled
  processor 1: local APIC 2, not enabled
  IOAPIC 2 at 0xfec00000, interrupts from 0
  IRQ 0 arrives as interrupt 2, flags 0x0
  IRQ 9 arrives as interrupt 9, flags 0xd
  NMI at LINT1 of processor 0xff, flags 0x5
  structure of type 9: 00 00 00 00 00 00 00 00 00 00 00 00 00 00"""
    assert str(Mcfg((McfgWindow(0xB0000000, 1, 3, 2),))).endswith("\n  segment 0002, buses 01-03: [0xb0100000, 0xb0400000)")
    assert [str(Rsdp(0x1000)), str(Rsdp(None, 0x2000, 0))] == ["RSDP revision 2: XSDT at 0x1000", "RSDP revision 0: RSDT at 0x2000"]
    assert [str(TableRef("DMAR", 0x7FFE1000, 0xA8)), str(TableRef(None, 0x10, None))] == [
        "DMAR 0x000000007ffe1000 0000A8", "unreadable table at 0x10"]


u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
entries: st.SearchStrategy[acpi.MadtEntry] = st.one_of(
    st.builds(LocalApic, u8, u8, u32), st.builds(IoApic, u8, u32, u32, u8), st.builds(InterruptOverride, u8, u32, u16, u8),
    st.builds(LocalApicNmi, u8, u16, u8), st.builds(UnknownEntry, st.integers(5, 255), st.binary(max_size=20)))


@given(st.lists(entries, max_size=8).map(tuple), u32, u32)
def test_madt_comes_back(found: tuple[acpi.MadtEntry, ...], local_apic: int, flags: int) -> None:
    madt = Madt(found, local_apic, flags)
    assert acpi.parse_madt(acpi.build_madt(madt)) == madt


@given(st.lists(st.builds(McfgWindow, u64, u8, u8, u16, u32), max_size=4).map(tuple), u64)
def test_mcfg_comes_back(windows: tuple[McfgWindow, ...], reserved: int) -> None:
    mcfg = Mcfg(windows, reserved=reserved)
    assert acpi.parse_mcfg(acpi.build_mcfg(mcfg)) == mcfg


@given(st.lists(u64, max_size=8).map(tuple), u64, u32)
def test_xsdt_and_rsdp_come_back(addresses: tuple[int, ...], xsdt: int, rsdt: int) -> None:
    assert acpi.parse_xsdt(acpi.build_xsdt(addresses)) == addresses
    assert acpi.parse_rsdp(acpi.build_rsdp(Rsdp(xsdt, rsdt))) == Rsdp(xsdt, rsdt)


def test_an_old_root_table_has_addresses_of_four_bytes() -> None:
    assert acpi.parse_xsdt(acpi.build_table(Header("RSDT"), struct.pack("<II", 0x1000, 0xFFFF0000))) == (0x1000, 0xFFFF0000)


def apic(body: bytes) -> bytes:
    return acpi.build_table(Header("APIC"), body)


RSDP = acpi.build_rsdp(Rsdp(0x1000))


@pytest.mark.parametrize(("parse", "data", "words"), [
    (acpi.parse_madt, apic(bytes(4)), "40 bytes, at least 44 are needed"),
    (acpi.parse_madt, apic(bytes(8) + b"\0\0"), "the structure at offset 0x2c has length 0"),
    (acpi.parse_madt, apic(bytes(8) + b"\0\1"), "the structure at offset 0x2c has length 1"),
    (acpi.parse_madt, apic(bytes(8) + b"\1\x0c\0"), "the structure at offset 0x2c has length 12"),
    (acpi.parse_madt, apic(bytes(8) + b"\1"), "the structure at offset 0x2c has length 0"),
    (acpi.parse_madt, b"FACP" + apic(bytes(8))[4:], "this is another table"),
    (acpi.parse_mcfg, acpi.build_table(Header("MCFG"), bytes(9)), "45 bytes are no whole number of 16-byte windows"),
    (acpi.parse_mcfg, acpi.build_table(Header("MCFG"), bytes(7)), "43 bytes are no whole number"),
    (acpi.parse_xsdt, acpi.build_xsdt([1])[:40], "the header says 44 bytes but only 40 are there"),
    (acpi.parse_rsdp, b"RSD PTR ", "begin with b'RSD PTR ' and are 8"),
    (acpi.parse_rsdp, b"RSD ptr " + RSDP[8:], "not 'RSD PTR '"),
    (acpi.parse_rsdp, RSDP[:16] + b"\1" + RSDP[17:], "the first 20 bytes have a wrong checksum"),
    (acpi.parse_rsdp, RSDP[:24] + b"\1" + RSDP[25:], "wrong extended checksum"),
    (acpi.parse_rsdp, RSDP[:30], "36 bytes are cut short"),
])
def test_damage_is_told_in_one_sentence(parse: object, data: bytes, words: str) -> None:
    assert callable(parse)
    with pytest.raises(BadTable) as caught:
        parse(data)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadTable, match="'LONGER' has 6 bytes where the header has room for 4"):
        acpi.build_table(Header("LONGER"), b"")


MCFG = acpi.build_mcfg(Mcfg((McfgWindow(0xB0000000),)))
LEGACY = bytes(0x20000)


def high(*pieces: tuple[int, bytes]) -> tuple[int, bytes]:
    """The 128 KiB below 1 MiB with `pieces` at their addresses."""
    data = bytearray(LEGACY)
    for at, piece in pieces:
        data[at - 0xE0000:at - 0xE0000 + len(piece)] = piece
    return 0xE0000, bytes(data)


def test_tables_are_found_by_the_root_pointer() -> None:
    apic_table = acpi.build_madt(MADT)
    xsdt = acpi.build_xsdt([0x200000, 0x300000, 0x400000])
    ram = Ram(high((0xF1230, acpi.build_rsdp(Rsdp(0x100000)))), (0x100000, xsdt), (0x200000, MCFG), (0x400000, apic_table))
    assert acpi.find_rsdp(ram) == 0xF1230
    assert acpi.tables(ram) == [TableRef("XSDT", 0x100000, 60), TableRef("MCFG", 0x200000, 60), TableRef(None, 0x300000, None),
                                TableRef("APIC", 0x400000, len(apic_table))]
    assert acpi.table(ram, "MCFG") == MCFG
    assert acpi.table(ram, "DMAR") is None


def test_a_root_pointer_of_revision_0_leads_to_the_rsdt() -> None:
    rsdp = bytearray(acpi.build_rsdp(Rsdp(None, 0x100000, 0))[:20])
    rsdt = acpi.build_table(Header("RSDT"), struct.pack("<I", 0x200000))
    ram = Ram((0xFFFE0, bytes(rsdp)), (0x100000, rsdt), (0x200000, MCFG))
    assert [ref.signature for ref in acpi.tables(ram)] == ["RSDT", "MCFG"]


def test_a_root_pointer_off_16_bytes_or_damaged_is_none() -> None:
    damaged = RSDP[:24] + b"\1" + RSDP[25:]
    assert acpi.find_rsdp(Ram(high((0xF1238, RSDP), (0xE0000, damaged), (0xF0000, RSDP[:15] + b"\0" + RSDP[16:])))) is None
    assert acpi.find_rsdp(Ram(high((0xE0000, damaged), (0xF0000, RSDP)))) == 0xF0000
    assert acpi.tables(Ram(high())) == []
    assert acpi.tables(Ram()) == []


def test_the_extended_bios_data_area_is_searched_first() -> None:
    ebda = (0x9FC00, bytes(0x20) + RSDP + bytes(0x400))
    assert acpi.find_rsdp(Ram((0x40E, b"\xc0\x9f"), ebda, high((0xF0000, RSDP)))) == 0x9FC20
    assert acpi.find_rsdp(Ram((0x40E, b"\x00\x00"), ebda, high((0xF0000, RSDP)))) == 0xF0000


def test_a_root_pointer_to_nothing_is_told() -> None:
    with pytest.raises(BadTable, match="the RSDP at 0xf0000 names 0x1000, where there is no table"):
        acpi.tables(Ram(high((0xF0000, RSDP))))


def test_a_table_that_says_it_is_huge_is_unreadable() -> None:
    huge = MCFG[:4] + b"\xff\xff\xff\xff" + MCFG[8:]
    ram = Ram(high((0xF0000, acpi.build_rsdp(Rsdp(0x100000)))), (0x100000, acpi.build_xsdt([0x200000])), (0x200000, huge))

    class Endless(Ram):
        def read(self, address: int, length: int) -> bytes:
            assert length < 1 << 20
            return ram.read(address, length)

    assert acpi.tables(Endless())[1] == TableRef(None, 0x200000, None)
