"""Interrupt messages under INTERRUPT_REMAPPING: what the guest asks for by MSI-X gets through remapped, everything else does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore import Config, Machine, inspect
from hvcore.spec.interrupts import IRTE_HIGH, IRTE_LOW, DeliveryMode
from hvcore.vmm.irte import entry_for

FIXED, VECTOR = 0xFEE00000, 0x51


class Drive:
    """The machine's NVMe function as the guest sees its MSI-X capability and table."""

    def __init__(self, machine):
        self.machine = machine
        self.function = machine.pc.root.find("nvme")[0]
        self.table = next(w.start for w in machine.pc.bus.windows if w.device is self.function) + 0x2000

    def say(self, line):
        return self.machine.run.guest.command(line)

    def program(self, address, data, vector=0):
        at = self.table + 16 * vector
        for offset, word in ((0, address & 0xFFFFFFFF), (4, address >> 32), (8, data), (12, 0)):
            assert self.say(f"poke {at + offset:#x} {word:#x}") == ""

    def enable(self):
        at = 0x80000000 | self.function.source << 8 | self.function.msix._capability
        self.say(f"out 0xcf8 {at:#x} 4")
        word = int(self.say("in 0xcfc 4").split()[-1], 16)
        self.say(f"out 0xcfc {word | 1 << 31:#x} 4")

    def interrupts(self):
        """Lets the drive complete admin commands, each of which interrupts; the messages that got through since."""
        before = len(self.machine.run.messages)
        assert "checked" in self.say("nvme probe")
        return [m.interrupt for m in self.machine.run.messages][before:]


@pytest.fixture
def drive():
    with Machine.load("nvme-desktop-16g") as machine:
        machine.boot(Config(PROFILE="mended"))
        yield Drive(machine)


def test_a_vector_that_the_guest_asks_for_arrives_remapped(drive):
    drive.program(FIXED | 3 << 12, VECTOR)
    drive.enable()
    messages = drive.interrupts()
    assert messages
    assert {(m.source, m.vector, m.destination, m.delivery) for m in messages} == {(drive.function.source, VECTOR, 3, DeliveryMode.FIXED)}
    assert all(m.index is not None for m in messages)
    assert not len(drive.machine.run.faults)
    assert f"{VECTOR:02x} 00 00 00" in drive.say(f"peek {drive.table + 8:#x} 4")
    assert "00 30 e0 fe" in drive.say(f"peek {drive.table:#x} 4")
    assert inspect.prove(drive.machine.run).holds
    drive.program(FIXED, VECTOR + 1)
    assert {m.vector for m in drive.interrupts()} == {VECTOR + 1}, "the cache of entries was told"


@pytest.mark.parametrize("data", [0x4500, 0x400, 0x200, 0x700, 0x0F])
def test_what_is_no_plain_interrupt_has_no_entry(drive, data):
    """INIT, NMI, SMI, ExtINT, and a vector that belongs to an exception."""
    drive.program(FIXED, data)
    drive.enable()
    assert drive.interrupts() == []
    fault = drive.machine.run.faults[0]
    assert (fault.source, fault.reason) == (drive.function.source, 0x22)


def test_an_entry_is_for_one_requester_only(drive):
    drive.program(FIXED, VECTOR)
    drive.enable()
    index = drive.interrupts()[0].index
    drive.say(f"dma w {0xfee00010 | index << 5:#x} 4 0")
    fault = drive.machine.run.faults[0]
    assert (fault.reason, fault.source) == (0x26, drive.machine.pc.root.find("edu")[0].source)


def test_behind_the_cores_own_driver_the_guest_has_its_interrupts():
    with Machine.load("nvme-desktop-16g") as machine:
        machine.boot(Config(PROFILE="mended", NVME_DRIVER=True))
        drive = Drive(machine)
        drive.program(FIXED, VECTOR)
        drive.enable()
        assert {(m.vector, m.source) for m in drive.interrupts()} == {(VECTOR, drive.function.source)}
        assert not len(machine.run.faults)


def test_without_remapping_the_table_is_the_devices_own():
    with Machine.load("nvme-desktop-16g") as machine:
        machine.boot(Config(PROFILE="mended", INTERRUPT_REMAPPING=False))
        drive = Drive(machine)
        drive.program(FIXED, 0x4500)
        drive.enable()
        assert {m.delivery for m in drive.interrupts()} == {DeliveryMode.INIT}


@given(st.integers(0, (1 << 64) - 1) | st.integers(0xFEE00000, 0xFEEFFFFF), st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFF))
def test_no_entry_lets_anything_but_plain_interrupts_of_its_requester_through(address, data, source):
    low, high = entry_for(address, data, source)
    assert IRTE_HIGH.get(high, "SVT") == 1
    assert IRTE_HIGH.get(high, "SID") == source
    if IRTE_LOW.get(low, "P"):
        assert IRTE_LOW.get(low, "DLM") in (0, 1)
        assert IRTE_LOW.get(low, "V") == data & 0xFF >= 16
        assert IRTE_LOW.get(low, "DST") == (address >> 12 & 0xFF) << 8
        assert address >> 20 == 0xFEE
    else:
        assert low == 0
