"""I/O APICs under INTERRUPT_REMAPPING: the guest sees its own entries, the device has remappable ones, and what arrives is what the guest
asked for."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore import Config, Machine, inspect
from hvcore.machine import firmware
from hvcore.machine.ioapic import IoApic
from hvcore.spec import dmar
from hvcore.spec.apic import IOAPIC_PINS, LOCAL_APIC_ADDRESS, RTE
from hvcore.spec.interrupts import IRTE_HIGH, IRTE_LOW, MSI_ADDRESS, MSI_DATA, DeliveryMode
from hvcore.spec.vtd import ADDRESS
from hvcore.vmm.ioapic import RedirectionTable
from hvcore.vmm.mmio import trap_at

SELECT, WINDOW, EOIR, BASE = 0x00, 0x10, 0x40, 0xFEC00000
IOAPIC_SOURCE = 0xFF00
"""Its requester id on q35-6g-intremap, as the DMAR says."""


class Bench:
    """A machine whose core answers for the I/O APIC, at its local APIC's side."""

    def __init__(self, machine: Machine):
        self.machine, self.pc = machine, machine.pc
        trap = trap_at(machine.exits.traps, BASE)
        assert trap is not None and isinstance(trap.device, RedirectionTable)
        self.core: RedirectionTable = trap.device
        self.device = self.pc.interrupts.ioapic
        self.pc.bus.write(LOCAL_APIC_ADDRESS + 0xF0, 4, 0x1FF)

    def fresh(self) -> "Bench":
        for pin in range(IOAPIC_PINS):
            self.device.set_pin(pin, False)
            self.entry(pin, RTE["MASK"].mask)
        self.register(0, 0)
        self.core.mmio_write(SELECT, 4, 0)
        while self.pc.interrupts.apic.deliverable is not None:
            self.pc.interrupts.apic.acknowledge()
            self.end()
        return self

    def end(self) -> None:
        """The processor's EOI."""
        self.pc.bus.write(LOCAL_APIC_ADDRESS + 0xB0, 4, 0)

    def register(self, number: int, value: int | None = None) -> int:
        self.core.mmio_write(SELECT, 4, number)
        if value is None:
            return self.core.mmio_read(WINDOW, 4)
        self.core.mmio_write(WINDOW, 4, value)
        return value

    def entry(self, pin: int, value: int) -> None:
        self.register(0x11 + 2 * pin, value >> 32)
        self.register(0x10 + 2 * pin, value & 0xFFFFFFFF)

    def pulse(self, pin: int) -> list[tuple[int, int]]:
        """What arrives at the processors of an edge: address and data."""
        return self.arrived(lambda: (self.device.set_pin(pin, True), self.device.set_pin(pin, False)))

    def arrived(self, act) -> list[tuple[int, int]]:
        self.pc.messages.clear()
        act()
        return [(address, data) for _, address, data in self.pc.messages]

    def table_entry(self, pin: int) -> tuple[int, int]:
        """The entry (low, high) of the unit's table for an input."""
        slot = (self.pc.bus.read(self.core.unit.base + 0xB8, 8) & ADDRESS) + 16 * (self.core.first + pin)
        return self.pc.memory.read64(slot), self.pc.memory.read64(slot + 8)


@pytest.fixture(scope="module")
def shared() -> Iterator[Bench]:
    with Machine.load("q35-6g-intremap") as machine:
        machine.boot(Config(PROFILE="mended"))
        yield Bench(machine)


@pytest.fixture
def bench(shared: Bench) -> Bench:
    return shared.fresh()


# What the guest sees, against the device without a core

PINS = 3
vectors = st.sampled_from([0x08, 0x31, 0x41])
words = st.integers(0, 0xFFFFFFFF)
lows = st.builds(lambda **fields: RTE.make(**fields), MASK=st.sampled_from([0, 0, 1]), TM=st.integers(0, 1), POLARITY=st.integers(0, 1),
                 DM=st.integers(0, 1), DLM=st.sampled_from([0, 0, 0, 1, 4, 5, 7]), V=vectors)
