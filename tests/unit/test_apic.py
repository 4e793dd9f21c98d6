"""The local APIC: registers, priorities against a plain second implementation, its timer against one that counts tick by tick."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.machine.apic import LocalApic
from hvcore.machine.apictimer import DENSEST_NS, ApicTimer
from hvcore.machine.clock import Clock
from hvcore.spec.apic import DFR, ICR, LOCAL, LVT, SVR, divisor
from hvcore.spec.interrupts import DeliveryMode

OFFSET = {r.name: r.offset for r in LOCAL}
ON = SVR.make(EN=1, V=0xFF)
RESET = {"VERSION": 0x50014, "DFR": 0xFFFFFFFF, "SVR": 0xFF, "LVT_TIMER": 0x10000, "LVT_THERMAL": 0x10000, "LVT_PERFORMANCE": 0x10000,
         "LVT_LINT0": 0x700, "LVT_LINT1": 0x10000, "LVT_ERROR": 0x10000}
ALL_ONES = {"ID": 0xFF000000, "TPR": 0xFF, "LDR": 0xFF000000, "DFR": 0xFFFFFFFF, "SVR": 0x1FF, "ICR_HIGH": 0xFF000000,
            "LVT_TIMER": 0x300FF, "LVT_THERMAL": 0x107FF, "LVT_PERFORMANCE": 0x107FF, "LVT_LINT0": 0x1A7FF, "LVT_LINT1": 0x1A7FF,
            "LVT_ERROR": 0x100FF, "INITIAL_COUNT": 0xFFFFFFFF, "DIVIDE": 0xB}


class Bench:
    """A local APIC and the processor's accesses to it."""

    def __init__(self, on: bool = True, number: int = 0):
        self.clock = Clock()
        self.apic = LocalApic(self.clock, number)
        self.told, self.ended = 0, list[int]()
        self.apic.changed, self.apic.ended = self._changed, self.ended.append
        if on:
            self.write("SVR", ON)

    def _changed(self) -> None:
        self.told += 1

    def write(self, name: str, value: int) -> None:
        self.apic.mmio_write(OFFSET[name], 4, value)

    def read(self, name: str) -> int:
        return self.apic.mmio_read(OFFSET[name], 4)

    def bits(self, name: str) -> set[int]:
        """The vectors in ISR, TMR or IRR."""
        words = sum(self.read(f"{name}{i}") << 32 * i for i in range(8))
        return {v for v in range(256) if words >> v & 1}

    def take(self) -> int | None:
        """The processor takes what is deliverable."""
        return None if self.apic.deliverable is None else self.apic.acknowledge()


@pytest.fixture
def bench() -> Bench:
    return Bench()


# Registers

def test_after_reset() -> None:
    bench = Bench(on=False)
    assert {name: value for name in OFFSET if (value := bench.read(name))} == RESET
    assert not bench.apic.enabled and bench.apic.passes_pic and bench.apic.deliverable is None
    assert Bench(on=False, number=3).read("ID") == 3 << 24


def test_what_takes_ones(bench: Bench) -> None:
    for name in OFFSET:
        bench.write(name, 0xFFFFFFFF)
    held = {name: value for name in OFFSET if name not in ("CURRENT_COUNT", "ICR_LOW", "ESR") and (value := bench.read(name))}
    assert held == ALL_ONES | {"VERSION": 0x50014, "PPR": 0xFF}
    assert bench.read("ICR_LOW") == 0xCCFFF & ~0x1000, "delivery status is never seen set"


def test_accesses_that_are_no_register(bench: Bench) -> None:
    for offset, width in ((OFFSET["TPR"], 1), (OFFSET["TPR"], 8), (OFFSET["TPR"] + 4, 4), (OFFSET["TPR"] + 1, 2)):
        bench.apic.mmio_write(offset, width, 0x55)
    assert bench.read("TPR") == 0 and bench.read("ESR") == 0
    assert bench.apic.mmio_read(OFFSET["VERSION"] + 2, 1) == 5 and bench.apic.mmio_read(OFFSET["VERSION"] + 4, 4) == 0


