"""One DMA request, step by step, in the order the unit takes: root entry, context entry, each level, verdict (VT-d, section 7.2.3).

What the tables say now; caches may still answer otherwise.
"""

from dataclasses import dataclass

from ..errors import Unreadable
from ..spec import vtd
from ..spec.bits import Layout
from ..spec.dma import Direction
from ..spec.interrupts import INTERRUPT_REASONS
from ..spec.pci import format_bdf
from ..spec.vtd import FaultReason
from .domains import PASS_THROUGH, Context, context_problem, unit_format
from .evidence import Evidence, Place, Word, iova_cut, requester_cut
from .explain_interrupt import explain_interrupt_fault
from .explanation import ExplainStep, Explanation, refusal
from .faults import Fault
from .reader import MemoryReader, UnitReader
from .units import Unit, read_register, read_unit
from .walk import Kind, Step, Walk, walk

__all__ = ["ExplainStep", "Explanation", "explain", "explain_fault", "protected_regions"]

_GRANULE = (1 << 21) - 1
"""Low bits of a protected region's limit, which count as ones (2 MiB granules)."""


def explain(reader: MemoryReader, unit: UnitReader, source: int, iova: int, access: Direction | str,
            host_address_width: int | None = None) -> Explanation:
    """What a unit does with a request of requester id `source` at `iova`, by its registers and tables as they are now."""
    way = _Way(reader, unit, source, iova, Direction(access), host_address_width)
    way.follow()
    return way.explanation()


def explain_fault(reader: MemoryReader, units: dict[int, UnitReader], fault: Fault, host_address_width: int | None = None) -> Explanation:
    """A recorded fault, of DMA or of an interrupt, step by step; `units` by register base."""
    if fault.reason in INTERRUPT_REASONS:
        return explain_interrupt_fault(reader, units[fault.unit], fault, host_address_width)
    return explain(reader, units[fault.unit], fault.source, fault.address, fault.access, host_address_width)


@dataclass(frozen=True, slots=True)
class _Context:
    """A context entry that the unit takes."""

    root: int
    levels: int
    bits: int
    passes: bool