highs = st.integers(0, 0xFF).map(lambda n: n << 24) | words
pins = st.integers(0, PINS - 1)
numbers = pins.map(lambda pin: 0x10 + 2 * pin) | st.sampled_from([0, 1, 2, 0x3E, 0x3F, 0x40, 0x90]) | st.integers(0, 0xFF)
widths = st.sampled_from([4, 1, 2, 8])
acts = st.one_of(
    st.tuples(st.just("register"), numbers, words),
    st.tuples(st.just("register"), pins.map(lambda pin: 0x10 + 2 * pin), lows),
    st.tuples(st.just("register"), pins.map(lambda pin: 0x11 + 2 * pin), highs),
    st.tuples(st.just("window"), numbers, st.sampled_from([WINDOW, 0x04, 0x14, 0x20, 0x110, 0xFF0]), widths, words),
    st.tuples(st.just("write"), st.sampled_from([SELECT, EOIR, 0x100]), widths, words),
    st.tuples(st.just("read"), st.sampled_from([SELECT, WINDOW, 0x08, 0x40, 0x110, 0xFFC]), widths),
    st.tuples(st.just("write"), st.just(EOIR), st.just(4), vectors),
    st.tuples(st.just("line"), pins, st.booleans()))


def do(act: tuple, window, device: IoApic) -> int | None:
    """One act of a guest at an I/O APIC's window, or of a device at its inputs."""
    match act:
        case "register", number, value:
            window.mmio_write(SELECT, 4, number)
            window.mmio_write(WINDOW, 4, value)
        case "window", number, offset, width, value:
            window.mmio_write(SELECT, 4, number)
            window.mmio_write(offset, width, value & (1 << 8 * width) - 1)
        case "write", offset, width, value:
            window.mmio_write(offset, width, value & (1 << 8 * width) - 1)
        case "read", offset, width:
            return window.mmio_read(offset, width) & (1 << 8 * width) - 1
        case "line", pin, level:
            device.set_pin(pin, level)
    return None


def everything(window) -> list[int]:
    """All registers, the selector first; it is what it was afterwards."""
    selected = window.mmio_read(SELECT, 4)
    values = [selected]
    for number in range(0x42):
        window.mmio_write(SELECT, 4, number)
        values.append(window.mmio_read(WINDOW, 4))
    window.mmio_write(SELECT, 4, selected)
    return values


def harmless(address: int, data: int) -> bool:
    return MSI_DATA.get(data, "DLM") < 2 and MSI_DATA.get(data, "V") >= 16 and not MSI_ADDRESS.get(address, "FORMAT")


def meaning(address: int, data: int) -> tuple[int, ...]:
    return (*(MSI_ADDRESS.get(address, n) for n in ("DST", "DM")), *(MSI_DATA.get(data, n) for n in ("V", "DLM", "TM", "LEVEL")))


@settings(max_examples=300)
@given(st.lists(acts, min_size=5, max_size=40))
def test_the_guest_sees_what_it_would_see_without_a_core(shared: Bench, traffic: list[tuple]) -> None:
    """Reads, and the messages that arrive, act by act; what is not harmless does not arrive, and each is a fault."""
    bench, sent = shared.fresh(), []
    alone = IoApic(lambda address, data: sent.append((address, data)))
    for act in traffic:
        sent.clear()
        bench.pc.messages.clear()
        before = bench.pc.fabric.issued
        assert do(act, bench.core, bench.device) == do(act, alone, alone), act
        arrived = [(address, data) for _, address, data in bench.pc.messages]
        assert [meaning(*m) for m in arrived] == [meaning(*m) for m in sent if harmless(*m)], act
        assert bench.pc.fabric.issued - before == len(sent), act
        faults = [r.fault for r in list(bench.pc.fabric.trace)[len(bench.pc.fabric.trace) - len(sent):]]
        assert [f is None for f in faults] == [harmless(*m) for m in sent]
    assert everything(bench.core) == everything(alone)
    assert_kept_apart(bench)


