"""What firmware lays in memory is found again as software finds it."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.errors import BadMachine, BadTable
from hvcore.machine import firmware
from hvcore.machine.description import EcamDescription, MachineDescription
from hvcore.machine.memory import Memory
from hvcore.spec import acpi
from hvcore.spec.dmar import parse
from hvcore.spec.e820 import E820Entry

DMAR = (Path(__file__).parents[1] / "data" / "acpi" / "DMAR-80665014dc56.dat").read_bytes()
E820 = (E820Entry(0, 0x9FC00, 1), E820Entry(0x9FC00, 0xA0000, 2), E820Entry(0xF0000, 0x100000, 2), E820Entry(0x100000, 0x3F00000, 1),
        E820Entry(0x3F00000, 0x4000000, 3))
PC = MachineDescription("pc", E820, ((0, 0x4000000),), 0x3F00000, DMAR, ecam=EcamDescription(0xB0000000, 0, 127))


def laid(machine: MachineDescription) -> tuple[Memory, firmware.Layout]:
    memory = Memory(machine.ram_runs)
    return memory, firmware.lay(memory, machine)


def test_the_tables_are_found_from_the_root_pointer() -> None:
    memory, layout = laid(PC)
    assert acpi.find_rsdp(memory) == firmware.RSDP_ADDRESS == layout.address("RSDP")
    refs = acpi.tables(memory)
    assert [(r.signature, r.address, r.length) for r in refs] == [
        ("XSDT", 0x3F00000, 68), ("FACP", 0x3F00050, 276), ("APIC", 0x3F00170, 90), ("MCFG", 0x3F001D0, 60), ("DMAR", 0x3F00210, len(DMAR))]
    assert [layout.address(r.signature or "") for r in refs] == [r.address for r in refs]
    assert acpi.table(memory, "DMAR") == DMAR
    assert parse(acpi.table(memory, "DMAR") or b"").host_address_width == parse(DMAR).host_address_width


def test_what_the_tables_say() -> None:
    memory, _ = laid(PC)
    madt = acpi.parse_madt(acpi.table(memory, "APIC") or b"")
    assert [e for e in madt.entries if isinstance(e, acpi.LocalApic)] == [acpi.LocalApic(0, 0, 1)]
    assert [e.address for e in madt.entries if isinstance(e, acpi.IoApic)] == [0xFEC00000]
    assert [(e.source, e.gsi, e.flags) for e in madt.entries if isinstance(e, acpi.InterruptOverride)] == [(0, 2, 0), (9, 9, 0xD)]
    assert acpi.parse_mcfg(acpi.table(memory, "MCFG") or b"").windows == (acpi.McfgWindow(0xB0000000, 0, 127),)


def test_the_fixed_table_leads_to_the_two_that_the_root_table_does_not_name() -> None:
    memory, layout = laid(PC)
    fadt = acpi.table(memory, "FACP") or b""
    facs, dsdt, extended = (int.from_bytes(fadt[at:at + width], "little") for at, width in ((36, 4), (40, 4), (140, 8)))
    assert (layout.address("FACS"), layout.address("DSDT")) == (facs, dsdt) and extended == dsdt
    assert facs % 64 == 0 and memory.read(facs, 8) == b"FACS\x40\0\0\0"
    assert acpi.parse_header(memory.read(dsdt, memory.read32(dsdt + 4)), "DSDT")[0].revision == 2
    assert {"DSDT", "FACS"}.isdisjoint(ref.signature for ref in acpi.tables(memory))


def test_what_a_machine_lacks_has_no_table() -> None:
    memory, layout = laid(replace(PC, dmar=None, ecam=None))
    assert [r.signature for r in acpi.tables(memory)] == ["XSDT", "FACP", "APIC"]
    assert layout.address("DMAR") is None


@pytest.mark.parametrize("dmar", [DMAR[:50], b"DMAR", bytes(64), DMAR[:9] + b"\0" + DMAR[10:], b"\xff" * 100])
def test_a_broken_dmar_is_laid_byte_for_byte(dmar: bytes) -> None:
    memory, layout = laid(replace(PC, dmar=dmar))
    address = layout.address("DMAR")
    assert address is not None and memory.read(address, len(dmar)) == dmar
    assert acpi.tables(memory)[4].address == address


def test_the_map_is_read_back_in_its_order() -> None:
    shuffled = (E820[3], E820[0], E820Entry(1 << 40, 1 << 41, 20))
    memory, _ = laid(replace(PC, e820=shuffled))
    assert firmware.read_e820(memory) == shuffled
    assert memory.read(0xF0000, 8) == b"E820\3\0\0\0"
    assert memory.read(0xF0008, 20) == bytes.fromhex("0000100000000000 0000e00300000000 01000000")


def test_a_map_that_is_gone_is_told() -> None:
    memory, _ = laid(PC)
    memory.write(firmware.E820_ADDRESS + 4, b"\xff\xff\xff\xff")
    with pytest.raises(BadTable, match="no map at 0xf0000, the bytes there are b'E820' and 4294967295 entries"):
        firmware.read_e820(memory)
    with pytest.raises(BadTable, match="no map at 0xf0000"):
        firmware.read_e820(Memory(((0, 0x100000),)))


@pytest.mark.parametrize(("low", "kib", "ebda"), [
    (0x9FC00, 639, 0x9FC00), (0x9F000, 636, 0x9F000), (0x937FF, 589, 0x93800), (0xA0000, 640, None), (0x58000, 352, None)])
def test_the_bios_data_area_follows_the_map(low: int, kib: int, ebda: int | None) -> None:
    memory, layout = laid(replace(PC, e820=(E820Entry(0, low, 1), *E820[2:])))
    assert int.from_bytes(memory.read(0x413, 2), "little") == kib
    assert int.from_bytes(memory.read(0x40E, 2), "little") << 4 == (ebda or 0)
    assert int.from_bytes(memory.read(0x400, 2), "little") == 0x3F8
    assert int.from_bytes(memory.read(0x410, 2), "little") >> 9 & 7 == 1, "serial ports"
    assert layout.address("EBDA") == ebda
    assert ebda is None or memory.read(ebda, 1)[0] == (0xA0000 - ebda) >> 10


def test_nothing_else_is_written() -> None:
    memory, layout = laid(PC)
    left = memory.u8(0, 0x4000000).copy()
    for region in layout.regions:
        assert left[region.start:region.end].any()
        left[region.start:region.end] = 0
    assert not left.any()
    assert all(a.end <= b.start for a, b in pairwise(layout.regions))


def test_what_a_console_shows() -> None:
    _, layout = laid(replace(PC, dmar=None))
    assert str(layout) == """\