def test_errors_are_shown_by_a_write_and_interrupt_once(bench: Bench) -> None:
    bench.write("LVT_ERROR", 0xFE)
    bench.apic.mmio_write(0x40, 4, 1)
    assert bench.read("ESR") == 0 and bench.take() == 0xFE
    bench.apic.mmio_read(0x3F0, 4)
    bench.write("EOI", 0)
    assert bench.take() is None, "the same error was told already"
    bench.write("ICR_LOW", 0x4000F)
    assert bench.take() == 0xFE
    bench.write("EOI", 0)
    bench.apic.accept(15)
    bench.write("ESR", 0)
    assert bench.read("ESR") == 0b1110_0000
    bench.write("ESR", 0)
    assert bench.read("ESR") == 0


def test_off_by_software_everything_local_is_masked_and_nothing_is_taken(bench: Bench) -> None:
    bench.write("LVT_LINT0", 0x700)
    bench.write("LVT_LINT1", 0x400)
    assert bench.apic.passes_pic
    bench.apic.accept(0x40)
    bench.write("SVR", 0xFF)
    assert bench.apic.deliverable is None and not bench.apic.passes_pic and bench.read("LVT_LINT1") == 0x10400
    bench.write("LVT_LINT0", 0x700)
    assert bench.read("LVT_LINT0") == 0x10700, "the mask stays while it is off"
    bench.apic.accept(0x50)
    assert bench.bits("IRR") == {0x40}
    bench.write("SVR", ON)
    assert bench.take() == 0x40 and bench.read("LVT_LINT0") == 0x10700


# Priorities

def test_a_higher_class_interrupts_and_the_same_class_waits(bench: Bench) -> None:
    for vector in (0x31, 0x3F, 0x41):
        bench.apic.accept(vector)
    assert bench.take() == 0x41 and bench.read("PPR") == 0x40 and bench.take() is None
    bench.apic.accept(0x4F)
    assert bench.take() is None, "of the class that is in service"
    bench.apic.accept(0x50)
    assert bench.take() == 0x50 and bench.bits("ISR") == {0x41, 0x50}
    bench.write("EOI", 0)
    assert bench.take() is None
    bench.write("EOI", 0)
    assert [bench.take(), bench.bits("IRR")] == [0x4F, {0x31, 0x3F}]


def test_the_task_priority_holds_back_its_own_class(bench: Bench) -> None:
    bench.write("TPR", 0x5F)
    bench.apic.accept(0x5F)
    assert bench.apic.deliverable is None and bench.read("PPR") == 0x5F
    bench.apic.accept(0x60)
    assert bench.take() == 0x60 and bench.read("PPR") == 0x60
    bench.write("EOI", 0)
    bench.write("TPR", 0x4F)
    assert bench.take() == 0x5F and bench.read("PPR") == 0x50


def test_without_an_interrupt_the_spurious_vector_comes(bench: Bench) -> None:
    assert bench.apic.acknowledge() == 0xFF and bench.bits("ISR") == set()


def test_the_end_of_a_level_triggered_interrupt_is_told(bench: Bench) -> None:
    bench.apic.accept(0x60, level=True)
    bench.apic.accept(0x70)
    assert bench.bits("TMR") == {0x60}
    assert [bench.take(), bench.ended] == [0x70, []]
    bench.write("EOI", 0)
    assert [bench.ended, bench.take()] == [[], 0x60]
    bench.write("EOI", 0)
    assert bench.ended == [0x60]
    bench.write("EOI", 0)
    assert bench.ended == [0x60], "nothing was in service"
    bench.apic.accept(0x60)
    assert bench.bits("TMR") == set(), "the newest one was an edge"


