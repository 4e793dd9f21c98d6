"""The history of translation and the trace of DMA: what happened, in its order, and kept when the machine goes on."""

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hvcore import Config, Machine
from hvcore.machine.description import UnitDescription
from hvcore.machine.pc import Pc
from hvcore.phases import DOING
from hvcore.sources import load
from hvcore.spec import vtd

VMM = 0x77C00000
UNIT = 0xFED90000


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine.load("q35-6g") as m:
        yield m


@pytest.fixture
def pc() -> Iterator[Pc]:
    """A PC whose only unit has protected low memory and interrupt remapping."""
    description = load("q35-2g")
    unit, = description.units
    cap = unit.cap | vtd.CAP["PLMR"].mask
    pc = Pc(replace(description, units=(UnitDescription(unit.base, cap, unit.ecap | vtd.ECAP["IR"].mask | vtd.ECAP["QI"].mask),)))
    yield pc
    pc.close()


def test_a_boot_in_its_order(machine: Machine) -> None:
    run = machine.boot(Config(VTD_TRANS=True))
    history = run.history
    assert [e.phase for e in history if e.what == "phase"] == list(DOING)
    whats = [(e.what, e.unit) for e in history if e.what != "phase"]
    assert whats == [("power-on", None), ("SRTP", UNIT), ("TE on", UNIT), ("guest ready", None)]
    on, = (e for e in history if e.what == "SRTP")
    assert on.address == machine.pc.units[0].register("RTADDR")
    phases = {e.phase: e.order for e in history if e.phase}
    assert phases["iommu on"] < on.order < phases["guest"]


def test_a_root_table_without_entries_is_noted_where_it_is_latched_and_where_translation_begins(machine: Machine) -> None:
    """The core latches its table before it fills it; with early protection translation begins with one that stays empty."""
    def told(**options: str | bool) -> list[tuple[str, bool]]:
        return [(e.what, e.empty) for e in machine.boot(Config(**options)).history if e.unit]

    assert told() == [("SRTP", True), ("TE on", False)]
    assert told(EARLY_PROTECTION=True) == [("SRTP", True), ("TE on", True), ("SRTP", True)]


def test_times_rise_and_say_which_are_nominal(machine: Machine) -> None:
    history = machine.boot(Config(VTD_TRANS=True)).history
    assert [e.order for e in history] == list(range(len(history)))
    times = [e.time for e in history]
    assert times == sorted(times) and len(set(times)) == len(times)
    assert [e.nominal for e in history] == [e.what != "guest ready" for e in history]
    assert list(machine.reboot().history) == list(history)


def test_a_guest_that_switches_translation_off_and_on(machine: Machine) -> None:
    """By GCMD, which BitVisor leaves to it."""
    run = machine.boot(Config(VTD_TRANS=True))
    seen = len(run.history)
    run.guest.command(f"poke {UNIT + 0x18:#x} 0")
    run.guest.command(f"poke {UNIT + 0x18:#x} {vtd.GCMD['TE'].mask:#x}")
    off, on = run.history[seen:]
    assert (off.what, on.what) == ("TE off", "TE on")
    assert not off.nominal and off.time < on.time
    first = run.history
    again = machine.reboot(VTD_TRANS=False)
    assert list(run.history) == list(first)
    assert [e.what for e in again.history if e.unit] == []


def test_protected_memory_and_interrupt_remapping(pc: Pc) -> None:
    base = pc.units[0].base
    for name, value, width in (("PLMBASE", 0x1000000, 4), ("PLMLIMIT", 0x11FFFFF, 4), ("PMEN", 1 << 31, 4), ("PLMLIMIT", 0x13FFFFF, 4),
                               ("PMEN", 1 << 31, 4), ("PMEN", 0, 4), ("IRTA", 0x5000007, 8), ("GCMD", vtd.GCMD["SIRTP"].mask, 4),
                               ("GCMD", vtd.GCMD["IRE"].mask, 4), ("GCMD", 0, 4)):
        offset = next(r.offset for r in pc.units[0].registers if r.name == name)
        pc.bus.write(base + offset, width, value)
    events = [(h.what, h.address, h.ranges) for h in pc.journal.happenings if h.unit == base]
    assert events == [("PMEN on", None, ((0x1000000, 0x1200000),)), ("PMEN on", None, ((0x1000000, 0x1400000),)), ("PMEN off", None, ()),
                      ("SIRTP", 0x5000007, ()), ("IRE on", None, ()), ("IRE off", None, ())]


def test_the_oldest_events_go_and_are_counted(machine: Machine) -> None:
    run = machine.boot(Config(VTD_TRANS=True))
    for i in range(5000):
        machine.pc.bus.write(UNIT + 0x18, 4, vtd.GCMD["TE"].mask * (i % 2))
    history = run.history
    assert len(history) == 4096 and history[-1].order == history[0].order + 4095
    assert history.note == f"{history[0].order} older events are not kept."


# --- DMA

def test_requests_and_what_became_of_them(machine: Machine) -> None:
    run = machine.boot(Config(VTD_TRANS=True, IOMMU_MAP_END="ram"))
    port = machine.pc.fabric.port(0x0010)
    before = machine.pc.fabric.issued
    port.read(0x100000, 64)
    port.write(VMM + 0x8, b"12345678")
    port.write(0xFEE00000, struct.pack("<I", 0x41))
    port.write(0x9F_FFFC, b"x" * 16)
    new = run.dma[len(run.dma) - machine.pc.fabric.issued + before:]
    assert [(d.access, d.iova, d.length, d.result, d.landing, d.reason) for d in new] == [
        ("read", 0x100000, 64, "ok", 0x100000, None), ("write", VMM + 8, 8, "blocked", None, 5),
        ("write", 0xFEE00000, 4, "message", None, None), ("write", 0x9FFFFC, 16, "ok", 0x9FFFFC, None)]
    assert {d.source for d in new} == {0x0010} and all(d.time == machine.pc.clock.now for d in new)
    assert machine.pc.memory.read(0x9FFFFC, 16) == b"x" * 16


def test_an_address_without_memory_is_absent(machine: Machine) -> None:
    run = machine.boot(Config(VTD_TRANS=False))
    machine.pc.fabric.port(0x0010).read(0xC0000000, 4)
    last = run.dma[-1]
    assert (last.result, last.landing, last.reason) == ("absent", 0xC0000000, None)


def test_the_trace_is_bounded_counted_and_kept(machine: Machine) -> None:
    run = machine.boot(Config(VTD_TRANS=False))
    issued = machine.pc.fabric.issued
    assert len(run.dma) == issued > 0 and run.dma.note == ""
    assert {d.source for d in run.dma} == {0x0010} and [d.time for d in run.dma] == sorted(d.time for d in run.dma)
    port = machine.pc.fabric.port(0x0010)
    for i in range(5000):
        port.read(0x100000 + i, 1)
    trace = run.dma
    assert (len(trace), trace[-1].iova) == (4096, 0x100000 + 4999)
    assert trace.note == f"{5000 + issued - 4096:,} older requests are not kept."
    again = machine.reboot()
    assert list(run.dma) == list(trace) and len(again.dma) == issued
    assert len(run.dma.frame) == 4096
