"""A remapping unit behind the core's trap, with the guest's tables in 4 MiB of memory and a core above them."""

import numpy as np
from numpy.typing import NDArray
from vtd_bench import BASE, GCMD, NVME, QEMU_CAP, QEMU_ECAP, RTADDR, SRTP, TE

from hvcore.machine.bus import Bus
from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import PAGE, Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.spec import vtd
from hvcore.spec.dma import Direction, DmaRequest
from hvcore.vmm.heap import Heap
from hvcore.vmm.layout import HEAP
from hvcore.vmm.passthrough import OwnTables, WatchedUnit
from hvcore.vmm.platform import Console

MIB, GIB = 1 << 20, 1 << 30


class Watched:
    """4 MiB of the guest's, the core at 32 to 40 MiB, a unit; the guest's root table at 1 MiB, its contexts at 1 MiB + 4 KiB."""

    REGION = (32 * MIB, 40 * MIB)
    ROOT, CONTEXTS, TABLES = MIB, MIB + PAGE, MIB + 2 * PAGE

    def __init__(self, cap: int = QEMU_CAP, ecap: int = QEMU_ECAP, superpages: bool = True, region: tuple[int, int] = REGION):
        self.region = region
        self.memory = Memory([(0, 4 * MIB), region])
        self.unit = RemappingUnit(UnitDescription(BASE, cap, ecap), self.memory, 39)
        self.bus, self.printed = Bus(self.memory), bytearray()
        self.bus.map_mmio(BASE, self.unit.size, "unit", self.unit)
        self.bus.map_ports(0xE9, 1, self)
        self.heap = Heap(self.memory, region[0] + HEAP, region[1], region[0] + 0x1000)
        self.own = OwnTables(self.memory, self.heap, region, superpages)
        self.watched = WatchedUnit(self.memory, self.bus, BASE, self.own, (NVME, NVME + 8), Console(self.bus))

    def port_read(self, _port: int, _width: int) -> int:
        return 0

    def port_write(self, _port: int, _width: int, value: int) -> None:
        self.printed.append(value)

    def context(self, table: int, levels: int, source: int = NVME, tt: int = 0) -> None:
        self.memory.write64(self.ROOT, self.CONTEXTS | 1)
        low, high = vtd.context_entry(table, levels - 2, 7, tt)
        self.memory.write64(self.CONTEXTS + 16 * source + 8, high)
        self.memory.write64(self.CONTEXTS + 16 * source, low)

    def write(self, offset: int, width: int, value: int) -> None:
        self.watched.mmio_write(offset, width, value)

    def enable(self, root: int = ROOT) -> None:
        self.write(RTADDR, 8, root)
        self.write(GCMD, 4, SRTP)
        self.write(GCMD, 4, TE)

    def reaches(self, iova: int, source: int = NVME) -> object:
        """Where a write of a device comes out, or the reason of the fault."""
        found = self.unit.remap(DmaRequest(source, iova, 8, Direction.WRITE))
        return found if isinstance(found, int) else vtd.FaultReason(found.reason) if found.reason else "protected"

    def words(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """A copy of the guest's memory and of the core's."""
        return self.memory.u64(0, 4 * MIB // 8).copy(), self.memory.u64(self.REGION[0], 8 * MIB // 8).copy()

    @property
    def console(self) -> str:
        return self.printed.decode()


CAP_ALL_LEVELS = QEMU_CAP | 0x1F00 | 0x3F0000
