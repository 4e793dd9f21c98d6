"""The edu device, driven as QEMU's documentation tells."""

from math import factorial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pci_bench import EDU, Bench

from hvcore.spec.dma import Direction

BUFFER = 0x40000


class Driver:
    def __init__(self) -> None:
        self.pc = Bench()
        self.base = self.pc.bar0(EDU.source)

    def read(self, offset: int, width: int = 4) -> int:
        return self.pc.bus.read(self.base + offset, width)

    def write(self, offset: int, value: int, width: int = 4) -> None:
        self.pc.bus.write(self.base + offset, width, value)

    def transfer(self, source: int, destination: int, count: int, command: int) -> None:
        for offset, value in ((0x80, source), (0x88, destination), (0x90, count), (0x98, command)):
            self.write(offset, value, 8)

    def finish(self) -> None:
        while self.read(0x98) & 1:
            assert self.pc.clock.skip()


@pytest.fixture
def edu() -> Driver:
    return Driver()


def test_identification_and_liveness(edu: Driver) -> None:
    assert edu.read(0) == 0x010000ED
    edu.write(4, 0x12345678)
    assert edu.read(4) == 0xEDCBA987
    assert edu.read(0, 2) == 0xFFFF and edu.read(0x70) == 0xFFFFFFFF


@pytest.mark.parametrize("n", [0, 1, 5, 12, 13, 33, 34, 0xFFFFFFFF])
def test_factorial(edu: Driver, n: int) -> None:
    edu.write(8, n)
    assert edu.read(0x20) & 1
    edu.pc.clock.skip()
    assert edu.read(0x20) == 0 and edu.read(8) == (factorial(min(n, 40)) & 0xFFFFFFFF)


def test_factorial_interrupts_when_asked(edu: Driver) -> None:
    edu.write(0x20, 0x81)
    edu.write(8, 4)
    edu.pc.clock.skip()
    line = edu.pc.config_read(EDU.source, 0x3C, 1)
    assert edu.read(0x24) == 1 and edu.pc.lines.levels[line]
    edu.write(0x64, 1)
    assert edu.read(0x24) == 0 and not edu.pc.lines.levels[line]


def test_raised_interrupts_add_up_until_acknowledged(edu: Driver) -> None:
    line = edu.pc.config_read(EDU.source, 0x3C, 1)
    edu.write(0x60, 0x10)
    edu.write(0x60, 0x02)
    assert edu.read(0x24) == 0x12
    edu.write(0x64, 0x10)
    assert edu.read(0x24) == 0x02 and edu.pc.lines.levels[line]
    edu.write(0x64, 0x02)
    assert not edu.pc.lines.levels[line]


def test_dma_through_the_buffer_and_back(edu: Driver) -> None:
    edu.pc.memory.write(0x5FFE, b"across two pages")
    edu.transfer(0x5FFE, BUFFER + 100, 16, 1)
    assert edu.read(0x98) & 1
    edu.finish()
    edu.transfer(BUFFER + 100, 4 << 30, 16, 3)
    edu.finish()
    assert edu.pc.memory.read(4 << 30, 16) == b"across two pages"
    assert [(r.access, r.source) for r in edu.pc.gate.seen] == [(Direction.READ, EDU.source)] * 2 + [(Direction.WRITE, EDU.source)]


def test_a_transfer_takes_100_us_and_the_registers_are_locked_meanwhile(edu: Driver) -> None:
    edu.transfer(0x1000, BUFFER, 8, 1)
    edu.write(0x90, 4000, 8)
    edu.pc.clock.advance(99_999)
    assert edu.read(0x98) == 1 and edu.read(0x90, 8) == 8
    edu.pc.clock.advance(1)
    assert edu.read(0x98) == 0


def test_the_interrupt_of_a_transfer(edu: Driver) -> None:
    edu.transfer(0x1000, BUFFER, 8, 5)
    edu.finish()
    assert edu.read(0x24) == 0x100 and edu.pc.lines.levels[edu.pc.config_read(EDU.source, 0x3C, 1)]


