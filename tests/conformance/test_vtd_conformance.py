"""Our remapping unit against QEMU's `intel-iommu`: what they agree on, and every departure of QEMU by its name (vtd_differences.py).

`HVLAB_CONFORMANCE=N` plays N random requests instead of some thousands; `-s` shows what was counted.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
from vtd_differences import DIFFERENCES, Verdict, judge
from vtd_qemu import ABSENT, DATA, TABLES, Ask, Outcome, Poke, QemuUnit, Scene, Variant, Write, run_ours
from vtd_scenes import QUEUE, ROOT, Builder, Operations, context_address, invalidate_contexts, invalidate_iotlb, random_scene, through_queue

from hvcore.machine.vtd import RemappingUnit, unit, walk
from hvcore.machine.vtd.caches import ContextCache, Iotlb
from hvcore.machine.vtd.faults import FaultLog
from hvcore.machine.vtd.walk import Found, Step, Walker
from hvcore.spec import vtd as spec
from hvcore.spec.dma import Direction
from hvcore.spec.vtd import FaultReason

pytestmark = [pytest.mark.needs("qemu-system-x86_64"), pytest.mark.xdist_group("vtd-conformance")]

VARIANTS = [Variant(aw_bits, caching) for aw_bits in (39, 48) for caching in (False, True)]
REQUESTS = int(os.environ.get("HVLAB_CONFORMANCE", "20000"))


class Pair:
    """QEMU's units, one per variant, started when first asked for."""

    def __init__(self, stack: ExitStack):
        self._stack, self._units = stack, dict[Variant, QemuUnit]()

    def qemu(self, variant: Variant) -> QemuUnit:
        if variant not in self._units:
            self._units[variant] = self._stack.enter_context(QemuUnit(variant))
        return self._units[variant]

    def play(self, scene: Scene, variant: Variant, make: Callable[..., RemappingUnit] = RemappingUnit) -> tuple[list[Outcome], Verdict]:
        """What our unit made of a scene, and how QEMU compares."""
        qemu = self.qemu(variant)
        theirs = qemu.run(scene)
        ours = run_ours(scene, variant, qemu.cap, qemu.ecap, make)
        return ours, judge(scene, variant, qemu.cap, qemu.ecap, ours, theirs)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(stack)


# Directed scenes.

TOP, DID = TABLES + 3 * 4096, 7
R_AT, W_AT, RW_AT, LARGE, HUGE = 0x6000, 0x7000, 0x5000, 0x20_0000, 0x4000_0000


class Plain(Builder):
    """Device 0 in domain 7 with three levels: 0x5000 RW, 0x6000 R, 0x7000 W, a 2 MiB page at 0x200000, a 1 GiB page at 0x40000000."""

    def __init__(self, variant: Variant):
        super().__init__(variant)
        assert self.table() == TOP
        self.at = {iova: self.map(TOP, 3, iova, DATA + (iova & 0xF000) | bits) for iova, bits in ((RW_AT, 3), (R_AT, 1), (W_AT, 2))}
        self.at[LARGE] = self.map(TOP, 3, LARGE, DATA | 0x83, 2)
        self.at[HUGE] = self.map(TOP, 3, HUGE, 0x83, 3)
        self.level3, self.level2 = TOP, self.words[TOP] & ~0xFFF
        self.attach(0)

    def attach(self, device: int, low: int = 0, high: int = 0, did: int = DID) -> None:
        """A context entry; `low` and `high` flip bits of it."""
        self.context(device, (TOP | 1) ^ low, (did << 8 | 1) ^ high)

    def flip(self, at: int, bits: int) -> None:
        self.words[at] = self.words.get(at, 0) ^ bits


def read(iova: int, device: int = 0, sweep: bool = True) -> Ask:
    return Ask(device, iova, False, sweep)


def write(iova: int, device: int = 0, sweep: bool = True) -> Ask:
    return Ask(device, iova, True, sweep)


@dataclass(frozen=True)
class Case:
    """A directed scene: how it differs from `Plain`, its requests, the specification's answers, and QEMU's departures in it.

    An answer is a fault reason, "ok", or "lost": nothing arrives and nothing is recorded.
    """

    name: str
    operations: Operations | Callable[[Plain], Operations]
    answers: tuple[int | str, ...]
    differences: frozenset[str]
    variants: tuple[Variant, ...]


def case(name: str, operations: Operations | Callable[[Plain], Operations], *answers: int | str, differ: str = "",
         variants: tuple[Variant, ...] = (VARIANTS[0], VARIANTS[2])) -> Case:
    return Case(name, operations, answers, frozenset(differ.split()), variants)


