"""Problems of memory: how far domain 0 reaches, whether its tables fit, and memory that firmware reserves for devices."""

from collections.abc import Iterator

from ..inspect import format as show
from ..spec.dmar import Rmrr
from ..spec.pci import format_bdf
from ..vmm.heap import Panic
from ..vmm.memmap import choose_region
from .evidence import FOUR_GIB, Boot, Evidence, pages_for
from .records import Problem

__all__ = ["memory_problems"]

_HEAP_FULL = "mm_page_alloc"
_NO_REGION = "Out of memory."
_LARGEST_VMM = 3072
_BESIDES_TABLES = 24
"""MiB of the core's memory that are not for the tables of domain 0."""


def memory_problems(found: Evidence) -> Iterator[Problem]:
    """All of them."""
    yield from _no_region(found)
    if found.units:
        yield from _ram_above_4gib(found)
        yield from _small_heap(found)
        yield from _giants(found)
        yield from _rmrrs(found)


def _no_region(found: Evidence) -> Iterator[Problem]:
    spoilt = tuple(b.policy for b in found.boots.values() if b.outcome == "vmm-panic" and b.why == _NO_REGION)
    if not spoilt:
        return
    sizes = [size for size in (96, 64, 48, 32, 24, 16) if _fits(found, size)]
    largest = max((min(e.end, FOUR_GIB) - e.start for e in found.e820.firmware if e.usable and e.start < FOUR_GIB), default=0)
    yield Problem("no-room-for-vmm", "fatal", "firmware",
                  f"no usable entry below 4 GiB holds 128 MiB between multiples of 4 MiB; the largest has {show.size(largest)}",
                  f"VMM_SIZE_MIB={sizes[0]}" if sizes else "", spoilt)


def _fits(found: Evidence, mebibytes: int) -> bool:
    try:
        choose_region(found.e820.firmware, mebibytes << 20)
    except Panic:
        return False
    return True


def _ram_above_4gib(found: Evidence) -> Iterator[Problem]:
    above = sum(e.end - max(e.start, FOUR_GIB) for e in found.e820.firmware if e.usable and e.end > FOUR_GIB)
    boot = found.boots.get("bitvisor")
    if not above or boot is None:
        return
    lost = tuple(b.policy for b in found.boots.values() if b.outcome == "disk-lost" and _beyond_4gib(b, found))
    fault = next((f for f in boot.faults if f.address >= FOUR_GIB), None)
    seen = f"; {format_bdf(fault.source)} was refused at {fault.address:#x} (reason {fault.reason:#x})" if fault else ""
    tight = pages_for(found.ram_end) > boot.vmm.heap_pages_total
    mend = "IOMMU_MAP_END=ram" + (" and IOMMU_SUPERPAGES=y" if tight and all("2M" in u.superpages for u in found.units) else "")
    yield Problem("ram-above-4gib", "fatal" if lost else "serious", "bitvisor",
                  f"domain 0 ends at 4 GiB and {show.size(above)} of usable RAM lie above, up to {found.ram_end:#x}: devices cannot reach "
                  f"them{seen}", mend, lost)


def _beyond_4gib(boot: Boot, found: Evidence) -> bool:
    return boot.config.IOMMU_MAP_END == "4gib" and any(FOUR_GIB <= f.address < found.ram_end for f in boot.faults)


def _small_heap(found: Evidence) -> Iterator[Problem]:
    needed = pages_for(found.ram_end)
    spoilt = found.ending(_HEAP_FULL)
    if not any(found.boots[p].config.IOMMU_MAP_END == "ram" for p in spoilt):
        return
    pages = max(found.boots[p].vmm.heap_pages_total for p in spoilt)
    size = -(-((needed * 4096 >> 20) + _BESIDES_TABLES) // 4) * 4
    larger = f"VMM_SIZE_MIB={size}" if size <= _LARGEST_VMM and _fits(found, size) else ""
    yield Problem("heap-too-small", "fatal", "bitvisor",
                  f"4 KiB pages up to the end of RAM at {found.ram_end:#x} take about {needed:,} table pages, and the core's heap has "
                  f"{pages:,}",
                  "IOMMU_SUPERPAGES=y" if found.up("superpages") else larger, spoilt)


def _giants(found: Evidence) -> Iterator[Problem]:
    """Reserved entries far above RAM, which the article's patch maps, too."""
    giants = [e for e in found.e820.firmware if not e.usable and e.end > max(found.ram_end, FOUR_GIB)]
    spoilt = tuple(p for p in found.ending(_HEAP_FULL) if found.boots[p].config.IOMMU_MAP_END == "e820")
    if not giants or not spoilt:
        return
    boot = found.boots[spoilt[0]]
    last = max(giants, key=lambda e: e.end)
    yield Problem("reserved-giants", "fatal", "bitvisor",
                  f"the map ends with {last}, {show.size(last.end - found.ram_end)} above the end of RAM: mapping to there takes about "
                  f"{pages_for(last.end):,} table pages, and the core's heap has {boot.vmm.heap_pages_total:,}",
                  "IOMMU_MAP_END=ram" + ("" if found.up("ram") else " and IOMMU_SUPERPAGES=y" if found.up("superpages") else ""), spoilt)


def _rmrrs(found: Evidence) -> Iterator[Problem]:
    rows = [row for row in found.table if isinstance(row.raw, Rmrr) and row.firmware is not False]
    kinds = (("rmrr-in-ram", "serious", "in usable RAM", "the guest gets memory as RAM that a device uses behind its back"),
             ("rmrr-not-reserved", "note", "not reserved in E820", "the specification wants it reserved"))
    for name, severity, words, meaning in kinds:
        said = [f"{_extent(row.raw)}: {o}" for row in rows for o in row.oddities if o.startswith(words)]
        if said:
            yield Problem(name, severity, "firmware", f"{_some(said)}: {meaning}")
    others = [f"{_extent(row.raw)}: {o}" for row in rows for o in row.oddities if not o.startswith((kinds[0][2], kinds[1][2]))]
    if others:
        yield Problem("rmrr-odd", "note", "firmware", _some(others))
    yield from _rmrrs_out_of_reach(found, [row.raw for row in rows if isinstance(row.raw, Rmrr)])


def _rmrrs_out_of_reach(found: Evidence, rmrrs: list[Rmrr]) -> Iterator[Problem]:
    """Reserved memory that domain 0 leaves out: in the core's own region, or beyond 4 GiB."""
    vmm = next((b.vmm for b in found.boots.values() if b.vmm.base is not None), None)
    inside = [_extent(r) for r in rmrrs if vmm and vmm.base is not None and r.base < vmm.base + vmm.size and vmm.base < r.end]
    if inside and vmm and vmm.base is not None:
        yield Problem("rmrr-in-vmm", "serious", "firmware",
                      f"{_some(inside)} lies in what the core takes for itself at {vmm.base:#x}: devices lose it")
    above = [_extent(r) for r in rmrrs if r.limit > r.base and r.end > FOUR_GIB]
    if above:
        yield Problem("rmrr-above-4gib", "serious", "bitvisor", f"{_some(above)} lies above 4 GiB, where domain 0 ends: devices lose it",
                      "IOMMU_MAP_END=ram" if all(r.end <= found.ram_end for r in rmrrs) else "IOMMU_MAP_END=e820")


def _extent(raw: object) -> str:
    return f"[{raw.base:#x}, {raw.end:#x})" if isinstance(raw, Rmrr) else ""


def _some(said: list[str]) -> str:
    return "; ".join(said[:4]) + (f" and {len(said) - 4} more" if len(said) > 4 else "")
