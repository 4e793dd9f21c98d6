"""A machine with two PCI segments, end to end: from TOML to configuration space, units, DMA and its faults."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hvcore import Config, Machine
from hvcore.errors import BadMachine
from hvcore.machine.pcifunction import PciFunction
from hvcore.sources import load
from hvcore.spec import acpi
from hvcore.spec.pci import bdf

TWO = """
ram = "1 GiB"
[ecam]
base = 0xb000_0000
last = 63
[[segment]]
number = 1
base = 0xc080_0000
first = 8
last = 15
[[unit]]
base = 0xfed9_1000
cap = 0xd2_008c_2226_0206
ecap = 0xf42
segment = 1
include_all = true
[[unit]]
base = 0xfed9_0000
cap = 0xd2_008c_2226_0206
ecap = 0xf42
include_all = true
[[pci]]
at = "00:03.0"
id = "1234:11e8"
class = 0x00ff00
pcie = false
[[pci]]
at = "0001:08:03.0"
id = "1234:11e8"
class = 0x00ff00
pcie = false
[[pci]]
at = "0001:08:1e.0"
id = "8086:244e"
class = 0x060401
buses = [9, 9]
pcie = false
[[pci]]
at = "0001:09:05.0"
id = "1234:11e8"
class = 0x00ff00
pcie = false
"""
NEAR, FAR, BEHIND = (0, bdf(0, 3, 0)), (1, bdf(8, 3, 0)), (1, bdf(9, 5, 0))
WINDOW = 0xC080_0000


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    path = tmp_path / "two.toml"
    path.write_text(TWO)
    with Machine.load(path) as m:
        yield m


def edu(machine: Machine, at: tuple[int, int]) -> PciFunction:
    return machine.pc.root.functions[at]


def test_each_segment_has_its_window(machine: Machine) -> None:
    bus = machine.pc.bus
    assert bus.read(0xB000_0000 + (NEAR[1] << 12), 4) == 0x11E8_1234
    assert bus.read(WINDOW + (FAR[1] - 0x800 << 12), 4) == bus.read(WINDOW + (BEHIND[1] - 0x800 << 12), 4) == 0x11E8_1234
    assert bus.read(0xB000_0000 + (FAR[1] << 12), 4) == 0xFFFF_FFFF, "segment 0 has no such function"
    table = acpi.table(machine.pc.memory, "MCFG")
    assert table is not None
    assert [(w.segment, w.base, w.first, w.last) for w in acpi.parse_mcfg(table).windows] == [
        (0, 0xB000_0000, 0, 63), (1, WINDOW - (8 << 20), 8, 15)]


def test_each_segment_s_unit_sees_its_own_functions(machine: Machine) -> None:
    topology = machine.pc.topology
    assert [(f.segment, f.source) for f in topology.covered(0)] == [FAR, (1, bdf(8, 0x1E, 0)), BEHIND]
    assert NEAR in [(f.segment, f.source) for f in topology.covered(1)]
    assert all(f.segment == 0 for f in topology.covered(1))


def test_a_boot_with_two_segments(machine: Machine) -> None:
    run = machine.boot(Config(VTD_TRANS=False))
    assert run.outcome == "up", run.why
    assert "MCFG [0] 0000:00-3F" in run.console.vmm and "MCFG [1] 0001:08-0F" in run.console.vmm
    assert [row.segment for row in run.dmar] == [1, 0] and [u.segment for u in run.units] == [1, 0]
    edu(machine, NEAR).dma_write(0x200_0000, b"near")
    edu(machine, FAR).dma_write(0x200_0004, b"far!")
    assert machine.pc.memory.read(0x200_0000, 8) == b"nearfar!"


def test_faults_are_recorded_by_the_segment_s_unit(machine: Machine) -> None:
    """The mended core knows of segment 0 only: the other unit, with no context entries, blocks."""
    run = machine.boot(Config(PROFILE="mended"))
    assert run.outcome == "up", run.why
    assert "PCI segment 1 is not looked at: DMA that the unit at 0xfed91000 sees is blocked" in run.console.vmm
    assert edu(machine, NEAR).dma_read(0x200_0000, 4).data is not None
    result = edu(machine, FAR).dma_read(0x200_0000, 4)
    assert result.data is None and result.fault and result.request.segment == 1
    assert [(f.unit, f.source, f.reason) for f in run.faults] == [(0xFED9_1000, FAR[1], 1)]
    assert edu(machine, BEHIND).dma_read(0x200_0000, 4).request.source == bdf(8, 0x1E, 0)


def test_bitvisor_takes_one_unit_with_include_pci_all(machine: Machine) -> None:
    run = machine.boot(Config(VTD_TRANS=True))
    assert "There should be only one INCLUDE_PCI_ALL DRHD!!" in run.console.vmm


@pytest.mark.parametrize(("old", "new", "words"), [
    ("number = 1", "number = 0", "no whole number from 0x1"),
    ("0xc080_0000", "0xb080_0000", "overlaps"),
    ("number = 1", "number = 2", "PCI segment 1 is not there"),
    ("[[unit]]", "[[segment]]\nnumber = 1\nbase = 0xd000_0000\nlast = 1\n[[unit]]", "segment 1 is there twice"),
])
def test_impossible_segments_are_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(TWO.replace(old, new, 1))
    with pytest.raises(BadMachine, match=words):
        load(path)
