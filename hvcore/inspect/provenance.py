"""Who wrote this?  The newest writer of each word of a range, by the machine's log of writes, beside the bytes that lie there now."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ..errors import Unreadable
from ..spec.pci import format_bdf
from ..spec.writes import Write, Writer
from . import format as show
from .reader import MemoryReader
from .records import Column, Record, Records

__all__ = ["NOBODY", "UNSEEN", "Provenance", "Told", "WriteReader", "read_provenance"]

NOBODY, UNSEEN = "never", "unseen"
_WALKER_BITS = 0x60
"""Accessed and dirty: what a processor's walk may set in an entry of its tables."""
_SHOWN = 16


class WriteReader(Protocol):
    """A log of writes."""

    def newest(self, address: int, /) -> Write | None:
        """The newest writer that was seen of the word that holds a host-physical address."""
        ...

    def stores_seen_since(self, address: int, /) -> int | None:
        """Since when stores of code on a processor to an address are seen (virtual ns); None: they are not."""
        ...


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of a word of which no writer was seen: the kind of writer, who, the phase of the boot, and why that is thought."""

    writer: str
    who: str
    phase: str
    remark: str


@dataclass(frozen=True, slots=True, repr=False)
class Provenance(Record):
    """The newest known writer of the `length` bytes at host-physical `address`, whole words.

    `writer`: `dma`, `guest` or `host` (code on a processor), `core` (its policy), `firmware`, `hardware`; `never` where nobody wrote since
    power-on, `unseen` where somebody did whose writes are not seen.  `who` is the requester or the instruction; `asked` the IOVA of a
    device, or the guest-physical address by which the guest's CPU gets there now; `time` in virtual ns since power-on (None: not known).
    `wrote` are the bytes that were written there (None: not known), `now` those that lie there (None: no memory).
    """

    address: int
    length: int
    writer: str
    who: str
    time: int | None
    phase: str
    asked: int | None
    wrote: bytes | None
    now: bytes | None
    source: int | None = None
    rip: int | None = None
    remark: str = ""

    title = "Writers"
    legend = "address: host-physical; asked: IOVA or guest-physical; time: virtual ns since power-on; bytes as they lie, lowest first"
    columns = (
        Column("address", lambda p: p.address, show.address, True), Column("length", lambda p: p.length, right=True),
        Column("writer", lambda p: p.writer), Column("who", lambda p: p.who), Column("time", lambda p: p.time, right=True),
        Column("phase", lambda p: p.phase), Column("asked", lambda p: p.asked, show.address, True),
        Column("wrote", lambda p: _hex(p.wrote), lambda v: _short(v)), Column("now", lambda p: _hex(p.now), lambda v: _short(v)),
        Column("remark", lambda p: p.remark),
    )


def _hex(data: bytes | None) -> str | None:
    return None if data is None else data.hex()


def _short(value: object) -> str:
    """Hex digits by bytes; long ones are cut."""
    if not isinstance(value, str):
        return ""
    pairs = [value[i:i + 2] for i in range(0, min(len(value), 2 * _SHOWN), 2)]
    return " ".join(pairs) + (" ..." if len(value) > 2 * _SHOWN else "")


def read_provenance(log: WriteReader, reader: MemoryReader, address: int, length: int, untold: Callable[[int], Told],
                    guest_physical: Callable[[int], int | None]) -> Records[Provenance]:
    """The writers of every word that [address, address+length) touches; neighbours of one write are one record.

    `untold(word)` says what is known of a word of which no write was seen; `guest_physical(host)` by which address the guest's CPU
    reaches a host-physical one, None: by none.
    """
    first, last = address // 8 * 8, -(-(address + length) // 8) * 8
    items = [_record(reader, start, end, what, guest_physical) for start, end, what in _pieces(log, first, last, untold)]
    since = log.stores_seen_since(address)
    seen = "are not seen" if since is None else f"are seen since {since:,} ns"
    return Records(Provenance, items, note=f"Stores of code on a processor to {address:#x} {seen}; arrays of the core's never are.")


def _pieces(log: WriteReader, first: int, last: int, untold: Callable[[int], Told]) -> Iterator[tuple[int, int, Write | Told]]:
    """Neighbouring words of the same write, or of the same story."""
    start, held = first, log.newest(first) or untold(first)
    for word in range(first + 8, last, 8):
        what = log.newest(word) or untold(word)
        if what != held:
            yield start, word, held
            start, held = word, what
    yield start, last, held


def _record(reader: MemoryReader, start: int, end: int, what: Write | Told, guest_physical: Callable[[int], int | None]) -> Provenance:
    now = _now(reader, start, end)
    if isinstance(what, Told):
        return Provenance(start, end - start, what.writer, what.who, None, what.phase, None, None, now, remark=what.remark)
    wrote, low = _part(what, start, end)
    asked = None if what.iova is None else what.iova + low - what.address
    if what.writer is Writer.GUEST:
        asked = guest_physical(low)
    return Provenance(start, end - start, what.writer.value, _who(what), what.time, what.phase, asked, wrote, now, what.source, what.rip,
                      _changed(wrote, low, now, start))


def _now(reader: MemoryReader, start: int, end: int) -> bytes | None:
    try:
        return reader.read(start, end - start)
    except Unreadable:
        return None


def _part(write: Write, start: int, end: int) -> tuple[bytes, int]:
    """The bytes of a write that fall into [start, end), and where the first of them lies."""
    low, high = max(start, write.address), min(end, write.address + len(write.data))
    return write.data[low - write.address:high - write.address], low


def _who(write: Write) -> str:
    if write.source is not None:
        return format_bdf(write.source) + (f" of segment {write.segment}" if write.segment else "")
    if write.rip is not None:
        return f"instruction at RIP {write.rip:#x}"
    return {Writer.CORE: "the core's policy", Writer.FIRMWARE: "firmware"}.get(write.writer, write.name)


def _changed(wrote: bytes, low: int, now: bytes | None, start: int) -> str:
    """Whether other bytes lie there now than were written."""
    if now is None:
        return "no memory answers there now"
    lies = now[low - start:low - start + len(wrote)]
    if lies == wrote:
        return ""
    different = int.from_bytes(lies, "little") ^ int.from_bytes(wrote, "little")
    if len(wrote) == 8 and not different & ~_WALKER_BITS:
        return "as it was written but for the accessed and dirty bits, which the processor's walks set"
    return "changed since by somebody whose writes are not seen"
