"""The DSDT of the emulated PC as ACPI's own interpreter evaluates it: where windows, interrupts and reservations lead, by machine."""

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from pci_bench import Lines

from hvcore.errors import BadMachine
from hvcore.machine import dsdt
from hvcore.machine.bus import Bus
from hvcore.machine.clock import Clock
from hvcore.machine.description import BarDescription, EcamDescription, MachineDescription, PciDescription, UnitDescription
from hvcore.machine.dma import DmaFabric
from hvcore.machine.dsdt import build_dsdt
from hvcore.machine.memory import Memory
from hvcore.machine.pc import Pc
from hvcore.machine.pci import RootComplex
from hvcore.machine.pcifunction import Bridge, PciFunction
from hvcore.machine.pciwindows import root_buses
from hvcore.sources import load, shipped
from hvcore.spec import acpi
from hvcore.spec.e820 import E820Entry
from hvcore.spec.pci import bdf

Range = tuple[int, int]
GIB, FOUR_GIB = 1 << 30, 1 << 32
VGA = (0xA0000, 0xC0000)


def bridge(source: int, secondary: int, subordinate: int, segment: int = 0) -> PciDescription:
    return PciDescription(source, 0x8086, 0x6F04, 0x060400, "bridge", segment, secondary=secondary, subordinate=subordinate)


def stub(source: int, *bars: BarDescription, segment: int = 0) -> PciDescription:
    return PciDescription(source, 0x8086, 0x1528, 0x020000, segment=segment, bars=bars)


def mem(address: int | None, size: int, index: int = 0, prefetchable: bool = False) -> BarDescription:
    return BarDescription(index, "mem64", size, address, prefetchable)


TABLES = 2 * GIB - 0x100000
E820 = (E820Entry(0, 0x9F000, 1), E820Entry(0x9F000, 0xA0000, 2), E820Entry(0xF0000, 0x100000, 2), E820Entry(0x100000, TABLES, 1),
        E820Entry(TABLES, 2 * GIB, 3), E820Entry(0xF8000000, 0xFC000000, 2), E820Entry(0xFE000000, 0xFE011000, 2),
        E820Entry(FOUR_GIB, 6 * GIB, 1))
PC = MachineDescription("pc", E820, ((0, 2 * GIB), (FOUR_GIB, 6 * GIB)), TABLES, ecam=EcamDescription(0xF8000000, 0, 63),
                        units=(UnitDescription(0xFED90000, 0xD2008C40660462, 0xF050DA, include_all=True),))
ODD = {
    "nothing": replace(PC, ecam=None, units=()),
    "between each other": replace(PC, ecam=EcamDescription(0xC0000000), pci=(
        stub(bdf(0, 1, 0), mem(0x90000000, 1 << 20)), bridge(bdf(0, 2, 0), 1, 3), stub(bdf(2, 0, 0), mem(0xD0000000, 1 << 20)),
        stub(bdf(1, 0, 0), mem(0x98000000, 1 << 16), BarDescription(2, "io", 256, 0x2000)),
        stub(bdf(64, 0, 0), mem(0x94000000, 1 << 12), BarDescription(2, "io", 256, 0x500)),
        bridge(bdf(64, 3, 0), 65, 66), stub(bdf(65, 5, 0), mem(0xA0000000, 1 << 24, 0, True), mem(0xB0000000, 1 << 12, 2)),
        stub(bdf(96, 0, 0), BarDescription(0, "io", 64, 0x3000)))),
    "inside a reserved entry": replace(PC, pci=(stub(bdf(0, 31, 5), mem(0xFE010000, 1 << 12)), stub(bdf(0, 31, 6), mem(0xFE000100, 256)),
                                                stub(bdf(0, 31, 7), mem(0xFE000200, 256)), stub(bdf(0, 31, 1), mem(0xFE004000, 1 << 14)),
                                                stub(bdf(0, 31, 2), mem(0xFE004100, 256)))),
    "a bridge's window inside a reserved entry": replace(PC, ecam=None, pci=(
        bridge(bdf(0, 2, 0), 1, 1), stub(bdf(1, 0, 0), mem(0xF8100000, 1 << 16)), bridge(bdf(0, 3, 0), 60, 100))),
    "more buses than the configuration window has": replace(PC, pci=(bridge(bdf(0, 3, 0), 60, 100), stub(bdf(60, 0, 0), mem(None, 4096)))),
    "RAM beyond the processor's reach": replace(PC, ram_runs=((0, 2 * GIB), (1025 * GIB, 1026 * GIB)), host_address_width=42,
                                                e820=(*E820[:-1], E820Entry(1025 * GIB, 1026 * GIB, 1)),
                                                pci=(stub(bdf(0, 1, 0), mem(16 * GIB, GIB)),)),
    "at the border of a reserved entry": replace(PC, pci=(
        stub(bdf(0, 31, 5), mem(0xFE010000, 1 << 12)), stub(bdf(0, 31, 6), mem(0xFE011000, 256)))),
    "above 4 GiB": replace(PC, ecam=EcamDescription(8 * GIB), pci=(
        stub(bdf(0, 1, 0), mem(16 * GIB, GIB)), stub(bdf(0, 2, 0), mem(17 * GIB, GIB, 0, True)), bridge(bdf(0, 3, 0), 1, 1),
        stub(bdf(1, 0, 0), mem(32 * GIB, 1 << 20, 0, True)), stub(bdf(128, 0, 0), mem(24 * GIB, 1 << 20)))),
    "two segments": replace(PC, ecam=EcamDescription(0xC0000000, 0, 127), other_ecams=(EcamDescription(0xE0000000, 16, 31, 1),), pci=(
        stub(bdf(0, 1, 0), mem(None, 1 << 20)), stub(bdf(16, 1, 0), mem(None, 1 << 20), segment=1), bridge(bdf(16, 2, 0), 17, 18, 1),
        stub(bdf(17, 0, 0), mem(None, 1 << 20), segment=1))),
}
MACHINES = [*shipped(), *ODD]
needs_acpiexec = pytest.mark.needs("acpiexec")


