"""The I/O APIC, and the PC's interrupt controllers together: lines, messages, what the processor is told."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.machine.apic import LocalApic
from hvcore.machine.bus import Bus
from hvcore.machine.clock import Clock
from hvcore.machine.firmware import IOAPIC_ADDRESS
from hvcore.machine.interrupts import InterruptSystem, pin_of
from hvcore.machine.ioapic import IoApic
from hvcore.machine.memory import Memory
from hvcore.machine.pc import Pc
from hvcore.machine.pic import Pic
from hvcore.session import Machine
from hvcore.sources import load
from hvcore.spec.apic import LOCAL_APIC_ADDRESS, RTE
from hvcore.spec.interrupts import REMAPPABLE_ADDRESS
from hvcore.spec.linuxboot import Elf, Segment
from hvcore.spec.vtd import FaultReason
from hvcore.vmm.config import Config

APIC, SELECT, WINDOW, EOIR = LOCAL_APIC_ADDRESS, 0x00, 0x10, 0x40


class Bench:
    """All controllers on a bus, the processor's accesses and acknowledges."""

    def __init__(self) -> None:
        self.bus, self.clock = Bus(Memory([(0, 4096)])), Clock()
        self.apic = LocalApic(self.clock)
        self.sent: list[tuple[int, int]] = []
        self.ioapic = IoApic(self._send)
        self.bus.map_mmio(APIC, 4096, "local APIC", self.apic)
        self.bus.map_mmio(IOAPIC_ADDRESS, 4096, "I/O APIC", self.ioapic)
        self.system = InterruptSystem(Pic(self.bus), self.ioapic, self.apic)
        self.wire: list[bool] = []
        self.system.changed = lambda: self.wire.append(self.system.pending() is not None)

    def _send(self, address: int, data: int) -> None:
        self.sent.append((address, data))
        self.system.message(address, data)

    def read(self, number: int) -> int:
        self.bus.write(IOAPIC_ADDRESS + SELECT, 4, number)
        return self.bus.read(IOAPIC_ADDRESS + WINDOW, 4)

    def write(self, number: int, value: int) -> None:
        self.bus.write(IOAPIC_ADDRESS + SELECT, 4, number)
        self.bus.write(IOAPIC_ADDRESS + WINDOW, 4, value)

    def entry(self, pin: int, value: int) -> None:
        """The high half first, as an operating system does."""
        self.write(0x11 + 2 * pin, value >> 32)
        self.write(0x10 + 2 * pin, value & 0xFFFFFFFF)

    def local(self, offset: int, value: int) -> None:
        self.bus.write(APIC + offset, 4, value)

    def on(self) -> "Bench":
        self.local(0xF0, 0x1FF)
        return self

    def end(self) -> None:
        self.local(0xB0, 0)

    def pic_on(self) -> "Bench":
        """The 8259 pair at 0x20 and 0x28, nothing masked."""
        for port, base, cascade in ((0x20, 0x20, 4), (0xA0, 0x28, 2)):
            self.bus.port_write(port, 1, 0x11)
            for value in (base, cascade, 1, 0):
                self.bus.port_write(port + 1, 1, value)
        return self


@pytest.fixture
def bench() -> Bench:
    return Bench().on()


# Registers of the I/O APIC

def test_after_reset(bench: Bench) -> None:
    assert [bench.read(n) for n in range(4)] == [0, 0x170020, 0, 0]
    assert [bench.read(n) for n in range(0x10, 0x40)] == [0x10000, 0] * 24 and bench.read(0x40) == 0


def test_what_takes_ones(bench: Bench) -> None:
    for number in (*range(3), *range(0x10, 0x40)):
        bench.write(number, 0xFFFFFFFF)
    assert [bench.read(n) for n in range(3)] == [0xF000000, 0x170020, 0xF000000]
    assert [bench.read(n) for n in range(0x10, 0x40)] == [0x1AFFF, 0xFFFF0000] * 24
    assert bench.bus.read(IOAPIC_ADDRESS, 4) == 0x3F


# Lines

def test_an_edge_is_one_message_and_a_masked_one_is_lost(bench: Bench) -> None:
    bench.ioapic.set_pin(4, True)
    bench.entry(4, RTE.make(DST=0, V=0x41))
    assert bench.sent == [], "the edge came while it was masked"
    bench.ioapic.set_pin(4, True)
    bench.ioapic.set_pin(4, False)
    bench.ioapic.set_pin(4, True)
    assert bench.sent == [(0xFEE00000, 0x4041)] and bench.system.acknowledge() == 0x41
    bench.end()
    assert bench.system.pending() is None


def test_a_level_waits_for_its_end_and_comes_again_while_it_is_high(bench: Bench) -> None:
    bench.entry(10, RTE.make(DST=0, TM=1, V=0x51))
    bench.ioapic.set_pin(10, True)
    assert bench.read(0x24) == 0xC051 and bench.system.acknowledge() == 0x51
    bench.ioapic.set_pin(10, False)
    bench.ioapic.set_pin(10, True)
    assert len(bench.sent) == 1, "still in service"
    bench.end()
    assert len(bench.sent) == 2 and bench.system.acknowledge() == 0x51 and bench.read(0x24) & 0x4000
    bench.ioapic.set_pin(10, False)
    bench.end()
    assert len(bench.sent) == 2 and bench.read(0x24) == 0x8051


