"""A remapping unit with hand-built tables in a small memory, for the tests of hvcore.machine.vtd."""

from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.spec.dma import Direction, DmaRequest, RemapFault

QEMU_CAP, QEMU_ECAP = 0x00D2_008C_2226_0206, 0xF42
XEON_CAP, XEON_ECAP = 0x08D2_078C_106F_0466, 0xF0_20DF
BASE = 0xFED9_0000
GCMD, GSTS, RTADDR, CCMD, FSTS, FECTL, FEDATA, FEADDR, FEUADDR = 0x18, 0x1C, 0x20, 0x28, 0x34, 0x38, 0x3C, 0x40, 0x44
TE, SRTP, QIE = 1 << 31, 1 << 30, 1 << 26

ROOT, CONTEXTS = 0x10_0000, 0x10_1000
TABLE3, TABLE2, TABLE1 = 0x10_2000, 0x10_3000, 0x10_4000
NOWHERE = 0x7_0000_0000
"""An address below 2**39 where the bench has no memory."""
NVME = 0x0010
"""Requester id 00:02.0."""


class Bench:
    """A unit whose function 00:02.0 has domain 7 and three levels: IOVA 0x5000 -> 0x9000 RW, 0x6000 -> 0xa000 R, 0x7000 -> 0xb000 W.

    IOVA 0x200000 is a 2 MiB page to 0x400000, IOVA 0x40000000 a 1 GiB page to 0x80000000.
    """

    def __init__(self, cap: int = QEMU_CAP, ecap: int = QEMU_ECAP, haw: int = 39, ideal_caches: bool = False, on: bool = True):
        self.memory = Memory([(0, 64 << 20)])
        self.messages: list[tuple[int, int]] = []
        description = UnitDescription(BASE, cap, ecap)
        self.unit = RemappingUnit(description, self.memory, haw, lambda a, d: self.messages.append((a, d)), ideal_caches)
        self.iro, self.fro = 16 * (ecap >> 8 & 0x3FF), 16 * (cap >> 24 & 0x3FF)
        self.lay_tables()
        if on:
            self.enable()

    def lay_tables(self) -> None:
        put = self.memory.write64
        put(ROOT, CONTEXTS | 1)
        self.context(NVME, TABLE3 | 1, 7 << 8 | 1)
        put(TABLE3, TABLE2 | 3)
        put(TABLE3 + 8, 0x8000_0000 | 0x83)
        put(TABLE2, TABLE1 | 3)
        put(TABLE2 + 8, 0x40_0000 | 0x83)
        for page, entry in ((5, 0x9003), (6, 0xA001), (7, 0xB002)):
            put(TABLE1 + 8 * page, entry)

    def context(self, source: int, low: int, high: int, table: int = CONTEXTS) -> None:
        """Writes the context entry of a function of bus 0."""
        self.memory.write64(table + 16 * (source & 0xFF), low)
        self.memory.write64(table + 16 * (source & 0xFF) + 8, high)

    def enable(self, root: int = ROOT) -> None:
        """Latches the root table and turns translation on, one command a write."""
        self.write(RTADDR, 8, root)
        self.write(GCMD, 4, SRTP)
        self.write(GCMD, 4, TE)

    def write(self, offset: int, width: int, value: int) -> None:
        self.unit.mmio_write(offset, width, value)

    def read(self, offset: int, width: int) -> int:
        return self.unit.mmio_read(offset, width)

    def ask(self, iova: int, access: str = "read", source: int = NVME, length: int = 8) -> int | RemapFault:
        return self.unit.remap(DmaRequest(source, iova, length, Direction(access)))

    def reason(self, iova: int, access: str = "read", source: int = NVME, length: int = 8) -> int:
        """The reason of the fault that a request must meet."""
        result = self.ask(iova, access, source, length)
        assert isinstance(result, RemapFault), f"{iova:#x} went through to {result:#x}"
        return result.reason

    def record(self, index: int = 0) -> tuple[int, int]:
        """Low and high word of a fault record, as software reads them."""
        return self.read(self.fro + 16 * index, 8), self.read(self.fro + 16 * index + 8, 8)

    def invalidate_contexts(self, granularity: int, did: int = 0, source: int = 0, fm: int = 0) -> int:
        """A context command; the granularity that was done."""
        self.write(CCMD, 8, 1 << 63 | granularity << 61 | fm << 32 | source << 16 | did)
        assert not self.read(CCMD, 8) >> 63
        return self.read(CCMD, 8) >> 59 & 3

    def invalidate_iotlb(self, granularity: int, did: int = 0, address: int = 0, am: int = 0) -> int:
        """An IOTLB command; the granularity that was done."""
        self.write(self.iro, 8, address | am)
        self.write(self.iro + 8, 8, 1 << 63 | granularity << 60 | did << 32)
        assert not self.read(self.iro + 8, 8) >> 63
        return self.read(self.iro + 8, 8) >> 57 & 3
