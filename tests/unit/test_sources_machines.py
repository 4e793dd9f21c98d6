"""Whole machines: shipped ones, folders of logs and tables, single logs; what is known of each, and what is said to be assumed."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from hvcore.errors import BadMachine
from hvcore.machine.description import BarDescription, MachineDescription, PciDescription
from hvcore.machine.topology import Topology
from hvcore.sources import images_dir, load, shipped
from hvcore.sources.pci_tree import place_bars
from hvcore.spec.dmar import Dmar, Drhd, Scope, build, parse
from hvcore.spec.pci import format_bdf, parse_bdf

LOGS = Path(__file__).parents[1] / "data" / "logs"
MACHINES = images_dir() / "machines"
REAL = MACHINES / "real"
BAD = {"amd-5700u-32g", "partial-dell-r740-192g"}
FOLDERS = [*sorted(REAL.glob("*/")), *sorted(p for p in LOGS.glob("*/") if p.name not in BAD)]
GIB = 1 << 30
MAP = "BIOS-e820: [mem 0x0-0x9ffff] usable\nBIOS-e820: [mem 0x100000-0x7fffffff] usable\n"


def function(machine: MachineDescription, at: str) -> PciDescription:
    return next(f for f in machine.pci if f.source == parse_bdf(at)[1])


def models(machine: MachineDescription) -> dict[str, str]:
    return {f.model: format_bdf(f.source) for f in machine.pci if f.model in ("nvme", "edu")}


def test_what_is_shipped() -> None:
    names = set(shipped())
    assert {"q35-2g", "q35-6g", "q35-32g", "q35-48g", "q35-64g", "q35-2g-rootport", "nvme-desktop-16g", "laptop-16g", "server-64g",
            "server-1t"} <= names
    assert len(list(REAL.glob("*/SOURCE.txt"))) >= 8
    for name in names:
        assert load(name).name == name


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_toml_assumes_nothing(name: str) -> None:
    machine = load(name)
    if shipped()[name].suffix == ".toml":
        assert machine.assumptions == ()
        assert set(models(machine)) == {"nvme", "edu"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_every_machine_is_consistent(folder: Path) -> None:
    machine = load(folder)
    assert machine.source.startswith(("http", "QEMU", "BitVisor"))
    for e in machine.e820:
        if e.usable:
            assert any(a <= e.start and e.end <= b for a, b in machine.ram_runs)
    taken = [*machine.ram_runs, *((u.base, u.base + 4096) for u in machine.units)]
    if machine.ecam:
        taken.append((machine.ecam.base, machine.ecam.base + machine.ecam.size))
    taken += [(b.address, b.address + b.size) for f in machine.pci for b in f.bars if b.address is not None and b.kind != "io"]
    taken.sort()
    assert all(a[1] <= b[0] for a, b in pairwise(taken))
    assert not any(e.usable and e.start <= machine.acpi_address < e.end for e in machine.e820)
    assert any(f.source == 0 for f in machine.pci) and "nvme" in models(machine)
    assert len({f.source for f in machine.pci}) == len(machine.pci)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_every_function_has_its_unit(folder: Path) -> None:
    machine = load(folder)
    if machine.dmar is None:
        assert machine.units == () and any("VTD_TRANS has nothing to do" in a for a in machine.assumptions)
        return
    topology = Topology(parse(machine.dmar), machine.pci)
    assert [u.base for u in machine.units] == [d.base for d in parse(machine.dmar).drhds]
    assert all(topology.unit_index(0, f.source) is not None for f in machine.pci)


SIZES = {"dell-r630-64g": 65467, "gigabyte-b150m-16g": 16368, "hp-compaq-8000-elite-4g": 4032, "huananzhi-x99-qd4-32g": 32704,
         "hp-pavilion-690-16g": 16352, "huawei-wrtd-tgl-16g": 16384, "lenovo-ideapad320-8g": 8176, "supermicro-x10drl-64g": 65536,
         "surface-pro-7-16g": 16384, "qemu-q35-6g": 6144}


@pytest.mark.parametrize(("name", "mib"), SIZES.items())
def test_dram_of_the_real_ones(name: str, mib: int) -> None:
    """What the DIMMs hold, but for a few MiB that firmware does not report at all."""
    machine = load(name)
    assert machine.ram_bytes >> 20 == mib
    nominal = int(name.split("-")[-1].rstrip("g")) * GIB
    assert nominal - 128 * (1 << 20) < machine.ram_bytes <= nominal


@pytest.mark.parametrize("name", ["huananzhi-x99-qd4-32g", "supermicro-x10drl-64g", "surface-pro-7-16g", "qemu-q35-6g"])
def test_a_real_table_is_used_byte_for_byte(name: str) -> None:
    assert load(name).dmar == (REAL / name / "DMAR.dat").read_bytes()


@pytest.mark.parametrize(("name", "length"), [
    ("gigabyte-b150m-16g", 168), ("hp-compaq-8000-elite-4g", 456), ("hp-pavilion-690-16g", 112), ("huawei-wrtd-tgl-16g", 136)])
def test_a_rebuilt_table_is_as_long_as_the_log_says_the_real_one_is(name: str, length: int) -> None:
    machine = load(name)
    assert machine.dmar and len(machine.dmar) == length
    assert any(f"it has {length} bytes, the real one {length}" in a for a in machine.assumptions)


def test_a_table_rebuilt_from_lines_says_what_the_real_one_says(tmp_path: Path) -> None:
    shutil.copy(REAL / "huananzhi-x99-qd4-32g" / "dmesg.txt", tmp_path / "huananzhi.txt")
    built, real = parse(load(tmp_path / "huananzhi.txt").dmar or b""), parse((REAL / "huananzhi-x99-qd4-32g" / "DMAR.dat").read_bytes())
    assert (built.host_address_width, built.flags) == (real.host_address_width, real.flags)
    assert [(d.base, d.flags, d.segment) for d in built.drhds] == [(d.base, d.flags, d.segment) for d in real.drhds]
    assert [(r.base, r.limit, r.scopes) for r in built.rmrrs] == [(r.base, r.limit, r.scopes) for r in real.rmrrs]
    assert built.drhds[0].scopes == real.drhds[0].scopes
    assert [(r.base, r.proximity_domain) for r in built.rhsas] == [(r.base, r.proximity_domain) for r in real.rhsas]
    assert [a.flags for a in built.atsrs] == [a.flags for a in real.atsrs]


def test_the_units_of_a_q45_as_its_sister_has_them() -> None:
    """Owners of four units and nine regions, as the real table of an HP Compaq dc7800 names them for the same devices."""
    table = parse(load("hp-compaq-8000-elite-4g").dmar or b"")
    named = [[f"{s.path[0][0]:02x}.{s.path[0][1]}" for s in d.scopes] for d in table.drhds]
    assert named == [["1b.0"], ["02.0", "02.1"], ["03.0", "03.2", "03.3"], []]
    assert [len(r.scopes) for r in table.rmrrs] == [2, 1, 1, 1, 1, 1, 1, 1, 1]


def test_registers_come_from_the_log_by_base() -> None:
    surface = load("surface-pro-7-16g")
    assert [(u.base, u.cap, u.ecap, u.version) for u in surface.units] == [
        (0xFED90000, 0x1C0000C40660462, 0x49E2FF0505E, 0x40), (0xFED92000, 0xD2008C40660462, 0xF050DA, 0x10),
        (0xFED91000, 0xD2008C40660462, 0xF050DA, 0x10)]
    assert any("0xfed92000 were not logged" in a for a in surface.assumptions)
    assert any("DMAR.dat has 160 bytes, the log's table 136" in a for a in surface.assumptions)


@pytest.mark.parametrize(("name", "address"), [
    ("hp-compaq-8000-elite-4g", 0xDD7A4000), ("gigabyte-b150m-16g", 0xA7E72000), ("supermicro-x10drl-64g", 0x6F7D1000),
    ("dell-r630-64g", 0x7BAE9000)])
def test_tables_lie_in_the_entry_of_the_real_ones(name: str, address: int) -> None:
    assert load(name).acpi_address == address


def test_the_width_where_the_log_lost_it(tmp_path: Path) -> None:
    log = tmp_path / "dmesg"
    units = (("fed90000", "c0000020660262"), ("fed91000", "8d2078c106f0466"))
    log.write_text(MAP + "".join(f"DMAR: dmar0: reg_base_addr {base} ver 1:0 cap {cap} ecap f020df\n" for base, cap in units))
    assert load(log).host_address_width == 48


def test_devices_of_reserved_memory_that_linux_named() -> None:
    table = parse(load("gigabyte-b150m-16g").dmar or b"")
    assert [[s.path[0] for s in r.scopes] for r in table.rmrrs] == [[(0x14, 0)], [(2, 0)]]
    assert not any("guessed" in a for a in load("gigabyte-b150m-16g").assumptions)


def test_bridges_and_bars_of_a_real_machine() -> None:
    machine = load("huananzhi-x99-qd4-32g")
    assert models(machine) == {"nvme": "02:00.0", "edu": "00:04.0"}
    assert (function(machine, "00:02.0").secondary, function(machine, "00:02.0").subordinate) == (3, 5)
    assert function(machine, "02:00.0").bars[0].address == 0xFBE00000
    assert function(machine, "00:14.0").bars[0].address is None, "56 TiB are beyond the CPU's reach"
    assert machine.ecam and machine.ecam.base == 0x80000000


def test_the_measured_machine() -> None:
    machine = load("q35-6g")
    assert [(e.start, e.end, e.type) for e in machine.e820] == [
        (0, 0x9FC00, 1), (0x9FC00, 0xA0000, 2), (0xF0000, 0x100000, 2), (0x100000, 0x7FFD7000, 1), (0x7FFD7000, 0x80000000, 2),
        (0xB0000000, 0xC0000000, 2), (0xFED1C000, 0xFED20000, 2), (0xFFFC0000, 1 << 32, 2), (1 << 32, 0x200000000, 1),
        (0xFD00000000, 1 << 40, 2)]
    unit, = machine.units
    assert (unit.base, unit.cap, unit.ecap) == (0xFED90000, 0x00D2008C22260206, 0xF42)
    measured = load(LOGS / "bitvisor-on-qemu-6g")
    assert {f.source for f in machine.pci} == {f.source for f in measured.pci}
    for at in ("00:01.0", "00:02.0", "00:1f.2", "00:1f.3"):
        assert function(machine, at).bars == function(measured, at).bars
    assert (machine.ram_runs, machine.units[0].cap) == (measured.ram_runs, measured.units[0].cap)
    assert [(e.start, e.end, e.type) for e in measured.e820][1:] == [(e.start, e.end, e.type) for e in machine.e820][1:]


@pytest.mark.parametrize(("name", "gib"), [("q35-2g", 2), ("q35-6g", 6), ("q35-32g", 32), ("q35-48g", 48), ("q35-64g", 64)])
def test_q35_of_every_size(name: str, gib: int) -> None:
    machine = load(name)
    assert machine.ram_runs == (((0, 2 * GIB),) if gib == 2 else ((0, 2 * GIB), (4 * GIB, (gib + 2) * GIB)))
    assert machine.ram_bytes == gib * GIB and machine.host_address_width == 39


def test_the_q35_table_is_built_as_qemu_builds_it() -> None:
    """QEMU's own bytes, from a machine with interrupt remapping and without VGA and edu, come out of the same structures."""
    table = parse(load("q35-6g").dmar or b"")
    drhd, = table.drhds
    slots = {(3, 0): None, (2, 0): None}
    scopes = tuple(s for s in drhd.scopes if s.path[0] not in slots)
    like = Dmar(table.host_address_width, 1, (Drhd(drhd.flags, drhd.size, drhd.segment, drhd.base, scopes),), table.revision, table.oem_id,
                table.oem_table_id, table.oem_revision, table.creator_id, table.creator_revision)
    assert build(like) == (REAL / "qemu-q35-6g" / "DMAR.dat").read_bytes()


