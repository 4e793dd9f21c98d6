"""What firmware leaves in memory before anything boots: BIOS data area, E820 map, RSDP and ACPI tables.

    0x00400  BIOS data area (256 bytes)
    EBDA     extended BIOS data area, its first KiB, where the map leaves room below 0xA0000
    0xF0000  E820 map: signature "E820", u32 number of entries, then 20 bytes each (base u64, length u64, type u32)
    0xF8000  RSDP
    the machine's acpi_address and up, each at a multiple of 16: XSDT, FADT, MADT, MCFG, DMAR, DSDT, FACS (of 64)

INT 15h needs real-mode code, which this PC has not: software reads the map where it lies.  All addresses are host-physical.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from ..errors import BadMachine, BadTable
from ..spec import acpi, e820, fadt
from ..spec.bits import align_up
from ..spec.e820 import E820Entry
from .cmos import CENTURY
from .description import MachineDescription
from .dsdt import build_dsdt
from .memory import Memory
from .pcifunction import PciFunction
from .pm1 import CONTROL, EVENT, SCI
from .pmtimer import PORT
from .reset import RESET_CONTROL, RESET_VALUE

__all__ = ["BDA_ADDRESS", "E820_ADDRESS", "IOAPIC_ADDRESS", "RSDP_ADDRESS", "Layout", "Region", "lay", "read_e820"]

BDA_ADDRESS = 0x400
E820_ADDRESS = 0xF0000
RSDP_ADDRESS = 0xF8000
IOAPIC_ADDRESS = 0xFEC00000

_LOW_END = 0xA0000
_KIB = 1024
_E820_HEAD = struct.Struct("<4sI")
_E820_ROOM = (RSDP_ADDRESS - E820_ADDRESS - _E820_HEAD.size) // e820.ENTRY_SIZE


@dataclass(frozen=True, slots=True)
class Region:
    """What firmware put in the half-open host-physical range [start, end)."""

    name: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"[{self.start:#x}, {self.end:#x}) {self.name}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that firmware laid, by address.  ACPI tables go by their signature (the MADT's is `APIC`)."""

    regions: tuple[Region, ...]

    def address(self, name: str) -> int | None:
        """Where the region `name` starts; None where there is none."""
        return next((r.start for r in self.regions if r.name == name), None)

    def __str__(self) -> str:
        return "\n".join(str(r) for r in self.regions)


def lay(memory: Memory, machine: MachineDescription, functions: Iterable[PciFunction] = (), ioapic: int = 0) -> Layout:
    """Writes what firmware leaves into `memory`.  The machine's DMAR goes in byte for byte, whether it parses or not.

    `functions` are the PCI functions, placed, that the DSDT tells the way to; `ioapic` is the number of the I/O APIC.

    Raises `BadMachine`, with nothing written, where a piece would not lie in RAM or would lie on another.
    """
    if not memory.backed(machine.acpi_address):
        raise BadMachine(f"{machine.name}: acpi_address {machine.acpi_address:#x} is not RAM: put it into one of the RAM ranges")
    pieces = sorted([*_legacy(machine), *_tables(machine, functions, ioapic)])
    for start, name, data in pieces:
        if not memory.backed(start, len(data)):
            raise BadMachine(f"{machine.name}: firmware's {name} ({len(data)} bytes at {start:#x}) would not lie in RAM: "
                             "lower acpi_address or give more RAM there")
    for (start, name, data), (other_start, other, _) in pairwise(pieces):
        if start + len(data) > other_start:
            raise BadMachine(f"{machine.name}: firmware's {name} at {start:#x} runs into its {other} at {other_start:#x}: "
                             f"move acpi_address ({machine.acpi_address:#x})")
    for start, _, data in pieces:
        memory.write(start, data)
    return Layout(tuple(Region(name, start, start + len(data)) for start, name, data in pieces))


_Piece = tuple[int, str, bytes]