[0x400, 0x500) BDA
[0x9fc00, 0xa0000) EBDA
[0xf0000, 0xf006c) E820
[0xf8000, 0xf8024) RSDP
[0x3f00000, 0x3f0003c) XSDT
[0x3f00040, 0x3f00154) FACP
[0x3f00160, 0x3f001ba) APIC
[0x3f001c0, 0x3f001fc) MCFG
[0x3f00200, 0x3f00476) DSDT
[0x3f00480, 0x3f004c0) FACS"""


@pytest.mark.parametrize(("machine", "words"), [
    (replace(PC, acpi_address=0x80000000), "pc: acpi_address 0x80000000 is not RAM"),
    (replace(PC, acpi_address=-16), "is not RAM"),
    (replace(PC, acpi_address=0x4000000 - 0x80), "firmware's FACP (276 bytes at 0x3ffffd0) would not lie in RAM"),
    (replace(PC, acpi_address=0x4000000 - 0x600), "firmware's FACS (64 bytes at 0x4000000) would not lie in RAM"),
    (replace(PC, ram_runs=((0, 0xA0000), (0x100000, 0x4000000))), "firmware's E820 (108 bytes at 0xf0000) would not lie in RAM"),
    (replace(PC, acpi_address=0xF0010), "firmware's E820 at 0xf0000 runs into its XSDT at 0xf0010"),
    (replace(PC, acpi_address=0xF0060), "firmware's E820 at 0xf0000 runs into its XSDT at 0xf0060"),
    (replace(PC, acpi_address=0xEFFE0), "firmware's XSDT at 0xeffe0 runs into its E820 at 0xf0000"),
    (replace(PC, acpi_address=0xF7F80), "firmware's FACP at 0xf7fd0 runs into its RSDP at 0xf8000"),
    (replace(PC, e820=E820[:1] * 1700), "1700 E820 entries, firmware has room for 1638"),
])
def test_a_machine_without_room_is_refused_and_untouched(machine: MachineDescription, words: str) -> None:
    memory = Memory(machine.ram_runs)
    with pytest.raises(BadMachine) as caught:
        firmware.lay(memory, machine)
    assert words in str(caught.value)
    assert not any(memory.u8(a, b - a).any() for a, b in memory.runs)


@given(st.integers(0, 0x120000) | st.integers(0x3FFF000, 0x4001000))
def test_any_place_for_the_tables_is_right_or_refused(address: int) -> None:
    memory = Memory(PC.ram_runs)
    try:
        firmware.lay(memory, replace(PC, acpi_address=address))
    except BadMachine:
        assert acpi.find_rsdp(memory) is None
    else:
        assert acpi.table(memory, "DMAR") == DMAR
        assert firmware.read_e820(memory) == E820
        assert all(ref.address % 16 == 0 for ref in acpi.tables(memory))
    finally:
        memory.close()
