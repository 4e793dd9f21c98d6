"""The FADT and FACS by their offsets in the specification, and as ACPI's disassembler reads them."""

import re
import struct
import subprocess
from pathlib import Path

import pytest

from hvcore.machine import firmware, pm1, pmtimer, reset
from hvcore.machine.description import MachineDescription
from hvcore.machine.memory import Memory
from hvcore.spec import acpi
from hvcore.spec.e820 import E820Entry
from hvcore.spec.fadt import BootFlag, Fadt, FadtFlag, build_facs, build_fadt

FADT = Fadt(0x7FFE0640, 0x7FFE0290, 9, 0x600, 0x604, 0x608, 0xCF9, 6, FadtFlag.WBINVD | FadtFlag.RESET_REG_SUP,
            BootFlag.LEGACY_DEVICES | BootFlag.VGA_NOT_PRESENT, 0x32)


def test_every_byte_of_the_fixed_table() -> None:
    data = build_fadt(FADT)
    header, _ = acpi.parse_header(data, "FACP")
    assert (len(data), header.revision, data[131]) == (276, 6, 5)
    expected = bytearray(276)
    expected[:36] = data[:36]
    for offset, form, value in (
            (36, "<I", 0x7FFE0640), (40, "<I", 0x7FFE0290), (46, "<H", 9), (56, "<I", 0x600), (64, "<I", 0x604), (76, "<I", 0x608),
            (88, "<I", 4 << 24 | 2 << 8 | 4), (96, "<H", 101), (98, "<H", 1001), (108, "<B", 0x32), (109, "<H", 5), (112, "<I", 0x401),
            (128, "<B", 6), (131, "<B", 5), (140, "<Q", 0x7FFE0290)):
        struct.pack_into(form, expected, offset, value)
    for offset, bits, access, port in ((116, 8, 1, 0xCF9), (148, 32, 2, 0x600), (172, 16, 2, 0x604), (208, 32, 3, 0x608)):
        struct.pack_into("<BBBBQ", expected, offset, 1, bits, 0, access, port)
    assert data == expected


def test_every_byte_of_the_shared_table() -> None:
    assert build_facs() == b"FACS\x40\0\0\0" + bytes(24) + b"\2" + bytes(31)


@pytest.fixture(scope="module")
def laid() -> tuple[Memory, firmware.Layout]:
    memory = Memory(((0, 0x400000),))
    return memory, firmware.lay(memory, MachineDescription("pc", (E820Entry(0, 0x9FC00, 1),), memory.runs, 0x3F0000))


def disassemble(data: bytes, folder: Path) -> tuple[dict[int, str], str]:
    (folder / "table.dat").write_bytes(data)
    done = subprocess.run(["iasl", "-d", "table.dat"], cwd=folder, capture_output=True, text=True, check=True)
    text = (folder / "table.dsl").read_text("latin-1")
    return {int(m[1]): m[2] for m in re.finditer(r"\[[0-9A-F]+h (\d+) +\w+\] +\S.*? : (\S+)", text)}, done.stdout + done.stderr + text


@pytest.mark.needs("iasl")
def test_the_disassembler_finds_the_emulated_pcs_registers(laid: tuple[Memory, firmware.Layout], tmp_path: Path) -> None:
    memory, layout = laid
    printed, text = disassemble(acpi.table(memory, "FACP") or b"", tmp_path)
    assert not re.search("error|warning|invalid|unknown", text, re.IGNORECASE)
    said = {name: int(printed[at], 16) for name, at in (
        ("FACS", 36), ("DSDT", 40), ("SCI", 46), ("SMI command", 48), ("event", 56), ("control", 64), ("timer", 76), ("century", 108),
        ("reset value", 128), ("X DSDT", 140))}
    assert said == {"FACS": layout.address("FACS"), "DSDT": layout.address("DSDT"), "SCI": pm1.SCI, "SMI command": 0, "event": pm1.EVENT,
                    "control": pm1.CONTROL, "timer": pmtimer.PORT, "century": 0x32, "reset value": reset.RESET_VALUE,
                    "X DSDT": layout.address("DSDT")}
    ports = [int(m, 16) for m in re.findall(r"h \d+ +8\] +Address : ([0-9A-F]{16})", text)]
    assert ports == [reset.RESET_CONTROL, pm1.EVENT, 0, pm1.CONTROL, 0, 0, pmtimer.PORT, 0, 0, 0, 0]
    assert set(re.findall(r"^ +(\S.*?) \(V\d\) : 1$", text, re.MULTILINE)) == {
        "Legacy Devices Supported", "VGA Not Present", "WBINVD instruction is operational", "All CPUs support C1",
        "Control Method Power Button", "Control Method Sleep Button", "RTC wake not in fixed reg space", "Reset Register Supported"}


@pytest.mark.needs("iasl")
@pytest.mark.parametrize("signature", ["FACP", "FACS"])
def test_what_is_disassembled_compiles_to_the_same(laid: tuple[Memory, firmware.Layout], signature: str, tmp_path: Path) -> None:
    """But for the header's checksum and the compiler that it names."""
    memory, layout = laid
    at = layout.address(signature)
    assert at is not None
    data = memory.read(at, memory.read32(at + 4))
    disassemble(data, tmp_path)
    subprocess.run(["iasl", "table.dsl"], cwd=tmp_path, capture_output=True, check=True)
    again = bytearray((tmp_path / "table.aml").read_bytes())
    if signature == "FACP":
        again[9], again[28:36] = data[9], data[28:36]
    assert again == data
