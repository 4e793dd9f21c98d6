"""TOML machines: what each key gives, and each mistake told by file and key."""

import re
from pathlib import Path

import pytest

from hvcore.errors import BadMachine
from hvcore.machine.description import BarDescription, DiskDescription
from hvcore.sources import images_dir, load
from hvcore.sources.toml_reader import size
from hvcore.spec.dmar import Atsr, Drhd, Rhsa, Rmrr, Scope, parse
from hvcore.spec.e820 import E820Entry

REAL = images_dir() / "machines" / "real"
MAP = '[[0x0, 0x9fc00, "usable"], [0x100000, 0x7ff00000, "usable"], [0x7ff00000, 0x80000000, "ACPI data"]]'
EVERYTHING = f"""
name = "all"
source = "here"
ram = "2 GiB"
e820 = {MAP}
acpi_address = 0x7ff0_1000
ecam = {{ base = 0xe000_0000, first = 0, last = 127 }}
disk = {{ size = "1 MiB", seed = 7 }}
dmar = {{ host_address_width = 46, flags = 3, oem_id = "ME", oem_revision = 9 }}
rmrr = [{{ start = 0x7ff8_0000, end = 0x7ff9_0000, segment = 1, scopes = ["endpoint 00:1d.0"] }}]
atsr = [{{ all_ports = true, scopes = ["bridge 00:01.0"] }}]
rhsa = [{{ base = 0xfed9_0000, proximity_domain = 2 }}]

[[unit]]
base = 0xfed9_0000
cap = 0x1234
ecap = 0x5678
version = 0x40
include_all = true
scopes = ["ioapic 2 f0:1f.0", "hpet 0 00:1f.0", "endpoint 00:1c.0/00.1", "bridge 80:02.0", "namespace 1 00:15.0"]

[[pci]]
at = "00:1c.0"
id = "8086:a114"
class = 0x060400
revision = 0xf1
subsystem = "1458:5001"
buses = [3, 5]

[[pci]]
at = "03:00.0"
id = "144d:a802"
class = 0x010802
bars = [{{ index = 0, kind = "mem64", size = "16 KiB", address = 0xdf20_0000, prefetchable = true }}]
"""
LEAST = f"e820 = {MAP}\n"
UNIT = "[[unit]]\nbase = 0xfed90000\n"
PCI = '[[pci]]\nat = "00:02.0"\nid = "1b36:0010"\nclass = 0x010802\n'


