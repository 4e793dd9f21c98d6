"""PCI functions from `lspci -nn` (short or verbose, with or without a hex dump) and from the QEMU monitor's `info pci`."""

import re
from collections.abc import Iterator

from ..machine.description import BarDescription, PciDescription
from ..spec.pci import CAPABILITIES, EXPRESS, PortType, bdf, parse_bdf

__all__ = ["parse_lspci", "parse_qemu_pci"]

_LONGEST_LINE = 1024
"""Characters of a line that are read."""
_HEAD = re.compile(r"^(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7] ")
_FUNCTION = re.compile(r"^((?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]) .*?\[([0-9a-f]{4})\]: .*\[([0-9a-f]{4}):([0-9a-f]{4})\]"
                       r"(?: \(rev ([0-9a-f]{2})\))?(?: \(prog-if ([0-9a-f]{2})\b)?")
_SUBSYSTEM = re.compile(r"^[ \t]+Subsystem: .*\[([0-9a-f]{4}):([0-9a-f]{4})\]", re.MULTILINE)
_REGION = re.compile(r"^[ \t]+Region ([0-5]): (Memory|I/O ports) at (?:([0-9a-f]{1,16})|<\w+>)(?: \((32|64)-bit, (non-)?prefetchable\))?"
                     r".*\[size=(\d{1,4})([KMGT]?)\]", re.MULTILINE)
_BUSES = re.compile(r"^[ \t]+Bus: primary=[0-9a-f]{2}, secondary=([0-9a-f]{2}), subordinate=([0-9a-f]{2})", re.MULTILINE)
_EXPRESS = re.compile(r"^[ \t]+Capabilities: \[\w+\] Express (?:\(v\d+\) )?([A-Z][\w/ -]*?)(?: \(Slot[+-]\))?(?:,.*)?$", re.MULTILINE)
_VERBOSE = re.compile(r"^[ \t]+(?:Control|Flags): ", re.MULTILINE)
_DENIED = "Capabilities: <access denied>"
_DUMP = re.compile(r"^([0-9a-f]{2,3}):((?: [0-9a-f]{2}){16})[ \t]*$", re.MULTILINE)
_TYPES = {"Endpoint": PortType.ENDPOINT, "Legacy Endpoint": PortType.LEGACY_ENDPOINT, "Root Port": PortType.ROOT_PORT,
          "Upstream Port": PortType.UPSTREAM_PORT, "Downstream Port": PortType.DOWNSTREAM_PORT,
          "PCI-Express to PCI/PCI-X Bridge": PortType.PCIE_TO_PCI_BRIDGE, "PCI/PCI-X to PCI-Express Bridge": PortType.PCI_TO_PCIE_BRIDGE,
          "Root Complex Integrated Endpoint": PortType.INTEGRATED_ENDPOINT, "Root Complex Event Collector": PortType.EVENT_COLLECTOR}
"""The port type in lspci's words."""
_SUBTRACTIVE = 0x060401
_PORT_TYPES = {int(kind): kind for kind in PortType}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_INTERFACES = {0x0101: 0x80, 0x0106: 0x01, 0x0108: 0x02}
"""Programming interfaces where lspci does not say: bus-master IDE, AHCI, NVMe; others have 0."""
_BRIDGE = 0x0604


def parse_lspci(text: str) -> tuple[PciDescription, ...]:
    """The functions that `text` lists with their numbers (`lspci -nn`), in its order.  Blocks that cannot be read are left out."""
    return tuple(f for block in _blocks(text) if (f := _function(block)))


def _blocks(text: str) -> Iterator[str]:
    """The lines of one function after the other."""
    block: list[str] = []
    for line in (whole[:_LONGEST_LINE] for whole in text.splitlines()):
        if _HEAD.match(line):
            yield "\n".join(block)
            block = []
        block.append(line)
    yield "\n".join(block)


def _function(block: str) -> PciDescription | None:
    m = _FUNCTION.match(block)
    if not m:
        return None
    segment, source = parse_bdf(m[1])
    kind = int(m[2], 16)
    interface = int(m[6], 16) if m[6] else _INTERFACES.get(kind, 0)
    subsystem, buses = _SUBSYSTEM.search(block), _BUSES.search(block)
    bridge = kind == _BRIDGE
    pcie, port_type = _express(block, kind << 8 | interface)
    return PciDescription(
        source, int(m[3], 16), int(m[4], 16), kind << 8 | interface, "bridge" if bridge else "stub", segment, int(m[5] or "0", 16),
        subsystem=(int(subsystem[1], 16), int(subsystem[2], 16)) if subsystem else (0, 0), bars=tuple(map(_bar, _REGION.finditer(block))),
        secondary=int(buses[1], 16) if bridge and buses else 0, subordinate=int(buses[2], 16) if bridge and buses else 0,
        pcie=pcie, port_type=port_type)


