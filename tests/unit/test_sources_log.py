"""Kernel logs and lspci: DMAR lines, PCI functions and windows, in the words of old and new kernels."""

from pathlib import Path

import pytest

from hvcore.errors import BadMachine
from hvcore.machine.description import BarDescription
from hvcore.sources import images_dir
from hvcore.sources.kernel_log import parse_log, read_text
from hvcore.sources.lspci import parse_lspci, parse_qemu_pci
from hvcore.sources.pci_tree import merge
from hvcore.spec.pci import parse_bdf

LOGS = Path(__file__).parents[1] / "data" / "logs"
REAL = images_dir() / "machines" / "real"


def source(text: str) -> int:
    return parse_bdf(text)[1]


def test_dmar_lines_of_linux_4_and_later() -> None:
    log = parse_log("\n".join([
        "[    0.271501] DMAR: Host address width 39",
        "[    0.271503] DMAR: DRHD base: 0x000000fed90000 flags: 0x0",
        "[    0.271510] DMAR: dmar0: reg_base_addr fed90000 ver 4:0 cap 1c0000c40660462 ecap 49e2ff0505e",
        "[    0.271520] DMAR: RMRR base: 0x00000091000000 end: 0x000000953fffff",
        "[    0.214826] DMAR: ATSR flags: 0x0",
        "[    0.214827] DMAR: RHSA base: 0x000000fbffc000 proximity domain: 0x1",
        r"[    0.1] DMAR: ANDD device: 1 name: \_SB.PCI0.I2C0",
        "[    0.271523] DMAR-IR: IOAPIC id 2 under DRHD base  0xfed90000 IOMMU 1",
        "[    0.271524] DMAR-IR: HPET id 0 under DRHD base 0xfed90000",
        "[    0.271525] DMAR-IR: x2apic is disabled because BIOS sets x2apic opt out bit.",
        "[    1.0] DMAR: Setting identity map for device 0000:00:02.0 [0xad800000 - 0xafffffff]",
        "[    0.029553] ACPI: DMAR 0x000000007BFC2000 000088 (v01 MSFT   MSFT     00000002 MSFT 20160422)"]))
    unit = log.units[0xFED90000]
    assert (unit.flags, unit.version, unit.cap, unit.ecap) == (0, 0x40, 0x1C0000C40660462, 0x49E2FF0505E)
    assert (unit.ioapics, unit.hpets, log.x2apic_opt_out, log.host_address_width) == ([2], [0], True, 39)
    assert (log.rmrrs, log.atsrs, log.rhsas) == ([(0x91000000, 0x95400000)], [0], [(0xFBFFC000, 1)])
    assert log.andds == [(1, r"\_SB.PCI0.I2C0")]
    assert log.rmrr_devices == [(0xAD800000, 0xB0000000, source("00:02.0"))]
    assert log.tables["DMAR"] == (0x7BFC2000, 0x88)


@pytest.mark.parametrize("line", [
    "[    0.139811] dmar: IOMMU 0: reg_base_addr fbefe000 ver 1:0 cap d2078c106f0462 ecap f020fe",
    "Jan  1 00:00:00 host kernel: IOMMU 0: reg_base_addr fbefe000 ver 1:0 cap d2078c106f0462 ecap f020fe",
    "IOMMU fbefe000: ver 1:0 cap d2078c106f0462 ecap f020fe",
    "(XEN) anything reg_base_addr fbefe000 ver 1:0 cap d2078c106f0462 ecap f020fe",
])
def test_registers_in_the_words_of_older_kernels(line: str) -> None:
    unit = parse_log(line).units[0xFBEFE000]
    assert (unit.version, unit.cap, unit.ecap) == (0x10, 0xD2078C106F0462, 0xF020FE)