def flipped(at: int | Callable[[Plain], int], bits: int, *operations: Ask) -> Callable[[Plain], Operations]:
    """A scene with some bits of one word flipped."""
    def build(b: Plain) -> Operations:
        b.flip(at(b) if callable(at) else at, bits)
        return list(operations)
    return build


def attached(low: int, high: int, *operations: Ask) -> Callable[[Plain], Operations]:
    """A scene with some bits of device 0's context entry flipped."""
    def build(b: Plain) -> Operations:
        b.attach(0, low, high)
        return list(operations)
    return build


def stale(*operations: Poke | Write | Ask) -> Callable[[Plain], Operations]:
    """A read of 0x5000, the page moves to another, then the operations."""
    def build(b: Plain) -> Operations:
        return [read(RW_AT), Poke(b.at[RW_AT], DATA | 3), *operations]
    return build


def queued(*operations: Poke | Write | Ask) -> Callable[[Plain], Operations]:
    """The same with the invalidation queue."""
    return lambda b: through_queue(stale(*operations)(b), QUEUE)


def leaf(b: Plain) -> int:
    return b.at[RW_AT]


def _shared_domain(b: Plain) -> Operations:
    b.context(1, b.table() | 1, DID << 8 | 1)
    return [read(RW_AT), read(RW_AT, 1)]


def _reserved_leaf_with_fpd(b: Plain) -> Operations:
    b.attach(0, 2)
    b.flip(leaf(b), 1 << 11)
    return [*BOTH]


def _switched_on(b: Plain) -> Operations:
    """TE is cleared and set, and so is the root pointer, after a page moved; software invalidates nothing."""
    return [read(RW_AT), Poke(b.at[RW_AT], 0), Write(0x18, 4, 0), Write(0x18, 4, 1 << 30), Write(0x18, 4, 1 << 31), read(RW_AT)]


def _passed_through_before(b: Plain) -> Operations:
    """A pass-through device is given a table, without invalidation before its first request, with one before its second."""
    b.context(0, 2 << 2 | 1, DID << 8 | 1)
    at = context_address(0)
    return [Poke(at, TOP | 1), read(DATA), *invalidate_contexts(1), read(DATA)]


