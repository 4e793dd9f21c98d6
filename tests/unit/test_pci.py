"""Configuration space, routing, BARs and what COMMAND gates, by ports and memory as software does it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pci_bench import ECAM, EDU, HOST_BRIDGE, LOW, NVME, Bench

from hvcore.errors import BadMachine
from hvcore.machine.description import BarDescription, EcamDescription, PciDescription, UnitDescription
from hvcore.spec.pci import bdf

ONES = 0xFFFFFFFF
PORT1 = PciDescription(bdf(0, 0x1C, 0), 0x8086, 0xA110, 0x060400, "bridge", secondary=1, subordinate=3)
SWITCH = PciDescription(bdf(1, 0, 0), 0x10B5, 0x8747, 0x060400, "bridge", secondary=2, subordinate=3)
DOWN = PciDescription(bdf(2, 4, 0), 0x10B5, 0x8747, 0x060400, "bridge", secondary=3, subordinate=3)
PORT2 = PciDescription(bdf(0, 0x1C, 4), 0x8086, 0xA114, 0x060400, "bridge", secondary=4, subordinate=4)
DEEP = replace(EDU, source=bdf(3, 0, 0))
SIDE = replace(NVME, source=bdf(4, 0, 0))
TREE = (HOST_BRIDGE, PORT1, SWITCH, DOWN, PORT2, DEEP, SIDE)


def test_identity_of_a_function() -> None:
    pc = Bench()
    source = NVME.source
    assert pc.config_read(source, 0x00) == 0x00101B36
    assert pc.config_read(source, 0x08) == 0x01080202
    assert pc.config_read(source, 0x2C) == 0x11001AF4
    assert pc.config_read(source, 0x0E, 1) == 0 and pc.config_read(source, 0x3D, 1) == 1
    assert pc.config_read(source, 0x02, 2) == 0x0010 and pc.config_read(source, 0x0B, 1) == 0x01


def test_the_whole_configuration_space_of_a_function() -> None:
    pc = Bench()
    expected = bytearray(256)
    expected[0:12] = bytes.fromhex("3412e811 06001000 1000ff00".replace(" ", ""))
    expected[0x10:0x14] = LOW.to_bytes(4, "little")
    expected[0x34], expected[0x3C], expected[0x3D] = 0x40, 11, 1
    expected[0x40:0x48] = bytes.fromhex("1000920000800000")
    pc.config_write(EDU.source, 0x10, LOW)
    assert b"".join(pc.config_read(EDU.source, o).to_bytes(4, "little") for o in range(0, 256, 4)) == expected


def test_absent_functions_read_all_ones() -> None:
    pc = Bench()
    assert pc.config_read(bdf(0, 9, 0), 0) == ONES and pc.config_read(bdf(7, 0, 0), 0, 2) == 0xFFFF
    assert pc.bus.read(ECAM + (bdf(0, 9, 0) << 12), 8) == (1 << 64) - 1


def test_mechanism_1_needs_a_whole_enabled_address() -> None:
    pc = Bench()
    pc.bus.port_write(0xCF8, 4, 1 << 31 | NVME.source << 8 | 3)
    assert pc.bus.port_read(0xCF8, 4) == 1 << 31 | NVME.source << 8
    pc.bus.port_write(0xCF8, 1, 0xFF)
    pc.bus.port_write(0xCFB, 1, 0x01)
    assert pc.bus.port_read(0xCF8, 4) == 1 << 31 | NVME.source << 8
    assert [pc.bus.port_read(0xCFC + i, 1) for i in range(4)] == [0x36, 0x1B, 0x10, 0x00]
    assert pc.bus.port_read(0xCFF, 2) == 0xFF00
    pc.bus.port_write(0xCF8, 4, NVME.source << 8)
    assert pc.bus.port_read(0xCFC, 4) == ONES


def test_ecam_and_mechanism_1_show_the_same_registers() -> None:
    pc = Bench(TREE)
    for description in TREE:
        at = ECAM + (description.source << 12)
        assert [pc.bus.read(at + i, 4) for i in range(0, 256, 4)] == [pc.config_read(description.source, i) for i in range(0, 256, 4)]
        assert pc.bus.read(at + 0x100, 4) == 0
    pc.bus.write(ECAM + (DEEP.source << 12) + 0x3C, 1, 0x2A)
    assert pc.config_read(DEEP.source, 0x3C, 1) == 0x2A
    assert pc.bus.read(ECAM + (16 << 20), 4) == ONES, "the window ends with its last bus"


def test_ecam_of_later_buses_counts_from_the_first() -> None:
    pc = Bench(TREE, ecam=EcamDescription(0xC0000000, 3, 3))
    assert pc.bus.read(0xC0000000, 4) == 0x11E81234


def test_a_conventional_function_has_no_extended_space() -> None:
    pc = Bench((HOST_BRIDGE, replace(EDU, pcie=False)))
    at = ECAM + (EDU.source << 12)
    assert pc.bus.read(at + 0x100, 4) == ONES and pc.bus.read(at, 4) == 0x11E81234
    assert pc.config_read(EDU.source, 0x34, 1) == 0 and pc.config_read(EDU.source, 0x06, 2) & 0x10 == 0


def test_identity_is_read_only_and_scratch_registers_are_not() -> None:
    pc = Bench()
    for offset in (0x00, 0x08, 0x2C):
        before = pc.config_read(EDU.source, offset)
        pc.config_write(EDU.source, offset, ONES)
        assert pc.config_read(EDU.source, offset) == before
    pc.config_write(EDU.source, 0x04, 0xFFFF, 2)
    assert pc.config_read(EDU.source, 0x04, 2) == 0x0547
    pc.config_write(EDU.source, 0x3C, 0x77, 1)
    assert pc.config_read(EDU.source, 0x3C, 1) == 0x77


@pytest.mark.parametrize(("kind", "size", "low", "high"), [
    ("mem32", 0x10, 0xFFFFFFF0, None), ("mem32", 1 << 20, 0xFFF00000, None), ("mem64", 0x4000, 0xFFFFC004, ONES),
    ("mem64", 8 << 30, 0x00000004, 0xFFFFFFFE), ("io", 0x20, 0xFFFFFFE1, None), ("io", 4, 0xFFFFFFFD, None)])
def test_bar_sizing(kind: str, size: int, low: int, high: int | None) -> None:
    pc = Bench((HOST_BRIDGE, PciDescription(bdf(0, 5, 0), 1, 2, 0x020000, bars=(BarDescription(2, kind, size),))))
    source, dwords = bdf(0, 5, 0), [pc.config_read(bdf(0, 5, 0), o) for o in (0x18, 0x1C)]
    pc.config_write(source, 0x18, ONES)
    pc.config_write(source, 0x1C, ONES)
    assert (pc.config_read(source, 0x18), pc.config_read(source, 0x1C)) == (low, high or 0)
    for offset, value in zip((0x18, 0x1C), dwords, strict=True):
        pc.config_write(source, offset, value)
    assert [pc.config_read(source, o) for o in (0x18, 0x1C)] == dwords


def test_prefetchable_bars_say_so() -> None:
    bars = (BarDescription(0, "mem64", 0x1000, 0xD0000000, True), BarDescription(2, "mem32", 0x1000, 0xD0001000, True))
    pc = Bench((replace(HOST_BRIDGE, bars=bars),))
    assert (pc.config_read(0, 0x10), pc.config_read(0, 0x18)) == (0xD000000C, 0xD0001008)


def test_firmware_leaves_devices_decoding_mastering_and_placed_in_the_hole() -> None:
    units = (UnitDescription(LOW, 0, 0),)
    pc = Bench((HOST_BRIDGE, NVME, replace(EDU, bars=(BarDescription(0, "mem32", 1 << 20, 0xFEA00000),))), units=units)
    for description in (NVME, EDU):
        assert pc.config_read(description.source, 0x04, 2) & 6 == 6
    assert pc.bar0(EDU.source) == 0xFEA00000 and pc.bar0(NVME.source) == LOW + 0x4000, "above the unit's page, aligned"
    assert pc.bus.read(pc.bar0(EDU.source), 4) == 0x010000ED
    assert pc.bus.read(pc.bar0(NVME.source) + 8, 4) == 0x00010400
    assert pc.root.notes == []


def test_placement_fills_the_hole_around_what_is_there_and_goes_above_ram() -> None:
    big = tuple(PciDescription(bdf(0, 8 + i, 0), 1, i, 0x030000, bars=(BarDescription(0, "mem64", 1 << 30),)) for i in range(5))
    huge = PciDescription(bdf(0, 20, 0), 1, 9, 0x030000, bars=(BarDescription(0, "mem32", 2 << 30),))
    pc = Bench((HOST_BRIDGE, *big, huge))
    assert [pc.bar0(d.source) for d in big] == [0x40000000, 0x140000000, 0x180000000, 0x1C0000000, 0x200000000]
    assert pc.root.notes == ["BAR 0 of 00:14.0 [0001:0009] stub stays unassigned: no room for 0x80000000 bytes"]
    assert pc.bar0(huge.source) == 0


def test_a_bar_over_ram_or_another_window_reads_but_does_not_answer() -> None:
    over_ram = replace(EDU, bars=(BarDescription(0, "mem32", 1 << 20, 0x100000),))
    pc = Bench((HOST_BRIDGE, NVME, over_ram, replace(EDU, source=bdf(0, 4, 0), bars=(BarDescription(0, "mem32", 1 << 20, ECAM),))))
    assert pc.bar0(EDU.source) == 0x100000 and pc.bar0(bdf(0, 4, 0)) == ECAM
    assert pc.bus.read(0x100000, 4) == 0 and pc.bus.read(ECAM, 4) == 0x29C08086
    assert pc.root.notes == ["BAR 0 of 00:03.0 [1234:11e8] edu at 0x100000 stays unassigned: it overlaps 0x0-0x4000000",
                             "BAR 0 of 00:04.0 [1234:11e8] edu at 0xb0000000 stays unassigned: it overlaps 0xb0000000-0xb1000000"]


def test_neighbouring_windows_do_not_overlap() -> None:
    pc = Bench((HOST_BRIDGE, replace(NVME, bars=(BarDescription(0, "mem64", 0x4000, 0xFEAFC000),)),
                replace(EDU, bars=(BarDescription(0, "mem32", 1 << 20, 0xFEB00000),))))
    assert pc.root.notes == [] and (pc.bus.read(0xFEAFC008, 4), pc.bus.read(0xFEB00000, 4)) == (0x00010400, 0x010000ED)


def test_an_address_that_the_register_cannot_hold_is_replaced() -> None:
    pc = Bench((HOST_BRIDGE, replace(EDU, bars=(BarDescription(0, "mem32", 1 << 20, 0xFEA00010),))))
    assert pc.bar0(EDU.source) == LOW and pc.bus.read(LOW, 4) == 0x010000ED
    assert "cannot hold 0xfea00010" in pc.root.notes[0]


def test_a_configuration_window_over_ram_is_noted() -> None:
    pc = Bench(ecam=EcamDescription(0, 0, 0))
    assert pc.bus.read(0, 4) == 0 and pc.root.notes == ["the configuration window at 0x0 does not answer: it overlaps 0x0-0x4000000"]


def test_windows_follow_the_bar_and_memory_enable() -> None:
    pc = Bench()
    old, new = pc.bar0(EDU.source), 0xE0000000
    pc.config_write(EDU.source, 0x10, new)
    assert pc.bus.read(old, 4) == ONES and pc.bus.read(new, 4) == 0x010000ED
    pc.config_write(EDU.source, 0x04, 0x4, 2)
    assert pc.bus.read(new, 4) == ONES
    pc.config_write(EDU.source, 0x04, 0x6, 2)
    assert pc.bus.read(new, 4) == 0x010000ED


@pytest.mark.parametrize("where", [0, 0x100000, 1 << 32, ECAM, 0xFED00000, 0xFFF00000])
def test_a_bar_moved_over_ram_or_the_chipset_does_not_answer(where: int) -> None:
    pc = Bench()
    old = pc.bar0(NVME.source)
    pc.config_write(NVME.source, 0x14, where >> 32)
    pc.config_write(NVME.source, 0x10, where & ONES)
    assert pc.bar0(NVME.source) == where
    assert not any(w.name.endswith("nvme") for w in pc.bus.windows)
    pc.config_write(NVME.source, 0x14, old >> 32)
    pc.config_write(NVME.source, 0x10, old & ONES)
    assert pc.bus.read(old + 8, 4) == 0x00010400


def test_the_hierarchy_is_found_by_a_recursive_scan() -> None:
    pc = Bench(TREE)

    def scan(bus: int) -> list[int]:
        found = []
        for devfn in range(256):
            if pc.config_read(bus << 8 | devfn, 0) != ONES:
                found.append(bus << 8 | devfn)
                if pc.config_read(bus << 8 | devfn, 0x0E, 1) & 0x7F == 1:
                    found += scan(pc.config_read(bus << 8 | devfn, 0x19, 1))
        return found

    assert scan(0) == [HOST_BRIDGE.source, PORT1.source, SWITCH.source, DOWN.source, DEEP.source, PORT2.source, SIDE.source]
    assert pc.config_read(PORT1.source, 0x18) == 0x00030100


def test_multifunction_devices_say_so() -> None:
    pc = Bench(TREE)
    assert pc.config_read(PORT1.source, 0x0E, 1) == 0x81 and pc.config_read(DEEP.source, 0x0E, 1) == 0
    assert pc.config_read(PORT2.source, 0x0E, 1) == 0x81


def test_bus_numbers_given_anew_are_honoured() -> None:
    pc = Bench(TREE)
    for bridge in (PORT1, PORT2):
        pc.config_write(bridge.source, 0x18, 0)
        assert pc.config_read(SWITCH.source, 0) == ONES
    pc.config_write(PORT2.source, 0x18, 0x00090900)
    assert pc.config_read(bdf(9, 0, 0), 0) == 0x00101B36 and pc.config_read(SIDE.source, 0) == ONES
    pc.config_write(bdf(9, 0, 0), 0x04, 0x6, 2)
    nvme = pc.root.find("nvme")[0]
    assert nvme.port.source == bdf(9, 0, 0), "the requester id took the bus number of the write"
    pc.root.reset()
    assert pc.config_read(SIDE.source, 0) == 0x00101B36 and nvme.port.source == SIDE.source


def test_bridge_windows_cover_what_lies_behind_and_no_sibling() -> None:
    pc = Bench(TREE)
    for bridge, function in ((PORT1, DEEP), (DOWN, DEEP), (PORT2, SIDE)):
        limits = pc.config_read(bridge.source, 0x20)
        start, end = (limits & 0xFFF0) << 16, (limits >> 16 & 0xFFF0) << 16 | 0xFFFFF
        assert start <= pc.bar0(function.source) < end
        assert end - start == 0xFFFFF
        prefetchable = pc.config_read(bridge.source, 0x24)
        assert prefetchable & 0xFFF0 > prefetchable >> 16 & 0xFFF0, "closed"


def test_a_bridge_window_above_4_gib_has_upper_halves() -> None:
    behind = PciDescription(bdf(4, 0, 0), 1, 2, 0x030000, bars=(BarDescription(0, "mem64", 1 << 28, 0x38_0000_0000, True),
                                                                 BarDescription(4, "io", 0x1000), BarDescription(5, "io", 0x40)))
    pc = Bench((HOST_BRIDGE, PORT2, behind))
    assert pc.config_read(PORT2.source, 0x24) == 0x0FF1_0001 and pc.config_read(PORT2.source, 0x28) == 0x38
    assert pc.config_read(PORT2.source, 0x2C) == 0x38
    assert pc.config_read(PORT2.source, 0x1C, 2) == 0xD0C0 and pc.config_read(behind.source, 0x24) == 0xD001


@pytest.mark.parametrize(("plain", "memory", "prefetchable"), [
    (0x9C00_0000, (0x9C00, 0x9C0F), (0x9000, 0x91FF)), (0x9100_0000, (0x9000, 0x91FF), None), (None, None, (0x9000, 0x91FF))])
def test_prefetchable_memory_has_a_window_of_its_own_where_the_two_lie_apart(
        plain: int | None, memory: tuple[int, int] | None, prefetchable: tuple[int, int] | None) -> None:
    """The other windows are closed: their base is above their limit."""
    bars = [BarDescription(0, "mem64", 1 << 24, 0x9000_0000, True), BarDescription(2, "mem32", 1 << 20, 0x91F0_0000, True)]
    bars += [BarDescription(4, "mem32", 1 << 20, plain)] if plain else []
    pc = Bench((HOST_BRIDGE, PORT2, PciDescription(bdf(4, 0, 0), 1, 2, 0x030000, bars=tuple(bars))))
    windows = []
    for offset in (0x20, 0x24):
        base, limit = pc.config_read(PORT2.source, offset, 2) & 0xFFF0, pc.config_read(PORT2.source, offset + 2, 2) | 0xF
        windows.append((base, limit) if base <= limit else None)
    assert windows == [memory, prefetchable]


def test_a_bridge_gates_memory_and_dma_of_what_lies_behind() -> None:
    pc = Bench(TREE)
    edu, bar = pc.root.functions[0, DEEP.source], pc.bar0(DEEP.source)
    assert edu.dma_write(0x1000, b"data").ok and pc.gate.seen[-1].source == DEEP.source
    pc.config_write(PORT1.source, 0x04, 0x2, 2)
    assert not edu.dma_write(0x1000, b"more").ok and pc.memory.read(0x1000, 4) == b"data"
    assert pc.bus.read(bar, 4) == 0x010000ED
    pc.config_write(PORT1.source, 0x04, 0x4, 2)
    assert edu.dma_read(0x1000, 4).data == b"data" and pc.bus.read(bar, 4) == ONES


def test_without_bus_master_no_request_leaves_the_function() -> None:
    pc = Bench()
    edu = pc.root.functions[0, EDU.source]
    pc.config_write(EDU.source, 0x04, 0x2, 2)
    result = edu.dma_read(0x1000, 4)
    assert result.data is None and result.fault is None and result.request.source == EDU.source and pc.gate.seen == []


def test_express_port_types() -> None:
    pc = Bench((*TREE, EDU))
    types = {d.source: pc.config_read(d.source, pc.capability(d.source, 0x10) + 2, 2) for d in (*TREE, EDU)}
    assert [types[d.source] >> 4 & 0xF for d in (HOST_BRIDGE, PORT1, SWITCH, DOWN, PORT2, DEEP, SIDE, EDU)] == [9, 4, 5, 6, 4, 0, 0, 9]
    assert {t & 0xF for t in types.values()} == {2}


def test_shared_interrupt_lines_are_high_while_any_function_pulls() -> None:
    pc = Bench((HOST_BRIDGE, EDU, replace(EDU, source=bdf(0, 5, 0))))
    first, second = pc.bar0(EDU.source), pc.bar0(bdf(0, 5, 0))
    line = pc.config_read(EDU.source, 0x3C, 1)
    assert line == pc.config_read(bdf(0, 5, 0), 0x3C, 1) == 11
    pc.bus.write(first + 0x60, 4, 1)
    pc.bus.write(second + 0x60, 4, 1)
    pc.bus.write(first + 0x64, 4, 1)
    assert pc.lines.levels[line] is True and pc.config_read(EDU.source, 0x06, 2) & 8 == 0
    pc.config_write(bdf(0, 5, 0), 0x04, 0x406, 2)
    assert pc.lines.levels[line] is False and pc.config_read(bdf(0, 5, 0), 0x06, 2) & 8
    pc.config_write(bdf(0, 5, 0), 0x04, 0x006, 2)
    assert pc.lines.levels[line] is True


def test_several_root_buses_and_segments() -> None:
    far = PciDescription(bdf(0x80, 5, 0), 0x8086, 0x2F28, 0x088000)
    other = PciDescription(bdf(0, 2, 0), 0x8086, 0x1111, 0x088000, segment=1)
    pc = Bench((HOST_BRIDGE, far, other), ecam=EcamDescription(ECAM, 0, 3, segment=1))
    assert pc.config_read(far.source, 0) == 0x2F288086 and pc.config_read(other.source, 0) == ONES
    assert pc.bus.read(ECAM + (other.source << 12), 4) == 0x11118086 and pc.bus.read(ECAM, 4) == ONES


def test_bridges_that_lead_nowhere_are_noted() -> None:
    loop = replace(PORT1, secondary=0, subordinate=0)
    twin = replace(PORT2, secondary=4, source=bdf(0, 0x1D, 0))
    pc = Bench((HOST_BRIDGE, loop, PORT2, twin, SIDE))
    assert [n.split(":")[-1] for n in pc.root.notes] == [
        " its secondary bus number 0 is not above its own bus", " another bridge leads to bus 4"]
    assert pc.config_read(SIDE.source, 0) == 0x00101B36


@pytest.mark.parametrize(("pci", "words"), [
    ((EDU, EDU), "00:03.0 of segment 0 is described twice"),
    ((replace(EDU, model="gpu"),), "has model 'gpu': it can be nvme, edu, bridge, stub"),
    ((replace(EDU, bars=(BarDescription(0, "mem16", 16),)),), "kind 'mem16'"),
    ((replace(EDU, bars=(BarDescription(0, "mem32", 24),)),), "must be a power of two"),
    ((replace(EDU, bars=(BarDescription(5, "mem64", 16),)),), "does not fit among its 6 registers"),
    ((replace(EDU, bars=(BarDescription(0, "mem64", 16), BarDescription(1, "mem32", 16))),), "does not fit"),
    ((replace(PORT1, bars=(BarDescription(2, "mem32", 16),)),), "does not fit among its 2 registers")])
def test_impossible_functions_are_told(pci: tuple[PciDescription, ...], words: str) -> None:
    with pytest.raises(BadMachine, match=words.replace("(", r"\(")):
        Bench(pci)


def test_reset_equals_power_on_byte_for_byte() -> None:
    pc, fresh = Bench(TREE), Bench(TREE)
    for description in TREE:
        for offset in range(0, 256, 4):
            pc.config_write(description.source, offset, 0x5A5A5A5A ^ offset)
    pc.root.reset()
    for description in TREE:
        assert pc.root.functions[0, description.source].config == fresh.root.functions[0, description.source].config
    assert [(w.start, w.end, w.name) for w in pc.bus.windows] == [(w.start, w.end, w.name) for w in fresh.bus.windows]
    assert pc.bus.port_read(0xCF8, 4) == 0


def test_a_stub_without_bars_decodes_nothing_and_reads_zero_there() -> None:
    pc = Bench()
    assert [pc.config_read(HOST_BRIDGE.source, o) for o in range(0x10, 0x28, 4)] == [0] * 6


WRITES = st.tuples(st.sampled_from([d.source for d in TREE]),
                   st.integers(0, 0xFFF), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1))


@settings(max_examples=60)
@given(st.lists(WRITES, max_size=40))
def test_random_configuration_writes_never_raise_and_reset_mends_them(writes: list[tuple[int, int, int, int]]) -> None:
    pc = Bench(TREE)
    windows = [(w.start, w.end, w.name) for w in pc.bus.windows]
    for source, offset, width, value in writes:
        pc.bus.write(ECAM + (source << 12) + offset, width, value)
        pc.bus.read(ECAM + (source << 12) + offset, width)
        assert all(w.start >= LOW and not (w.start < 5 << 30 and w.end > 4 << 30) for w in pc.bus.windows)
    pc.root.reset()
    assert [(w.start, w.end, w.name) for w in pc.bus.windows] == windows
