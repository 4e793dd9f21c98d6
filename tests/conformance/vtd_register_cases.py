"""Directed register scenes, from power-on: what is written, what the registers hold then, and in which departures QEMU's differ."""

from dataclasses import dataclass

from vtd_register_scenes import (
    DID,
    FEADDR,
    FECTL,
    FEDATA,
    FEUADDR,
    FRCD,
    ICS,
    IEADDR,
    IECTL,
    IEDATA,
    IOTLB,
    IQA,
    IQT,
    IRTA,
    IVA,
    MAPPED,
    PMEN,
    SIRTP,
    both_flags,
)
from vtd_scene import ABSENT, APIC, CCMD, DATA, FSTS, GCMD, PAGE, QIE, RTADDR, SRTP, TE, Ask, F, Look, Poke, Write
from vtd_scenes import QUEUE, Operations

__all__ = ["REGISTER_CASES", "RegisterCase", "every_bit"]

GSTS, IQH, PLMBASE, PHMBASE, PHMLIMIT = 0x1C, 0x80, 0x68, 0x70, 0x78
IM, IP, IQE, PPF, PFO = 1 << 31, 1 << 30, 1 << 4, 1 << 1, 1 << 0
WAIT, SW, IF, FN = 5, 1 << 5, 1 << 4, 1 << 6
ONES = (1 << 64) - 1
READ_BACK = DATA + 0x100


@dataclass(frozen=True)
class RegisterCase:
    """A scene from power-on.

    `expected` are the registers at its end by offset (64 bits where the offset is a multiple of 8 and the value needs them, else 32);
    `vectors` the interrupts that our unit has sent; `word` what the scene's request read; `differences` QEMU's departures.
    """

    name: str
    operations: Operations
    expected: dict[int, int]
    vectors: frozenset[int]
    word: int | None
    differences: frozenset[str]


def case(name: str, operations: Operations, expected: dict[int, int], vectors: tuple[int, ...] = (), word: int | None = None,
         differ: str = "") -> RegisterCase:
    return RegisterCase(name, [*operations, Look(apic=True)], expected, frozenset(vectors), word, frozenset(differ.split()))


def queue(*descriptors: tuple[int, int], tail: int | None = None, size: int = 0) -> Operations:
    """Descriptors in memory, the queue switched on, and its tail moved behind them."""
    words = [Poke(QUEUE + 16 * i + 8 * j, word) for i, pair in enumerate(descriptors) for j, word in enumerate(pair)]
    return [*words, Write(IQA, 8, QUEUE | size), Write(GCMD, 4, QIE), Write(IQT, 8, 16 * len(descriptors) if tail is None else tail)]


def event(control: int, data: int, address: int, vector: int, to: int = APIC) -> Operations:
    """An event unmasked and given a vector."""
    return [Write(address, 4, to), Write(data, 4, vector), Write(control, 4, 0)]


def faults(*iovas: int) -> Operations:
    """Translation from a root table that is absent, and requests that fault."""
    return [Write(RTADDR, 8, ABSENT), Write(GCMD, 4, SRTP), Write(GCMD, 4, TE), *(Ask(0, iova, sweep=False) for iova in iovas)]


def every_bit(low: int, high: int) -> Operations:
    """A descriptor with each of its bits flipped in turn; one that is an error is replaced by a sound one after a look.

    Left out are those at which QEMU aborts, and addresses that lead elsewhere in RAM.
    """
    words = [(low ^ 1 << bit, high) for bit in range(64)] + [(low, high ^ 1 << bit) for bit in range(64) if not 12 < bit < 28]
    operations = queue()
    for slot, (one, two) in enumerate(pair for pair in words if not both_flags(pair[0])):
        at, tail = QUEUE + 16 * slot, Write(IQT, 8, 16 * slot + 16)
        operations += [Poke(at, one), Poke(at + 8, two), tail, Look()]
        operations += [Poke(at, SOUND[0]), Poke(at + 8, SOUND[1]), Write(FSTS, 4, IQE), tail]
    return operations


