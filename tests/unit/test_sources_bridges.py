"""What kind of bridge something is, as TOML, lspci and kernel logs tell it."""

from pathlib import Path

import pytest

from hvcore.errors import BadMachine
from hvcore.machine.description import PciDescription
from hvcore.sources import load, shipped
from hvcore.sources.kernel_log import parse_log
from hvcore.sources.lspci import parse_lspci
from hvcore.sources.pci_tree import merge
from hvcore.spec.pci import PortType, bdf

HEAD = "01:00.0 PCI bridge [0604]: Some Bridge [1b21:1234]{more}\n"
BRIDGE = 'ram = "1 GiB"\n[[pci]]\nat = "00:1c.0"\nid = "1b36:000e"\nclass = 0x060400\n'


def one(text: str) -> tuple[bool, PortType | None]:
    function, = parse_lspci(text)
    return function.pcie, function.port_type


@pytest.mark.parametrize(("words", "kind"), [
    ("Express (v2) Root Port (Slot+), MSI 00", PortType.ROOT_PORT), ("Express (v2) Root Port (Slot-), IntMsgNum 0", PortType.ROOT_PORT),
    ("Express Upstream Port", PortType.UPSTREAM_PORT), ("Express (v2) Downstream Port (Slot-), MSI 00", PortType.DOWNSTREAM_PORT),
    ("Express (v1) PCI-Express to PCI/PCI-X Bridge, MSI 00", PortType.PCIE_TO_PCI_BRIDGE),
    ("Express (v1) PCI/PCI-X to PCI-Express Bridge (Slot-), MSI 00", PortType.PCI_TO_PCIE_BRIDGE),
    ("Express (v2) Endpoint, MSI 01", PortType.ENDPOINT), ("Express (v2) Legacy Endpoint, MSI 00", PortType.LEGACY_ENDPOINT),
    ("Express (v2) Root Complex Integrated Endpoint, IntMsgNum 0", PortType.INTEGRATED_ENDPOINT),
    ("Express (v2) Root Complex Event Collector, MSI 00", PortType.EVENT_COLLECTOR), ("Express Unknown type 14", None),
])
def test_lspci_verbose_names_the_type(words: str, kind: PortType | None) -> None:
    text = HEAD.format(more="") + f"\tFlags: bus master\n\tCapabilities: [50] Power Management version 3\n\tCapabilities: [70] {words}\n"
    assert one(text) == (True, kind)


def test_lspci_without_the_capability() -> None:
    verbose = HEAD.format(more=" (prog-if 00 [Normal decode])") + "\tControl: I/O+ Mem+\n"
    assert one(verbose + "\tCapabilities: [50] Subsystem: Device [0000:0000]\n") == (False, None)
    assert one(verbose + "\tCapabilities: <access denied>\n") == (True, None), "not told"
    assert one(HEAD.format(more="")) == (True, None), "not told"
    assert one(HEAD.format(more=" (rev 92) (prog-if 01 [Subtractive decode])")) == (False, None)


def dump(**at: int) -> str:
    """A hex dump of 256 bytes with these, each by its offset as `x40`."""
    data = bytearray(256)
    for where, value in at.items():
        data[int(where[1:], 16)] = value
    return "".join(f"{i:02x}: {data[i:i + 16].hex(' ')}\n" for i in range(0, 256, 16))


def test_lspci_hex_dump_is_walked() -> None:
    head = HEAD.format(more="")
    assert one(head + dump(x34=0x50, x50=0x01, x51=0x80, x80=0x10, x82=0x72)) == (True, PortType.PCIE_TO_PCI_BRIDGE)
    assert one(head + dump(x34=0x40, x40=0x10, x42=0x02)) == (True, PortType.ENDPOINT)
    assert one(head + dump(x34=0x50, x50=0x01, x51=0x00)) == (False, None)
    assert one(head + dump(x34=0x50, x50=0x01, x51=0x50)) == (False, None), "a list that points to itself ends"
    assert one(head + dump(x34=0x40, x40=0x10, x42=0x42)[:80 * 2]) == (True, None), "64 bytes do not tell"


def test_new_kernels_print_the_type() -> None:
    log = parse_log("\n".join([
        "pci 0000:00:1c.0: [8086:a114] type 01 class 0x060400 PCIe Root Port",
        "pci 0000:00:1d.0: [8086:a118] type 01 class 0x060400",
        "pci 0000:01:00.0: [10b5:8112] type 01 class 0x060400 PCIe to PCI/PCI-X bridge",
        "pci 0000:02:05.0: [1b36:0001] type 01 class 0x060400 conventional PCI bridge",
        "pci 0000:02:06.0: [1234:11e8] type 00 class 0x00ff00 conventional PCI endpoint",
        "pci 0000:04:00.0: [144d:a808] type 00 class 0x010802 PCIe Endpoint"]))
    kinds = [PortType.ROOT_PORT, None, PortType.PCIE_TO_PCI_BRIDGE, None, None, PortType.ENDPOINT]
    assert [f.port_type for f in log.functions] == kinds
    assert [f.pcie for f in log.functions] == [True, True, True, False, False, True]


