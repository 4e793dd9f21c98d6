"""The DSDT of the emulated PC: its processor, host bridges, interrupt routing and legacy devices, as AML (ACPI 6.5, section 5.2.11.1).

    \\_SB.C000             the processor
    \\_SB.SYSR             what lies in memory and belongs to no PCI function: configuration windows, remapping units; the PM ports
    \\_SB.PCI0, PC01, ...  the PCI root buses, by segment and bus; the first has the legacy devices
    \\_S5                  how to switch off

Nothing in it is taken from the firmware of the machine that the description was made from: this is another PC.
"""

from collections.abc import Iterable, Iterator

from ..errors import BadMachine
from ..spec import acpi, aml
from .cmos import INDEX
from .description import MachineDescription
from .pcifunction import PciFunction, intx_line
from .pciwindows import CONFIG_PORTS, RootBus, root_buses
from .pic import ELCR, MASTER, SLAVE
from .pit import COUNTERS, SYSTEM
from .pm1 import EVENT, S5_TYPE

__all__ = ["build_dsdt"]

_COM1, _COM1_IRQ, _RTC_IRQ = 0x3F8, 4, 8
_PM_PORTS = 16
_PAGE = 0x1000
_TWO_DIGITS, _MOST_ROOTS = 0x100, 0x1000
_FOUR_GIB = 1 << 32
_ALL_FUNCTIONS = 0xFFFF
_PCI_HOST = "33DB4D5B-1FF7-401C-9657-7441C03DD766"
"""The UUID of _OSC for PCI host bridges (PCI Firmware 3.3, section 4.5.1)."""
_EXPRESS_CAPABILITY = 1 << 4
"""The one of the features that a system asks for in _OSC which this PC has: its ports know no hot plug, power event or error message."""
_UNRECOGNIZED, _MASKED = 1 << 2, 1 << 4


def build_dsdt(machine: MachineDescription, functions: Iterable[PciFunction]) -> bytes:
    """The table, for functions that are placed.  Raises `BadMachine` for more root buses than it has names for."""
    roots = root_buses(machine, functions)
    if len(roots) > _MOST_ROOTS:
        raise BadMachine(f"{machine.name}: {len(roots)} PCI root buses, firmware has names for {_MOST_ROOTS}: leave some functions out")
    content = (aml.scope("_SB", _processor(), _system(machine), *(_host_bridge(i, root) for i, root in enumerate(roots))),
               aml.name("_S5", aml.package(*(aml.integer(n) for n in (S5_TYPE, 0, 0, 0)))))
    return acpi.build_table(acpi.Header("DSDT", 2), b"".join(content))


def _processor() -> bytes:
    """The MADT's one processor, number 0."""
    return aml.device("C000", aml.name("_HID", aml.string("ACPI0007")), aml.name("_UID", aml.integer(0)))


def _system(machine: MachineDescription) -> bytes:
    """Reserves what no driver claims and nobody else may have."""
    ranges = [(e.base, e.base + e.size) for e in machine.ecams] + [(u.base, u.base + _PAGE) for u in machine.units]
    return _legacy("SYSR", "PNP0C02", aml.io(EVENT, _PM_PORTS), aml.io(SYSTEM, 1), *(_taken(*r) for r in ranges))


def _taken(start: int, end: int) -> bytes:
    return aml.memory32_fixed(start, end) if end <= _FOUR_GIB else aml.qword_memory(start, end, consumed=True)


def _legacy(path: str, hid: str, *taken: bytes) -> bytes:
    """A device that is where it always is."""
    return aml.device(path, aml.name("_HID", aml.eisa_id(hid)), aml.name("_UID", aml.integer(0)), aml.name("_CRS", aml.resources(*taken)))


def _host_bridge(index: int, root: RootBus) -> bytes:
    """A PCI Express root bus."""
    first = index == 0
    own = [aml.io(CONFIG_PORTS[0], CONFIG_PORTS[1] - CONFIG_PORTS[0])] if first else []
    return aml.device(
        _bridge_name(index),
        aml.name("_HID", aml.eisa_id("PNP0A08")), aml.name("_CID", aml.eisa_id("PNP0A03")), aml.name("_UID", aml.integer(index)),
        aml.name("_SEG", aml.integer(root.segment)), aml.name("_BBN", aml.integer(root.bus)),
        aml.name("_CRS", aml.resources(aml.word_bus(root.bus, root.last), *own, *(aml.word_io(*r) for r in root.ports),
                                       *(_forwarded(*r) for r in root.memory))),
        *_routing(root), _osc(), *(_isa() if first else ()))


def _bridge_name(index: int) -> str:
    return "PCI0" if index == 0 else f"PC{index:02X}" if index < _TWO_DIGITS else f"R{index:03X}"


def _forwarded(start: int, end: int) -> bytes:
    return aml.dword_memory(start, end) if end <= _FOUR_GIB else aml.qword_memory(start, end)


def _routing(root: RootBus) -> Iterator[bytes]:
    """Where the interrupt pins of the devices on the bus end: the same numbers at the 8259 pair and at the I/O APIC, level, active low.

    What lies behind bridges needs no rows: a bridge turns the pins by the slot, as every system knows.
    """
    rows = ((device << 16 | _ALL_FUNCTIONS, pin, 0, intx_line(device, pin + 1)) for device in root.devices for pin in range(4))
    if root.devices:
        yield aml.name("_PRT", aml.package(*(aml.package(*(aml.integer(n) for n in row)) for row in rows)))


def _osc() -> bytes:
    """Leaves to the system what this PC has of the features it asks for (ACPI 6.5, section 6.2.11)."""
    asked, status, control = aml.local(0), aml.name_string("CDW1"), aml.name_string("CDW3")
    changed = aml.not_equal(control, asked)
    foreign = aml.not_equal(aml.arg(0), aml.uuid(_PCI_HOST))
    return aml.method(
        "_OSC", 4,
        aml.create_dword_field(aml.arg(3), 0, "CDW1"), aml.create_dword_field(aml.arg(3), 8, "CDW3"), aml.store(control, asked),
        aml.and_(control, aml.integer(_EXPRESS_CAPABILITY), control),
        aml.or_(status, aml.and_(changed, aml.integer(_MASKED)), status),
        aml.or_(status, aml.and_(foreign, aml.integer(_UNRECOGNIZED)), status), aml.return_(aml.arg(3)), serialized=True)


def _isa() -> Iterator[bytes]:
    """Serial port, clock with CMOS, timer and interrupt controllers."""
    yield _legacy("COM1", "PNP0501", aml.io(_COM1, 8), aml.irq(_COM1_IRQ))
    yield _legacy("RTC", "PNP0B00", aml.io(INDEX, 2), aml.irq(_RTC_IRQ))
    yield _legacy("TIMR", "PNP0100", aml.io(COUNTERS, 4), aml.irq(0))
    yield _legacy("PIC", "PNP0000", aml.io(MASTER, 2), aml.io(SLAVE, 2), aml.io(ELCR, 2), aml.irq(2))
