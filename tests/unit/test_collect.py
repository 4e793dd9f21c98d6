"""`hvlab collect`: the archive of a machine is the machine, and nothing that is private is in it."""

import gzip
import io
import shutil
import tarfile
from pathlib import Path

import pytest

from hvcore.cli import main
from hvcore.errors import HvlabError
from hvcore.machine.description import BarDescription, EcamDescription, MachineDescription, PciDescription
from hvcore.sources import images_dir, load
from hvcore.sources.collect import SCRIPT, collect
from hvcore.spec.acpi import Mcfg, McfgWindow, build_mcfg
from hvcore.spec.pci import PortType, format_bdf

REAL = images_dir() / "machines" / "real"
LOGS = Path(__file__).parents[1] / "data" / "logs"
SECRETS = ("alice", "fridge-pc", "d4:5d:64:aa:bb:cc", "S3Z9NX0M123456", "OptiPlex", "7f4c9d2e", "PF3ABCDE", "debian-kernel")
PRIVATE = """Nov 25 10:00:00 fridge-pc kernel: Linux version 6.1.0-18-alice (debian-kernel@lists.debian.org) #1 SMP
Nov 25 10:00:00 fridge-pc kernel: Command line: root=UUID=7f4c9d2e ip=::::fridge-pc
Nov 25 10:00:00 fridge-pc kernel: DMI: Dell Inc. OptiPlex 7050/0NW6H5, BIOS 1.5 fridge-pc
Nov 25 10:00:00 fridge-pc kernel: e1000e 0000:00:1f.6 eth0: (PCI Express:2.5GT/s:Width x1) d4:5d:64:aa:bb:cc
Nov 25 10:00:00 fridge-pc kernel: usb 1-1: SerialNumber: S3Z9NX0M123456
Nov 25 10:00:00 fridge-pc kernel: ACPI: MSDM 0x000000007BFC2000 000055 (v03 PF3ABCDE)
"""


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def config_space(f: PciDescription, size: int) -> bytes:
    """A function's configuration space: header, a vendor's capability with a serial number, PCI Express where it has it, more serials."""
    data = bytearray(size)
    data[0:4] = f.vendor.to_bytes(2, "little") + f.device_id.to_bytes(2, "little")
    data[8] = f.revision
    data[9:12] = f.class_code.to_bytes(3, "little")
    data[14] = 0x80 | (1 if f.model == "bridge" else 0)
    data[24:27] = bytes([f.source >> 8, f.secondary, f.subordinate])
    data[0x34] = 0x40
    if size > 64:
        data[0x40:0x52] = bytes([9, 0x60 if f.pcie else 0, 18]) + b"S3Z9NX0M123456\0"
        if f.pcie and f.port_type is not None:
            data[0x60:0x64] = bytes([0x10, 0, f.port_type << 4 | 2, 0])
    if size > 256:
        data[0x100:0x10E] = b"S3Z9NX0M123456"
    return bytes(data)


def resource(f: PciDescription) -> str:
    lines = ["0x0000000000000000 0x0000000000000000 0x0000000000000000"] * 13
    for b in f.bars:
        flags = (0x100 if b.kind == "io" else 0x200) | (0x100000 if b.kind == "mem64" else 0) | (0x2000 if b.prefetchable else 0)
        start = b.address or 0
        lines[b.index] = f"{start:#018x} {start + b.size - 1:#018x} {flags | (0 if b.address else 0x20000000):#018x}"
    return "\n".join(lines) + "\n"


def fake_root(root: Path, machine: MachineDescription, log: str, config: int = 4096) -> None:
    """What Linux shows of a machine under /sys, and its log."""
    put(root / "dmesg", PRIVATE + log)
    put(root / "proc/sys/kernel/osrelease", "6.1.0-18-alice\n")
    put(root / "sys/class/dmi/id/product_serial", "PF3ABCDE\n")
    for n, e in enumerate(machine.e820):
        words = {1: "System RAM", 3: "ACPI Tables", 4: "ACPI Non-volatile Storage"}
        for name, value in (("start", f"{e.start:#x}"), ("end", f"{e.end - 1:#x}"), ("type", words.get(e.type, "Reserved"))):
            put(root / f"sys/firmware/memmap/{n}/{name}", value + "\n")
    tables = root / "sys/firmware/acpi/tables"
    put(tables / "SLIC", "PF3ABCDE")
    if machine.dmar:
        put(tables / "DMAR", machine.dmar)
    if machine.ecam:
        e = machine.ecam
        put(tables / "MCFG", build_mcfg(Mcfg((McfgWindow(e.base - (e.first << 20), e.first, e.last),))))
    for n, u in enumerate(machine.units):
        for name, value in (("address", f"{u.base:x}"), ("cap", f"{u.cap:x}"), ("ecap", f"{u.ecap:x}"),
                            ("version", f"{u.version >> 4}:{u.version & 15}")):
            put(root / f"sys/class/iommu/dmar{n}/intel-iommu/{name}", value + "\n")
    for f in machine.pci:
        at = root / f"sys/bus/pci/devices/{f.segment:04x}:{format_bdf(f.source)}"
        for name, number, width in (("vendor", f.vendor, 4), ("device", f.device_id, 4), ("class", f.class_code, 6),
                                    ("subsystem_vendor", f.subsystem[0], 4), ("subsystem_device", f.subsystem[1], 4)):
            put(at / name, f"0x{number:0{width}x}\n")
        put(at / "config", config_space(f, config))
        put(at / "resource", resource(f))
        put(at / "vpd", "S3Z9NX0M123456")
        put(root / f"sys/kernel/iommu_groups/{f.source & 7}/devices/{f.segment:04x}:{format_bdf(f.source)}/x", "")


