"""Is the core out of reach?  Claims about the whole machine as its memory and registers are now, each with a proof or a counterexample.

    targets    the core's region, every table page that something walks, the units' register pages
    ways       devices: every requester id through every unit, by registers, tables and caches, and past the units
               the guest's CPU: the nested tables
    claims     no way leads to a target

All of it is arrays: the work is that of scanning the tables once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from ..errors import HvlabError, quoted
from ..spec import vtd
from ..spec.bits import align_up
from ..spec.paging import NESTED, PAGE
from ..spec.pci import format_bdf
from .domains import Domain
from .evidence import Evidence
from .explain import explain
from .explanation import ExplainStep, Explanation
from .forge import forged, interrupt_pages
from .proof import Claim, Counterexample, Proof
from .reach import ATS, CONTEXT_CACHE, EVERYBODY, IOTLB, UNCOVERED, CachingUnit, Scans, UnitReach, Way, letters, of_runs, read_reach
from .reader import MemoryReader
from .runs import U64
from .scan import scan
from .targets import Pieces, Targets, reached_pages
from .units import read_register
from .walk import walk
from .window import Opening

__all__ = ["Shared", "Subject", "prove", "read_proof"]

R, W = 1, 2
_BEYOND = 1 << 62


class Proven(Protocol):
    """A run, or whatever else has a proof."""

    @property
    def proof(self) -> Proof: ...


def prove(run: Proven) -> Proof:
    """Whether the core of a run is out of reach of devices and of the guest, claim by claim, as the machine is now.

    Raises HvlabError for what is no run.
    """
    if not hasattr(run, "proof"):
        raise HvlabError(f"prove takes a run, as in prove(machine.boot()), not {quoted(run)}")
    return run.proof


@dataclass(frozen=True)
class Shared:
    """Pages [start, end) of the core (host-physical) that the devices with requester ids `sources` must reach, for it drives them."""

    start: int
    end: int
    sources: tuple[int, ...]

    @property
    def sentence(self) -> str:
        """It in words."""
        names, pages = ", ".join(map(format_bdf, self.sources)), (self.end - self.start) // PAGE
        return f"; {names}, which the core drives, may reach the {pages:,} pages at {self.start:#x} that it shares"


@dataclass(frozen=True)
class Subject:
    """What a proof is about.

    `region` is the core's half-open host-physical range (None: it has none yet), `blank` the page of it that the guest's CPU may read if it
    holds zeros, `parts` named ranges of the region, `nested_root` the guest's nested tables (None: no guest yet).  `requesters(base)` are
    the requester ids of known functions behind a unit, `uncovered` (segment, requester id) of those that no unit sees, `note` what the
    proof leaves out, `openings` when its memory was open to devices.  `others` are (nested root, blank page) of further guests: the claims
    are about their processors, too.  `shared` is what the core gave a device that it drives itself (None: it drives none).  `domains` were
    read a moment ago, which saves scanning them again.
    """

    reader: MemoryReader
    units: Sequence[CachingUnit]
    region: tuple[int, int] | None
    blank: int | None = None
    parts: Sequence[tuple[str, int, int]] = ()
    nested_root: int | None = None
    host_address_width: int | None = None
    requesters: Callable[[int], Iterable[int]] = lambda _base: ()
    uncovered: Sequence[tuple[int, int]] = ()
    note: str = ""
    openings: Sequence[Opening] = ()
    others: Sequence[tuple[int, int | None]] = ()
    shared: Shared | None = None
    domains: Iterable[Domain] = field(default=())


def read_proof(subject: Subject) -> Proof:
    """Judges every claim.  Never raises for what memory and registers hold."""
    if subject.region is None:
        return Proof((Claim("The core has taken its memory.", False, "it has chosen none: there is nothing to protect yet"),))
    return Proof(tuple(_Prover(subject, *subject.region).claims()), subject.note)


class _Prover:
    """The targets and the ways of one machine, read once, and the claims about them."""

    def __init__(self, subject: Subject, start: int, end: int):
        self.subject, self.reader, self.core_start = subject, subject.reader, start
        scans = Scans(subject.reader, subject.domains)
        self.units = [read_reach(subject.reader, unit, subject.host_address_width, scans) for unit in subject.units]
        self.known = {u.unit.base: np.array(sorted(subject.requesters(u.unit.base)), np.int64) for u in self.units}
        roots = [root for root in (subject.nested_root, *(root for root, _ in subject.others)) if root is not None]
        self.nested = [(root, scan(subject.reader, NESTED, root, 4)) for root in roots]
        self.core = Targets.of([(start, end)])
        self.owned = list(self._tables())
        self.tables = Targets.of([], [pages for _, pages in self.owned])

    def claims(self) -> Iterator[Claim]:
        """Devices first, then the guest's processor, then what was before."""
        yield self._by_devices("No device can write the core's memory.", self.core, W)
        yield self._by_devices("No device can read the core's memory.", self.core, R)
        yield self._by_devices("No device can write a table that a unit or the guest's processor walks.", self.tables, W)
        yield self._by_devices("No device can read such a table.", self.tables, R)
        yield self._registers_by_devices()
        yield self._own_messages()
        yield self._interrupts()
        yield self._by_cpu("The guest's processor cannot write the core's memory.", self.core, W)
        yield self._blank_only()
        yield self._by_cpu("The guest's processor cannot write a table that a unit or itself walks.", self.tables, W)
        yield self._by_cpu("The guest's processor cannot read such a table.", self.tables, R)
        yield self._registers_by_cpu()
        yield self._at_any_time()

    # --- what must not be reached

    def _tables(self) -> Iterator[tuple[str, U64]]:
        """The pages of every table that something walks, by name."""
        for u in self.units:
            yield from u.tables
            yield from self._tables_of_interrupts(u)
            yield from self._queue(u)
        for i, (_, found) in enumerate(self.nested):
            yield f"{_guest(i)}'s nested tables", found.tables

    def _tables_of_interrupts(self, u: UnitReach) -> Iterator[tuple[str, U64]]:
        pages = interrupt_pages(u, self.subject.host_address_width)
        if len(pages):
            yield f"interrupt remapping table of the unit at {u.unit.base:#x}", pages[self.reader.tables(pages)[1]]

    def _queue(self, u: UnitReach) -> Iterator[tuple[str, U64]]:
        """The invalidation queue: by a wait descriptor in it the unit writes wherever it says."""
        if not vtd.GSTS.get(u.unit.gsts, "QIES"):
            return
        iqa = read_register(u.registers, "IQA")
        first = iqa & vtd.ADDRESS
        pages = np.arange(first, first + (PAGE << vtd.IQA.get(iqa, "QS")), PAGE, dtype=np.uint64)
        yield f"invalidation queue of the unit at {u.unit.base:#x}", pages[self.reader.tables(pages)[1]]

    def _register_pages(self, units: Iterable[UnitReach]) -> U64:
        pages = [np.arange(u.unit.base, u.unit.base + _register_bytes(u), PAGE, dtype=np.uint64) for u in units]
        return np.concatenate([np.zeros(0, np.uint64), *pages])

    def lies(self, address: int) -> str:
        """What lies at a host-physical address."""
        page = address - address % PAGE
        for name, pages in self.owned:
            i = int(np.searchsorted(pages, np.uint64(page)))
            if i < len(pages) and int(pages[i]) == page:
                return name
        part = next((name for name, start, end in self.subject.parts if start <= address < end), None)
        if part is not None:
            return f"the core's {part}"
        unit = next((u for u in self.units if u.unit.base <= address < u.unit.base + _register_bytes(u)), None)
        return f"registers of the unit at {unit.unit.base:#x}" if unit else "the core's memory"

    # --- devices

    @cached_property
    def ways(self) -> list[Way]:
        """All ways of devices: past the units first."""
        found = [*self._past_the_units(), *(way for u in self.units for way in u.ways)]
        shared = self.subject.shared
        return [part for way in found for part in _split(way, shared.sources)] if shared else found

    def _reached(self, way: Way, targets: Targets, need: int) -> Pieces:
        """What of the targets a way leads to; what the core shares with a device that it drives is none for that device."""
        shared = self.subject.shared
        mine = shared and not way.segment and np.isin(way.sources, shared.sources).all()
        return (targets.without(shared.start, shared.end) if shared and mine else targets).reached(way, need)

    def _past_the_units(self) -> Iterator[Way]:
        for segment in dict.fromkeys(segment for segment, _ in self.subject.uncovered):
            sources = np.array([source for s, source in self.subject.uncovered if s == segment], np.int64)
            whole = np.array([0], np.uint64), np.array([_BEYOND], np.uint64), np.array([3], np.uint8), np.array([0], np.int64)
            yield Way(UNCOVERED, None, sources, *whole, segment)

    def _by_devices(self, claim: str, targets: Targets, need: int) -> Claim:
        found = [(way, pieces) for way in self.ways if len((pieces := self._reached(way, targets, need)).run)]
        if found:
            pages = reached_pages(pieces for _, pieces in found)
            example = self._example(*min(found, key=lambda f: self._known_in(f[0]) is None), need)
            return Claim(claim, False, f"{pages:,} of {targets.pages:,} pages are reached: {example.sentence}", example, pages)
        unknown = [text for u in self.units for text in u.unknown]
        if unknown:
            return Claim(claim, False, "not decided: " + "; ".join(dict.fromkeys(unknown)))
        runs = sum(len(way.start) for way in self.ways)
        return Claim(claim, True, f"none of {runs:,} runs that grant a right to any of {len(EVERYBODY):,} requester ids leads to one of "
                                  f"{targets.pages:,} pages{self.subject.shared.sentence if self.subject.shared else ''}")

    def _known_in(self, way: Way) -> int | None:
        """The lowest requester id of a known function that has this way."""
        if way.unit is None:
            return int(way.sources[0])
        both = np.intersect1d(self.known[way.unit], way.sources)
        return int(both[0]) if len(both) else None

    def _example(self, way: Way, pieces: Pieces, need: int) -> Counterexample:
        """The lowest host-physical page of what a way reaches."""
        i = int(np.argmin(pieces.low))
        run, host = int(pieces.run[i]), int(pieces.low[i])
        iova, rights = host - int(way.offset[run]), letters(int(way.rights[run]))
        known = self._known_in(way)
        source = int(way.sources[0]) if known is None else known
        steps = None if way.unit is None else self._way_of(way, source, iova, host, "write" if need == W else "read")
        note = "no known function has this requester id, but a device may use it" if known is None else ""
        who = format_bdf(source) + (f" of segment {way.segment}" if way.segment else "")
        return Counterexample(who, way.how, way.unit, source, iova, host - host % PAGE, rights, self.lies(host), steps, note)

    def _way_of(self, way: Way, source: int, iova: int, host: int, access: str) -> Explanation:
        """The steps of a request that gets through."""
        unit = next(u for u in self.units if u.unit.base == way.unit)
        told = explain(self.reader, unit.registers, source, iova, access, self.subject.host_address_width)
        if way.how not in (CONTEXT_CACHE, IOTLB, ATS):
            return told
        whose = {ATS: "the context allows requests that say that their address is host-physical already",
                 IOTLB: f"an entry for the requester's domain leads to {host:#x}, whatever the tables say by now",
                 CONTEXT_CACHE: "the unit remembers another context of this requester than its tables have by now"}[way.how]
        kept = told.steps[:3] if way.how == ATS else told.steps[:1]
        steps = (*kept, ExplainStep(way.how, whose, True, Evidence("6.2")))
        return Explanation(told.unit, source, iova, access, steps, None, host, False, f"goes through: reaches host-physical {host:#x}")

    def _registers_by_devices(self) -> Claim:
        claim = "No device's request lands in the registers of a remapping unit."
        pages = self._register_pages(self.units)
        ram = self.reader.tables(pages)[1] if len(pages) else np.zeros(0, np.bool_)
        if ram.any():
            return self._by_devices(claim, Targets.of([], [pages[ram]]), R | W)
        return Claim(claim, True, f"behind the units only memory answers devices, and none lies at their {len(pages):,} register pages")

    def _own_messages(self) -> Claim:
        """Fault and invalidation events are 4-byte writes of the unit to an address that software chose, which nothing remaps."""
        claim = "No unit writes a message of its own into the core's memory or such a table."
        for u in self.units:
            for event in ("FE", "IE"):
                address = read_register(u.registers, event + "ADDR") | read_register(u.registers, event + "UADDR") << 32
                masked = vtd.FECTL.get(read_register(u.registers, event + "CTL"), "IM")
                if masked or vtd.in_interrupt_range(address) or not self._in_core(address):
                    continue
                example = Counterexample(f"the unit at {u.unit.base:#x}", f"its {event}ADDR and {event}UADDR", u.unit.base, None, address,
                                         address - address % PAGE, "w", self.lies(address))
                return Claim(claim, False, example.sentence, example, 1)
        return Claim(claim, True, "no event that is not masked has an address there")

    def _in_core(self, address: int) -> bool:
        ranges = np.array([address], np.uint64), np.array([min(address + 4, _BEYOND)], np.uint64)
        point = Way("", None, EVERYBODY[:0], *ranges, np.array([W], np.uint8), np.array([0], np.int64))
        return address < _BEYOND and any(len(t.reached(point, W).run) for t in (self.core, self.tables))

    def _interrupts(self) -> Claim:
        claim = "No device can forge an interrupt."
        for segment, source in self.subject.uncovered[:1]:
            who = format_bdf(source) + (f" of segment {segment}" if segment else "")
            example = Counterexample(who, UNCOVERED, None, source, vtd.INTERRUPT_RANGE.start, None, "w", "interrupts")
            return Claim(claim, False, example.sentence, example)
        for u in self.units:
            known = self.known[u.unit.base]
            example_of = forged(self.reader, u, int(known[0]) if len(known) else 0, self.subject.host_address_width)
            if example_of:
                return Claim(claim, False, example_of.sentence, example_of)
        return Claim(claim, True, f"each of {len(self.units)} units lets through only what an entry of its table names the sender for")

    def _at_any_time(self) -> Claim:
        """By what the machine noted when it happened, for memory and registers have forgotten it."""
        claim = "Since the core laid its code and key no unit has left its memory open."
        first = next(iter(self.subject.openings), None)
        if first is None:
            return Claim(claim, True, "each unit translated, or protected all of the core's memory, from then on")
        example = Counterexample("every device behind it", f"no translation and no protected memory from {first.began} to {first.ended}",
                                 first.unit, None, self.core_start, self.core_start, "rw", self.lies(self.core_start))
        return Claim(claim, False, "; ".join(o.sentence for o in self.subject.openings), example, self.core.pages)

    # --- the guest's processor

    def _by_cpu(self, claim: str, targets: Targets, need: int, note: str = "") -> Claim:
        """What the processor of any guest reaches."""
        ways = [Way("the nested tables", None, EVERYBODY[:0], *of_runs(found.runs)) for _, found in self.nested]
        reached = [targets.reached(way, need) for way in ways]
        if any(len(pieces.run) for pieces in reached):
            pages, i = reached_pages(reached), next(i for i, pieces in enumerate(reached) if len(pieces.run))
            example = self._cpu_example(i, ways[i], reached[i])
            return Claim(claim, False, f"{pages:,} of {targets.pages:,} pages are reached: {example.sentence}", example, pages)
        if any(found.truncated for _, found in self.nested):
            return Claim(claim, False, "not decided: the nested tables grant more runs than are read")
        if not self.nested:
            return Claim(claim, True, "there is no guest yet")
        runs = sum(len(found.runs) for _, found in self.nested)
        return Claim(claim, True, f"none of {runs:,} runs of the nested tables leads to one of {targets.pages:,} pages{note}")

    def _cpu_example(self, number: int, way: Way, pieces: Pieces) -> Counterexample:
        i = int(np.argmin(pieces.low))
        run, host = int(pieces.run[i]), int(pieces.low[i])
        guest = host - int(way.offset[run])
        found = walk(self.reader, NESTED, self.nested[number][0], 4, guest)
        who = f"{_guest(number)}'s processor"
        return Counterexample(who, way.how, None, None, guest, host - host % PAGE, found.rights, self.lies(host), found)

    def _blank_only(self) -> Claim:
        """Each guest's blank page may be read as long as it holds zeros."""
        claim, targets, note = "The guest's processor can read nothing of the core's memory but a page of zeros.", self.core, ""
        for blank in (self.subject.blank, *(blank for _, blank in self.subject.others)):
            words, readable = self.reader.tables(np.array([blank or 0], np.uint64))
            if blank is not None and readable[0] and not words.any():
                targets, note = targets.without(blank, blank + PAGE), f"{note}; the page at {blank:#x} may be read and holds zeros"
        return self._by_cpu(claim, targets, R, note)

    def _registers_by_cpu(self) -> Claim:
        claim = "The guest's processor cannot reach the registers of a unit that translates or remaps interrupts."
        on = [u for u in self.units if u.unit.translating or vtd.GSTS.get(u.unit.gsts, "IRES")]
        if not on:
            return Claim(claim, True, "no unit does: there is nothing that the guest could switch off")
        return self._by_cpu(claim, Targets.of([], [self._register_pages(on)]), R | W)


def _split(way: Way, sources: Sequence[int]) -> list[Way]:
    """A way as that of some requesters and that of all others."""
    own = np.isin(way.sources, sources)
    if way.segment or not own.any() or own.all():
        return [way]
    return [replace(way, sources=way.sources[~own]), replace(way, sources=way.sources[own])]


def _guest(number: int) -> str:
    """A guest by its number from 0, of which the first is `the guest`."""
    return f"guest {number + 1}" if number else "the guest"


def _register_bytes(u: UnitReach) -> int:
    """Bytes of a unit's register pages, by its own capability registers."""
    return align_up(max(r.offset + r.size for r in vtd.registers(u.unit.cap, u.unit.ecap)), PAGE)
