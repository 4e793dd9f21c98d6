"""Where QEMU's `intel-iommu` departs from the specification: each departure with a name, an explanation, and a model that predicts it.

`LikeQemu` is our unit with all of them.  A request on which QEMU and our unit disagree is explained when the model foretells exactly what
QEMU did; the departures without which the model would not are its causes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vtd_qemu import SOURCES, Outcome, Scene, Variant, run_ours

from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.machine.vtd.caches import ContextCache
from hvcore.machine.vtd.faults import FaultLog
from hvcore.machine.vtd.invalidation import Invalidator
from hvcore.machine.vtd.walk import Context, Found, Mapping
from hvcore.spec.dma import Direction, DmaRequest, RemapFault
from hvcore.spec.vtd import (
    ADDRESS,
    FPD_SILENCES,
    FRCD_HIGH,
    FUNCTION_MASK,
    INTERRUPT_RANGE,
    FaultReason,
    R,
    TranslationType,
    W,
    in_interrupt_range,
    level_shift,
)

__all__ = ["DIFFERENCES", "LikeQemu", "Unexplained", "Verdict", "judge"]

DIFFERENCES: dict[str, str] = {
    "junk-pasid": "a fault record of a request without PASID has 0xffff in bits 55:40 of its high word, where the PASID field must be 0",
    "interrupt-range-input": "a read or an 8-byte write at 0xfeexxxxx is taken for interrupts and never faults (by the specification: 0xe)",
    "pass-through-switch": "a pass-through device is led past the unit as a whole, by what the tables say when TE is set, when a context "
                           "is invalidated or at its first request; until the next such moment no entry is read and no width is checked",
    "iotlb-by-source": "IOTLB entries are tagged by requester and found before the context is looked at (should be: by domain id, after)",
    "silent-block": "a request that meets an IOTLB entry without its permission is blocked without a fault (specification: 5 or 6)",
    "permission-first": "an entry's R or W bit is looked at before its reserved bits: 5 or 6 where the specification wants 0xc",
    "all-ones": "a paging entry of all ones counts as unreadable: 3 or 7 where the specification wants 0xc",
    "superpage-interrupt": "every address of a superpage that holds 0xfeexxxxx faults 0xe, not only those addresses",
    "fpd-context-reserved": "fault 0xb is recorded despite FPD",
    "collapse-by-source": "a fault is dropped while any record of the same requester is pending, whatever it says",
    "page-mask-8-bits": "a page invalidation compares the low 8 bits of page numbers only, so it drops more than it was asked",
    "context-invalidation-wide": "a domain invalidation of contexts does all, a device invalidation does not look at the domain id",
    "root-pointer-flush": "setting the root-table pointer or changing TE empties all caches",
    "absent-never-cached": "caching mode is announced and what is not present is never cached",
}
_PV = FRCD_HIGH["PV"].mask
_JUNK = 0xFFFF << 40
_NEED = {Direction.READ: R, Direction.WRITE: W}
_DENIED = {Direction.READ: FaultReason.READ_DENIED, Direction.WRITE: FaultReason.WRITE_DENIED}


class Switches:
    """Which departures are on, and which were ever asked for."""

    def __init__(self, without: frozenset[str]):
        self.without, self.used = without, set[str]()

    def __call__(self, name: str) -> bool:
        self.used.add(name)
        return name not in self.without


class SourceIotlb:
    """QEMU's IOTLB: entries by tag (the requester) and page, each with the domain id it was filled under."""

    def __init__(self, on: Switches):
        self.on = on
        self.all: dict[tuple[int, int, int], tuple[int, Mapping]] = {}

    def find(self, tag: int, iova: int) -> Mapping | None:
        for shift in (12, 21, 30):
            if found := self.all.get((tag, shift, iova >> shift)):
                return found[1]
        return None

    def insert(self, tag: int, did: int, iova: int, mapping: Mapping) -> None:
        shift = mapping.size.bit_length() - 1
        self.all[tag, shift, iova >> shift] = did, mapping

    def entries(self) -> tuple[()]:
        return ()

    def invalidate_all(self) -> None:
        self.all.clear()

    def invalidate_domain(self, did: int) -> None:
        self.all = {key: e for key, e in self.all.items() if e[0] != did}

    def invalidate_pages(self, did: int, iova: int, am: int) -> None:
        self.all = {key: e for key, e in self.all.items() if e[0] != did or not self._touched(key, iova >> 12, am)}

    def _touched(self, key: tuple[int, int, int], page: int, am: int) -> bool:
        _, shift, number = key
        first, size = number << shift - 12, 1 << shift - 12
        start = page >> am << am
        asked = first < start + (1 << am) and start < first + size
        if asked:
            return True
        mask = ~((1 << am) - 1) & 0xFF
        return first & mask == page & mask and self.on("page-mask-8-bits")


