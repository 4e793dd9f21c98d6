"""Where QEMU 7.2 departs from the specification in remapping interrupts: each departure with a name, and a model that predicts it.

As in vtd_differences.py: `LikeQemu` is our unit with all of them, and a message of which QEMU makes something else than our unit is
explained when the model foretells exactly what QEMU made of it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from interrupts_qemu import SOURCES, Message, Outcome, Scene, run_ours

from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.machine.vtd.interrupts import InterruptEntry
from hvcore.spec.bits import mask
from hvcore.spec.dma import Direction, DmaRequest, RemapFault
from hvcore.spec.interrupts import (
    FORMAT,
    IRTE_HIGH,
    IRTE_LOW,
    Interrupt,
    SourceCheck,
    as_written,
    by_entry,
    index_of,
    source_accepted,
    table_entries,
)
from hvcore.spec.vtd import FPD_SILENCES, GSTS, IRTA, FaultReason

__all__ = ["DIFFERENCES", "LikeQemu", "Unexplained", "Verdict", "judge"]

DIFFERENCES: dict[str, str] = {
    "no-interrupt-faults": "a blocked message leaves no fault record, whatever the reason",
    "compatibility-passes": "a message in compatibility format goes on although EIME is set or CFIS is clear (specification: 0x25)",
    "index-wraps": "handle and subhandle are added in 16 bits, so that an index beyond every table comes back at its start (0x21)",
    "posted-as-remapped": "a posted entry is taken for one that remaps, although CAP.PI is clear and the bit reserved (0x24)",
    "destination-unchecked": "without EIME the reserved bits of the destination field are ignored (0x24)",
    "bus-range-turned-round": "of a bus range SID 7:0 is the first bus and 15:8 the last (should be: 15:8 the first, as Linux writes it)",
    "dma-without-source": "a message that a device's DMA engine writes has no requester id, so that no source check stops it (0x26)",
    "entries-not-cached": "table entries are read at every message; there is no interrupt-entry cache that could be stale",
}
_UNCHECKED = mask(39, 32) | mask(63, 48)


class LikeQemu(RemappingUnit):
    """Our unit with QEMU's departures, except those in `without`; `used` are those that were ever asked for."""

    def __init__(self, description: UnitDescription, memory: Memory, haw: int, without: frozenset[str] = frozenset()):
        super().__init__(description, memory, haw)
        self.without, self.used = without, set[str]()

    def on(self, name: str) -> bool:
        """Whether a departure is in force."""
        self.used.add(name)
        return name not in self.without

    @property
    def eime(self) -> bool:
        """Whether extended interrupt mode is on."""
        return bool(IRTA.get(self.interrupt_table, "EIME"))

    def send(self, message: Message) -> Interrupt | RemapFault:
        """What QEMU makes of a message."""
        address, data, gsts = message.address, message.data, self.register("GSTS")
        if not GSTS.get(gsts, "IRES"):
            return self._as_it_is(message)
        if not address & FORMAT:
            blocked = self.eime or not GSTS.get(gsts, "CFIS")
            goes_on = not blocked or self.on("compatibility-passes")
            return self._as_it_is(message) if goes_on else self._blocked(message, FaultReason.IR_COMPATIBILITY_BLOCKED)
        index = index_of(address, data)
        if index is None:
            return self._blocked(message, FaultReason.IR_REQUEST_RESERVED)
        if index > 0xFFFF and self.on("index-wraps"):
            index &= 0xFFFF
        if index >= table_entries(self.interrupt_table):
            return self._blocked(message, FaultReason.IR_INDEX_BEYOND_TABLE, index)
        return self._by_table(message, index)

    def _as_it_is(self, message: Message) -> Interrupt:
        return as_written(SOURCES[message.device], message.address, message.data)

    def _by_table(self, message: Message, index: int) -> Interrupt | RemapFault:
        entry = self._entry(index)
        if entry is None:
            return self._blocked(message, FaultReason.IR_TABLE_UNREACHABLE, index)
        low, high = self._overlooked(entry.low), self._turned(entry.high)
        fpd = bool(IRTE_LOW.get(low, "FPD"))
        if reason := self._interrupts.judge(low, high):
            return self._blocked(message, reason, index, fpd)
        if not self._accepts(message, high):
            return self._blocked(message, FaultReason.IR_SOURCE_REFUSED, index, fpd)
        return by_entry(SOURCES[message.device], message.address, message.data, index, low, self.eime)

    def _entry(self, index: int) -> InterruptEntry | None:
        """An entry as it is in memory, while the cache of our unit goes on as if it were asked."""
        cache = self._interrupts.cache
        cached, fresh = cache.entries.get(index), self._interrupts.fetch(index)
        if cached is None:
            return fresh
        cache.insert(cached)
        return fresh if fresh != cached and self.on("entries-not-cached") else cached

    def _overlooked(self, low: int) -> int:
        """The low word of an entry without the reserved bits that QEMU does not look at."""
        if IRTE_LOW.get(low, "IM") and self.on("posted-as-remapped"):
            low &= ~IRTE_LOW["IM"].mask
        if not self.eime and low & _UNCHECKED and self.on("destination-unchecked"):
            low &= ~_UNCHECKED
        return low

    def _turned(self, high: int) -> int:
        """The high word with a bus range as QEMU reads it."""
        if IRTE_HIGH.get(high, "SVT") != SourceCheck.BUS_RANGE or not self.on("bus-range-turned-round"):
            return high
        sid = IRTE_HIGH.get(high, "SID")
        return IRTE_HIGH["SID"].put(high, sid >> 8 | (sid & 0xFF) << 8)

    def _accepts(self, message: Message, high: int) -> bool:
        return source_accepted(high, SOURCES[message.device]) or (message.dma and self.on("dma-without-source"))

    def _blocked(self, message: Message, reason: FaultReason, index: int = 0, fpd: bool = False) -> RemapFault:
        request = DmaRequest(SOURCES[message.device], message.address, 4, Direction.WRITE)
        recorded = not (fpd and reason in FPD_SILENCES) and not self.on("no-interrupt-faults")
        if recorded:
            self._faults.record_interrupt(request.source, index, reason)
        return RemapFault(request, self.base, int(reason), index, recorded)


