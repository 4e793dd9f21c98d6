"""MSI, where the core remaps interrupts: the capability's registers in configuration space are answered here, in the function's place.

The guest writes address and data as it would without a hypervisor, and reads them back.  The function gets the remappable format with a
subhandle (VT-d 4.1, section 5.1.2.2), and the unit's table an entry for each vector that the guest has enabled, as far as what it wants is
harmless (`irte.entry_for`).  Everything else of configuration space is the function's own.

Both ways to configuration space come here: the page of a function in a configuration window is trapped, and mechanism 1 exits at its data
ports.  The selector of mechanism 1 stays in the root complex.  A guest that gives buses other numbers gets past this, to no avail: its
messages are blocked, or lead to entries of the same requester.  With two guests functions are left as they are, and their MSI is blocked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..machine.bus import Bus
from ..machine.memory import PAGE, Memory
from ..spec.bits import mask
from ..spec.interrupts import REMAPPABLE_ADDRESS
from ..spec.pci import format_bdf
from ..spec.svm import INTERCEPTS_1, ControlArea, ExitCode, SaveArea, io_access
from .dmar import Unit, matched_unit
from .exits import Exits
from .heap import Heap
from .irte import EntryTables, entry_for, remaps
from .layout import Data, Part
from .mmio import Trap
from .pci import Function, capability, requesters
from .platform import Platform, config_read
from .tiny.functions import config_pages, config_write
from .vmcb import Vmcb

__all__ = ["ConfigPorts", "MsiCapability", "MsiExits", "guard_ports", "find_msi", "trap_msi"]

_MSI = 0x05
_CONTROL, _ADDRESS, _WIDE = 2, 4, 1 << 7
_CAPABLE, _ENABLED, _MOST = 1, 4, 5
"""Bits of the control word where the logarithms of the vectors' number lie, 3 each: those that there are, those that are used."""
_CONFIG_ADDRESS, _CONFIG_DATA, _ENABLE = 0xCF8, 0xCFC, 1 << 31
_IOPM_PAGES = 3


class ConfigSpace(Protocol):
    """One way to the configuration space of one function."""

    def read(self, offset: int, width: int) -> int: ...
    def write(self, offset: int, width: int, value: int) -> None: ...


@dataclass(frozen=True)
class ConfigPorts:
    """Mechanism 1.  The selector is afterwards what it was."""

    bus: Bus
    source: int

    def read(self, offset: int, width: int) -> int:
        """A read."""
        selected = self.bus.port_read(_CONFIG_ADDRESS, 4)
        value = config_read(self.bus, self.source, offset, width)
        self.bus.port_write(_CONFIG_ADDRESS, 4, selected)
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        """A write."""
        selected = self.bus.port_read(_CONFIG_ADDRESS, 4)
        config_write(self.bus, self.source, offset, width, value)
        self.bus.port_write(_CONFIG_ADDRESS, 4, selected)


