"""The core's memory and the machine's traces before an attack and after it: all that a verdict is made from."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..spec.dma import DmaResult
from ..spec.interrupts import Interrupt
from ..spec.svm import ControlArea
from ..vmm.layout import HEAP, SECRET_SIZE, Data, Part, named_ranges
from .result import Changed

if TYPE_CHECKING:
    from ..machine.pc import Pc

__all__ = ["Scene", "loot_addresses", "mark_address"]

_SETTLED_DATA = ((Data.VMCB, Data.WAIT), (Data.CR3, Data.GPRS))
"""What of the data page no exit writes."""
_SETTLED_VMCB = ((0x00, 0x58), (ControlArea.NESTED_CONTROL, ControlArea.NESTED_CONTROL + 8), (ControlArea.N_CR3, ControlArea.N_CR3 + 8))
"""What of the VMCB no exit writes: intercepts, the nested paging and its root."""
_LOOT = re.compile(r"attack: loot at 0x([0-9a-f]+)")
_MARK = re.compile(r"attack: mark at 0x([0-9a-f]+)")


@dataclass
class Scene:
    """A machine about to be attacked.  `base` is the core's (host-physical); everything of it up to `end` is compared afterwards, but the
    half-open range in which a driver of the core is at `work`."""

    pc: "Pc"
    base: int
    end: int
    work: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self._before = self.pc.memory.u8(self.base, self.end - self.base).copy()
        self._issued = self.pc.fabric.issued
        self._interrupts = tuple(self.pc.fabric.interrupts)

    @property
    def key(self) -> bytes:
        """The core's secret as it was before."""
        return self._before[Part.SECRET:Part.SECRET + SECRET_SIZE].tobytes()

    @property
    def host_root(self) -> int:
        """CR3 of the core as it was before."""
        return int(self._before[Part.DATA + Data.CR3:Part.DATA + Data.CR3 + 8].view(np.uint64)[0])

    def read(self, address: int, length: int) -> bytes:
        """Physical memory now; zeros where there is none."""
        return self.pc.memory.read(address, length) if self.pc.memory.backed(address, length) else bytes(length)

    def requests(self, since_power_on: bool = False) -> list[DmaResult]:
        """The newest DMA requests of those since, or of all since power-on."""
        count = self.pc.fabric.issued - (0 if since_power_on else self._issued)
        return list(self.pc.fabric.trace)[-count:] if count else []

    def interrupts(self) -> list[Interrupt]:
        """The interrupt messages that got through since."""
        old = {id(i) for i in self._interrupts}
        return [i for i in self.pc.fabric.interrupts if id(i) not in old]

    def changed(self) -> tuple[Changed, ...]:
        """What of the core's memory is different, but for what every exit writes; neighbouring pages of one part are one."""
        found: list[Changed] = []
        for start, end in self._different():
            part = next(name for name, a, b in named_ranges(self.base, 1 << 40) if a <= start < b)
            if found and found[-1].part == part and found[-1].end == start:
                start = found.pop().start
            found.append(Changed(start, end, part))
        return tuple(found)

    def _different(self) -> Iterator[tuple[int, int]]:
        """Host-physical ranges: exact in data page and VMCB, elsewhere from the first to the last byte of a page that is different."""
        now = self.pc.memory.u8(self.base, self.end - self.base)
        for part, ranges in ((Part.DATA, _SETTLED_DATA), (Part.VMCB, _SETTLED_VMCB)):
            for start, end in ranges:
                if (now[part + start:part + end] != self._before[part + start:part + end]).any():
                    yield self.base + part + start, self.base + part + end
        yield from self._pages(now, Part.TEXT, Part.DATA)
        yield from self._pages(now, Part.MSRPM, HEAP)
        for start, end in ((self.base + HEAP, self.work[0] or self.end), (self.work[1] or self.end, self.end)):
            yield from self._pages(now, start - self.base, end - self.base)

    def _pages(self, now: NDArray[np.uint8], start: int, end: int) -> Iterator[tuple[int, int]]:
        different = now[start:end].view(np.uint64) != self._before[start:end].view(np.uint64)
        for page in np.flatnonzero(different.reshape(-1, 512).any(axis=1)).tolist():
            at = start + 4096 * page
            places = np.flatnonzero(now[at:at + 4096] != self._before[at:at + 4096])
            yield self.base + at + int(places[0]), self.base + at + int(places[-1]) + 1


def loot_addresses(console: str) -> list[int]:
    """Where the guest says that it keeps what it stole (physical), device by device."""
    return [int(found, 16) for found in _LOOT.findall(console)]


def mark_address(console: str) -> int | None:
    """Where the guest looks for the mark of its code (physical)."""
    found = _MARK.search(console)
    return int(found[1], 16) if found else None
