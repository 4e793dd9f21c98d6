"""run.dmar: every real table; tables built for one oddity each; the table in a machine's memory, hidden, changed, broken, gone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pci_bench import HOST_BRIDGE, Bench
from test_topology import machines

from hvcore import Config, Machine
from hvcore.errors import BadTable
from hvcore.inspect.dmar import DmarTable, read_dmar, resolve
from hvcore.machine.description import PciDescription
from hvcore.machine.topology import Topology
from hvcore.spec.dmar import Andd, Atsr, Dmar, Drhd, Rhsa, Rmrr, Satc, Scope, ScopeType, Sidp, Structure, Unknown, build, parse
from hvcore.spec.e820 import E820Entry
from hvcore.spec.pci import PortType, bdf

TABLES = sorted((Path(__file__).parents[1] / "data" / "acpi").glob("DMAR-*.dat"))
PORT = PciDescription(bdf(0, 0x1C, 0), 0x8086, 0xA110, 0x060400, "bridge", secondary=1, subordinate=2)
INNER = PciDescription(bdf(1, 0, 0), 0x1B21, 0x1080, 0x060400, "bridge", secondary=2, subordinate=2,
                       port_type=PortType.PCIE_TO_PCI_BRIDGE)
USB = PciDescription(bdf(0, 0x14, 0), 0x8086, 0xA12F, 0x0C0330)
CARD = PciDescription(bdf(2, 3, 0), 0x1234, 0x11E8, 0x00FF00)
TREE = (HOST_BRIDGE, USB, PORT, INNER, CARD)
E820 = (E820Entry(0, 0x9FC00, 1), E820Entry(0x100000, 0x7000_0000, 1), E820Entry(0x7000_0000, 0x7100_0000, 2),
        E820Entry(0x7100_0000, 0x7200_0000, 4))


def scope(kind: int, *path: tuple[int, int], number: int = 0, bus: int = 0) -> Scope:
    return Scope(kind, number, bus, path)


USB_SCOPE = scope(ScopeType.ENDPOINT, (0x14, 0))
DRHD, ALL = Drhd(0, 0, 0, 0xFED9_0000, (USB_SCOPE,)), Drhd(1, 0, 0, 0xFED9_1000)
GOOD = Rmrr(0, 0x7000_0000, 0x7000_FFFF, (USB_SCOPE,))


def look(*structures: Structure, known: bool = True) -> DmarTable:
    """The table of these structures, in the tree above and its memory map."""
    pc = Bench(TREE) if known else None
    topology = Topology(None, TREE)
    return read_dmar(build(Dmar(39, 1, structures)), pc.root if pc else None, E820, topology.requester)


def test_every_real_table_shows_what_it_says() -> None:
    assert len(TABLES) == 242
    for path in TABLES:
        table, shown = parse(path.read_bytes()), read_dmar(path.read_bytes())
        assert [row.raw for row in shown] == list(table.structures)
        drhds = [(r.start, r.end, r.flags, r.segment) for r in shown if r.structure == "DRHD"]
        assert drhds == [(d.base, d.base + d.register_bytes, "INCLUDE_PCI_ALL" if d.include_all else "", d.segment) for d in table.drhds]
        assert [(r.start, r.end) for r in shown if r.structure == "RMRR"] == [(r.base, r.end) for r in table.rmrrs]
        scopes = [s for structure in table.structures for s in getattr(structure, "scopes", ())]
        assert [s.scope for s in shown.scopes] == scopes
        assert [s.source for s in shown.scopes] == [bdf(s.start_bus, *s.path[0]) if len(s.path) == 1 else None for s in scopes]
        assert "<table" in shown._repr_html_() and str(shown).count("\n") >= len(shown)


def test_the_real_tables_oddities_are_few() -> None:
    found = {(path.stem.split("-")[1][:6], o) for path in TABLES for row in read_dmar(path.read_bytes()) for o in row.all_oddities}
    assert {o for _, o in found} == {"registers at 0x0, which is no page", "its limit is not above its base"}


def test_a_table_in_words() -> None:
    shown = look(DRHD, Drhd(1, 1, 0, 0xFED9_2000, (scope(ScopeType.IOAPIC, (0x1F, 0), number=2, bus=0xF0),)), GOOD,
                 Atsr(0, 0, (scope(ScopeType.BRIDGE, (0x1C, 0)),)), Rhsa(0xFED9_0000, 1), Andd(3, "\\_SB.I2C0"),
                 Satc(1, 0, (USB_SCOPE,)), Sidp(0, (USB_SCOPE, scope(ScopeType.NAMESPACE, (0x15, 0), number=3))), Unknown(9, b"abc"))
    assert shown.frame.drop(columns=["firmware", "guest"]).to_dict("list") == {
        "structure": ["DRHD", "DRHD", "RMRR", "ATSR", "RHSA", "ANDD", "SATC", "SIDP", "type 0x9"],
        "segment": [0, 0, 0, 0, None, None, 0, 0, None],
        "start": [0xFED9_0000, 0xFED9_2000, 0x7000_0000, None, 0xFED9_0000, None, None, None, None],
        "end": [0xFED9_1000, 0xFED9_4000, 0x7001_0000, None, None, None, None, None, None],
        "flags": ["", "INCLUDE_PCI_ALL", "", "", "proximity domain 1", "device 3: \\_SB.I2C0", "ATC_REQUIRED", "", "3 bytes"],
        "scopes": ["endpoint 00:14.0", "IOAPIC 2 f0:1f.0", "endpoint 00:14.0", "bridge 00:1c.0", "", "", "endpoint 00:14.0",
                   "endpoint 00:14.0, namespace device 3 00:15.0", ""],
        "oddities": [""] * 9}
    assert [(s.source, s.device) for s in shown.scopes][:3] == [
        (0xA0, "8086:a12f USB"), (0xF0F8, None), (0xA0, "8086:a12f USB")]
    assert shown.scopes[-1].device == "\\_SB.I2C0"
    assert "host address width 39; INTR_REMAP." in shown.note
    assert look(Drhd(0x81, 0, 0, 0xFED9_0000))[0].flags == "INCLUDE_PCI_ALL 0x80"


@pytest.mark.parametrize(("path", "short", "source", "oddities"), [
    ([(0x1C, 0), (0, 0), (3, 0)], "endpoint 00:1c.0/00.0/03.0 -> 02:03.0", bdf(2, 3, 0), ("its DMA arrives as 02:00.0",)),
    ([(0x1C, 0), (5, 0)], "endpoint 00:1c.0/05.0 -> 01:05.0", bdf(1, 5, 0), ("there is no such function",)),
    ([(0x14, 0), (0, 0)], "endpoint 00:14.0/00.0 leads nowhere", None, ("leads nowhere",)),
    ([(0x10, 0), (0, 0)], "endpoint 00:10.0/00.0 leads nowhere", None, ("leads nowhere",)),
    ([(32, 0)], "endpoint 00:20.0 leads nowhere", None, ("leads nowhere",)),
    ([(0x1C, 0)], "endpoint 00:1c.0", bdf(0, 0x1C, 0), ("named as an endpoint, but a bridge",)),
])
def test_scopes_are_followed_through_bridges(path: list[tuple[int, int]], short: str, source: int | None,
                                             oddities: tuple[str, ...]) -> None:
    found = look(Drhd(0, 0, 0, 0xFED9_0000, (scope(ScopeType.ENDPOINT, *path),))).scopes[0]
    assert (found.short, found.source, found.oddities) == (short, source, oddities)


def test_without_configuration_space_a_path_through_bridges_is_not_known() -> None:
    far = Drhd(0, 0, 0, 0xFED9_0000, (scope(ScopeType.ENDPOINT, (0x1C, 0), (0, 0)), scope(ScopeType.ENDPOINT, (2, 9))))
    first, second = look(far, known=False).scopes
    assert (first.source, first.oddities) == (None, ()) and second.oddities == ("leads nowhere",)


ODD = [
    ([Drhd(0, 0, 0, 0xFED9_0000)], ["covers nothing: no scopes, no INCLUDE_PCI_ALL"]),
    ([replace(ALL, base=0xFED9_0010)], ["registers at 0xfed90010, which is no page"]),
    ([DRHD, replace(ALL, base=DRHD.base)], ["another unit has the same registers"] * 2),
    ([ALL, DRHD], ["INCLUDE_PCI_ALL, but not the last unit of its segment"]),
    ([ALL, replace(DRHD, segment=1, scopes=(scope(ScopeType.IOAPIC, (2, 0)),))], []),
    ([ALL, replace(ALL, base=0xFED9_2000)], ["INCLUDE_PCI_ALL, but not the last unit of its segment",
                                             "not the only INCLUDE_PCI_ALL unit of its segment",
                                             "not the only INCLUDE_PCI_ALL unit of its segment"]),
    ([DRHD, replace(DRHD, base=0xFED9_2000)], ["endpoint 00:14.0: another unit names it, too"] * 2),
    ([ALL, replace(GOOD, scopes=())], ["names no device"]),
    ([ALL, replace(GOOD, limit=GOOD.base)], ["its limit is not above its base"]),
    ([ALL, replace(GOOD, limit=GOOD.base + 0x7FF)], ["not whole pages"]),
    ([ALL, GOOD, replace(GOOD, base=0x7000_F000, limit=0x7001_FFFF)], ["overlaps another RMRR"] * 2),
    ([ALL, GOOD, replace(GOOD, base=0x7001_0000, limit=0x7001_FFFF)], []),
    ([ALL, replace(GOOD, base=0x6FFF_0000)], ["in usable RAM: [0x6fff0000, 0x70000000)"]),
    ([ALL, replace(GOOD, base=0x70FF_F000, limit=0x7100_0FFF)], ["not reserved in E820: [0x71000000, 0x71001000) is ACPI NVS"]),
    ([ALL, replace(GOOD, base=0x7300_0000, limit=0x7300_0FFF)], ["not reserved in E820: [0x73000000, 0x73001000) is in no entry"]),
    ([ALL, GOOD, replace(DRHD, base=0xFED9_2000)], ["INCLUDE_PCI_ALL, but not the last unit of its segment",
                                                    "out of order: a structure of type 1 comes before it"]),
    ([ALL, Atsr(1, 0, (scope(ScopeType.BRIDGE, (0x1C, 0)),))], ["ALL_PORTS, and yet names some"]),
    ([ALL, Atsr(0, 0)], ["names no port"]),
    ([ALL, Atsr(0, 0, (USB_SCOPE,))], ["names something else than a port"]),
    ([ALL, Atsr(0, 0, (scope(ScopeType.BRIDGE, (0x14, 0)),))], ["bridge 00:14.0: named as a bridge, but none"]),
    ([ALL, Rhsa(0xFED9_9000, 0)], ["no unit has its registers at 0xfed99000"]),
    ([ALL, Andd(1, "\\A")], ["no scope names it"]),
    ([replace(ALL, scopes=(scope(ScopeType.NAMESPACE, (2, 0), number=1),)), Andd(1, "\\A"), Andd(1, "\\B")],
     ["number 1 is there more than once"] * 2),
    ([replace(ALL, scopes=(scope(ScopeType.NAMESPACE, (2, 0), number=7),))], ["namespace device 00:02.0: no ANDD has number 7"]),
    ([replace(ALL, scopes=(scope(8, (2, 0)),))], ["type 0x8 00:02.0: of no known type"]),
]


@pytest.mark.parametrize(("structures", "expected"), ODD, ids=[str(i) for i in range(len(ODD))])
def test_oddities(structures: list[Structure], expected: list[str]) -> None:
    assert [o for row in look(*structures) for o in row.all_oddities] == expected


def test_bytes_that_are_no_table_are_the_caller_s_mistake() -> None:
    with pytest.raises(BadTable):
        read_dmar(b"DMAR" + bytes(60))


@given(machines(), st.integers(0, 4))
def test_paths_lead_where_the_topology_says(machine: tuple[list[PciDescription], list[Drhd]], cut: int) -> None:
    tree, units = machine
    root, topology = Bench(tuple(tree)).root, Topology(None, tree)
    for s in (s for u in units for s in u.scopes):
        wrong = replace(s, path=((s.path[0][0] ^ cut, s.path[0][1]), *s.path[1:]))
        for one in (s, wrong):
            assert resolve(root, 0, one) == topology.resolve(0, one)


# The table in a machine's memory


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine.load("gigabyte-b150m-16g") as m:
        yield m


def address(machine: Machine) -> int:
    found = machine.pc.layout.address("DMAR")
    assert found is not None
    return found


def read(machine: Machine, laid: bool = True) -> DmarTable:
    return read_dmar(machine.pc.memory, machine.pc.root, (), None, machine.description.dmar if laid else None)


def test_before_the_core_runs_a_guest_would_find_it(machine: Machine) -> None:
    shown = read(machine)
    assert shown.address == address(machine) and not shown.hidden
    table = parse(machine.description.dmar or b"")
    assert [(row.raw, row.firmware, row.guest) for row in shown] == [(s, True, True) for s in table.structures]


def test_the_core_hides_it_from_the_guest(machine: Machine) -> None:
    run = machine.boot(Config(VTD_TRANS=True))
    assert run.dmar.hidden and machine.pc.memory.read(address(machine), 4) == bytes(4)
    assert {(row.firmware, row.guest) for row in run.dmar} == {(True, False)}
    assert "a guest that looks for it finds none" in str(run.dmar)
    assert run.dmar.to_json()[0]["guest"] is False
    before = run.dmar.to_json()
    machine.reboot(VTD_TRANS=False)
    assert run.dmar.to_json() == before, "kept as it stood"


def test_what_software_changes_stands_beside_what_firmware_laid(machine: Machine) -> None:
    table = parse(machine.description.dmar or b"")
    moved = tuple(replace(s, base=s.base + 0x1000) if s is table.rmrrs[0] else s for s in table.structures)
    machine.pc.memory.write(address(machine), build(replace(table, structures=moved)))
    shown = read(machine)
    assert "not as firmware laid it" in shown.note
    changed = [(row.start, row.firmware, row.guest) for row in shown if not (row.firmware and row.guest)]
    assert changed == [(table.rmrrs[0].base, True, False), (table.rmrrs[0].base + 0x1000, False, True)]
    assert [row.raw for row in read(machine, laid=False)] == list(moved)


def test_a_table_that_is_damaged_or_gone_is_said(machine: Machine) -> None:
    machine.pc.memory.write(address(machine) + 60, b"\xff")
    assert not read(machine) and "checksum" in read(machine).note
    machine.pc.memory.write(address(machine), b"XXXX")
    assert read(machine).note == "There is no DMAR table in memory."
    machine.pc.memory.write(machine.pc.layout.address("XSDT") or 0, bytes(8))
    assert "cannot be read" in read(machine).note
    machine.pc.memory.write(machine.pc.layout.address("RSDP") or 0, bytes(8))
    assert read(machine).note == "There is no DMAR table in memory."


def test_the_lens_names_reserved_memory(machine: Machine) -> None:
    run = machine.boot()
    rmrr = next(row for row in run.dmar if row.structure == "RMRR")
    assert rmrr.start is not None and rmrr.end is not None
    facts = {f.about: f for f in run.lens(rmrr.end - 1).facts}
    fact = facts["DMAR's RMRR"]
    assert (fact.start, fact.end) == (rmrr.start, rmrr.end) and rmrr.scopes[0].short in fact.says
    assert "DMAR's RMRR" not in {f.about for f in run.lens(rmrr.end).facts if f.start == rmrr.start}
    assert "registers of a remapping unit" in str(run.lens(run.units[0].base))
