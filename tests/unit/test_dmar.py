"""DMAR tables: real ones byte for byte, hand-built ones, random ones, damaged ones."""

import csv
import re
import struct
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.errors import BadTable
from hvcore.spec.acpi import checksum
from hvcore.spec.dmar import (
    Andd,
    Atsr,
    Dmar,
    Drhd,
    Rhsa,
    Rmrr,
    Satc,
    Scope,
    ScopeType,
    Sidp,
    Structure,
    Unknown,
    build,
    parse,
)

DATA = Path(__file__).parents[1] / "data" / "acpi"
TABLES = {path.name: path.read_bytes() for path in sorted(DATA.glob("DMAR-*.dat"))}
INDEX = {row["file"]: row for row in csv.DictReader((DATA / "index.csv").open())}


def sealed(data: bytes) -> bytes:
    """`data` with length and checksum made right."""
    data = data[:4] + struct.pack("<I", len(data)) + data[8:9] + b"\0" + data[10:]
    return data[:9] + bytes([checksum(data)]) + data[10:]


def raw(*structures: bytes) -> bytes:
    """A DMAR of width 39 and flags 1 around the bytes of structures."""
    head = b"DMAR" + bytes(4) + b"\1\0" + b"OEM   " + b"MODEL   " + struct.pack("<I4sI", 7, b"ABCD", 9) + b"\x26\x01" + bytes(10)
    return sealed(head + b"".join(structures))


def test_the_corpus_is_whole() -> None:
    assert len(TABLES) == 242
    assert TABLES.keys() == INDEX.keys()


@pytest.mark.parametrize("name", TABLES)
def test_real_tables_come_back_byte_for_byte_and_agree_with_the_index(name: str) -> None:
    table, row = parse(TABLES[name]), INDEX[name]
    assert build(table) == TABLES[name]
    counts = Counter(type(s) for s in table.structures)
    found = {"haw": table.host_address_width, "flags": table.flags} | {
        kind.__name__.lower(): counts[kind] for kind in (Drhd, Rmrr, Atsr, Rhsa, Andd, Satc, Sidp)}
    assert found == {key: int(row[key]) for key in found}
    assert " ".join(f"{r.base:x}-{r.limit:x}" for r in table.rmrrs) == row["rmrr_ranges"]
    assert not counts[Unknown]
    assert [d.include_all for d in table.drhds] == [False] * (len(table.drhds) - 1) + [True]


def test_every_field_of_a_hand_built_table() -> None:
    drhd = struct.pack("<HHBBHQ", 0, 24, 1, 0x12, 3, 0xFED91000) + bytes([3, 8, 0, 2, 5, 0xF0, 0x1F, 7])
    rmrr = struct.pack("<HHHHQQ", 1, 34, 0, 0, 0x1000, 0x2FFF) + bytes([1, 10, 0, 0, 0, 0, 0x1C, 0, 2, 1])
    atsr = struct.pack("<HHBBH", 2, 8, 1, 0, 2)
    rhsa = struct.pack("<HHIQI", 3, 20, 0, 0xFED91000, 4)
    andd = struct.pack("<HH3xB", 4, 14, 6) + b"\\_SB\0\0"
    satc = struct.pack("<HHBBH", 5, 16, 1, 0, 0) + bytes([1, 8, 0, 0, 0, 0, 2, 0])
    sidp = struct.pack("<HHHH", 6, 16, 0, 0) + bytes([1, 8, 0x1F, 0, 0, 0, 2, 0])
    other = struct.pack("<HH", 0x77, 6) + b"\xaa\xbb"
    data = raw(drhd, rmrr, atsr, rhsa, andd, satc, sidp, other)
    igd = Scope(ScopeType.ENDPOINT, 0, 0, ((2, 0),))
    table = parse(data)
    assert table == Dmar(39, 1, (
        Drhd(1, 0x12, 3, 0xFED91000, (Scope(ScopeType.IOAPIC, 5, 0xF0, ((0x1F, 7),), reserved=2),)),
        Rmrr(0, 0x1000, 0x2FFF, (Scope(ScopeType.ENDPOINT, 0, 0, ((0x1C, 0), (2, 1))),)),
        Atsr(1, 2), Rhsa(0xFED91000, 4), Andd(6, "\\_SB", padding=b"\0\0"), Satc(1, 0, (igd,)),
        Sidp(0, (Scope(ScopeType.ENDPOINT, 0, 0, ((2, 0),), flags=0x1F),)), Unknown(0x77, b"\xaa\xbb")),
        1, b"OEM   ", b"MODEL   ", 7, b"ABCD", 9)
    assert table.drhds[0].register_bytes == 16384 and table.drhds[0].include_all
    assert table.rmrrs[0].end == 0x3000 and table.atsrs[0].all_ports
    assert table.andds == table.structures[4:5] and table.satcs == table.structures[5:6] and table.rhsas == table.structures[3:4]
    assert isinstance(table.drhds[0].scopes[0].type, ScopeType)
    assert build(table) == data


