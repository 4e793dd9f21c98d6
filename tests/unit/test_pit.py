"""The 8254 on virtual time, and its neighbours on the clock: PM timer, CMOS clock, reset ports."""

import pytest
from pci_bench import Lines

from hvcore.machine.bus import Bus
from hvcore.machine.clock import Clock
from hvcore.machine.cmos import Cmos
from hvcore.machine.memory import Memory
from hvcore.machine.pit import FREQUENCY, Pit
from hvcore.machine.pmtimer import PmTimer
from hvcore.machine.reset import ResetPorts


class Bench:
    def __init__(self) -> None:
        self.bus, self.clock, self.lines = Bus(Memory([(0, 4096)])), Clock(), Lines()
        self.pit = Pit(self.bus, self.clock, self.lines)

    def program(self, channel: int, mode: int, count: int) -> None:
        self.bus.port_write(0x43, 1, channel << 6 | 0x30 | mode << 1)
        self.bus.port_write(0x40 + channel, 1, count & 0xFF)
        self.bus.port_write(0x40 + channel, 1, count >> 8 & 0xFF)

    def ticks(self, count: int) -> None:
        """Lets exactly so many ticks have passed since the last whole second of them."""
        target = -(-count * 1_000_000_000 // FREQUENCY)
        self.clock.advance(target - self.clock.now)

    def latched(self, channel: int) -> int:
        self.bus.port_write(0x43, 1, channel << 6)
        return self.bus.port_read(0x40 + channel, 1) | self.bus.port_read(0x40 + channel, 1) << 8


@pytest.fixture
def pc() -> Bench:
    return Bench()


def test_a_fresh_timer_never_fires(pc: Bench) -> None:
    assert pc.clock.next() is None


def test_mode_0_raises_the_line_once_at_its_count(pc: Bench) -> None:
    pc.program(0, 0, 1000)
    assert pc.lines.levels[0] is False
    pc.ticks(999)
    assert pc.lines.levels[0] is False and pc.latched(0) == 1
    pc.ticks(1000)
    assert pc.lines.levels[0] is True and pc.clock.next() is None
    pc.ticks(1002)
    assert pc.latched(0) == 0xFFFE, "it counts on"


def test_a_count_of_zero_is_65536(pc: Bench) -> None:
    pc.program(0, 0, 0)
    pc.ticks(65535)
    assert pc.lines.rises == [0]  # the idle output of mode 3 after reset
    pc.ticks(65536)
    assert pc.lines.rises == [0, 0]


@pytest.mark.parametrize("mode", [2, 3])
def test_periodic_modes_fire_every_period_without_drift(pc: Bench, mode: int) -> None:
    pc.program(0, mode, 1193)
    before = len(pc.lines.rises)
    pc.clock.advance(1_000_000_000)
    assert len(pc.lines.rises) - before == FREQUENCY // 1193


def test_mode_4_fires_once_after_its_count(pc: Bench) -> None:
    pc.program(0, 4, 500)
    before = len(pc.lines.rises)
    pc.ticks(500)
    assert len(pc.lines.rises) == before
    pc.ticks(100_000)
    assert len(pc.lines.rises) == before + 1 and pc.clock.next() is None


def test_square_wave_counts_by_two_and_shows_out(pc: Bench) -> None:
    pc.program(0, 3, 100)
    pc.ticks(10)
    assert pc.latched(0) == 80
    pc.ticks(60)
    assert pc.latched(0) == 80
    pc.bus.port_write(0x43, 1, 0xE2)
    assert pc.bus.port_read(0x40, 1) == 0x36, "status: OUT low, count loaded, both bytes, mode 3"


def test_latched_count_stays_until_read(pc: Bench) -> None:
    pc.program(2, 2, 50000)
    pc.bus.port_write(0x61, 1, 1)
    pc.ticks(300)
    pc.bus.port_write(0x43, 1, 0x80)
    pc.ticks(600)
    pc.bus.port_write(0x43, 1, 0x80)
    assert pc.bus.port_read(0x42, 1) | pc.bus.port_read(0x42, 1) << 8 == 50000 - 300
    assert pc.bus.port_read(0x42, 1) | pc.bus.port_read(0x42, 1) << 8 == 50000 - 600


def test_read_back_gives_status_before_count(pc: Bench) -> None:
    pc.bus.port_write(0x43, 1, 0x34)
    pc.bus.port_write(0x43, 1, 0xE2)
    assert pc.bus.port_read(0x40, 1) == 0xF4, "null count: none was loaded"
    pc.program(0, 2, 0x1234)
    pc.bus.port_write(0x43, 1, 0xC2)
    assert [pc.bus.port_read(0x40, 1) for _ in range(3)] == [0xB4, 0x34, 0x12]


def test_read_back_latches_the_named_channels_only(pc: Bench) -> None:
    pc.program(0, 2, 5000)
    pc.program(2, 6, 7000)
    pc.bus.port_write(0x61, 1, 1)
    pc.ticks(100)
    pc.bus.port_write(0x43, 1, 0xD8)
    pc.ticks(200)
    assert pc.bus.port_read(0x42, 1) | pc.bus.port_read(0x42, 1) << 8 == 7000 - 100
    assert pc.bus.port_read(0x40, 1) | pc.bus.port_read(0x40, 1) << 8 == 5000 - 200
    pc.bus.port_write(0x43, 1, 0xE8)
    assert pc.bus.port_read(0x42, 1) == 0xB4, "mode 6 is mode 2"


def test_one_byte_access(pc: Bench) -> None:
    pc.bus.port_write(0x43, 1, 0x10)
    pc.bus.port_write(0x40, 1, 200)
    pc.ticks(50)
    assert pc.bus.port_read(0x40, 1) == pc.bus.port_read(0x40, 1) == 150
    pc.bus.port_write(0x43, 1, 0x20)
    pc.bus.port_write(0x40, 1, 2)
    start = pc.clock.now
    pc.clock.skip()
    assert (pc.clock.now - start) * FREQUENCY // 1_000_000_000 == 512


def test_gate_of_channel_2_stops_and_resumes(pc: Bench) -> None:
    pc.bus.port_write(0x61, 1, 0)
    pc.program(2, 0, 1000)
    pc.ticks(5000)
    assert pc.latched(2) == 1000 and pc.bus.port_read(0x61, 1) & 0x21 == 0
    pc.bus.port_write(0x61, 1, 1)
    pc.ticks(5400)
    pc.bus.port_write(0x61, 1, 0)
    pc.ticks(9000)
    assert pc.latched(2) in (600, 601), "the gate opened between two ticks"
    pc.bus.port_write(0x61, 1, 3)
    pc.ticks(9598)
    assert pc.bus.port_read(0x61, 1) & 0x23 == 0x03
    pc.ticks(9602)
    assert pc.bus.port_read(0x61, 1) & 0x23 == 0x23


def test_refresh_bit_toggles(pc: Bench) -> None:
    seen = []
    for _ in range(6):
        seen.append(pc.bus.port_read(0x61, 1) & 0x10)
        pc.clock.advance(15_085)
    assert seen == [0, 0x10, 0, 0x10, 0, 0x10]


def test_reset_stops_the_counters(pc: Bench) -> None:
    pc.program(0, 2, 100)
    pc.pit.reset()
    assert pc.clock.next() is None


def test_pm_timer_counts_and_wraps_at_24_bits(pc: Bench) -> None:
    PmTimer(pc.bus, pc.clock)
    assert pc.bus.port_read(0x608, 4) == 0
    pc.clock.advance(1_000_000_000)
    assert pc.bus.port_read(0x608, 4) == 3_579_545
    assert pc.bus.port_read(0x609, 1) == 3_579_545 >> 8 & 0xFF
    pc.clock.advance(4_000_000_000)
    assert pc.bus.port_read(0x608, 4) == 5 * 3_579_545 - (1 << 24)
    pc.bus.port_write(0x608, 4, 0)
    assert pc.bus.port_read(0x608, 4) == 5 * 3_579_545 - (1 << 24)


def cmos(pc: Bench, register: int, value: int | None = None) -> int:
    pc.bus.port_write(0x70, 1, register)
    if value is not None:
        pc.bus.port_write(0x71, 1, value)
    return pc.bus.port_read(0x71, 1)


def test_cmos_clock_follows_virtual_time_in_bcd_and_binary(pc: Bench) -> None:
    Cmos(pc.bus, pc.clock, [(0, 2 << 30)])
    pc.clock.advance((((31 * 24 + 12) * 60 + 34) * 60 + 56) * 1_000_000_000)
    assert [cmos(pc, r) for r in (0x32, 9, 8, 7, 6, 4, 2, 0)] == [0x20, 0x26, 0x02, 0x01, 1, 0x12, 0x34, 0x56]
    cmos(pc, 0x0B, 0x06)
    assert [cmos(pc, r) for r in (0x32, 9, 4, 2, 0)] == [20, 26, 12, 34, 56]
    time = [cmos(pc, r) for r in (0, 2, 4, 6, 7, 8, 9, 0x32, 0x0C, 0x0D)]
    assert [cmos(pc, r, 0x55) for r in (0, 2, 4, 6, 7, 8, 9, 0x32, 0x0C, 0x0D)] == time
    cmos(pc, 0x0B, 0x02)
    assert cmos(pc, 0x00) == 0x56 and cmos(pc, 0x0D) == 0x80 and cmos(pc, 0x0A) & 0x80 == 0


def test_cmos_tells_the_memory_and_keeps_the_shutdown_byte(pc: Bench) -> None:
    device = Cmos(pc.bus, pc.clock, [(0, 3 << 30), (4 << 30, 7 << 30)])
    assert cmos(pc, 0x15) | cmos(pc, 0x16) << 8 == 640
    assert cmos(pc, 0x30) | cmos(pc, 0x31) << 8 == 0xFFFF
    assert cmos(pc, 0x34) | cmos(pc, 0x35) << 8 == (3 << 30) - (16 << 20) >> 16
    assert cmos(pc, 0x5B) | cmos(pc, 0x5C) << 8 | cmos(pc, 0x5D) << 16 == 3 << 14
    assert cmos(pc, 0x0F, 0x0A) == 0x0A
    device.reset()
    assert cmos(pc, 0x0F) == 0


def test_every_way_to_reset(pc: Bench) -> None:
    asked: list[str] = []
    ports = ResetPorts(pc.bus, lambda: asked.append("reset"))
    assert pc.bus.port_read(0x64, 1) == 0
    pc.bus.port_write(0x64, 1, 0xD1)
    pc.bus.port_write(0xCF9, 1, 2)
    assert not asked
    pc.bus.port_write(0xCF9, 1, 6)
    assert len(asked) == 1 and pc.bus.port_read(0xCF9, 1) == 6
    pc.bus.port_write(0xCF9, 1, 6)
    assert len(asked) == 1, "bit 2 did not rise"
    pc.bus.port_write(0x64, 1, 0xFE)
    assert len(asked) == 2
    pc.bus.port_write(0x80, 1, 0x5A)
    assert ports.post_code == 0x5A
    ports.reset()
    assert ports.post_code == 0 and pc.bus.port_read(0xCF9, 1) == 0