def test_a_level_that_was_masked_comes_when_it_is_unmasked(bench: Bench) -> None:
    bench.ioapic.set_pin(10, True)
    bench.entry(10, RTE.make(TM=1, V=0x51))
    assert bench.sent == [(0xFEE00000, 0xC051)]
    bench.bus.write(IOAPIC_ADDRESS + EOIR, 4, 0x52)
    assert bench.read(0x24) == 0xC051, "another vector's end"
    bench.write(0x24, 0x18051)
    bench.bus.write(IOAPIC_ADDRESS + EOIR, 4, 0x51)
    assert bench.read(0x24) == 0x18051 and len(bench.sent) == 1, "masked meanwhile"
    bench.write(0x24, 0x8051)
    assert len(bench.sent) == 2


def test_what_becomes_edge_triggered_has_nothing_in_service(bench: Bench) -> None:
    bench.ioapic.set_pin(10, True)
    bench.entry(10, RTE.make(TM=1, V=0x51))
    bench.write(0x24, 0x10051)
    assert bench.read(0x24) == 0x10051
    bench.write(0x24, 0x18051)
    assert bench.read(0x24) == 0x18051, "how Linux ends one by hand"


def test_where_a_message_goes(bench: Bench) -> None:
    bench.entry(5, RTE.make(DST=0x12, DM=1, DLM=1, V=0x61))
    bench.ioapic.set_pin(5, True)
    index = REMAPPABLE_ADDRESS.make(HEAD=0xFEE, HANDLE=0x5A5, HANDLE15=1) | 1 << 4
    bench.entry(6, (index >> 4 & 0xFFFF) << 48 | 1 << 11 | 0x62)
    bench.ioapic.set_pin(6, True)
    assert bench.sent == [(0xFEE12004, 0x4161), (index, 0x4062)]


@given(st.lists(st.tuples(st.sampled_from(["high", "low", "mask", "unmask", "end"]), st.sampled_from([7, 10])), max_size=40))
def test_levels_are_served_while_they_are_high(acts: list[tuple[str, int]]) -> None:
    """Against the rule itself: a message goes out whenever a line is high, unmasked and nothing is in service."""
    bench, high, masked, serving, count = Bench(), set[int](), {7, 10}, set[int](), 0
    for pin in (7, 10):
        bench.entry(pin, RTE.make(TM=1, MASK=1, V=0x40 + pin))
    for name, pin in acts:
        if name in ("high", "low"):
            bench.ioapic.set_pin(pin, name == "high")
            (high.add if name == "high" else high.discard)(pin)
        elif name == "end":
            bench.bus.write(IOAPIC_ADDRESS + EOIR, 4, 0x40 + pin)
            serving.discard(pin)
        else:
            bench.write(0x10 + 2 * pin, RTE.make(TM=1, MASK=int(name == "mask"), V=0x40 + pin))
            (masked.add if name == "mask" else masked.discard)(pin)
        fresh = high - masked - serving
        serving, count = serving | fresh, count + len(fresh)
        assert len(bench.sent) == count and {p for p in (7, 10) if bench.read(0x10 + 2 * p) & 0x4000} == serving


# All controllers together

def test_where_lines_end() -> None:
    assert [pin_of(irq) for irq in range(4)] == [2, 1, None, 3] and pin_of(23) == 23


def test_lines_reach_both_controllers(bench: Bench) -> None:
    bench.pic_on()
    bench.entry(2, RTE.make(V=0x30))
    bench.system.set_line(0, True)
    assert bench.sent == [(0xFEE00000, 0x4030)] and bench.system.pic.pending() == 0x20
    assert [bench.system.acknowledge(), bench.system.acknowledge()] == [0x20, 0x30]


def test_lint0_passes_the_8259_pair_first() -> None:
    bench = Bench().pic_on()
    bench.system.set_line(4, True)
    assert bench.system.pending() == 0x24, "as reset leaves it"
    bench.on()
    bench.apic.accept(0xF0)
    assert bench.system.acknowledge() == 0x24 and bench.system.acknowledge() == 0xF0 and bench.system.pending() is None
    bench.system.set_line(1, True)
    bench.local(0x80, 0xFF)
    assert bench.system.pending() == 0x21, "priorities of the local APIC do not concern it"
    bench.local(0x350, 0x10700)
    assert bench.system.pending() is None
    bench.local(0x350, 0x700)
    assert bench.system.pending() == 0x21


def test_lint0_makes_a_vector_of_its_own(bench: Bench) -> None:
    bench.pic_on()
    bench.local(0x350, 0x39)
    bench.system.set_line(4, True)
    assert bench.system.acknowledge() == 0x39 and bench.system.pic.pending() == 0x24
    bench.end()
    bench.system.set_line(5, True)
    assert bench.system.pending() is None, "the output was high all the time"


