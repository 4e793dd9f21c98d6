"""ACPI's fixed registers as software uses them: the timer's event and its interrupt, and switching off."""

from hypothesis import given
from hypothesis import strategies as st

from hvcore.machine.bus import Bus
from hvcore.machine.clock import Clock
from hvcore.machine.memory import Memory
from hvcore.machine.pc import Pc
from hvcore.machine.pm1 import CONTROL, EVENT, SCI, Pm1
from hvcore.machine.pmtimer import PmTimer
from hvcore.sources import load

STATUS, ENABLE = EVENT, EVENT + 2
HALF = -(-(1 << 23) * 1_000_000_000 // 3_579_545)
"""Nanoseconds after which the timer's highest bit has changed."""


class Bench:
    def __init__(self) -> None:
        self.bus, self.clock = Bus(Memory(((0, 4096),))), Clock()
        self.sci, self.off = [False], 0
        self.timer = PmTimer(self.bus, self.clock)
        self.pm1 = Pm1(self.bus, self.clock, self, self._off)

    def _off(self) -> None:
        self.off += 1

    def set_line(self, irq: int, level: bool) -> None:
        assert irq == SCI
        if self.sci[-1] != level:
            self.sci.append(level)

    def read(self, port: int, width: int = 2) -> int:
        return self.bus.port_read(port, width)

    def write(self, port: int, value: int, width: int = 2) -> None:
        self.bus.port_write(port, width, value)


def test_at_power_on_nothing_is_pending_and_acpi_is_on() -> None:
    pc = Bench()
    assert (pc.read(STATUS), pc.read(ENABLE), pc.read(CONTROL), pc.read(EVENT, 4)) == (0, 0, 1, 0)
    assert pc.clock.next() is None and pc.sci == [False]


def test_the_timers_status_is_set_when_its_highest_bit_changes_and_cleared_by_a_one() -> None:
    pc = Bench()
    pc.clock.advance(HALF - 1)
    assert pc.read(STATUS) == 0 and not pc.read(0x608, 4) >> 23
    pc.clock.advance(1)
    assert pc.read(STATUS) == 1 and pc.read(0x608, 4) >> 23
    pc.write(STATUS, 0xFFFE)
    assert pc.read(STATUS) == 1
    pc.write(STATUS, 1)
    assert pc.read(STATUS) == 0
    pc.clock.advance(HALF)
    assert pc.read(STATUS) == 1 and not pc.read(0x608, 4) >> 23, "a change to 0 counts, too"
    assert pc.sci == [False] and pc.clock.next() is None, "nobody asked for the interrupt"


def test_the_timers_event_interrupts_until_it_is_cleared() -> None:
    pc = Bench()
    pc.write(ENABLE, 1)
    assert pc.clock.skip() and pc.clock.now == HALF and pc.sci == [False, True]
    assert pc.clock.next() is None, "it stays pending"
    pc.write(STATUS, 1)
    assert pc.sci == [False, True, False] and pc.clock.next() == -(-(2 << 23) * 1_000_000_000 // 3_579_545)
    pc.write(ENABLE, 0)
    assert pc.clock.next() is None
    pc.clock.advance(2 * HALF)
    assert pc.read(STATUS) == 1 and pc.sci[-1] is False
    pc.write(ENABLE, 1)
    assert pc.sci[-1] is True, "an event that is pending already"
    pc.pm1.reset()
    assert pc.sci[-1] is False and pc.read(EVENT, 4) == 0 and pc.clock.next() is None


def test_the_enable_bits_of_acpis_events_can_be_set() -> None:
    pc = Bench()
    pc.write(ENABLE, 0xFFFF)
    assert pc.read(ENABLE) == 0x721
    pc.write(ENABLE + 1, 0x04, 1)
    assert pc.read(ENABLE) == 0x421 and pc.read(ENABLE + 1, 1) == 4


def test_s5_switches_off() -> None:
    pc = Bench()
    for value in (7 << 10, 1 << 13, 5 << 10 | 1 << 13):
        pc.write(CONTROL, value)
        assert not pc.off and pc.read(CONTROL) == value & 7 << 10 | 1, "SLP_EN reads 0"
    pc.write(CONTROL, 0x0002)
    assert pc.read(CONTROL) == 3
    pc.write(CONTROL, 7 << 10 | 1 << 13)
    assert pc.off == 1 and pc.read(CONTROL) == 7 << 10 | 1


@given(st.lists(st.tuples(st.integers(EVENT, CONTROL + 1), st.sampled_from((1, 2, 4)), st.integers(0, (1 << 32) - 1),
                          st.integers(0, 3 * HALF)), max_size=30))
def test_the_interrupt_is_pending_and_enabled(steps: list[tuple[int, int, int, int]]) -> None:
    """Whatever software does; where the event is awaited a timer stands for it."""
    pc = Bench()
    for port, width, value, wait in steps:
        pc.write(port, value, width)
        pc.clock.advance(wait)
        pending = bool(pc.read(STATUS) & pc.read(ENABLE))
        assert pc.sci[-1] is pending
        assert (pc.clock.next() is not None) is (bool(pc.read(ENABLE) & 1) and not pending)
        assert pc.read(CONTROL) & 1


def test_a_machine_stops_when_it_is_switched_off() -> None:
    pc = Pc(load("q35-2g"))
    try:
        pc.bus.port_write(CONTROL, 2, 7 << 10 | 1 << 13)
        assert pc.cpu.stopping and not pc.reset_requested
    finally:
        pc.close()
