"""DMAR_PASS_THROUGH: the guest drives the remapping units itself, and the core looks on.

The guest finds a rewritten DMAR: a copy of firmware's in pages that the core takes from the end of the guest's memory, right below its own
region (the guest's E820 ends before them, as it does with BitVisor), to which the XSDT, or the RSDT, now points; the old one loses its
signature.  DMA_CTRL_PLATFORM_OPT_IN is cleared, and one RMRR is added, which asks for the core's region to be mapped for every function
of a root bus (a bus behind no bridge): an endpoint scope for an endpoint, a bridge scope, which means all behind it, for a bridge.  More
than one step of a path is never needed.  Functions of other PCI segments are left out.

Accesses to a unit's registers arrive here and go on to the unit.  Reads of CAP and ECAP lack what the core cannot follow (first-level
paging, scalable mode, PASID, device-TLBs); everything else is the unit's own answer.  What the core must know it looks up when it can:
the root table when SRTP latches it, the tables when TE is set, at SRTP while it is, and before every invalidation.  Translation by an
extended root table is a panic, as with BitVisor.

Where a device's tables map nothing of the core's region the guest ignored the RMRR, and the core writes the mapping into the guest's own
tables: entries of its own second-level tables, which map its region to itself, wherever the guest's path ends in an absent entry.
BitVisor does the same for a device when a driver of its own needs it; here it is done for all.  A region that is mapped in part is left as
the guest made it.  The guest's tables can hold anything: only RAM outside the core's region is written to, and only absent entries; tables
elsewhere are left alone, and a walk is as deep as the context says, so no loop can hold it.  The core's own tables are built once: a guest
that makes ever new tables takes no memory of the core's.

What follows from the policy, by design:
- The core's memory is within reach of every device, so that drivers of the core can work.  Nothing here keeps a device of the guest out.
- Until the guest sets TE, and again after it clears it, nothing at all is protected.
- A table entry that the core wrote names a page of the core's.  The guest's CPU sees that page blank and its stores there are lost, so a
  guest that ignored the RMRR and later maps something beside the core's region in the same table maps it in vain.
- In caching mode (CAP.CM) a mapping that the core adds behind an entry a unit remembers as absent counts from the next invalidation on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import BadTable, Unreadable
from ..machine.bus import Bus
from ..machine.memory import PAGE, Memory
from ..spec import acpi, dmar, vtd
from ..spec.bits import align_down, align_up, mask
from ..spec.dmar import Dmar, DmarFlag, Rmrr, Scope, ScopeType
from ..spec.e820 import E820Entry
from ..spec.pci import format_bdf
from .heap import Heap, Panic
from .mmio import Trap
from .pci import Function, find_devices, with_aliases
from .platform import Console

__all__ = ["CAP_HIDDEN", "ECAP_HIDDEN", "OwnTables", "Passed", "WatchedUnit", "install", "rewritten", "watch"]

CAP_HIDDEN, ECAP_HIDDEN = 0x3700_0040_0080_E000, 0xFFFF_FFFF_FF0C_0024
"""Bits of CAP and ECAP that the guest does not see."""
_HIDDEN = CAP_HIDDEN << 64 | ECAP_HIDDEN << 128
"""The same as bits of the register page, counted from its first byte."""
_CAP, _ECAP, _GCMD, _GSTS, _RTADDR, _CCMD, _IQT = 0x08, 0x10, 0x18, 0x1C, 0x20, 0x28, 0x88
_TE, _SRTP, _TES = vtd.GCMD["TE"].mask, vtd.GCMD["SRTP"].mask, vtd.GSTS["TES"].mask
_EXTENDED = 1 << 11
_RW = vtd.R | vtd.W
_SPARE_PAGES = 2
"""Pages that the table gets beyond its old size, for the RMRR."""
_TOP = 6
"""The most levels that a context can ask for."""


@dataclass(frozen=True)
class Passed:
    """The table that the guest finds: where it lies, the units it names (register base and segment), and the requester ids of the
    functions that the core knows, aliases included."""

    address: int
    units: tuple[tuple[int, int], ...]
    sources: tuple[int, ...]


# --- the table

def install(memory: Memory, bus: Bus, address: int, e820: tuple[E820Entry, ...], region: tuple[int, int],
            console: Console) -> Passed | None:
    """Lays the rewritten copy of the table at `address` below the core's half-open `region` and lets the XSDT point to it.

    None, and a line on the console, where firmware's table cannot be read.  Panics where the guest's memory has no room for the copy.
    """
    try:
        data = memory.read(address, min(memory.read32(address + 4), acpi.LONGEST))
        table = dmar.parse(data)
    except (BadTable, Unreadable) as e:
        console.print(f"(DMAR) {e}: there is nothing to pass on")
        return None
    functions = find_devices(bus)
    new = dmar.build(rewritten(table, functions, region))
    size = align_up(len(data), PAGE) + _SPARE_PAGES * PAGE
    place = _place(e820, region[0], size)
    if len(new) > size:
        raise Panic("dmar_add_pci_device: No space left")
    memory.write(place, new.ljust(size, b"\0"))
    console.print(f"Installing a modified DMAR table at 0x{place:x}.")
    _point_to(memory, address, place)
    return Passed(place, tuple({d.base: (d.base, d.segment) for d in table.drhds}.values()),
                  tuple(f.source for f in with_aliases(bus, functions)))


def rewritten(table: Dmar, functions: list[Function], region: tuple[int, int]) -> Dmar:
    """The table with an RMRR for the half-open host-physical `region` behind its own, and without DMA_CTRL_PLATFORM_OPT_IN."""
    behind = {f.secondary for f in functions if f.secondary > f.source >> 8}
    scopes = tuple(Scope(ScopeType.BRIDGE if f.bridge else ScopeType.ENDPOINT, 0, f.source >> 8, ((f.source >> 3 & 31, f.source & 7),))
                   for f in sorted(functions, key=lambda f: f.source) if f.source >> 8 not in behind)
    before = next((i for i, s in enumerate(table.structures) if dmar.type_of(s) > 1), len(table.structures))
    added = (Rmrr(0, region[0], region[1] - 1, scopes),) if scopes else ()
    return replace(table, flags=table.flags & ~DmarFlag.DMA_CTRL_PLATFORM_OPT_IN,
                   structures=(*table.structures[:before], *added, *table.structures[before:]))


def _place(e820: tuple[E820Entry, ...], base: int, size: int) -> int:
    """The last `size` bytes before the core in the available entry that holds it."""
    holder = next(e for e in e820 if e.usable and e.start <= base < e.end)
    if base - size <= holder.start:
        raise Panic("alloc_acpi_pages: alloc_uppermem failed")
    return base - size


def _point_to(memory: Memory, old: int, new: int) -> None:
    """The table of tables names `new` where it named `old`."""
    root = acpi.tables(memory)[0]
    data = bytearray(memory.read(root.address, root.length or 0))
    width = 4 if root.signature == "RSDT" else 8
    for at in range(acpi.HEADER_SIZE, len(data) - width + 1, width):
        if int.from_bytes(data[at:at + width], "little") == old:
            data[at:at + width] = new.to_bytes(width, "little")
    data[9] = data[9] + acpi.checksum(bytes(data)) & 0xFF
    memory.write(root.address, bytes(data))


# --- the core's region as second-level tables

class OwnTables:
    """Second-level tables in pages of the heap that map the core's half-open `region` to itself, read and write, and nothing else.

    `top` is the table of level 6 (host-physical).  2 MiB leaves with `superpages`.
    """

    def __init__(self, memory: Memory, heap: Heap, region: tuple[int, int], superpages: bool):
        self.memory, self.heap, self.region, self.superpages = memory, heap, region, superpages
        self.top = self._table(_TOP, region[0])

    def _table(self, level: int, start: int) -> int:
        """A table of `level` for what it reaches of the region from `start` on."""
        table = self.heap.alloc_page()
        for index, address in spans(self.region, level, start):
            self.memory.write64(table + 8 * index, self._made(level, address))
        return table

    def _made(self, level: int, address: int) -> int:
        if level == 1 or level == 2 and self.superpages:
            return address | _RW | (vtd.SP if level == 2 else 0)
        return self._table(level - 1, address) | _RW

    def entry(self, level: int, address: int) -> int:
        """The entry for an address of the region in a table of `level`, 2 or above."""
        table = self.top
        for depth in range(_TOP, level, -1):
            table = self.memory.read64(table + 8 * vtd.level_index(address, depth)) & vtd.ADDRESS
        return self.memory.read64(table + 8 * vtd.level_index(address, level))


def spans(region: tuple[int, int], level: int, start: int) -> Iterator[tuple[int, int]]:
    """The entries of one table of `level`, the one that reaches `start`, which concern the region from there on: index, first address."""
    step, address = 1 << vtd.level_shift(level), start
    last = min(region[1], align_down(start, 512 * step) + 512 * step)
    while address < last:
        yield vtd.level_index(address, level), address
        address = align_down(address, step) + step


# --- the units

class WatchedUnit:
    """A unit's register pages as the guest reaches them.

    `root` is RTADDR as SRTP last latched it (None: it did not yet), `sources` are the requester ids whose contexts are looked at.
    """

    def __init__(self, memory: Memory, bus: Bus, base: int, own: OwnTables, sources: tuple[int, ...], console: Console):
        self.memory, self.bus, self.base, self.own, self.sources, self.console = memory, bus, base, own, sources, console
        self.root: int | None = None
        iotlb = vtd.iotlb_offset(bus.read(base + _ECAP, 8)) + 8
        self._asking = {_CCMD + 4: 1 << 31, iotlb + 4: 1 << 31, _IQT: 0}
        """Words that start an invalidation, and the bit which must be set in them."""

    def mmio_read(self, offset: int, width: int) -> int:
        """The unit's answer, without what is hidden."""
        return self.bus.read(self.base + offset, width) & ~(_HIDDEN >> 8 * offset)

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """Goes on to the unit, after the core has looked at what it is about to begin.  Panics for an extended root table."""
        for at, word in _words(offset, width, value):
            if at == _GCMD:
                self._before_command(word)
            elif at in self._asking and word & self._asking[at] == self._asking[at] and self._translating():
                self.force_map()
        self.bus.write(self.base + offset, width, value)

    def _translating(self) -> bool:
        return bool(self.bus.read(self.base + _GSTS, 4) & _TES)

    def _before_command(self, command: int) -> None:
        if command & _SRTP:
            self.root = self.bus.read(self.base + _RTADDR, 8)
        if command & _TE and self.root is not None:
            if self.root & _EXTENDED:
                raise Panic("do_acpi_dmar_translate: Root Table Type is Extended Root Table!")
            self.force_map()

    def force_map(self) -> None:
        """Looks at the tables of every known function and maps the core's region where nothing of it is mapped."""
        seen: set[tuple[int, int]] = set()
        for source, table, levels in self._tables():
            if (table, levels) in seen or self.own.region[1] > 1 << 12 + vtd.ENTRY_BITS * levels:
                continue
            seen.add((table, levels))
            if not self._mapped(levels, table, self.own.region[0]):
                self._fill(levels, table, self.own.region[0])
                self.console.print(f"acpi_dmar_force_map: force map for {format_bdf(source).upper()}")

    def _tables(self) -> Iterator[tuple[int, int, int]]:
        """Requester id, second-level table and levels of every known function whose context translates."""
        if self.root is None or vtd.RTADDR.get(self.root, "TTM"):
            return
        for source in self.sources:
            entry = self._word((self.root & vtd.ADDRESS) + 16 * (source >> 8))
            context = (entry & vtd.ADDRESS) + 16 * (source & 0xFF)
            low, high = (self._word(context), self._word(context + 8)) if entry & 1 else (0, 0)
            levels = vtd.aw_levels(vtd.CONTEXT_HIGH.get(high, "AW"))
            if low & 1 and vtd.CONTEXT_LOW.get(low, "TT") < vtd.TranslationType.PASS_THROUGH and levels <= _TOP:
                yield source, low & vtd.ADDRESS, levels

    def _not_the_guests(self, page: int) -> bool:
        """Whether a page is no RAM of the guest's."""
        return self.own.region[0] <= page < self.own.region[1] or not self.memory.backed(page, PAGE)

    def _word(self, address: int) -> int:
        """A word of one of the guest's tables; 0 where the guest has no memory."""
        return 0 if self._not_the_guests(align_down(address, PAGE)) else self.memory.read64(address)

    def _mapped(self, level: int, table: int, start: int) -> bool:
        """Whether a table maps any page of the region from `start` on; a table that is not the guest's counts as if it did."""
        if self._not_the_guests(table):
            return True
        if level == 1:
            return bool((self._leaves(table, start) & np.uint64(_RW)).any())
        entries = self.memory.u64(table, 512)
        for index, address in spans(self.own.region, level, start):
            entry = int(entries[index])
            if entry & _RW and (_is_leaf(level, entry) or self._mapped(level - 1, entry & vtd.ADDRESS, address)):
                return True
        return False

    def _leaves(self, table: int, start: int) -> NDArray[np.uint64]:
        """The words of a table of level 1 that concern the region from `start` on."""
        count = min(self.own.region[1] - start >> 12, 512 - vtd.level_index(start, 1))
        return self.memory.u64(table + 8 * vtd.level_index(start, 1), count)

    def _fill(self, level: int, table: int, start: int) -> None:
        """Writes the core's own entries into the absent ones of a table of the guest's and of the tables below it."""
        if self._not_the_guests(table):
            return
        if level == 1:
            words = self._leaves(table, start)
            frames = np.arange(len(words), dtype=np.uint64) * np.uint64(PAGE) + np.uint64(start) | np.uint64(_RW)
            self.memory.write(table + 8 * vtd.level_index(start, 1), np.where(words & np.uint64(_RW), words, frames).tobytes())
            return
        for index, address in spans(self.own.region, level, start):
            entry = self.memory.read64(table + 8 * index)
            if not entry & _RW:
                self.memory.write64(table + 8 * index, self.own.entry(level, address))
            elif not _is_leaf(level, entry):
                self._fill(level - 1, entry & vtd.ADDRESS, address)