def test_a_blocked_read_leaves_the_buffer_as_it_was(edu: Driver) -> None:
    edu.pc.memory.write(0x2000, b"old!")
    edu.transfer(0x2000, BUFFER, 4, 1)
    edu.finish()
    edu.pc.gate.blocks = lambda request: request.iova == 0x3000
    edu.transfer(0x3000, BUFFER, 4, 1)
    edu.finish()
    edu.transfer(BUFFER, 0x4000, 4, 3)
    edu.finish()
    assert edu.pc.memory.read(0x4000, 4) == b"old!"
    assert [r.fault.reason for r in edu.pc.fabric.trace if r.fault] == [6]


def test_the_whole_buffer_and_parts_of_it(edu: Driver) -> None:
    memory, content = edu.pc.memory, bytes(i % 251 for i in range(4096))
    memory.write(0x10000, content)
    edu.transfer(0x10000, BUFFER, 4096, 1)
    edu.finish()
    edu.transfer(0x10000, BUFFER + 4000, 96, 1)
    edu.finish()
    edu.transfer(BUFFER, 0x20000, 4096, 3)
    edu.finish()
    assert memory.read(0x20000, 4096) == content[:4000] + content[:96]


@pytest.mark.parametrize(("source", "destination", "count", "command"), [
    (0x1000, BUFFER - 1, 4, 1), (0x1000, BUFFER + 4093, 4, 1), (0x1000, 0, 4, 1), (BUFFER, 0x1000, 4097, 3), (BUFFER, 0x1000, 1 << 63, 3)])
def test_a_transfer_outside_the_buffer_is_ignored(edu: Driver, source: int, destination: int, count: int, command: int) -> None:
    edu.transfer(source, destination, count, command)
    edu.finish()
    assert edu.pc.gate.seen == []


def test_the_whole_64_bit_address_goes_out(edu: Driver) -> None:
    edu.transfer(0xFEDC_BA98_7654_3000, BUFFER, 4, 1)
    edu.finish()
    assert edu.pc.gate.seen[0].iova == 0xFEDC_BA98_7654_3000


def test_reset_stops_a_transfer(edu: Driver) -> None:
    edu.pc.memory.write(0x1000, b"data")
    edu.transfer(0x1000, BUFFER, 4, 1)
    edu.pc.root.reset()
    edu.pc.clock.advance(1_000_000)
    assert edu.pc.gate.seen == [] and edu.read(0x98) == 0


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([0, 4, 8, 0x20, 0x24, 0x60, 0x64, 0x80, 0x84, 0x88, 0x90, 0x98, 0x40000, 0xFFFF8]),
                          st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1)), max_size=30))
def test_random_registers_never_raise(writes: list[tuple[int, int, int]]) -> None:
    edu = Driver()
    for offset, width, value in writes:
        edu.write(offset, value, width)
        edu.read(offset, width)
        edu.pc.clock.advance(50_000)
    edu.finish()


def test_a_64_bit_address_by_halves(edu: Driver) -> None:
    """As a processor with a bus of 4 bytes carries out one store of 8."""
    for half, value in ((0, 0x23456780), (4, 0x1)):
        edu.write(0x88 + half, value)
    assert edu.read(0x88) == 0x23456780
    assert edu.read(0x8C) == 1
    assert edu.read(0x88, 8) == 0x1_2345_6780
    edu.write(0x88, 0x1000)
    assert edu.read(0x88, 8) == 0x1000


def test_a_transfer_of_no_bytes_asks_for_nothing(edu: Driver) -> None:
    for source, destination, command in ((0x1000, BUFFER, 1), (BUFFER, 0x1000, 3)):
        edu.transfer(source, destination, 0, command)
        edu.finish()
    assert not edu.pc.fabric.trace