def assert_kept_apart(bench: Bench) -> None:
    """No entry of the device asks for another's table entry, no table entry lets through more than plain interrupts of this requester."""
    for pin, entry in enumerate(bench.device.table):
        low, high = bench.table_entry(pin)
        assert (IRTE_HIGH.get(high, "SVT"), IRTE_HIGH.get(high, "SID")) == (1, IOAPIC_SOURCE)
        assert bool(entry >> 48 & 1) == bool(low & 1)
        if low & 1:
            assert entry >> 49 | entry >> 11 << 15 & 1 << 15 == bench.core.first + pin
            assert RTE.get(entry, "DLM") == 0
            assert IRTE_LOW.get(low, "DLM") < 2
            assert RTE.get(entry, "V") == IRTE_LOW.get(low, "V") >= 16
            assert RTE.get(entry, "TM") == IRTE_LOW.get(low, "TM")


# One by one

def test_an_edge_arrives_remapped_and_the_guest_reads_its_own_entry(bench: Bench) -> None:
    wanted = RTE.make(DST=3, DM=1, DLM=DeliveryMode.LOWEST_PRIORITY, V=0x41)
    bench.entry(4, wanted)
    assert bench.register(0x18) | bench.register(0x19) << 32 == wanted
    assert bench.device.table[4] == (bench.core.first + 4) << 49 | 1 << 48 | 0x41
    assert bench.pulse(4) == [(MSI_ADDRESS.make(HEAD=0xFEE, DST=3, DM=1), 0x4141)]
    assert bench.pc.fabric.trace[-1].request.source == IOAPIC_SOURCE
    bench.entry(4, wanted + 1)
    assert [data & 0xFF for _, data in bench.pulse(4)] == [0x42], "the cache of entries was told"


@pytest.mark.parametrize("entry", [RTE.make(DLM=4), RTE.make(DLM=5, V=0x41), RTE.make(DLM=2), RTE.make(DLM=7), RTE.make(V=0x0F),
                                   RTE.make(V=0x41, EXTENDED=1), RTE.make(V=0x41, DST=0xFF, EXTENDED=0xFF)],
                         ids=["NMI", "INIT", "SMI", "ExtINT", "an exception's vector", "remappable format", "someone's index"])
def test_what_is_no_plain_interrupt_is_blocked_with_a_fault(bench: Bench, entry: int) -> None:
    bench.entry(4, entry)
    assert bench.pulse(4) == []
    fault = bench.pc.fabric.trace[-1].fault
    assert fault is not None and (fault.request.source, fault.reason) == (IOAPIC_SOURCE, 0x25)
    assert bench.register(0x18) | bench.register(0x19) << 32 == entry
    bench.entry(4, RTE.make(V=0x41))
    assert [data & 0xFF for _, data in bench.pulse(4)] == [0x41], "the next entry is a plain one"


@pytest.mark.parametrize("low", [0x400, 0x541, 0x0F], ids=["NMI", "INIT", "an exception's vector"])
def test_the_guests_own_stores_are_judged_and_the_unit_records_it(low: int) -> None:
    with Machine.load("q35-6g-intremap") as machine:
        run = machine.boot(Config(PROFILE="mended"))
        for offset, value in ((SELECT, 0x2A), (WINDOW, low)):
            assert run.guest.command(f"poke {BASE + offset:#x} {value:#x}") == ""
        assert f" {low.to_bytes(4, 'little').hex(' ')} " in run.guest.command(f"peek {BASE + WINDOW:#x} 4")
        assert not len(run.faults)
        machine.pc.interrupts.set_line(13, True)
        assert [(f.source, f.reason) for f in run.faults] == [(IOAPIC_SOURCE, 0x25)]
        assert machine.pc.interrupts.apic.lost == {}