def test_what_a_console_shows() -> None:
    table = Dmar(39, 5, (
        Drhd(1, 0, 0, 0xFED91000, (Scope(3, 2, 0xF0, ((0x1F, 7),)), Scope(2, 0, 0, ((0x1C, 4), (0, 0))), Scope(9, 1, 0, ()))),
        Rmrr(0, 0x9B800000, 0x9FFFFFFF, (Scope(1, 0, 0, ((2, 0),)),)), Rmrr(0, 0x1000, 0xF), Rmrr(0, 0, 0), Andd(1, "\\_SB.I2C0"),
        Sidp(0, (Scope(1, 0, 0, ((2, 0),), flags=0x1F),)), Unknown(9, b"\xde\xad")))
    assert str(table) == """\
DMAR revision 1, HVLAB HVLAB 0x1, by HVLB 0x1; host address width 39, flags 0x5 (INTR_REMAP, DMA_CTRL_PLATFORM_OPT_IN)
  DRHD 0xfed91000, 4 KiB, segment 0000, INCLUDE_PCI_ALL
    IOAPIC 2 f0:1f.7
    bridge and all below 00:1c.4/00.0
    scope of type 0x9 id 1 00:no path
  RMRR [0x9b800000, 0xa0000000), 73728 KiB, segment 0000
    endpoint 00:02.0
  RMRR [0x1000, 0x10), limit below base, segment 0000
  RMRR [0x0, 0x1), 1 bytes, segment 0000
  ANDD 1: \\_SB.I2C0
  SIDP segment 0000
    endpoint 00:02.0 flags 0x1f
  structure of type 0x9: de ad"""


GOOD = raw(struct.pack("<HHBBHQ", 0, 16, 1, 0, 0, 0xFED90000))
BAD = {
    "no bytes": (b"", "DMAR: only 0 bytes, a table has at least 36"),
    "half a header": (GOOD[:20], "DMAR: only 20 bytes"),
    "cut after the header": (GOOD[:60], "the header says 64 bytes but only 60 are there: the dump is cut short"),
    "another table": (b"FACP" + GOOD[4:], "the bytes begin with b'FACP': this is another table"),
    "length below the header": (GOOD[:4] + b"\x10\0\0\0" + GOOD[8:], "says 16 bytes, less than the header's own 36"),
    "wrong checksum": (GOOD[:9] + bytes([GOOD[9] ^ 0x40]) + GOOD[10:],
                       f"the checksum at offset 9 is {GOOD[9] ^ 0x40:#04x}, the bytes want {GOOD[9]:#04x}"),
    "no room for the width": (sealed(GOOD[:40]), "40 bytes, at least 48 are needed before the first structure"),
    "structure of length 0": (raw(struct.pack("<HH", 1, 0) + bytes(20)), "the RMRR at offset 0x30 has length 0, at least 4 are needed"),
    "structure of length 3": (raw(struct.pack("<HH", 0x30, 3)), "the structure of type 0x30 at offset 0x30 has length 3"),
    "structure past the end": (raw(struct.pack("<HH", 0, 17) + bytes(12)),
                               "the DRHD at offset 0x30 with 17 bytes runs past the table's end at 0x40"),
    "two bytes left": (raw(struct.pack("<HH", 9, 4), b"\0\0"), "2 bytes at offset 0x34 are too few for a structure"),
    "short DRHD": (raw(struct.pack("<HHQ", 0, 12, 0)), "the DRHD at offset 0x30 has length 12, at least 16 are needed"),
    "short RHSA": (raw(struct.pack("<HHIQ", 3, 16, 0, 0)), "the RHSA at offset 0x30 has length 16, at least 20 are needed"),
    "scope of length 0": (raw(struct.pack("<HHBBH", 2, 16, 0, 0, 0) + bytes(8)), "the device scope at offset 0x38 has length 0"),
    "scope of length 7": (raw(struct.pack("<HHBBH", 2, 15, 0, 0, 0) + bytes([1, 7, 0, 0, 0, 0, 0])),
                          "offset 0x38 has length 7: it must be 6 and 2 more"),
    "scope past the end": (raw(struct.pack("<HHBBH", 2, 16, 0, 0, 0) + bytes([1, 10, 0, 0, 0, 0, 0, 0])),
                           "offset 0x38 has length 10 and runs past its structure's end at 0x40"),
    "scope of one byte": (raw(struct.pack("<HHBBH", 2, 9, 0, 0, 0) + b"\1"), "1 bytes at offset 0x38 are too few for a device scope"),
}