def write(folder: Path, text: str, name: str = "m.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_every_key(tmp_path: Path) -> None:
    machine = load(write(tmp_path, EVERYTHING))
    assert (machine.name, machine.source, machine.ram_runs, machine.acpi_address) == ("all", "here", ((0, 1 << 31),), 0x7FF01000)
    assert machine.e820[2] == E820Entry(0x7FF00000, 0x80000000, 3)
    assert machine.ecam and (machine.ecam.base, machine.ecam.last) == (0xE0000000, 127)
    assert machine.disk == DiskDescription(1 << 20, 7)
    unit, = machine.units
    assert (unit.base, unit.cap, unit.ecap, unit.version, unit.include_all) == (0xFED90000, 0x1234, 0x5678, 0x40, True)
    table = parse(machine.dmar or b"")
    assert (table.host_address_width, table.flags, table.oem_id, table.oem_revision) == (46, 3, b"ME    ", 9)
    assert table.structures == (
        Drhd(1, 0, 0, 0xFED90000, (Scope(3, 2, 0xF0, ((0x1F, 0),)), Scope(4, 0, 0, ((0x1F, 0),)), Scope(1, 0, 0, ((0x1C, 0), (0, 1))),
                                   Scope(2, 0, 0x80, ((2, 0),)), Scope(5, 1, 0, ((0x15, 0),)))),
        Rmrr(1, 0x7FF80000, 0x7FF8FFFF, (Scope(1, 0, 0, ((0x1D, 0),)),)), Atsr(1, 0, (Scope(2, 0, 0, ((1, 0),)),)), Rhsa(0xFED90000, 2))
    bridge, nvme = (next(f for f in machine.pci if f.source == s) for s in (0xE0, 0x300))
    assert (bridge.model, bridge.secondary, bridge.subordinate) == ("bridge", 3, 5)
    assert (bridge.revision, bridge.subsystem, bridge.pcie) == (0xF1, (0x1458, 0x5001), True)
    assert (nvme.model, nvme.bars) == ("nvme", (BarDescription(0, "mem64", 0x4000, 0xDF200000, True),))


def test_the_least_there_must_be(tmp_path: Path) -> None:
    machine = load(write(tmp_path, LEAST, "tiny.toml"))
    assert (machine.name, machine.dmar, machine.units, machine.acpi_address) == ("tiny", None, (), 0x7FF00000)
    assert {f.model for f in machine.pci} == {"stub", "nvme", "edu"} and len(machine.assumptions) == 3


@pytest.mark.parametrize(("keys", "runs"), [
    ('ram = "1 GiB"', ((0, 1 << 30),)), ("ram = 0x1_8000_0000", ((0, 2 << 30), (4 << 30, 8 << 30))),
    ('ram = "6 GiB"\ntolud = 0xc000_0000', ((0, 3 << 30), (4 << 30, 7 << 30))),
])
def test_a_map_made_for_a_size(tmp_path: Path, keys: str, runs: tuple[tuple[int, int], ...]) -> None:
    machine = load(write(tmp_path, keys))
    assert machine.ram_runs == runs
    assert [(e.start, e.end) for e in machine.e820 if e.usable][:2] == [(0, 0x9FC00), (0x100000, runs[0][1] - 0x29000)]


def test_dram_as_given(tmp_path: Path) -> None:
    machine = load(write(tmp_path, LEAST + "ram_runs = [[0x0, 0x80000000], [0x100000000, 0x180000000]]"))
    assert machine.ram_bytes == 4 << 30
    assert load(write(tmp_path, LEAST + "tolud = 0x8800_0000")).ram_runs == ((0, 0x88000000),)


def test_a_table_from_a_file_with_registers_by_base(tmp_path: Path) -> None:
    raw = (REAL / "huananzhi-x99-qd4-32g" / "DMAR.dat").read_bytes()
    (tmp_path / "t.dat").write_bytes(raw)
    machine = load(write(tmp_path, LEAST + 'dmar = "t.dat"\n[[unit]]\nbase = 0xfbffc000\ncap = 0x111\necap = 0x222\n'))
    assert machine.dmar == raw and machine.host_address_width == 46
    assert [(u.base, u.cap, u.include_all) for u in machine.units] == [(0xFBFFD000, 0x8D2078C106F0466, False), (0xFBFFC000, 0x111, True)]
    assert any("0xfbffd000 were not logged" in a for a in machine.assumptions)


def test_the_disk_of_a_file(tmp_path: Path) -> None:
    assert load(write(tmp_path, LEAST + '[disk]\nimage = "d.img"')).disk.image == str(tmp_path / "d.img")


@pytest.mark.parametrize(("text", "there", "bytes_"), [
    ("16 GiB", True, 16 << 30), ("512", True, 512), ("1TiB", True, 1 << 40), ("64 MB", False, 0), ("", False, 0), ("-1 GiB", False, 0)])
def test_sizes(text: str, there: bool, bytes_: int) -> None:
    assert size(text) == (bytes_ if there else None)


MISTAKES = {
    "e820 = [": "not TOML",
    "nam = 1": "nam: there is no such key here: did you mean name?",
    LEAST + "name = 1": "name: 1 is no text",
    'source = "x"': "needs e820, or ram",
    "ram = 12.5": "ram: 12.5 is no whole number",
    'ram = "12 GB"': 'ram: .12 GB. is no size like "16 GiB"',
    'ram = "4 TiB"': "usable RAM ends at 0x40080000000, beyond the 2 TiB",
    'ram = "4 MiB"': "usable RAM at 1 MiB",
    "e820 = []": "1 to 1024 entries, this one 0",
    "e820 = [[0, 1]]": r"e820\[0\]: .* is not \[start, end, \"type\"\]",
    'e820 = [[0, 0x9f000, "used"]]': r"e820\[0\]: 'used' is no type: there are usable, reserved",
    'e820 = [[0, -1, "usable"]]': r"e820\[0\]: -1 is no whole number",
    'e820 = [[0, "x", "usable"]]': r"e820\[0\]: 'x' is no whole number",
    'e820 = [[0, 0x9f000, "usable"], [0x100000, 0x100000, "usable"]]': r"e820\[1\]: the E820 entry .* has no bytes",
    'e820 = [[0x100000, 0x8000000, "usable"], [0, 0x9f000, "usable"]]': "e820: The E820 entries were not in ascending order",
    'e820 = [[0, 0x9f000, "usable"], [0x80000, 0x8000000, "usable"]]': "e820: E820 entries overlap",
    'ram = "3 GiB"\n' + LEAST: "ram: 0xc0000000 bytes, but DRAM is",
    LEAST + "tolud = 0x7000_0000": r"e820: .* is not all inside DRAM",
    LEAST + "tolud = 0x8000_0001": "tolud: 0x80000001 is no multiple of 4096",
    LEAST + "ram_runs = [[0x1000, 0x80000000]]": "ram_runs: the first run must start at 0",
    LEAST + "ram_runs = [[0, 0x80000001]]": r"ram_runs\[0\]: .* whole pages",
    LEAST + "ram_runs = [[0, 0x80000000], [0x90000000, 0x90000000]]": r"ram_runs\[1\]",
    LEAST + "ram_runs = [[0, 0x80000000], [0x70000000, 0x90000000]]": r"ram_runs\[1\]",
    LEAST + "ram_runs = [[0, 0x80000000], [0x100000000, 0x20000001000]]": "beyond the 2 TiB",
    LEAST + "acpi_address = 0x9000_0000": "acpi_address: 0x90000000 is no page of RAM",
    LEAST + "ecam = 3": "ecam: must be a table with base, first, last",
    LEAST + "[ecam]": "ecam.base: is missing",
    LEAST + "[ecam]\nbase = 0xf000_0000": "ecam.base: 0xf0000000 with buses 0-255",
    LEAST + "[ecam]\nbase = 0xc008_0000": "ecam.base: 0xc0080000",
    LEAST + "[ecam]\nbase = 0xc000_0000\nfirst = 3\nlast = 2": "ecam.base: 0xc0000000 with buses 3-2",
    LEAST + "[ecam]\nbase = 0x7000_0000": r"ecam: \[0x70000000, 0x80000000\) overlaps .* which is RAM",
    LEAST + "[ecam]\nbase = 0xe000_0000\nend = 3": "ecam.end: there is no such key here: did you mean",
    LEAST + "[[unit]]": r"unit\[0\].base: is missing",
    LEAST + UNIT + "cap = true": r"unit\[0\].cap: True is no whole number",
    LEAST + UNIT + "include_all = 1": r"unit\[0\].include_all: 1 is neither true nor false",
    LEAST + UNIT + 'scopes = ["endpoint"]': r"unit\[0\].scopes\[0\]: .* is no scope like",
    LEAST + UNIT + 'scopes = ["device 00:02.0"]': r"there are endpoint, bridge, ioapic, hpet, namespace",
    LEAST + UNIT + 'scopes = ["ioapic 300 f0:1f.0"]': r"scopes\[0\]",
    LEAST + UNIT + 'scopes = [""]': r"scopes\[0\]",
    LEAST + UNIT + "scopes = [7]": r"scopes\[0\]",
    LEAST + UNIT + UNIT: "two units with registers at 0xfed90000",
    LEAST + "[[unit]]\nbase = 0x200000": "usable RAM",
    LEAST + "[[unit]]\nbase = 0x7ff00000": r"unit: .* overlaps .* which is RAM",
    LEAST + "[[unit]]\nbase = 0xe0000000\n[ecam]\nbase = 0xe0000000": "unit: .* which is ecam",
    LEAST + UNIT + "[[rmrr]]\nstart = 5\nend = 5": r"rmrr\[0\].end: 0x5 is not above start",
    LEAST + UNIT + '[dmar]\noem_id = "LONGER NAME"': "dmar.oem_id: .* 6 ASCII characters",
    LEAST + 'dmar = "absent.dat"': "dmar: .*absent.dat cannot be read",
    LEAST + 'dmar = "m.toml"': "m.toml: DMAR: the bytes begin with b'e820'",
    LEAST + 'dmar = "x"\n[[rmrr]]': "rmrr: dmar = 'x' already says it all",
    LEAST + PCI + PCI: r"pci\[1\].at: 00:02.0 is there twice|at: 00:02.0 is there twice",
    LEAST + PCI.replace("00:02.0", "0:2.0"): r"pci\[0\].at: '0:2.0' is not a PCI function",
    LEAST + PCI.replace("00:02.0", "0001:00:02.0"): r"pci\[0\].at: PCI segment 1 is not there",
    LEAST + PCI.replace("1b36:0010", "1b36"): r"pci\[0\].id: '1b36' is no pair",
    LEAST + PCI.replace("0x010802", "0x1010802"): r"pci\[0\].class",
    LEAST + PCI + "buses = [0, 1]": r"pci\[0\].buses",
    LEAST + PCI + "buses = [3, 2]": r"pci\[0\].buses: \[3, 2\] is not \[secondary, subordinate\]",
    LEAST + PCI + 'bars = [{ index = 0, kind = "mem", size = 16 }]': r"pci\[0\].bars\[0\].kind: 'mem' is none of",
    LEAST + PCI + 'bars = [{ index = 0, kind = "mem32", size = 17 }]': r"pci\[0\].bars\[0\].size: 0x11 is no size of a window",
    LEAST + PCI + 'bars = [{ index = 5, kind = "mem64", size = 16 }]': r"pci\[0\].bars\[0\].index",
    LEAST + PCI + 'bars = [{ index = 0, kind = "mem64", size = "16 KiB", address = 0x1000 }]': r"pci: .* 00:02.0 BAR 0 \(0x1000\)",
    LEAST + "[disk]\nsize = 100": "disk.size: 100 bytes are no whole number of 512-byte blocks",
}


@pytest.mark.parametrize(("text", "words"), MISTAKES.items())
def test_mistakes_name_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadMachine) as told:
        load(path)
    message = str(told.value)
    assert message.startswith(f"{tmp_path}/") and re.search(words, message), message
    assert "\n" not in message