class WideInvalidator(Invalidator):
    """Context invalidation as QEMU does it; after it, who is passed through is decided anew."""

    unit: "LikeQemu"

    def invalidate_contexts(self, granularity: int, did: int, source: int, fm: int) -> int:
        unit = self.unit
        dids = {did}
        if granularity in (2, 3) and unit.on("context-invalidation-wide"):
            dids = {c.did for c in unit.contexts.entries.values()}
        for one in dids:
            super().invalidate_contexts(granularity, one, source, fm)
        for one in SOURCES:
            if granularity in (1, 2) or (granularity == 3 and not (one ^ source) & ~FUNCTION_MASK[fm]):
                unit.switch(one)
        return granularity


class CollapsingLog(FaultLog):
    """QEMU's fault records."""

    on: Switches

    def _pending(self, low: int, high: int) -> bool:
        if super()._pending(low, high):
            return True
        same = any(self.file[f"FRCD{i}_HIGH"] >> 63 and self.file[f"FRCD{i}_HIGH"] & 0xFFFF == high & 0xFFFF for i in range(self.count))
        return same and self.on("collapse-by-source")


class LikeQemu(RemappingUnit):
    """Our unit with QEMU's departures, except those in `without`."""

    def __init__(self, description: UnitDescription, memory: Memory, haw: int, without: frozenset[str] = frozenset()):
        self.on, self.direct = Switches(without), set[int]()
        super().__init__(description, memory, haw)
        self.contexts: ContextCache = self._contexts
        self.iotlb = SourceIotlb(self.on)
        invalidator = WideInvalidator(description.cap, self._contexts, self.iotlb)  # type: ignore[arg-type]
        invalidator.unit = self
        self._invalidator = self._queue.invalidator = invalidator
        log = CollapsingLog(self.file, self._fault_event)
        log.on = self.on
        self._faults = self._queue.faults = log
        self._effects = self._write_effects()

    def switch(self, source: int) -> None:
        """Decides from the tables whether a requester is passed through."""
        context = self.walker.context(self._root, source)
        through = self._translating and context.reason is None and context.tt is TranslationType.PASS_THROUGH
        (self.direct.add if through else self.direct.discard)(source)

    def _flush(self) -> None:
        if (self.contexts.entries or self.iotlb.all) and self.on("root-pointer-flush"):
            self.contexts.invalidate_all()
            self.iotlb.invalidate_all()
        for source in SOURCES:
            self.switch(source)

    def _latch_root(self) -> None:
        super()._latch_root()
        self._flush()

    def _translation_switched(self) -> None:
        super()._translation_switched()
        self._flush()

    def remap(self, request: DmaRequest) -> int | RemapFault:
        iova, source = request.iova, request.source
        if not self._translating:
            return super().remap(request)
        if in_interrupt_range(iova) and self.on("interrupt-range-input"):
            return self._silent(request, FaultReason.INTERRUPT_RANGE)
        if source in self.direct and self.on("pass-through-switch"):
            return iova
        found = self.iotlb.find(source, iova)
        if found and self.on("iotlb-by-source"):
            return self._hit(request, found, False)
        return self._through_context(request)

    def _through_context(self, request: DmaRequest) -> int | RemapFault:
        iova, source = request.iova, request.source
        context = self.contexts.entries.get(source) or self._fetch_context(source)
        if context.reason:
            return self._refuse(request, context.reason, context.fpd)
        if context.tt is TranslationType.PASS_THROUGH and self.on("pass-through-switch"):
            self.switch(source)
            return iova
        if reason := self.walker.address_refusal(context, iova):
            return self._refuse(request, reason, context.fpd)
        if context.tt is TranslationType.PASS_THROUGH:
            return iova
        shared = self.iotlb.find(-1 - context.did, iova)
        if shared and not self.on("iotlb-by-source"):
            return self._hit(request, shared, context.fpd)
        mapping = self._walk(context, request)
        if isinstance(mapping, FaultReason):
            if self._caching_mode and not self.on("absent-never-cached"):
                self._remember(context, iova, self.walker.mapping(context, iova))
            return self._refuse(request, mapping, context.fpd)
        self._remember(context, iova, mapping)
        return self._hit(request, mapping, context.fpd)

    def _remember(self, context: Context, iova: int, mapping: Mapping) -> None:
        """Under the requester, and for the model without that departure under the domain id."""
        for tag in (context.source, -1 - context.did):
            self.iotlb.insert(tag, context.did, iova, mapping)

    def _fetch_context(self, source: int) -> Context:
        context = self.walker.context(self._root, source)
        if context.reason is None or (self._caching_mode and not self.on("absent-never-cached")):
            self.contexts.insert(context)
        return context

    def _hit(self, request: DmaRequest, mapping: Mapping, fpd: bool) -> int | RemapFault:
        if reason := mapping.refusal(request.access):
            if mapping.base is not None and self.on("silent-block"):
                return self._silent(request, reason)
            return self._refuse(request, reason, fpd)
        assert mapping.base is not None
        address = mapping.base + request.iova % mapping.size
        return self._refuse(request, FaultReason.INTERRUPT_RANGE, fpd) if in_interrupt_range(address) else address

    def _silent(self, request: DmaRequest, reason: FaultReason) -> RemapFault:
        return RemapFault(request, self.base, int(reason), request.iova & ~0xFFF, recorded=False)

    def _walk(self, context: Context, request: DmaRequest) -> Mapping | FaultReason:
        """QEMU's walk, for one access."""
        need, permission, step = _NEED[request.access], R | W, None
        for step in self.walker._descend(context, request.iova):
            entry = step.entry
            if entry is None or (entry == 0xFFFF_FFFF_FFFF_FFFF and self.on("all-ones")):
                return FaultReason.CONTEXT_INVALID if step.level == context.levels else FaultReason.PAGE_TABLE_UNREACHABLE
            if not entry & need and (step.found is not Found.RESERVED or self.on("permission-first")):
                return _DENIED[request.access]
            if step.found is Found.RESERVED:
                return FaultReason.PAGE_RESERVED
            permission &= entry
        assert step and step.level and step.entry
        size, base = 1 << level_shift(step.level), step.entry & ADDRESS
        if in_interrupt_range(base + request.iova % size):
            return FaultReason.INTERRUPT_RANGE
        if base <= INTERRUPT_RANGE.start < base + size and self.on("superpage-interrupt"):
            return FaultReason.INTERRUPT_RANGE
        refused = {d: None if permission & _NEED[d] else _DENIED[d] for d in Direction}
        return Mapping(base, size, permission, refused[Direction.READ], refused[Direction.WRITE])

    def _refuse(self, request: DmaRequest, reason: FaultReason, fpd: bool) -> RemapFault:
        if fpd and reason is FaultReason.CONTEXT_RESERVED and self.on("fpd-context-reserved"):
            fpd = False
        recorded = not (fpd and reason in FPD_SILENCES) and self._faults.record(request, reason)
        return RemapFault(request, self.base, int(reason), request.iova & ~0xFFF, recorded)