def _is_leaf(level: int, entry: int) -> bool:
    return level == 1 or level <= 3 and bool(entry & vtd.SP)


def _words(offset: int, width: int, value: int) -> Iterator[tuple[int, int]]:
    """The 32-bit words of a store that a unit takes: offset and value.  Others are lost in the unit."""
    if width in (4, 8) and offset % 4 == 0:
        for i in range(width // 4):
            yield offset + 4 * i, value >> 32 * i & 0xFFFF_FFFF


def watch(memory: Memory, bus: Bus, heap: Heap, passed: Passed, region: tuple[int, int], console: Console) -> list[Trap]:
    """Traps on the register pages of every unit of the table that answers; the core's own tables are built for them.

    Superpages are used where every unit has them.  Of a unit of another segment than 0 only the capabilities are cared for.
    """
    units = [(base, segment) for base, segment in passed.units
             if base % PAGE == 0 and not memory.backed(base) and bus.read(base + _CAP, 8) != mask(63)]
    own = OwnTables(memory, heap, region, all(vtd.CAP.get(bus.read(base + _CAP, 8), "SLLPS") & 1 for base, _ in units))
    watched = [WatchedUnit(memory, bus, base, own, () if segment else passed.sources, console) for base, segment in units]
    return [Trap(u.base, u.base + _register_bytes(bus, u.base), u) for u in watched]


def _register_bytes(bus: Bus, base: int) -> int:
    """Bytes of whole pages that a unit's registers take, by its capability registers."""
    registers = vtd.registers(bus.read(base + _CAP, 8), bus.read(base + _ECAP, 8))
    return align_up(max(r.offset + r.size for r in registers), PAGE)
