"""Domains: from a unit's root table through the context entries to what each domain's tables grant (VT-d, sections 9.1 and 9.3)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import BadTable
from ..spec import vtd
from ..spec.paging import PAGE, VTD, PagingFormat, vtd_format
from ..spec.pci import format_bdf
from ..spec.vtd import FaultReason
from . import format as show
from .reader import MemoryReader, UnitReader, Words
from .records import Column, Record, Records
from .runs import U64, Runs
from .scan import LIMIT, MAX_LEVELS, TableScan, scan
from .units import Unit, read_unit

__all__ = ["PASS_THROUGH", "Context", "Domain", "context_problem", "context_tables", "decode", "read_contexts", "read_domains",
           "unit_format"]

BUDGET = 4 * LIMIT
"""Work of one decoding, in runs and table pages; domains after that are listed but not scanned."""
_LEAST_COST = 1 << 14
_NO_RUNS, _NO_TABLES, _NO_LEAVES = Runs.of([]), np.zeros(0, np.uint64), dict.fromkeys(vtd.PAGE_SIZE_NAMES.values(), 0)
PASS_THROUGH = "pass-through"
_TYPES = {0: "translate", 1: "translate, ATS allowed", 2: PASS_THROUGH, 3: "reserved"}


@dataclass(frozen=True, slots=True, repr=False)
class Context(Record):
    """One present context entry: its raw words `low` and `high`, and `problem`, why the unit refuses every request under it.

    `problem` is None where the unit takes the entry.
    """

    source: int
    low: int
    high: int
    problem: str | None = None

    title = "Context entries"
    legend = "root: second-level table, host-physical"
    columns = (
        Column("source", lambda c: format_bdf(c.source)), Column("did", lambda c: c.did, right=True),
        Column("levels", lambda c: c.levels, right=True), Column("root", lambda c: c.root, show.address, True),
        Column("type", lambda c: c.translation), Column("fpd", lambda c: c.fpd, show.yes_no),
        Column("raw_low", lambda c: c.low, show.address, True), Column("raw_high", lambda c: c.high, show.address, True),
        Column("problem", lambda c: c.problem),
    )

    @property
    def did(self) -> int:
        """Domain id."""
        return vtd.CONTEXT_HIGH.get(self.high, "DID")

    @property
    def levels(self) -> int:
        """Depth of the second-level table."""
        return vtd.aw_levels(vtd.CONTEXT_HIGH.get(self.high, "AW"))

    @property
    def root(self) -> int:
        """Second-level table, host-physical."""
        return self.low & vtd.ADDRESS

    @property
    def translation(self) -> str:
        """The translation type in words."""
        return _TYPES[vtd.CONTEXT_LOW.get(self.low, "TT")]

    @property
    def fpd(self) -> bool:
        """Whether most faults of this requester are not recorded."""
        return bool(vtd.CONTEXT_LOW.get(self.low, "FPD"))


@dataclass(frozen=True, slots=True, repr=False)
class Domain(Record):
    """The devices of one unit that share a domain id, a table, its depth and a translation type, and what they may reach.

    `unit` is the register base (None: a table from a file); `root` the second-level table (host-physical); `table_pages` its distinct 4 KiB
    pages; `leaves` leaf entries that hold an address, by size; `runs` by IOVA.  `unreadable` are IOVA ranges whose tables cannot be
    read; `reserved` counts entries refused for reserved bits; `quiet` are devices with FPD; `problem` is why the unit refuses every
    request, or why the tables were not scanned (None: neither).  Where `truncated`, more runs follow that were not kept.
    `input_bits` is the width of its address space: what the context's AW and the unit's MGAW both allow.
    """

    unit: int | None
    did: int
    levels: int
    root: int
    translation: str
    devices: tuple[int, ...]
    table_pages: int
    leaves: dict[str, int]
    runs: Runs
    unreadable: Runs
    segment: int = 0
    reserved: int = 0
    truncated: bool = False
    quiet: tuple[int, ...] = ()
    problem: str | None = None
    tables: U64 = field(default_factory=lambda: _NO_TABLES, compare=False)
    input_bits: int = 64

    title = "Domains"
    legend = "unit: register base; root: second-level table, host-physical; mapped: bytes that some access reaches"
    columns = (
        Column("unit", lambda d: d.unit, show.address, True), Column("did", lambda d: d.did, right=True),
        Column("levels", lambda d: d.levels, right=True), Column("root", lambda d: d.root, show.address, True),
        Column("type", lambda d: d.translation), Column("table_pages", lambda d: d.table_pages, right=True),
        Column("4K", lambda d: d.leaves["4K"], right=True), Column("2M", lambda d: d.leaves["2M"], right=True),
        Column("1G", lambda d: d.leaves["1G"], right=True), Column("runs", lambda d: len(d.runs), right=True),
        Column("mapped", lambda d: d.mapped, show.size, True),
        Column("devices", lambda d: tuple(map(format_bdf, d.devices)), show.devices), Column("remark", lambda d: d.remark),
    )

    @property
    def mapped(self) -> int:
        """Bytes of IOVA space with any right."""
        return int((self.runs.end - self.runs.start)[self.runs.granting].sum())

    @property
    def remark(self) -> str | None:
        """What is odd about it."""
        odd = [self.problem or ""]
        odd += [f"{len(self.unreadable)} ranges whose tables cannot be read"] * bool(self.unreadable)
        odd += [f"{self.reserved} entries refused for reserved bits"] * bool(self.reserved)
        odd += ["scan cut at the limit, more runs follow"] * self.truncated
        odd += [f"faults not recorded (FPD) for {show.devices(self.quiet)}"] * bool(self.quiet)
        return "; ".join(filter(None, odd)) or None

    def to_json(self) -> dict[str, Any]:
        """Addresses as integers, devices as `00:02.0`, runs half-open; `remark` only where something is odd."""
        odd = {"remark": self.remark} if self.remark else {}
        return {"unit": self.unit, "did": self.did, "levels": self.levels, "root": self.root, "table_pages": self.table_pages,
                "devices": [format_bdf(d) for d in self.devices], "leaves": dict(self.leaves), "runs": self.runs.to_json()} | odd


# --- contexts

def unit_format(unit: Unit, host_address_width: int | None = None) -> PagingFormat:
    """The second-level format of a unit; no reserved address bits where the width is not known."""
    return vtd_format(unit.cap, unit.ecap, host_address_width or 52)


def context_tables(reader: MemoryReader, root_table: int, host_address_width: int | None = None) -> tuple[dict[int, int], list[str]]:
    """Buses with a present root entry and their context tables (host-physical); and in words each root entry the unit refuses."""
    words, readable = reader.tables(np.array([root_table], np.uint64))
    if not readable[0]:
        return {}, [f"the root table at {root_table:#x} cannot be read: every request faults with reason 0x8"]
    high_bits = -1 << (host_address_width or 52)
    tables, refused = {}, []
    for bus, (low, high) in enumerate(words.reshape(-1, 2).tolist()):
        if not low & 1:
            continue
        if low & (0xFFE | high_bits) or high:
            refused.append(bus)
        else:
            tables[bus] = low & vtd.ADDRESS
    return tables, [f"root entries of buses {_few(refused)} have reserved bits set: their requests fault with reason 0xa"] * bool(refused)


def _few(buses: list[int]) -> str:
    return " ".join(f"{b:02x}" for b in buses[:8]) + (f" and {len(buses) - 8} more" if len(buses) > 8 else "")


def read_contexts(reader: MemoryReader, root_table: int, unit: Unit | None = None,
                  host_address_width: int | None = None) -> Records[Context]:
    """Every present context entry under a root table (host-physical).  What cannot be read is told in the note."""
    tables, notes = context_tables(reader, root_table, host_address_width)
    buses = list(tables)
    pages, readable = reader.tables(np.array(list(tables.values()), np.uint64))
    lost = [b for b, ok in zip(buses, readable.tolist(), strict=True) if not ok]
    notes += [f"context tables of buses {_few(lost)} cannot be read: their requests fault with reason 0x9"] * bool(lost)
    high_bits = -1 << (host_address_width or 52)
    contexts = [_judged(Context(*entry), unit, high_bits) for entry in _present(buses, pages)]
    return Records(Context, contexts, note="; ".join(notes))


def _judged(context: Context, unit: Unit | None, high_bits: int) -> Context:
    found = context_problem(context, unit, high_bits)
    return replace(context, problem=f"{found[1]}: requests fault with reason {found[0]:#x}") if found else context


def _present(buses: list[int], pages: Words) -> Iterator[tuple[int, int, int]]:
    """(requester id, low, high) of the present context entries of pages [n, 512]."""
    for bus, page in zip(buses, pages, strict=True):
        pairs = page.reshape(-1, 2)
        for devfn in np.flatnonzero(pairs[:, 0] & np.uint64(1)).tolist():
            yield bus << 8 | devfn, int(pairs[devfn, 0]), int(pairs[devfn, 1])


def context_problem(context: Context, unit: Unit | None, high_bits: int) -> tuple[int, str] | None:
    """The reason and why a unit refuses every request under a present context entry; without a unit only what no unit takes.

    `high_bits` are the address bits beyond the host address width.
    """
    bad = context.low & (vtd.CONTEXT_RESERVED[0] | high_bits), context.high & vtd.CONTEXT_RESERVED[1]
    if any(bad):
        return FaultReason.CONTEXT_RESERVED, f"bits that must be zero are set: low {bad[0]:#x}, high {bad[1]:#x}"
    if context.translation == _TYPES[3]:
        return FaultReason.CONTEXT_INVALID, "translation type 3 is reserved"
    if unit is None:
        return None if context.levels <= MAX_LEVELS else (FaultReason.CONTEXT_INVALID, f"no unit has tables of {context.levels} levels")
    if context.levels not in unit.levels:
        return FaultReason.CONTEXT_INVALID, f"the unit has no tables of {context.levels} levels"
    lacks = {_TYPES[1]: "DT", _TYPES[2]: "PT"}.get(context.translation)
    if lacks and not vtd.ECAP.get(unit.ecap, lacks):
        return FaultReason.CONTEXT_INVALID, f"the unit cannot do `{context.translation}` (ECAP.{lacks} is clear)"
    return None


# --- domains

def read_domains(reader: MemoryReader, units: Iterable[UnitReader], host_address_width: int | None = None) -> Records[Domain]:
    """The domains of every unit that has a root table, whether or not translation is on."""
    domains: list[Domain] = []
    notes: list[str] = []
    for unit in map(read_unit, units):
        if unit.root_table is None:
            notes.append(f"The unit at {unit.base:#x} has no root table.")
        elif not unit.legacy:
            notes.append(f"The unit at {unit.base:#x} is not in legacy mode (RTADDR {unit.root:#x}); only legacy mode is decoded.")
        else:
            part = _domains(reader, unit.root_table, unit, host_address_width)
            domains += part
            off = "" if unit.translating else f"The unit at {unit.base:#x} does not translate (GSTS.TES clear): nothing is enforced."
            notes += filter(None, [off, part.note and f"Unit {unit.base:#x}: {part.note}."])
    return Records(Domain, domains, note=" ".join(notes))


def decode(reader: MemoryReader, root_table: int) -> Records[Domain]:
    """The domains under a root table (host-physical) of a file or a memory, with nothing known of the unit: all superpages are taken."""
    if root_table % PAGE or not 0 <= root_table <= vtd.ADDRESS:
        raise BadTable(f"{root_table:#x} cannot be a root table's address: give a multiple of 0x1000 below {vtd.ADDRESS + PAGE:#x}")
    if not reader.tables(np.array([root_table], np.uint64))[1][0]:
        raise BadTable(f"there is no page at {root_table:#x}, where the root table should be: look at RTADDR for its address")
    return _domains(reader, root_table, None, None)


def _domains(reader: MemoryReader, root_table: int, unit: Unit | None, host_address_width: int | None) -> Records[Domain]:
    contexts = read_contexts(reader, root_table, unit, host_address_width)
    groups: dict[tuple[int, int, int, str, str], list[Context]] = {}
    for c in contexts:
        groups.setdefault((c.did, c.levels, c.root, c.translation, c.problem or ""), []).append(c)
    scanner = _Scanner(reader, unit_format(unit, host_address_width) if unit else VTD)
    return Records(Domain, [_domain(group, unit, scanner) for _, group in sorted(groups.items())], note=contexts.note)


class _Scanner:
    """Scans each table once, the last one as far as the budget goes, and none after it."""

    def __init__(self, reader: MemoryReader, fmt: PagingFormat):
        self.reader, self.fmt, self.left = reader, fmt, BUDGET
        self.done: dict[tuple[int, int], TableScan] = {}

    def scan(self, root: int, levels: int) -> TableScan | None:
        """The scan of a table; None where the budget is spent."""
        if (root, levels) not in self.done:
            if self.left <= 0:
                return None
            new = self.done[root, levels] = scan(self.reader, self.fmt, root, levels, min(LIMIT, self.left))
            self.left -= max(_LEAST_COST, len(new.runs) + len(new.unreadable) + new.table_pages)
        return self.done[root, levels]


def _domain(group: list[Context], unit: Unit | None, scanner: _Scanner) -> Domain:
    """One domain from the context entries that share it."""
    c, problem = group[0], group[0].problem
    runs, found = _NO_RUNS, None
    bits = vtd.input_bits(unit.cap, c.levels - 2) if unit else vtd.aw_bits(c.levels - 2)
    if problem is None and c.translation == PASS_THROUGH:
        runs = Runs.of([(0, 1 << min(bits, 63), "rw", 0)])
    elif problem is None and c.levels > MAX_LEVELS:
        problem = f"not scanned: tables of {c.levels} levels are beyond the {MAX_LEVELS} that are read as a whole"
    elif problem is None:
        found = scanner.scan(c.root, c.levels)
        problem = None if found else f"not scanned: the other domains took the {BUDGET:,} runs and tables that one decoding reads"
    return Domain(
        unit.base if unit else None, c.did, c.levels, c.root, c.translation, tuple(x.source for x in group),
        found.table_pages if found else 0, dict(found.leaves if found else _NO_LEAVES),
        found.runs if found else runs, found.unreadable if found else _NO_RUNS, unit.segment if unit else 0,
        found.reserved if found else 0, found.truncated if found else False, tuple(x.source for x in group if x.fpd), problem,
        found.tables if found else _NO_TABLES, bits)
