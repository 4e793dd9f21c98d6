"""Proofs: a unit with holes that are planted one by one."""

import pytest
from proof_bench import FORGES, MESSAGES, PAGE, READS, REGION, TABLES_READ, TABLES_WRITTEN, WRITES, closed, proof_of
from vtd_bench import NVME, QEMU_CAP, QEMU_ECAP, ROOT, TABLE1, Bench

from hvcore.inspect.proof import Counterexample
from hvcore.spec.interrupts import IRTE_LOW


def test_a_closed_unit_holds():
    proof = proof_of(closed(), REGION)
    assert [c.holds for c in proof.claims[:2]] == [True, True]
    assert proof.claims[WRITES].counterexample is None
    assert "65,536 requester ids" in proof.claims[WRITES].why


def test_read_and_write_are_told_apart():
    proof = proof_of(Bench(), (0xA000, 0xC000))
    written, read = (proof.claims[i].counterexample for i in (WRITES, READS))
    assert (written.host, written.address, written.rights) == (0xB000, 0x7000, "w")
    assert (read.host, read.address, read.rights) == (0xA000, 0x6000, "r")


def test_a_unit_that_does_not_translate_lets_everything_through():
    bench = Bench(on=False)
    told = proof_of(bench, REGION).claims[WRITES]
    assert (told.pages, told.counterexample.host, told.counterexample.address) == (2, 0x9000, 0x9000)
    assert told.counterexample.how == "translation that is off"
    assert "TES clear" in told.counterexample.walk.steps[0].text


@pytest.mark.parametrize("on", [False, True])
def test_protected_memory_stops_what_is_not_translated(on):
    """Where the unit is off, and where a context passes addresses through."""
    bench = closed()
    bench.context(NVME, 2 << 2 | 1, 7 << 8 | 1)
    bench.write(0x68, 4, 0)
    bench.write(0x6C, 4, 0x3F_FFFF)
    if not on:
        bench.write(0x18, 4, 0)
    told = proof_of(bench, REGION, requesters=lambda _: [NVME]).claims[READS]
    assert told.counterexample.how == ("pass-through" if on else "translation that is off")
    assert told.counterexample.source == NVME
    bench.write(0x64, 4, 1 << 31)
    assert proof_of(bench, REGION).claims[READS].holds
    assert not proof_of(bench, (0x40_0000, 0x40_1000)).claims[READS].holds


def test_what_the_iotlb_still_holds_counts():
    bench = Bench()
    assert bench.ask(0x5000, "write") == 0x9000
    bench.memory.write64(TABLE1 + 8 * 5, 0)
    told = proof_of(bench, (0x9000, 0xA000)).claims[WRITES].counterexample
    assert (told.how, told.source, told.address, told.host, told.rights) == ("an entry of the IOTLB", NVME, 0x5000, 0x9000, "rw")
    assert "whatever the tables say by now" in told.walk.steps[-1].text
    bench.invalidate_iotlb(1)
    assert proof_of(bench, (0x9000, 0xA000)).claims[WRITES].holds


def test_what_the_context_cache_still_holds_counts():
    bench = closed()
    bench.context(0x18, 2 << 2 | 1, 7 << 8 | 1)
    assert bench.ask(0x9000, source=0x18) == 0x9000
    bench.context(0x18, 0, 0)
    told = proof_of(bench, REGION).claims[WRITES].counterexample
    assert (told.how, told.source, told.host) == ("an entry of the context cache", 0x18, 0x9000)
    bench.invalidate_contexts(1)
    assert proof_of(bench, REGION).claims[WRITES].holds


def test_a_context_that_allows_ats_believes_its_device():
    bench = Bench(QEMU_CAP, QEMU_ECAP | 1 << 2)
    bench.context(NVME, 0x10_2000 | 1 << 2 | 1, 7 << 8 | 1)
    told = proof_of(bench, (0x123_4000, 0x123_5000)).claims[WRITES].counterexample
    assert (told.source, told.address, told.host) == (NVME, 0x123_4000, 0x123_4000)
    assert "ATS" in told.how


def test_a_function_that_no_unit_sees():
    proof = proof_of(closed(), REGION, uncovered=[(0, 0x0108)])
    told = proof.claims[WRITES].counterexample
    assert (told.who, told.unit, told.source, told.address, told.walk) == ("01:01.0", None, 0x0108, 0x9000, None)
    assert proof.claims[FORGES].counterexample.source == 0x0108


