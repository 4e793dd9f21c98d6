"""The 8259 pair, programmed as an operating system does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.machine.bus import Bus
from hvcore.machine.memory import Memory
from hvcore.machine.pic import Pic


@pytest.fixture
def bus() -> Bus:
    return Bus(Memory([(0, 4096)]))


def initialized(bus: Bus, masks: tuple[int, int] = (0, 0), icw4: int = 1) -> Pic:
    pic = Pic(bus)
    for port, base, cascade, mask in ((0x20, 0x20, 4, masks[0]), (0xA0, 0x28, 2, masks[1])):
        bus.port_write(port, 1, 0x11)
        for value in (base, cascade, icw4, mask):
            bus.port_write(port + 1, 1, value)
    return pic


def test_fresh_controllers_deliver_nothing(bus: Bus) -> None:
    pic = Pic(bus)
    for irq in range(16):
        pic.set_line(irq, True)
    assert pic.pending() is None
    assert bus.port_read(0x21, 1) == bus.port_read(0xA1, 1) == 0xFF


def test_an_edge_is_latched_and_delivered_once(bus: Bus) -> None:
    pic = initialized(bus)
    pic.set_line(4, True)
    pic.set_line(4, False)
    assert pic.pending() == 0x24 and bus.port_read(0x20, 1) == 0x10
    assert pic.acknowledge() == 0x24 and pic.pending() is None
    pic.set_line(4, True)
    assert pic.pending() is None, "in service: the same line waits for EOI"
    bus.port_write(0x20, 1, 0x20)
    assert pic.acknowledge() == 0x24
    bus.port_write(0x20, 1, 0x20)
    assert pic.pending() is None, "still high is no new edge"


def test_pending_changes_nothing(bus: Bus) -> None:
    pic = initialized(bus)
    pic.set_line(12, True)
    assert [pic.pending(), pic.pending(), pic.acknowledge()] == [0x2C, 0x2C, 0x2C]


def test_a_level_line_comes_again_until_it_drops(bus: Bus) -> None:
    pic = initialized(bus)
    assert (bus.port_read(0x4D0, 1), bus.port_read(0x4D1, 1)) == (0x00, 0x0C)
    pic.set_line(11, True)
    assert pic.acknowledge() == 0x2B
    bus.port_write(0xA0, 1, 0x20)
    bus.port_write(0x20, 1, 0x20)
    assert pic.pending() == 0x2B
    pic.set_line(11, False)
    assert pic.pending() is None


def test_elcr_keeps_system_lines_edge_triggered(bus: Bus) -> None:
    initialized(bus)
    bus.port_write(0x4D0, 2, 0xFFFF)
    assert bus.port_read(0x4D0, 2) == 0xDEF8


def test_every_line_has_its_vector(bus: Bus) -> None:
    pic = initialized(bus)
    for irq in (0, 1, *range(3, 16)):
        pic.set_line(irq, True)
        assert pic.acknowledge() == 0x20 + irq
        pic.set_line(irq, False)
        bus.port_write(0xA0, 1, 0x20)
        bus.port_write(0x20, 1, 0x20)


def test_each_elcr_byte_is_its_own_chips(bus: Bus) -> None:
    pic = initialized(bus)
    bus.port_write(0x4D0, 1, 0x20)
    assert bus.port_read(0x4D0, 2) == 0x0C20
    pic.set_line(5, True)
    pic.set_line(9, True)
    pic.set_line(5, False)
    pic.set_line(9, False)
    assert pic.pending() == 0x29, "line 5 is level-triggered and dropped, line 9 kept its edge"
    bus.port_write(0x4D1, 1, 0x02)
    assert pic.pending() is None and bus.port_read(0x4D0, 2) == 0x0220


def test_initializing_again_clears_mask_service_and_edges(bus: Bus) -> None:
    pic = initialized(bus, masks=(0x40, 0), icw4=3)
    pic.set_line(3, True)
    bus.port_write(0x20, 1, 0x0B)
    bus.port_write(0x20, 1, 0x11)
    for value in (0x40, 4, 1):
        bus.port_write(0x21, 1, value)
    assert bus.port_read(0x21, 1) == 0 and bus.port_read(0x20, 1) == 0 and pic.pending() is None
    pic.set_line(3, False)
    pic.set_line(3, True)
    assert pic.acknowledge() == 0x43
    bus.port_write(0x20, 1, 0x0B)
    assert bus.port_read(0x20, 1) == 0x08, "no automatic EOI any more"


def test_without_icw4_the_third_word_ends_the_sequence(bus: Bus) -> None:
    Pic(bus)
    bus.port_write(0x20, 1, 0x10)
    for value in (0x37, 4, 0xA5):
        bus.port_write(0x21, 1, value)
    assert bus.port_read(0x21, 1) == 0xA5


def test_ocw3_chooses_requests_or_service_and_icw2_has_no_low_bits(bus: Bus) -> None:
    pic = initialized(bus)
    for port, value in ((0x20, 0x11), (0x21, 0x27), (0x21, 4), (0x21, 1)):
        bus.port_write(port, 1, value)
    pic.set_line(1, True)
    assert pic.acknowledge() == 0x21
    pic.set_line(6, True)
    seen = []
    for command in (0x0B, 0x0A, 0x08, 0x0B, 0x08):
        bus.port_write(0x20, 1, command)
        seen.append(bus.port_read(0x20, 1))
    assert seen == [0x02, 0x40, 0x40, 0x02, 0x02]


def test_priorities_nest_and_the_slave_comes_through_line_2(bus: Bus) -> None:
    pic = initialized(bus)
    pic.set_line(5, True)
    assert pic.acknowledge() == 0x25
    pic.set_line(7, True)
    assert pic.pending() is None
    pic.set_line(14, True)
    assert pic.acknowledge() == 0x2E, "line 2 is above line 5"
    pic.set_line(15, True)
    pic.set_line(0, True)
    assert pic.acknowledge() == 0x20
    for port, register in ((0x20, 0x25), (0xA0, 0x40)):
        bus.port_write(port, 1, 0x0B)
        assert bus.port_read(port, 1) == register
    bus.port_write(0x20, 1, 0x20)
    assert pic.pending() is None
    bus.port_write(0xA0, 1, 0x66)
    bus.port_write(0x20, 1, 0x62)
    assert pic.acknowledge() == 0x2F


def test_a_masked_line_waits(bus: Bus) -> None:
    pic = initialized(bus, masks=(0xFB, 0xFF))
    pic.set_line(4, True)
    pic.set_line(10, True)
    assert pic.pending() is None
    bus.port_write(0x21, 1, 0xEB)
    assert pic.pending() == 0x24
    bus.port_write(0x21, 1, 0xFB)
    bus.port_write(0xA1, 1, 0xFB)
    assert pic.pending() == 0x2A


def test_acknowledge_of_nothing_is_spurious(bus: Bus) -> None:
    pic = initialized(bus)
    assert pic.acknowledge() == 0x27
    bus.port_write(0x20, 1, 0x0B)
    assert bus.port_read(0x20, 1) == 0


def test_automatic_eoi_leaves_nothing_in_service(bus: Bus) -> None:
    pic = initialized(bus, icw4=3)
    pic.set_line(3, True)
    assert pic.acknowledge() == 0x23
    pic.set_line(3, False)
    pic.set_line(3, True)
    assert pic.acknowledge() == 0x23


def test_reset_masks_everything_again(bus: Bus) -> None:
    pic = initialized(bus)
    pic.set_line(1, True)
    pic.acknowledge()
    pic.reset()
    assert pic.pending() is None and bus.port_read(0x20, 2) == 0xFF00


PORTS = st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1])


@given(st.lists(st.one_of(st.tuples(PORTS, st.integers(0, 255)), st.tuples(st.integers(0, 15), st.booleans()), st.just(None)), max_size=60))
def test_what_is_acknowledged_is_what_was_pending(actions: list[tuple[int, int] | None]) -> None:
    bus = Bus(Memory([(0, 4096)]))
    pic = initialized(bus)
    for action in actions:
        if action is None:
            vector = pic.pending()
            acknowledged = pic.acknowledge()
            assert vector is None or acknowledged == vector
        elif action[0] < 16:
            pic.set_line(action[0], bool(action[1]))
        else:
            bus.port_write(action[0], 1, action[1])
            bus.port_read(action[0], 1)
