"""Where QEMU's `intel-iommu` (7.2) departs from the specification: each departure by its name, what QEMU does and what is specified.

`LikeQemu` (vtd_like_qemu.py) is our unit with all of them.  A request or a look at the registers on which QEMU and our unit disagree is
explained when that model foretells exactly what QEMU did; its causes are the departures without which the model would not.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from vtd_like_qemu import LikeQemu
from vtd_ours import run_ours
from vtd_scene import Outcome, Registers, Result, Scene, Variant, register_name

from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import Memory
from hvcore.spec.vtd import FRCD_HIGH, frcd_offset

__all__ = ["DIFFERENCES", "Difference", "Unexplained", "Verdict", "judge"]


@dataclass(frozen=True)
class Difference:
    """One departure.  `allowed`: the specification leaves the choice to hardware, or software must not do what it takes to see it."""

    qemu: str
    specification: str
    allowed: bool = False


DIFFERENCES: dict[str, Difference] = {
    # What a request meets.
    "interrupt-range-input": Difference(
        "a read, or a write that is not of 4 aligned bytes, at 0xFEExxxxx is taken for interrupts and vanishes without a fault",
        "fault 0xE"),
    "pass-through-switch": Difference(
        "a pass-through device is led past the unit as a whole, by what the tables say when TE is set, when a context is invalidated or at "
        "its first request; until the next such moment no entry is read and no width is checked",
        "each request is looked up in the context cache or the tables; fault 4 beyond the width"),
    "permission-first": Difference("an entry's R or W bit is looked at before its reserved bits: fault 5 or 6", "reserved bits first: 0xC"),
    "all-ones": Difference("a paging entry of all ones counts as unreadable: fault 3 or 7", "its reserved bits are set: 0xC"),
    "superpage-interrupt": Difference(
        "every address of a superpage that holds 0xFEExxxxx faults 0xE", "only those addresses do"),
    # What is remembered.
    "iotlb-by-source": Difference(
        "IOTLB entries are tagged by requester and found before the context is looked at",
        "they are tagged by domain id and found after it"),
    "silent-block": Difference(
        "a request that meets an IOTLB entry without its permission is blocked without a fault", "fault 5 or 6"),
    "absent-never-cached": Difference(
        "caching mode is announced and what is not present is never cached", "it may be cached", allowed=True),
    "page-mask-8-bits": Difference(
        "a page invalidation compares the low 8 bits of page numbers only, so it drops more than it was asked",
        "more may be dropped than was asked", allowed=True),
    "context-invalidation-wide": Difference(
        "a domain invalidation of contexts does all (CAIG says so), a device invalidation does not look at the domain id",
        "more may be dropped than was asked", allowed=True),
    "root-pointer-flush": Difference(
        "setting the root-table pointer or changing TE empties all caches", "software invalidates; nothing forbids more", allowed=True),
    # What is recorded.
    "junk-pasid": Difference(
        "the record of a fault that is found after the context entry has 0xFFFF in bits 55:40 of its high word",
        "the PASID field is 0 where there is none"),
    "fpd-context-reserved": Difference("fault 0xB is recorded despite FPD", "FPD keeps it out of the records"),
    "collapse-by-source": Difference(
        "a fault is dropped while any record of the same requester is pending, whatever it says",
        "a repeated fault may be dropped, another one sets PFO"),
    # Events.
    "event-address-ignored": Difference(
        "the unit's own interrupts go to the local APIC whatever their address register says; bits 19:0 of it choose the destination",
        "an event is a 4-byte write to that address"),
    "event-registers-short": Difference(
        "FEUADDR and IEUADDR read 0 and take nothing, FEDATA keeps 16 bits", "so they may without EIM", allowed=True),
    "pending-until-status-write": Difference(
        "FECTL.IP stays set when the last pending fault record is cleared, until FSTS is written", "IP is cleared then"),
    # The queue.
    "queue-base-latched": Difference(
        "IQA is taken over when the queue is switched on, with addresses cut to the unit's width, and reads as taken over",
        "it reads as written; software sets it while the queue is off", allowed=True),
    "queue-off-refused": Difference(
        "clearing QIE is ignored unless the queue is empty and its last descriptor was a wait", "the queue is switched off"),
    "queue-error-no-resume": Difference(
        "after FSTS.IQE is cleared nothing is fetched until IQT is written", "fetching goes on at IQH"),
    "descriptors-without-capability": Difference(
        "descriptors of device-TLB, interrupt-entry, PASID-cache and PASID-IOTLB invalidation are accepted without DT, IR and PASID, the "
        "last three whatever their reserved bits say",
        "a descriptor that the unit does not support is an error (IQE)"),
    "wait-without-effect": Difference("a wait descriptor with neither SW nor IF is an error (IQE)", "it waits and does no more"),
    "wait-status-lost": Difference(
        "a status write to where nothing answers is an error (IQE)", "not said; our unit goes on", allowed=True),
    "command-stuck-under-queue": Difference(
        "a write to CCMD or IOTLB while the queue is on leaves ICC or IVT set for good",
        "software must not do this; our unit does nothing and clears the bit", allowed=True),
    # Other registers.
    "root-pointer-bits": Difference(
        "RTADDR keeps bits 11:10 and ignores them; when it is taken over, address bits beyond the unit's width are dropped",
        "bits 11:10 are reserved without scalable mode; a table beyond the width cannot be read: fault 8"),
    "interrupt-table-without-remapping": Difference(
        "IRTA can be written, and SIRTP sets IRTPS, without interrupt remapping (ECAP.IR)", "both are reserved then"),
}
_PV = FRCD_HIGH["PV"].mask
_JUNK = 0xFFFF << 40


@dataclass(frozen=True)
class Unexplained:
    """A request or look of a scene (its number) on which QEMU does not do what the model foretells, or our unit what the model says
    without any departure."""

    number: int
    ours: Result
    qemu: Result
    model: Result
    bare: Result

    def __str__(self) -> str:
        return "\n".join(f"    {name}: {text}" for name, text in zip(
            ("ours", "should be", "QEMU", "foretold"), _apart((self.ours, self.bare, self.qemu, self.model)), strict=True))


def _apart(results: Sequence[Result]) -> list[str]:
    """Texts that show where results differ: of registers those that do."""
    if not all(isinstance(r, Registers) for r in results):
        return [str(r) for r in results]
    pages = [r for r in results if isinstance(r, Registers)]
    odd = [i for i, words in enumerate(zip(*(p.words for p in pages), strict=True)) if len(set(words)) > 1]
    return [", ".join([*(f"{register_name(8 * i)} {p.words[i]:#x}" for i in odd), f"interrupts {sorted(p.vectors or ())}"]) for p in pages]


@dataclass
class Verdict:
    """Of one scene: how many requests and looks, what nothing explains, and in how many of them each difference shows."""

    requests: int
    unexplained: list[Unexplained] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def judge(scene: Scene, variant: Variant, cap: int, ecap: int, ours: Sequence[Result], theirs: Sequence[Result],
          causes: bool = True) -> Verdict:
    """Compares what a unit of ours and QEMU made of a scene; with `causes` says which departures each difference comes from."""
    verdict = Verdict(len(ours))
    theirs = [_without_junk(o, frcd_offset(cap) // 8 + 1, verdict.counts) for o in theirs]
    model, used = _model(scene, variant, cap, ecap, frozenset())
    differing = [i for i, (o, t) in enumerate(zip(ours, theirs, strict=True)) if o != t]
    bare = _model(scene, variant, cap, ecap, frozenset(DIFFERENCES))[0] if differing else ours
    verdict.unexplained = [Unexplained(i, *found) for i, found in enumerate(zip(ours, theirs, model, bare, strict=True))
                           if found[0] != found[3] or found[1] != found[2]]
    if differing and causes and not verdict.unexplained:
        verdict.counts += _causes(scene, variant, cap, ecap, model, used, differing)
    return verdict


def _model(scene: Scene, variant: Variant, cap: int, ecap: int, without: frozenset[str]) -> tuple[list[Result], set[str]]:
    units: list[LikeQemu] = []

    def make(description: UnitDescription, memory: Memory, haw: int, message: Callable[[int, int], None]) -> LikeQemu:
        units.append(LikeQemu(description, memory, haw, message, without))
        return units[0]
    outcomes = run_ours(scene, variant, cap, ecap, make)
    return outcomes, units[0].on.used


def _causes(scene: Scene, variant: Variant, cap: int, ecap: int, model: list[Result], used: set[str],
            differing: list[int]) -> Counter[str]:
    """For each difference (`differing`) the departures without any of which the model would say something else.

    Where there is none, because several would do: those each of which alone makes the model say it; where none does, "together".
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


def _without_junk(result: Result, record: int, counts: Counter[str]) -> Result:
    """A result without the PASID that nobody sent; `record` is the number of the record's high word in the page."""
    high = result.words[record] if isinstance(result, Registers) else result.high
    if high is None or high & _PV != _JUNK:
        return result
    counts["junk-pasid"] += 1
    if isinstance(result, Outcome):
        return replace(result, high=high & ~_JUNK)
    words = list(result.words)
    words[record] &= ~_JUNK
    return replace(result, words=tuple(words))
