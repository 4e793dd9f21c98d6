"""The committed lab guest: what its ELF file holds, that its sources make it; how an ELF file is read and boot_params are built."""

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.errors import BadMachine
from hvcore.spec.e820 import E820Entry
from hvcore.spec.linuxboot import Elf, Segment, boot_params, load_elf

GUESTS = Path(__file__).resolve().parents[2] / "images" / "guests"
LAB = (GUESTS / "lab.elf").read_bytes()
IMAGE = 0x1000000


def _program_headers(data: bytes) -> list[tuple[int, ...]]:
    """Type, flags, offset, virtual, physical, size in the file, size in memory, alignment of each."""
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    return [struct.unpack_from("<IIQQQQQQ", data, offset + i * size) for i in range(count)]


def test_the_lab_guest_lies_within_2_mib_from_16_mib_on() -> None:
    elf = load_elf(LAB)
    assert elf.entry == IMAGE
    assert min(s.address for s in elf.segments) == IMAGE
    assert max(s.address + s.size for s in elf.segments) <= IMAGE + (2 << 20)
    assert all(s.address % 4096 == 0 for s in elf.segments)


def test_no_part_of_it_is_both_writable_and_executable() -> None:
    flags = [row[1] for row in _program_headers(LAB) if row[0] == 1]
    assert flags == [5, 4, 6]


def test_its_pvh_note_names_an_address_in_the_text() -> None:
    note = next(row for row in _program_headers(LAB) if row[0] == 4)
    name_size, value_size, kind, name, entry = struct.unpack_from("<III4sQ", LAB, note[2])
    assert (name_size, value_size, kind, name) == (4, 8, 18, b"Xen\0")
    text = load_elf(LAB).segments[0]
    code = text.data[entry - text.address:]
    assert code[:4] == bytes.fromhex("fafc89de")  # cli; cld; mov %ebx, %esi


def test_it_names_no_path() -> None:
    assert str(GUESTS.parents[1]).encode() not in LAB and b".c\0" not in LAB


def _tools() -> str:
    return "".join(subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout.partition("\n")[0] + "\n"
                   for tool in ("gcc", "ld"))


@pytest.mark.needs("gcc", "make", "strip")
def test_its_sources_make_it_byte_for_byte(tmp_path: Path) -> None:
    pinned = (GUESTS / "lab.gcc").read_text()
    if _tools() != pinned:
        pytest.skip(f"the image was made by other tools:\n{pinned}")
    subprocess.run(["make", "-s", "-C", str(GUESTS), f"OUT={tmp_path}"], check=True, capture_output=True)
    assert (tmp_path / "lab.elf").read_bytes() == LAB
    assert (tmp_path / "traps.elf").read_bytes() == (GUESTS / "traps.elf").read_bytes()
    assert (tmp_path / "lab.gcc").read_text() == pinned


def _elf(segments: list[tuple[int, int, bytes, int]], entry: int) -> bytes:
    """An ELF executable by hand; segments are (virtual, physical, data, size in memory)."""
    data, rows, table = 64 + 56 * len(segments), b"", b""
    for virtual, physical, content, size in segments:
        rows += struct.pack("<IIQQQQQQ", 1, 5, data + len(table), virtual, physical, len(content), size, 4096)
        table += content
    header = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    return header + rows + table


def test_segments_and_entry_of_an_elf_file() -> None:
    data = _elf([(0x1000000, 0x1000000, b"text", 4), (0x1001000, 0x1001000, b"data", 0x100), (0, 0, b"", 0)], 0x1000002)
    assert load_elf(data) == Elf(0x1000002, (Segment(0x1000000, b"text", 4), Segment(0x1001000, b"data", 0x100)))


def test_a_virtual_entry_becomes_physical() -> None:
    data = _elf([(0xFFFFFFFF81000000, 0x1000000, b"kernel", 0x2000)], 0xFFFFFFFF81000123)
    assert load_elf(data).entry == 0x1000123


@pytest.mark.parametrize(("data", "says"), [
    (b"", "not an ELF file"),
    (b"MZ" + bytes(100), "bzImage must be unpacked"),
    (LAB[:4] + b"\1" + LAB[5:], "not for x86-64"),
    (LAB[:18] + b"\3\0" + LAB[20:], "not for x86-64"),
    (LAB[:16] + b"\3\0" + LAB[18:], "no executable at fixed addresses"),
    (LAB[:54] + b"\4\0" + LAB[56:], "program headers of 4 bytes"),
    (LAB[:100], "cut off"),
    (LAB[:5000], "cut off"),
    (LAB[:56] + b"\0\0" + LAB[58:], "nothing to load"),
    (_elf([(0x1000, 0x1000, b"12345", 4)], 0x1000), "more bytes"),
    (_elf([(0x1000, 0x1000, b"1", 4), (0x1003, 0x1003, b"1", 4)], 0x1000), "overlap: 0x1000"),
    (_elf([(0x1000, 1 << 40, b"1", 4)], 0x1000), "a guest reaches 0x10000000000"),
    (_elf([(0x1000, 0x1000, b"1", 4)], 0x9000), "starts at 0x9000, which none of its segments holds"),
])
def test_a_wrong_elf_file_is_told_in_one_sentence(data: bytes, says: str) -> None:
    with pytest.raises(BadMachine, match=says) as error:
        load_elf(data)
    assert "\n" not in str(error.value)


@given(st.lists(st.tuples(st.integers(0, 0x140), st.integers(0, 255)), max_size=8), st.integers(0, len(LAB)))
def test_a_damaged_elf_file_is_loaded_or_refused(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(LAB)
    for at, value in changes:
        data[at] = value
    try:
        elf = load_elf(bytes(data[:length]))
    except BadMachine:
        return
    assert any(s.address <= elf.entry < s.end for s in elf.segments)
    assert all(len(s.data) <= s.size for s in elf.segments)


def test_boot_params_are_where_linux_reads_them() -> None:
    page = boot_params([E820Entry(0, 0x9FC00, 1), E820Entry(0x100000000, 0x200000000, 7)], 0x20000)
    assert len(page) == 4096
    assert page[0x1E8] == 2 and page[0x1EF] == 0
    assert page[0x1FE:0x200] == b"\x55\xaa" and page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF and page[0x211] == 1
    assert struct.unpack_from("<I", page, 0x228) == (0x20000,)
    assert struct.unpack_from("<QQIQQI", page, 0x2D0) == (0, 0x9FC00, 1, 0x100000000, 0x100000000, 7)
    assert not any(page[0x2D0 + 40:])


def test_boot_params_hold_128_entries() -> None:
    entries = [E820Entry(i << 20, i + 1 << 20, 1) for i in range(129)]
    assert boot_params(entries[:128], 0)[0x1E8] == 128
    with pytest.raises(BadMachine, match="has 129 entries"):
        boot_params(entries, 0)
    with pytest.raises(BadMachine, match="0x100000000 is not below 4 GiB"):
        boot_params(entries[:1], 1 << 32)