def test_the_rootport_machine_names_its_port_by_a_bridge_scope() -> None:
    machine = load("q35-2g-rootport")
    drhd, = parse(machine.dmar or b"").drhds
    assert Scope(2, 0, 0, ((2, 0),)) in drhd.scopes and not drhd.include_all
    assert models(machine)["nvme"] == "01:00.0" and function(machine, "00:02.0").secondary == 1


def test_servers() -> None:
    for name, size in (("server-64g", 64 * GIB), ("server-1t", 1024 * GIB)):
        machine = load(name)
        table = parse(machine.dmar or b"")
        assert machine.ram_bytes == size and machine.host_address_width == 46
        assert (len(table.drhds), len(table.rmrrs), len(table.atsrs), len(table.rhsas)) == (2, 2, 1, 2)
        topology = Topology(table, machine.pci)
        assert {format_bdf(f.source) for f in topology.covered(0)} == {"80:02.0", "80:03.0", "80:05.0", "80:05.4", "81:00.0", "81:00.1"}
        assert not topology.unresolved
        assert all(u.cap >> 8 & 0x1F == 4 and (u.cap >> 16 & 0x3F) + 1 == 48 for u in machine.units)


def test_sixteen_gib_machines() -> None:
    for name, low in (("nvme-desktop-16g", 0xDFA00000), ("laptop-16g", 0x80000000)):
        machine = load(name)
        assert machine.ram_bytes == 16 * GIB and machine.ram_runs[0][1] == low and len(machine.units) == 2
        nvme = next(f for f in machine.pci if f.model == "nvme")
        assert any(f.secondary == nvme.source >> 8 for f in machine.pci if f.model == "bridge")


