"""QEMU's `intel-iommu` on the way of a DMA request: our unit with the departures of QEMU's, each of which can be switched off."""

from collections.abc import Callable

from vtd_like_qemu_registers import QemuRegisters, Switches
from vtd_scene import REQUESTERS

from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import Memory
from hvcore.machine.vtd.caches import ContextCache
from hvcore.machine.vtd.faults import FaultLog
from hvcore.machine.vtd.invalidation import Invalidator
from hvcore.machine.vtd.walk import Context, Found, Mapping
from hvcore.spec.dma import Direction, DmaRequest, RemapFault
from hvcore.spec.vtd import (
    ADDRESS,
    FPD_SILENCES,
    FUNCTION_MASK,
    INTERRUPT_RANGE,
    FaultReason,
    R,
    TranslationType,
    W,
    in_interrupt_range,
    level_shift,
)

__all__ = ["LikeQemu"]

_GLOBAL, _DOMAIN, _DEVICE = 1, 2, 3
_NEED = {Direction.READ: R, Direction.WRITE: W}
_DENIED = {Direction.READ: FaultReason.READ_DENIED, Direction.WRITE: FaultReason.WRITE_DENIED}


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
        wide = granularity in (_DOMAIN, _DEVICE) and unit.on("context-invalidation-wide")
        for one in {c.did for c in unit.contexts.entries.values()} if wide else {did}:
            super().invalidate_contexts(granularity, one, source, fm)
        for one in REQUESTERS:
            if granularity in (_GLOBAL, _DOMAIN) or (granularity == _DEVICE and not (one ^ source) & ~FUNCTION_MASK[fm]):
                unit.switch(one)
        return _GLOBAL if wide and granularity == _DOMAIN else granularity


class CollapsingLog(FaultLog):
    """QEMU's fault records."""

    on: Switches

    def _pending(self, low: int, high: int) -> bool:
        if super()._pending(low, high):
            return True
        same = any(self.file[f"FRCD{i}_HIGH"] >> 63 and self.file[f"FRCD{i}_HIGH"] & 0xFFFF == high & 0xFFFF for i in range(self.count))
        return same and self.on("collapse-by-source")


class LikeQemu(QemuRegisters):
    """Our unit with QEMU's departures, except those in `without`."""

    def __init__(self, description: UnitDescription, memory: Memory, haw: int, message: Callable[[int, int], None],
                 without: frozenset[str] = frozenset()):
        self.direct = set[int]()
        super().__init__(description, memory, haw, message, without)
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
        for source in REQUESTERS:
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
        if in_interrupt_range(iova) and request.access is Direction.WRITE and request.length == 4 and not iova % 4:
            return iova
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