def test_a_level_is_served_until_it_drops_and_its_end_is_found_by_the_vector(bench: Bench) -> None:
    bench.entry(10, RTE.make(TM=1, V=0x51))
    assert bench.arrived(lambda: bench.device.set_pin(10, True)) == [(LOCAL_APIC_ADDRESS, 0xC051)]
    assert bench.register(0x24) & RTE["REMOTE_IRR"].mask
    interrupts = bench.pc.interrupts
    assert interrupts.acknowledge() == 0x51
    assert bench.arrived(bench.end) == [(LOCAL_APIC_ADDRESS, 0xC051)], "still high"
    bench.device.set_pin(10, False)
    assert interrupts.acknowledge() == 0x51
    assert bench.arrived(bench.end) == []
    assert not bench.register(0x24) & RTE["REMOTE_IRR"].mask and interrupts.pending() is None


def test_nothing_is_sent_while_an_entry_is_half_written(bench: Bench) -> None:
    """A level that is high all the time, first as what is blocked (sent at every write), then as what is not: one message."""
    bench.entry(10, RTE.make(TM=1, DLM=DeliveryMode.NMI, V=0x41))
    bench.device.set_pin(10, True)
    before = bench.pc.fabric.issued
    assert bench.arrived(lambda: bench.register(0x24, RTE.make(TM=1, V=0x41))) == [(LOCAL_APIC_ADDRESS, 0xC041)]
    assert bench.pc.fabric.issued == before + 1


def test_the_claim_about_interrupts_holds_and_no_device_can_borrow_an_entry(bench: Bench) -> None:
    bench.entry(4, RTE.make(V=0x41))
    assert bench.table_entry(4)[0] & 1
    assert bench.arrived(lambda: bench.pc.fabric.port(0x18).write(0xFEE00010 | bench.core.first + 4 << 5, bytes(4))) == []
    fault = bench.pc.fabric.trace[-1].fault
    assert fault is not None and fault.reason == 0x26
    claims = {c.claim: c.holds for c in inspect.prove(bench.machine.run).claims}
    assert claims["No device can forge an interrupt."]


# Which I/O APICs

def machine_with(**changes) -> Machine:
    description = Machine.load("q35-6g-intremap").description
    return Machine(replace(description, **changes))


def traps_of(machine: Machine) -> bool:
    with machine:
        machine.boot(Config(PROFILE="mended"))
        return trap_at(machine.exits.traps, BASE) is not None


def scopes_changed(change) -> bytes:
    table = dmar.parse(Machine.load("q35-6g-intremap").description.dmar)
    return dmar.build(replace(table, structures=tuple(
        replace(s, scopes=tuple(change(x) for x in s.scopes if change(x))) if isinstance(s, dmar.Drhd) else s for s in table.structures)))


def test_one_that_no_unit_names_or_that_leads_nowhere_is_left_as_it_is() -> None:
    assert traps_of(machine_with())
    assert not traps_of(machine_with(dmar=scopes_changed(lambda s: None if s.type == dmar.ScopeType.IOAPIC else s)))
    lost = scopes_changed(lambda s: replace(s, path=((31, 0), (0, 0))) if s.type == dmar.ScopeType.IOAPIC else s)
    assert not traps_of(machine_with(dmar=lost))


@pytest.mark.parametrize(("name", "options"), [("q35-6g", {}), ("q35-6g-intremap", {"INTERRUPT_REMAPPING": False})])
def test_without_remapping_the_window_is_the_devices_own(name: str, options: dict) -> None:
    with Machine.load(name) as machine:
        machine.boot(Config(PROFILE="mended", **options))
        assert trap_at(machine.exits.traps, BASE) is None


def test_it_is_found_by_the_madt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware, "IOAPIC_ADDRESS", BASE + 0x4000)
    with Machine.load("q35-6g-intremap") as machine:
        machine.boot(Config(PROFILE="mended"))
        assert trap_at(machine.exits.traps, BASE) is None and trap_at(machine.exits.traps, BASE + 0x4000).device.pins == IOAPIC_PINS
