"""Interrupt remapping of our unit against QEMU's: what they agree on, and every departure of QEMU by its name (interrupts_differences.py).

`HVLAB_CONFORMANCE=N` sends N / 4 random messages; `-s` shows what was counted.
"""

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
from interrupts_differences import DIFFERENCES, Verdict, judge
from interrupts_qemu import (
    ABSENT,
    CFI,
    EIME,
    IRE,
    QIE,
    SOURCES,
    TABLE,
    Invalidate,
    Message,
    Operation,
    Outcome,
    Put,
    QemuInterrupts,
    Scene,
    run_ours,
)

from hvcore.machine.vtd import interrupts
from hvcore.machine.vtd.interrupts import InterruptEntryCache
from hvcore.spec import interrupts as spec
from hvcore.spec.bits import mask

pytestmark = pytest.mark.needs("qemu-system-x86_64")

MESSAGES = int(os.environ.get("HVLAB_CONFORMANCE", "20000")) // 4
LENGTH = 60
"""Operations of a random scene."""


class Pair:
    """QEMU without and with extended interrupt mode, each started when first asked for."""

    def __init__(self, stack: ExitStack):
        self._stack, self._machines = stack, dict[bool, QemuInterrupts]()

    def qemu(self, eim: bool) -> QemuInterrupts:
        if eim not in self._machines:
            self._machines[eim] = self._stack.enter_context(QemuInterrupts(eim))
        return self._machines[eim]

    def play(self, scene: Scene, eim: bool) -> tuple[list[Outcome], Verdict]:
        """What our unit made of a scene, and how QEMU compares."""
        qemu = self.qemu(eim)
        theirs = qemu.run(scene)
        ours = run_ours(scene, qemu.cap, qemu.ecap)
        return ours, judge(scene, qemu.cap, qemu.ecap, ours, theirs)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(stack)


# Directed scenes.

def to(index: int, device: int = 0, data: int = 0, shv: bool = False, dma: bool = False) -> Message:
    """A message in remappable format with a handle."""
    address = 0xFEE0_0010 | (index & 0x7FFF) << 5 | (index >> 15) << 2 | (8 if shv else 0)
    return Message(device, address, data, dma)


def entry(index: int, flags: int = 0, high: int = 0, destination: int = 5 << 8, vector: int = 0x66) -> Put:
    """A present entry; `flags` flips bits of its low word."""
    return Put(index, (1 | vector << 16 | destination << 32) ^ flags, high)


SID, BUS = 1 << 18, 2 << 18
PLAIN, FRESH = (0xFEE0_5000, 0x4066), (0xFEE0_5000, 0x4077)
"""What an entry makes of a message unless it says otherwise, and what one with vector 0x77 does."""


@dataclass(frozen=True)
class Case:
    """A directed scene: the specification's answers (a fault reason, "lost" where none is recorded, or address and data) and QEMU's
    departures in it."""

    name: str
    operations: tuple[Operation, ...]
    answers: tuple[int | str | tuple[int, int], ...]
    differences: frozenset[str]
    irta: int = TABLE | 3
    gcmd: int = IRE | QIE


def case(name: str, operations: list[Operation], *answers: int | str | tuple[int, int], differ: str = "", irta: int = TABLE | 3,
         gcmd: int = IRE | QIE) -> Case:
    return Case(name, tuple(operations), answers, frozenset(differ.split()), irta, gcmd)


