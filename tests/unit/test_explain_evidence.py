"""What an explanation rests on: words with their fields, places of entries, cuts of numbers; and requests that are only asked about."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_inspect_unit import CAP, CONTEXTS, NVME, ROOT, Setup, scattered
from test_vtd_interrupts import EDU, MSI, OTHER, SID, TABLE, Remapping, at, low

from hvcore import Config, Machine
from hvcore.errors import HvlabError
from hvcore.inspect.evidence import iova_cut, requester_cut
from hvcore.inspect.explain import explain
from hvcore.inspect.explain_interrupt import explain_interrupt
from hvcore.inspect.explanation import Explanation
from hvcore.spec import vtd
from hvcore.spec.vtd import FaultReason

LACKS = {FaultReason.ROOT_NOT_PRESENT, FaultReason.CONTEXT_NOT_PRESENT, FaultReason.READ_DENIED, FaultReason.WRITE_DENIED}
OFFENDS = {FaultReason.ROOT_RESERVED, FaultReason.CONTEXT_RESERVED, FaultReason.PAGE_RESERVED}


def large_page(word: int = 0x60_0083) -> Setup:
    """00:02.0 with a level-2 leaf at IOVA 2 MiB."""
    s = Setup()
    s.memory.write64(0x10000, 0x11003)
    s.memory.write64(0x11008, word)
    s.context(NVME, *vtd.context_entry(0x10000, 1, 7))
    return s.on()


def by_name(why: Explanation):
    return {s.what.partition(",")[0]: s for s in why.steps}


# --- cuts

@given(st.integers(0, (1 << 64) - 1), st.integers(2, 6))
def test_an_iova_is_cut_without_gap_or_overlap(iova, levels):
    fields = list(iova_cut(iova, levels).fields)
    assert sum(f.value << f.field.low for f in fields) == iova
    assert fields[0].field.high == 63 and fields[-1].field.low == 0
    assert all(a.field.low == b.field.high + 1 for a, b in pairwise(fields))
    for f in fields:
        if f.field.name.startswith("level"):
            assert f.value == vtd.level_index(iova, int(f.field.name[6:]))


def test_a_requester_id_is_cut_as_pci_writes_it():
    assert [(f.field.name, f.value) for f in requester_cut(0x05FB, "bus").fields] == [("bus", 5), ("device", 31), ("function", 3)]


# --- DMA

def test_places_and_words_of_a_walk_to_a_large_page():
    why = explain(large_page().memory, large_page().unit, NVME, 0x21_2345, "write", 39)
    steps = by_name(why)
    places = [(s.seen.place.table, s.seen.place.index, s.seen.place.size, s.seen.place.level, s.address) for s in why.steps if s.seen.place]
    assert places == [(ROOT, 0, 16, None, ROOT), (CONTEXTS, NVME, 16, None, CONTEXTS + 0x100), (0x10000, 0, 8, 3, 0x10000),
                      (0x11000, 1, 8, 2, 0x11008)]
    assert steps["root entry"].seen.cut.used == ("bus",) and steps["level 2"].seen.cut.used == ("level 2",)
    assert steps["host address"].text == "page 0x600000 + offset 0x12345 = 0x612345"
    assert steps["host address"].seen.cut.used == ("level 1", "offset")
    leaf = {f.field.name: (f.value, f.meaning) for f in steps["level 2"].seen.words[0].fields}
    assert leaf["ADDR"] == (0x600, "address 0x600000") and leaf["SP"][0] == 1 and leaf["W"][1] == "writing allowed"
    assert leaf["EMT"][1] is None
    assert [s.seen.section for s in why.steps] == ["10.4.5", "9.1", "9.3", "10.4.2", "9.8", "9.8", "3.13"]
    assert why.to_json()["steps"][4] | {"text": ""} == {
        "what": "level 3, entry 0", "address": 0x10000, "raw": [0x11003], "text": "", "ok": True, "section": "9.8", "table": 0x10000,
        "index": 0, "level": 3, "words": [{"name": "entry", "layout": "SECOND_LEVEL", "value": 0x11003, "offends": 0, "lacks": 0,
                                           "fields": {f.field.name: f.value for f in steps["level 3"].seen.words[0].fields}}]}


@pytest.mark.parametrize(("word", "access", "offends", "lacks"), [
    (0x60_1083, "read", 1 << 12, 0), (0x60_0082, "read", 0, 1), (0x60_0081, "write", 0, 2), (0, "write", 0, 2), (0x60_0083, "read", 0, 0)])
def test_what_speaks_against_the_request_is_told_by_bits(word, access, offends, lacks):
    s = large_page(word)
    entry = by_name(explain(s.memory, s.unit, NVME, 2 << 20, access, 39))["level 2"].seen.words[0]
    assert (entry.value, entry.offends, entry.lacks) == (word, offends, lacks)


@pytest.mark.parametrize(("at_", "word", "step", "expected"), [
    (ROOT, CONTEXTS, "root entry", [(0, 1), (0, 0)]), (ROOT, CONTEXTS | 0x11, "root entry", [(0x10, 0), (0, 0)]),
    (ROOT + 8, 1 << 63, "root entry", [(0, 0), (1 << 63, 0)]), (CONTEXTS + 0x100, 0x10000, "context entry", [(0, 1), (0, 0)]),
    (CONTEXTS + 0x108, 1 << 40 | 1, "context entry", [(0, 0), (1 << 40, 0)]),
    (CONTEXTS + 0x100, 1 << 45 | 0x10001, "context entry", [(1 << 45, 0), (0, 0)])])
def test_what_is_wrong_with_root_and_context_entries(at_, word, step, expected):
    s = large_page()
    s.memory.write64(at_, word)
    why = explain(s.memory, s.unit, NVME, 2 << 20, "read", 39)
    assert why.steps[-1].what.startswith(step)
    assert [(w.offends, w.lacks) for w in why.steps[-1].seen.words] == expected


def test_a_table_that_is_not_there_has_a_place_and_no_word():
    s = large_page()
    s.memory.write64(0x10000, 1 << 36 | 3)
    last = explain(s.memory, s.unit, NVME, 2 << 20, "read", 39).steps[-1]
    assert (last.address, last.seen.words, last.raw, last.ok) == ((1 << 36) + 8, (), (), False)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 50), st.booleans(), st.data())
def test_every_word_is_what_lies_in_memory_and_tells_the_reason(seed, wide, data):
    s = scattered(seed, wide)
    iova = data.draw(st.integers(0, 1 << 24) | st.integers(0, (1 << 50) - 1))
    why = explain(s.memory, s.unit, data.draw(st.sampled_from([NVME, 0x18, 0x100])), iova, data.draw(st.sampled_from(["read", "write"])),
                  s.width)
    for step in why.steps:
        for i, word in enumerate(step.seen.words if step.seen.place else ()):
            assert word.value == s.memory.read64(step.address + 8 * i)
        wrong = [w.offends or w.lacks for w in step.seen.words]
        assert not any(wrong) or not step.ok
    last = why.steps[-1].seen.words
    assert any(w.lacks for w in last) == (why.reason in LACKS)
    assert any(w.offends for w in last) == (why.reason in OFFENDS)


def test_protected_memory_shows_its_register():
    s = Setup(CAP | 1 << 5)
    s.unit.mmio_write(0x6C, 4, 6 << 20)
    s.unit.mmio_write(0x64, 4, 1 << 31)
    last = explain(s.memory, s.unit, NVME, 0x1000, "read").steps[-1]
    assert (last.seen.section, last.seen.words[0].name, last.raw[0] >> 31) == ("10.4.16", "PMEN", 1)


# --- interrupts

def test_words_of_an_interrupt_message():
    bench = Remapping()
    bench.put(4, low(flags=1 << 12))
    bench.put(5, low(), SID | OTHER)
    ways = {i: explain_interrupt(bench.memory, bench.unit, EDU, at(i), 0, 39).steps for i in (1, 2, 4, 5, 99)}
    assert [s.seen.section for s in ways[1]] == ["10.4.5", "5.1.2", "9.10", "9.10"]
    assert (ways[2][-1].address, ways[2][-1].seen.words[0].lacks) == (TABLE + 32, 1)
    assert [w.offends for w in ways[4][-1].seen.words] == [1 << 12, 0]
    assert (ways[5][-1].seen.words[0].name, ways[5][-1].seen.cut.value) == ("high", EDU)
    assert ways[99][-1].seen.words[0].layout.name == "IRTA"
    fields = {f.field.name: f.meaning for f in ways[5][-1].seen.words[0].fields}
    assert fields["SID"] == "0x0500: 05:00.0" and fields["SVT"] == "the requester of SID may use the entry"


@pytest.mark.parametrize(("address", "data", "words"), [
    (MSI, 0, [(0, 1 << 4), (0, 0)]), (at(1, True), 1 << 20, [(0, 0), (1 << 20, 0)]), (at(1), 1 << 20, [(0, 0), (0, 0)])])
def test_messages_that_are_malformed(address, data, words):
    bench = Remapping()
    message = explain_interrupt(bench.memory, bench.unit, EDU, address, data, 39).steps[1]
    assert [(w.offends, w.lacks) for w in message.seen.words] == words


# --- requests that are only asked about

@pytest.fixture(scope="module")
def run():
    with Machine.load("q35-6g") as machine:
        yield machine.boot(Config(VTD_TRANS=True))


def test_what_if_agrees_with_the_unit_and_leaves_no_trace(run):
    before = run.to_json(), len(run.dma)
    fault = run.faults[0]
    assert run.what_if(fault.source, fault.address, fault.access) == run.explain(fault)
    assert run.what_if(NVME, 0x100000).host == 0x100000
    assert run.what_if(NVME, 0x100000, "write").reason is None
    assert (run.to_json(), len(run.dma)) == before


@pytest.mark.parametrize(("source", "iova", "access"), [(NVME, -1, "read"), (NVME, 1 << 64, "read"), (NVME, 0, "x"), (1 << 16, 0, "read")])
def test_what_is_no_request_is_refused_in_a_sentence(run, source, iova, access):
    with pytest.raises(HvlabError, match="is no request"):
        run.what_if(source, iova, access)


def test_what_if_of_a_requester_without_a_unit(run):
    with pytest.raises(HvlabError, match="no remapping unit covers 00:02"):
        run.what_if(NVME, 0, segment=7)