def _legacy(machine: MachineDescription) -> list[_Piece]:
    """What lies below 1 MiB whatever the machine."""
    base_kib, ebda = _low_memory(machine.e820)
    pieces = [(BDA_ADDRESS, "BDA", _bda(base_kib, ebda)), (E820_ADDRESS, "E820", _pack_e820(machine)),
              (RSDP_ADDRESS, "RSDP", acpi.build_rsdp(acpi.Rsdp(_xsdt_address(machine))))]
    if ebda is not None:
        pieces.append((ebda, "EBDA", bytes([(_LOW_END - ebda) // _KIB]) + bytes(_KIB - 1)))
    return pieces


def _low_memory(entries: tuple[E820Entry, ...]) -> tuple[int, int | None]:
    """KiB of base memory, and the address of the EBDA where the map leaves one whole KiB or more unusable below 0xA0000."""
    end = max((e.end for e in entries if e.usable and e.start < _LOW_END), default=0)
    ebda = align_up(end, _KIB)
    room = 0x80000 <= ebda < _LOW_END
    return min(end, _LOW_END) // _KIB, ebda if room else None


def _bda(base_kib: int, ebda: int | None) -> bytes:
    """The BIOS data area: COM1's port, the EBDA's segment, one serial port among the equipment, KiB of base memory."""
    data = bytearray(256)
    struct.pack_into("<H", data, 0x00, 0x3F8)
    struct.pack_into("<H", data, acpi.EBDA_POINTER - BDA_ADDRESS, (ebda or 0) >> 4)
    struct.pack_into("<H", data, 0x10, 1 << 9)
    struct.pack_into("<H", data, 0x13, base_kib)
    return bytes(data)


def _pack_e820(machine: MachineDescription) -> bytes:
    if len(machine.e820) > _E820_ROOM:
        raise BadMachine(f"{machine.name}: {len(machine.e820)} E820 entries, firmware has room for {_E820_ROOM}: merge some")
    return _E820_HEAD.pack(b"E820", len(machine.e820)) + e820.pack(machine.e820)


def read_e820(reader: acpi.Reader) -> tuple[E820Entry, ...]:
    """The firmware's map, in its order, as it lies in memory.

    Raises `BadTable` where it is not there (overwritten, or never laid), `Unreadable` where there is no memory.
    """
    signature, count = _E820_HEAD.unpack(reader.read(E820_ADDRESS, _E820_HEAD.size))
    if signature != b"E820" or count > _E820_ROOM:
        raise BadTable(f"E820: no map at {E820_ADDRESS:#x}, the bytes there are {signature!r} and {count} entries")
    return e820.unpack(reader.read(E820_ADDRESS + _E820_HEAD.size, count * e820.ENTRY_SIZE))


def _xsdt_address(machine: MachineDescription) -> int:
    return align_up(machine.acpi_address, 16)


def _tables(machine: MachineDescription, functions: Iterable[PciFunction], ioapic: int) -> list[_Piece]:
    """The ACPI tables: XSDT first, behind those that it names the two that the FADT names."""
    found = [("FACP", _fadt(0, 0)), ("APIC", acpi.build_madt(_madt(ioapic)))]
    if windows := tuple(acpi.McfgWindow(e.base - (e.first << 20), e.first, e.last, e.segment) for e in machine.ecams):
        found.append(("MCFG", acpi.build_mcfg(acpi.Mcfg(windows))))
    if machine.dmar:
        found.append(("DMAR", machine.dmar))
    at = _xsdt_address(machine)
    pieces = _row(at + len(acpi.build_xsdt([0] * len(found))), [*found, ("DSDT", build_dsdt(machine, functions))])
    end = pieces[-1][0] + len(pieces[-1][2])
    facs = align_up(end, fadt.FACS_ALIGN)
    pieces[0] = (pieces[0][0], "FACP", _fadt(facs, pieces[-1][0]))
    named = [start for start, _, _ in pieces[:-1]]
    return [(at, "XSDT", acpi.build_xsdt(named)), *pieces, (facs, "FACS", fadt.build_facs())]


def _row(at: int, tables: list[tuple[str, bytes]]) -> list[_Piece]:
    """Tables one after another from `at` on, each at a multiple of 16."""
    pieces: list[_Piece] = []
    for name, data in tables:
        pieces.append((align_up(at, 16), name, data))
        at = align_up(at, 16) + len(data)
    return pieces


def _fadt(facs: int, dsdt: int) -> bytes:
    """A PC with serial port, timers and clock, but no keyboard controller and no VGA; the fixed hardware has no buttons."""
    flags = fadt.FadtFlag
    return fadt.build_fadt(fadt.Fadt(
        facs, dsdt, SCI, EVENT, CONTROL, PORT, RESET_CONTROL, RESET_VALUE,
        flags.WBINVD | flags.PROC_C1 | flags.PWR_BUTTON | flags.SLP_BUTTON | flags.FIX_RTC | flags.RESET_REG_SUP,
        fadt.BootFlag.LEGACY_DEVICES | fadt.BootFlag.VGA_NOT_PRESENT, CENTURY))


def _madt(ioapic: int) -> acpi.Madt:
    """One processor, one I/O APIC, the timer on input 2, ACPI's interrupt level-triggered, NMI on LINT1."""
    level = acpi.Trigger.LEVEL << 2 | acpi.Polarity.HIGH
    return acpi.Madt((acpi.LocalApic(0, 0), acpi.IoApic(ioapic, IOAPIC_ADDRESS), acpi.InterruptOverride(0, 2),
                      acpi.InterruptOverride(SCI, SCI, level), acpi.LocalApicNmi(0xFF, 0, 1)))