@pytest.mark.parametrize("lines", [
    "pci 0000:00:02.0: [8086:1912] type 00 class 0x038000\npci 0000:00:02.0: reg 0x18: [mem 0xc0000000-0xcfffffff 64bit pref]",
    "pci 0000:00:02.0: [8086:1912] type 00 class 0x038000 PCIe Root Complex Integrated Endpoint\n"
    "pci 0000:00:02.0: BAR 2 [mem 0xc0000000-0xcfffffff 64bit pref]",
    "pci 0000:00:02.0: [8086:1912] type 0 class 0x000380\npci 0000:00:02.0: reg 18: [mem 0xc0000000-0xcfffffff 64bit pref]",
    "pci 0000:00:02.0: found [8086:1912] class 038000 header type 00\npci 0000:00:02.0: reg 18 64bit mmio: [0xc0000000-0xcfffffff pref]",
])
def test_a_function_in_the_words_of_many_kernels(lines: str) -> None:
    function, = parse_log(lines).functions
    assert (function.source, function.vendor, function.device_id, function.class_code) == (source("00:02.0"), 0x8086, 0x1912, 0x038000)
    bar, = function.bars
    assert (bar.index, bar.kind, bar.size, bar.address) == (2, "mem64", 1 << 28, 0xC0000000)


def test_what_is_no_bar_of_the_function() -> None:
    function, = parse_log("\n".join([
        "pci 0000:81:00.0: [8086:1528] type 00 class 0x020000",
        "pci 0000:81:00.0: reg 0x10: [mem 0xfb000000-0xfb1fffff 64bit pref]",
        "pci 0000:81:00.0: reg 0x20: [io  0x9000-0x901f]",
        "pci 0000:81:00.0: reg 0x30: [mem 0xfff80000-0xffffffff pref]",
        "pci 0000:81:00.0: reg 0x184: [mem 0x00000000-0x00003fff 64bit]",
        "pci 0000:81:00.0: VF BAR 0 [mem 0x00000000-0x00003fff 64bit]",
        "pci 0000:81:00.0: BAR 0: assigned [mem 0x90000000-0x901fffff 64bit pref]"])).functions
    assert function.bars == (BarDescription(0, "mem64", 0x200000, 0xFB000000, True), BarDescription(4, "io", 32, 0x9000))


def test_bridges_windows_and_nvme() -> None:
    log = parse_log("\n".join([
        "pci_bus 0000:7f: root bus resource [bus 7f]",
        "pci 0000:00:1c.0: [8086:a114] type 01 class 0x060400",
        "pci 0000:00:1e.0: [8086:244e] type 01 class 0x060401",
        "pci 0000:00:1c.0: PCI bridge to [bus 02-05]",
        "pci 0000:00:1e.0: PCI bridge to [bus 10] (subtractive decode)",
        "PCI: ECAM [mem 0xe0000000-0xefffffff] (base 0xe0000000) for domain 0000 [bus 00-ff] at [mem 0xc0000000-0xcfffffff]",
        "PCI: MMCONFIG for domain 0000 [bus 00-7f] at [mem 0xf0000000-0xf7ffffff] (base 0xf0000000)",
        "PCI: MMCONFIG for domain 0000 [bus 00-00] at [mem 0xf8000000-0xf80fffff] (base 0xf8000000)",
        "nvme nvme0: pci function 0000:02:00.0"]))
    assert [(f.model, f.secondary, f.subordinate, f.pcie) for f in log.functions] == [("bridge", 2, 5, True), ("bridge", 16, 16, False)]
    assert [(e.base, e.last) for e in log.ecams][-2:] == [(0xF0000000, 127), (0xF8000000, 0)]
    assert log.nvme == [(0, source("02:00.0"))] and log.root_buses == {0x7F}


def test_of_two_boots_the_one_with_the_first_whole_map_counts() -> None:
    boot = ("Linux version 6.{n}\nBIOS-e820: [mem 0x0-0x9ffff] usable\nBIOS-e820: [mem 0x100000-0x7{n}ffffff] usable\n"
            "DMAR: DRHD base: 0x000000fed9{n}000 flags: 0x1\n")
    log = parse_log(boot.format(n=1) + boot.format(n=2) + boot.format(n=3))
    assert log.map and log.map.entries[1].end == 0x72000000 and list(log.units) == [0xFED91000]
    torn = "DMAR: DRHD base: 0x000000fed93000 flags: 0x1\nLinux version 6.0\n"
    wrapped = parse_log(torn + boot.format(n=1))
    assert list(wrapped.units) == [0xFED91000]


