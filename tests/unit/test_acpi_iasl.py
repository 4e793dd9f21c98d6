"""ACPI's own disassembler as the independent reader: real DMAR tables field by field, and the firmware's own tables."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvcore.machine.description import EcamDescription, MachineDescription
from hvcore.machine.firmware import lay
from hvcore.machine.memory import Memory
from hvcore.spec import acpi
from hvcore.spec.dmar import Andd, Atsr, Dmar, Drhd, Rhsa, Rmrr, Scope, Structure, Unknown, build, parse
from hvcore.spec.e820 import E820Entry

pytestmark = pytest.mark.needs("iasl")

DATA = Path(__file__).parents[1] / "data" / "acpi"
TABLES = sorted(DATA.glob("DMAR-*.dat"))

Printed = dict[int, tuple[str, str]]
"""By offset: a field's name and value as iasl prints them (where it prints an offset twice, the first)."""

LINE = re.compile(r"\[[0-9A-F]+h (\d+) +\w+\] +(\S.*?) : (.*)")


def disassemble(data: bytes, folder: Path) -> tuple[Printed, str]:
    (folder / "table.dat").write_bytes(data)
    done = subprocess.run(["iasl", "-d", "table.dat"], cwd=folder, capture_output=True, text=True, check=True)
    text = (folder / "table.dsl").read_text("latin-1").split("Raw Table Data")[0]
    printed: Printed = {}
    for m in LINE.finditer(text):
        printed.setdefault(int(m[1]), (m[2], re.sub(r" +\[.*\]$", "", m[3])))
    return printed, text + done.stdout + done.stderr


Field = tuple[int, str, str]
"""Offset, iasl's name and value."""


def fields(table: Dmar) -> Iterator[Field]:
    """What iasl must print of `table`.  This version of iasl may not know structures from SATC on: they end the list."""
    yield 10, "Oem ID", f'"{table.oem_id.split(bytes(1))[0].decode()}"'
    yield 24, "Oem Revision", f"{table.oem_revision:08X}"
    yield 32, "Asl Compiler Revision", f"{table.creator_revision:08X}"
    yield 36, "Host Address Width", f"{table.host_address_width - 1:02X}"
    yield 37, "Flags", f"{table.flags:02X}"
    at = 48
    for number, body_at, structure in located(table):
        yield at, "Subtable Type", f"{number:04X}"
        if number > 4:
            return
        length = len(build(Dmar(39, 0, (structure,)))) - 48
        yield at + 2, "Length", f"{length:04X}"
        yield from structure_fields(at, structure)
        yield from scope_fields(at + body_at, getattr(structure, "scopes", ()))
        at += length


def located(table: Dmar) -> Iterator[tuple[int, int, Structure]]:
    """Each structure with its type number and the offset of its scopes."""
    numbers = {Drhd: (0, 16), Rmrr: (1, 24), Atsr: (2, 8), Rhsa: (3, 20), Andd: (4, 8)}
    for s in table.structures:
        assert not isinstance(s, Unknown)
        number, body_at = numbers.get(type(s), (5 if type(s).__name__ == "Satc" else 6, 8))
        yield number, body_at, s


def structure_fields(at: int, structure: Structure) -> Iterator[Field]:
    match structure:
        case Drhd():
            yield at + 4, "Flags", f"{structure.flags:02X}"
            yield at + 8, "Register Base Address", f"{structure.base:016X}"
        case Rmrr():
            yield at + 8, "Base Address", f"{structure.base:016X}"
            yield at + 16, "End Address (limit)", f"{structure.limit:016X}"
        case Atsr():
            yield at + 4, "Flags", f"{structure.flags:02X}"
        case Rhsa():
            yield at + 8, "Base Address", f"{structure.base:016X}"
            yield at + 16, "Proximity Domain", f"{structure.proximity_domain:08X}"
        case Andd():
            yield at + 7, "Device Number", f"{structure.number:02X}"
            yield at + 8, "Device Name", f'"{structure.path}"'
    if isinstance(structure, Drhd | Rmrr | Atsr):
        yield at + 6, "PCI Segment Number", f"{structure.segment:04X}"


