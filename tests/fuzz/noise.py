"""Remapping tables of noise in a small memory: entries that point at one another, at themselves, nowhere, and at everything at once."""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np

from hvcore.errors import BadMachine
from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import PAGE, Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.spec.bits import bit
from hvcore.spec.dma import Direction, DmaRequest
from hvcore.spec.vtd import ADDRESS, CONTEXT_HIGH, sagaw_levels

from .mutate import number, often

__all__ = ["BASE", "CAPS", "Noise", "random_unit"]

BASE = 0xFED9_0000
CAPS = ((0xD2008C22260206, 0xF42), (0xD2008C222F0606, 0xF42), (0xD2008C40660462, 0xF050DA), (0x8D2078C106F0466, 0xF020DF),
        (0xC0000020660462, 0xF0101A), (0x1C0000C40660462, 0x7E3FF0505E))
"""Capability registers of real units: two of QEMU's, Intel clients' and servers', a graphics unit's."""
_FIXED = 0x3FF << 24 | 0xFF << 40, 0x3FF << 8
"""Where registers lie: FRO, NFR and IRO, which are left alone in most cases."""
_SEVERAL = ((0, 4 << 20),), ((0, 2 << 20), (3 << 20, 4 << 20)), ((0, 1 << 20), (8 << 20, 9 << 20))
_SOURCES = (0x0000, 0x0010, 0x0011, 0x00F8, 0x00FF, 0x0100, 0x01FF, 0xFF00, 0xFFFF)
_AWAY = 64
"""The first page of the tables: what lies below is for queues and data."""


def random_unit(r: Random, memory: Memory, msi: Callable[[int, int], None] | None = None, ideal: bool = False) -> RemappingUnit:
    """A unit with the capabilities of a real one, some bits of them changed."""
    while True:
        cap, ecap = r.choice(CAPS)
        for _ in range(r.choice((0, 0, 1, 3, 12))):
            cap, ecap = cap ^ bit(r.randrange(64)) & ~_FIXED[0], ecap ^ bit(r.randrange(64)) & ~_FIXED[1]
        if often(r, 0.05):
            cap, ecap = r.getrandbits(64), r.getrandbits(64)
        haw = r.choice((32, 36, 39, 39, 46, 48, 52))
        try:
            return RemappingUnit(UnitDescription(BASE, cap, ecap), memory, haw, msi, ideal)
        except BadMachine:
            continue


class Noise:
    """Table pages of noise: `root` is the root table, `sources` requester ids that are more likely than others to have a context."""

    def __init__(self, r: Random, pages: int = 12):
        self.r, self.memory = r, Memory(r.choice(_SEVERAL))
        self.pages = tuple(PAGE * (_AWAY + i) for i in range(pages))
        self.root, self.sources = self.pages[0], _SOURCES
        self.widths: tuple[int, ...] = (1, 1, 2)
        self.lay()

    def lay(self) -> None:
        """Root entries, context entries, paging entries.  Few in most pages, the same everywhere in some."""
        for source in self.sources:
            self.context(source)
        for page in self.pages[3:]:
            if often(self.r, 0.07):
                self.memory.u64(page, 512)[:] = np.resize(np.array([self.entry() for _ in range(self.r.randint(1, 4))], np.uint64), 512)
            for index in (0, 1, 2, 511, self.r.randrange(512)):
                if often(self.r, 0.85):
                    self.memory.write64(page + 8 * index, self.entry())

    def suit(self, cap: int) -> None:
        """Contexts of widths that a unit with capability register `cap` takes, in most cases."""
        self.widths = tuple(levels - 2 for levels in sagaw_levels(cap)) or self.widths
        for source in self.sources:
            self.context(source)

    def context(self, source: int) -> None:
        """The root entry of a bus and the context entry of a function, right in most cases."""
        r = self.r
        table = self.pages[1 + (source >> 8 & 1)]
        self.pair(self.root + 16 * (source >> 8), table | 1 if often(r, 0.95) else self.entry(), 0 if often(r, 0.97) else number(r, 64))
        high = CONTEXT_HIGH.make(AW=r.choice(self.widths) if often(r, 0.9) else r.randrange(8), DID=r.choice((0, 1, 1, 2, 0x101, 0xFFFF)))
        low = (r.choice(self.pages[3:]) if often(r, 0.9) else self.address()) | r.choice((*(1,) * 9, 3, 5, 9, 13, 0, 2))
        self.pair(table + 16 * (source & 0xFF), low if often(r, 0.95) else number(r, 64), high if often(r, 0.95) else number(r, 64))

    def pair(self, address: int, low: int, high: int) -> None:
        """The two words of a root or context entry."""
        self.memory.write64(address, low)
        self.memory.write64(address + 8, high)

    def address(self) -> int:
        """Mostly a table page (of all, itself among them), else RAM, the end of RAM, the interrupt range, nowhere."""
        r = self.r
        if often(r, 0.75):
            return r.choice(self.pages[3:] if often(r, 0.9) else self.pages)
        return r.choice((0, self.memory.end - PAGE, self.memory.end, 0xFEE0_0000, 0xFEDF_F000, 1 << 30, number(r, 52) & ~0xFFF, ADDRESS))

    def entry(self) -> int:
        """A paging entry."""
        r = self.r
        kind = r.randrange(10)
        if kind == 0:
            return r.choice((0, bit(64) - 1, 1, 2, 3, number(r, 64)))
        extra = r.choice((*(0,) * 12, 0x80, 0x80, 0x83, bit(11), bit(62), bit(r.randrange(52, 64)), 0x7C))
        return self.address() | r.choice((*(3,) * 8, 1, 2, 0)) | extra

    def poke(self) -> None:
        """Changes one entry of a table."""
        page = self.r.choice(self.pages)
        self.memory.write64(page + 8 * self.r.choice((0, 1, 32, 511, self.r.randrange(512))), self.entry())

    def iova(self) -> int:
        """An address that leads far down the tables in most cases."""
        r = self.r
        shifts = r.choice(((12, 21, 30), (12, 21), (12, 21, 30, 39)))
        index = sum((r.choice((0, 1, 2, 511)) if often(r, 0.95) else r.randrange(512)) << shift for shift in shifts)
        return r.choice((index, index, index, index + r.randrange(PAGE), 0xFEE0_0000 + r.randrange(1 << 20), number(r, 64)))

    def request(self, lengths: Sequence[int] = (0, 1, 4, 8, 64, 4096)) -> DmaRequest:
        """A request within one page."""
        iova = self.iova()
        length = min(self.r.choice(lengths), PAGE - iova % PAGE)
        source = self.r.choice(self.sources) if often(self.r, 0.9) else self.r.getrandbits(16)
        return DmaRequest(source, iova, length, self.r.choice((Direction.READ, Direction.WRITE)))