@dataclass(frozen=True)
class Unexplained:
    """A request of a scene (its number) on which QEMU does not do what the model foretells, or our unit what the model says without any
    departure."""

    request: int
    ours: Outcome
    qemu: Outcome
    model: Outcome
    bare: Outcome


@dataclass
class Verdict:
    """Of one scene: how many requests, what nothing explains, and how many requests each difference shows in."""

    requests: int
    unexplained: list[Unexplained] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def judge(scene: Scene, variant: Variant, cap: int, ecap: int, ours: Sequence[Outcome], theirs: Sequence[Outcome],
          causes: bool = True) -> Verdict:
    """Compares what a unit of ours and QEMU made of a scene; with `causes` says which departures each difference comes from."""
    verdict = Verdict(len(ours))
    theirs = [_without_junk(o, verdict.counts) for o in theirs]
    model, used = _model(scene, variant, cap, ecap, frozenset())
    differing = [i for i, (o, t) in enumerate(zip(ours, theirs, strict=True)) if o != t]
    bare = _model(scene, variant, cap, ecap, frozenset(DIFFERENCES))[0] if differing else ours
    verdict.unexplained = [Unexplained(i, *found) for i, found in enumerate(zip(ours, theirs, model, bare, strict=True))
                           if found[0] != found[3] or found[1] != found[2]]
    if differing and causes and not verdict.unexplained:
        verdict.counts += _causes(scene, variant, cap, ecap, model, used, differing)
    return verdict


def _model(scene: Scene, variant: Variant, cap: int, ecap: int, without: frozenset[str]) -> tuple[list[Outcome], set[str]]:
    units: list[LikeQemu] = []

    def make(description: UnitDescription, memory: Memory, haw: int) -> LikeQemu:
        units.append(LikeQemu(description, memory, haw, without))
        return units[0]
    outcomes = run_ours(scene, variant, cap, ecap, make)
    return outcomes, units[0].on.used


def _causes(scene: Scene, variant: Variant, cap: int, ecap: int, model: list[Outcome], used: set[str],
            differing: list[int]) -> Counter[str]:
    """For each request in `differing` the departures without any of which the model would say something else.

    Where there is none, because several would do: those each of which alone makes the model say it.
    """
    causes: dict[int, list[str]] = {i: [] for i in differing}
    for name in sorted(used):
        without, _ = _model(scene, variant, cap, ecap, frozenset({name}))
        for i in differing:
            if without[i] != model[i]:
                causes[i].append(name)
    if orphans := [i for i in differing if not causes[i]]:
        for name in sorted(used):
            alone, _ = _model(scene, variant, cap, ecap, frozenset(DIFFERENCES) - {name})
            for i in orphans:
                if alone[i] == model[i]:
                    causes[i].append(name)
    return Counter(name for names in causes.values() for name in (names or ["together"]))


def _without_junk(outcome: Outcome, counts: Counter[str]) -> Outcome:
    if outcome.high is None or outcome.high & _PV != _JUNK:
        return outcome
    counts["junk-pasid"] += 1
    return replace(outcome, high=outcome.high & ~_JUNK)