class Plain:
    """The same by sets of vectors, straight from the manual's words."""

    def __init__(self) -> None:
        self.requests, self.serving, self.levels = set[int](), set[int](), set[int]()
        self.task, self.on = 0, True
        self.ended: list[int] = []

    def priority(self) -> int:
        highest = max((v // 16 for v in self.serving), default=0)
        return self.task if self.task // 16 >= highest else highest * 16

    def deliverable(self) -> int | None:
        able = [v for v in self.requests if v // 16 > self.priority() // 16]
        return max(able) if able and self.on else None

    def accept(self, vector: int, level: bool) -> None:
        if self.on and vector >= 16:
            self.requests.add(vector)
            (self.levels.add if level else self.levels.discard)(vector)

    def take(self) -> int | None:
        vector = self.deliverable()
        if vector is not None:
            self.requests.remove(vector)
            self.serving.add(vector)
        return vector

    def end(self) -> None:
        if self.serving:
            vector = max(self.serving)
            self.serving.remove(vector)
            if vector in self.levels:
                self.ended.append(vector)


_VECTORS = st.integers(0, 255) | st.integers(0x30, 0x42)
_ACTS = st.one_of(st.tuples(st.just("accept"), _VECTORS, st.booleans()), st.tuples(st.just("take")), st.tuples(st.just("end")),
                  st.tuples(st.just("task"), st.integers(0, 255)), st.tuples(st.just("on"), st.booleans()))


@given(st.lists(_ACTS, max_size=60))
def test_priorities_are_those_of_a_plain_implementation(acts: list[tuple[object, ...]]) -> None:
    bench, plain = Bench(), Plain()
    actions: dict[str, Callable[..., None]] = {
        "accept": lambda v, level: (bench.apic.accept(v, level), plain.accept(v, level)),
        "take": lambda: _same(bench.take(), plain.take()), "end": lambda: (bench.write("EOI", 0), plain.end()),
        "task": lambda v: (bench.write("TPR", v), setattr(plain, "task", v)),
        "on": lambda on: (bench.write("SVR", ON if on else 0xFF), setattr(plain, "on", on))}
    for name, *arguments in acts:
        actions[str(name)](*arguments)
        assert (bench.apic.deliverable, bench.read("PPR")) == (plain.deliverable(), plain.priority())
        assert [bench.bits("IRR"), bench.bits("ISR"), bench.bits("TMR")] == [plain.requests, plain.serving, plain.levels]
    assert bench.ended == plain.ended


def _same(one: object, other: object) -> None:
    assert one == other


# Messages and commands

def message(destination: int, data: int, logical: bool = False) -> tuple[int, int]:
    return 0xFEE00000 | destination << 12 | logical << 2, data


@pytest.mark.parametrize(("destination", "logical", "here"), [
    (3, False, True), (2, False, False), (0xFF, False, True), (0x04, True, True), (0x0C, True, True), (0x03, True, False),
    (0xFF, True, True), (0, True, False)])
def test_a_flat_destination(destination: int, logical: bool, here: bool) -> None:
    bench = Bench(number=3)
    bench.write("LDR", 0x04000000)
    assert bench.apic.message(*message(destination, 0x41, logical)) == here
    assert bench.take() == (0x41 if here else None)


@pytest.mark.parametrize(("destination", "here"), [(0x24, True), (0x2C, True), (0x22, False), (0x34, False), (0xFF, True), (0x20, False)])
def test_a_cluster_destination(destination: int, here: bool) -> None:
    bench = Bench()
    bench.write("DFR", DFR.make(MODEL=0))
    bench.write("LDR", 0x24000000)
    assert bench.apic.message(*message(destination, 0x41, logical=True)) == here


def test_an_x2apic_destination_means_nobody(bench: Bench) -> None:
    assert not bench.apic.message(0x1_0000_0000_00 | 0xFEE00000, 0x41) and bench.take() is None


def test_messages_of_all_modes(bench: Bench) -> None:
    before = bench.told
    assert bench.apic.message(*message(0, 0xC041)) and bench.apic.message(*message(0, 0x4142))
    assert (bench.take(), bench.take(), bench.bits("TMR")) == (0x42, None, {0x41})
    for mode in (DeliveryMode.SMI, DeliveryMode.NMI, DeliveryMode.INIT, 3):
        bench.apic.message(*message(0, mode << 8 | 0x43))
    assert bench.apic.lost == {2: 1, 4: 1, 5: 1, 3: 1} and bench.bits("IRR") == {0x41} and bench.told == before + 6


@pytest.mark.parametrize(("command", "taken", "lost"), [
    ({"DSH": 1, "V": 0x77}, 0x77, {}), ({"DSH": 2, "V": 0x77}, 0x77, {}), ({"DSH": 3, "V": 0x77}, None, {0: 1}),
    ({"DST": 0, "V": 0x77}, 0x77, {}), ({"DST": 1, "V": 0x77}, None, {0: 1}), ({"DST": 0xFF, "V": 0x77}, 0x77, {}),
    ({"DST": 2, "DM": 1, "V": 0x77}, 0x77, {}), ({"DST": 1, "DM": 1, "V": 0x77}, None, {0: 1}), ({"DST": 0, "DLM": 1, "V": 0x77}, 0x77, {}),
    ({"DSH": 3, "DLM": 5, "LEVEL": 1}, None, {5: 1}), ({"DSH": 3, "DLM": 6, "V": 0x9A}, None, {6: 1}),
    ({"DSH": 1, "DLM": 4}, None, {4: 1})])
def test_interprocessor_interrupts_reach_the_one_processor_or_nobody(command: dict[str, int], taken: int | None,
                                                                      lost: dict[int, int]) -> None:
    bench = Bench()
    bench.write("LDR", 0x02000000)
    word = ICR.make(**command)
    bench.write("ICR_HIGH", word >> 32)
    bench.write("ICR_LOW", word & 0xFFFFFFFF)
    assert (bench.take(), bench.apic.lost) == (taken, lost) and not bench.read("ICR_LOW") & ICR["DS"].mask


# Timer

@pytest.mark.parametrize(("dcr", "by"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)])
def test_the_divider(dcr: int, by: int, bench: Bench) -> None:
    assert divisor(dcr) == by
    bench.write("DIVIDE", dcr)
    bench.write("INITIAL_COUNT", 1000)
    bench.clock.advance(10 * by + by - 1)
    assert bench.read("CURRENT_COUNT") == 990
    bench.clock.advance(1)
    assert bench.read("CURRENT_COUNT") == 989


def test_one_shot(bench: Bench) -> None:
    bench.write("DIVIDE", 11)
    bench.write("LVT_TIMER", 0x61)
    bench.write("INITIAL_COUNT", 5000)
    assert bench.clock.next() == 5000
    bench.clock.advance(4999)
    assert (bench.read("CURRENT_COUNT"), bench.take()) == (1, None)
    told = bench.told
    bench.clock.advance(1)
    assert (bench.read("CURRENT_COUNT"), bench.take(), bench.told, bench.clock.next()) == (0, 0x61, told + 1, None)


def test_periodic_until_stopped(bench: Bench) -> None:
    bench.write("DIVIDE", 11)
    bench.write("LVT_TIMER", LVT.make(MODE=1, V=0x61))
    bench.write("INITIAL_COUNT", 5000)
    for _ in range(3):
        bench.clock.advance(5000)
        assert (bench.read("CURRENT_COUNT"), bench.take()) == (5000, 0x61)
        bench.write("EOI", 0)
    bench.write("INITIAL_COUNT", 0)
    assert bench.clock.next() is None and bench.read("CURRENT_COUNT") == 0


def test_masked_it_counts_but_nobody_waits_for_it(bench: Bench) -> None:
    bench.write("DIVIDE", 11)
    bench.write("INITIAL_COUNT", 5000)
    assert bench.clock.next() is None
    bench.clock.advance(1000)
    assert bench.read("CURRENT_COUNT") == 4000
    bench.write("LVT_TIMER", 0x61)
    assert bench.clock.next() == 5000
    bench.write("SVR", 0xFF)
    assert bench.clock.next() is None, "off by software"
    bench.clock.advance(9000)
    bench.write("SVR", ON)
    bench.write("LVT_TIMER", 0x61)
    assert bench.clock.next() is None and bench.take() is None, "it was over meanwhile"


def test_starting_it_again_and_again_leaves_nothing_on_the_clock(bench: Bench) -> None:
    bench.write("LVT_TIMER", 0x61)
    for count in range(10_000):
        bench.write("INITIAL_COUNT", 1_000_000 + count)
    assert len(bench.clock._queue) < 200 and bench.clock.next() == 2 * 1_009_999
    bench.clock.advance(2 * 1_009_999)
    assert bench.take() == 0x61 and bench.clock.next() is None


class Counter:
    """A timer that counts tick by tick."""

    def __init__(self) -> None:
        self.initial, self.count, self.divisor, self.prescaled = 0, 0, 2, 0
        self.periodic = self.armed = False
        self.now, self.expired = 0, list[int]()
        self.dense = set[int]()

    def start(self, count: int) -> None:
        self.initial = self.count = count
        self.prescaled = 0

    def set_divisor(self, value: int) -> None:
        self.prescaled = 0 if value != self.divisor else self.prescaled
        self.divisor = value

    def set_mode(self, periodic: bool, armed: bool) -> None:
        self.prescaled = 0 if periodic != self.periodic else self.prescaled
        self.periodic, self.armed = periodic, armed

    def advance(self, duration: int) -> None:
        for _ in range(duration):
            self.now += 1
            if not self.count:
                continue
            self.prescaled += 1
            if self.prescaled == self.divisor:
                self.prescaled = 0
                self._tick()

    def _tick(self) -> None:
        self.count -= 1
        if self.count:
            return
        if self.armed:
            self.expired.append(self.now)
            self.dense |= {self.now} if self.periodic and self.initial * self.divisor < DENSEST_NS else set()
        self.count = self.initial if self.periodic else 0


_TIMER_ACTS = st.one_of(st.tuples(st.just("start"), st.integers(0, 4) | st.integers(0, 3000)),
                        st.tuples(st.just("set_divisor"), st.sampled_from([1, 2, 4, 16, 128])),
                        st.tuples(st.just("set_mode"), st.booleans(), st.booleans()), st.tuples(st.just("advance"), st.integers(0, 4000)))


@settings(max_examples=60, deadline=None)
@given(st.lists(_TIMER_ACTS, max_size=12))
def test_the_timer_is_one_that_counts_tick_by_tick(acts: list[tuple[object, ...]]) -> None:
    clock, plain, expired = Clock(), Counter(), list[int]()
    timer = ApicTimer(clock, lambda: expired.append(clock.now))
    for name, *arguments in acts:
        getattr(plain, str(name))(*arguments)
        getattr(clock if name == "advance" else timer, str(name))(*arguments)
        assert timer.current() == plain.count
    assert set(expired) <= set(plain.expired)
    missed = set(plain.expired) - set(expired)
    assert missed <= plain.dense, "told unless the period is too short"


def test_a_period_that_is_too_short_is_told_now_and_then(bench: Bench) -> None:
    bench.write("DIVIDE", 11)
    bench.write("LVT_TIMER", LVT.make(MODE=1, V=0x61))
    before = bench.told
    bench.write("INITIAL_COUNT", 1)
    bench.clock.advance(100 * DENSEST_NS)
    assert bench.told == before + 101 and bench.take() == 0x61