def test_the_interrupt_range_leads_nowhere():
    """A leaf at an IOVA that is never translated opens nothing; the one before it does."""
    bench = closed()
    bench.memory.write64(0x10_2000 + 8 * 3, 0x30_0003)
    bench.memory.write64(0x30_0000 + 8 * 0x1F7, 0x30_1003)
    bench.memory.write64(0x30_1000, 0x9003)
    assert proof_of(bench, REGION).claims[WRITES].holds
    bench.memory.write64(0x30_0000 + 8 * 0x1F6, 0x30_1003)
    assert proof_of(bench, REGION).claims[WRITES].counterexample.address == 0xFEC0_0000


def test_tables_are_found_wherever_they_lie():
    """The root table, the context table, second-level tables and the invalidation queue, each by the one entry that reaches it."""
    bench = closed()
    bench.write(0x90, 8, 0x50_0000)
    bench.write(0x18, 4, 1 << 31 | 1 << 26)
    bench.memory.write64(0x10_3008, 0)
    assert proof_of(bench, (0, PAGE)).claims[TABLES_WRITTEN].holds
    names = {ROOT: "root table", 0x10_1000: "context tables", TABLE1: "second-level tables", 0x50_0000: "invalidation queue"}
    for page, name in names.items():
        bench.memory.write64(TABLE1 + 8 * 9, page | 2)
        claim = proof_of(bench, (0, PAGE)).claims[TABLES_WRITTEN]
        assert (claim.pages, claim.counterexample.host, claim.counterexample.address) == (1, page, 0x9000)
        assert claim.counterexample.lies.startswith(name)
        assert proof_of(bench, (0, PAGE)).claims[TABLES_READ].holds


def test_an_event_of_the_unit_itself_is_not_remapped():
    bench = closed()
    bench.write(0x40, 4, 0x9FFE)
    bench.write(0x38, 4, 0)
    claim = proof_of(bench, REGION).claims[MESSAGES]
    assert not claim.holds and claim.counterexample.host == 0x9000
    bench.write(0x38, 4, 1 << 31)
    assert proof_of(bench, REGION).claims[MESSAGES].holds


IRT = 0x60_0000


def remapping(*entries: tuple[int, int], compatible: bool = False) -> Bench:
    bench = closed()
    for i, (low, high) in enumerate(entries):
        bench.memory.write64(IRT + 16 * i, low)
        bench.memory.write64(IRT + 16 * i + 8, high)
    bench.write(0xB8, 8, IRT | 3)
    bench.write(0x18, 4, 1 << 31 | 1 << 24)
    bench.write(0x18, 4, 1 << 31 | 1 << 25)
    if compatible:
        bench.write(0x18, 4, 1 << 31 | 1 << 25 | 1 << 23)
    return bench


NAMED = 0x41 << 16 | 1, 1 << 18 | NVME
ANYBODY = 0x42 << 16 | 1, 0


def passes(bench: Bench, told: Counterexample) -> bool:
    """Whether the unit lets the message of a counterexample through."""
    return not hasattr(bench.unit.interrupt(told.source, told.address, 0), "reason")


@pytest.mark.parametrize(("bench", "how"), [
    (closed(), "interrupt remapping that is off"),
    (remapping(NAMED, compatible=True), "compatibility format"),
    (remapping(NAMED, NAMED, ANYBODY), "entry 2, which takes messages of anybody"),
])
def test_a_forged_interrupt(bench, how):
    claim = proof_of(bench, REGION, requesters=lambda _: [0x18]).claims[FORGES]
    assert not claim.holds and how in claim.counterexample.how
    assert claim.counterexample.source == 0x18
    assert passes(bench, claim.counterexample)
    assert "gets through" in claim.counterexample.walk.verdict


def test_entries_that_name_their_sender_hold():
    bench = remapping(NAMED, (ANYBODY[0] & ~1, 0), (ANYBODY[0] | IRTE_LOW["IM"].mask, 0), (ANYBODY[0], 3 << 18))
    assert proof_of(bench, REGION).claims[FORGES].holds


def test_a_remembered_entry_that_takes_anybody():
    bench = remapping(ANYBODY)
    assert passes(bench, Counterexample("", "", None, 0x18, 0xFEE0_0010, None, "", ""))
    bench.memory.write64(IRT, 0)
    claim = proof_of(bench, REGION).claims[FORGES]
    assert "cache" in claim.counterexample.how and passes(bench, claim.counterexample)
