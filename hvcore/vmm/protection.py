"""What the mended core does besides domain 0: its memory is closed to devices before anything lies in it, and interrupts of devices are
blocked that it has not allowed.  BitVisor does neither.

Early protection is PMEN where the unit has it (VT-d, section 10.4.16); elsewhere translation is switched on with an empty root table, under
which every request faults, until domain 0 takes its place.
"""

from ..machine.memory import PAGE
from ..spec import vtd
from ..spec.interrupts import QUEUE_IEC
from .dmar import Unit
from .iommu import Iommu

__all__ = ["block_interrupts", "close", "forget_interrupts", "open_up"]

_PMEN, _PLMBASE, _PLMLIMIT, _PHMBASE, _PHMLIMIT, _RTADDR = 0x64, 0x68, 0x6C, 0x70, 0x78, 0x20
_IQT, _IQA, _IRTA = 0x88, 0x90, 0xB8
_EPM, _PRS = vtd.PMEN["EPM"].mask, vtd.PMEN["PRS"].mask
_SIZE = 9
"""IRTA.S: a table of 2^(9+1) entries, four pages."""
_IEC, _WAIT, _DONE = 4, 5, 1


def close(iommu: Iommu, region: tuple[int, int]) -> None:
    """Lets no device reach the half-open host-physical `region`, by PMEN; a unit without it blocks everything."""
    for unit in iommu.units:
        if vtd.CAP.get(iommu.read64(unit, 0x08), "PLMR"):
            _protect(iommu, unit, region)
            iommu.console.print(f"(IOMMU) unit 0x{unit.base:X}: protected memory 0x{region[0]:X}-0x{region[1]:X}")
        else:
            iommu.init_iommu(unit)
            iommu.flush_all(unit)
            iommu.command(unit, vtd.GCMD["TE"].mask)
            iommu.console.print(f"(IOMMU) unit 0x{unit.base:X}: no protected memory, all DMA blocked for now")


def _protect(iommu: Iommu, unit: Unit, region: tuple[int, int]) -> None:
    """The low region around `region` (both ends lie on 4 MiB); the high one, which EPM enables too, made empty."""
    bus = iommu.bus
    bus.write(unit.base + _PLMBASE, 4, region[0])
    bus.write(unit.base + _PLMLIMIT, 4, region[1] - 1)
    if vtd.CAP.get(iommu.read64(unit, 0x08), "PHMR"):
        bus.write(unit.base + _PHMBASE, 8, 1 << 38)
        bus.write(unit.base + _PHMLIMIT, 8, 0)
    bus.write(unit.base + _PMEN, 4, _EPM)
    iommu.wait(unit, _PMEN, 4, _PRS, _PRS)


def open_up(iommu: Iommu) -> None:
    """Translation is on: protected memory has done its work (section 10.4.16 wants it off once the tables protect)."""
    for unit in iommu.units:
        if iommu.bus.read(unit.base + _PMEN, 4) & _EPM:
            iommu.bus.write(unit.base + _PMEN, 4, 0)
            iommu.wait(unit, _PMEN, 4, _PRS, 0)


def block_interrupts(iommu: Iommu) -> None:
    """An empty interrupt remapping table for every unit, compatibility-format messages blocked, remapping on."""
    for unit in iommu.units:
        if vtd.ECAP.get(iommu.read64(unit, 0x10), "IR"):
            _remap_interrupts(iommu, unit)
        else:
            iommu.console.print(f"(IOMMU) unit 0x{unit.base:X} cannot remap interrupts: devices can forge them")


def _remap_interrupts(iommu: Iommu, unit: Unit) -> None:
    """The queue's page is the one before the table: there `forget_interrupts` finds it again."""
    pages = [iommu.heap.alloc_page() for _ in range(1 + (16 << _SIZE + 1) // PAGE)]
    iommu.bus.write(unit.base + _IRTA, 8, pages[1] | _SIZE)
    iommu.command(unit, vtd.GCMD["SIRTP"].mask)
    forget_interrupts(iommu, unit)
    iommu.withdraw(unit, vtd.GCMD["CFI"].mask)
    iommu.command(unit, vtd.GCMD["IRE"].mask)


def forget_interrupts(iommu: Iommu, unit: Unit) -> None:
    """Global invalidation of the interrupt-entry cache, for which there is only the queue; the queue is off again afterwards."""
    queue = (iommu.read64(unit, _IRTA) & vtd.ADDRESS) - PAGE
    status = queue + PAGE // 2
    iommu.memory.write32(status, 0)
    iommu.memory.write64(queue, QUEUE_IEC.make(TYPE=_IEC))
    iommu.memory.write64(queue + 16, vtd.QUEUE_WAIT.make(TYPE=_WAIT, SW=1, DATA=_DONE))
    iommu.memory.write64(queue + 24, status)
    iommu.bus.write(unit.base + _IQT, 8, 0)
    iommu.bus.write(unit.base + _IQA, 8, queue)
    iommu.command(unit, vtd.GCMD["QIE"].mask)
    iommu.bus.write(unit.base + _IQT, 8, 32)
    iommu.wait(unit, status - unit.base, 4, _DONE, _DONE)
    iommu.withdraw(unit, vtd.GCMD["QIE"].mask)