def test_machines_without_vt_d_say_so() -> None:
    assert any("AMD" in a for a in load(LOGS / "qemu-q35-6g-amd").assumptions)
    assert any("AMD" in a for a in load(LOGS / "supermicro-h8dgu-amd-72g").assumptions)
    assert any("no DMAR line" in a for a in load(LOGS / "asrock-x399-amd-64g").assumptions)


def test_a_table_that_the_log_only_mentions() -> None:
    machine = load(LOGS / "supermicro-sys4029-32g")
    unit, = machine.units
    assert unit.include_all and (unit.cap >> 16 & 0x3F) + 1 == 48 and machine.host_address_width == 46
    assert any("DMAR table of 608 bytes but not what is in it" in a for a in machine.assumptions)


def test_no_device_is_invented_where_no_unit_would_cover_it() -> None:
    machine = load(LOGS / "qemu-q35-6g-ats")
    assert set(models(machine)) == {"nvme"} and any("There is no edu device" in a for a in machine.assumptions)
    assert machine.units[0].cap == 0xD2008C222F0606 and machine.host_address_width == 48


def test_partial_logs() -> None:
    machine = load(LOGS / "partial-fujitsu-cx2550-256g")
    assert machine.e820[0].usable and machine.e820[0].start == 0
    assert any("no usable memory below 640 KiB" in a for a in machine.assumptions)
    with pytest.raises(BadMachine, match=r"partial-dell-r740-192g/e820.txt: .* entries are missing"):
        load(LOGS / "partial-dell-r740-192g")
    with pytest.raises(BadMachine, match="ring buffer had wrapped; add the output of `dmesg` from boot"):
        load(LOGS / "amd-5700u-32g")