SILENT = "no-interrupt-faults"
CASES = [
    case("remapped", [entry(1), to(1)], PLAIN),
    case("every field of an entry", [entry(1, 1 << 4 | 1 << 3 | 1 << 2 | 1 << 5 | 0xF << 8, 0, 0xFE << 8, 0xED), to(1)],
         (0xFEEF_E00C, 0xC1ED)),
    *[case(f"delivery mode {mode}", [entry(1, mode << 5), to(1)], (0xFEE0_5000, 0x4066 | mode << 8)) for mode in range(8)],
    case("x2APIC destination", [entry(1, destination=0x1234_5678), to(1)], (0x1234_5600_FEE7_8000, 0x4066), irta=TABLE | 3 | EIME),
    case("subhandle", [entry(3), entry(9), to(1, data=2, shv=True), to(9, data=2)], PLAIN, PLAIN),
    case("remapping off", [Message(0, 0xFEE0_5000, 0x4166), to(0x280)], (0xFEE0_5000, 0x4166), (0xFEE0_5010, 0), gcmd=0),
    case("compatibility format with CFI", [Message(0, 0xFEE0_500C, 0xC166)], (0xFEE0_500C, 0xC166), gcmd=IRE | QIE | CFI,
         differ=""),
    case("25 compatibility format", [Message(0, 0xFEE0_5000, 0x66)], 0x25, differ="compatibility-passes"),
    case("25 with CFI and EIME", [Message(0, 0xFEE0_5000, 0x66)], 0x25, differ="compatibility-passes", gcmd=IRE | QIE | CFI,
         irta=TABLE | 3 | EIME),
    case("20 reserved bits of the data", [entry(1), to(1, data=0x1_0000, shv=True, dma=True), to(1, data=0x1_0000, dma=True)], 0x20, PLAIN,
         differ=SILENT),
    case("21 the last entry and the one after", [entry(15), entry(16), to(15), to(16), to(0x8000), to(8, data=8, shv=True)],
         PLAIN, 0x21, 0x21, 0x21, differ=SILENT),
    case("21 beyond every table", [entry(1), to(0xFFFF, data=2, shv=True)], 0x21, differ="index-wraps"),
    case("21 the smallest table", [entry(1), entry(2), to(1), to(2)], PLAIN, 0x21, irta=TABLE, differ=SILENT),
    case("22 not present", [entry(1, 1), to(1), to(2)], 0x22, 0x22, differ=SILENT),
    case("22 with FPD", [entry(1, 1 | 2), to(1)], "lost"),
    case("23 the table is absent", [to(1)], 0x23, irta=ABSENT | 3, differ=SILENT),
    *[case(f"24 bit {bit}", [entry(1, 1 << bit & mask(63), 1 << bit >> 64), to(1)], 0x24, differ=SILENT)
      for bit in (12, 13, 14, 24, 31, 84, 100, 127)],
    case("24 with FPD", [entry(1, 1 << 12 | 2), to(1)], "lost"),
    *[case(f"24 bit {bit} without EIME", [entry(1, 1 << bit), to(1)], 0x24, differ="destination-unchecked") for bit in (32, 39, 48, 63)],
    case("24 posted", [entry(1, 1 << 15), to(1)], 0x24, differ="posted-as-remapped"),
    case("26 another requester", [entry(1, high=SID | SOURCES[0]), to(1), to(1, 1), to(1, 3)], PLAIN, 0x26, 0x26, differ=SILENT),
    case("26 with FPD", [entry(1, 2, SID | SOURCES[1]), to(1)], "lost"),
    *[case(f"26 qualifier {sq}", [entry(1, high=SID | sq << 16 | sid), to(1, 1)], answer, differ=SILENT * (answer == 0x26))
      for sq, sid, answer in ((0, 0x1D, PLAIN), (0, 0x19, 0x26), (1, 0x19, PLAIN), (1, 0x1F, 0x26), (2, 0x1C, 0x26), (2, 0x1B, PLAIN),
                              (3, 0x1E, PLAIN), (3, 0x25, 0x26), (3, 0x11D, 0x26))],
    case("26 bus range of one", [entry(1, high=BUS | 0x0505), to(1, 3), to(1)], PLAIN, 0x26, differ=SILENT),
    case("26 bus range", [entry(1, high=BUS | 0x0106), to(1, 3), to(1)], PLAIN, 0x26, differ=f"bus-range-turned-round {SILENT}"),
    case("26 reserved check", [entry(1, high=3 << 18 | SOURCES[0]), to(1)], 0x26, differ=SILENT),
    case("26 of a message by DMA", [entry(1, high=SID | SOURCES[1]), to(1, dma=True)], 0x26, differ="dma-without-source"),
    case("an entry that changed", [entry(1), to(1), entry(1, vector=0x77), to(1)], PLAIN, PLAIN, differ="entries-not-cached"),
    *[case(f"an entry that changed, {how}", [entry(5), to(5), entry(5, vector=0x77), what, to(5)], PLAIN, answer,
           differ="entries-not-cached" * (answer == PLAIN))
      for how, what, answer in (("all invalidated", Invalidate(), FRESH), ("invalidated", Invalidate(5), FRESH),
                                ("neighbours invalidated", Invalidate(6, 1), PLAIN), ("invalidated by mask", Invalidate(7, 2), FRESH))],
    case("not present becomes present", [to(1), entry(1), to(1)], 0x22, PLAIN, differ=SILENT),
]


def answer(outcome: Outcome) -> int | str | tuple[int, int]:
    if outcome.record:
        return outcome.record[1] >> 32 & 0xFF
    return outcome.message or "lost"


@pytest.mark.parametrize("one", CASES, ids=lambda c: c.name)
def test_directed(pair: Pair, one: Case) -> None:
    ours, verdict = pair.play(Scene(one.operations, one.irta, one.gcmd), bool(one.irta & EIME))
    assert tuple(map(answer, ours)) == one.answers
    assert not verdict.unexplained, verdict.unexplained
    assert set(verdict.counts) - {SILENT} == one.differences - {SILENT}
    assert (SILENT in verdict.counts) >= (SILENT in one.differences)