MACHINES = ("q35-6g", "server-64g", "nvme-desktop-16g", "q35-2g-bridges", "laptop-16g")


@pytest.mark.parametrize("name", MACHINES)
def test_a_collected_machine_is_the_machine(tmp_path: Path, name: str) -> None:
    machine = load(name)
    fake_root(tmp_path / "root", machine, "")
    said = collect(tmp_path / "x.tar.gz", tmp_path / "root")
    found = load(tmp_path / "x.tar.gz")
    assert (found.name, found.source) == ("x", "collected by hvlab on Linux 6.1.0")
    assert [(e.start, e.end, 2 if e.type == 20 else e.type) for e in machine.e820] == [(e.start, e.end, e.type) for e in found.e820]
    assert (found.dmar, found.ecam) == (machine.dmar, machine.ecam)
    assert [(u.base, u.cap, u.ecap, u.version) for u in found.units] == [(u.base, u.cap, u.ecap, u.version) for u in machine.units]
    listed = {f.source: f for f in found.pci}
    for f in machine.pci:
        other = listed[f.source]
        assert (other.vendor, other.device_id, other.class_code, other.revision) == (f.vendor, f.device_id, f.class_code, f.revision)
        assert (other.secondary, other.subordinate, other.subsystem) == (f.secondary, f.subordinate, f.subsystem)
        assert (other.bars, other.model) == (f.bars, f.model)
        assert other.port_type == (f.port_type if f.pcie else None)
    assert f"wrote {tmp_path / 'x.tar.gz'}" in said
    assert "took DMAR.dat" in said


@pytest.mark.parametrize("folder", ["huananzhi-x99-qd4-32g", "dell-r630-64g", "gigabyte-b150m-16g", "hp-compaq-8000-elite-4g",
                                    "surface-pro-7-16g"])
def test_a_log_keeps_what_is_read_of_it(tmp_path: Path, folder: str) -> None:
    """The words that are allowed are all that the reader of logs wants."""
    log = (REAL / folder / "dmesg.txt").read_text(errors="replace")
    put(tmp_path / "root" / "dmesg", log)
    put(tmp_path / "plain" / "dmesg.txt", log)
    if (REAL / folder / "DMAR.dat").exists():
        put(tmp_path / "root/sys/firmware/acpi/tables/DMAR", (REAL / folder / "DMAR.dat").read_bytes())
        shutil.copy(REAL / folder / "DMAR.dat", tmp_path / "plain" / "DMAR.dat")
    collect(tmp_path / "x.tgz", tmp_path / "root")
    found, plain = load(tmp_path / "x.tgz"), load(tmp_path / "plain")
    assert (found.e820, found.dmar, found.units, found.pci) == (plain.e820, plain.dmar, plain.units, plain.pci)
    assert (found.ecam, found.acpi_address, found.assumptions) == (plain.ecam, plain.acpi_address, plain.assumptions)


@pytest.mark.parametrize("folder", ["amd-5700u-32g", "asrock-b550m-amd-32g", "supermicro-sys4029-32g"])
def test_words_of_other_kernels_are_kept(tmp_path: Path, folder: str) -> None:
    log = "BIOS-e820: [mem 0x0-0x9ffff] usable\nBIOS-e820: [mem 0x100000-0x7fffffff] usable\n" * (folder == "amd-5700u-32g")
    log += (LOGS / folder / "dmesg.txt").read_text(errors="replace")
    put(tmp_path / "root" / "dmesg", log)
    put(tmp_path / "x.log", log)
    collect(tmp_path / "x.tar.gz", tmp_path / "root")
    found, plain = load(tmp_path / "x.tar.gz"), load(tmp_path / "x.log")
    assert (found.e820, found.units, found.pci, found.assumptions) == (plain.e820, plain.units, plain.pci, plain.assumptions)


