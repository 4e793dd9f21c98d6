"""Which unit covers which function, and under which requester id: named scenarios, real tables, random trees against walks upwards."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pci_bench import Bench

from hvcore.machine.description import PciDescription
from hvcore.machine.topology import Enumerator, Topology
from hvcore.spec.dmar import Dmar, Drhd, Scope, ScopeType, parse
from hvcore.spec.pci import PortType, bdf, format_bdf, parse_bdf, split_bdf

TABLES = sorted((Path(__file__).parents[1] / "data" / "acpi").glob("DMAR-*.dat"))


def function(name: str) -> PciDescription:
    segment, source = parse_bdf(name)
    return PciDescription(source, 0x8086, 1, 0x020000, segment=segment)


def bridge(name: str, secondary: int, subordinate: int) -> PciDescription:
    segment, source = parse_bdf(name)
    return PciDescription(source, 0x8086, 2, 0x060400, "bridge", segment, secondary=secondary, subordinate=subordinate)


TREE = (function("00:00.0"), function("00:02.0"), bridge("00:1c.0", 1, 4), bridge("01:00.0", 2, 4), bridge("02:03.0", 3, 3),
        bridge("02:04.0", 4, 4), function("03:00.0"), function("04:00.0"), bridge("00:1d.0", 5, 5), function("05:00.0"),
        function("0001:00:02.0"))


def scope(kind: int, bus: int, *path: tuple[int, int]) -> Scope:
    return Scope(kind, 0, bus, path)


def drhd(*scopes: Scope, include_all: bool = False, segment: int = 0) -> Drhd:
    return Drhd(int(include_all), 0, segment, 0xFED90000, scopes)


def unit(topology: Topology, name: str) -> int | None:
    return topology.unit_index(*parse_bdf(name))


ENDPOINT, BRIDGE, REST = ScopeType.ENDPOINT, ScopeType.BRIDGE, drhd(include_all=True)


def over(*drhds: Drhd) -> Topology:
    return Topology(Dmar(39, 0, drhds), TREE)


def test_no_table_covers_nothing() -> None:
    assert unit(Topology(None, TREE), "00:02.0") is None


def test_a_listed_endpoint_is_its_units_and_the_rest_include_all() -> None:
    topology = over(drhd(scope(ENDPOINT, 0, (2, 0))), REST)
    assert [unit(topology, name) for name in ("00:02.0", "00:02.1", "00:00.0", "04:00.0", "7f:1f.7")] == [0, 1, 1, 1, 1]
    assert [f.source for f in topology.covered(0)] == [bdf(0, 2, 0)]
    assert len(topology.covered(1)) == len(TREE) - 2


def test_without_include_all_an_unlisted_function_has_no_unit() -> None:
    assert unit(over(drhd(scope(ENDPOINT, 0, (2, 0)))), "05:00.0") is None


def test_include_all_stays_in_its_segment() -> None:
    assert unit(over(REST), "0001:00:02.0") is None
    assert unit(over(REST, drhd(include_all=True, segment=1)), "0001:00:02.0") == 1


def test_include_all_before_others_still_yields_to_them() -> None:
    assert unit(over(REST, drhd(scope(ENDPOINT, 0, (2, 0)))), "00:02.0") == 1


def test_a_path_is_walked_by_secondary_bus_numbers() -> None:
    topology = over(drhd(scope(ENDPOINT, 0, (0x1C, 0), (0, 0), (4, 0), (0, 0))), REST)
    assert [unit(topology, name) for name in ("04:00.0", "03:00.0", "02:04.0", "00:1c.0")] == [0, 1, 1, 1]


def test_a_bridge_scope_covers_the_bridge_and_all_below() -> None:
    topology = over(drhd(scope(BRIDGE, 0, (0x1C, 0))), REST)
    assert [unit(topology, name) for name in ("00:1c.0", "01:00.0", "02:03.0", "03:00.0", "04:00.0", "04:1f.7")] == [0] * 6
    assert [unit(topology, name) for name in ("05:00.0", "00:1d.0", "00:02.0")] == [1] * 3


def test_an_endpoint_scope_on_a_bridge_covers_it_alone() -> None:
    topology = over(drhd(scope(ENDPOINT, 0, (0x1C, 0))), REST)
    assert [unit(topology, name) for name in ("00:1c.0", "01:00.0", "04:00.0")] == [0, 1, 1]


@pytest.mark.parametrize("outer_first", [True, False])
def test_the_inner_bridge_and_the_named_function_win(outer_first: bool) -> None:
    outer, inner = drhd(scope(BRIDGE, 0, (0x1C, 0))), drhd(scope(BRIDGE, 1, (0, 0), (3, 0)), scope(ENDPOINT, 4, (0, 0)))
    topology = over(outer, inner) if outer_first else over(inner, outer)
    first, second = (0, 1) if outer_first else (1, 0)
    assert [unit(topology, name) for name in ("02:03.0", "03:00.0", "04:00.0")] == [second] * 3
    assert [unit(topology, name) for name in ("04:01.0", "02:04.0", "01:00.0")] == [first] * 3


def test_of_two_equal_claims_the_first_wins() -> None:
    claims = (scope(ENDPOINT, 0, (2, 0)), scope(BRIDGE, 0, (0x1D, 0)))
    topology = over(drhd(*claims), drhd(*claims))
    assert [unit(topology, name) for name in ("00:02.0", "05:00.0")] == [0, 0]


def test_ioapic_hpet_and_namespace_scopes_cover_their_requester_ids() -> None:
    topology = over(drhd(*(scope(kind, 0xF0, (0x1F, kind)) for kind in (3, 4, 5))), REST)
    assert [unit(topology, name) for name in ("f0:1f.3", "f0:1f.4", "f0:1f.5", "f0:1f.6")] == [0, 0, 0, 1]


@pytest.mark.parametrize("lost", [scope(ENDPOINT, 0, (0x10, 0), (0, 0)), scope(ENDPOINT, 0, (2, 0), (0, 0)), scope(ENDPOINT, 0, (32, 0)),
                                  scope(ENDPOINT, 0, (2, 8)), scope(BRIDGE, 0)])
def test_a_path_to_nowhere_is_unresolved(lost: Scope) -> None:
    topology = over(drhd(scope(ENDPOINT, 0, (0, 0))), drhd(lost), REST)
    assert topology.unresolved == ((1, lost),)
    assert unit(topology, "00:02.0") == 2


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_real_tables_cover_what_they_list(path: Path) -> None:
    table = parse(path.read_bytes())
    topology = Topology(table, ())
    last = len(table.drhds) - 1
    direct: dict[int, int] = {}
    for index, d in enumerate(table.drhds):
        for s in d.scopes:
            if len(s.path) == 1:
                direct.setdefault(bdf(s.start_bus, *s.path[0]), index)
    assert {source: topology.unit_index(0, source) for source in direct} == direct
    assert topology.unit_index(0, next(s for s in range(65536) if s not in direct)) == last
    assert topology.unresolved == ()


@st.composite
def machines(draw: st.DrawFn) -> tuple[list[PciDescription], list[Drhd]]:
    """A tree of bridges numbered depth first, and units with scopes by the shortest path from a random ancestor bus."""
    tree: list[PciDescription] = []

    def fill(bus: int, depth: int) -> int:
        last = bus
        for device in range(draw(st.integers(1, 3))):
            if depth < 3 and draw(st.booleans()) and last < 200:
                child = last + 1
                last = fill(child, depth + 1)
                tree.append(PciDescription(bdf(bus, device, 0), 1, 1, 0x060400, "bridge", secondary=child, subordinate=last))
            else:
                tree.append(PciDescription(bdf(bus, device, 0), 1, 1, 0))
        return last

    fill(0, 0)
    units = []
    for _ in range(draw(st.integers(0, 4))):
        named = draw(st.lists(st.sampled_from(tree), max_size=4))
        scopes = tuple(Scope(draw(st.sampled_from([1, 2])), 0, *path_to(tree, f, draw(st.integers(0, 4)))) for f in named)
        units.append(drhd(*scopes, include_all=draw(st.booleans())))
    return tree, units


def parent(tree: list[PciDescription], source: int) -> PciDescription | None:
    """The bridge whose secondary bus holds `source`."""
    return next((b for b in tree if b.secondary and b.secondary == source >> 8), None)


def path_to(tree: list[PciDescription], target: PciDescription, hops: int) -> tuple[int, tuple[tuple[int, int], ...]]:
    bus, device, fn = split_bdf(target.source)
    path = [(device, fn)]
    above = parent(tree, target.source)
    while above and hops:
        bus, device, fn = split_bdf(above.source)
        path.insert(0, (device, fn))
        above, hops = parent(tree, above.source), hops - 1
    return bus, tuple(path)


def covering(tree: list[PciDescription], units: list[Drhd], target: PciDescription) -> int | None:
    """The unit by walking up from the function, asking each unit in turn whether it lists what stands there."""
    def lists(scopes: tuple[Scope, ...], f: PciDescription, kinds: tuple[int, ...]) -> bool:
        return any(s.type in kinds and (s.start_bus, s.path) in [path_to(tree, f, n) for n in range(5)] for s in scopes)

    at: PciDescription | None = target
    kinds: tuple[int, ...] = (1, 2)
    while at:
        for index, u in enumerate(units):
            if lists(u.scopes, at, kinds):
                return index
        at, kinds = parent(tree, at.source), (2,)
    return next((index for index, u in enumerate(units) if u.include_all), None)


@given(machines())
def test_random_trees_agree_with_a_walk_upwards(machine: tuple[list[PciDescription], list[Drhd]]) -> None:
    tree, units = machine
    topology = Topology(Dmar(39, 0, tuple(units)), tree)
    assert [topology.unit_index(0, f.source) for f in tree] == [covering(tree, units, f) for f in tree]
    assert topology.unresolved == ()


def kinds(*bridges: tuple[str, int, PortType | None]) -> tuple[PciDescription, ...]:
    """Bridges from the root bus on, each on the bus of the one before: function, bus behind, port type (None: conventional)."""
    last = bridges[-1][1]
    return tuple(replace(bridge(name, secondary, last), pcie=kind is not None, port_type=kind) for name, secondary, kind in bridges)


ROOT_PORT, UP, DOWN, TO_PCI, TO_PCIE = (PortType.ROOT_PORT, PortType.UPSTREAM_PORT, PortType.DOWNSTREAM_PORT, PortType.PCIE_TO_PCI_BRIDGE,
                                        PortType.PCI_TO_PCIE_BRIDGE)


@pytest.mark.parametrize(("bridges", "seen"), [
    ([("00:1c.0", 1, ROOT_PORT)], "01:05.2"),
    ([("00:1c.0", 1, ROOT_PORT), ("01:00.0", 2, UP), ("02:03.0", 3, DOWN)], "03:05.2"),
    ([("00:1e.0", 1, None)], "00:1e.0"),
    ([("00:1c.0", 1, ROOT_PORT), ("01:00.0", 2, TO_PCI)], "02:00.0"),
    ([("00:1c.0", 1, TO_PCI)], "01:00.0"),
    ([("00:1c.0", 1, ROOT_PORT), ("01:00.0", 2, TO_PCI), ("02:07.0", 3, None)], "02:00.0"),
    ([("00:1e.0", 1, None), ("01:02.0", 2, None), ("02:03.0", 3, None)], "00:1e.0"),
    ([("00:1e.0", 1, None), ("01:02.0", 2, TO_PCIE), ("02:00.0", 3, UP), ("03:00.0", 4, DOWN)], "00:1e.0"),
    ([("00:1c.0", 1, ROOT_PORT), ("01:00.0", 2, None)], "01:00.0"),
])
def test_the_topmost_bridge_that_is_no_port_decides_the_requester_id(bridges: list[tuple[str, int, PortType | None]], seen: str) -> None:
    device = PciDescription(bdf(bridges[-1][1], 5, 2), 0x8086, 1, 0x020000, pcie=False)
    tree = (*kinds(*bridges), device)
    topology = Topology(Dmar(39, 0, (REST,)), tree)
    assert format_bdf(topology.requester(0, device.source)) == seen
    assert set(topology.requesters(0)) == {f.source for f in tree} | {parse_bdf(seen)[1]}


@pytest.mark.parametrize(("vendor", "device", "seen"), [
    (0x1B21, 0x1080, "02:00.0"), (0x8086, 0x244E, "02:00.0"), (0x1B21, 0x1081, "01:00.0")])
def test_known_bridges_are_pcie_to_pci_though_they_do_not_say_so(vendor: int, device: int, seen: str) -> None:
    port, behind = kinds(("00:1c.0", 1, ROOT_PORT), ("01:00.0", 2, None))
    topology = Topology(None, (port, replace(behind, vendor=vendor, device_id=device)))
    assert format_bdf(topology.requester(0, bdf(2, 9, 0))) == seen
    on_root = replace(kinds(("00:1e.0", 1, None))[0], vendor=vendor, device_id=device)
    assert format_bdf(Topology(None, (on_root,)).requester(0, bdf(1, 9, 0))) == "00:1e.0"


def test_the_unit_is_the_one_of_the_id_that_it_sees() -> None:
    bridges = kinds(("00:1c.0", 1, ROOT_PORT), ("01:00.0", 2, TO_PCI))
    device, sibling = function("02:05.0"), function("02:00.0")
    own, alias = drhd(scope(ENDPOINT, 0, (0x1C, 0), (0, 0), (5, 0))), drhd(scope(ENDPOINT, 0, (0x1C, 0), (0, 0), (0, 0)))
    topology = Topology(Dmar(39, 0, (own, alias, REST)), (*bridges, device, sibling))
    assert [f.source for f in topology.covered(0)] == []
    assert [f.source for f in topology.covered(1)] == [device.source, sibling.source]
    assert topology.requesters(1) == (device.source, sibling.source)
    by_bridge = Topology(Dmar(39, 0, (drhd(scope(BRIDGE, 0, (0x1C, 0), (0, 0))), REST)), (*bridges, device))
    assert by_bridge.requesters(0) == (bdf(1, 0, 0), device.source, bdf(2, 0, 0))


def test_enumerators_are_kept_with_what_their_paths_lead_to() -> None:
    apic, hpet = Scope(ScopeType.IOAPIC, 8, 0xF0, ((0x1F, 7),)), Scope(ScopeType.HPET, 0, 0, ((0x1C, 0), (0, 0)))
    lost = Scope(ScopeType.NAMESPACE, 3, 0, ((0x10, 0), (1, 0)))
    topology = over(drhd(scope(ENDPOINT, 0, (2, 0)), apic), drhd(hpet, lost, include_all=True))
    assert topology.enumerators == (Enumerator(0, apic, 0, bdf(0xF0, 0x1F, 7)), Enumerator(1, hpet, 0, bdf(1, 0, 0)),
                                    Enumerator(1, lost, 0, None))


def dma_aliases(tree: Sequence[PciDescription], types: dict[int, PortType | None], source: int) -> list[int]:
    """The ids of Linux's pci_for_each_dma_alias in its order: the function's, then one for each bridge above that is no port."""
    found, bus = [source], source >> 8
    while bus:
        above = next(b for b in tree if b.secondary == bus)
        if types[above.source] is TO_PCI:
            found.append(above.secondary << 8)
        elif types[above.source] not in (ROOT_PORT, UP, DOWN):
            found.append(above.source)
        bus = above.source >> 8
    return found


@given(machines(), st.data())
def test_random_bridges_agree_with_linux(machine: tuple[list[PciDescription], list[Drhd]], data: st.DataObject) -> None:
    """In a description with the kinds told, and in the machine built of it, by its configuration space."""
    choice = st.sampled_from([ROOT_PORT, UP, DOWN, TO_PCI, TO_PCIE, None])
    types = {f.source: data.draw(choice) for f in machine[0] if f.secondary}
    tree = [replace(f, pcie=types[f.source] is not None, port_type=types[f.source]) if f.secondary else f for f in machine[0]]
    topology, root = Topology(None, tree), Bench(tuple(tree)).root
    last = {f.source: dma_aliases(tree, types, f.source)[-1] for f in tree}
    assert {f.source: topology.requester(0, f.source) for f in tree} == last
    assert {f.description.source: f.port.source for f in root.functions.values()} == last
