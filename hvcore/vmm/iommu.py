"""VTD_TRANS: domain 0 for the devices of the guest, with the core's memory missing.  Steps and names as in BitVisor's source.

The tables are built as if page by page, in the order single allocations would take from the heap; NumPy writes whole tables.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..machine.bus import Bus
from ..machine.memory import PAGE, Memory
from ..spec import vtd
from ..spec.bits import align_down, align_up
from ..spec.interrupts import table_entries
from ..spec.pci import format_bdf
from .dmar import Unit, matched_unit
from .heap import Heap, Panic
from .pci import Function
from .platform import Console

__all__ = ["Domain", "Iommu", "address_width", "map_domain", "map_only"]

GIB, MIB2 = 1 << 30, 2 << 20
FOUR_GIB = 4 << 30
RW = np.uint64(vtd.R | vtd.W)
_CAP, _ECAP, _GCMD, _GSTS, _RTADDR, _CCMD, _FSTS, _FECTL, _IRTA = (
    0x08, 0x10, 0x18, 0x1C, 0x20, 0x28, 0x34, 0x38, 0xB8)
_FAULT_BITS = 0x7F


@dataclass(frozen=True)
class Domain:
    """A domain's id, the levels of its table, and the root of that table (host-physical)."""

    did: int
    levels: int
    root: int