@dataclass(frozen=True)
class Unexplained:
    """A message of a scene (its number) of which QEMU does not make what the model foretells, or our unit not what the model says without
    any departure."""

    message: int
    ours: Outcome
    qemu: Outcome
    model: Outcome
    bare: Outcome


@dataclass
class Verdict:
    """Of one scene: how many messages, what nothing explains, and how many messages each difference shows in."""

    messages: int
    unexplained: list[Unexplained] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def judge(scene: Scene, cap: int, ecap: int, ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> Verdict:
    """Compares what a unit of ours and QEMU made of a scene, and says which departures each difference comes from."""
    verdict = Verdict(len(ours))
    model, used = _model(scene, cap, ecap, frozenset())
    bare, _ = _model(scene, cap, ecap, frozenset(DIFFERENCES))
    verdict.unexplained = [Unexplained(i, *found) for i, found in enumerate(zip(ours, theirs, model, bare, strict=True))
                           if found[0] != found[3] or found[1] != found[2]]
    differing = [i for i, (o, t) in enumerate(zip(ours, theirs, strict=True)) if o != t]
    if differing and not verdict.unexplained:
        verdict.counts += _causes(scene, cap, ecap, model, used, differing)
    return verdict


def _model(scene: Scene, cap: int, ecap: int, without: frozenset[str]) -> tuple[list[Outcome], set[str]]:
    units: list[LikeQemu] = []

    def make(description: UnitDescription, memory: Memory, haw: int) -> LikeQemu:
        units.append(LikeQemu(description, memory, haw, without))
        return units[0]
    outcomes = run_ours(scene, cap, ecap, make, lambda unit, message: units[0].send(message))
    return outcomes, units[0].used


def _causes(scene: Scene, cap: int, ecap: int, model: list[Outcome], used: set[str], differing: list[int]) -> Counter[str]:
    """For each message in `differing` the departures without any of which the model would say something else; `together` where it takes
    several at once."""
    causes: dict[int, list[str]] = {i: [] for i in differing}
    for name in sorted(used):
        without, _ = _model(scene, cap, ecap, frozenset({name}))
        for i in differing:
            if without[i] != model[i]:
                causes[i].append(name)
    return Counter(name for names in causes.values() for name in (names or ["together"]))