@dataclass(frozen=True)
class Root:
    """A host bridge as the interpreter sees it."""

    segment: int
    buses: Range
    ports: tuple[Range, ...]
    memory: tuple[Range, ...]
    routes: dict[tuple[int, int], int]


@cache
def machine(name: str) -> Pc:
    return Pc(ODD[name] if name in ODD else load(name))


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    for name in MACHINES:
        machine(name).close()
    machine.cache_clear()


def table(pc: Pc, name: str) -> bytes:
    at = pc.layout.address(name)
    assert at is not None
    return pc.memory.read(at, pc.memory.read32(at + 4))


PCI_UUID = "5B 4D DB 33 F7 1F 1C 40 96 57 74 41 C0 3D D7 66"
OSC = ((PCI_UUID, "01 00 00 00 1F 00 00 00 1F 00 00 00", "11 00 00 00 1F 00 00 00 10 00 00 00"),
       (PCI_UUID, "00 00 00 00 1F 00 00 00 10 00 00 00", "00 00 00 00 1F 00 00 00 10 00 00 00"),
       (PCI_UUID, "00 00 00 00 00 00 00 00 00 00 00 00", "00 00 00 00 00 00 00 00 00 00 00 00"),
       (PCI_UUID[:-1] + "7", "00 00 00 00 1F 00 00 00 10 00 00 00", "04 00 00 00 1F 00 00 00 10 00 00 00"))
"""The UUID, the three words that a system hands over, and what comes back."""


def paths(pc: Pc) -> dict[str, bool]:
    """The host bridges' paths, and whether anything is on their buses."""
    known = root_buses(pc.machine, pc.root.functions.values())
    return {f"\\_SB.{'PCI0' if i == 0 else f'PC{i:02X}'}": bool(root.devices) for i, root in enumerate(known)}


def commands(pc: Pc) -> Iterator[str]:
    isa = (f"resources \\_SB.PCI0.{d}" for d in ("COM1", "RTC", "TIMR", "PIC"))
    for path, used in paths(pc).items():
        yield from (f"evaluate {path}.{what}" for what in ("_SEG", "_BBN", *(["_PRT"] if used else [])))
        yield f"resources {path}"
    yield from (f"evaluate \\_SB.PCI0._OSC ({identity}) 1 3 ({asked})" for identity, asked, _ in OSC)
    yield from ("evaluate \\_S5", "resources \\_SB.SYSR", *isa, "namespace")


