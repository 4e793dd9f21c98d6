"""Interrupt remapping shown: entries read from memory, messages, faults explained; held against the unit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_vtd_interrupts import BUS, CFI, EDU, EIME, IRE, MSI, OTHER, QIE, SID, TABLE, Remapping, at, entries, low
from vtd_bench import BASE, NOWHERE, QEMU_CAP, XEON_CAP

from hvcore import Config, Machine
from hvcore.inspect.explain import explain_fault
from hvcore.inspect.explain_interrupt import explain_interrupt
from hvcore.inspect.faults import read_faults
from hvcore.inspect.interrupts import read_interrupt_table, read_interrupts, read_messages
from hvcore.spec.dma import RemapFault
from hvcore.spec.interrupts import Interrupt


def read(bench: Remapping):
    return read_interrupts(bench.memory, bench.unit, 39)


def test_entries_are_read_from_memory():
    bench = Remapping()
    bench.put(3, 0x0000_AB00_00CD_0FBF, SID | 2 << 16 | EDU)
    first, second = read(bench)
    assert (first.index, first.vector, first.destination, first.source_check, first.problem) == (1, 0x66, 5, "anybody", None)
    assert (second.index, second.vector, second.destination, second.fpd) == (3, 0xCD, 0xAB, True)
    assert (second.mode, second.delivery, second.trigger) == ("logical, any of them", "init", "level")
    assert second.source_check == "00:03.0, function bits 2:1 ignored"
    bench.put(3, 0)
    assert [e.index for e in read(bench)] == [1]


def test_note_says_what_the_registers_say():
    assert read(Remapping()).note == ("Unit 0xfed90000: remapping on: 16 entries at 0x180000, 8-bit destinations; "
                                      "a message in compatibility format is blocked.")
    wide = read(Remapping(TABLE | 9 | EIME, QIE | IRE | CFI))
    assert "1024 entries at 0x180000, 32-bit destinations; a message in compatibility format is blocked" in wide.note
    assert "compatibility format passes" in read(Remapping(commands=QIE | IRE | CFI)).note
    assert "remapping off" in read(Remapping(commands=0)).note


def test_no_table_no_entries():
    bench = Remapping(commands=0)
    bench.unit.reset()
    assert len(read(bench)) == 0 and read_interrupt_table(bench.unit).base is None


def test_entries_beyond_the_table_and_unreadable_ones():
    bench = Remapping(TABLE | 0)
    bench.put(2, low())
    assert [e.index for e in read(bench)] == [1]
    lost = read(Remapping(NOWHERE | 9))
    assert len(lost) == 0 and f"unreadable from {NOWHERE:#x}, 4 pages" in lost.note


@pytest.mark.parametrize(("word", "high", "problem"), [
    (low(flags=1 << 12), 1 << 63, "bits that must be zero are set: low 0x1000, high 0x8000000000000000"),
    (low(flags=1 << 15), 0, "posted, which the unit does not do"), (low(flags=3 << 5), 0, "no APIC takes a reserved delivery mode"),
    (low(), BUS | 0x0501, "the bus range ends before it begins"), (low(), BUS | 0x0105, None)])
def test_problems(word, high, problem):
    bench = Remapping()
    bench.put(1, word, high)
    assert read(bench)[0].problem == problem


@pytest.mark.parametrize(("high", "words"), [
    (0x1234, "anybody"), (SID | OTHER, "05:00.0"), (SID | 1 << 16 | EDU, "00:03.0, function bit 2 ignored"),
    (SID | 3 << 16 | EDU, "00:03.0, any function"), (BUS | 0x02AF, "buses 02-af"), (3 << 18, "nobody: reserved check")])
def test_source_checks_in_words(high, words):
    bench = Remapping()
    bench.put(1, low(), high)
    assert read(bench)[0].source_check == words


def test_posted_entries_of_a_unit_that_posts():
    bench = Remapping(cap=XEON_CAP)
    bench.put(1, low(flags=1 << 15))
    assert read(bench)[0].problem == "posted, which is not modelled"
    why = explain_interrupt(bench.memory, bench.unit, EDU, at(1), 0)
    assert not why.recorded and why.verdict == "dropped here: the entry is posted, and posted interrupts are not modelled"


def test_messages_show_what_was_sent_and_what_arrived():
    bench = Remapping()
    sent = [bench.send(at(1), 7), bench.unit.interrupt(OTHER, at(1), 0)]
    rows = read_messages([i for i in sent if isinstance(i, Interrupt)])
    frame = rows.frame
    assert frame["source"].tolist() == ["00:03.0", "05:00.0"] and frame["index"].tolist() == [1, 1]
    assert frame["sent_address"].tolist() == [at(1)] * 2 and frame["sent_data"].tolist() == [7, 0]
    assert frame["vector"].tolist() == [0x66] * 2 and frame["destination"].tolist() == [5, 5]
    assert "0xfee00030" in str(rows) and "physical" in rows._repr_html_()


# Explanations.

@pytest.mark.parametrize(("index", "data", "reason", "text"), [
    (2, 0, 0x22, "P is clear"), (99, 0, 0x21, "has 16 entries"), (4, 0, 0x24, "low 0x1000, high 0x0"),
    (5, 0, 0x26, "the entry is for 05:00.0")])
def test_a_recorded_fault_is_explained(index, data, reason, text):
    bench = Remapping()
    bench.put(4, low(flags=1 << 12))
    bench.put(5, low(), SID | OTHER)
    bench.send(at(index), data)
    fault, = read_faults([bench.unit])
    why = explain_fault(bench.memory, {BASE: bench.unit}, fault, 39)
    assert (why.reason, why.source, why.recorded, fault.address) == (reason, EDU, True, index)
    assert [s.ok for s in why.steps] == [True] * (len(why.steps) - 1) + [False] and text in why.steps[-1].text
    assert why.verdict.startswith(f"blocked with reason {reason:#x}") and "interrupt message" in str(why)
    assert fault.linux_line == (f"DMAR: [INTR-REMAP] Request device [00:03.0] fault index {index:#x} "
                                f"[fault reason {reason:#04x}] {fault.text}")


@pytest.mark.parametrize(("address", "data", "reason"), [(MSI, 0, 0x25), (at(1, True), 1 << 20, 0x20)])
def test_faults_without_an_index_are_explained(address, data, reason):
    bench = Remapping()
    bench.send(address, data)
    fault, = read_faults([bench.unit])
    why = explain_fault(bench.memory, {BASE: bench.unit}, fault)
    assert (fault.reason, why.reason, why.host) == (reason, reason, None)


def test_a_message_that_gets_through_is_explained():
    bench = Remapping()
    why = explain_interrupt(bench.memory, bench.unit, EDU, at(1), 0)
    assert why.verdict == "gets through: vector 0x66 for APIC 0x5" and why.reason is None
    assert why.steps[2].address == TABLE + 16 and why.steps[2].raw == (low(), 0)
    assert why.to_json()["steps"][3]["text"] == "the entry is for anybody"
    assert "address" in [c.name for c in why.columns] and "gets through" in why._repr_html_()


@given(st.integers(0, 4), st.booleans(), st.booleans(), st.lists(entries(), min_size=2, max_size=8),
       st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.sampled_from([0, 1, 1 << 16]), st.sampled_from([EDU, OTHER, 0x100])),
                max_size=8))
def test_explanations_agree_with_the_unit(size, eime, cfi, table, messages):
    bench = Remapping(TABLE | size | (EIME if eime else 0), QIE | IRE | (CFI if cfi else 0), QEMU_CAP, ideal_caches=True)
    for index, entry in enumerate(table):
        bench.put(index, entry % (1 << 64), entry >> 64)
    for index, shv, data, source in [*messages, (1, False, 0, EDU)]:
        for address in (at(index, shv), MSI | index << 12):
            why = explain_interrupt(bench.memory, bench.unit, source, address, data, 39)
            result = bench.send(address, data, source)
            expected = (result.reason, result.recorded) if isinstance(result, RemapFault) else (None, False)
            assert (why.reason, why.recorded) == expected
            bench.clear()
    assert {e.index for e in read(bench)} == {i for i, e in enumerate(table) if e & 1 and i < 2 << size}


# A machine.

def test_a_run_shows_its_interrupts():
    with Machine.load("nvme-desktop-16g") as machine:
        run = machine.boot(Config(VTD_TRANS=False))
        memory, unit = machine.pc.memory, machine.pc.units[-1]
        source = next(f.source for f in machine.pc.topology.covered(len(machine.pc.units) - 1))
        memory.write(TABLE, low().to_bytes(16, "little"))
        for offset, width, value in ((0xB8, 8, TABLE), (0x18, 4, 1 << 24), (0x18, 4, 1 << 25)):
            unit.mmio_write(offset, width, value)
        before = len(run.messages)
        device = machine.pc.fabric.port(source)
        assert device.write(at(0), bytes(4)).ok and not device.write(at(1), bytes(4)).ok
        entry, = run.interrupts
        assert (entry.unit, entry.index, entry.vector) == (unit.base, 0, 0x66) and "remapping on: 2 entries" in run.interrupts.note
        assert run.messages[before].interrupt.message == (0xFEE0_5000, 0x4066)
        assert machine.pc.messages[-1] == (source, 0xFEE0_5000, 0x4066)
        fault, = run.faults
        assert run.explain(fault).reason == fault.reason == 0x22
        machine.boot(Config(VTD_TRANS=False))
        assert len(run.interrupts) == 1 and len(run.messages) == before + 1, "kept after the reboot"
