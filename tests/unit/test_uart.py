"""The 16550 as drivers use it: by polling, by interrupts, and its probe in loopback."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pci_bench import Lines

from hvcore.machine.bus import Bus
from hvcore.machine.memory import Memory
from hvcore.machine.uart import Uart

RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(0x3F8, 0x400)


class Bench:
    def __init__(self) -> None:
        self.bus, self.lines, self.sent = Bus(Memory([(0, 4096)])), Lines(), bytearray()
        self.uart = Uart(self.bus, self.lines, self.sent.extend)

    def read(self, port: int) -> int:
        return self.bus.port_read(port, 1)

    def write(self, port: int, value: int) -> None:
        self.bus.port_write(port, 1, value)


@pytest.fixture
def pc() -> Bench:
    return Bench()


def test_polled_output(pc: Bench) -> None:
    for byte in b"hello":
        assert pc.read(LSR) & 0x20
        pc.write(RBR, byte)
    assert pc.sent == b"hello" and pc.lines.levels[4] is False


def test_polled_input_of_any_length_in_order(pc: Bench) -> None:
    text = bytes(range(256)) * 3
    pc.uart.receive(text)
    got = bytearray()
    while pc.read(LSR) & 1:
        got.append(pc.read(RBR))
    assert got == text and pc.uart.waiting == 0 and pc.read(RBR) == 0


def test_divisor_latch_hides_data_and_interrupt_enable(pc: Bench) -> None:
    pc.uart.receive(b"x")
    pc.write(LCR, 0x83)
    pc.write(RBR, 0x0C)
    pc.write(IER, 0x01)
    assert (pc.read(RBR), pc.read(IER)) == (0x0C, 0x01)
    pc.write(LCR, 0x03)
    assert (pc.read(IER), pc.read(RBR), pc.read(LCR), bytes(pc.sent)) == (0, ord("x"), 3, b"")


def test_receive_interrupt_until_the_last_byte_is_read(pc: Bench) -> None:
    pc.write(IER, 1)
    assert pc.read(IIR) == 0x01
    pc.uart.receive(b"ab")
    assert pc.lines.levels[4] and pc.read(IIR) == 0x04
    pc.read(RBR)
    assert pc.lines.levels[4]
    pc.read(RBR)
    assert not pc.lines.levels[4] and pc.read(IIR) == 0x01


def test_fifo_trigger_and_timeout(pc: Bench) -> None:
    pc.write(IIR, 0x81)
    pc.write(IER, 1)
    pc.uart.receive(b"1234567")
    assert pc.read(IIR) == 0xCC, "fewer than 8: character timeout"
    pc.uart.receive(b"8")
    assert pc.read(IIR) == 0xC4


def test_fifo_holds_16_and_is_refilled(pc: Bench) -> None:
    pc.write(IIR, 0x01)
    pc.uart.receive(bytes(range(40)))
    pc.read(RBR)
    assert pc.uart.waiting == 39
    pc.write(IIR, 0x03)
    rest = bytearray()
    while pc.read(LSR) & 1:
        rest.append(pc.read(RBR))
    assert rest == bytes(range(17, 40)), "clearing loses the 16 in the FIFO, not those that wait outside"


def test_transmit_interrupt_and_priority_below_receive(pc: Bench) -> None:
    pc.write(IER, 2)
    assert pc.lines.levels[4] and pc.read(IIR) == 0x02
    assert not pc.lines.levels[4] and pc.read(IIR) == 0x01, "reading IIR took it away"
    pc.write(RBR, 65)
    pc.write(IER, 3)
    pc.uart.receive(b"x")
    assert pc.read(IIR) == 0x04
    pc.read(RBR)
    assert pc.read(IIR) == 0x02 and pc.read(IIR) == 0x01


def test_loopback_probe(pc: Bench) -> None:
    assert pc.read(MSR) & 0xF0 == 0xB0
    pc.write(MCR, 0x1A)
    assert pc.read(MSR) & 0xF0 == 0x90
    pc.write(RBR, 0x5A)
    assert pc.read(LSR) & 1 and pc.read(RBR) == 0x5A and pc.sent == b""
    pc.write(MCR, 0xFF)
    assert pc.read(MCR) == 0x1F and pc.read(MSR) & 0xF0 == 0xF0


@pytest.mark.parametrize(("output", "line"), [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80)])
def test_each_modem_output_is_looped_to_its_input(pc: Bench, output: int, line: int) -> None:
    pc.write(MCR, 0x10 | output)
    assert pc.read(MSR) == line


def test_16550_is_told_by_its_fifo_bits_and_scratch(pc: Bench) -> None:
    pc.write(IIR, 1)
    assert pc.read(IIR) >> 6 == 3
    pc.write(IIR, 0)
    assert pc.read(IIR) >> 6 == 0
    pc.write(SCR, 0xA5)
    assert pc.read(SCR) == 0xA5
    pc.write(LSR, 0)
    assert pc.read(LSR) == 0x60


def test_reset_forgets_input_and_settings(pc: Bench) -> None:
    pc.write(IER, 3)
    pc.uart.receive(b"lost")
    pc.uart.reset()
    assert pc.uart.waiting == 0 and pc.read(IER) == 0 and pc.lines.levels[4] is False and pc.read(LSR) == 0x60


@given(st.lists(st.one_of(st.tuples(st.integers(RBR, SCR), st.integers(0, 255)), st.binary(max_size=20)), max_size=50))
def test_the_line_says_what_iir_says(actions: list[tuple[int, int] | bytes]) -> None:
    pc = Bench()
    for action in actions:
        if isinstance(action, bytes):
            pc.uart.receive(action)
        else:
            pc.write(*action)
            pc.read(action[0])
        level = pc.lines.levels[4]
        assert level == (pc.read(IIR) & 1 == 0)