def test_a_log_cut_after_its_map_gets_the_least_there_must_be(tmp_path: Path) -> None:
    text = (REAL / "lenovo-ideapad320-8g" / "dmesg.txt").read_text().splitlines()
    last = max(n for n, line in enumerate(text) if "BIOS-e820" in line)
    log = tmp_path / "cut.txt"
    log.write_text("\n".join(text[:last + 1]))
    machine = load(log)
    assert machine.name == "cut" and models(machine) == {"nvme": "00:01.0", "edu": "00:02.0"}
    said = "\n".join(machine.assumptions)
    for words in ("no DMAR table", "ends with its E820 lines", "No PCI functions were listed", "configuration window"):
        assert words in said


def test_a_log_cut_before_the_last_unit_and_the_bridge_lines(tmp_path: Path) -> None:
    text = (REAL / "surface-pro-7-16g" / "dmesg.txt").read_text().splitlines()
    log = tmp_path / "cut.txt"
    log.write_text("\n".join(line for line in text if "fed91000" not in line and "PCI bridge to" not in line))
    machine = load(log)
    assert [(u.base, u.include_all) for u in machine.units] == [(0xFED90000, True)]
    assert function(machine, "00:1d.0").secondary == 1 and models(machine)["nvme"] == "01:00.0"
    said = "\n".join(machine.assumptions)
    assert "no unit with INCLUDE_PCI_ALL" in said and "00:1d.0 leads to bus 01" in said


def test_an_nvme_that_is_only_named_gets_a_way_to_its_bus(tmp_path: Path) -> None:
    log = tmp_path / "dmesg"
    log.write_text(f"{MAP}nvme nvme0: pci function 0000:04:00.0\n")
    machine = load(log)
    bridge = next(f for f in machine.pci if f.model == "bridge")
    assert models(machine)["nvme"] == "04:00.0" and (bridge.secondary, bridge.subordinate) == (4, 4)


def test_of_several_files_the_best_map_is_used(tmp_path: Path) -> None:
    (tmp_path / "e820.txt").write_text("BIOS-e820: [mem 0x0-0x9ffff] usable\n")
    (tmp_path / "dmesg.txt").write_text(MAP + "NX protection: active\n")
    machine = load(tmp_path)
    assert machine.ram_bytes == 2 * GIB and any("of e820.txt differs from that of dmesg.txt" in a for a in machine.assumptions)


def test_a_window_in_ram_is_not_believed(tmp_path: Path) -> None:
    log = tmp_path / "dmesg"
    log.write_text(MAP + "PCI: MMCONFIG for domain 0000 [bus 00-ff] at [mem 0x10000000-0x1fffffff] (base 0x10000000)\n")
    ecam = load(log).ecam
    assert ecam and ecam.base == 0xE0000000


