"""One VT-d remapping unit: its register page, what its commands do, and the way of a DMA request through it."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import ArrayLike

from ...spec.bits import Register
from ...spec.dma import AddressType, Direction, DmaRequest, RemapFault
from ...spec.interrupts import Interrupt
from ...spec.vtd import (
    CAP,
    FPD_SILENCES,
    GSTS,
    ICS,
    PMEN,
    PROTECTED,
    RTADDR,
    FaultReason,
    TranslationType,
    W,
    in_interrupt_range,
    registers,
)
from ..description import UnitDescription
from ..memory import Memory
from .batch import Batch, Remembered, Requests, Translations, untranslated
from .batchwalk import BatchWalker, MemoryPages
from .caches import Cached, ContextCache, Iotlb
from .commands import Command, asked
from .faults import FaultLog
from .interrupts import InterruptRemapper
from .invalidation import InvalidationQueue, Invalidator
from .registers import EventRegisters, RegisterFile
from .truth import from_tables
from .walk import Context, Mapping, Walk, Walker

__all__ = ["RemappingUnit", "UnitNote"]

_GRANULE = (1 << 21) - 1


@dataclass(frozen=True, slots=True)
class UnitNote:
    """Software wrote `value` to `register` in a way that the specification leaves undefined, or in vain; `text` says what came of it."""

    register: str
    value: int
    text: str


class RemappingUnit:
    """A unit of the machine: an MMIO device of one register page, and the remapper of the requesters it covers.

    `host_address_width` is in bits; `msi(address, data)` carries the unit's own interrupt messages; with `ideal_caches` nothing is
    remembered, so that every request sees the tables as they are.  `changed(unit, command)` is called when a command of GCMD was carried
    out, and with "PMEN" when protected memory may have changed.  Raises `BadMachine` for capability words of no real unit.
    """

    def __init__(self, description: UnitDescription, memory: Memory, host_address_width: int,
                 msi: Callable[[int, int], None] | None = None, ideal_caches: bool = False):
        self.description, self.memory, self.ideal_caches = description, memory, ideal_caches
        cap, ecap = description.cap, description.ecap
        self.file = RegisterFile(registers(cap, ecap, description.version), f"VT-d unit at {description.base:#x}")
        self.walker = Walker(memory, cap, ecap, host_address_width)
        self.notes: deque[UnitNote] = deque(maxlen=256)
        self.changed: Callable[[RemappingUnit, str], None] = _unwatched
        self._contexts, self._iotlb = ContextCache(), Iotlb()
        send = msi or _unheard
        self._fault_event, self._queue_event = EventRegisters(self.file, "FE", send), EventRegisters(self.file, "IE", send)
        self._faults = FaultLog(self.file, self._fault_event)
        self._invalidator = Invalidator(cap, self._contexts, self._iotlb)
        self._interrupts = InterruptRemapper(description, memory, self.file, self._faults, self._note, host_address_width, ideal_caches)
        self._queue = InvalidationQueue(memory, self.file, self._invalidator, self._interrupts, self._faults, self._queue_event, self._note)
        self._caching_mode, self._zlr = bool(CAP.get(cap, "CM")), bool(CAP.get(cap, "ZLR"))
        self._effects = self._write_effects()
        self._command_effects = {"SRTP": self._latch_root, "QIE": self._queue_switched, "TE": self._translation_switched,
                                 "SIRTP": self._interrupts.latch, "IRE": self._interrupts.switched}
        self.reset()

    def reset(self) -> None:
        """As at power-on: every register byte, nothing remembered, no root table, translation off."""
        self.file.reset()
        self._contexts.invalidate_all()
        self._iotlb.invalidate_all()
        self._interrupts.reset()
        self._faults.reset()
        self.notes.clear()
        self._root = 0
        self._translating = False
        self._protected: tuple[tuple[int, int], ...] = ()

    @property
    def base(self) -> int:
        """Host-physical address of the register page."""
        return self.description.base

    @property
    def size(self) -> int:
        """Bytes of the register page: 4096, more only where the capability registers place registers beyond it."""
        return len(self.file.bytes)

    @property
    def registers(self) -> tuple[Register, ...]:
        """The declarations of all registers, by offset."""
        return self.file.registers

    @property
    def root(self) -> int:
        """The root-table register as SRTP last latched it, which is what walks start from; 0 after reset."""
        return self._root

    @property
    def cached(self) -> Cached:
        """What the context cache, the IOTLB and the interrupt-entry cache hold; the tables may say otherwise by now."""
        interrupts = self._interrupts.cache.entries
        return Cached(tuple(self._contexts.entries[s] for s in sorted(self._contexts.entries)), self._iotlb.entries(),
                      tuple(interrupts[i] for i in sorted(interrupts)))

    @property
    def tables(self) -> Cached:
        """What the tables in memory say now of all that `cached` holds, in the same order: where the two differ, a cache is stale."""
        return from_tables(self.walker, self._root, self.cached, self._interrupts.read)

    @property
    def interrupt_table(self) -> int:
        """The interrupt table register as SIRTP last latched it; 0 after reset."""
        return self._interrupts.table

    @property
    def protected(self) -> tuple[tuple[int, int], ...]:
        """The protected memory regions that are enforced, half-open, host-physical."""
        return self._protected

    def register(self, name: str) -> int:
        """The value of a register by its name."""
        return self.file[name]

    def walk(self, source: int, iova: int) -> Walk:
        """What the tables say now of an IOVA of requester `source`, step by step, whatever the caches hold and whether or not TE is set."""
        return self.walker.walk(self._root, source, iova)

    # Registers, as software reaches them.

    def peek(self, offset: int, width: int) -> int:
        """`width` bytes of the register page, without any effect."""
        return self.file.peek(offset, width)

    def mmio_read(self, offset: int, width: int) -> int:
        """A load; one of 1 or 2 bytes, which software must not do, gets the bytes as they lie.  No read has an effect."""
        return self.file.peek(offset, width)

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """A store of 4 or 8 bytes; any other, or one off its alignment, is lost.  8 bytes over two registers: the lower first."""
        value &= (1 << 8 * width) - 1
        if width not in (4, 8) or offset % 4:
            self._note(f"offset {offset:#x}", value, f"a write of {width} bytes is lost")
            return
        register = self.file.at(offset)
        if width == 8 and not (register and register.size == 8 and register.offset == offset):
            self.mmio_write(offset, 4, value & 0xFFFF_FFFF)
            self.mmio_write(offset + 4, 4, value >> 32)
        elif register:
            self._store(register, self.file.merged(register, offset, width, value))

    def _store(self, register: Register, value: int) -> None:
        if register.name == "GCMD":
            self._command(value)
            return
        self.file[register.name] = register.written(self.file[register.name], value)
        if effect := self._effects.get(register.name):
            effect()

    def _write_effects(self) -> dict[str, Callable[[], None]]:
        """What happens after a register took what was written."""
        return {
            "CCMD": self._context_command,
            "IOTLB": self._iotlb_command,
            "IQT": self._queue.run,
            "FSTS": self._status_written,
            "FECTL": self._fault_event.control_written,
            "IECTL": self._queue_event.control_written,
            "ICS": self._completion_written,
            **{f"FRCD{i}_HIGH": self._faults.status_written for i in range(self._faults.count)},
            **dict.fromkeys(("PMEN", "PLMBASE", "PLMLIMIT", "PHMBASE", "PHMLIMIT"), self._protect),
        }

    def _context_command(self) -> None:
        self._invalidator.context_command(self.file, self._note)

    def _iotlb_command(self) -> None:
        self._invalidator.iotlb_command(self.file, self._note)

    def _note(self, register: str, value: int, text: str) -> None:
        self.notes.append(UnitNote(register, value, text))

    def _status_written(self) -> None:
        self._faults.status_written()
        self._queue.run()

    def _completion_written(self) -> None:
        if not self.file["ICS"] & ICS["IWC"].mask:
            self._queue_event.withdraw()

    # Global commands.

    def _command(self, value: int) -> None:
        """GCMD was written: everything it asks for is done at once, so GSTS shows it on the next read."""
        commands = asked(value, self.file["GSTS"])
        if len(commands) > 1:
            names = ", ".join(c.name for c in commands)
            self._note("GCMD", value, f"more than one command in one write, carried out in this order: {names}")
        for command in commands:
            self._carry_out(command, value)

    def _carry_out(self, command: Command, value: int) -> None:
        if not command.supported(self.description.cap, self.description.ecap):
            self._note("GCMD", value, f"{command.name} does nothing: the unit has no {command.capability}")
            return
        self.file["GSTS"] = command.answer(value, self.file["GSTS"])
        if effect := self._command_effects.get(command.name):
            effect()
        self.changed(self, command.name)

    def _latch_root(self) -> None:
        self._root = self.file["RTADDR"]
        if RTADDR.get(self._root, "TTM"):
            self._note("RTADDR", self._root, "only legacy mode is modelled: every request will fault")

    def _queue_switched(self) -> None:
        self.file["IQH"] = 0
        self._queue.run()

    def _translation_switched(self) -> None:
        self._translating = bool(GSTS.get(self.file["GSTS"], "TES"))
        if self._translating and not GSTS.get(self.file["GSTS"], "RTPS"):
            self._note("GCMD", self.file["GSTS"], "translation enabled without a root table: walks start at physical address 0")

    # Protected memory regions.

    def _protect(self) -> None:
        """PMEN or a bound was written: PRS follows EPM; a region is [base, limit] with the limit's low bits taken as ones."""
        enabled = PMEN.get(self.file["PMEN"], "EPM")
        self.file["PMEN"] = PMEN["PRS"].put(self.file["PMEN"], enabled)
        have = [name for name, cap in (("PLM", "PLMR"), ("PHM", "PHMR")) if enabled and CAP.get(self.description.cap, cap)]
        bounds = [(self.file[name + "BASE"], (self.file[name + "LIMIT"] | _GRANULE) + 1) for name in have]
        self._protected = tuple((start, end) for start, end in bounds if start < end)
        self.changed(self, "PMEN")

    def _unless_protected(self, request: DmaRequest) -> int | RemapFault:
        """An untranslated request: to its own address, unless a protected region holds it, which is neither recorded nor reported."""
        for start, end in self._protected:
            if start < request.iova + max(request.length, 1) and request.iova < end:
                return RemapFault(request, self.base, PROTECTED, request.iova & ~0xFFF, recorded=False)
        return request.iova

    # Interrupts of devices.

    def interrupt(self, source: int, address: int, data: int) -> Interrupt | RemapFault:
        """What becomes of a message-signalled interrupt, the 4-byte write of `data` to `address` in 0xFEExxxxx; a fault is recorded.

        Whether TE is set does not matter.  The fault's `address` is the interrupt index, 0 where the message has none.
        """
        return self._interrupts.interrupt(source, address, data)

    # DMA.

    def remap(self, request: DmaRequest) -> int | RemapFault:
        """The host-physical address of a request, from the caches where they know it, else from the tables; or the fault, recorded."""
        if not self._translating:
            return self._unless_protected(request)
        iova = request.iova
        if in_interrupt_range(iova) and _is_interrupt(request):
            return iova
        context = self._contexts.entries.get(request.source) or self._fetch_context(request.source)
        reason = context.reason or self._address_refusal(context, request)
        if reason:
            return self._refuse(request, reason, context.fpd)
        if context.tt is TranslationType.PASS_THROUGH or request.address_type is AddressType.TRANSLATED:
            return self._unless_protected(request)
        mapping = self._iotlb.find(context.did, iova) or self._fetch_mapping(context, request)
        reason = self._refusal(mapping, request)
        if reason:
            return self._refuse(request, reason, context.fpd)
        assert mapping.base is not None, "a mapping that lets a request through has a page"
        return mapping.base + iova % mapping.size

    def translate(self, sources: ArrayLike, iovas: ArrayLike, accesses: object, lengths: ArrayLike = 1) -> Translations:
        """What each of many requests would get of `remap` if it came next, given registers, caches and tables as they are now.

        Arrays or single values, broadcast together: requester ids, IOVAs, accesses (`Direction`, "read" or "write", or True for a write)
        and bytes.  Nothing comes of it: no fault is recorded, nothing is remembered, not even from one request of the batch to the next.
        Raises BadRequest where a request crosses a 4 KiB page, or is none.
        """
        requests = Requests.of(sources, iovas, accesses, lengths)
        if not self._translating:
            return untranslated(requests, self._protected)
        iotlb = {did: [Remembered(*size) for size in sizes] for did, sizes in self._iotlb.by_domain().items()}
        walker = BatchWalker(MemoryPages(self.memory), self.description.cap, self.description.ecap, self.walker.haw)
        return Batch(walker, self._context_now, self._zlr, iotlb, self._protected).translate(requests)

    def _context_now(self, source: int) -> Context:
        """The context that a request of `source` would meet."""
        return self._contexts.entries.get(source) or self.walker.context(self._root, source)

    def _fetch_context(self, source: int) -> Context:
        """A context from the tables; remembered if it is valid, or in caching mode."""
        context = self.walker.context(self._root, source)
        if not self.ideal_caches and (context.reason is None or self._caching_mode):
            self._contexts.insert(context)
        return context

    def _address_refusal(self, context: Context, request: DmaRequest) -> FaultReason | None:
        """Why a context refuses a request before any paging entry is read: reasons 0xD, 4, 0xE.  No width binds a translated address."""
        kind = request.address_type
        if kind is not AddressType.UNTRANSLATED and context.tt is not TranslationType.TRANSLATE_ATS:
            return FaultReason.REQUEST_BLOCKED
        if kind is AddressType.TRANSLATED:
            return FaultReason.INTERRUPT_RANGE if in_interrupt_range(request.iova) else None
        return self.walker.address_refusal(context, request.iova)

    def _fetch_mapping(self, context: Context, request: DmaRequest) -> Mapping:
        """A mapping from the tables; remembered if it lets the request through, or in caching mode."""
        mapping = self.walker.mapping(context, request.iova)
        if not self.ideal_caches and (self._caching_mode or self._refusal(mapping, request) is None):
            self._iotlb.insert(context.did, request.iova, mapping)
        return mapping

    def _refusal(self, mapping: Mapping, request: DmaRequest) -> FaultReason | None:
        """Why a mapping refuses a request: the permission, or where it leads.

        With CAP.ZLR a zero-length read passes where the page can be written.
        """
        reason = mapping.refusal(request.access)
        if reason and not (not request.length and self._zlr and mapping.permission == W):
            return reason
        interrupt = mapping.base is not None and in_interrupt_range(mapping.base + request.iova % mapping.size)
        return FaultReason.INTERRUPT_RANGE if interrupt else None

    def _refuse(self, request: DmaRequest, reason: FaultReason, fpd: bool) -> RemapFault:
        recorded = not (fpd and reason in FPD_SILENCES) and self._faults.record(request, reason)
        return RemapFault(request, self.base, int(reason), request.iova & ~0xFFF, recorded)


def _is_interrupt(request: DmaRequest) -> bool:
    """An untranslated write of 4 aligned bytes in the interrupt range is a message, which no table translates."""
    untranslated = request.address_type is AddressType.UNTRANSLATED
    return untranslated and request.access is Direction.WRITE and request.length == 4 and not request.iova % 4


def _unwatched(unit: RemappingUnit, command: str) -> None:
    """Where nobody keeps a history."""


def _unheard(address: int, data: int) -> None:
    """Where a unit's messages go when nobody listens."""
