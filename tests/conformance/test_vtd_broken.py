"""Units with one bug each, planted here, against what QEMU did: every one is noticed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
import vtd_ours
from vtd_differences import judge
from vtd_ours import run_ours
from vtd_play import VARIANTS, Pair
from vtd_register_scenes import random_register_scene
from vtd_scene import Result, Scene, Variant
from vtd_scenes import random_scene

from hvcore.machine.vtd import faults, invalidation, unit, walk
from hvcore.machine.vtd.caches import ContextCache, Iotlb
from hvcore.machine.vtd.commands import Command
from hvcore.machine.vtd.faults import FaultLog
from hvcore.machine.vtd.invalidation import InvalidationQueue
from hvcore.machine.vtd.registers import EventRegisters, RegisterFile
from hvcore.machine.vtd.walk import Found, Step, Walker
from hvcore.spec import vtd as spec
from hvcore.spec.bits import Access, Register
from hvcore.spec.dma import Direction
from hvcore.spec.vtd import FaultReason

pytestmark = pytest.mark.needs("qemu-system-x86_64")

Recorded = list[tuple[Scene, Variant, list[Result]]]


# Walks and caches.

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


def _interrupts_are_translated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(unit, "_is_interrupt", lambda request: False)


def _the_interrupt_range_is_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(walk, "in_interrupt_range", lambda address: False)
    patch.setattr(unit, "in_interrupt_range", lambda address: False)


def _a_request_is_judged_by_its_first_page(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(vtd_ours, "pages", lambda request: [(request, 0)])


# Registers, records and events.

def _overflow_is_not_noticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(faults, "_PFO", 0)


def _a_record_is_cleared_but_not_its_summary(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FaultLog, "status_written", lambda self: None)


def _events_ignore_their_mask(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EventRegisters, "raise_event", lambda self: self.send(self._get("UADDR") << 32 | self._get("ADDR"), self._get("DATA")))


def _unmasking_sends_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EventRegisters, "control_written", lambda self: None)


def _events_have_no_data(patch: pytest.MonkeyPatch) -> None:
    right = EventRegisters._get
    patch.setattr(EventRegisters, "_get", lambda self, name: 0 if name == "DATA" else right(self, name))


def _write_only_fields_can_be_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RegisterFile, "peek", lambda self, at, width: int.from_bytes(self.bytes[at:at + width], "little"))


def _protected_memory_without_the_capability(patch: pytest.MonkeyPatch) -> None:
    def registers(*a: int) -> tuple[Register, ...]:
        return tuple(replace(r, access=Access.RW, write_mask=1 << 31) if r.name == "PMEN" else r for r in spec.registers(*a))
    patch.setattr(unit, "registers", registers)


def _commands_need_no_capability(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Command, "supported", lambda self, cap, ecap: True)


def _completion_bits_stay_0(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(invalidation, "_completed", lambda layout, word, busy, actual, done: word & ~layout[busy].mask)


# The queue.

def _queue_errors_are_skipped(patch: pytest.MonkeyPatch) -> None:
    right = InvalidationQueue._carry_out
    patch.setattr(InvalidationQueue, "_carry_out", lambda self, address: right(self, address) or True)


def _reserved_bits_of_descriptors_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(invalidation, "QUEUE_RESERVED", {})


def _a_wrong_descriptor_is_passed(patch: pytest.MonkeyPatch) -> None:
    """IQE is set and the head goes on."""
    right = InvalidationQueue._carry_out

    def carry_out(self: InvalidationQueue, address: int) -> bool:
        done = right(self, address)
        if not done:
            self.file["IQH"] += 16
        return done
    patch.setattr(InvalidationQueue, "_carry_out", carry_out)


def _the_size_of_the_queue_is_ignored(patch: pytest.MonkeyPatch) -> None:
    right = spec.IQA
    patch.setattr(invalidation, "IQA", replace(right, fields=tuple(replace(f, high=-1, low=0) if f.name == "QS" else f for f in right)))


def _waiting_writes_no_status(patch: pytest.MonkeyPatch) -> None:
    right = InvalidationQueue._wait
    patch.setattr(InvalidationQueue, "_wait", lambda self, low, high: right(self, low & ~(1 << 5), high))


def _a_completion_is_not_kept(patch: pytest.MonkeyPatch) -> None:
    right = InvalidationQueue._wait

    def wait(self: InvalidationQueue, low: int, high: int) -> bool:
        done = right(self, low, high)
        self.file["ICS"] = 0
        return done
    patch.setattr(InvalidationQueue, "_wait", wait)


BROKEN = [planted for name, planted in globals().copy().items() if name.startswith("_") and getattr(planted, "__module__", "") == __name__]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(stack)


@pytest.fixture(scope="module")
def recorded(pair: Pair) -> Recorded:
    """What QEMU makes of some random scenes."""
    scenes = [(make(seed, variant), variant) for seed in range(5000, 5025)
              for make, variant in ((random_register_scene, VARIANTS[0]), (random_scene, VARIANTS[0]), (random_scene, VARIANTS[2]))]
    return [(scene, variant, pair.qemu(variant).run(scene)) for scene, variant in scenes]


def test_nothing_is_noticed_in_a_sound_unit(pair: Pair, recorded: Recorded) -> None:
    for scene, variant, theirs in recorded:
        qemu = pair.qemu(variant)
        ours = run_ours(scene, variant, qemu.cap, qemu.ecap)
        assert not judge(scene, variant, qemu.cap, qemu.ecap, ours, theirs, causes=False).unexplained


@pytest.mark.parametrize("break_unit", BROKEN, ids=lambda f: f.__name__.strip("_"))
def test_a_broken_unit_is_caught(pair: Pair, recorded: Recorded, monkeypatch: pytest.MonkeyPatch,
                                 break_unit: Callable[[pytest.MonkeyPatch], None]) -> None:
    break_unit(monkeypatch)
    for scene, variant, theirs in recorded:
        qemu = pair.qemu(variant)
        ours = run_ours(scene, variant, qemu.cap, qemu.ecap)
        if judge(scene, variant, qemu.cap, qemu.ecap, ours, theirs, causes=False).unexplained:
            return
    pytest.fail("nothing was noticed")
