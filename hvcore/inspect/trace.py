"""The newest DMA requests of the machine's devices and what became of each."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..spec.dma import Direction, DmaResult
from ..spec.pci import format_bdf
from ..spec.vtd import in_interrupt_range
from . import format as show
from .records import Column, Record, Records

__all__ = ["Dma", "read_trace"]


@dataclass(frozen=True, slots=True, repr=False)
class Dma(Record):
    """One request of a device: `length` bytes at `iova`, read or written by requester `source` of PCI `segment`.

    `time` in virtual nanoseconds since power-on.  `result`: `ok`, `blocked` by a remapping unit for `reason`, `absent` (no memory answers
    where it leads) or `message` (an interrupt, which goes to no memory).  `landing` is the host-physical address of its first page that
    was let through, None where there is none.  Of a request that was stopped, `carried` bytes went through before, and `refused` are the
    next up to 4096 of a write.
    """

    time: int
    segment: int
    source: int
    access: str
    iova: int
    length: int
    result: str
    landing: int | None = None
    reason: int | None = None
    carried: int = field(default=0, compare=False)
    refused: bytes = field(default=b"", compare=False)

    title = "DMA requests"
    legend = "time: virtual ns since power-on; iova: as the device asked; landing: host-physical"
    columns = (
        Column("time", lambda d: d.time, right=True), Column("source", lambda d: format_bdf(d.source)),
        Column("access", lambda d: d.access), Column("iova", lambda d: d.iova, show.address, True),
        Column("length", lambda d: d.length, right=True), Column("result", lambda d: d.result),
        Column("landing", lambda d: d.landing, show.address, True), Column("reason", lambda d: d.reason, show.address, True),
    )


def read_trace(trace: Iterable[DmaResult], issued: int) -> Records[Dma]:
    """The newest requests, oldest first, of `issued` in all."""
    items = [_dma(result) for result in trace]
    older = issued - len(items)
    return Records(Dma, items, note=f"{older:,} older requests are not kept." if older else "")


def _dma(result: DmaResult) -> Dma:
    r = result.request
    reason = result.fault.reason if result.fault else None
    return Dma(result.time, r.segment, r.source, r.access.value, r.iova, r.length, _outcome(result), result.landing, reason,
               result.carried, result.refused)


def _outcome(result: DmaResult) -> str:
    r = result.request
    if result.fault:
        return "blocked"
    if not result.ok:
        return "absent"
    message = r.access is Direction.WRITE and r.length == 4 and not r.iova % 4 and in_interrupt_range(r.iova)
    return "message" if message else "ok"