FAULT_EVENT, QUEUE_EVENT = event(FECTL, FEDATA, FEADDR, 0x50), event(IECTL, IEDATA, IEADDR, 0x60)
SOUND = (WAIT | SW | 0xC0DE << 32, READ_BACK)
GLOBAL, DOMAIN, SOME = 1, 2, 3


def context(granularity: int) -> int:
    return 1 << 63 | granularity << 61 | 0x18 << 16 | DID


def iotlb(granularity: int) -> int:
    return 1 << 63 | granularity << 60 | DID << 32


REGISTER_CASES = [
    case("power-on", [], {0x00: 0x10, GSTS: 0, FECTL: IM, IECTL: IM, FSTS: 0, RTADDR: 0, CCMD: 0, IQH: 0, IQT: 0, IQA: 0, FRCD + 8: 0}),
    case("read-only registers", [Write(at, 4, 0xFFFF_FFFF) for at in (0x00, 0x08, 0x0C, 0x10, 0x14, GSTS, IQH, FRCD, FRCD + 4)],
         {0x00: 0x10, GSTS: 0, IQH: 0, FRCD: 0}),
    case("protected memory, which neither unit has", [Write(PMEN, 4, 0xFFFF_FFFF), Write(PLMBASE, 4, 0xFFFF_FFFF), Write(PHMBASE, 8, ONES),
                                                      Write(PHMLIMIT, 8, ONES)], {PMEN: 0, PLMBASE: 0, PHMBASE: 0, PHMLIMIT: 0}),
    case("commands without their capability", [Write(GCMD, 4, 1 << bit) for bit in (29, 28, 27, 25, 23)], {GSTS: 0}),
    case("commands in turn", [Write(GCMD, 4, SRTP), Write(GCMD, 4, TE), Write(GCMD, 4, TE | QIE)], {GSTS: TE | SRTP | QIE}),
    case("the root table in halves", [Write(RTADDR + 4, 4, 0x12), Write(RTADDR, 4, 0x3456_7000)], {RTADDR: 0x12_3456_7000}),
    case("bits of RTADDR", [Write(RTADDR, 8, ONES)], {RTADDR: ONES & ~0xFFF}, differ="root-pointer-bits"),
    case("bits of IRTA and SIRTP", [Write(IRTA, 8, ONES), Write(GCMD, 4, SIRTP)], {IRTA: 0, GSTS: 0},
         differ="interrupt-table-without-remapping"),
    case("bits of IVA and IOTLB", [Write(IVA, 8, ONES), Write(IOTLB, 8, ONES >> 1)], {IVA: 0, IOTLB: 0x3003_FFFF_0000_0000}),
    case("bits of event registers", [Write(at, 4, 0xFFFF_FFFF) for at in (FEDATA, FEADDR, FEUADDR, IEDATA, IEADDR, 0xAC)],
         {FEDATA: 0xFFFF_FFFF, FEADDR: 0xFFFF_FFFC, FEUADDR: 0xFFFF_FFFF, IEADDR: 0xFFFF_FFFC}, differ="event-registers-short"),
    case("FEADDR by 8 bytes", [Write(FEADDR, 8, APIC)], {FEADDR: APIC}),
    # Completion bits of invalidations by register.
    *[case(f"context invalidation {g}", [Write(CCMD, 8, context(g))], {CCMD: g << 61 | g << 59 | DID},
           differ="context-invalidation-wide" if g == DOMAIN else "") for g in (0, GLOBAL, DOMAIN, SOME)],
    *[case(f"IOTLB invalidation {g}", [Write(IVA, 8, MAPPED), Write(IOTLB, 8, iotlb(g))], {IOTLB: g << 60 | g << 57 | DID << 32})
      for g in (0, GLOBAL, DOMAIN, SOME)],
    *[case(f"IOTLB invalidation of 2**{am} pages", [Write(IVA, 8, am), Write(IOTLB, 8, iotlb(SOME))],
           {IOTLB: SOME << 60 | done << 57 | DID << 32}) for am, done in ((18, SOME), (19, 0), (63, 0))],
    case("a context command in halves", [Write(CCMD, 4, 0x18 << 16 | DID), Write(CCMD + 4, 4, 1 << 31 | SOME << 29)],
         {CCMD: SOME << 61 | SOME << 59 | DID}),
    case("an IOTLB command in halves", [Write(IOTLB, 4, 0), Write(IOTLB + 4, 4, 1 << 31 | GLOBAL << 28)],
         {IOTLB: GLOBAL << 60 | GLOBAL << 57}),
    case("commands while the queue is on", [*queue(), Write(CCMD, 8, context(GLOBAL)), Write(IOTLB, 8, iotlb(GLOBAL))],
         {CCMD: GLOBAL << 61 | DID, IOTLB: GLOBAL << 60 | DID << 32}, differ="command-stuck-under-queue"),
    # The queue.
    case("sound descriptors", queue((1 | 1 << 4, 0), (2 | 1 << 4, 0), SOUND), {IQH: 48, FSTS: 0}),
    case("a status write", [*queue(SOUND), Write(GCMD, 4, 0), Ask(0, READ_BACK)], {IQH: 0, GSTS: 0}, word=0xD000_0000 << 32 | 0xC0DE),
    *[case(f"{name}", queue(SOUND, bad, SOUND), {IQH: 16, IQT: 48, FSTS: IQE}) for name, bad in (
        ("type 0", (0, 0)), ("type 15", (15, 0)), ("context granularity 0", (1, 0)), ("IOTLB granularity 0", (2, 0)),
        ("reserved bits, context", (1 | 1 << 4 | 1 << 6, 0)), ("reserved high word, context", (1 | 1 << 4, 1)),
        ("reserved bits, IOTLB", (2 | 1 << 4 | 1 << 8, 0)), ("reserved high bits, IOTLB", (2 | 3 << 4, 1 << 7)),
        ("too large a mask", (2 | 3 << 4, 19)), ("reserved bits, wait", (WAIT | SW | 1 << 7, READ_BACK)),
        ("reserved high bits, wait", (WAIT | SW, READ_BACK | 1)))],
    *[case(f"type {low & 15} without its capability", queue((low, 0)), {IQH: 0, FSTS: IQE}, differ="descriptors-without-capability")
      for low in (3, 4, 6, 7)],
    case("a fence", queue((WAIT | FN, 0)), {IQH: 16, FSTS: 0}, differ="wait-without-effect"),
    case("a status write to nowhere", queue((WAIT | SW, ABSENT)), {IQH: 16, FSTS: 0}, differ="wait-status-lost"),
    case("tail beyond the queue", queue(SOUND, tail=PAGE), {IQH: 0, FSTS: IQE}),
    case("tail within a queue of two pages", queue((WAIT | FN | SW, READ_BACK), tail=PAGE, size=1), {IQH: 16, FSTS: IQE}),
    case("the queue where nothing answers", [Write(IQA, 8, ABSENT), Write(GCMD, 4, QIE), Write(IQT, 8, 16)], {IQH: 0, FSTS: IQE}),
    case("the queue beyond the width", [*queue(SOUND), Write(GCMD, 4, 0), Write(IQT, 8, 0), Write(IQA, 8, QUEUE | 1 << 50),
                                        Write(GCMD, 4, QIE), Write(IQT, 8, 16)], {IQH: 0, FSTS: IQE, IQA: QUEUE | 1 << 50},
         differ="queue-base-latched"),
    case("a mended descriptor", [*queue((0, 0), SOUND), Poke(QUEUE, WAIT | SW), Poke(QUEUE + 8, READ_BACK), Write(FSTS, 4, IQE)],
         {IQH: 32, FSTS: 0}, differ="queue-error-no-resume"),
    case("a mended descriptor and a new tail", [*queue((0, 0), SOUND), Poke(QUEUE, WAIT | SW), Poke(QUEUE + 8, READ_BACK),
                                                Write(FSTS, 4, IQE), Write(IQT, 8, 32)], {IQH: 32, FSTS: 0}),
    case("an error that is not mended", [*queue((0, 0)), Write(FSTS, 4, IQE), Write(IQT, 8, 16)], {IQH: 0, FSTS: IQE}),
    case("a new tail while IQE is set", [*queue((0, 0)), Poke(QUEUE, WAIT | SW), Poke(QUEUE + 8, READ_BACK), Write(IQT, 8, 16)],
         {IQH: 0, FSTS: IQE}),
    case("the queue off after a wait", [*queue(SOUND), Write(GCMD, 4, 0)], {IQH: 0, GSTS: 0}),
    case("the queue off after something else", [*queue((1 | 1 << 4, 0)), Write(GCMD, 4, 0)], {IQH: 0, GSTS: 0}, differ="queue-off-refused"),
    case("a tail before the queue is on", [Poke(QUEUE, SOUND[0]), Poke(QUEUE + 8, SOUND[1]), Write(IQA, 8, QUEUE), Write(IQT, 8, 16),
                                           Write(GCMD, 4, QIE)], {IQH: 16, FSTS: 0}),
    # Completion events.
    case("a completion that is masked", queue((WAIT | IF, 0)), {ICS: 1, IECTL: IM | IP}),
    case("a completion that is masked, then dealt with", [*queue((WAIT | IF, 0)), Write(ICS, 4, 1)], {ICS: 0, IECTL: IM}),
    case("a completion", [*QUEUE_EVENT, *queue((WAIT | IF, 0))], {ICS: 1, IECTL: 0}, (0x60,)),
    case("a completion that is unmasked later", [*queue((WAIT | IF, 0)), *QUEUE_EVENT], {ICS: 1, IECTL: 0}, (0x60,)),
    case("two completions", [*QUEUE_EVENT, *queue((WAIT | IF, 0)), Write(IEDATA, 4, 0x61), Poke(QUEUE + 16, WAIT | IF),
                             Write(IQT, 8, 32)], {ICS: 1, IQH: 32}, (0x60,)),
    case("two completions, each dealt with", [*QUEUE_EVENT, *queue((WAIT | IF, 0)), Write(ICS, 4, 1), Write(IEDATA, 4, 0x61),
                                              Poke(QUEUE + 16, WAIT | IF), Write(IQT, 8, 32)], {ICS: 1, IQH: 32}, (0x60, 0x61)),
    # Fault events.
    case("a fault that is masked", faults(MAPPED), {FSTS: PPF, FECTL: IM | IP, FRCD: MAPPED, FRCD + 8: F | 1 << 62 | 8 << 32 | 0x18}),
    case("a fault", [*FAULT_EVENT, *faults(MAPPED)], {FSTS: PPF, FECTL: 0}, (0x50,)),
    case("a fault that is unmasked later", [*faults(MAPPED), *FAULT_EVENT], {FSTS: PPF, FECTL: 0}, (0x50,)),
    case("a fault that is dealt with", [*faults(MAPPED), Write(FRCD + 8, 8, F)], {FSTS: 0, FECTL: IM},
         differ="pending-until-status-write"),
    case("a fault that is dealt with by 4 bytes", [*FAULT_EVENT, *faults(MAPPED), Write(FRCD + 12, 4, 1 << 31), Write(FSTS, 4, 0)],
         {FSTS: 0, FECTL: 0}, (0x50,)),
    case("two faults of two requesters", [*faults(MAPPED), Ask(1, MAPPED, sweep=False)], {FSTS: PPF | PFO}),
    case("two faults, the second with an event", [*FAULT_EVENT, *faults(MAPPED), Write(FRCD + 8, 8, F), Write(FEDATA, 4, 0x51),
                                                  Ask(1, 0x6000, sweep=False)], {FSTS: PPF, FRCD: 0x6000}, (0x50, 0x51)),
    case("a queue error's event", [*FAULT_EVENT, *queue((0, 0))], {FSTS: IQE, FECTL: 0}, (0x50,)),
    case("a queue error after a fault", [*FAULT_EVENT, *faults(MAPPED), Write(FEDATA, 4, 0x51), *queue((0, 0))[:-2],
                                         Write(GCMD, 4, TE | QIE), Write(IQT, 8, 16)], {FSTS: PPF | IQE}, (0x50,)),
    case("an event that is a write to memory", [*event(FECTL, FEDATA, FEADDR, 0x55, DATA + 0x40), *queue((0, 0)), Ask(0, DATA + 0x40)],
         {FSTS: IQE}, word=0xD000_0000 << 32 | 0x55, differ="event-address-ignored"),
]