def test_every_difference_has_a_directed_scene() -> None:
    assert set().union(*(c.differences for c in CASES)) == set(DIFFERENCES)


def test_the_vector_arrives_at_the_local_apic(pair: Pair) -> None:
    """The processor's own APIC has id 0; a fixed vector shows in its IRR."""
    qemu = pair.qemu(False)
    qemu.run(Scene((entry(1, destination=0, vector=0x91), entry(2, 1, destination=0, vector=0x92), to(1), to(2))))
    irr = re.search(r"IRR\t(.*)", qemu.monitor("info lapic"))
    assert irr and irr[1].split() == [str(0x91)]


# Random scenes.

_BYTES = (5, 0x12, 0x7C, 0xB6)
"""Low bytes of destinations: neither 0, the processor, nor 0xff, everybody, with one bit flipped either."""
_RANGES = (0x0000, 0x0005, 0x0505, 0x0406, 0x0604, 0x0500, 0x0104)
_NOISE = (0, 0, 1, 2, 12, 13, 14, 15, 15, 24, 31, 32, 39, 48, 63, 84, 127)


def _random_entry(r: random.Random, index: int, eim: bool) -> Put:
    destination = r.choice(_BYTES) | r.getrandbits(24) << 8 if eim else r.choice(_BYTES) << 8
    low = 1 | r.getrandbits(4) << 8 | r.getrandbits(6) << 2 | r.getrandbits(8) << 16 | destination << 32
    svt, sid = r.choice((*[(0, r.getrandbits(16))] * 4, (1, r.choice(SOURCES)), (1, r.choice(SOURCES) ^ r.getrandbits(3)),
                         (2, r.choice(_RANGES)), (2, 0x0005), (3, 0)))
    word = low | (sid | r.getrandbits(2) << 16 | svt << 18) << 64
    if r.random() < 0.3:
        word ^= 1 << r.choice(_NOISE)
    return Put(index, word & mask(63), word >> 64)


def _random_message(r: random.Random, entries: int) -> Message:
    device, dma = r.randrange(len(SOURCES)), r.random() < 0.2
    if r.random() < 0.1:
        return Message(device, 0xFEE0_0000 | r.choice(_BYTES) << 12 | r.getrandbits(2) << 2, r.getrandbits(32 if dma else 16), dma)
    index = r.choice((*(r.randrange(entries) for _ in range(8)), entries - 1, entries, r.getrandbits(16)))
    if r.random() < 0.7:
        return to(index, device, r.getrandbits(16), dma=dma)
    subhandle = r.choice((0, 1, r.randrange(entries), r.randrange(entries), 0x10000 - index & 0xFFFF, 0xFFFF))
    handle = index - subhandle if index >= subhandle and r.random() < 0.8 else index
    return to(handle, device, subhandle | (r.choice((0, 1 << r.randrange(16, 32))) if dma else 0), True, dma)


def random_scene(seed: int, eim: bool, careful: bool = False) -> Scene:
    """A small table with structured noise; messages that hit it and that just miss; changes and invalidations.

    Where software is `careful` it invalidates what it changes, and no cache may show.
    """
    r = random.Random(seed)
    size = r.randrange(5)
    entries = 2 << size
    extended = eim and r.random() < 0.7
    irta = (ABSENT if r.random() < 0.02 else TABLE) | size | (EIME if extended else 0)
    operations: list[Operation] = [_random_entry(r, i, extended) for i in range(entries)]
    for _ in range(LENGTH):
        what = r.random()
        if what < 0.12:
            operations.append(change := _random_entry(r, r.randrange(entries), extended))
            if careful:
                im = r.randrange(4)
                operations.append(r.choice((Invalidate(), Invalidate(change.index ^ r.randrange(1 << im), im))))
        elif what < 0.2:
            operations.append(Invalidate(*r.choice(((None, 0), (r.randrange(entries), 0), (r.randrange(entries), r.randrange(4))))))
        else:
            operations.append(_random_message(r, entries))
    return Scene(tuple(operations), irta, IRE | QIE | (CFI if r.random() < 0.5 else 0))


def shrink(scene: Scene, fails: Callable[[Scene], bool]) -> Scene:
    """The scene with every operation left out that it fails without."""
    i = 0
    while i < len(scene.operations):
        shorter = replace(scene, operations=scene.operations[:i] + scene.operations[i + 1:])
        if fails(shorter):
            scene = shorter
        else:
            i += 1
    return scene


