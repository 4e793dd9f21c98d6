"""What a request that was blocked would have done: the bytes it would have changed, or those it would have read, had there been no unit."""

import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import HvlabError, Unreadable, quoted
from ..spec.paging import PAGE
from ..spec.pci import format_bdf
from ..spec.vtd import in_interrupt_range
from . import format as show
from .faults import Fault
from .reader import MemoryReader
from .records import Column, Record, Records
from .trace import Dma

__all__ = ["Counterfactual", "HexRow", "blocked_request", "read_counterfactual"]

_ROW = 16


@dataclass(frozen=True, slots=True, repr=False)
class HexRow(Record):
    """Up to 16 bytes at host-physical `address`: those there `now`, those that would be there `then` (None: a read changes nothing)."""

    address: int
    lies: str
    now: bytes
    then: bytes | None

    title = "Bytes"
    legend = "address: host-physical; bytes as they lie, lowest first"
    columns = (
        Column("address", lambda r: r.address, show.address, True), Column("lies", lambda r: r.lies),
        Column("now", lambda r: r.now.hex(" ")), Column("would_be", lambda r: None if r.then is None else r.then.hex(" ")),
        Column("changed", lambda r: None if r.then is None else sum(r.changed), right=True),
        Column("text", lambda r: "".join(chr(b) if 32 <= b < 127 else "." for b in (r.now if r.then is None else r.then))),
    )

    @property
    def changed(self) -> tuple[bool, ...]:
        """Which of the bytes would be others."""
        return tuple(a != b for a, b in zip(self.now, self.then or self.now, strict=True))


