"""The lab guest on QEMU: what it says is compared with what QEMU says, with the disk's bytes, and with the specifications' words."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from labqemu import EDU, Qemu, answers, nvme, qemu_console, without_stamps

from hvcore.machine.disk import lab_blocks

pytestmark = pytest.mark.needs("qemu-system-x86_64")

SEED, BLOCKS = 7, 512
IOMMU, GCMD, RTADDR, GSTS, FSTS = 0xFED90000, 0xFED90018, 0xFED90020, 0xFED9001C, 0xFED90034
SCRATCH = 0x2000000


def _image(folder: Path, damage: int | None = None) -> Path:
    """A lab disk; one bit of block `damage` is wrong."""
    data = bytearray(lab_blocks(SEED, 0, BLOCKS).tobytes())
    if damage is not None:
        data[512 * damage + 300] ^= 0x10
    path = folder / "lab.img"
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _image(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="module")
def guest(image: Path) -> Iterator[Qemu]:
    """6 GiB, edu, NVMe, a bridge with a second edu behind it."""
    bridge = ["-device", "pcie-root-port,id=rp,addr=5,chassis=1", "-device", "edu,bus=rp"]
    with Qemu(["-device", EDU, *nvme(image), *bridge], command_line="one two=3") as q:
        q.boot()
        yield q


def test_boot_lines(guest: Qemu) -> None:
    boot = guest.console.partition("lab: ready\n")[0]
    lines = without_stamps(boot)
    assert lines[0].startswith("hvlab lab guest version ")
    assert lines[1:3] == ["Command line: one two=3", "BIOS-provided physical RAM map:"]
    assert all(re.match(r"\[ {4}\d\.\d{6}\] ", line) for line in boot.splitlines())
    stamps = [float(line[1:13]) for line in boot.splitlines()]
    assert stamps == sorted(stamps)
    assert lines[-5:] == ["nvme nvme0: pci function 0000:00:02.0", "nvme nvme0: 1/0/0 default/read/poll queues",
                          f" nvme0n1: {BLOCKS} blocks of 512 bytes", " nvme0n1: 64 blocks read, checked",
                          f" nvme0n1: block {BLOCKS - 1} written, flushed, read back"]


def test_e820(guest: Qemu) -> None:
    lines = [line for line in without_stamps(guest.console) if line.startswith("BIOS-e820: ")]
    for line in ("[mem 0x0000000000000000-0x000000000009fbff] usable", "[mem 0x00000000000f0000-0x00000000000fffff] reserved",
                 "[mem 0x0000000100000000-0x00000001ffffffff] usable", "[mem 0x000000fd00000000-0x000000ffffffffff] reserved"):
        assert "BIOS-e820: " + line in lines
    assert guest.command("e820").splitlines() == lines


def _devices(buses: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for bus in buses:
        for device in bus["devices"]:
            yield device
            if "devices" in device.get("pci_bridge", {}):
                yield from _devices([device["pci_bridge"]])


def _bar_line(name: str, region: dict[str, Any]) -> str:
    first, last = region["address"], region["address"] + region["size"] - 1
    reg = f"pci {name}: reg {0x10 + 4 * region['bar']:#x}: "
    if region["type"] == "io":
        return f"{reg}[io  {first:#06x}-{last:#06x}]"
    return f"{reg}[mem {first:#010x}-{last:#010x}{' 64bit' * region['mem_type_64']}{' pref' * region['prefetch']}]"


def test_pci_scan_is_what_qemu_says(guest: Qemu) -> None:
    devices = list(_devices(guest.qmp("query-pci")))
    scanned = [line for line in without_stamps(guest.console) if re.match(r"pci \S+: \[", line)]
    expected, bars = [], []
    for d in devices:
        name, ids = f"0000:{d['bus']:02x}:{d['slot']:02x}.{d['function']}", d["id"]
        kind, class_code = "pci_bridge" in d, d["class_info"]["class"]
        expected.append(f"pci {name}: [{ids['vendor']:04x}:{ids['device']:04x}] type {kind:02} class 0x{class_code:04x}")
        bars += [_bar_line(name, r) for r in d["regions"] if r["bar"] < 6]
    assert [line[:-2] for line in sorted(scanned)] == sorted(expected)
    assert sorted(line for line in without_stamps(guest.console) if ": reg " in line) == sorted(bars)
    assert "pci 0000:00:05.0: PCI bridge to [bus 01]" in without_stamps(guest.console)
    assert len(guest.command("lspci").splitlines()) == len(devices) == 8


def test_queues_lie_at_the_top_of_ram(guest: Qemu) -> None:
    text = guest.command("nvme")
    assert "nvme0: in use, pci function 0000:00:02.0" in text
    assert "CC 0x00460001, CSTS 0x1, AQA 0x001f001f, ASQ 0x00000001ffffe000, ACQ 0x00000001fffff000" in text


def _dumped(text: str) -> bytes:
    """The bytes of a hex dump."""
    return b"".join(bytes.fromhex(line[17:66]) for line in text.splitlines() if re.match(r"[0-9a-f]{16} ", line))


def test_nvme_read_shows_the_disk(guest: Qemu, image: Path) -> None:
    text = guest.command("nvme read 5")
    assert _dumped(text) == image.read_bytes()[5 * 512:5 * 512 + 64]
    assert text.endswith("nvme: block 5: checked\n")
    assert guest.command(f"nvme read {BLOCKS}") == f"nvme: the disk ends at block {BLOCKS - 1}\n"


def test_the_last_block_was_written(guest: Qemu, image: Path) -> None:
    data = image.read_bytes()
    seed = int.from_bytes(data[-496:-488], "little")
    assert guest.console and seed > SEED
    assert data[-512:] == lab_blocks(seed, BLOCKS - 1, 1).tobytes()
    assert data[:-512] == lab_blocks(SEED, 0, BLOCKS - 1).tobytes()


def test_the_drive_reaches_any_memory(guest: Qemu, image: Path) -> None:
    """QEMU's controller does with a driver's pointers what ours does; across a page, too."""
    block = BLOCKS - 2
    before = image.read_bytes()[512 * block:512 * block + 512]
    assert guest.command(f"nvme load {block} {SCRATCH + 0x10F00:#x}") == f"nvme: block {block} read to {SCRATCH + 0x10F00:#x}\n"
    assert _dumped(guest.command(f"peek {SCRATCH + 0x10F00:#x} 512")) == before
    assert guest.command(f"poke {SCRATCH + 0x10F08:#x} 0x1122334455667788 8") == ""
    assert guest.command(f"nvme dump {SCRATCH + 0x10F00:#x} {block}") == f"nvme: block {block} written from {SCRATCH + 0x10F00:#x}\n"
    written = image.read_bytes()[512 * block:512 * block + 512]
    assert written == before[:8] + struct.pack("<Q", 0x1122334455667788) + before[16:]
    assert guest.command(f"poke {SCRATCH + 0x10F08:#x} {int.from_bytes(before[8:16], 'little'):#x} 8") == ""
    assert guest.command(f"nvme dump {SCRATCH + 0x10F00:#x} {block}").startswith("nvme: block")
    assert guest.command(f"nvme dump 0 {BLOCKS}") == "nvme: there is no such block\n"


def test_where_no_core_is_nothing_is_attacked(guest: Qemu) -> None:
    assert guest.command("attack steal-key") == "attack: no core answers\n"
    assert guest.command("attack nonsense").startswith("attack: no attack nonsense; there are: steal-key overwrite-stub ")
    assert guest.command("attack steal-key ahci") == "attack: no device for it: ahci\n"


def test_peek_and_poke(guest: Qemu) -> None:
    assert guest.command(f"poke {SCRATCH:#x} 0x1122334455667788 8") == ""
    assert guest.command(f"poke {SCRATCH + 2:#x} 0xab 1") == ""
    assert _dumped(guest.command(f"peek {SCRATCH:#x} 9")) == struct.pack("<Q", 0x1122334455AB7788) + b"\0"
    text = guest.command(f"peek {SCRATCH:#x}")
    assert text == f"{SCRATCH:016x}  88 77 ab 55 44 33 22 11  00 00 00 00 00 00 00 00  |.w.UD3\".........|\n"


@pytest.mark.parametrize(("command", "answer"), [
    ("peek 0", "peek: #PF at 0x0"),
    ("poke 8 1", "poke: #PF at 0x8"),
    ("poke 0x1000000 1", "poke: #PF at 0x1000000"),
    ("peek 0x10000000000", "peek: #PF at 0x10000000000"),
    ("peek 0x800000000000", "peek: #GP at 0x800000000000"),
    ("peek 0xfffffffffffffff0", "peek: #PF at 0xfffffffffffffff0"),
    ("vmmcall 1", "vmmcall: #UD, no hypervisor answers"),
    ("peek 1x", "lab: 1x is not a number (use 4096 or 0x1000)"),
    ("peek 0x10000000000000000", "lab: 0x10000000000000000 is not a number (use 4096 or 0x1000)"),
    ("peek 0x2000000 5000", "lab: 5000 is not within 1..4096"),
    ("poke 0x2000000 0x100 1", "poke: 0x100 does not fit 1 bytes"),
    ("poke 0x2000000 0 3", "lab: a width is 1, 2, 4 or 8 bytes"),
    ("peek", "usage: peek ADDR [LEN]"),
    ("dma x 0 1", "dma: r (read) or w (write), not x"),
    ("peek 1 2 3 4 5 6 7 8 9", "usage: peek ADDR [LEN]"),
    ("frobnicate", "lab: no command frobnicate (try: help)"),
])
def test_errors_are_one_line(guest: Qemu, command: str, answer: str) -> None:
    assert guest.command(command) == answer + "\n"


def test_editing_of_the_line(guest: Qemu) -> None:
    assert guest.command("vmmcallxy\b\x7f 1") == "vmmcall: #UD, no hypervisor answers\n"
    assert guest.command("") == ""
    long = "x" * 300
    assert guest.command(long) == f"lab: no command {'x' * 200} (try: help)\n"


def test_dma_reads_and_writes_memory(guest: Qemu) -> None:
    guest.command(f"poke {SCRATCH + 0x1004:#x} 0xdeadbeef")
    assert _dumped(guest.command(f"dma r {SCRATCH + 0x1000:#x} 12")) == bytes(4) + struct.pack("<I", 0xDEADBEEF) + bytes(4)
    high = 0x140000000
    assert guest.command(f"dma w {high + 3:#x} 13") == f"dma: 13 bytes sent to {high + 3:#x}\n"
    assert _dumped(guest.command(f"peek {high:#x} 20")) == bytes(3) + b"HVLABDMAHVLAB" + bytes(4)
    assert guest.command(f"dma w {high:#x} 4096 0x0807060504030201") == f"dma: 4096 bytes sent to {high:#x}\n"
    assert _dumped(guest.command(f"dma r {high:#x} 4096")) == bytes(range(1, 9)) * 512


def test_acpi_tables(guest: Qemu) -> None:
    found = {line.split()[0]: line.split()[1:3] for line in guest.command("acpi").splitlines()}
    assert found.keys() >= {"RSDP", "RSDT", "FACP", "APIC", "MCFG"}
    address, length = int(found["MCFG"][0], 16), int(found["MCFG"][1], 16)
    table = _dumped(guest.command(f"peek {address:#x} {length}"))
    assert table[:4] == b"MCFG" and sum(table) % 256 == 0 and struct.unpack_from("<I", table, 4) == (length,)


def test_ports_cpuid_help(guest: Qemu) -> None:
    assert guest.command("out 0x3ff 0x5a") == ""
    assert guest.command("in 0x3ff") == "in: 0x5a\n"
    guest.command("out 0xcf8 0x80001000 4")
    assert guest.command("in 0xcfc 4") == "in: 0x101b36\n"
    assert guest.command("in 0xcfe 2") == "in: 0x10\n"
    assert struct.pack("<III", *(int(word, 16) for word in re.findall("e[bdc]x (0x[0-9a-f]+)", guest.command("cpuid 0"))))[:4] == b"Auth"
    assert {line.split()[0] for line in guest.command("help").splitlines()} == {
        "help", "e820", "lspci", "acpi", "peek", "poke", "dma", "nvme", "attack", "iommu", "vmmcall", "cpuid", "time", "in", "out", "crash",
        "reboot"}


def test_probe_again(guest: Qemu) -> None:
    lines = without_stamps(guest.command("nvme probe"))
    assert lines[1] == "nvme nvme0: 1/0/0 default/read/poll queues" and lines[3] == " nvme0n1: 64 blocks read, checked"


def test_low_memory_and_reboot() -> None:
    with Qemu(["-device", EDU], memory="2G") as q:
        assert "nvme: no controller" in without_stamps(q.boot())
        assert q.command("nvme read 0") == "nvme: the disk is not in use\n"
        assert q.command("reboot") == ""


def test_crash_is_told() -> None:
    text = qemu_console(["time", "crash"], memory="2G", devices=())
    (time, seconds), (crash, answer) = answers(text)
    assert (time, crash) == ("time", "crash")
    assert re.fullmatch(r"time: \d+\.\d{6} s\n", seconds)
    assert re.fullmatch(r"lab: unexpected exception #UD at RIP 0x100[0-9a-f]{4}\n", answer)


def test_a_damaged_block_stops_the_disk(tmp_path: Path) -> None:
    with Qemu(nvme(_image(tmp_path, damage=41)), memory="2G") as q:
        lines = without_stamps(q.boot())
        assert lines[-4:-1] == [" nvme0n1: block 41 is wrong: its content is damaged", " nvme0n1: disk not used", "lab: ready"]
        assert "nvme0: not in use" in q.command("nvme")


def test_a_foreign_disk_is_not_checked_nor_written(tmp_path: Path) -> None:
    image = tmp_path / "foreign.img"
    image.write_bytes(b"foreign!" * 64 * 512)
    console = qemu_console([], memory="2G", devices=(), arguments=nvme(image))
    assert without_stamps(console)[-3:] == [" nvme0n1: no lab signature, not checked", "lab: ready", "lab> "]
    assert image.read_bytes() == b"foreign!" * 64 * 512


def test_no_1gib_pages() -> None:
    with Qemu(["-cpu", "EPYC,pdpe1gb=off"], memory="2G") as q:
        assert q.boot().endswith("lab: this CPU has no 1 GiB pages (CPUID 0x80000001 EDX bit 26), stopped\n")


def _poke_iommu(q: Qemu) -> None:
    """Translation on; only edu (00:03.0) has a context, and of its addresses only the first GiB, identity, is granted."""
    root, context, table = SCRATCH, SCRATCH + 0x1000, SCRATCH + 0x2000
    for address, value in ((root, context | 1), (context + 16 * 0x18, table | 1), (context + 16 * 0x18 + 8, 1), (table, 0x83)):
        assert q.command(f"poke {address:#x} {value:#x} 8") == ""
    q.command(f"poke {RTADDR:#x} {root:#x} 8")
    for bit in (1 << 30, 1 << 31):
        q.command(f"poke {GCMD:#x} {bit:#x}")
    assert _dumped(q.command(f"peek {GSTS:#x} 4")) == struct.pack("<I", 0xC0000000)


def test_blocked_dma(tmp_path: Path) -> None:
    with Qemu(["-device", EDU, *nvme(_image(tmp_path)), "-device", "intel-iommu"], command_line="nvme_core.admin_timeout=1") as q:
        q.boot()
        assert "DMAR" in q.command("acpi")
        _poke_iommu(q)
        assert _dumped(q.command(f"dma r {SCRATCH:#x} 8")) == struct.pack("<Q", SCRATCH + 0x1001)
        q.command("poke 0x100000000 0x1234")
        assert _dumped(q.command("dma r 0x100000000 8")) == bytes(8)  # QEMU gives a device zeros for a read that is blocked
        assert q.command("dma w 0x100000000 8") == "dma: 8 bytes sent to 0x100000000\n"
        assert _dumped(q.command("peek 0x100000000 8")) == struct.pack("<Q", 0x1234)
        assert without_stamps(q.command("nvme probe")) == [
            "nvme nvme0: pci function 0000:00:02.0", "nvme nvme0: I/O 0 QID 0 timeout, disable controller",
            "nvme nvme0: Identify Controller failed (-4)", "nvme nvme0: Removing after probe failure status: -5"]
        assert "CSTS 0x2" in q.command("nvme")
        q.command(f"poke {SCRATCH + 0x2000:#x} 0 8")
        q.command(f"poke {GCMD:#x} 0")
        assert "nvme nvme0: 1/0/0 default/read/poll queues" in without_stamps(q.command("nvme probe"))


def test_the_guest_drives_the_iommu_itself(tmp_path: Path) -> None:
    """On a real unit's model: what is mapped works, what is not faults with the reason and the device in the unit's record."""
    with Qemu(["-device", EDU, *nvme(_image(tmp_path)), "-device", "intel-iommu"]) as q:
        q.boot()
        bios = _dumped(q.command("peek 0xf0000 16"))
        assert any(bios) and _dumped(q.command("dma r 0xf0000 16")) == bios
        lines = without_stamps(q.command("iommu on"))
        assert lines[0] == "DMAR: Host address width 39"
        assert lines[1].startswith("DMAR: dmar0: reg_base_addr fed90000 ver 1:0 cap d2008c22260206 ecap ")
        assert lines[2] == "DMAR: Intel(R) Virtualization Technology for Directed I/O"
        assert re.fullmatch(r"iommu: on, 6 functions, 3 levels, leaves of 2 MiB, \d+ tables", lines[3])
        assert "GSTS 0xc0000000" in q.command("iommu") and "FSTS 0x0" in q.command("iommu")
        assert "nvme nvme0: 1/0/0 default/read/poll queues" in without_stamps(q.command("nvme probe"))
        q.command("poke 0x100000000 0x11223344")
        assert _dumped(q.command("dma r 0x100000000 4")) == bytes.fromhex("44332211")
        assert "FSTS 0x0" in q.command("iommu")
        assert _dumped(q.command("dma r 0xf0000 16")) == bytes(16)
        record = _dumped(q.command(f"peek {IOMMU + 0x220:#x} 16"))
        low, high = struct.unpack("<QQ", record)
        assert (low, high >> 63, high >> 32 & 0xFF, high & 0xFFFF) == (0xF0000, 1, 6, 0x18)
        assert q.command("iommu off") == "iommu: off\n"
        assert _dumped(q.command("dma r 0xf0000 16")) == bios
        assert lines[3] == without_stamps(q.command("iommu on"))[3], "the tables are used again"


def test_without_a_dmar_there_is_nothing_to_drive(guest: Qemu) -> None:
    for command in ("iommu", "iommu on", "iommu off"):
        assert guest.command(command) == "iommu: no DMAR table\n"
    assert guest.command("iommu onwards") == "iommu: nothing, on, on norms (without the RMRRs), or off\n"