class Iommu:
    """Drives the units that `units` names, by their registers."""

    def __init__(self, memory: Memory, bus: Bus, heap: Heap, units: list[Unit], console: Console):
        self.memory, self.bus, self.heap, self.units, self.console = memory, bus, heap, units, console

    def read64(self, unit: Unit, offset: int) -> int:
        """A 64-bit register of a unit."""
        return self.bus.read(unit.base + offset, 8)

    def caps(self) -> list[tuple[int, int]]:
        """CAP and ECAP of every unit."""
        return [(self.read64(u, _CAP), self.read64(u, _ECAP)) for u in self.units]

    def refuse_conflict(self) -> None:
        """Panics where firmware left interrupt remapping on with an entry that is present: whoever it is for would lose its interrupts."""
        for unit in self.units:
            irta = self.read64(unit, _IRTA)
            if not vtd.GSTS.get(self.bus.read(unit.base + _GSTS, 4), "IRES"):
                continue
            table, size = irta & vtd.ADDRESS, 16 * table_entries(irta)
            if self.memory.backed(table, size) and (self.memory.u64(table, size // 8)[::2] & np.uint64(1)).any():
                raise Panic("Conflict with VTD_TRANS")

    def setup(self, domain: Domain, functions: list[Function], must_cover: bool,
              others: Iterable[tuple[Domain, list[Function]]] = ()) -> None:
        """Everything after the tables: roots, contexts, invalidation, translation on.  `others` are domains besides, with their functions.

        A function that no unit covers is a null pointer to BitVisor (`must_cover`); else the console says that nothing restrains it.
        """
        roots = {unit: self.init_iommu(unit) for unit in self.units}
        for each, members in ((domain, functions), *others):
            covered = members if must_cover else [f for f in members if self._covered(f)]
            self.setup_bitvisor_devs(each, covered, roots)
        for unit in self.units:
            self.flush_all(unit)
        for unit in self.units:
            self.command(unit, vtd.GCMD["TE"].mask)

    def _covered(self, function: Function) -> bool:
        unit = matched_unit(self.units, function.source)
        if unit is None:
            self.console.print(f"(IOMMU) no unit covers {format_bdf(function.source)}: its DMA is not restrained")
        return unit is not None

    def init_iommu(self, unit: Unit) -> int:
        """An empty root table for one unit, latched by SRTP; old faults cleared, fault events unmasked.  Returns the root table."""
        root = self.heap.alloc_page()
        self.bus.write(unit.base + _RTADDR, 8, root)
        self.command(unit, vtd.GCMD["SRTP"].mask)
        record = unit.base + vtd.frcd_offset(self.read64(unit, _CAP)) + 8
        self.bus.write(record, 8, self.bus.read(record, 8))
        self.bus.write(unit.base + _FSTS, 4, _FAULT_BITS)
        self.bus.write(unit.base + _FECTL, 4, 0)
        return root

    def setup_bitvisor_devs(self, domain: Domain, functions: list[Function], roots: dict[Unit, int]) -> None:
        """A context entry for every function of segment 0, in the unit that covers it."""
        for function in functions:
            unit = matched_unit(self.units, function.source)
            if unit is None:
                raise Panic(f"page fault at address 0x20 in iommu_setup: no unit covers {format_bdf(function.source)}, "
                            "and its null pointer was followed")
            self._reg_context_entry(roots[unit], function.source, domain)

    def _reg_context_entry(self, root: int, source: int, domain: Domain) -> None:
        slot = root + 16 * (source >> 8)
        entry = self.memory.read64(slot)
        if not entry & 1:
            entry = vtd.root_entry(self.heap.alloc_page())
            self.memory.write64(slot, entry)
        low, high = vtd.context_entry(domain.root, domain.levels - 2, domain.did)
        context = (entry & vtd.ADDRESS) + 16 * (source & 0xFF)
        self.memory.write64(context + 8, high)
        self.memory.write64(context, low)

    def flush_all(self, unit: Unit) -> None:
        """Context cache, then IOTLB, both globally; the latter with drains."""
        self.bus.write(unit.base + _CCMD, 8, vtd.CCMD.make(ICC=1, CIRG=1))
        self.wait(unit, _CCMD, 8, vtd.CCMD["ICC"].mask, 0)
        iotlb = vtd.iotlb_offset(self.read64(unit, _ECAP)) + 8
        self.bus.write(unit.base + iotlb, 8, vtd.IOTLB.make(IVT=1, IIRG=1, DR=1, DW=1))
        self.wait(unit, iotlb, 8, vtd.IOTLB["IVT"].mask, 0)

    def command(self, unit: Unit, bit: int) -> None:
        """One GCMD bit over the sticky ones that are set, then waits for it in GSTS."""
        sticky = self.bus.read(unit.base + _GSTS, 4) & 0x96FFFFFF
        self.bus.write(unit.base + _GCMD, 4, sticky | bit)
        self.wait(unit, _GSTS, 4, bit, bit)

    def withdraw(self, unit: Unit, bit: int) -> None:
        """Clears one sticky GCMD bit, then waits until GSTS shows it clear."""
        sticky = self.bus.read(unit.base + _GSTS, 4) & 0x96FFFFFF
        self.bus.write(unit.base + _GCMD, 4, sticky & ~bit)
        self.wait(unit, _GSTS, 4, bit, 0)

    def wait(self, unit: Unit, offset: int, width: int, bits: int, wanted: int) -> None:
        """Reads a register of a unit until `bits` of it are `wanted`; panics where that does not come."""
        for _ in range(1000):
            if self.bus.read(unit.base + offset, width) & bits == wanted:
                return
        raise Panic(f"the remapping unit at {unit.base:#x} does not answer: register {offset:#x} stays "
                    f"{self.bus.read(unit.base + offset, width):#x}")


# --- widths

def address_width(caps: list[int], quirk: bool, console: Console) -> int:
    """Levels of the domains' tables for units with these CAP words.

    With the quirk: MGAW of the last unit rounded up to 12 + 9n, and a panic on the null domain where SAGAW lacks that.  Without: the
    smallest width that every unit has and that reaches as far as the narrowest input width.
    """
    if quirk:
        cap = caps[-1]
        levels = (align_up(vtd.mgaw(cap) - 12, 9)) // 9
        if levels not in vtd.sagaw_levels(cap):
            console.print("Unsupported AGAW value.")
            raise Panic(f"page fault in iommu_setup: no domain, for MGAW {vtd.mgaw(cap)} asks for {levels} levels and SAGAW {_sagaw(cap)}; "
                        "its null pointer was followed")
        return levels
    common = set.intersection(*(set(vtd.sagaw_levels(cap)) for cap in caps))
    needed = -(-(min(vtd.mgaw(cap) for cap in caps) - 12) // 9)
    if not common:
        raise Panic("the remapping units have no table width in common: " + "; ".join(_sagaw(cap) for cap in caps))
    return min((n for n in common if n >= needed), default=max(common))


def _sagaw(cap: int) -> str:
    return "offers " + (" or ".join(f"{n} levels" for n in vtd.sagaw_levels(cap)) or "none")


# --- domain 0

def _open() -> None:
    """A gate at which nobody is held."""


def map_domain(memory: Memory, heap: Heap, levels: int, end: int, hole: tuple[int, int], superpages: bool,
               gate: Callable[[], None] = _open, reserve: int | None = None) -> int:
    """Maps [0, end) to itself, read and write, but the half-open `hole` (below 4 GiB) without access; returns the table's root.

    4 KiB leaves, above 4 GiB 2 MiB ones with `superpages`.  Pages come from the heap in the order a walk from the root for each frame
    would take them.  Panics when the heap is exhausted; what was built up to there stays, as it would.  What lies beyond the reach
    of `levels` is left out.  `gate` is passed at every GiB.  With a `reserve` the tables leave so many pages in the heap, and what does not
    fit stays unmapped, in silence.
    """
    plan = _Plan(min(end, 1 << 12 + 9 * levels), superpages)
    wanted = plan.tables(levels)
    pages = heap.alloc_pages(wanted if reserve is None else min(wanted, max(heap.free - reserve, 0)))
    complete = len(pages) == wanted or reserve is not None
    if not len(pages):
        raise Panic("mm_page_alloc(0): Out of memory")
    _fill(memory, pages, plan, levels, hole, gate)
    if not complete:
        raise Panic("mm_page_alloc(0): Out of memory")
    return int(pages[0])


def map_only(memory: Memory, heap: Heap, levels: int, start: int, end: int) -> int:
    """Maps the half-open page range [start, end) to itself, read and write, in 4 KiB pages, and nothing else; returns the table's root."""
    root = heap.alloc_page()
    for first in range(align_down(start, MIB2), end, MIB2):
        table = root
        for level in range(levels, 1, -1):
            slot = table + 8 * (first >> 12 + 9 * (level - 1) & 511)
            if not memory.read64(slot):
                memory.write64(slot, heap.alloc_page() | int(RW))
            table = memory.read64(slot) & vtd.ADDRESS
        for page in range(max(first, start), min(first + MIB2, end), PAGE):
            memory.write64(table + 8 * (page >> 12 & 511), page | int(RW))
    return root


@dataclass(frozen=True)
class _Plan:
    """How many tables [0, end) takes.  Every GiB has a level-2 table, and below `split` 512 level-1 tables behind it."""

    end: int
    superpages: bool

    @property
    def gibs(self) -> int:
        """Level-2 tables."""
        return -(-self.end // GIB)

    def leaf_tables(self, gib: int) -> int:
        """Level-1 tables of one GiB."""
        if self.superpages and gib * GIB >= FOUR_GIB:
            return 0
        return min(512, -(-(self.end - gib * GIB) // MIB2))

    def tables(self, levels: int) -> int:
        """All tables, the root included."""
        above = 1 + sum(-(-self.end // (1 << 12 + 9 * n)) for n in range(3, levels))
        return above + self.gibs + sum(map(self.leaf_tables, range(self.gibs)))


def _fill(memory: Memory, pages: NDArray[np.uint64], plan: _Plan, levels: int, hole: tuple[int, int], gate: Callable[[], None]) -> None:
    """Writes the tables that got a page.  `pages` are contiguous (the heap only goes upwards), so all are one block of words."""
    words = memory.u64(int(pages[0]), len(pages) * 512).reshape(-1, 512)
    frames = np.arange(512 * 512, dtype=np.uint64).reshape(512, 512) << np.uint64(12) | RW
    upper = _Upper(words, pages, levels)
    for gib in range(plan.gibs):
        gate()
        if not upper.level_2(gib):
            return
        count = min(plan.leaf_tables(gib), len(words) - upper.used)
        first = upper.used
        upper.used += count
        if not plan.leaf_tables(gib):
            large = min(512, -(-(plan.end - gib * GIB) // MIB2))
            upper.table[:large] = (np.arange(large, dtype=np.uint64) << np.uint64(21)) + np.uint64(gib * GIB) | RW | np.uint64(vtd.SP)
            continue
        upper.table[:count] = pages[first:first + count] | RW
        leaves = words[first:first + count]
        np.add(frames[:count], np.uint64(gib * GIB), out=leaves)
        _cut(leaves.reshape(-1), gib * GIB, plan.end, hole)


def _cut(leaves: NDArray[np.uint64], start: int, end: int, hole: tuple[int, int]) -> None:
    """Takes the rights of the hole's frames away (the address stays, as BitVisor leaves it), and all of what lies beyond `end`."""
    first, last = (min(max((a - start) // PAGE, 0), len(leaves)) for a in hole)
    leaves[first:last] &= ~RW
    leaves[max(end - start, 0) // PAGE:] = 0


class _Upper:
    """The tables above the leaves, taken from the block as a walk reaches them; `table` is the current level-2 one."""

    def __init__(self, words: NDArray[np.uint64], pages: NDArray[np.uint64], levels: int):
        self.words, self.pages = words, pages
        self.used = 1
        words[0] = 0
        self.path = [words[0]] * (levels - 1)
        self.table = words[0]

    def level_2(self, gib: int) -> bool:
        """Makes the tables from the root down to the level-2 table of one GiB; False where a page is missing."""
        for depth in range(1, len(self.path)):
            below = len(self.path) - 1 - depth
            if gib % 512 ** below:
                continue
            if self.used >= len(self.words):
                return False
            table = self.words[self.used]
            table[:] = 0
            self.path[depth - 1][gib // 512 ** below % 512] = self.pages[self.used] | RW
            self.path[depth] = table
            self.used += 1
        self.table = self.path[-1]
        return True