BOTH = [read(RW_AT), write(RW_AT)]
CASES = [
    case("what is mapped", [*BOTH, read(R_AT), write(W_AT), read(LARGE + 0x3010), write(LARGE + 0x2020), read(HUGE + DATA + 0x1030),
                            write(HUGE + DATA + 8)], *["ok"] * 8),
    case("1 root entry not present", flipped(ROOT, 1, *BOTH), 1, 1),
    case("1 another bus", flipped(ROOT + 80, 1, read(RW_AT, 3), read(RW_AT)), 1, "ok"),
    case("2 context entry not present", [read(RW_AT, 1), write(RW_AT, 3), read(RW_AT)], 2, 2, "ok"),
    case("2 with FPD", attached(3, 0, *BOTH), "lost", "lost"),
    case("3 four levels under 39 bits", attached(0, 3, *BOTH), 3, 3, variants=(VARIANTS[0],)),
    case("3 two levels", attached(0, 1, *BOTH), 3, 3),
    case("3 a width that is reserved", attached(0, 4, *BOTH), 3, 3),
    case("3 ATS without the capability", attached(1 << 2, 0, *BOTH), 3, 3),
    case("3 reserved translation type", attached(3 << 2, 0, *BOTH), 3, 3),
    case("3 the top table is absent", attached(TOP ^ ABSENT, 0, *BOTH), 3, 3),
    case("3 with FPD", attached(1 << 2 | 2, 0, *BOTH), "lost", "lost"),
    case("4 beyond the width", [read(1 << 39), write(1 << 40), read(1 << 63), read((1 << 39) - 4096)], 4, 4, 4, 6),
    case("4 with FPD", attached(2, 0, read(1 << 39), read(RW_AT)), "lost", "ok"),
    case("5 and 6", [write(R_AT), read(W_AT), read(0x8000), write(0x8000), write(0x80_0000), read(3 << 30)], 5, 6, 6, 5, 5, 6),
    case("5 and 6 with FPD", attached(2, 0, write(R_AT), read(W_AT), read(0x8000)), *["lost"] * 3),
    case("5 and 6 from an upper level", flipped(lambda b: b.level3, 1, *BOTH, read(R_AT)), 6, "ok", 6),
    case("5 after the page was cached", [read(R_AT), write(R_AT), write(W_AT), read(W_AT)], "ok", 5, "ok", 6, differ="silent-block"),
    case("7 the second table is absent", flipped(lambda b: b.level3, TABLES ^ ABSENT, *BOTH), 7, 7),
    case("7 the last table is absent", flipped(lambda b: b.level2, TABLES ^ ABSENT, *BOTH), 7, 7),
    case("9 the context table is absent", flipped(ROOT, TABLES ^ ABSENT, *BOTH), 9, 9),
    *[case(f"a root bit {bit}", flipped(ROOT + bit // 64 * 8, 1 << bit % 64, *BOTH), 10, 10)
      for bit in (1, 11, 52, 63, 64, 76, 127)],
    *[case(f"b context bit {bit}", attached((1 << bit) % (1 << 64), 1 << bit >> 64, *BOTH), 11, 11)
      for bit in (4, 11, 52, 63, 71, 88, 127)],
    *[case(f"context bit {bit} is ignored", attached(0, 1 << bit - 64, *BOTH), "ok", "ok") for bit in (67, 70)],
    case("b with FPD", attached(1 << 4 | 2, 0, *BOTH), "lost", "lost", differ="fpd-context-reserved"),
    *[case(f"c leaf bit {bit}", flipped(leaf, 1 << bit, *BOTH), 12, 12) for bit in (11, 48, 51, 62)],
    *[case(f"c level-2 table bit {bit}", flipped(lambda b: b.level2, 1 << bit, *BOTH), 12, 12) for bit in (11, 48, 51, 62)],
    *[case(f"c level-3 table bit {bit}", flipped(lambda b: b.level3, 1 << bit, *BOTH), 12, 12) for bit in (7, 11, 51, 62)],
    *[case(f"c 2 MiB page bit {bit}", flipped(lambda b: b.at[LARGE], 1 << bit, read(LARGE), write(LARGE)), 12, 12)
      for bit in (11, 12, 20, 62)],
    *[case(f"c 1 GiB page bit {bit}", flipped(lambda b: b.at[HUGE], 1 << bit, read(HUGE), write(HUGE)), 12, 12)
      for bit in (11, 12, 29, 62)],
    *[case(f"leaf bit {bit} is ignored", flipped(leaf, 1 << bit, *BOTH), "ok", "ok") for bit in (2, 3, 6, 7, 8, 9, 10, 52, 61, 63)],
    case("c bit 39 under 39 bits", flipped(leaf, 1 << 39, *BOTH), 12, 12, variants=(VARIANTS[0],)),
    case("bit 39 under 48 bits leads nowhere", flipped(leaf, 1 << 39, *BOTH), "lost", "lost", variants=(VARIANTS[2],)),
    case("c with FPD", _reserved_leaf_with_fpd, "lost", "lost"),
    case("c in an entry without the permission", flipped(lambda b: b.at[W_AT], 1 << 11, read(W_AT), write(W_AT)), 12, 12,
         differ="permission-first"),
    case("c in an absent entry", flipped(leaf, 1 << 11 | 1 << 51 | 3, *BOTH), 6, 5),
    case("all ones", flipped(leaf, (1 << 64) - 1 ^ (DATA | RW_AT | 3), *BOTH), 12, 12, differ="all-ones"),
    case("the mapped page is absent", flipped(leaf, ABSENT, *BOTH), "lost", "lost"),
    case("e a page in the interrupt range", flipped(leaf, (DATA | RW_AT) ^ 0xFEE0_0000, *BOTH), 14, 14),
    case("e a superpage over the interrupt range", flipped(lambda b: b.at[LARGE], DATA ^ 0xFEE0_0000, read(LARGE + 0x10_0000), read(LARGE)),
         "lost", 14, differ="superpage-interrupt"),
    case("e the interrupt range as input", [read(0xFEE0_0000), write(0xFEEF_F000), read(0xFEDF_F000), read(0xFEF0_0000)], 14, 14, 6, 6,
         differ="interrupt-range-input"),
    case("pass-through", attached(2 << 2 | TOP, 0, read(DATA), write(DATA + 16), read(ABSENT)), "ok", "ok", "lost"),
    case("pass-through beyond the width", attached(2 << 2, 0, read(1 << 39)), 4, differ="pass-through-switch", variants=(VARIANTS[0],)),
    case("pass-through that ends", _passed_through_before, 6, 6, differ="pass-through-switch"),
    case("a page that moved, stale", stale(read(RW_AT), write(RW_AT)), "ok", "ok", "ok"),
    case("a page that moved, invalidated", stale(*invalidate_iotlb(3, DID, RW_AT), read(RW_AT), write(RW_AT)), "ok", "ok", "ok"),
    *[case(f"{name}, queued", queued(*operations, read(RW_AT)), "ok", "ok") for name, operations in (
        ("page", invalidate_iotlb(3, DID, RW_AT)), ("page elsewhere", invalidate_iotlb(3, DID, RW_AT + 0x1000)),
        ("domain", invalidate_iotlb(2, DID)), ("all", invalidate_iotlb(1)), ("contexts", invalidate_contexts(1)))],
    case("page invalidation elsewhere", stale(*invalidate_iotlb(3, DID, RW_AT + 0x1000), read(RW_AT)), "ok", "ok"),
    case("page invalidation 256 pages on", stale(*invalidate_iotlb(3, DID, RW_AT + 0x10_0000), read(RW_AT)), "ok", "ok",
         differ="page-mask-8-bits"),
    case("invalidation of another domain", stale(*invalidate_iotlb(2, DID + 1), read(RW_AT)), "ok", "ok"),
    case("context invalidation of another domain", lambda b: [read(RW_AT), Poke(context_address(0), 0), *invalidate_iotlb(1),
         *invalidate_contexts(2, DID + 1), write(RW_AT)], "ok", "ok", differ="context-invalidation-wide"),
    case("context and IOTLB invalidation", lambda b: [read(RW_AT), Poke(context_address(0), 0), *invalidate_contexts(1),
         *invalidate_iotlb(1), write(RW_AT)], "ok", 2),
    case("context invalidation without that of the IOTLB", lambda b: [read(RW_AT), Poke(context_address(0), 0), *invalidate_contexts(1),
         read(RW_AT)], "ok", 2, differ="iotlb-by-source"),
    case("a domain id shared by different tables", _shared_domain, "ok", "ok", differ="iotlb-by-source"),
    case("TE and the root pointer change", _switched_on, "ok", "ok", differ="root-pointer-flush"),
    case("not present becomes present", lambda b: [read(0x8000), Poke(b.at[RW_AT] + 24, DATA | 3), read(0x8000)], 6, "ok"),
    case("not present becomes present in caching mode", lambda b: [read(0x8000), Poke(b.at[RW_AT] + 24, DATA | 3), read(0x8000)], 6, 6,
         differ="absent-never-cached", variants=(VARIANTS[1], VARIANTS[3])),
    case("two faults, one record", [read(0x8000, sweep=False), read(0x9000, sweep=False)], 6, 6, differ="collapse-by-source"),
]


def answer(outcome: Outcome) -> int | str:
    if outcome.high is not None:
        return outcome.high >> 32 & 0xFF
    return "lost" if outcome.where is None else "ok"


@pytest.mark.parametrize("one", CASES, ids=lambda c: c.name)
def test_directed(pair: Pair, one: Case) -> None:
    for variant in one.variants:
        builder = Plain(variant)
        operations = one.operations(builder) if callable(one.operations) else one.operations
        scene = builder.scene(operations)
        ours, verdict = pair.play(scene, variant)
        assert tuple(map(answer, ours)) == one.answers
        assert not verdict.unexplained, report(pair, scene, variant)
        assert set(verdict.counts) - {"junk-pasid"} == one.differences


def test_8_the_root_table_is_absent(pair: Pair) -> None:
    scene = Plain(VARIANTS[0]).scene(list(BOTH), root=ABSENT)
    ours, verdict = pair.play(scene, VARIANTS[0])
    assert list(map(answer, ours)) == [8, 8] and not verdict.unexplained


def test_every_difference_has_a_directed_scene() -> None:
    assert set().union(*(c.differences for c in CASES)) | {"junk-pasid"} == set(DIFFERENCES)


# Random scenes.

def report(pair: Pair, scene: Scene, variant: Variant) -> str:
    """A scene with an unexplained difference, without the operations that it does not need."""
    scene = shrink(scene, lambda s: bool(pair.play(s, variant)[1].unexplained))
    _, verdict = pair.play(scene, variant)
    lines = [f"{variant}, root {scene.root:#x}", *(f"  {o}" for o in scene.operations)]
    for at, page in scene.tables.items():
        words = [(at + i, int.from_bytes(page[i:i + 8], "little")) for i in range(0, 4096, 8)]
        lines += [f"  {a:#x}: {word:#x}" for a, word in words if word]
    lines += [f"  request {u.request}: ours {u.ours} (should be {u.bare}); QEMU {u.qemu} (foretold {u.model})" for u in verdict.unexplained]
    return "\n".join(lines)


def shrink(scene: Scene, fails: Callable[[Scene], bool]) -> Scene:
    """The scene with as many operations taken away as it goes on failing without, ever smaller runs of them."""
    operations, size = scene.operations, len(scene.operations) // 2
    while size:
        at = 0
        while at < len(operations):
            fewer = operations[:at] + operations[at + size:]
            if fails(Scene(scene.tables, scene.root, fewer)):
                operations = fewer
            else:
                at += size
        size //= 2
    return Scene(scene.tables, scene.root, operations)


def test_shrinking_leaves_what_the_failure_needs() -> None:
    scene = random_scene(1, VARIANTS[0])
    wanted = {scene.operations[17], scene.operations[101]}
    assert set(shrink(scene, lambda s: wanted <= set(s.operations)).operations) == wanted


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_random_scenes(pair: Pair, variant: Variant) -> None:
    counts, answers, requests, seed = Counter[str](), Counter[int | str](), 0, 0
    while requests < REQUESTS // len(VARIANTS):
        scene = random_scene(seed, variant)
        ours, verdict = pair.play(scene, variant)
        assert not verdict.unexplained, f"seed {seed}: " + report(pair, scene, variant)
        counts += verdict.counts
        answers.update(map(answer, ours))
        requests, seed = requests + verdict.requests, seed + 1
    print(f"\n{variant}: {requests} requests; {dict(counts.most_common())}; {dict(answers.most_common())}")
    assert answers["ok"] > requests / 10 and {3, 4, 5, 6, 12, 14} <= set(answers)
    assert not counts["together"] > requests / 1000


# Broken units.

def _only_the_leaf_permits(patch: pytest.MonkeyPatch) -> None:
    right = Walker._refusal

    def refusal(step: Step, need: int, top: int) -> FaultReason | None:
        return None if step.found is Found.TABLE else right(step, need, top)
    patch.setattr(Walker, "_refusal", staticmethod(refusal))


def _bit_11_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(walk, "entry_reserved", lambda *a: spec.entry_reserved(*a) & ~spec.SNP)


def _fpd_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(unit, "FPD_SILENCES", frozenset())


def _superpages_are_small(patch: pytest.MonkeyPatch) -> None:
    right = Walker.mapping
    patch.setattr(Walker, "mapping", lambda *a: replace(right(*a), size=4096))


def _records_turn_the_direction_round(patch: pytest.MonkeyPatch) -> None:
    right, other = FaultLog.record, {Direction.READ: Direction.WRITE, Direction.WRITE: Direction.READ}
    patch.setattr(FaultLog, "record", lambda self, request, reason: right(self, replace(request, access=other[request.access]), reason))


def _the_context_width_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(walk, "input_bits", lambda cap, aw: spec.mgaw(cap))


def _page_invalidation_takes_one_page(patch: pytest.MonkeyPatch) -> None:
    right = Iotlb.invalidate_pages
    patch.setattr(Iotlb, "invalidate_pages", lambda self, did, iova, am: right(self, did, iova, 0))


def _domain_invalidation_takes_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Iotlb, "invalidate_domain", lambda self, did: self.invalidate_all())


def _function_masks_are_ignored(patch: pytest.MonkeyPatch) -> None:
    right = ContextCache.invalidate_device
    patch.setattr(ContextCache, "invalidate_device", lambda self, did, source, fm: right(self, did, source, 0))


BROKEN = (_only_the_leaf_permits, _bit_11_is_ignored, _fpd_is_ignored, _superpages_are_small, _records_turn_the_direction_round,
          _the_context_width_is_ignored, _page_invalidation_takes_one_page, _domain_invalidation_takes_all, _function_masks_are_ignored)


@pytest.fixture(scope="module")
def recorded(pair: Pair) -> list[tuple[Scene, Variant, list[Outcome]]]:
    """What QEMU makes of some random scenes."""
    scenes = [(random_scene(seed, variant), variant) for seed in range(1000, 1024) for variant in (VARIANTS[0], VARIANTS[2])]
    return [(scene, variant, pair.qemu(variant).run(scene)) for scene, variant in scenes]


@pytest.mark.parametrize("break_unit", BROKEN, ids=lambda f: f.__name__.strip("_"))
def test_a_broken_unit_is_caught(pair: Pair, recorded: list[tuple[Scene, Variant, list[Outcome]]], monkeypatch: pytest.MonkeyPatch,
                                 break_unit: Callable[[pytest.MonkeyPatch], None]) -> None:
    break_unit(monkeypatch)
    for scene, variant, theirs in recorded:
        qemu = pair.qemu(variant)
        ours = run_ours(scene, variant, qemu.cap, qemu.ecap)
        if judge(scene, variant, qemu.cap, qemu.ecap, ours, theirs, causes=False).unexplained:
            return
    pytest.fail("nothing was noticed")
