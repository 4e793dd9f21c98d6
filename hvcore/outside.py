"""Memory from outside: a dump in a file, or a running QEMU, looked at with the views of a run.  Nothing there is changed."""

import contextlib
import html
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import numpy as np

from .errors import HvlabError, Unreadable, quoted
from .figures import attach
from .inspect.cached import CachedDomain
from .inspect.dmar import DmarTable, read_dmar
from .inspect.domains import Domain, read_domains
from .inspect.e820 import E820Map
from .inspect.explain import Explanation, explain, explain_fault
from .inspect.faults import Fault, read_faults
from .inspect.functions import Function
from .inspect.interrupts import InterruptEntry, read_interrupts
from .inspect.lens import Fact, Lens, look
from .inspect.permissions import Permissions
from .inspect.proof import Claim, Proof
from .inspect.prove import Subject, read_proof
from .inspect.provenance import Provenance
from .inspect.records import Column, Records
from .inspect.roots import RootGuess, find_roots
from .inspect.runs import Runs
from .inspect.units import RegisterValue, Unit, read_registers, read_units
from .linuxtables import ContextDifference, compare
from .machine.description import PciDescription
from .machine.topology import Topology
from .sources.debugfs import LoggedTables
from .sources.dump import open_dump
from .sources.foundmap import find_e820
from .sources.outsidesource import DumpSource, ListedConfig, LiveSource, Source
from .sources.outsideunit import ASSUMED_CAP, ASSUMED_ECAP, OutsideUnit, assumed
from .sources.physical import PhysicalMemory
from .sources.qemu import QemuMachine
from .spec.dmar import Drhd
from .spec.e820 import E820Entry, E820Type
from .spec.pci import format_bdf
from .spec.vtd import mgaw

__all__ = ["FoundMap", "Outside", "Region"]

T = TypeVar("T")
_QEMU = "qemu:"
_BY_TABLES = ("No device can write", "No device can read")
"""Claims that the tables decide, by how they begin."""
_BY_UNITS = (*_BY_TABLES, "No device's", "No unit", "No device can forge")
"""Those that tables and registers decide; the others are about a guest's processor and about what was before, which nobody told."""
_NO_REGISTERS = ("nothing is known of a remapping unit: give its root table (--root, root=), or a copy of its registers (--registers, "
                 "registers=)")
_NO_UNIT = "QEMU has no remapping unit (-device intel-iommu): its devices reach all memory"
_RUNS = 256
"""Ranges of a dump that stand in for a memory map, at most."""
_CORE = "the core's memory"
"""What a proof calls the region in which nothing else is known."""


def _reworded(claim: Claim) -> Claim:
    """A claim about a core, as one about the region that was given."""
    text = claim.claim.replace("the core's memory", "the region").replace("a unit or the guest's processor", "a unit")
    example = claim.counterexample
    if example is not None and example.lies == _CORE:
        example = replace(example, lies="the region")
    return replace(claim, claim=text, why=claim.why.replace(f"({_CORE})", "(the region)"), counterexample=example)