def report(pair: Pair, scene: Scene, eim: bool) -> str:
    """A scene with an unexplained difference, as short as it can be."""
    scene = shrink(scene, lambda s: bool(pair.play(s, eim)[1].unexplained))
    found = pair.play(scene, eim)[1].unexplained
    return "\n".join([f"IRTA {scene.irta:#x}, GCMD {scene.gcmd:#x}", *map(str, scene.operations),
                      *(f"message {u.message}: ours {u.ours}; QEMU {u.qemu}; model {u.model}; bare {u.bare}" for u in found)])


def test_random(pair: Pair) -> None:
    counts, sent, reasons, seed = Counter[str](), 0, Counter[int | str](), 0
    while sent < MESSAGES:
        eim, careful = bool(seed % 2), seed % 4 > 1
        scene = random_scene(seed, eim, careful)
        ours, verdict = pair.play(scene, eim)
        assert not verdict.unexplained, f"seed {seed}\n{report(pair, scene, eim)}"
        assert not (careful and verdict.counts["entries-not-cached"]), f"seed {seed}: stale entries after invalidation"
        counts += verdict.counts
        sent, seed = sent + verdict.messages, seed + 1
        reasons.update(a if isinstance(a, int | str) else "delivered" for a in map(answer, ours))
    print(f"\n{sent:,} messages: {dict(reasons)}\n" + "\n".join(f"{n:8,}  {name}" for name, n in counts.most_common()))
    assert {"delivered", *range(0x20, 0x27)} <= set(reasons)


# Broken units.

def _no_source_check(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(interrupts, "source_accepted", lambda high, source: True)


def _qualifiers_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(spec, "QUALIFIER", (0xFFFF,) * 4)


def _bus_ranges_are_turned_round(patch: pytest.MonkeyPatch) -> None:
    accepted = spec.source_accepted
    patch.setattr(interrupts, "source_accepted", lambda high, source: accepted(
        high >> 8 & 0xFF | high << 8 & 0xFF00 | high & 0xF0000 if high >> 18 & 3 == 2 else high, source))


def _subhandles_are_ignored(patch: pytest.MonkeyPatch) -> None:
    index_of = spec.index_of
    patch.setattr(interrupts, "index_of", lambda address, data: index_of(address & ~8, data))


def _handle_has_15_bits(patch: pytest.MonkeyPatch) -> None:
    index_of = spec.index_of
    patch.setattr(interrupts, "index_of", lambda address, data: index_of(address & ~4, data))


def _table_is_half_as_large(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(interrupts, "table_entries", lambda irta: 1 << (irta & 15))


def _reserved_bits_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(interrupts, "irte_reserved", lambda cap, eime: (0, 0))


def _invalidation_takes_one_entry(patch: pytest.MonkeyPatch) -> None:
    invalidate = InterruptEntryCache.invalidate_indices
    patch.setattr(InterruptEntryCache, "invalidate_indices", lambda self, index, im: invalidate(self, index, 0))


def _trigger_mode_is_lost(patch: pytest.MonkeyPatch) -> None:
    by_entry = spec.by_entry
    patch.setattr(interrupts, "by_entry", lambda *words: replace(by_entry(*words), level=False))


BROKEN = (_no_source_check, _qualifiers_are_ignored, _bus_ranges_are_turned_round, _subhandles_are_ignored, _handle_has_15_bits,
          _table_is_half_as_large, _reserved_bits_are_ignored, _invalidation_takes_one_entry, _trigger_mode_is_lost)


@pytest.fixture(scope="module")
def recorded(pair: Pair) -> list[tuple[Scene, QemuInterrupts, list[Outcome]]]:
    """What QEMU makes of some random scenes of careful software."""
    scenes = [(random_scene(seed, eim, careful=True), pair.qemu(eim)) for seed in range(1000, 1020) for eim in (False, True)]
    return [(scene, qemu, qemu.run(scene)) for scene, qemu in scenes]


@pytest.mark.parametrize("break_unit", BROKEN, ids=lambda f: f.__name__.strip("_"))
def test_a_broken_unit_is_caught(recorded: list[tuple[Scene, QemuInterrupts, list[Outcome]]], monkeypatch: pytest.MonkeyPatch,
                                 break_unit: Callable[[pytest.MonkeyPatch], None]) -> None:
    break_unit(monkeypatch)
    for scene, qemu, theirs in recorded:
        verdict = judge(scene, qemu.cap, qemu.ecap, run_ours(scene, qemu.cap, qemu.ecap), theirs)
        if verdict.unexplained or verdict.counts["entries-not-cached"]:
            return
    pytest.fail("nothing was noticed")
