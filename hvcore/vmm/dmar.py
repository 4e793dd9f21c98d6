"""The firmware's DMAR table as the core reads it.

BitVisor takes DRHDs in order until something else comes, and of each scope the first hop only.  The mended profile reads the whole
table and follows scopes through bridges.  Both zap the signature, so that the guest does not find the table.
"""

import struct
from dataclasses import dataclass

from ..errors import BadTable, Unreadable
from ..machine.memory import Memory
from ..spec import acpi, dmar
from ..spec.dmar import Scope, ScopeType
from ..spec.pci import bdf
from .pci import Function
from .platform import Console

__all__ = ["NamedIoApic", "Unit", "find_dmar", "matched_unit", "named_ioapics", "parse_by_the_book", "parse_dmar_bios_report", "target",
           "zap"]

_DRHD, _FIRST_STRUCTURE, _HOST_ADDRESS_WIDTH = 0, 48, 36


@dataclass(frozen=True)
class Unit:
    """A DRHD as the core keeps it: register base (host-physical), segment, INCLUDE_PCI_ALL, and the functions it is looked up by
    (requester ids)."""

    base: int
    segment: int
    include_pci_all: bool
    devices: frozenset[int]


@dataclass(frozen=True)
class NamedIoApic:
    """An I/O APIC's scope, of the unit whose registers are at `unit` (host-physical)."""

    unit: int
    scope: Scope


def find_dmar(memory: Memory) -> int | None:
    """Where firmware left the DMAR table (host-physical); None where there is none to be found."""
    try:
        return next((t.address for t in acpi.tables(memory) if t.signature == "DMAR"), None)
    except (BadTable, Unreadable):
        return None


def zap(memory: Memory, address: int, count: int) -> None:
    """Clears the first `count` bytes of a table's signature."""
    memory.write(address, bytes(count))


def matched_unit(units: list[Unit], source: int) -> Unit | None:
    """The unit that names a function, else the INCLUDE_PCI_ALL one, else None."""
    named = next((u for u in units if not u.include_pci_all and source in u.devices), None)
    return named or next((u for u in units if u.include_pci_all), None)


# --- as BitVisor reads it

def parse_dmar_bios_report(memory: Memory, address: int, console: Console) -> list[Unit]:
    """The units of the table at `address`, in its order.  The first structure that is no DRHD, or is broken, ends the list."""
    units: list[Unit] = []
    data = memory.read(address, min(memory.read32(address + 4), acpi.LONGEST))
    if len(data) < _FIRST_STRUCTURE or not data[_HOST_ADDRESS_WIDTH]:
        console.print("(DMAR) Invalid DMAR haw")
        return units
    at = _FIRST_STRUCTURE
    while at + 4 <= len(data):
        kind, size = struct.unpack_from("<HH", data, at)
        unit = _drhd(data[at:at + size], units, console) if kind == _DRHD and 16 <= size <= len(data) - at else None
        if unit is None:
            break
        units.append(unit)
        at += size
    return units


def _drhd(body: bytes, units: list[Unit], console: Console) -> Unit | None:
    flags, _, segment, base = struct.unpack_from("<BBHQ", body, 4)
    if flags & 1:
        if any(u.include_pci_all for u in units):
            console.print("(DMAR) There should be only one INCLUDE_PCI_ALL DRHD!!")
            return None
        return Unit(base, segment, True, frozenset())
    devices = _first_hops(body[16:], console)
    return None if devices is None else Unit(base, segment, False, devices)


def _first_hops(body: bytes, console: Console) -> frozenset[int] | None:
    """Start bus and first path element of every endpoint and bridge scope; None where a scope is broken."""
    devices, at = set(), 0
    while at < len(body):
        kind, length = body[at], body[at + 1] if at + 1 < len(body) else 0
        if length < 8 or at + length > len(body):
            console.print("(DMAR) Device scope length mismatch.")
            return None
        if kind > ScopeType.HPET:
            console.print("(DMAR) Unknown device type.")
            return None
        if kind in (ScopeType.ENDPOINT, ScopeType.BRIDGE):
            devices.add(bdf(body[at + 5], body[at + 6] & 31, body[at + 7] & 7))
        at += length
    return frozenset(devices)


# --- as it should be read

def parse_by_the_book(memory: Memory, address: int, functions: list[Function], console: Console) -> list[Unit]:
    """Every DRHD of the table, with all functions of segment 0 its scopes cover: the named ones (an IOAPIC's function, too) and those
    behind named bridges.  A unit of another segment covers none of them, and the console says what that means."""
    try:
        table = dmar.parse(memory.read(address, min(memory.read32(address + 4), acpi.LONGEST)))
    except (BadTable, Unreadable) as e:
        console.print(f"(DMAR) {e}")
        return []
    for d in table.drhds:
        if d.segment:
            console.print(f"(DMAR) PCI segment {d.segment} is not looked at: DMA that the unit at {d.base:#x} sees is blocked")
    return [Unit(d.base, d.segment, d.include_all and not d.segment,
                 frozenset(s for scope in d.scopes if not d.segment for s in _covered(scope, functions))) for d in table.drhds]


def _covered(scope: Scope, functions: list[Function]) -> list[int]:
    """The functions that one scope covers: what its path leads to, and all behind it where that is a bridge and the scope says so."""
    at = target(scope, functions)
    bridges = {f.source: f for f in functions if f.bridge}
    below = bridges.get(at) if at is not None and scope.type == ScopeType.BRIDGE else None
    return [f.source for f in functions if f.source == at or below and below.secondary <= f.source >> 8 <= below.subordinate]


def target(scope: Scope, functions: list[Function]) -> int | None:
    """The requester id that a scope's path leads to, bridge by bridge, by their secondary bus numbers.

    None where a step of the path is no function (a device above 31, a function above 7) or leads through a bridge that is not there.
    """
    if not scope.path or any(device > 31 or function > 7 for device, function in scope.path):
        return None
    bridges = {f.source: f for f in functions if f.bridge}
    bus = scope.start_bus
    for device, function in scope.path[:-1]:
        hop = bridges.get(bdf(bus, device, function))
        if hop is None:
            return None
        bus = hop.secondary
    return bdf(bus, *scope.path[-1])


def named_ioapics(memory: Memory, address: int) -> tuple[NamedIoApic, ...]:
    """The I/O APICs that scopes of the table at `address` name, in its order; none where it cannot be read."""
    try:
        table = dmar.parse(memory.read(address, min(memory.read32(address + 4), acpi.LONGEST)))
    except (BadTable, Unreadable):
        return ()
    return tuple(NamedIoApic(d.base, scope) for d in table.drhds for scope in d.scopes if scope.type == ScopeType.IOAPIC)