@dataclass(frozen=True)
class ConfigPage:
    """The function's page of a configuration window, at host-physical `page`."""

    bus: Bus
    page: int

    def read(self, offset: int, width: int) -> int:
        """A read."""
        return self.bus.read(self.page + offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """A write."""
        self.bus.write(self.page + offset, width, value)


def find_msi(tables: EntryTables, functions: Sequence[Function]) -> list["MsiCapability"]:
    """The MSI capabilities of all functions whose unit can remap, each with entries of that unit's table; their functions have the
    registers rewritten."""
    iommu, found = tables.iommu, []
    seen = requesters(iommu.bus, list(functions))
    for function in functions:
        requester = seen.get(function.source, function.source)
        unit = matched_unit(iommu.units, requester)
        at = capability(iommu.bus, function.source, _MSI) if unit and remaps(iommu, unit) else None
        if unit is None or at is None:
            continue
        control = config_read(iommu.bus, function.source, at + _CONTROL, 2)
        vectors = 1 << min(control >> _CAPABLE & 7, _MOST)
        first = tables.take(unit, vectors)
        if first is None:
            iommu.console.print(f"(IOMMU) no interrupt entries left for {format_bdf(function.source)}")
            continue
        kept = iommu.heap.alloc_page()
        found.append(MsiCapability(tables, unit, function.source, requester, at, bool(control & _WIDE), vectors, first, kept))
        found[-1].take_over()
    return found


def trap_msi(tables: EntryTables, found: Sequence["MsiCapability"]) -> list[Trap]:
    """A trap for the pages of the configuration windows in which these functions are."""
    memory, bus = tables.iommu.memory, tables.iommu.bus
    return [Trap(page, page + PAGE, _TrappedPage(capability, ConfigPage(bus, page)))
            for capability in found for page in config_pages(memory, [capability.function])]


class MsiCapability:
    """The MSI capability at offset `at` of `function`, which is `source` at its `unit`; `wide`: with addresses of 64 bits.

    It has up to `vectors` vectors, whose table entries are those from `first` on.  `kept` is the host-physical place of what the guest
    wrote: its address, 8 bytes, and its data, 2.
    """

    def __init__(self, tables: EntryTables, unit: Unit, function: int, source: int, at: int, wide: bool, vectors: int, first: int,
                 kept: int):
        self.tables, self.unit, self.function, self.source = tables, unit, function, source
        self.at, self.wide, self.vectors, self.first, self.kept = at, wide, vectors, first, kept

    @property
    def _memory(self) -> Memory:
        return self.tables.iommu.memory

    def take_over(self) -> None:
        """What firmware left becomes the guest's."""
        space = ConfigPorts(self.tables.iommu.bus, self.function)
        for i in range(8 if self.wide else 4):
            self._memory.write(self.kept + i, bytes([space.read(self.at + _ADDRESS + i, 1)]))
        for i in range(2):
            self._memory.write(self.kept + 8 + i, bytes([space.read(self._data + i, 1)]))
        self._tell(space, space.read(self.at + _CONTROL, 2))

    @property
    def _data(self) -> int:
        return self.at + (12 if self.wide else 8)

    def _place(self, offset: int) -> int | None:
        """Where the byte at an offset in configuration space is kept; None where it is the function's own."""
        if self.at + _ADDRESS <= offset < self.at + (12 if self.wide else 8):
            return self.kept + offset - self.at - _ADDRESS
        return self.kept + 8 + offset - self._data if self._data <= offset < self._data + 2 else None

    def read(self, space: ConfigSpace, offset: int, width: int) -> int:
        """A read by the guest."""
        value = space.read(offset, width)
        for i in range(width):
            place = self._place(offset + i)
            if place is not None:
                value = value & ~(0xFF << 8 * i) | self._memory.read(place, 1)[0] << 8 * i
        return value

    def write(self, space: ConfigSpace, offset: int, width: int, value: int) -> None:
        """A write by the guest.  Entries are as it wants them before the function has more vectors."""
        places = [self._place(offset + i) for i in range(width)]
        control = space.read(self.at + _CONTROL, 2)
        for i, place in enumerate(places):
            byte, which = value >> 8 * i & 0xFF, offset + i - self.at - _CONTROL
            if place is not None:
                self._memory.write(place, bytes([byte & ~3 if place == self.kept else byte]))
            elif which in (0, 1):
                control = control & ~(0xFF << 8 * which) | byte << 8 * which
        if self.at + _CONTROL < offset + width and offset < self._data + 2:
            self._tell(space, control)
        if not any(places):
            space.write(offset, width, value)
            return
        for i, place in enumerate(places):
            if place is None:
                space.write(offset + i, 1, value >> 8 * i & 0xFF)

    def _tell(self, space: ConfigSpace, control: int) -> None:
        """The unit's table gets an entry for each vector in use, the function the handle of the first; its vectors are subhandles."""
        address, data = self._memory.read64(self.kept), int.from_bytes(self._memory.read(self.kept + 8, 2), "little")
        used = min(1 << (control >> _ENABLED & 7), self.vectors)
        for n in range(self.vectors):
            low, high = entry_for(address, data & ~(used - 1) | n, self.source)
            self.tables.put(self.unit, self.first + n, (low if n < used else 0, high))
        real = REMAPPABLE_ADDRESS.make(HEAD=0xFEE, HANDLE=self.first & mask(14), HANDLE15=self.first >> 15, FORMAT=1, SHV=1)
        for offset, width, value in ((self.at + 4, 4, real), (self.at + 8, 4, 0), (self._data, 2, 0)):
            if self.wide or offset != self.at + 8 or width == 2:
                space.write(offset, width, value)


@dataclass(frozen=True)
class _TrappedPage:
    """A function's page of a configuration window, for the guest's processor."""

    capability: MsiCapability
    space: ConfigPage

    def mmio_read(self, offset: int, width: int) -> int:
        """A load."""
        return self.capability.read(self.space, offset, width)

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """A store."""
        self.capability.write(self.space, offset, width, value)


# --- mechanism 1

class MsiExits(Exits):
    """The policy of a guest whose functions have the `capabilities`: beside all else, it stands at the data ports of mechanism 1."""

    def __init__(self, platform: Platform, base: int, traps: Sequence[Trap], pollers: Sequence[Callable[[], None]],
                 capabilities: Sequence[MsiCapability]):
        super().__init__(platform, base, traps, pollers)
        self.capabilities = {c.function: c for c in capabilities}
        self.handlers[int(ExitCode.IOIO)] = self.io

    def io(self, vmcb: Vmcb) -> None:
        """To the configuration space of one of these functions; everything else goes to the ports."""
        port, width, read = io_access(vmcb.get(ControlArea.EXITINFO1))
        bus, inside = self.platform.bus, min(width, _CONFIG_DATA + 4 - port)
        selected = bus.port_read(_CONFIG_ADDRESS, 4)
        found = self.capabilities.get(selected >> 8 & 0xFFFF) if selected & _ENABLE and inside > 0 and port >= _CONFIG_DATA else None
        offset, value = (selected & 0xFC) + port - _CONFIG_DATA, vmcb.get(SaveArea.RAX) & mask(8 * width - 1)
        if found is None:
            vmcb.set(SaveArea.RAX, bus.port_read(port, width)) if read else bus.port_write(port, width, value)
            return
        space = ConfigPorts(bus, found.function)
        if read:
            vmcb.set(SaveArea.RAX, found.read(space, offset, inside) | -1 << 8 * inside)
        else:
            found.write(space, offset, inside, value & mask(8 * inside - 1))


def guard_ports(memory: Memory, heap: Heap, base: int) -> None:
    """Lets the guest whose block is at `base` exit at the data ports of mechanism 1."""
    pages = heap.alloc_pages(_IOPM_PAGES)
    iopm = int(pages[0])
    bits = bytearray(_IOPM_PAGES * PAGE)
    for port in range(_CONFIG_DATA, _CONFIG_DATA + 4):
        bits[port // 8] |= 1 << port % 8
    memory.write(iopm, bytes(bits))
    vmcb = memory.read64(base + Part.DATA + Data.VMCB)
    memory.write64(vmcb + ControlArea.IOPM, iopm)
    asked = memory.read32(vmcb + ControlArea.INTERCEPTS_1)
    memory.write32(vmcb + ControlArea.INTERCEPTS_1, asked | INTERCEPTS_1[ExitCode.IOIO])