def _express(block: str, class_code: int) -> tuple[bool, PortType | None]:
    """Whether a function has a PCI Express capability, and the port type in it, None where the listing does not tell.

    A listing without capabilities tells neither: then it has one, but for a bridge with subtractive decoding, which is conventional.
    """
    config = bytes(int(byte, 16) for line in _DUMP.finditer(block) for byte in line[2].split())
    if len(config) >= 256:
        found = _capability(config)
        return found is not None, found
    m = _EXPRESS.search(block)
    if m:
        return True, _TYPES.get(m[1])
    told = _VERBOSE.search(block) and _DENIED not in block
    return not told and class_code != _SUBTRACTIVE, None


def _capability(config: bytes) -> PortType | None:
    """The port type in the PCI Express capability of 256 bytes or more of configuration space; None where there is none."""
    at, left = config[CAPABILITIES] & 0xFC, 48
    while at >= 0x40 and left:
        if config[at] == EXPRESS:
            return _PORT_TYPES.get(config[at + 2] >> 4)
        at, left = config[at + 1] & 0xFC, left - 1
    return None


def _bar(m: re.Match[str]) -> BarDescription:
    kind = "io" if m[2] == "I/O ports" else f"mem{m[4] or 32}"
    address = int(m[3], 16) if m[3] else 0
    return BarDescription(int(m[1]), kind, int(m[6]) * _UNITS[m[7]], address or None, kind != "io" and bool(m[4]) and not m[5])


_QEMU_HEAD = re.compile(r"^[ \t]*Bus +(\d{1,3}), device +(\d{1,2}), function (\d):", re.MULTILINE)
_QEMU_ID = re.compile(r"^[ \t]+(?:Class (\d{4})|(\w[\w /.-]*)): PCI device ([0-9a-f]{4}):([0-9a-f]{4})", re.MULTILINE)
_QEMU_SUBSYSTEM = re.compile(r"PCI subsystem ([0-9a-f]{4}):([0-9a-f]{4})")
_QEMU_BAR = re.compile(r"BAR([0-5]): (?:(32|64) bit (prefetchable )?memory|I/O) at 0x([0-9a-f]{1,16}) \[0x([0-9a-f]{1,16})\]")
_QEMU_SECONDARY = re.compile(r"secondary bus (\d{1,3})\.[\s\S]{0,400}?subordinate bus (\d{1,3})\.")
_QEMU_CLASSES = {"Host bridge": 0x060000, "ISA bridge": 0x060100, "PCI bridge": 0x060400, "VGA controller": 0x030000,
                 "SATA controller": 0x010601, "SMBus": 0x0C0500, "Ethernet controller": 0x020000, "USB controller": 0x0C0330}


def parse_qemu_pci(text: str) -> tuple[PciDescription, ...]:
    """The functions of the QEMU monitor's `info pci`, in its order."""
    heads = list(_QEMU_HEAD.finditer(text))
    bounds = [*(h.start() for h in heads), len(text)]
    return tuple(f for head, end in zip(heads, bounds[1:], strict=True) if (f := _qemu_function(head, text[head.end():end])))


def _qemu_function(head: re.Match[str], block: str) -> PciDescription | None:
    m = _QEMU_ID.search(block)
    bus, device, function = (int(head[i]) for i in (1, 2, 3))
    if not m or bus > 255 or device > 31 or function > 7:
        return None
    class_code = _with_interface(int(m[1])) if m[1] else _QEMU_CLASSES.get(m[2].strip(), 0xFF0000)
    subsystem, buses = _QEMU_SUBSYSTEM.search(block), _QEMU_SECONDARY.search(block)
    bars = tuple(BarDescription(int(b[1]), f"mem{b[2]}" if b[2] else "io", int(b[5], 16) + 1 - int(b[4], 16), int(b[4], 16), bool(b[3]))
                 for b in _QEMU_BAR.finditer(block))
    model = "bridge" if class_code >> 8 == _BRIDGE else "stub"
    return PciDescription(bdf(bus, device, function), int(m[3], 16), int(m[4], 16), class_code, model,
                          subsystem=(int(subsystem[1], 16), int(subsystem[2], 16)) if subsystem else (0, 0), bars=bars,
                          secondary=min(int(buses[1]), 255) if buses else 0, subordinate=min(int(buses[2]), 255) if buses else 0)


def _with_interface(kind: int) -> int:
    return kind << 8 | _INTERFACES.get(kind, 0)
