"""PCI: names of functions, offsets of configuration space, kinds of bridge (PCI Local Bus 3.0, section 6; PCI-to-PCI Bridge 1.2, section 3;
PCI Express Base 4.0, section 7.5.3)."""

import re
from enum import IntEnum

from ..errors import quoted

__all__ = ["BAR0", "CAPABILITIES", "CLASS", "COMMAND", "DEVICE_ID", "EXPRESS", "HEADER_TYPE", "INTERRUPT_LINE", "INTERRUPT_PIN", "PORTS",
           "PRIMARY_BUS", "REVISION", "SECONDARY_BUS", "STATUS", "SUBORDINATE_BUS", "SUBSYSTEM_ID", "SUBSYSTEM_VENDOR_ID", "VENDOR_ID",
           "PortType", "bdf", "class_name", "format_bdf", "forwarding_type", "parse_bdf", "requester_behind", "split_bdf"]

VENDOR_ID, DEVICE_ID, COMMAND, STATUS, REVISION, CLASS, HEADER_TYPE = 0x00, 0x02, 0x04, 0x06, 0x08, 0x09, 0x0E
BAR0, SUBSYSTEM_VENDOR_ID, SUBSYSTEM_ID, CAPABILITIES, INTERRUPT_LINE, INTERRUPT_PIN = 0x10, 0x2C, 0x2E, 0x34, 0x3C, 0x3D
PRIMARY_BUS, SECONDARY_BUS, SUBORDINATE_BUS = 0x18, 0x19, 0x1A
COMMAND_IO, COMMAND_MEMORY, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE = 1 << 0, 1 << 1, 1 << 2, 1 << 10
EXPRESS = 0x10
"""Number of the PCI Express capability; bits 7:4 of the word that follows its id and link are the port type."""


class PortType(IntEnum):
    """Device/port type of the PCI Express capability (section 7.5.3.2).  Conventional functions, bridges too, have no such capability."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    ROOT_PORT = 4
    UPSTREAM_PORT = 5
    DOWNSTREAM_PORT = 6
    PCIE_TO_PCI_BRIDGE = 7
    PCI_TO_PCIE_BRIDGE = 8
    INTEGRATED_ENDPOINT = 9
    EVENT_COLLECTOR = 10


PORTS = frozenset({PortType.ROOT_PORT, PortType.UPSTREAM_PORT, PortType.DOWNSTREAM_PORT})
"""Bridges that pass the requester ids from behind them on."""
_UNDECLARED = frozenset({(0x1B21, 0x1080), (0x10E3, 0x8113), (0x1283, 0x8892), (0x1283, 0x8893), (0x8086, 0x244E)})
"""PCIe-to-PCI bridges (vendor, device) that have no PCI Express capability, as Linux knows them (drivers/pci/quirks.c)."""

_CLASSES = {
    0x01: "storage", 0x0101: "IDE", 0x0104: "RAID", 0x0106: "SATA", 0x0107: "SAS", 0x0108: "NVMe", 0x02: "network", 0x0200: "Ethernet",
    0x03: "display", 0x0300: "VGA", 0x04: "multimedia", 0x0403: "audio", 0x05: "memory", 0x06: "bridge", 0x0600: "host bridge",
    0x0601: "ISA bridge", 0x0604: "PCI bridge", 0x07: "communication", 0x0700: "serial", 0x0780: "management", 0x08: "system",
    0x0800: "interrupt controller", 0x0880: "system", 0x0B: "processor", 0x0C: "serial bus", 0x0C03: "USB", 0x0C05: "SMBus",
    0x0D: "wireless", 0x10: "encryption", 0x11: "signal processing", 0x12: "accelerator",
}
"""Classes of functions by class or by class and subclass."""


def class_name(class_code: int) -> str:
    """A 24-bit class code in a word: `USB`, `PCI bridge`; in hex where there is none."""
    return _CLASSES.get(class_code >> 8) or _CLASSES.get(class_code >> 16) or f"class {class_code:#08x}"


def bdf(bus: int, device: int, function: int) -> int:
    """The 16-bit requester id: bus 15:8, device 7:3, function 2:0."""
    if not (0 <= bus < 256 and 0 <= device < 32 and 0 <= function < 8):
        raise ValueError(f"no such PCI function: bus {bus:#x}, device {device:#x}, function {function}")
    return bus << 8 | device << 3 | function


def split_bdf(source: int) -> tuple[int, int, int]:
    """Bus, device, function of a requester id."""
    return source >> 8 & 0xFF, source >> 3 & 0x1F, source & 7


def format_bdf(source: int) -> str:
    """A requester id as Linux prints it: `00:02.0`."""
    bus, device, function = split_bdf(source)
    return f"{bus:02x}:{device:02x}.{function}"


def parse_bdf(text: str) -> tuple[int, int]:
    """`0000:00:02.0` or `00:02.0` as (segment, requester id)."""
    m = re.fullmatch(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])", text.strip())
    if not m or int(m[3], 16) > 31:
        raise ValueError(f"{quoted(text)} is not a PCI function like 00:02.0")
    return int(m[1] or "0", 16), bdf(int(m[2], 16), int(m[3], 16), int(m[4]))


def forwarding_type(vendor: int, device: int, own: PortType | None, above: PortType | None) -> PortType | None:
    """The type by which a bridge forwards requests: its own, or PCIe-to-PCI for the known ones that do not declare it.

    Those are conventional where no PCIe port is above them: `above` is the type of that bridge, None on a root bus or a conventional one.
    """
    return PortType.PCIE_TO_PCI_BRIDGE if own is None and above in PORTS and (vendor, device) in _UNDECLARED else own


def requester_behind(below: int, port_type: PortType | None, bridge: int, secondary: int) -> int:
    """The requester id under which a request of `below`, behind a bridge, leaves the bridge upwards.

    A PCIe port keeps the id.  A PCIe-to-PCI bridge puts its secondary bus with device and function 0 (PCI Express to PCI/PCI-X Bridge 1.0,
    section 2.3), any other bridge (`port_type` None: a conventional one) its own id, `bridge`.
    """
    if port_type in PORTS:
        return below
    return secondary << 8 if port_type is PortType.PCIE_TO_PCI_BRIDGE else bridge