def bars(*given: BarDescription, model: str = "stub") -> list[tuple[int, int | None]]:
    """Index and address of what is left of a function's BARs, with RAM in the first 2 GiB."""
    done, _ = place_bars([PciDescription(8, 1, 2, 0x020000, model, bars=given)], [(0, 2 * GIB)])
    return [(b.index, b.address) for b in done[0].bars]


def test_bars_that_cannot_be() -> None:
    assert bars(BarDescription(0, "mem64", 0x4000, 0x90000000), BarDescription(1, "mem32", 0x1000, 0x91000000)) == [(0, 0x90000000)]
    assert bars(BarDescription(0, "mem32", 0x3000, 0x90000000), BarDescription(5, "mem32", 16, 0x91000000)) == [(5, 0x91000000)]
    assert bars(BarDescription(4, "mem64", 0x4000, 0x90000000), BarDescription(5, "mem64", 0x4000, 0x91000000)) == [(4, 0x90000000)]
    three = (BarDescription(i, "mem32", 16, 0x90000000 + 16 * i) for i in range(3))
    assert bars(*three, model="bridge") == [(0, 0x90000000), (1, 0x90000010)]
    assert bars(BarDescription(0, "io", 4, 0xE000), BarDescription(1, "io", 2, 0xE100)) == [(0, 0xE000)]


def test_addresses_that_cannot_be() -> None:
    in_ram, unaligned, apic, beyond_cpu, rom = 0x70000000, 0x90001000, 0xFEE00000, 1 << 40, (1 << 32) - 0x1000
    for size, address in ((0x4000, in_ram), (0x4000, unaligned), (0x1000, apic), (1 << 39, beyond_cpu), (0x1000, rom)):
        assert bars(BarDescription(0, "mem64", size, address)) == [(0, None)]
    assert bars(BarDescription(0, "mem64", 1 << 39, 1 << 39)) == [(0, 1 << 39)]
    assert bars(BarDescription(0, "mem32", 0x1000, 1 << 32)) == [(0, None)]
    twice = (BarDescription(i, "mem32", 0x1000, 0x90000000) for i in range(2))
    assert bars(*twice) == [(0, 0x90000000), (1, None)]
    assert bars(BarDescription(0, "io", 0x20, 0x40), BarDescription(1, "io", 0x100, 0xFF00)) == [(0, None), (1, 0xFF00)]


def summed(table: bytes) -> bytes:
    """The table with its checksum put right."""
    return table[:9] + bytes([(table[9] - sum(table)) & 0xFF]) + table[10:]


@pytest.mark.parametrize(("damage", "words"), [
    (lambda b: b[:100], "the header says 220 bytes but only 100 are there"),
    (lambda b: b[:60] + b"\xff" + b[61:], "checksum"),
    (lambda b: summed(b[:50] + bytes(2) + b[52:]), "has length 0"),
])
def test_a_damaged_table_is_one_sentence(tmp_path: Path, damage: Callable[[bytes], bytes], words: str) -> None:
    shutil.copytree(REAL / "huananzhi-x99-qd4-32g", tmp_path / "m")
    (tmp_path / "m" / "DMAR.dat").write_bytes(damage((tmp_path / "m" / "DMAR.dat").read_bytes()))
    with pytest.raises(BadMachine, match=f"m/DMAR.dat: DMAR: .*({words})") as told:
        load(tmp_path / "m")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("drhds", "words"), [
    ((Drhd(1, 0, 0, 0),), "registers at 0x0"), ((Drhd(1, 0, 0, 0x1234),), "which is no page"),
    ((Drhd(0, 0, 0, 0xFED90000), Drhd(1, 0, 0, 0xFED90000)), "two units"), ((Drhd(1, 0, 0, 0x200000),), "usable RAM"),
])
def test_tables_with_impossible_units(tmp_path: Path, drhds: tuple[Drhd, ...], words: str) -> None:
    (tmp_path / "e820.txt").write_text(MAP)
    (tmp_path / "DMAR.dat").write_bytes(build(Dmar(39, 0, drhds)))
    with pytest.raises(BadMachine, match=words):
        load(tmp_path)


def test_what_is_no_machine(tmp_path: Path) -> None:
    with pytest.raises(BadMachine, match=r"not a machine folder, it has none of e820\.txt"):
        load(tmp_path)
    with pytest.raises(BadMachine, match="closest are q35-6g"):
        load("q35-6gb")
    with pytest.raises(BadMachine, match="`hvlab machines` lists those"):
        load("\0")
    with pytest.raises(BadMachine, match="a table alone is no machine"):
        load(REAL / "huananzhi-x99-qd4-32g" / "DMAR.dat")
    with pytest.raises(BadMachine, match="not a file"):
        load("/dev/zero")
