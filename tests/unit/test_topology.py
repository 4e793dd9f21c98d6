"""Which unit covers which function: named scenarios, real tables, and random trees against a walk upwards."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.machine.description import PciDescription
from hvcore.machine.topology import Topology
from hvcore.spec.dmar import Dmar, Drhd, Scope, ScopeType, parse
from hvcore.spec.pci import bdf, parse_bdf, split_bdf

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
