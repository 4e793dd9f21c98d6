"""I/O APICs, where the core remaps interrupts: their windows are answered here, in the device's place.

An I/O APIC sends messages under the requester id that a DMAR scope gives it.  The guest writes redirection table entries as it would
without a hypervisor, and reads them back so.  The device gets them in remappable format (VT-d 4.1, section 5.1.5.1): the index of an entry
of the unit's interrupt remapping table in the place of destination and delivery mode.  Mask, polarity, trigger mode and vector stay where
they are; the table's entry has the same vector and trigger mode, for the EOI of a level-triggered interrupt is found by its vector.  What
is no harmless interrupt (`irte.entry_for`: NMI, SMI, INIT, ExtINT, a vector below 16) stays in compatibility format, which the unit blocks
with a fault.

I/O APICs are those of the MADT.  One that no unit names by its id is left as it is: its messages pass no unit, or are blocked by one.
"""

from collections.abc import Iterable

from ..errors import BadTable, Unreadable
from ..machine.bus import Bus
from ..machine.memory import PAGE, Memory
from ..spec import acpi
from ..spec.apic import RTE, entry_message
from .dmar import NamedIoApic, target
from .irte import EntryTables, entry_for, remaps
from .mmio import Trap
from .pci import Function

__all__ = ["RedirectionTable", "trap_ioapics"]

_SELECT, _WINDOW, _EOI = 0x00, 0x10, 0x40
_VERSION, _TABLE, _MOST_PINS = 0x01, 0x10, 240
_REPLACED = sum(RTE[name].mask for name in ("DST", "EXTENDED", "DM", "DLM"))
"""Bits of an entry that the device gets other ones for."""
_FORMAT, _INDEX, _INDEX15 = 1 << 48, 49, RTE["DM"].mask
_HALF = 0xFFFF_FFFF


def trap_ioapics(tables: EntryTables, functions: list[Function], named: Iterable[NamedIoApic]) -> list[Trap]:
    """A trap for every I/O APIC of the MADT that a unit names and can remap for; `named` are those of the DMAR."""
    iommu, traps = tables.iommu, []
    for io in _in_madt(iommu.memory):
        name = next((n for n in named if n.scope.enumeration_id == io.id), None)
        unit = next((u for u in iommu.units if name and u.base == name.unit), None)
        source = target(name.scope, functions) if name else None
        pins = _pins(iommu.bus, io.address)
        if unit is None or source is None or not pins or io.address % PAGE or not remaps(iommu, unit):
            continue
        first = tables.take(unit, pins)
        if first is None:
            iommu.console.print(f"(IOMMU) no interrupt entries left for I/O APIC {io.id}")
            continue
        device = RedirectionTable(tables, unit.base, source, io.address, pins, first, iommu.heap.alloc_page())
        device.take_over()
        traps.append(Trap(io.address, io.address + PAGE, device))
    return traps


def _in_madt(memory: Memory) -> list[acpi.IoApic]:
    try:
        table = acpi.table(memory, "APIC")
        return [e for e in acpi.parse_madt(table).entries if isinstance(e, acpi.IoApic)] if table else []
    except (BadTable, Unreadable):
        return []


def _pins(bus: Bus, base: int) -> int:
    """Inputs of the I/O APIC at `base`; 0 where none answers."""
    bus.write(base + _SELECT, 4, _VERSION)
    pins = (bus.read(base + _WINDOW, 4) >> 16 & 0xFF) + 1
    return pins if pins <= _MOST_PINS else 0


class RedirectionTable:
    """The window of the I/O APIC at `base` (host-physical) as the guest sees it; it has `pins` inputs and is requester `source`.

    `unit` is the register base of its unit, `first` that unit's table entry for input 0, `kept` the host-physical page of what the guest
    wrote of each entry where the device has something else.  The device's own selector is the guest's.
    """

    def __init__(self, tables: EntryTables, unit: int, source: int, base: int, pins: int, first: int, kept: int):
        self.tables, self.unit, self.source = tables, next(u for u in tables.iommu.units if u.base == unit), source
        self.base, self.pins, self.first, self.kept = base, pins, first, kept

    def take_over(self) -> None:
        """Entries as firmware left them become the guest's."""
        for pin in range(self.pins):
            entry = self._register(_TABLE + 2 * pin) | self._register(_TABLE + 2 * pin + 1) << 32
            self._put(pin, entry)
        self._bus.write(self.base + _SELECT, 4, 0)

    @property
    def _bus(self) -> Bus:
        return self.tables.iommu.bus

    def _register(self, number: int, value: int | None = None) -> int:
        """Reads the device's register `number`, or writes it; the selector stays there."""
        self._bus.write(self.base + _SELECT, 4, number)
        if value is None:
            return self._bus.read(self.base + _WINDOW, 4)
        self._bus.write(self.base + _WINDOW, 4, value)
        return value

    def _selected(self) -> tuple[int, int]:
        """The guest's selector, and the input whose entry it names; -1 where that is another register."""
        number = self._bus.read(self.base + _SELECT, 4) & 0xFF
        pin = number - _TABLE >> 1
        return number, pin if 0 <= pin < self.pins else -1

    # --- what the guest does

    def mmio_read(self, offset: int, width: int) -> int:
        """A load: an entry as the guest wrote it, with the device's own status bits; all else from the device."""
        value = self._bus.read(self.base + offset, width)
        number, pin = self._selected()
        if offset & 0xFF != _WINDOW or pin < 0:
            return value
        shift = 32 * (number & 1)
        replaced = _REPLACED >> shift & _HALF
        return value & ~replaced | self._kept(pin) >> shift & replaced

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """A store to the selector, an entry or the EOI register.  Others are lost: nobody knows what a device makes of them."""
        at = offset & 0xFF
        if at == _WINDOW and width == 4:
            number, pin = self._selected()
            if pin < 0:
                self._bus.write(self.base + _WINDOW, 4, value)
            else:
                shift = 32 * (number & 1)
                self._put(pin, self._entry(pin) & ~(_HALF << shift) | value << shift)
                self._bus.write(self.base + _SELECT, 4, number)
        elif at in (_SELECT, _EOI):
            self._bus.write(self.base + at, 4, value & _HALF)

    # --- entries

    def _kept(self, pin: int) -> int:
        return self.tables.iommu.memory.read64(self.kept + 8 * pin)

    def _entry(self, pin: int) -> int:
        """An entry as the guest sees it."""
        device = self._register(_TABLE + 2 * pin) | self._register(_TABLE + 2 * pin + 1) << 32
        return device & ~_REPLACED | self._kept(pin)

    def _put(self, pin: int, entry: int) -> None:
        """An entry of the guest's: the unit's table first, then the device, which is masked while its two halves do not belong together."""
        self.tables.iommu.memory.write64(self.kept + 8 * pin, entry & _REPLACED)
        index = self.first + pin
        wanted = entry_for(*entry_message(entry), self.source)
        self.tables.put(self.unit, index, wanted)
        real = _remappable(entry, index) if wanted[0] else entry & ~_FORMAT
        low, high = _TABLE + 2 * pin, _TABLE + 2 * pin + 1
        if self._register(high) != real >> 32:
            self._register(low, real & _HALF | RTE["MASK"].mask)
            self._register(high, real >> 32)
        self._register(low, real & _HALF)


def _remappable(entry: int, index: int) -> int:
    """An entry in remappable format for table entry `index`; delivery mode 0 keeps the subhandle out of its messages."""
    return entry & ~_REPLACED | (index & 0x7FFF) << _INDEX | _FORMAT | (_INDEX15 if index >> 15 else 0)