@dataclass(frozen=True, slots=True, repr=False)
class Counterfactual(Record):
    """A request that a unit blocked, and what it would have done at host-physical `address` with no unit on its way.

    `address` is the first byte that did not get through: without a unit an IOVA is a host-physical address.  `before` are the bytes there
    now (no more than were kept of the request, and none where no memory answers), `after` those that would be there (None: a read).
    `lies` names what the range holds, in order; `reason` is the fault reason; `remark` says what is not told.
    """

    source: int
    access: str
    iova: int
    length: int
    address: int
    reason: int
    before: bytes
    after: bytes | None
    lies: tuple[str, ...]
    rows: tuple[HexRow, ...]
    remark: str = ""

    title = "Without the unit"
    legend = HexRow.legend
    columns = (
        Column("source", lambda c: format_bdf(c.source)), Column("access", lambda c: c.access),
        Column("iova", lambda c: c.iova, show.address), Column("length", lambda c: c.length),
        Column("address", lambda c: c.address, show.address), Column("reason", lambda c: c.reason, show.address),
        Column("lies", lambda c: "; ".join(c.lies)), Column("before", lambda c: c.before.hex()),
        Column("after", lambda c: None if c.after is None else c.after.hex()), Column("changed", lambda c: c.changed),
        Column("remark", lambda c: c.remark),
    )

    @property
    def changed(self) -> int:
        """How many of the bytes would be others."""
        return sum(a != b for a, b in zip(self.before, self.after or self.before, strict=True))

    @property
    def sentence(self) -> str:
        """It in words."""
        where = " and ".join(self.lies) or "where no memory is"
        would = (f"{len(self.before)} bytes of it would have been read" if self.after is None else
                 f"{self.changed} of {len(self.before)} bytes would be others")
        note = f"; {self.remark}" if self.remark else ""
        asked = f"{format_bdf(self.source)} {self.access} of {self.length} bytes at {self.iova:#x}"
        return (f"{asked} was blocked with reason {self.reason:#x}.  "
                f"Without the unit: {self.address:#x}, {where}; {would}{note}.")

    @property
    def table(self) -> Records[HexRow]:
        """The bytes, 16 a row."""
        return Records(HexRow, self.rows, title="Bytes that would have been read" if self.after is None else "Bytes that would be changed",
                       note=self.sentence)

    def __str__(self) -> str:
        return str(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        lines = [_html_row(row) for row in self.rows]
        style = "font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px)"
        return (f"<p>{html.escape(self.sentence)}</p><pre style=\"{style}\" aria-label=\"bytes now, and as they would be\">"
                + "\n".join(lines) + "</pre>")


def _html_row(row: HexRow) -> str:
    """Address, bytes now, bytes that would be; those that differ are marked."""
    now = _marked(row.now, row.changed)
    then = "" if row.then is None else "  &rarr;  " + _marked(row.then, row.changed)
    return f"{row.address:#x}  {now}{then}  {html.escape(row.lies)}"


def _marked(data: bytes, changed: tuple[bool, ...]) -> str:
    cells = [f"<mark><b>{b:02x}</b></mark>" if c else f"{b:02x}" for b, c in zip(data, changed, strict=True)]
    return " ".join(cells) + " " * 3 * (_ROW - len(data))


def blocked_request(trace: Records[Dma], what: object) -> Dma:
    """The request of a trace that `what` is, or, where it is a fault record, the newest that met it.

    Raises HvlabError for one that was not blocked or is not in the trace any more.
    """
    if isinstance(what, Dma):
        if what.result != "blocked":
            raise HvlabError(f"{format_bdf(what.source)}'s request at {what.iova:#x} was not blocked: give one that was, or a fault")
        return what
    if not isinstance(what, Fault):
        raise HvlabError(f"{quoted(what)} is no request: give one of run.dma, or one of run.faults")
    found = next((d for d in reversed(trace) if _met(d, what)), None)
    if found is None:
        raise HvlabError(f"the request that met the fault at {what.address:#x} is not kept any more: run.dma has the newest")
    return found


def _met(dma: Dma, fault: Fault) -> bool:
    page = (dma.iova + dma.carried) & -PAGE
    return dma.result == "blocked" and (dma.source, dma.reason, dma.access) == (fault.source, fault.reason, fault.access) and (
        page == fault.address & -PAGE or in_interrupt_range(page))


def read_counterfactual(reader: MemoryReader, dma: Dma, lies: Callable[[int], str]) -> Counterfactual:
    """What a blocked request would have done to memory as it is now; `lies(address)` says what lies at a host-physical address."""
    address, reason = dma.iova + dma.carried, dma.reason or 0
    rest = dma.length - dma.carried
    kept = dma.refused if dma.access == "write" else b""
    wanted = len(kept) if dma.access == "write" else min(rest, PAGE)
    remarks = [f"the first {wanted} of {rest} bytes"] * (wanted < rest)
    if in_interrupt_range(address):
        wanted, remarks = 0, ["an interrupt message goes to no memory" if rest == 4 else "no memory answers there"]
    before = _readable(reader, address, wanted)
    remarks += [f"no memory answers from {address + len(before):#x} on"] * (len(before) < wanted)
    after = kept[:len(before)] if dma.access == "write" else None
    rows = tuple(_rows(address, before, after, lies))
    return Counterfactual(dma.source, dma.access, dma.iova, dma.length, address, reason, before, after,
                          tuple(dict.fromkeys(r.lies for r in rows)), rows, "; ".join(remarks))


def _readable(reader: MemoryReader, address: int, length: int) -> bytes:
    """The bytes up to where memory ends, page by page."""
    data, end = b"", address + length
    while address < end:
        size = min(end - address, PAGE - address % PAGE)
        try:
            data += reader.read(address, size)
        except Unreadable:
            break
        address += size
    return data


def _rows(address: int, before: bytes, after: bytes | None, lies: Callable[[int], str]) -> Iterator[HexRow]:
    """Rows that end at multiples of 16."""
    at = 0
    while at < len(before):
        size = min(len(before) - at, _ROW - (address + at) % _ROW)
        yield HexRow(address + at, lies(address + at), before[at:at + size], None if after is None else after[at:at + size])
        at += size