class _Way:
    """The way of one request: `steps` taken so far, then `host` or `reason`."""

    def __init__(self, reader: MemoryReader, unit: UnitReader, source: int, iova: int, access: Direction, host_address_width: int | None):
        self.reader, self.registers, self.source, self.iova, self.access = reader, unit, source, iova, access
        self.unit = read_unit(unit)
        self.fmt = unit_format(self.unit, host_address_width)
        self.high_bits = -1 << (host_address_width or 52)
        self.fpd = False
        self.steps: list[ExplainStep] = []
        self.host: int | None = None
        self.reason: int | None = None

    def follow(self) -> None:
        """Takes every step up to the one that decides."""
        gsts = self.unit.gsts
        seen = Evidence("10.4.5", (Word("GSTS", vtd.GSTS, gsts, 32),))
        if not self.unit.translating:
            self._pass("translation", f"off: GSTS is {gsts:#x} with TES clear, addresses go through as they are", seen)
            return self._unless_protected()
        self._pass("translation", f"on: GSTS is {gsts:#x} with TES set", seen)
        table = self._root_entry()
        context = None if table is None else self._context_entry(table)
        if context is None or not self._address_fits(context):
            return None
        return self._unless_protected() if context.passes else self._tables(context)

    def explanation(self) -> Explanation:
        """The record of the way."""
        recorded = bool(self.reason) and not (self.fpd and self.reason in vtd.FPD_SILENCES)
        verdict = f"goes through: reaches host-physical {self.host:#x}" if self.reason is None else refusal(self.reason, recorded)
        return Explanation(self.unit.base, self.source, self.iova, self.access.value, tuple(self.steps), self.reason, self.host, recorded,
                           verdict)

    def _pass(self, what: str, text: str, seen: Evidence) -> None:
        self.steps.append(ExplainStep(what, text, True, seen))

    def _refuse(self, reason: int, what: str, text: str, seen: Evidence) -> None:
        self.steps.append(ExplainStep(what, text, False, seen))
        self.reason = reason

    def _pair(self, address: int) -> tuple[int, int] | None:
        """The two words of a root or context entry; None where no memory is."""
        try:
            raw = self.reader.read(address, 16)
        except Unreadable:
            return None
        return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")

    def _root_entry(self) -> int | None:
        """The context table of the requester's bus (host-physical): reasons 8, 1, 0xA."""
        bus = self.source >> 8
        what, place = f"root entry, bus {bus:02x}", Place(self.unit.root_table or 0, bus, 16)
        pair = self._pair(place.address)
        seen = Evidence("9.1", self._words(vtd.ROOT_ENTRY, vtd.ROOT_ENTRY, pair, vtd.ROOT_RESERVED), place,
                        requester_cut(self.source, "bus"))
        if refusal := self._root_refusal(pair):
            self._refuse(refusal[0], what, refusal[1], seen)
            return None
        table = pair[0] & vtd.ADDRESS if pair else 0
        self._pass(what, f"P; context table at {table:#x}", seen)
        return table

    def _words(self, low: Layout, high: Layout, pair: tuple[int, int] | None, reserved: tuple[int, int]) -> tuple[Word, ...]:
        """The two words of an entry, which must have P set and nothing of `reserved` or beyond the host address width."""
        if pair is None:
            return ()
        wrong = (pair[0] & (reserved[0] | self.high_bits), pair[1] & reserved[1]) if pair[0] & 1 else (0, 0)
        return Word("low", low, pair[0], offends=wrong[0], lacks=~pair[0] & 1), Word("high", high, pair[1], offends=wrong[1])

    def _root_refusal(self, pair: tuple[int, int] | None) -> tuple[int, str] | None:
        if pair is None:
            return FaultReason.ROOT_TABLE_UNREACHABLE, "no memory is there"
        if not self.unit.legacy:
            return FaultReason.ROOT_TABLE_UNREACHABLE, f"RTADDR {self.unit.root:#x} is not in legacy mode"
        if not pair[0] & 1:
            return FaultReason.ROOT_NOT_PRESENT, "P is clear: nothing is set up for this bus"
        reserved = pair[0] & (vtd.ROOT_RESERVED[0] | self.high_bits)
        if reserved or pair[1]:
            return FaultReason.ROOT_RESERVED, f"bits that must be zero are set: low {reserved:#x}, high {pair[1]:#x}"
        return None

    def _context_entry(self, table: int) -> _Context | None:
        """What the requester's context entry says: reasons 9, 2, 0xB, 3."""
        what, place = f"context entry, {format_bdf(self.source)}", Place(table, self.source & 0xFF, 16)
        pair = self._pair(place.address)
        seen = Evidence("9.3", self._words(vtd.CONTEXT_LOW, vtd.CONTEXT_HIGH, pair, vtd.CONTEXT_RESERVED), place,
                        requester_cut(self.source, "device", "function"))
        context = Context(self.source, *(pair or (0, 0)))
        self.fpd = context.fpd
        if refusal := self._context_refusal(pair, context):
            self._refuse(refusal[0], what, refusal[1], seen)
            return None
        quiet = "FPD: faults are not recorded; " if self.fpd else ""
        text = f"P; {quiet}domain {context.did}, {context.translation}, {context.levels} levels, table at {context.root:#x}"
        self._pass(what, text, seen)
        bits = vtd.input_bits(self.unit.cap, context.levels - 2)
        return _Context(context.root, context.levels, bits, context.translation == PASS_THROUGH)

    def _context_refusal(self, pair: tuple[int, int] | None, context: Context) -> tuple[int, str] | None:
        if pair is None:
            return FaultReason.CONTEXT_TABLE_UNREACHABLE, "no memory is there"
        if not pair[0] & 1:
            return FaultReason.CONTEXT_NOT_PRESENT, "P is clear: nothing is set up for this device"
        return context_problem(context, self.unit, self.high_bits)

    def _address_fits(self, context: _Context) -> bool:
        """Whether the address may be translated at all: reasons 4 and 0xE."""
        cut = iova_cut(self.iova, context.levels, "beyond")
        seen = Evidence("10.4.2", (Word("CAP", vtd.CAP, self.unit.cap),), cut=cut)
        if self.iova >> context.bits:
            self._refuse(FaultReason.BEYOND_WIDTH, "address width", f"{self.iova:#x} needs {self.iova.bit_length()} bits; "
                         f"MGAW {self.unit.mgaw} and {context.levels} levels allow {context.bits}", seen)
        elif vtd.in_interrupt_range(self.iova):
            self._refuse(FaultReason.INTERRUPT_RANGE, "interrupt range", "0xfee00000-0xfeefffff is never translated, "
                         "whatever the tables say; only an aligned write of 4 bytes gets through, as an interrupt", Evidence("3.13"))
        else:
            self._pass("address width", f"{self.iova:#x} fits the {context.bits} bits of MGAW and context", seen)
        return self.reason is None

    def _tables(self, context: _Context) -> None:
        """The second-level walk: reasons 3, 7, 5 or 6, 0xC, 0xE."""
        found = walk(self.reader, self.fmt, context.root, context.levels, self.iova)
        for step in found.steps:
            what = f"level {step.level}, entry {step.index}"
            reason = self._step_refusal(step, context.levels)
            seen = Evidence("9.8", self._entry_words(step), Place(step.table, step.index, 8, step.level),
                            iova_cut(self.iova, context.levels, f"level {step.level}"))
            if reason:
                return self._refuse(reason, what, step.text, seen)
            self._pass(what, step.text, seen)
        self._landing(context, found)

    def _entry_words(self, step: Step) -> tuple[Word, ...]:
        """The word of a paging entry: what must be zero in it, and the right that the request needs."""
        if step.raw is None:
            return ()
        offends = self.fmt.reserved(step.raw, step.level)
        needed = vtd.R if self.access is Direction.READ else vtd.W
        return (Word("entry", vtd.SECOND_LEVEL, step.raw, offends=offends, lacks=0 if offends else needed & ~step.raw),)

    def _landing(self, context: _Context, found: Walk) -> None:
        """The host address, from the leaf and the bits of the IOVA below it: reason 0xE."""
        assert found.host is not None and found.page_size is not None, "a walk that no step refused ends at a leaf"
        below = [f"level {n}" for n in range(1, found.steps[-1].level)]
        seen = Evidence("3.13", cut=iova_cut(self.iova, context.levels, *below, "offset"))
        if vtd.in_interrupt_range(found.host):
            return self._refuse(FaultReason.INTERRUPT_RANGE, "host address", f"{found.host:#x} lies in the interrupt range", seen)
        self.host = found.host
        offset = found.host % found.page_size
        self._pass("host address", f"page {found.host - offset:#x} + offset {offset:#x} = {found.host:#x}", seen)

    def _step_refusal(self, step: Step, top: int) -> int | None:
        """Why one paging entry ends the way; None where the walk goes on."""
        if step.kind is Kind.UNREADABLE:
            return FaultReason.CONTEXT_INVALID if step.level == top else FaultReason.PAGE_TABLE_UNREACHABLE
        if step.kind is Kind.RESERVED:
            return FaultReason.PAGE_RESERVED
        read = self.access is Direction.READ
        if (step.raw or 0) & (vtd.R if read else vtd.W):
            return None
        return FaultReason.READ_DENIED if read else FaultReason.WRITE_DENIED

    def _unless_protected(self) -> None:
        """An untranslated request reaches its own address, unless a protected memory region holds it."""
        seen = Evidence("10.4.16", (Word("PMEN", vtd.PMEN, read_register(self.registers, "PMEN"), 32),))
        for name, start, end in protected_regions(self.registers, self.unit):
            if start <= self.iova < end:
                return self._refuse(vtd.PROTECTED, "protected memory", f"{name} [{start:#x}, {end:#x}) is on (PMEN.EPM)", seen)
        self.host = self.iova


def protected_regions(registers: UnitReader, unit: Unit) -> list[tuple[str, int, int]]:
    """The protected memory regions that are on: name, start, end (host-physical, half-open)."""
    if not vtd.PMEN.get(read_register(registers, "PMEN"), "EPM"):
        return []
    have = [name for name, cap in (("PLM", "PLMR"), ("PHM", "PHMR")) if vtd.CAP.get(unit.cap, cap)]
    bounds = [(name, read_register(registers, f"{name}BASE"), read_register(registers, f"{name}LIMIT")) for name in have]
    return [(name, base, (limit | _GRANULE) + 1) for name, base, limit in bounds]