def scope_fields(at: int, scopes: tuple[Scope, ...]) -> Iterator[Field]:
    for scope in scopes:
        length = 6 + 2 * len(scope.path)
        yield at, "Device Scope Type", f"{scope.type:02X}"
        yield at + 1, "Entry Length", f"{length:02X}"
        yield at + 4, "Enumeration ID", f"{scope.enumeration_id:02X}"
        yield at + 5, "PCI Bus Number", f"{scope.start_bus:02X}"
        for i, (device, function) in enumerate(scope.path):
            yield at + 6 + 2 * i, "PCI Path", f"{device:02X},{function:02X}"
        at += length


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_real_dmars_field_by_field(path: Path, tmp_path: Path) -> None:
    table = parse(path.read_bytes())
    printed, _ = disassemble(path.read_bytes(), tmp_path)
    expected = {at: (name, value) for at, name, value in fields(table)}
    assert {at: printed.get(at) for at in expected} == expected
    end = max(expected)
    places = {"Subtable Type", "Device Scope Type", "PCI Path", "Device Name"}
    assert {at for at, line in printed.items() if line[0] in places and at <= end} == {at for at in expected if expected[at][0] in places}


def test_the_corpus_has_every_kind_of_structure_and_scope() -> None:
    tables = [parse(path.read_bytes()) for path in TABLES]
    assert {type(s).__name__ for t in tables for s in t.structures} == {"Drhd", "Rmrr", "Atsr", "Rhsa", "Andd", "Satc", "Sidp"}
    assert {s.type for t in tables for x in t.structures for s in getattr(x, "scopes", ())} == {1, 2, 3, 4, 5}
    assert any(len(s.path) > 1 for t in tables for r in t.rmrrs for s in r.scopes)


@pytest.fixture(scope="module")
def firmware() -> Memory:
    memory = Memory(((0, 0x400000),))
    lay(memory, MachineDescription("pc", (E820Entry(0, 0x9FC00, 1),), memory.runs, 0x3F0000, ecam=EcamDescription(0xB0000000, 0, 127)))
    return memory


CLEAN = re.compile(r"incorrect checksum|invalid|unknown|error|warning", re.IGNORECASE)


@pytest.mark.parametrize(("signature", "expected"), [
    ("APIC", {36: ("Local Apic Address", "FEE00000"), 44: ("Subtable Type", "00"), 52: ("Subtable Type", "01"), 56: ("Address", "FEC00000"),
              64: ("Subtable Type", "02"), 67: ("Source", "00"), 68: ("Interrupt", "00000002"), 77: ("Source", "09"),
              84: ("Subtable Type", "04"), 86: ("Processor ID", "FF"), 89: ("Interrupt Input LINT", "01")}),
    ("MCFG", {44: ("Base Address", "00000000B0000000"), 52: ("Segment Group Number", "0000"), 54: ("Start Bus Number", "00"),
              55: ("End Bus Number", "7F")}),
    ("XSDT", {36: ("ACPI Table Address   0", "00000000003F0040"), 44: ("ACPI Table Address   1", "00000000003F0160")})])
def test_iasl_reads_the_firmwares_tables(firmware: Memory, signature: str, expected: Printed, tmp_path: Path) -> None:
    data = acpi.table(firmware, signature)
    assert data is not None
    printed, text = disassemble(data, tmp_path)
    assert {at: printed.get(at) for at in expected} == expected
    assert not CLEAN.search(text)


def test_iasl_makes_the_same_root_pointer(tmp_path: Path) -> None:
    """It disassembles no RSDP, but it compiles one."""
    (tmp_path / "rsdp.asl").write_text("""\
[008]                Signature : "RSD PTR "
[001]                 Checksum : 00
[006]                   Oem ID : "HVLAB "
[001]                 Revision : 02
[004]             RSDT Address : 00000077
[004]                   Length : 00000024
[008]             XSDT Address : 00000001003F0000
[001]        Extended Checksum : 00
[003]                 Reserved : 000000
""")
    subprocess.run(["iasl", "rsdp.asl"], cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "rsdp.aml").read_bytes() == acpi.build_rsdp(acpi.Rsdp(0x1_003F_0000, 0x77))


def test_iasl_sees_a_wrong_checksum(firmware: Memory, tmp_path: Path) -> None:
    data = bytearray(acpi.table(firmware, "MCFG") or b"")
    data[9] ^= 1
    assert CLEAN.search(disassemble(bytes(data), tmp_path)[1])