def test_nothing_waits_and_something_is_acknowledged(bench: Bench) -> None:
    bench.pic_on()
    assert bench.system.acknowledge() == 0x27
    bench.local(0x350, 0x10700)
    assert bench.system.acknowledge() == 0xFF


def test_the_processor_hears_of_every_change_once(bench: Bench) -> None:
    bench.pic_on()
    bench.local(0x350, 0x700)
    bench.system.set_line(4, True)
    bench.system.set_line(4, True)
    bench.system.set_line(5, True)
    assert bench.wire == [True]
    assert [bench.system.acknowledge(), bench.wire] == [0x24, [True, False]]
    bench.bus.port_write(0x20, 1, 0x20)
    assert [bench.system.acknowledge(), bench.wire] == [0x25, [True, False, True, False]]
    bench.system.message(0xFEE00000, 0x41)
    bench.local(0x80, 0x50)
    bench.local(0x80, 0x30)
    assert bench.wire[4:] == [True, False, True]
    bench.local(0x380, 0)
    assert len(bench.wire) == 7


def test_the_timer_wakes_the_processor(bench: Bench) -> None:
    bench.local(0x320, 0xEC)
    bench.local(0x380, 5000)
    assert bench.wire == [] and bench.clock.skip() and bench.clock.now == 10_000
    assert bench.wire == [True] and bench.system.acknowledge() == 0xEC


# In a machine

@pytest.fixture
def pc() -> Iterator[Pc]:
    machine = Pc(load("q35-6g"))
    yield machine
    machine.close()


def test_a_machine_starts_with_the_8259_pair_alone(pc: Pc) -> None:
    assert pc.bus.read(APIC + 0xF0, 4) == 0xFF and pc.bus.read(APIC + 0x350, 4) == 0x700 and pc.clock.next() is None
    pc.fabric.port(0x18).write(APIC, b"\x41\x40\0\0")
    assert list(pc.messages) == [(0x18, APIC, 0x4041)] and pc.interrupts.pending() is None, "off by software it takes no message"


def test_messages_of_devices_and_of_the_ioapic_arrive(pc: Pc) -> None:
    pc.bus.write(APIC + 0xF0, 4, 0x1FF)
    pc.fabric.port(0x18).write(APIC, b"\x41\x40\0\0")
    assert pc.interrupts.acknowledge() == 0x41
    for number, value in ((0x18, 0x52), (0x19, 0)):
        pc.bus.write(IOAPIC_ADDRESS, 4, number)
        pc.bus.write(IOAPIC_ADDRESS + WINDOW, 4, value)
    pc.type(b"x")
    pc.bus.port_write(0x3F9, 1, 1)
    assert pc.interrupts.acknowledge() == 0x52 and pc.messages[-1] == (0xFF00, APIC, 0x4052)
    result = pc.fabric.trace[-1]
    assert (result.request.source, result.request.iova) == (0xFF00, APIC), "as the DMAR names the I/O APIC"


def test_the_second_processor_does_not_see_the_first_ones_apics(pc: Pc) -> None:
    bus = pc.second().bus
    for address in (APIC + 0x30, IOAPIC_ADDRESS):
        assert bus.read(address, 4) == 0xFFFFFFFF and pc.bus.read(address, 4) != 0xFFFFFFFF
    bus.write(APIC + 0xF0, 4, 0x1FF)
    assert pc.bus.read(APIC + 0xF0, 4) == 0xFF


# rdmsr of IA32_APIC_BASE to 0xe9 by its low word's bytes; wrmsr of the same; wrmsr of another page, which nobody's handler takes
_APIC_BASE = "b91b0000000f32" + "e6e9c1e808" * 4 + "b91b0000000f32" + "0f30b03d" + "e6e9" + "0f32" + "0500100000" + "0f30f4"


def test_the_guest_finds_its_apic_and_cannot_move_it() -> None:
    guest = Elf(0x1000000, (Segment(0x1000000, bytes.fromhex(_APIC_BASE), 4096),))
    with Machine.load("q35-2g") as machine:
        run = machine.boot(Config(VTD_TRANS=False), guest=guest)
        assert machine._pc.debug.endswith(b"\x00\x09\xe0\xfe=")
        assert run.outcome == "guest-crash" and "exception 13" in run.why


def test_a_unit_that_remaps_interrupts_judges_the_ioapic() -> None:
    machine = Machine.load("q35-6g-intremap")
    try:
        machine.boot(Config(INTERRUPT_REMAPPING=True))
        pc = machine._pc
        pc.bus.write(APIC + 0xF0, 4, 0x1FF)
        before = len(pc.messages)
        pc.interrupts.ioapic.table[9] = RTE.make(V=0x59)
        pc.interrupts.set_line(9, True)
        fault = pc.fabric.trace[-1].fault
        assert fault and fault.request.source == 0xFF00 and fault.reason == FaultReason.IR_COMPATIBILITY_BLOCKED
        assert len(pc.messages) == before and pc.interrupts.apic.irr == 0
    finally:
        machine.close()
