"""DMAR_PASS_THROUGH: the table that the guest finds, rewritten."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from passthrough_bench import MIB
from vtd_bench import BASE

from hvcore.machine.bus import Bus
from hvcore.machine.memory import PAGE, Memory
from hvcore.spec import acpi, dmar
from hvcore.spec.dmar import Dmar, Drhd, Rmrr, Scope
from hvcore.spec.e820 import E820Entry
from hvcore.vmm.heap import Panic
from hvcore.vmm.passthrough import install, rewritten
from hvcore.vmm.pci import Function
from hvcore.vmm.platform import Console

CORPUS = sorted((Path(__file__).parents[1] / "data" / "acpi").glob("DMAR-*.dat"))

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