class FoundMap(E820Map):
    """A memory map of which it is not known whom it was told: it has one column of types."""

    def __init__(self, entries: Iterable[E820Entry], note: str):
        super().__init__(entries)
        self.note = note

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those of one map."""
        return (*self.kind.columns[:3], replace(self.kind.columns[3], name="type"))


@dataclass(frozen=True)
class Region:
    """Host-physical memory that must be out of reach: its base (None: none was named) and size in bytes."""

    base: int | None
    size: int


class Outside:
    """A machine that somebody else runs or ran.  Every part displays itself and has `.frame`, as those of a run.

    `assumptions` says in a sentence each what was not told and chosen.  A running QEMU is read anew at each look; parts that are read
    inside `with outside.look():` are of one time.
    """

    def __init__(self, source: Source, root: int | None = None, region: tuple[int, int] | None = None):
        self._source, self.root, self.region = source, root, region
        self._parts: dict[str, Any] = {}
        self._number = 0

    @classmethod
    def open(cls, source: str | Path, root: int | None = None, region: tuple[int, int] | None = None, ram: Iterable[tuple[int, int]] = (),
             registers: str | Path | None = None, consistent: bool = False) -> "Outside":
        """A memory dump (raw, ELF, LiME), or `qemu:SOCKET` for a running QEMU with a QMP socket.

        `root` is a root table (host-physical) to be taken in place of what the units use, `region` the half-open range that a proof is
        about, `ram` the ranges of a raw dump that are RAM, `registers` a copy of Linux's `iommu_regset` or the `registers.json` of
        `hvlab dump`.  With `consistent` QEMU's guest is paused while it is read.  Raises HvlabError, one sentence.
        """
        if root is not None and (root % 4096 or not 0 <= root < 1 << 52):
            raise HvlabError(f"{root:#x} cannot be a root table's address: give a multiple of 0x1000 below 2^52")
        if region is not None and not 0 <= region[0] < region[1] <= 1 << 52:
            raise HvlabError(f"{quoted(region)} is no region: give its first address and the one behind the last, both below 2^52")
        name = str(source)
        if not name.startswith(_QEMU):
            return cls(DumpSource(open_dump(source, ram), registers), root, region)
        if tuple(ram) or registers is not None:
            raise HvlabError("a running QEMU tells itself where its RAM is and what its registers hold: leave both out")
        return cls(LiveSource(QemuMachine(name.removeprefix(_QEMU), consistent)), root, region)

    def __enter__(self) -> "Outside":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the source; a QEMU goes on."""
        self._source.close()

    @property
    def name(self) -> str:
        """The source."""
        return self._source.name

    @property
    def memory(self) -> PhysicalMemory:
        """Its memory, for any inspector."""
        return self._source.memory

    # --- reading

    @contextlib.contextmanager
    def look(self) -> Iterator[None]:
        """All that is read inside is of one time."""
        with self._source.look() as number:
            if number != self._number:
                self._parts.clear()
                self._number = number
            yield

    def _part(self, name: str, read: Callable[[], T]) -> T:
        """A part, read once a look."""
        with self.look():
            if name not in self._parts:
                self._parts[name] = read()
                attach(name, self._parts[name], cast(Any, self))
            part: T = self._parts[name]
            return part

    @property
    def e820(self) -> FoundMap:
        """The memory map that the guest was told at boot, where it still lies in memory; else what there is as RAM."""
        return self._part("e820", self._e820)

    def _e820(self) -> FoundMap:
        found = find_e820(self.memory)
        if found is None:
            runs = self.memory.runs
            more = f" {len(runs) - _RUNS} more are not shown." if len(runs) > _RUNS else ""
            entries = tuple(E820Entry(start, end, E820Type.USABLE) for start, end in runs[:_RUNS])
            found = entries, f"No memory map was found in memory: these are the ranges that can be read.{more}"
        return FoundMap(*found)

    @property
    def dmar(self) -> DmarTable:
        """The DMAR table that the RSDP in memory leads to."""
        def requester(segment: int, source: int) -> int:
            return Topology(None, self._functions).requester(segment, source)
        config = ListedConfig(self._functions) if self._functions else None
        return self._part("dmar", lambda: read_dmar(self.memory, config, self.e820.firmware, requester))

    @property
    def _functions(self) -> tuple[PciDescription, ...]:
        return self._part("functions", lambda: self._source.functions)

    @property
    def _drhds(self) -> tuple[Drhd, ...]:
        return tuple(self.dmar.table.drhds) if self.dmar.table else ()

    @property
    def _width(self) -> int | None:
        """Host address width in bits, by the DMAR table; of a QEMU without one as wide as input addresses, for `aw-bits` sets both."""
        if self.dmar.table:
            return self.dmar.table.host_address_width
        return mgaw(self._readers[0].description.cap) if self._source.live and self._readers else None

    @property
    def _topology(self) -> Topology:
        return self._part("topology", lambda: Topology(self.dmar.table, self._functions))

    @property
    def _readers(self) -> list[OutsideUnit]:
        """The units whose registers are known."""
        return self._part("readers", lambda: self._source.units(self._drhds))

    @property
    def _walked(self) -> list[OutsideUnit]:
        """The units whose tables are followed: one that is assumed where a root table was given."""
        if self.root is None:
            return self._readers
        known, drhds = self._readers[:1], self._drhds
        base = known[0].description.base if known else drhds[0].base if len(drhds) == 1 else 0
        cap, ecap = (known[0].description.cap, known[0].description.ecap) if known else (ASSUMED_CAP, ASSUMED_ECAP)
        return [assumed(base, self.root, 0, cap, ecap)]

    @property
    def _no_unit(self) -> str:
        """Why no unit is known."""
        return _NO_UNIT if self._source.live else _NO_REGISTERS

    @property
    def units(self) -> Records[Unit]:
        """The remapping units whose registers are known, and the devices they cover; the assumed one where a root table was given."""
        return self._part("units", lambda: read_units(self._walked, self._requesters, self._width))

    def _requesters(self, base: int) -> tuple[int, ...]:
        """Requester ids of known functions behind a unit; a unit that no DRHD names, where there is none, has all."""
        index = next((i for i, d in enumerate(self._drhds) if d.base == base), None)
        if index is not None and self.root is None:
            return self._topology.requesters(index)
        return tuple(dict.fromkeys(self._topology.requester(f.segment, f.source) for f in self._functions))

    @property
    def registers(self) -> dict[int, Records[RegisterValue]]:
        """Every register of every unit, decoded, by the unit's register base."""
        return self._part("registers", lambda: {u.description.base: read_registers(u) for u in self._readers})

    @property
    def domains(self) -> Records[Domain]:
        """The domains in the units' tables, or under the root table that was given."""
        return self._part("domains", self._domains)

    def _domains(self) -> Records[Domain]:
        if self.root is not None and not self.memory.tables(np.array([self.root], np.uint64))[1][0]:
            raise HvlabError(f"{self.name}: there is no page at {self.root:#x}, where the root table should be: look at RTADDR")
        found = read_domains(self.memory, self._walked, self._width)
        found.note = found.note or ("" if self._walked else f"{self._no_unit}.")
        return found

    @property
    def functions(self) -> Records[Function]:
        """The PCI functions of a running QEMU, and the unit that sees each; none of a dump."""
        return self._part("functions_shown", lambda: Records(Function, [self._function(f) for f in self._functions]))

    def _function(self, f: PciDescription) -> Function:
        requester = self._topology.requester(f.segment, f.source)
        seen = [u.base for u in self.units if u.segment == f.segment and requester in u.devices]
        return Function(f.segment, f.source, requester, f.vendor, f.device_id, f.class_code, seen[0] if seen else None,
                        f.secondary or None, f.subordinate or None)

    @property
    def cpu(self) -> Runs:
        """What a guest's CPU reaches by nested tables: not known."""
        return Runs.of([])

    @property
    def cached(self) -> Records[CachedDomain]:
        """What the units' IOTLBs hold: not known."""
        return Records(CachedDomain, note="What units remember cannot be seen from outside.")

    @property
    def vmm(self) -> Region:
        """The region that was given, where a run has its core's memory."""
        return Region(None, 0) if self.region is None else Region(self.region[0], self.region[1] - self.region[0])

    @property
    def permissions(self) -> Permissions:
        """What each domain may reach."""
        return self._part("permissions", lambda: Permissions(self.domains))

    @property
    def faults(self) -> Records[Fault]:
        """The fault records of the units."""
        return self._part("faults", self._faults)

    def _faults(self) -> Records[Fault]:
        found = read_faults(u for u in self._readers if u.records_faults)
        mute = [f"{u.description.base:#x}" for u in self._readers if not u.records_faults]
        found.note = " ".join(filter(None, [found.note, f"Not told: the fault records of {', '.join(mute)}." if mute else ""]))
        return found

    @property
    def interrupts(self) -> Records[InterruptEntry]:
        """The present entries of the units' interrupt remapping tables."""
        return self._part("interrupts", self._interrupts)

    def _interrupts(self) -> Records[InterruptEntry]:
        tables = [read_interrupts(self.memory, unit, self._width) for unit in self._readers]
        return Records(InterruptEntry, [e for t in tables for e in t], note="\n".join(t.note for t in tables if t.note))

    @property
    def guesses(self) -> Records[RootGuess]:
        """Pages that could be a root table, for dumps without registers; reads all of the memory."""
        return self._part("guesses", lambda: find_roots(self.memory, self.memory.runs))

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What was not told and chosen, in a sentence each."""
        return self._part("assumptions", lambda: tuple(self._assumptions()))

    def _assumptions(self) -> Iterator[str]:
        yield from self._source.notes
        yield self.e820.note
        if self.root is not None:
            told = "its capabilities are those of the unit that is known" if self._readers else (
                "that it walks 3 to 5 levels and takes 2 MiB and 1 GiB pages, 57 bits, and pass-through")
            yield f"The root table {self.root:#x} was given: it is assumed that a unit translates by it, and {told}."
        missing = {d.base for d in self._drhds} - {u.description.base for u in self._readers}
        if missing and self._readers:
            yield f"Registers of the units at {', '.join(f'{base:#x}' for base in sorted(missing))} are not known."
        yield "What units remember in their caches cannot be seen from outside."

    # --- asking

    def lens(self, address: int) -> Lens:
        """Everything known of one host-physical address.  Raises HvlabError for what is none."""
        if not isinstance(address, int) or not 0 <= address < 1 << 64:
            raise HvlabError(f"{quoted(address)} is no physical address: give a number from 0 to {(1 << 64) - 1:#x}")
        with self.look():
            found = look(self.memory, address, self.e820, self.domains, (), None, self.units, self.dmar)
        if self.region is None or not self.region[0] <= address < self.region[1]:
            return found
        return replace(found, facts=(Fact("region", "part of what must be out of reach", *self.region), *found.facts))

    def explain(self, fault: Fault) -> Explanation:
        """The way of a DMA or an interrupt message that faulted, by tables and registers as they are now.

        Raises HvlabError for what is no fault record of these units.
        """
        with self.look():
            units = {u.description.base: u for u in self._readers}
            if not isinstance(fault, Fault) or fault.unit not in units:
                raise HvlabError(f"{quoted(fault)} is no fault of this machine: give one of outside.faults, or ask what_if(source, iova)")
            return explain_fault(self.memory, dict(units), fault, self._width)

    def what_if(self, source: int, iova: int, access: str = "read", segment: int = 0) -> Explanation:
        """What would become of a DMA of requester `source` at `iova`, step by step; nothing is sent.

        Raises HvlabError for what is no request, and where no unit that is known covers the requester.
        """
        if access not in ("read", "write") or not 0 <= iova < 1 << 64 or not 0 <= source < 1 << 16:
            raise HvlabError(f"{quoted(access)} by {source:#x} at {iova:#x} is no request: give a requester id of 16 bits, an address of "
                             f"64 bits, and `read` or `write`")
        with self.look():
            return explain(self.memory, self._unit_of(segment, source), source, iova, access, self._width)

    def _unit_of(self, segment: int, source: int) -> OutsideUnit:
        """The unit that sees a requester's DMA."""
        walked = self._walked
        if not walked:
            raise HvlabError(f"{self.name}: {self._no_unit}")
        if self.root is not None or not self._drhds:
            return walked[0]
        index = self._topology.unit_index(segment, source)
        base = None if index is None else self._drhds[index].base
        unit = next((u for u in walked if u.description.base == base), None)
        if unit is None:
            known = "no remapping unit covers it" if index is None else f"the registers of its unit at {base:#x} are not known"
            raise HvlabError(f"{format_bdf(source)}: {known}")
        return unit

    def who_wrote(self, address: int, length: int = 8) -> Records[Provenance]:
        """The bytes at a host-physical address as one record: who wrote them nobody saw."""
        with self.look():
            try:
                now = self.memory.read(address, length)
            except Unreadable:
                now = None
        return Records(Provenance, [Provenance(address, length, "unseen", "not seen from outside", None, "", None, None, now)])

    @property
    def proof(self) -> Proof:
        """Whether the region that was given is out of reach of devices: the claims that tables and registers decide.

        Raises HvlabError where no region was given, or nothing is known of units.
        """
        if self.region is None:
            raise HvlabError("there is nothing to prove: give the region that must be out of reach, region=(START, END)")
        return self._part("proof", self._proof)

    def _proof(self) -> Proof:
        assert self.region is not None
        walked = self._walked
        if not self._provable:
            raise HvlabError(f"{self.name}: {self._no_unit}")
        subject = Subject(self.memory, walked, self.region, host_address_width=self._width,
                          requesters=self._requesters, uncovered=self._uncovered(), domains=self.domains)
        kept = _BY_TABLES if self.root is not None else _BY_UNITS
        claims = [c for c in read_proof(subject).claims if c.claim.startswith(kept)]
        start, end = self.region
        return Proof(tuple(_reworded(c) for c in claims), f"The region is {start:#x}-{end:#x}. {' '.join(self.assumptions)}")

    def _uncovered(self) -> list[tuple[int, int]]:
        """Known functions that no unit sees."""
        seen = dict.fromkeys((f.segment, self._topology.requester(f.segment, f.source)) for f in self._functions)
        if self.root is not None or not self._drhds:
            return [] if self._walked else list(seen)
        return [known for known in seen if self._topology.unit_index(*known) is None]

    def compare(self, tables: LoggedTables) -> Records[ContextDifference]:
        """Where the context entries that Linux printed for a unit differ from those in memory."""
        with self.look():
            return compare(tables, self.memory)

    # --- showing

    def to_json(self) -> dict[str, Any]:
        """All as plain values: addresses as integers, ranges half-open; `guesses` where nothing is known of units."""
        with self.look():
            parts = {"source": self.name, "assumptions": list(self.assumptions), "e820": self.e820.to_json(), "dmar": self.dmar.to_json(),
                     "units": self.units.to_json(), "domains": self.domains.to_json(), "faults": self.faults.to_json()}
            guesses = {"guesses": self.guesses.to_json()} if self._guessing else {}
            return parts | guesses | ({"proof": self.proof.to_json()} if self._provable else {})

    @property
    def _provable(self) -> bool:
        return self.region is not None and bool(self._walked or self._functions)

    @property
    def _guessing(self) -> bool:
        return not self._walked and not self._source.live

    def _shown(self) -> list[Any]:
        parts: list[Records[Any]] = [self.e820, self.dmar, self.units, self.domains, self.faults]
        guesses = [self.guesses] if self._guessing else []
        return [*(p for p in parts if len(p) or p.note), *guesses, *([self.proof] if self._provable else [])]

    def _headline(self) -> list[str]:
        return [self.name, *(f"  {sentence}" for sentence in self.assumptions)]

    def __str__(self) -> str:
        with self.look():
            return "\n\n".join(["\n".join(self._headline()), *map(str, self._shown())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        with self.look():
            head = "<br>".join(html.escape(line) for line in self._headline())
            return f"<p>{head}</p>" + "".join(part._repr_html_() for part in self._shown())
