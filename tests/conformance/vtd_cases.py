"""Directed scenes: what they do, what the specification says comes of it, and in which departures of QEMU's it differs."""

from collections.abc import Callable
from dataclasses import dataclass

from vtd_play import VARIANTS
from vtd_scene import ABSENT, APIC, DATA, GCMD, RTADDR, SRTP, TABLES, TE, Ask, Look, Operation, Poke, Variant, Write
from vtd_scenes import (
    PAGING,
    QUEUE,
    ROOT,
    Builder,
    Operations,
    context_address,
    invalidate_contexts,
    invalidate_iotlb,
    through_queue,
)

__all__ = ["BOTH", "CASES", "Case", "Plain", "interrupts"]

TOP, DID = PAGING, 7
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

    def more(self, iova: int) -> Operations:
        """One more page, read-write.  Nothing happens."""
        self.map(TOP, 3, iova, DATA | iova & 0xF000 | 3)
        return []

    def flip(self, at: int, bits: int) -> None:
        self.words[at] = self.words.get(at, 0) ^ bits


def read(iova: int, device: int = 0, sweep: bool = True, length: int = 8) -> Ask:
    return Ask(device, iova, False, sweep, length)


def write(iova: int, device: int = 0, sweep: bool = True, length: int = 8) -> Ask:
    return Ask(device, iova, True, sweep, length)


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


def stale(*operations: Operation) -> Callable[[Plain], Operations]:
    """A read of 0x5000, the page moves to another, then the operations."""
    def build(b: Plain) -> Operations:
        return [read(RW_AT), Poke(b.at[RW_AT], DATA | 3), *operations]
    return build


def queued(*operations: Operation) -> Callable[[Plain], Operations]:
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


def interrupts(_: Plain) -> Operations:
    """Device 0 fetches the data of an interrupt and sends it; then of another one, which it sends when it has no context any more."""
    def fetch(vector: int, slot: int) -> Operations:
        return [Poke(DATA | RW_AT, vector), Ask(0, RW_AT, length=4, slot=slot)]

    def send(slot: int) -> Ask:
        return Ask(0, APIC, True, length=4, slot=slot)
    return [*fetch(0x41, 200), send(200), *fetch(0x42, 201), Poke(context_address(0), 0), *invalidate_contexts(1), *invalidate_iotlb(1),
            send(201), read(RW_AT), Look(apic=True)]


def _behind_bridges(b: Plain) -> Operations:
    """Devices 4 and 5 have the ids that their bridges give them; nobody has the id of 06:03.0 or 07:02.0."""
    b.context(4, TOP | 1, DID << 8 | 1)
    return [read(RW_AT, 4), write(RW_AT + 16, 4), read(RW_AT, 5), read(0x8000, 4)]


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
    # Other sizes, and requests over the end of a page.
    *[case(f"{n} bytes", [read(RW_AT + 3, length=n), write(RW_AT + 0x801, length=n), write(R_AT + 1, length=n), read(W_AT, length=n)],
           "ok", "ok", 5, 6) for n in (1, 2, 3, 4, 7, 9, 64, 511, 900)],
    case("over the end of a page into one that is as good", lambda b: [*b.more(0x9000), *b.more(0xA000), write(0xA000 - 16, length=32),
         read(0xA000 - 700, length=1500)], "ok", "ok"),
    case("over the end of a page into one that is read-only", [write(R_AT - 16, length=32), read(R_AT - 16, length=32)], 5, "ok"),
    case("over the end of a page into one that is write-only", [read(W_AT - 16, length=32), write(W_AT - 16, length=32)], 6, 5,
         differ="silent-block"),
    case("out of a page that refuses", [write(0x5000 - 16, length=32), read(0x5000 - 16, length=32)], 5, 6),
    case("two pages that refuse", [read(0x9000 - 16, length=32)], 6, differ="collapse-by-source"),
    case("over the end of a 2 MiB page", [read(LARGE - 16, length=32), write(LARGE + (1 << 21) - 16, length=32)], 6, 5),
    case("over the end of the width", [read((1 << 39) - 16, length=32)], 6, differ="collapse-by-source"),
    # Interrupts of devices.
    case("4-byte writes to the interrupt range, whatever the tables say", interrupts, "ok", "lost", "ok", "lost", 2, "registers"),
    case("other writes to the interrupt range", [write(APIC, length=2), write(APIC + 2, length=4), read(APIC, length=4)], 14, 14, 14,
         differ="interrupt-range-input"),
    # Behind bridges.
    case("behind bridges", _behind_bridges, "ok", "ok", 2, 6),
    # Where the root table is.
    case("the root table beyond the width", [Write(RTADDR, 8, ROOT | 1 << 50), Write(GCMD, 4, TE | SRTP), *BOTH], 8, 8,
         differ="root-pointer-bits"),
    case("reserved bits of RTADDR", [Write(RTADDR, 8, ROOT | 0xC00), Write(GCMD, 4, TE | SRTP), *BOTH, Look()], "ok", "ok", "registers",
         differ="root-pointer-bits"),
]