def test_a_line_on_amd_that_every_kernel_prints_makes_no_amd_machine(tmp_path: Path) -> None:
    log = "BIOS-e820: [mem 0x0-0x9ffff] usable\nBIOS-e820: [mem 0x100000-0x7fffffff] usable\n"
    for line, amd in (("AMD-Vi: AMD IOMMUv2 functionality not available", False), ("AMD-Vi: Found IOMMU at 0000:00:00.2", True)):
        put(tmp_path / "root" / "dmesg", log + f"[    1.0] {line}\n")
        collect(tmp_path / "x.tar.gz", tmp_path / "root")
        assert any("AMD-Vi" in a for a in load(tmp_path / "x.tar.gz").assumptions) == amd


def test_nothing_private_is_in_it(tmp_path: Path) -> None:
    machine = load("server-64g")
    nvme = "[    0.0] nvme nvme0: pci function 0000:02:00.0 serial S3Z9NX0M123456\n"
    log = nvme + "".join(f"[    0.0] BIOS-e820: [mem {e.start:#018x}-{e.end - 1:#018x}] usable\n" for e in machine.e820[:2])
    fake_root(tmp_path / "root", machine, log.replace("[    0.0]", "Nov 25 10:00:00 fridge-pc kernel:"))
    said = collect(tmp_path / "x.tar.gz", tmp_path / "root")
    raw = gzip.decompress((tmp_path / "x.tar.gz").read_bytes())
    for secret in SECRETS:
        assert secret.encode() not in raw, secret
        assert secret not in said
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        members = tar.getmembers()
        text = (tar.extractfile("hvlab-machine/dmesg.txt") or io.BytesIO()).read().decode()
    assert {m.name.partition("/")[2] for m in members} == {"", "dmesg.txt", "memmap.txt", "DMAR.dat", "MCFG.dat", "lspci.txt", "iommu.txt",
                                                           "iommu_groups.txt", "SOURCE.txt", "collected.txt"}
    assert all(m.uname == m.gname == "" for m in members)
    assert text.splitlines()[0] == "Linux version 6.1.0"
    assert "nvme nvme0: pci function 0000:02:00.0\n" in text


def test_it_says_what_could_not_be_read(tmp_path: Path) -> None:
    """Without root configuration space ends at 64 bytes; tables may not be there."""
    machine = load("q35-2g-rootport")
    fake_root(tmp_path / "root", machine, "", config=64)
    shutil.rmtree(tmp_path / "root/sys/firmware/acpi")
    said = collect(tmp_path / "x.tar.gz", tmp_path / "root")
    assert "no DMAR: this machine has no such table" in said
    assert "could not read PCI capabilities" in said
    found = load(tmp_path / "x.tar.gz")
    assert [(u.base, u.cap) for u in found.units] == [(u.base, u.cap) for u in machine.units], "from /sys/class/iommu alone"
    assert any("INCLUDE_PCI_ALL" in a for a in found.assumptions)
    assert any("kind is known" in a for a in found.assumptions)


def test_a_machine_without_a_map_is_told(tmp_path: Path) -> None:
    put(tmp_path / "root" / "dmesg", PRIVATE)
    assert "NO MEMORY MAP could be read" in collect(tmp_path / "x.tar.gz", tmp_path / "root")


def test_unassigned_and_odd_bars(tmp_path: Path) -> None:
    bars = (BarDescription(0, "mem32", 1 << 12, 0xFE000000), BarDescription(1, "io", 32, 0xE000), BarDescription(2, "mem64", 1 << 35,
            0x80_0000_0000, True), BarDescription(4, "mem64", 1 << 14, None))
    function = PciDescription(0x10, 0x8086, 0x1234, 0x020000, revision=3, bars=bars, port_type=PortType.INTEGRATED_ENDPOINT)
    base = load("q35-2g")
    machine = MachineDescription("x", base.e820, base.ram_runs, base.acpi_address, pci=(function,), ecam=EcamDescription(0xB0000000))
    fake_root(tmp_path / "root", machine, "")
    collect(tmp_path / "x.tar.gz", tmp_path / "root")
    found = next(f for f in load(tmp_path / "x.tar.gz").pci if f.source == 0x10)
    assert (found.bars, found.port_type) == (bars, PortType.INTEGRATED_ENDPOINT)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_root(tmp_path / "root", load("q35-2g"), "")
    assert main(["collect", "-o", str(tmp_path / "m.tar.gz"), "--root", str(tmp_path / "root")]) == 0
    assert "wrote" in capsys.readouterr().out
    assert main(["boot", str(tmp_path / "m.tar.gz")]) == 0
    assert "up" in capsys.readouterr().out
    assert main(["collect", "--script"]) == 0
    assert capsys.readouterr().out == SCRIPT.read_text()


@pytest.mark.parametrize("words", [("-o", "x.zip"), ("-o", "/nowhere/x.tar.gz"), ("--root", "/nowhere")])
def test_mistakes_are_one_line(tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str],
                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["collect", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("hvlab: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_no_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(HvlabError, match="no sh"):
        collect(tmp_path / "x.tar.gz")
