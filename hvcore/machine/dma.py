"""The way of a device's DMA: requester id, remapping unit, memory.  Requests go down whole; faults come back as values."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from ..spec.dma import AddressType, Direction, DmaRequest, DmaResult, RemapFault
from ..spec.interrupts import Interrupt, as_written
from .memory import PAGE, Memory

__all__ = ["MSI", "DmaFabric", "DmaPort", "Remapper"]

MSI = range(0xFEE00000, 0xFEF00000)
"""Addresses at which an aligned 4-byte write is a message-signalled interrupt."""


class Remapper(Protocol):
    """What the fabric needs of a remapping unit."""

    def remap(self, request: DmaRequest) -> int | RemapFault:
        """The host-physical address of `request.iova`, or the fault.  `request` lies within one 4 KiB page."""
        ...

    def interrupt(self, source: int, address: int, data: int, /) -> Interrupt | RemapFault:
        """What becomes of a message-signalled interrupt, or the fault."""
        ...


class DmaPort:
    """A device's way out: reads and writes at I/O virtual addresses under its own requester id."""

    def __init__(self, fabric: "DmaFabric", source: int, segment: int = 0):
        self.fabric, self.source, self.segment = fabric, source, segment

    def read(self, iova: int, length: int) -> DmaResult:
        """`length` bytes from `iova`."""
        return self.fabric.issue(DmaRequest(self.source, iova, length, Direction.READ, self.segment))

    def write(self, iova: int, data: bytes) -> DmaResult:
        """`data` to `iova`."""
        return self.fabric.issue(DmaRequest(self.source, iova, len(data), Direction.WRITE, self.segment), data)


class DmaFabric:
    """Between devices and memory.

    `unit_of(segment, source)` is the remapping unit that covers a requester, None where none does.  A message-signalled interrupt (an
    aligned 4-byte write to 0xFEExxxxx, or such a piece of a request that is cut) goes through the unit too, then, as remapped, to
    `msi(source, address, data)` and not to memory.
    `trace` keeps the newest results, of `issued` in all, with their time by `now` (nanoseconds), `interrupts` the newest messages that
    got through.
    """

    def __init__(self, memory: Memory, unit_of: Callable[[int, int], Remapper | None], msi: Callable[[int, int, int], None] | None = None,
                 now: Callable[[], int] | None = None):
        self.memory, self.unit_of, self.msi, self.now = memory, unit_of, msi, now or _no_time
        self.issued = 0
        self.trace: deque[DmaResult] = deque(maxlen=4096)
        self.interrupts: deque[Interrupt] = deque(maxlen=4096)

    def port(self, source: int, segment: int = 0) -> DmaPort:
        """The port of requester `source`."""
        return DmaPort(self, source, segment)

    def issue(self, request: DmaRequest, data: bytes = b"") -> DmaResult:
        """Carries a request out page by page, in order; stops at the first page that faults or where no memory answers."""
        result = self._carry(request, data)
        self.trace.append(result)
        self.issued += 1
        return result

    def _carry(self, request: DmaRequest, data: bytes) -> DmaResult:
        unit = self.unit_of(request.segment, request.source)
        done: list[bytes] = []
        landing, time = None, self.now()
        for part, offset in pages(request):
            if _is_message(part):
                if fault := self._interrupt(unit, part, int.from_bytes(data[offset:offset + part.length], "little")):
                    return _stopped(request, fault, landing, time, data, offset)
                continue
            address = unit.remap(part) if unit else part.iova
            if isinstance(address, RemapFault):
                return _stopped(request, address, landing, time, data, offset)
            landing = address if landing is None else landing
            if not self.memory.backed(address, max(part.length, 1)):
                return _stopped(request, None, landing, time, data, offset)
            if request.address_type is AddressType.TRANSLATION:
                continue
            if request.access is Direction.READ:
                done.append(self.memory.read(address, part.length))
            elif part.length:
                self.memory.write(address, data[offset:offset + part.length], part)
        return DmaResult(request, b"".join(done), None, landing, time)

    def _interrupt(self, unit: Remapper | None, request: DmaRequest, data: int) -> RemapFault | None:
        """A message-signalled interrupt on its way to the processors; the fault where a unit blocks it."""
        source, address = request.source, request.iova
        sent = unit.interrupt(source, address, data) if unit else as_written(source, address, data)
        if isinstance(sent, RemapFault):
            return sent
        self.interrupts.append(sent)
        if self.msi:
            self.msi(source, *sent.message)
        return None


def _stopped(request: DmaRequest, fault: RemapFault | None, landing: int | None, time: int, data: bytes, carried: int) -> DmaResult:
    """A request that ended before its time, with what of its data is kept."""
    return DmaResult(request, None, fault, landing, time, carried, data[carried:carried + PAGE])


def _no_time() -> int:
    return 0


def _is_message(request: DmaRequest) -> bool:
    untranslated = request.address_type is AddressType.UNTRANSLATED
    return untranslated and request.access is Direction.WRITE and request.length == 4 and request.iova in MSI and not request.iova % 4


def pages(request: DmaRequest) -> Iterable[tuple[DmaRequest, int]]:
    """The request cut at 4 KiB boundaries, which no request on PCI Express crosses: each part and its offset in the data.

    A request of no bytes is one part: a unit judges it, too.
    """
    if not request.length:
        yield request, 0
    offset = 0
    while offset < request.length:
        iova = request.iova + offset
        length = min(PAGE - iova % PAGE, request.length - offset)
        yield DmaRequest(request.source, iova, length, request.access, request.segment, request.address_type), offset
        offset += length