@pytest.mark.parametrize("name", BAD)
def test_damage_is_told_in_one_sentence(name: str) -> None:
    data, words = BAD[name]
    with pytest.raises(BadTable) as caught:
        parse(data)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_after_the_table_are_not_its_own() -> None:
    assert parse(GOOD + b"junk") == parse(GOOD)


@pytest.mark.parametrize("table", [
    Dmar(0, 0, ()), Dmar(257, 0, ()), Dmar(39, 256, ()), Dmar(39, 0, (Drhd(0, 0, 0x10000, 0),)), Dmar(39, 0, (Drhd(0, 0, 0, 1 << 64),)),
    Dmar(39, 0, (Andd(1, "\\_SB.\N{SNOWMAN}"),)), Dmar(39, 0, (Drhd(0, 0, 0, 0, (Scope(1, 0, 0, ((300, 0),)),)),)),
    Dmar(39, 0, (Drhd(0, 0, 0, 0, (Scope(1, 0, 0, ((0, 0),) * 125),)),)), Dmar(39, 0, (Unknown(7, bytes(65536)),)),
    Dmar(39, 0, (), oem_id=b"FIVE5"), Dmar(39, 0, (), oem_revision=1 << 32)])
def test_values_that_do_not_fit_are_refused(table: Dmar) -> None:
    with pytest.raises(BadTable, match=r"fit|pad it"):
        build(table)


def number(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << bits) - 1)


def names(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


u8, u16, u32, u64 = number(8), number(16), number(32), number(64)
paths = st.lists(st.tuples(u8, u8), max_size=5).map(tuple)
padding = st.binary(max_size=4).map(lambda b: b"\0" + b)
scopes = st.lists(st.builds(Scope, u8, u8, u8, paths, u8, u8), max_size=4).map(tuple)
acpi_paths = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=20)
structures: st.SearchStrategy[Structure] = st.one_of(
    st.builds(Drhd, u8, u8, u16, u64, scopes), st.builds(Rmrr, u16, u64, u64, scopes, u16), st.builds(Atsr, u8, u16, scopes, u8),
    st.builds(Rhsa, u64, u32, u32, st.binary(max_size=4)), st.builds(Andd, u8, acpi_paths, names(3), padding),
    st.builds(Satc, u8, u16, scopes, u8), st.builds(Sidp, u16, scopes, u16),
    st.builds(Unknown, st.integers(7, 0xFFFF), st.binary(max_size=9)))
dmars = st.builds(Dmar, st.integers(1, 256), u8, st.lists(structures, max_size=6).map(tuple), u8, names(6), names(8), u32, names(4), u32,
                  names(10))


@given(dmars)
def test_what_is_built_parses_to_the_same(table: Dmar) -> None:
    data = build(table)
    assert parse(data) == table
    assert sum(data) % 256 == 0
    assert str(table).startswith("DMAR revision")


def table_or_sentence(data: bytes) -> Dmar | str:
    """The table in `data`, or the one sentence that refuses it; nothing else may happen."""
    try:
        return parse(data)
    except BadTable as e:
        return str(e)


edits = st.lists(st.tuples(st.integers(36, 400), u8), max_size=6)


@given(st.sampled_from(sorted(TABLES)), edits, st.integers(0, 40), st.binary(max_size=9))
def test_a_mutated_table_is_a_table_or_bad(name: str, changes: list[tuple[int, int]], cut: int, more: bytes) -> None:
    data = bytearray(TABLES[name])
    for at, value in changes:
        data[at % len(data)] = value
    mutated = sealed(b"DMAR" + bytes(data[4:len(data) - cut]) + more)
    found = table_or_sentence(mutated)
    if isinstance(found, str):
        assert re.fullmatch("DMAR: .* at offset 0x.*", found)
    else:
        assert build(found) == mutated
        assert str(found)


@given(st.binary(max_size=200))
def test_noise_structures_are_a_table_or_bad(noise: bytes) -> None:
    data = raw(noise)
    found = table_or_sentence(data)
    assert re.fullmatch("DMAR: .* at offset 0x.*", found) if isinstance(found, str) else build(found) == data


@given(st.binary(max_size=100))
def test_noise_is_bad(noise: bytes) -> None:
    with pytest.raises(BadTable):
        parse(noise)
