"""What is this address?  Everything known of one physical address, from the most to the least specific."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ..errors import Unreadable
from ..spec.e820 import type_name
from ..spec.paging import NESTED, PAGE
from . import format as show
from .dmar import DmarStructure
from .domains import Domain
from .e820 import E820Map
from .reader import MemoryReader
from .records import Column, Record, Records
from .units import Unit
from .walk import walk

__all__ = ["Fact", "Lens", "look"]


@dataclass(frozen=True, slots=True, repr=False)
class Fact(Record):
    """One thing known: who says it, what it says, and the half-open range for which it holds (None: this address alone)."""

    about: str
    says: str
    start: int | None = None
    end: int | None = None

    title = "Facts"
    legend = "from the most to the least specific; ranges half-open, host-physical, a domain's in IOVA"
    columns = (
        Column("about", lambda f: f.about), Column("says", lambda f: f.says), Column("start", lambda f: f.start, show.address, True),
        Column("end", lambda f: f.end, show.address, True),
    )


@dataclass(frozen=True, slots=True, repr=False)
class Lens(Record):
    """Everything known of one address, host-physical and, where it is the same number, guest-physical."""

    address: int
    facts: tuple[Fact, ...]

    title = "Lens"
    columns = (Column("address", lambda x: x.address, show.address), Column("facts", lambda x: len(x.facts), right=True))

    @property
    def table(self) -> Records[Fact]:
        """The facts as a table."""
        return Records(Fact, self.facts, title=f"Address {self.address:#x}")

    def to_json(self) -> dict[str, Any]:
        """The address and its facts as plain values."""
        return {"address": self.address, "facts": self.table.to_json()}

    def __str__(self) -> str:
        return str(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def look(reader: MemoryReader, address: int, e820: E820Map, domains: Iterable[Domain] = (), parts: Sequence[tuple[str, int, int]] = (),
         nested_root: int | None = None, units: Iterable[Unit] = (), dmar: Iterable[DmarStructure] = ()) -> Lens:
    """Gathers the facts.

    `parts` are named host-physical ranges (name, start, end) of the core's memory; `nested_root` the guest's nested table; `units` are
    needed to tell where nothing is translated; `dmar` the DMAR table's structures, for reserved memory and units' registers.
    """
    domains = list(domains)
    facts = [*_word(reader, address), *_tables(domains, address), *_parts(parts, address), *_dmar(dmar, address),
             *_domains(domains, address), *_off(units), *_cpu(reader, nested_root, address), *_e820(e820, address)]
    return Lens(address, tuple(facts))


def _word(reader: MemoryReader, address: int) -> Iterator[Fact]:
    at = address - address % 8
    try:
        yield Fact("memory", f"the 8 bytes at {at:#x} are {int.from_bytes(reader.read(at, 8), 'little'):#018x}", at, at + 8)
    except Unreadable as e:
        yield Fact("memory", f"unreadable: {e.why}")


def _tables(domains: list[Domain], address: int) -> Iterator[Fact]:
    page = address - address % PAGE
    for d in domains:
        i = int(np.searchsorted(d.tables, np.uint64(page)))
        if i < len(d.tables) and int(d.tables[i]) == page:
            what = "the top" if page == d.root else "a"
            yield Fact(_name(d), f"{what} page of its second-level tables", page, page + PAGE)


def _parts(parts: Sequence[tuple[str, int, int]], address: int) -> Iterator[Fact]:
    for name, start, end in parts:
        if start <= address < end:
            yield Fact("core", f"its {name}", start, end)


def _dmar(structures: Iterable[DmarStructure], address: int) -> Iterator[Fact]:
    """The DMAR's structures whose range holds the address: reserved memory with its devices, a unit's registers."""
    for s in structures:
        if s.start is None or s.end is None or not s.start <= address < s.end:
            continue
        named = ", ".join(scope.short for scope in s.scopes) or "no device"
        says = f"reserved memory for {named}" if s.structure == "RMRR" else "registers of a remapping unit"
        yield Fact(f"DMAR's {s.structure}", "; ".join([says, *s.oddities]), s.start, s.end)


def _name(domain: Domain) -> str:
    where = f" of unit {domain.unit:#x}" if domain.unit is not None else ""
    return f"domain {domain.did}{where}"


def _domains(domains: list[Domain], address: int) -> Iterator[Fact]:
    """By which IOVA the devices of each domain reach the address, or that they do not."""
    for d in domains:
        found = list(islice(d.runs.reaching(address), 3))
        for iova, run in found:
            yield Fact(_name(d), f"{run.perm} at IOVA {iova:#x} for {show.devices(d.devices)}", run.start, run.end)
        if not found:
            held = d.runs.at(address)
            how = "the entry holds an address but grants nothing" if held and held.perm == "-" else "nothing is mapped there"
            bounds = (held.start, held.end) if held else (None, None)
            yield Fact(_name(d), f"not reachable for {show.devices(d.devices)}: {how}", *bounds)


def _off(units: Iterable[Unit]) -> Iterator[Fact]:
    for u in units:
        if not u.translating:
            yield Fact(f"unit {u.base:#x}", "translation is off: its devices reach every address")


def _cpu(reader: MemoryReader, nested_root: int | None, address: int) -> Iterator[Fact]:
    if nested_root is None:
        return
    found = walk(reader, NESTED, nested_root, 4, address)
    if found.host is None or found.page_size is None:
        yield Fact("guest's CPU", f"guest-physical {address:#x} is not mapped: {found.verdict.value}")
        return
    start = address - address % found.page_size
    says = f"guest-physical {address:#x}: {found.rights}" + (f", but it is host-physical {found.host:#x}" if found.host != address else "")
    yield Fact("guest's CPU", says, start, start + found.page_size)


def _e820(e820: E820Map, address: int) -> Iterator[Fact]:
    for name, entries in (("guest's E820", e820.guest), ("firmware's E820", e820.firmware)):
        covering = [e for e in entries if e.start <= address < e.end]
        for e in covering:
            yield Fact(name, type_name(e.type), e.start, e.end)
        if entries and not covering:
            yield Fact(name, "in no entry")