def test_log_and_lspci_together_tell_more() -> None:
    def function(pcie: bool, kind: PortType | None) -> PciDescription:
        return PciDescription(bdf(0, 0x1E, 0), 0x8086, 0x244E, 0x060401, "bridge", pcie=pcie, port_type=kind)

    def merged(listed: PciDescription, logged: PciDescription) -> tuple[bool, PortType | None]:
        found, = merge([listed], [logged])
        return found.pcie, found.port_type

    unknown, conventional, endpoint = function(True, None), function(False, None), function(True, PortType.ENDPOINT)
    assert merged(unknown, conventional) == merged(conventional, unknown) == (False, None)
    assert merged(unknown, endpoint) == merged(endpoint, unknown) == (True, PortType.ENDPOINT)
    assert merged(unknown, unknown) == (True, None)


def test_bridges_of_unknown_kind_are_said(tmp_path: Path) -> None:
    log = ("BIOS-e820: [mem 0x0-0x9ffff] usable\nBIOS-e820: [mem 0x100000-0x7fffffff] usable\n"
           "pci 0000:00:1c.0: [8086:a114] type 01 class 0x060400{kind}\npci 0000:00:1c.0: PCI bridge to [bus 01]\n"
           "pci 0000:01:00.0: [144d:a808] type 00 class 0x010802\n")
    for kind, said in (("", True), (" PCIe Root Port", False), (" conventional PCI bridge", False)):
        path = tmp_path / "dmesg.txt"
        path.write_text(log.format(kind=kind))
        assert any("00:1c.0 is taken for a PCI Express port" in a for a in load(path).assumptions) == said


def test_a_log_with_several_segments(tmp_path: Path) -> None:
    log = ("BIOS-e820: [mem 0x0-0x9ffff] usable\nBIOS-e820: [mem 0x100000-0x7fffffff] usable\n"
           "PCI: ECAM [mem 0x80000000-0x83ffffff] (base 0x80000000) for domain 0000 [bus 00-3f]\n"
           "PCI: MMCONFIG for domain 0001 [bus 00-0f] at [mem 0x84000000-0x84ffffff] (base 0x84000000)\n"
           "pci 0000:00:00.0: [8086:29c0] type 00 class 0x060000\npci 0001:00:02.0: [144d:a808] type 00 class 0x010802\n"
           "pci 10000:e0:02.0: [144d:a809] type 00 class 0x010802\n")
    path = tmp_path / "dmesg.txt"
    path.write_text(log)
    machine = load(path)
    assert [(e.segment, e.base, e.last) for e in machine.ecams] == [(0, 0x80000000, 63), (1, 0x84000000, 15)]
    other, = (f for f in machine.pci if f.segment)
    assert (other.segment, other.source, other.model) == (1, bdf(0, 2, 0), "nvme")
    assert "1 functions of PCI segments without a configuration window were left out." in machine.assumptions


def test_toml_says_it(tmp_path: Path) -> None:
    machine = load(shipped()["q35-2g-bridges"])
    kinds = {f.source: (f.pcie, f.port_type) for f in machine.pci if f.model == "bridge"}
    assert kinds == {bdf(0, 0x1C, 0): (True, PortType.ROOT_PORT), bdf(0, 0x1D, 0): (True, PortType.ROOT_PORT),
                     bdf(1, 0, 0): (True, PortType.PCIE_TO_PCI_BRIDGE), bdf(0, 0x1E, 0): (False, None), bdf(4, 0x1F, 0): (False, None)}
    path = tmp_path / "m.toml"
    path.write_text(BRIDGE + "buses = [1, 1]\n")
    assert next(f for f in load(path).pci if f.model == "bridge").port_type is None


@pytest.mark.parametrize(("keys", "words"), [
    ('buses = [1, 1]\nport_type = "bridge"', r"'bridge' is none of endpoint, "),
    ('buses = [1, 1]\nport_type = "endpoint"', "is no bridge, but has buses"), ('port_type = "root port"', "it needs buses"),
    ('buses = [1, 1]\nport_type = "root port"\npcie = false', "leave one out"), ("port_type = 4", "4 is no text"),
])
def test_impossible_kinds_are_refused(tmp_path: Path, keys: str, words: str) -> None:
    path = tmp_path / "m.toml"
    path.write_text(BRIDGE + keys)
    with pytest.raises(BadMachine, match=rf"pci\[0\].port_type: .*{words}"):
        load(path)
