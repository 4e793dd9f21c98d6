"""One translation, step by step: which entry of which table was read and what it said.  For every format of `spec.paging`."""

from dataclasses import dataclass
from enum import Enum

from ..errors import Unreadable
from ..spec.paging import PagingFormat
from . import format as show
from .reader import MemoryReader
from .records import Column, Record, Records

__all__ = ["Kind", "Step", "Verdict", "Walk", "entry_text", "walk"]


class Kind(Enum):
    """What one entry is."""

    TABLE = "table"
    LEAF = "leaf"
    WITHHELD = "withheld"
    """Holds an address but grants nothing."""
    ABSENT = "absent"
    RESERVED = "reserved bits"
    UNREADABLE = "unreadable"


class Verdict(Enum):
    """How a walk ended."""

    MAPPED = "mapped"
    ABSENT = "absent"
    UNREADABLE = "unreadable table"
    RESERVED = "reserved bits"
    BEYOND = "beyond the width"


@dataclass(frozen=True, slots=True, repr=False)
class Step(Record):
    """One entry that a walk read.

    `table` and `entry` are physical addresses (of the table, of the entry); `raw` is None where the table cannot be read; `rights` are the
    letters that the entry alone grants; `target` is the address in it (of the next table or the page); `text` says it in words.
    """

    level: int
    table: int
    index: int
    entry: int
    raw: int | None
    kind: Kind
    rights: str
    target: int | None
    text: str

    title = "Step"
    legend = "physical addresses"
    columns = (
        Column("level", lambda s: s.level, right=True), Column("table", lambda s: s.table, show.address, True),
        Column("index", lambda s: s.index, right=True), Column("entry", lambda s: s.entry, show.address, True),
        Column("raw", lambda s: s.raw, show.address, True), Column("kind", lambda s: s.kind.value),
        Column("grants", lambda s: s.rights), Column("target", lambda s: s.target, show.address, True), Column("meaning", lambda s: s.text),
    )


@dataclass(frozen=True, slots=True, repr=False)
class Walk(Record):
    """The evidence of one translation.

    `address` was asked for (IOVA, guest-virtual or guest-physical, as the format has it); `host` is what it maps to, None unless mapped;
    `rights` is the AND down the levels, `-` where nothing is granted; `page_size` in bytes of the leaf, None unless mapped.
    """

    format: str
    address: int
    steps: tuple[Step, ...]
    verdict: Verdict
    host: int | None
    rights: str
    page_size: int | None

    title = "Walk"
    legend = "physical addresses"
    columns = (
        Column("format", lambda w: w.format), Column("address", lambda w: w.address, show.address),
        Column("verdict", lambda w: w.verdict.value), Column("host", lambda w: w.host, show.address), Column("rights", lambda w: w.rights),
        Column("page_size", lambda w: w.page_size, show.size),
    )

    @property
    def table(self) -> Records[Step]:
        """The steps as a table."""
        return Records(Step, self.steps, title=f"{self.format}: {self.address:#x}", note=self.sentence)

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        if self.host is None:
            return f"{self.address:#x} is not translated: {self.verdict.value}"
        return f"{self.address:#x} -> {self.host:#x}, {self.rights}, page of {show.size(self.page_size)}"

    def to_json(self) -> dict[str, object]:
        """Plain values, the steps among them."""
        return {**super(Walk, self).to_json(), "steps": [s.to_json() for s in self.steps]}

    def __str__(self) -> str:
        return str(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def walk(reader: MemoryReader, fmt: PagingFormat, root: int, levels: int, address: int) -> Walk:
    """Translates `address` through the table at physical `root` of `levels` levels, and keeps what it read."""
    if address >> fmt.shift(levels + 1):
        return Walk(fmt.name, address, (), Verdict.BEYOND, None, "-", None)
    steps: list[Step] = []
    table, rights = root, fmt.all
    for level in range(levels, 0, -1):
        step = _step(reader, fmt, table, level, address)
        steps.append(step)
        if step.kind not in (Kind.TABLE, Kind.LEAF) or step.raw is None or step.target is None:
            return Walk(fmt.name, address, tuple(steps), _END[step.kind], None, "-", None)
        rights &= fmt.rights(step.raw)
        if step.kind is Kind.LEAF:
            span = fmt.span(level)
            return Walk(fmt.name, address, tuple(steps), Verdict.MAPPED, step.target + address % span, fmt.text(rights), span)
        table = step.target
    raise AssertionError("level 1 holds leaves only")


_END = {Kind.WITHHELD: Verdict.ABSENT, Kind.ABSENT: Verdict.ABSENT, Kind.RESERVED: Verdict.RESERVED, Kind.UNREADABLE: Verdict.UNREADABLE}


def _step(reader: MemoryReader, fmt: PagingFormat, table: int, level: int, address: int) -> Step:
    index = fmt.index(address, level)
    entry = table + 8 * index
    try:
        raw = int.from_bytes(reader.read(entry, 8), "little")
    except Unreadable as e:
        return Step(level, table, index, entry, None, Kind.UNREADABLE, "-", None, f"unreadable: {e.why}")
    kind = _kind(fmt, raw, level)
    target = None if kind is Kind.ABSENT else fmt.target(raw, level)
    return Step(level, table, index, entry, raw, kind, fmt.text(fmt.rights(raw)), target, entry_text(fmt, raw, level))


def _kind(fmt: PagingFormat, raw: int, level: int) -> Kind:
    if not fmt.is_present(raw):
        return Kind.WITHHELD if raw & fmt.address else Kind.ABSENT
    if fmt.reserved(raw, level):
        return Kind.RESERVED
    return Kind.LEAF if fmt.is_leaf(raw, level) else Kind.TABLE


def entry_text(fmt: PagingFormat, raw: int, level: int) -> str:
    """One entry in words: rights, what it names and where, bits that must be zero, other bits in hex."""
    kind = _kind(fmt, raw, level)
    other = raw & ~(fmt.address | fmt.permission_bits | (fmt.superpage if level > 1 else 0))
    extra = f"; other bits {other:#x}" if other else ""
    if kind is Kind.ABSENT:
        return ("all zero" if not raw else "holds no address and grants nothing") + extra
    size = show.size(fmt.span(level))
    if kind is Kind.WITHHELD:
        return f"holds {raw & fmt.address:#x} but grants nothing over {size}" + extra
    if kind is Kind.RESERVED:
        return f"present, but bits {fmt.reserved(raw, level):#x} must be zero"
    what = f"{size} page" if kind is Kind.LEAF else f"level {level - 1} table"
    return f"{fmt.text(fmt.rights(raw))}, {what} at {fmt.target(raw, level):#x}" + extra
