"""The interrupt remapping tables of the units, as the core hands out their entries and writes them."""

from ..spec import vtd
from ..spec.interrupts import FORMAT, IRTE, IRTE_HIGH, IRTE_LOW, MSI_ADDRESS, MSI_DATA, DeliveryMode, SourceCheck
from .dmar import Unit
from .iommu import Iommu
from .protection import forget_interrupts

__all__ = ["ENTRIES", "EntryTables", "entry_for", "remaps"]

ENTRIES = 1024
"""Entries of each unit's interrupt remapping table."""
_LEAST_VECTOR = 16
_ECAP, _IRTA = 0x10, 0xB8


class EntryTables:
    """Hands out the tables' entries, lowest first: `used` of each unit are somebody's."""

    def __init__(self, iommu: Iommu):
        self.iommu = iommu
        self.used = dict.fromkeys(iommu.units, 0)

    def take(self, unit: Unit, count: int) -> int | None:
        """The first of `count` entries that follow one another; None where a unit has not so many left."""
        first = self.used[unit]
        if first + count > ENTRIES:
            return None
        self.used[unit] += count
        return first

    def put(self, unit: Unit, index: int, entry: tuple[int, int]) -> None:
        """Writes an entry (low, high) in steps that are never half an entry, then tells the unit's cache."""
        memory, (low, high) = self.iommu.memory, entry
        slot = (self.iommu.read64(unit, _IRTA) & vtd.ADDRESS) + IRTE * index
        if (low, high) != (memory.read64(slot), memory.read64(slot + 8)):
            memory.write64(slot, 0)
            memory.write64(slot + 8, high)
            memory.write64(slot, low)
            forget_interrupts(self.iommu, unit)


def remaps(iommu: Iommu, unit: Unit) -> bool:
    """Whether a unit can remap interrupts."""
    return bool(vtd.ECAP.get(iommu.read64(unit, _ECAP), "IR"))


def entry_for(address: int, data: int, source: int) -> tuple[int, int]:
    """The interrupt remapping table entry (low, high) for a message that the guest wants of `source`; not present where that may not be."""
    a, d = MSI_ADDRESS.decode(address), MSI_DATA.decode(data)
    high = IRTE_HIGH.make(SVT=SourceCheck.REQUESTER, SID=source)
    harmless = d["DLM"] in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY) and d["V"] >= _LEAST_VECTOR and not address & FORMAT
    if a["HEAD"] != 0xFEE or address >> 32 or not harmless:
        return 0, high
    return IRTE_LOW.make(P=1, DST=a["DST"] << 8, V=d["V"], DLM=d["DLM"], TM=d["TM"], RH=a["RH"], DM=a["DM"]), high