def interpret(name: str, folder: Path) -> str:
    """What ACPI's interpreter says of a machine's tables."""
    folder.mkdir()
    names = ("DSDT", "FACP")
    for signature in names:
        (folder / f"{signature}.dat").write_bytes(table(machine(name), signature))
    return subprocess.run(["acpiexec", "-b", ";".join(commands(machine(name))), *(f"{n}.dat" for n in names)], cwd=folder,
                          capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def all_said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same of every machine, all at once: the interpreter sleeps for a second before it ends."""
    folder = tmp_path_factory.mktemp("interpreted")
    for name in MACHINES:
        machine(name)
    with ThreadPoolExecutor(len(MACHINES)) as pool:
        return dict(zip(MACHINES, pool.map(lambda name: interpret(name, folder / name), MACHINES), strict=True))


@needs_acpiexec
@pytest.mark.parametrize("name", MACHINES)
def test_the_interpreter_has_nothing_to_complain_about(all_said: dict[str, str], name: str) -> None:
    said = all_said[name]
    assert "1 ACPI AML tables successfully acquired and loaded" in said
    assert said.count("Evaluation of ") == said.count("Evaluating \\")
    assert not re.search(r"ACPI (BIOS )?(Error|Warning|Exception)|not found|Could not|failed: (?!AE_NOT_FOUND)", said)


def numbers(said: str, path: str) -> list[int]:
    """The integers of an evaluated object."""
    part = said.split(f"Evaluation of {path} returned")[1].split("\nEvaluating")[0]
    return [int(n, 16) for n in re.findall(r"\[Integer\] = ([0-9A-F]{16})", part)]


def resources(said: str) -> Iterator[tuple[str, Range]]:
    """Kind and half-open range of every address that a resource template holds, as the interpreter prints them."""
    for block in re.split(r"\n\[[0-9A-F]{2}\] ", said.split("Resource Conversion Comparison")[0])[1:]:
        fields = {m[1].strip(): m[2].strip() for m in re.finditer(r"^ +(\S[^:]*?) : (.*)$", block, re.MULTILINE)}
        if "Address Minimum" in fields and "Resource Type" in fields:
            low, high = int(fields["Address Minimum"], 16), int(fields["Address Maximum"], 16)
            assert int(fields["Address Length"], 16) == high - low + 1 and int(fields["Granularity"], 16) == 0
            yield f"{fields['Resource Type']} {fields['Consumer/Producer']}", (low, high + 1)
        elif block.startswith("I/O"):
            low = int(fields["Address Minimum"], 16)
            yield "I/O taken", (low, low + int(fields["Address Length"], 16))
        elif block.startswith("32-Bit Fixed"):
            low = int(fields["Address"], 16)
            yield "memory taken", (low, low + int(fields["Address Length"], 16))


def roots(pc: Pc, said: str) -> tuple[Root, ...]:
    """Every host bridge of a machine."""
    bridges = paths(pc)
    assert len(re.findall(r"= 00000000080AD041", said)) == len(bridges), "one PNP0A08 a root"
    found = []
    for path, used in bridges.items():
        part = said.split(f"\nDevice: {path}\n")[1]
        kinds = list(resources(part.split("Evaluating _CRS")[1]))
        prt = numbers(said, f"{path}._PRT") if used else []
        rows = [tuple(prt[i:i + 4]) for i in range(0, len(prt), 4)]
        assert all(address & 0xFFFF == 0xFFFF and source == 0 for address, _, source, _ in rows)
        buses, = (r for kind, r in kinds if kind == "Bus Number Range ResourceProducer")
        assert numbers(said, f"{path}._BBN") == [buses[0]]
        found.append(Root(numbers(said, f"{path}._SEG")[0], buses, tuple(r for kind, r in kinds if kind == "I/O Range ResourceProducer"),
                          tuple(r for kind, r in kinds if kind == "Memory Range ResourceProducer"),
                          {(address >> 16, pin): line for address, pin, _, line in rows}))
    return tuple(found)


@pytest.fixture
def found(request: pytest.FixtureRequest, all_said: dict[str, str]) -> tuple[Pc, tuple[Root, ...]]:
    name = request.param
    return machine(name), roots(machine(name), all_said[name])


def root_of(pc: Pc, function: PciFunction) -> tuple[int, int]:
    """Segment and bus of the root bus above a function; what lies on a bus of a bridge's belongs there."""
    segment, bus = function.description.segment, function.description.source >> 8
    bridges = [f.description for f in pc.root.functions.values() if f.description.secondary and f.description.segment == segment]
    while above := next((b for b in bridges if b.secondary <= bus <= b.subordinate), None):
        bus = above.source >> 8
    return segment, bus


def used(function: PciFunction) -> Iterator[tuple[str, Range]]:
    """What a function decodes, read from its registers: `io` or `memory` and the range."""
    for bar in function.bars:
        if bar.address is not None:
            yield "io" if bar.description.kind == "io" else "memory", (bar.address, bar.address + bar.size)
    if isinstance(function, Bridge):
        for kind, base, limit, unit in (("io", function.get(0x1C, 1) << 8 & 0xF000, function.get(0x1D, 1) << 8 & 0xF000, 0x1000),
                                        ("memory", function.get(0x20, 2) << 16, function.get(0x22, 2) << 16, 1 << 20),
                                        ("memory", function.get(0x24, 2) << 16 & 0xFFF00000 | function.get(0x28, 4) << 32,
                                         function.get(0x26, 2) << 16 & 0xFFF00000 | function.get(0x2C, 4) << 32, 1 << 20)):
            if base <= limit:
                yield kind, (base, limit + unit)


def apart(ranges: list[Range]) -> bool:
    return all(a[1] <= b[0] for a, b in pairwise(sorted(ranges)))


def touch(a: Range, b: Range) -> bool:
    return a[0] < b[1] and b[0] < a[1]


every_machine = pytest.mark.parametrize("found", MACHINES, indirect=True)


@needs_acpiexec
@every_machine
def test_every_base_address_lies_in_a_window_of_its_root_bus(found: tuple[Pc, tuple[Root, ...]]) -> None:
    pc, bridges = found
    by_key = {(r.segment, r.buses[0]): r for r in bridges}
    assert set(by_key) == {(0, 0)} | {root_of(pc, f) for f in pc.root.functions.values()}
    for function in pc.root.functions.values():
        root = by_key[root_of(pc, function)]
        for kind, (start, end) in used(function):
            windows = root.ports if kind == "io" else root.memory
            assert sum(a <= start and end <= b for a, b in windows) == 1, f"{function}: {start:#x}-{end:#x}"


@needs_acpiexec
@every_machine
def test_windows_keep_off_each_other_and_off_all_that_is_no_pci(found: tuple[Pc, tuple[Root, ...]]) -> None:
    pc, bridges = found
    m = pc.machine
    memory = [w for r in bridges for w in r.memory]
    assert apart(memory) and VGA in bridges[0].memory
    assert apart([(0xCF8, 0xD00), *(w for r in bridges for w in r.ports)])
    assert any(a == 0 and b >= 0x400 for a, b in bridges[0].ports) and any(a <= 0x600 and b >= 0x610 for a, b in bridges[0].ports)
    taken = [*m.ram_runs, (0xFEC00000, FOUR_GIB), *((u.base, u.base + 0x1000) for u in m.units)]
    taken += [(e.base, e.base + e.size) for e in m.ecams]
    for window in memory:
        assert window == VGA or not any(touch(window, t) for t in taken)
        assert window[1] <= 1 << 40
        for e in m.e820:
            inside = e.start <= window[0] and window[1] <= e.end
            assert inside or not touch(window, (e.start, e.end)), "systems cut windows at the border of an entry"


@needs_acpiexec
@every_machine
def test_a_window_in_a_reserved_entry_stands_alone(found: tuple[Pc, tuple[Root, ...]]) -> None:
    """Systems join windows that touch, and what they get must not cross the entry's border; unless the page at the border is in use."""
    pc, bridges = found
    memory = sorted(w for r in bridges for w in r.memory)
    in_use = [r for f in pc.root.functions.values() for kind, r in used(f) if kind == "memory"]
    for low, high in pairwise(memory):
        claimed = [any(touch(w, (e.start, e.end)) for e in pc.machine.e820) for w in (low, high)]
        if low[1] == high[0] and claimed[0] != claimed[1]:
            page = (high[0], high[0] + 0x1000) if claimed[0] else (low[1] - 0x1000, low[1])
            assert any(touch(page, r) for r in in_use)


@needs_acpiexec
@every_machine
def test_bus_numbers_are_shared_and_cover_what_is_there(found: tuple[Pc, tuple[Root, ...]]) -> None:
    pc, bridges = found
    for segment in {r.segment for r in bridges}:
        assert apart([r.buses for r in bridges if r.segment == segment])
    for function in pc.root.functions.values():
        root = next(r for r in bridges if (r.segment, r.buses[0]) == root_of(pc, function))
        assert function.description.source >> 8 in range(*root.buses)
        assert not function.description.subordinate or function.description.subordinate in range(*root.buses)


@needs_acpiexec
@every_machine
def test_interrupts_are_routed_as_they_are_wired(found: tuple[Pc, tuple[Root, ...]]) -> None:
    """By the rule of systems: up to the root bus each bridge turns the pin by the slot, there the table has a row for the device."""
    pc, bridges = found
    for function in pc.root.functions.values():
        if function.pin:
            pin, path = function.pin - 1, list(function.path)
            for below in path[:-1]:
                pin = (pin + (below.description.source >> 3 & 31)) % 4
            root = next(r for r in bridges if (r.segment, r.buses[0]) == root_of(pc, function))
            assert root.routes[path[-1].description.source >> 3 & 31, pin] == function.irq == function.config[0x3C]
    for root in bridges:
        devices = {f.description.source >> 3 & 31 for f in pc.root.functions.values()
                   if not f.parent and (f.description.segment, f.description.source >> 8) == (root.segment, root.buses[0])}
        assert set(root.routes) == {(device, pin) for device in devices for pin in range(4)}


@needs_acpiexec
@pytest.mark.parametrize("name", MACHINES)
def test_what_is_reserved_and_how_to_switch_off(all_said: dict[str, str], name: str) -> None:
    m, said = machine(name).machine, all_said[name]
    assert numbers(said, "\\_S5")[0] == 7
    kinds = list(resources(said.split("\nDevice: \\_SB.SYSR\n")[1].split("Evaluating _CRS")[1]))
    taken = [(e.base, e.base + e.size) for e in m.ecams] + [(u.base, u.base + 0x1000) for u in m.units]
    assert sorted(r for kind, r in kinds if kind in ("memory taken", "Memory Range ResourceConsumer")) == sorted(taken)
    assert [r for kind, r in kinds if kind == "I/O taken"] == [(0x600, 0x610), (0x61, 0x62)]


@needs_acpiexec
def test_the_legacy_devices(all_said: dict[str, str]) -> None:
    ports, lines = [], []
    for part in all_said["q35-2g"].split("\nDevice: \\_SB.PCI0.")[1:]:
        described = part.split("Evaluating _CRS")[1].split("Resource Conversion Comparison")[0]
        ports.append([r for kind, r in resources(described) if kind == "I/O taken"])
        found = re.search(r"Interrupt List : ([0-9A-F]+)", described)
        lines.append(int(found[1], 16) if found else None)
    assert ports == [[(0x3F8, 0x400)], [(0x70, 0x72)], [(0x40, 0x44)], [(0x20, 0x22), (0xA0, 0xA2), (0x4D0, 0x4D2)]]
    assert lines == [4, 8, 0, 2]
    assert re.findall(r'_HID String +\S+ 001 Len 08 "(\S+)"', all_said["q35-2g"]) == ["ACPI0007"]


@needs_acpiexec
def test_a_system_gets_what_the_pc_has(all_said: dict[str, str]) -> None:
    got = re.findall(r"\[Buffer\] Length 0C =     0000: ((?:[0-9A-F]{2} ){12})", all_said["q35-2g"])
    assert [words.strip() for words in got] == [granted for _, _, granted in OSC]


@pytest.mark.needs("iasl")
@pytest.mark.parametrize("name", MACHINES)
def test_what_is_disassembled_compiles_to_the_same(name: str, tmp_path: Path) -> None:
    """But for the header's checksum and the compiler that it names; with no word of complaint."""
    data = table(machine(name), "DSDT")
    (tmp_path / "dsdt.dat").write_bytes(data)
    read = subprocess.run(["iasl", "-d", "dsdt.dat"], cwd=tmp_path, capture_output=True, text=True, check=True)
    made = subprocess.run(["iasl", "dsdt.dsl"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not re.search("error|warning|invalid|unknown", read.stdout + read.stderr, re.IGNORECASE)
    assert "Compilation successful. 0 Errors, 0 Warnings, 0 Remarks, 0 Optimizations" in made.stdout.replace("\n", " "), made.stdout
    again = bytearray((tmp_path / "dsdt.aml").read_bytes())
    again[9], again[28:36] = data[9], data[28:36]
    assert again == data


@pytest.mark.parametrize("name", list(shipped()))
def test_the_tables_lie_where_no_guest_takes_memory(name: str) -> None:
    pc = machine(name)
    entry = next(e for e in pc.machine.e820 if e.start <= pc.machine.acpi_address < e.end)
    assert not entry.usable
    for signature in ("XSDT", "FACP", "APIC", "MCFG", "DMAR", "DSDT", "FACS"):
        region = next((r for r in pc.layout.regions if r.name == signature), None)
        assert region is None or entry.start <= region.start and region.end <= entry.end, signature
    assert acpi.table(pc.memory, "DMAR") == pc.machine.dmar
    madt = acpi.parse_madt(acpi.table(pc.memory, "APIC") or b"")
    ioapic = pc.topology.ioapic
    assert [e.id for e in madt.entries if isinstance(e, acpi.IoApic)] == [ioapic.scope.enumeration_id if ioapic else 0]


def any_machine(r: Random) -> MachineDescription:
    """One that no firmware would leave: BARs, buses and reserved entries anywhere, also over one another."""
    edges = sorted(r.choice((r.randrange(2 * GIB, FOUR_GIB), r.randrange(0xFDFFF000, 0xFE003000), r.randrange(7 * GIB, 1 << 41)))
                   for _ in range(2 * r.randrange(4)))
    entries = tuple(E820Entry(a, b, r.choice((2, 3, 4))) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b)
    functions = {}
    for _ in range(r.randrange(24)):
        size, source, segment = 1 << r.choice((8, 12, 16, 20, 28)), r.choice((r.randrange(256), r.randrange(1 << 16))), r.choice((0, 0, 7))
        place = r.choice((r.randrange(FOUR_GIB), r.randrange(1 << 43), 0xFE000000, 0xFEC00000 - size)) & ~(size - 1)
        ports = BarDescription(2, "io", 1 << r.randrange(2, 9))
        ports = replace(ports, address=r.choice((None, r.randrange(1 << 16) & ~(ports.size - 1))))
        behind = r.randrange(1, 256)
        functions[segment, source] = r.choice((
            stub(source, mem(r.choice((None, place)), size, 0, r.random() < 0.3), ports, segment=segment),
            bridge(source, behind, min(255, behind + r.randrange(9)), segment)))
    windows = EcamDescription(r.choice((0xB0000000, 0xF8000000, 8 * GIB)), 0, r.choice((0, 63, 255)))
    return replace(PC, e820=(*E820, *entries), ecam=r.choice((None, windows)), pci=tuple(functions.values()))


def test_windows_of_any_machine_share_no_byte() -> None:
    for seed in range(150):
        pc = Pc(any_machine(Random(seed)))
        found = root_buses(pc.machine, pc.root.functions.values())
        assert apart([w for r in found for w in r.memory]) and apart([w for r in found for w in r.ports]), seed
        assert all(a < b for r in found for a, b in (*r.memory, *r.ports)), seed
        for segment in (0, 7):
            assert apart([(r.bus, r.last + 1) for r in found if r.segment == segment]), seed
        acpi.parse_header(table(pc, "DSDT"), "DSDT")
        pc.close()


def test_more_root_buses_than_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    many = replace(PC, pci=tuple(stub(bdf(i & 0xFF, 0, 0), segment=i >> 8) for i in range(300)))
    functions = RootComplex(*parts(many)).functions.values()
    table = build_dsdt(many, functions)
    assert b"PCFF" in table and b"R100" in table and b"R12B" in table
    monkeypatch.setattr(dsdt, "_MOST_ROOTS", 299)
    with pytest.raises(BadMachine, match="300 PCI root buses, firmware has names for 299"):
        build_dsdt(many, functions)


def parts(description: MachineDescription) -> tuple[Bus, DmaFabric, Clock, MachineDescription, Lines]:
    """What a root complex is made of."""
    memory = Memory(description.ram_runs)
    return Bus(memory), DmaFabric(memory, lambda segment, source: None), Clock(), description, Lines()
