"""ACPI tables with mutations: parsers, what is built from what they give, the search in memory, and the core's own readings."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from hvcore.errors import BadTable, Unreadable
from hvcore.machine.bus import Bus
from hvcore.machine.description import PciDescription
from hvcore.machine.memory import PAGE, Memory
from hvcore.machine.topology import Topology
from hvcore.spec import acpi, dmar
from hvcore.spec.pci import bdf
from hvcore.vmm import dmar as core
from hvcore.vmm.pci import Function
from hvcore.vmm.platform import Console

from .mutate import check_sentence, mutated, number, often, torn

__all__ = ["TARGETS", "mutated_table", "real_tables"]

DATA = Path(__file__).resolve().parent.parent / "data" / "acpi"
_TABLE, _END = 0x20_0000, 0x30_0000


@cache
def real_tables() -> tuple[bytes, ...]:
    """The DMAR tables of real machines."""
    return tuple(path.read_bytes() for path in sorted(DATA.glob("DMAR-*.dat")))


def mutated_table(r: Random, table: bytes, others: tuple[bytes, ...]) -> bytes:
    """A table with mutations, perhaps spliced with another; in most cases its length and checksum are then put right."""
    whole = torn(r, table, r.choice(others)) if often(r, 0.15) else table
    data = bytearray(mutated(r, whole, r.choice((1, 1, 4))) if often(r, 0.95) else whole)
    if len(data) >= acpi.HEADER_SIZE and often(r, 0.8):
        data[4:8] = (len(data) if often(r, 0.9) else number(r, 32)).to_bytes(4, "little")
    length = int.from_bytes(data[4:8], "little")
    if len(data) >= acpi.HEADER_SIZE and often(r, 0.85):
        data[9] = data[9] + acpi.checksum(bytes(data[:length])) & 0xFF
    return bytes(data)


def _parsed(parse: Callable[[bytes], Any], build: Callable[[Any], bytes], data: bytes) -> Any:
    """The record of a table that parses, after its bytes were built again; None where it is refused."""
    try:
        record = parse(data)
    except BadTable as e:
        check_sentence(e)
        return None
    length = int.from_bytes(data[4:8], "little")
    assert build(record) == data[:length], "what was built is not what was parsed"
    assert str(record)
    return record


_FUNCTIONS = (PciDescription(bdf(0, 0, 0), 0x8086, 0x29C0, 0x060000), PciDescription(bdf(0, 2, 0), 0x8086, 0x1912, 0x030000),
              PciDescription(bdf(0, 0x1C, 0), 0x8086, 0xA110, 0x060400, "bridge", secondary=1, subordinate=3),
              PciDescription(bdf(1, 0, 0), 0x8086, 0xA111, 0x060400, "bridge", secondary=2, subordinate=2),
              PciDescription(bdf(2, 0, 0), 0x1B36, 0x10, 0x010802, "nvme"), PciDescription(bdf(0, 0x1F, 0), 0x8086, 0xA150, 0x060100))


def parse_dmar(seed: int) -> str:
    """The DMAR parser, and the wiring that a table which parses gives."""
    r = Random(seed)
    record = _parsed(dmar.parse, dmar.build, mutated_table(r, r.choice(real_tables()), real_tables()))
    if record is None:
        return "refused"
    topology = Topology(record, _FUNCTIONS)
    covered = [f.source for i in range(len(record.drhds)) for f in topology.covered(i)]
    assert len(covered) == len(set(covered)), "two units cover a function"
    assert all(0 <= index < len(record.drhds) for index, _ in topology.unresolved)
    return "parsed, covers functions" if covered else "parsed"


def _entries(r: Random) -> tuple[acpi.MadtEntry, ...]:
    kinds = (acpi.LocalApic(1, 2), acpi.IoApic(0, 0xFEC00000), acpi.InterruptOverride(0, 2), acpi.LocalApicNmi(0xFF, 0, 1),
             acpi.UnknownEntry(9, bytes(14)), acpi.UnknownEntry(0, bytes(1)))
    return tuple(r.choice(kinds) for _ in range(r.randrange(12)))


def parse_madt(seed: int) -> str:
    """The MADT parser."""
    r = Random(seed)
    table = acpi.build_madt(acpi.Madt(_entries(r)))
    return "parsed" if _parsed(acpi.parse_madt, acpi.build_madt, mutated_table(r, table, (table,))) else "refused"


def parse_mcfg(seed: int) -> str:
    """The MCFG parser."""
    r = Random(seed)
    table = acpi.build_mcfg(acpi.Mcfg(tuple(acpi.McfgWindow(number(r, 64), segment=i) for i in range(r.randrange(4)))))
    return "parsed" if _parsed(acpi.parse_mcfg, acpi.build_mcfg, mutated_table(r, table, (table,))) else "refused"


def find_tables(seed: int) -> str:
    """The search for tables: mutated RSDP and XSDT, tables that name themselves, lengths that lead out of memory."""
    r = Random(seed)
    memory = Memory([(0, 0xA0000), (0xC0000, _END)])
    named = [r.choice((_TABLE, 0x10_0000, _END - 20, number(r, 64))) for _ in range(r.randrange(6))]
    root = acpi.build_xsdt(named)
    memory.write(0x10_0000, mutated_table(r, root, (root,)) if often(r, 0.6) else root)
    memory.write(_TABLE, mutated_table(r, r.choice(real_tables()), real_tables())[:_END - _TABLE])
    rsdp = acpi.build_rsdp(acpi.Rsdp(0x10_0000 if often(r, 0.9) else number(r, 64), number(r, 32), r.choice((0, 2, 2, 2, 255))))
    memory.write(r.choice((0x9FC00, 0xE0000, 0xFFFE0)), mutated(r, rsdp)[:32] if often(r, 0.2) else rsdp)
    memory.write(acpi.EBDA_POINTER, (0x9FC0 if often(r, 0.5) else number(r, 16)).to_bytes(2, "little"))
    try:
        found = acpi.tables(memory)
    except BadTable:
        return "refused"
    assert all(str(t) for t in found)
    assert all(t.length is None or memory.backed(t.address, t.length) for t in found)
    assert core.find_dmar(memory) == next((t.address for t in found if t.signature == "DMAR"), None)
    return f"found {'no table' if not found else 'tables'}"


def read_as_core(seed: int) -> str:
    """The DMAR table as the core reads it in memory, as BitVisor does and by the book."""
    r = Random(seed)
    memory = Memory([(0, _END)])
    data = mutated_table(r, r.choice(real_tables()), real_tables())[:PAGE * 16]
    at = _END - len(data) if often(r, 0.3) else _TABLE
    if len(data) < 48:
        return "too short to lie in memory"
    memory.write(at, data)
    console = Console(Bus(memory))
    functions = [Function(f.source, f.model == "bridge", f.secondary, f.subordinate) for f in _FUNCTIONS]
    try:
        units = [core.parse_dmar_bios_report(memory, at, console), core.parse_by_the_book(memory, at, functions, console)]
    except Unreadable:
        return "leads out of memory"
    return "units" if any(units) else "no unit"


TARGETS: dict[str, Callable[[int], str]] = {
    "dmar": parse_dmar, "madt": parse_madt, "mcfg": parse_mcfg, "tables": find_tables, "core-dmar": read_as_core}