def test_lspci_verbose_agrees_with_the_kernel_on_the_same_machine() -> None:
    folder = REAL / "huananzhi-x99-qd4-32g"
    listed = {f.source: f for f in parse_lspci((folder / "lspci.txt").read_text())}
    logged = {f.source: f for f in parse_log((folder / "dmesg.txt").read_text()).functions}
    assert set(logged) == set(listed) and len(listed) == 87
    assert not listed[source("00:1f.3")].pcie and listed[source("02:00.0")].pcie
    differing = set()
    for key, function in logged.items():
        other = listed[key]
        assert (function.vendor, function.device_id, function.class_code) == (other.vendor, other.device_id, other.class_code)
        assert (function.secondary, function.subordinate) == (other.secondary, other.subordinate)
        differing |= {(key, b.index, b.size) for b in function.bars} - {(key, b.index, b.size) for b in other.bars}
    assert differing == {(source("05:00.0"), 0, 256 << 20)}, "the graphics driver has resized this one since"
    merged = {f.source: f for f in merge(listed.values(), logged.values())}
    assert [(b.index, b.size >> 20) for b in merged[source("05:00.0")].bars] == [(0, 256), (2, 2), (4, 0), (5, 1)]


def test_lspci_short() -> None:
    functions = parse_lspci((REAL / "qemu-q35-6g" / "lspci.txt").read_text())
    assert [(f.source, f.vendor, f.device_id, f.class_code) for f in functions] == [
        (source("00:00.0"), 0x8086, 0x29C0, 0x060000), (source("00:01.0"), 0x1B36, 0x0010, 0x010802),
        (source("00:1f.0"), 0x8086, 0x2918, 0x060100),
        (source("00:1f.2"), 0x8086, 0x2922, 0x010601), (source("00:1f.3"), 0x8086, 0x2930, 0x0C0500)]
    assert all(f.pcie for f in functions), "the short form does not tell"


def test_lspci_details() -> None:
    function, = parse_lspci("""0000:05:00.0 VGA controller [0300]: Advanced [AMD/ATI] Navi 23 [1002:73ff] (rev c3) (prog-if 00 [VGA])
\tSubsystem: XFX [1eae:6505]
\tControl: I/O+ Mem+
\tRegion 0: Memory at 380000000000 (64-bit, prefetchable) [size=8G]
\tRegion 2: Memory at <unassigned> (64-bit, prefetchable) [disabled] [size=2M]
\tRegion 4: I/O ports at e000 [size=256]
\tRegion 5: Memory at fba00000 (32-bit, non-prefetchable) [size=1M]
\tCapabilities: [64] Express (v2) Legacy Endpoint, MSI 00
00: 02 10 ff 73 07 04 10 00 c3 00 00 03 10 00 80 00
""")
    assert (function.subsystem, function.revision, function.pcie) == ((0x1EAE, 0x6505), 0xC3, True)
    assert function.bars == (BarDescription(0, "mem64", 8 << 30, 0x380000000000, True), BarDescription(2, "mem64", 2 << 20, None, True),
                             BarDescription(4, "io", 256, 0xE000), BarDescription(5, "mem32", 1 << 20, 0xFBA00000))


def test_qemu_info_pci() -> None:
    functions = parse_qemu_pci((LOGS / "bitvisor-on-qemu-6g" / "pci.txt").read_text())
    assert [f.source for f in functions] == [source(s) for s in ("00:00.0", "00:01.0", "00:02.0", "00:1f.0", "00:1f.2", "00:1f.3")]
    nvme = functions[2]
    assert (nvme.vendor, nvme.device_id, nvme.class_code) == (0x1B36, 0x0010, 0x010802)
    assert nvme.bars == (BarDescription(0, "mem64", 0x4000, 0xFEBF0000),)
    assert functions[4].bars[0] == BarDescription(4, "io", 32, 0xC040)


def test_files_that_are_no_logs(tmp_path: Path) -> None:
    packed = tmp_path / "dmesg.gz"
    packed.write_bytes(b"\x1f\x8b\x08rest")
    with pytest.raises(BadMachine, match="gzip: unpack"):
        read_text(packed)
    with pytest.raises(BadMachine, match="not a file"):
        read_text(tmp_path)
    wide = tmp_path / "dmesg.txt"
    wide.write_bytes("BIOS-e820: [mem 0x0-0x9ffff] usable".encode("utf-16"))
    assert len(parse_log(read_text(wide)).maps) == 1
