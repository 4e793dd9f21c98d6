"""Proofs: every claim against brute force over whole address spaces, and against machines with holes that are planted one by one."""

import time
from collections.abc import Iterator
from random import Random
from unittest.mock import patch

import numpy as np
import pytest
import test_vtd_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from inspecttables import Plain
from test_vtd_batch import POOL, SOURCES, any_capabilities, any_scene
from vtd_bench import NVME, QEMU_CAP, QEMU_ECAP, ROOT, TABLE1, Bench

from hvcore import Config, Machine, inspect
from hvcore.inspect.explanation import Explanation
from hvcore.inspect.proof import Claim, Counterexample, Proof
from hvcore.inspect.prove import Subject, read_proof
from hvcore.inspect.walk import Walk, walk
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.machine.vtd.caches import ContextCache, Iotlb
from hvcore.spec.dma import AddressType, Direction, DmaRequest
from hvcore.spec.interrupts import IRTE_LOW
from hvcore.spec.paging import NESTED
from hvcore.spec.vtd import CAP
from hvcore.vmm.layout import Part

PAGE = 4096
EDU = 0x0018
MIB = 1 << 20
WRITES, READS, TABLES_WRITTEN, TABLES_READ, LANDS, MESSAGES, FORGES = range(7)
CPU_WRITES, CPU_READS, CPU_TABLES_W, CPU_TABLES_R, CPU_REGISTERS = range(7, 12)
Reached = dict[tuple[int, str], set[tuple[int, int]]]
"""(host-physical page, access) -> the (requester, IOVA page) that reach it."""


def proof_of(bench: Bench, region: tuple[int, int], **more: object) -> Proof:
    return read_proof(Subject(bench.memory, [bench.unit], region, host_address_width=bench.unit.walker.haw, **more))


# --- devices, by brute force

def narrow(r: Random) -> tuple[int, int, int]:
    """Capabilities of a unit whose whole IOVA space can be tried page by page."""
    cap, ecap, haw = any_capabilities(r)
    return CAP["MGAW"].put(cap, r.choice((20, 21, 22, 23))), ecap, haw


def states_of_caches(unit: RemappingUnit, region: tuple[int, int]) -> Iterator[None]:
    """Every state that may open the region: contexts dropped or not, all translations, none, or one left of those that lead there."""
    contexts, entries = dict(unit._contexts.entries), unit._iotlb.entries()
    leading = [e for e in entries if region[0] - (e.end - e.start) < (e.mapping.base or 0) < region[1]]
    try:
        for kept in (contexts, {}) if contexts else ({},):
            for alone in (entries, (), *((e,) for e in leading)):
                unit._contexts, unit._iotlb = ContextCache(), Iotlb()
                unit._contexts.entries = dict(kept)
                for e in alone:
                    unit._iotlb.insert(e.did, e.start, e.mapping)
                yield
    finally:
        unit._contexts, unit._iotlb = ContextCache(), Iotlb()
        unit._contexts.entries = contexts
        for e in entries:
            unit._iotlb.insert(e.did, e.start, e.mapping)


def tried(bench: Bench, region: tuple[int, int]) -> Reached:
    """What devices reach of a region: every page of every IOVA space, read and written, in every state of the caches."""
    unit, reached = bench.unit, {}
    iovas = np.arange(0, 1 << CAP.get(unit.description.cap, "MGAW") + 1, PAGE, dtype=np.uint64)
    sources = listened_to(unit)
    if not unit.register("GSTS") >> 31:
        iovas = np.arange(*region, PAGE, dtype=np.uint64)
    for _ in states_of_caches(unit, region):
        for access in ("read", "write"):
            found = unit.translate(sources[:, None], iovas[None, :], access)
            hit = found.ok & (found.address >= region[0]) & (found.address < region[1])
            for i, j in zip(*np.nonzero(hit), strict=True):
                reached.setdefault((int(found.address[i, j]) & -PAGE, access), set()).add((int(sources[i]), int(iovas[j])))
        add_vouched_for(unit, sources.tolist(), region, reached)
    return reached


def listened_to(unit: RemappingUnit) -> np.ndarray:
    """Of all requester ids those that have a context, in the tables or in the cache."""
    refused = unit.translate(np.arange(1 << 16), 0, "read").reason
    contexts = np.flatnonzero(~np.isin(refused, (1, 2, 3, 8, 9, 0xA, 0xB)))[:1 if not unit.register("GSTS") >> 31 else None]
    return np.union1d(SOURCES, contexts)


def add_vouched_for(unit: RemappingUnit, sources: list[int], region: tuple[int, int], reached: Reached) -> None:
    """What requests reach that say that their address is translated already; the context cache is left as it was."""
    contexts = dict(unit._contexts.entries)
    for source in sources:
        for page in range(*region, PAGE):
            for access in Direction:
                got = unit.remap(DmaRequest(source, page, 1, access, address_type=AddressType.TRANSLATED))
                if isinstance(got, int):
                    reached.setdefault((got & -PAGE, access.value), set()).add((source, page))
    unit._contexts.entries = contexts


def check(claim: Claim, reached: Reached, access: str) -> None:
    """A claim says what was found by trying, page for page, and its counterexample is one of what was tried."""
    pages = {page for page, how in reached if how == access}
    assert claim.pages == len(pages), claim
    assert claim.holds == (not pages), claim
    if not pages:
        assert claim.counterexample is None
        return
    told = claim.counterexample
    assert (told.source, told.address & -PAGE) in reached[told.host, access], told
    assert access[0] in told.rights
    assert told.walk.host == told.host + told.address % PAGE and told.walk.reason is None


@settings(max_examples=20)
@given(st.integers(0, 1 << 48))
def test_claims_about_devices_are_what_trying_every_page_finds(seed):
    """Of tables and caches of noise, most of which were changed after the caches were filled; the region is among the tables."""
    r = Random(seed)
    with patch.object(test_vtd_batch, "any_capabilities", narrow):
        bench = any_scene(r)
    first = r.choice(POOL)
    region = first, first + PAGE * r.choice((1, 1, 2, 4))
    proof = proof_of(bench, region, requesters=lambda _: r.sample(SOURCES, 2))
    reached = tried(bench, region)
    check(proof.claims[WRITES], reached, "write")
    check(proof.claims[READS], reached, "read")


@settings(max_examples=40)
@given(st.integers(0, 1 << 48))
def test_every_requester_id_is_asked_for(seed):
    """One context of any function of any bus leads to the region: that function is named, known or not."""
    r = Random(seed)
    source = r.randrange(0x100, 1 << 16)
    bench = Bench()
    contexts = 0x20_0000 + (source >> 8) * PAGE
    bench.memory.write64(ROOT + 16 * (source >> 8), contexts | 1)
    bench.memory.write64(contexts + 16 * (source & 0xFF), 0x30_0000 | 1)
    bench.memory.write64(contexts + 16 * (source & 0xFF) + 8, 9 << 8 | 1)
    for table, index, entry in ((0x30_0000, 3, 0x30_1003), (0x30_1000, 2, 0x30_2003), (0x30_2000, 1, 0x40_5001)):
        bench.memory.write64(table + 8 * index, entry)
    proof = proof_of(bench, (0x40_0000, 0x41_0000), requesters=lambda _: [NVME])
    iova = 3 << 30 | 2 << 21 | 1 << 12
    written = proof.claims[WRITES].counterexample
    assert (written.source, written.how) == (NVME, "second-level tables")
    bench.memory.write64(0x10_3008, 0)       # the bench's own 2 MiB page, which reaches the region, too
    proof = proof_of(bench, (0x40_0000, 0x41_0000), requesters=lambda _: [NVME])
    assert proof.claims[WRITES].holds
    told = proof.claims[READS].counterexample
    assert (told.source, told.address, told.host, told.rights) == (source, iova, 0x40_5000, "r")
    assert [step.raw[0] for step in told.walk.steps[-4:-1]] == [0x30_1003, 0x30_2003, 0x40_5001]


# --- devices, one hole at a time

REGION = (0x9000, 0xB000)
"""Of the bench's pages 0x9000 (read and write, at IOVA 0x5000) and 0xA000 (read, at IOVA 0x6000)."""


def closed() -> Bench:
    """A unit with pass-through and interrupt remapping, whose tables let nobody to REGION; nothing is remembered."""
    bench = Bench(QEMU_CAP | 1 << 5, QEMU_ECAP | 1 << 3)
    bench.memory.write64(TABLE1 + 8 * 5, 0)
    bench.memory.write64(TABLE1 + 8 * 6, 0)
    return bench


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


# --- interrupts

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


# --- the guest's processor, by brute force

@settings(max_examples=100)
@given(st.integers(0, 1 << 48))
def test_claims_about_the_processor_are_what_a_plain_reading_finds(seed):
    """Nested tables of noise, read entry by entry."""
    r = Random(seed)
    memory = Memory([(0, 2 * MIB)])
    tables = [0x10_0000 + PAGE * i for i in range(6)]
    for table in tables:
        for _ in range(4):
            entry = r.choice(tables * 3 + [0, 0x18_0000, 0x18_1000, 0x18_3000]) | r.choice((0, 1, 3, 5, 7, 7, 7, 7))
            entry |= r.choice((0, 0, 0, 0, 0x80))
            memory.write64(table + 8 * r.choice((0, 1, 255, 511)), entry)
    start = r.choice((0x18_0000, tables[0], tables[3]))
    region = start, start + PAGE * r.choice((1, 2, 4))
    blank = start if r.random() < 0.5 and not any(memory.read(start, PAGE)) else None
    plain = Plain(memory, NESTED)
    plain.read(tables[0], 4, 0, "rwx")
    proof = read_proof(Subject(memory, [], region, blank, nested_root=tables[0]))
    for claim, right, pages in ((CPU_WRITES, "w", range(*region, PAGE)), (CPU_TABLES_W, "w", plain.pages), (CPU_TABLES_R, "r", plain.pages),
                                (CPU_READS, "r", [p for p in range(*region, PAGE) if p != blank])):
        reached = {p for p in pages for a, b, perm, offset in plain.found if right in perm and a + offset < p + PAGE and p < b + offset}
        assert (proof.claims[claim].pages, proof.claims[claim].holds) == (len(reached), not reached)
        if told := proof.claims[claim].counterexample:
            assert told.host in reached
            assert walk(memory, NESTED, tables[0], 4, told.address) == told.walk
            assert told.walk.host & -PAGE == told.host and right in told.walk.rights


def test_a_blank_page_that_is_not_blank_counts():
    memory = Memory([(0, MIB)])
    for table, entry in ((0x1_0000, 0x1_1007), (0x1_1000, 0x1_2007), (0x1_2000, 0x1_3007), (0x1_3000, 0x2_0005)):
        memory.write64(table, entry)
    subject = Subject(memory, [], (0x2_0000, 0x2_2000), 0x2_0000, nested_root=0x1_0000)
    assert read_proof(subject).claims[CPU_READS].holds
    memory.write64(0x2_0FF8, 1)
    assert read_proof(subject).claims[CPU_READS].counterexample.host == 0x2_0000


# --- whole machines

@pytest.fixture(scope="module")
def machine():
    with Machine.load("q35-6g") as m:
        yield m


def verdicts(proof: Proof) -> set[int]:
    """The numbers of the claims that do not hold."""
    return {i for i, c in enumerate(proof.claims) if not c.holds}


def test_a_machine_that_does_not_translate_fails(machine):
    run = machine.boot(Config(VTD_TRANS=False))
    proof = inspect.prove(run)
    assert verdicts(proof) >= {WRITES, READS, TABLES_WRITTEN, TABLES_READ} and not proof.holds
    told = proof.claims[WRITES].counterexample
    assert (told.host, told.lies, told.unit) == (run.vmm.base, "the core's text", run.units[0].base)
    assert proof.claims[WRITES].pages == run.vmm.size // PAGE
    assert isinstance(told.walk, Explanation)
    port = machine.pc.fabric.port(told.source)
    assert port.read(told.address, 16).data == machine.pc.memory.read(run.vmm.base, 16)


def test_the_mended_core_is_out_of_reach(machine):
    run = machine.boot(Config(PROFILE="mended"))
    proof = run.proof
    assert not verdicts(proof) - {FORGES}      # this machine's unit remaps no interrupts
    assert proof.claim("registers of a unit that translates").holds
    assert "plugged in" in proof.note          # its DMAR names each function, and covers no other


def test_every_claim_holds_where_the_unit_remaps_interrupts_too():
    """And each fails by itself when what it rests on is taken away."""
    with Machine.load("q35-6g-intremap") as m:
        run = m.boot(Config(PROFILE="mended"))
        assert run.proof.holds, str(run.proof)
        m.pc.units[0].mmio_write(0x18, 4, 1 << 31)
        assert verdicts(run.proof) == {FORGES}
        assert passes_on(m, run.proof.claims[FORGES].counterexample)
        m.pc.units[0].mmio_write(0x18, 4, 0)
        assert verdicts(run.proof) >= {WRITES, READS, FORGES}


def passes_on(machine: Machine, told: Counterexample) -> bool:
    """Whether a device's message gets through to the processors."""
    before = len(machine.pc.messages)
    assert machine.pc.fabric.port(told.source).write(told.address, b"\x31\0\0\0").ok
    return len(machine.pc.messages) == before + 1


def test_registers_that_the_guest_reaches_are_a_hole_for_they_switch_translation_off(machine):
    run = machine.boot(Config(PROFILE="mended", HIDE_VTD_REGS=False))
    told = run.proof.claims[CPU_REGISTERS].counterexample
    assert told.host == run.units[0].base and isinstance(told.walk, Walk) and "w" in told.rights
    assert WRITES not in verdicts(run.proof)
    run.guest.command(f"poke {run.units[0].base + 0x18:#x} 0x0")
    assert not run.units[0].translating
    assert WRITES in verdicts(run.proof)


def test_one_leaf_that_grants_a_page_of_the_core_is_found(machine):
    run = machine.boot(Config(PROFILE="mended"))
    domain, memory = run.domains[0], machine.pc.memory
    wanted = run.vmm.base + Part.SECRET
    steps = run.what_if(0x0018, wanted).steps
    memory.write64(next(s.address for s in steps if s.what.startswith("level 1")), wanted | 1)
    proof = run.proof
    assert verdicts(proof) - {FORGES} == {READS}
    told = proof.claims[READS].counterexample
    assert (told.host, told.address, told.rights, told.lies) == (wanted, wanted, "r", "the core's secret")
    assert proof.claims[READS].pages == 1
    assert told.source in domain.devices and told.walk.steps[-2].raw == (wanted | 1,)


def test_one_nested_entry_that_grants_a_table_is_found(machine):
    run = machine.boot(Config(PROFILE="mended"))
    memory, base, root = machine.pc.memory, run.vmm.base, run.domains[0].root
    hidden = walk(memory, NESTED, machine.core.nested_root(), 4, base + 0x5000)
    memory.write64(hidden.steps[-1].entry, root | 7)
    proof = run.proof
    assert verdicts(proof) - {FORGES} == {CPU_WRITES, CPU_READS, CPU_TABLES_W, CPU_TABLES_R}
    told = proof.claims[CPU_TABLES_W].counterexample
    assert (told.host, told.walk.steps[-1].raw) == (root, root | 7)
    assert told.address % (2 * MIB) == (base + 0x5000) % (2 * MIB)      # one table serves every 2 MiB of the region
    assert told.lies.startswith("second-level tables")


def test_a_second_guest_is_held_to_the_same_claims(machine):
    """Its own nested tables are walked, and are tables that nobody may reach."""
    run = machine.boot(Config(PROFILE="mended", TINYVISOR=True))
    memory, second = machine.pc.memory, machine.core.tiny.guest
    assert not verdicts(run.proof) - {FORGES}
    root = memory.read64(second.base + Part.VMCB + 0xB0)
    leaf = walk(memory, NESTED, root, 4, 0).steps[-1]
    assert leaf.level == 2
    before, _ = memory.read64(leaf.entry), memory.write64(leaf.entry, run.vmm.base | 0x87)
    claim = run.proof.claims[CPU_WRITES]
    assert (claim.counterexample.who, claim.counterexample.host, claim.counterexample.address) == ("guest 2's processor", run.vmm.base, 0)
    assert claim.pages == 512 and not run.proof.claims[CPU_READS].holds
    memory.write64(leaf.entry, before)
    granted = next(s.address for s in run.what_if(run.domains[0].devices[0], root).steps if s.what.startswith("level 1"))
    memory.write64(granted, root | 2)
    told = run.proof.claims[TABLES_WRITTEN].counterexample
    assert (told.host, told.lies) == (root, "guest 2's nested tables")


def test_what_the_core_shares_with_its_own_drive_is_the_drive_s_alone(machine):
    run = machine.boot(Config(PROFILE="mended", NVME_DRIVER=True))
    memory, (start, end), drive = machine.pc.memory, machine.core.storage.shadow, machine.core.storage.source
    assert not verdicts(run.proof) - {FORGES}
    assert f"{(end - start) // PAGE} pages" in run.proof.claims[WRITES].why
    assert machine.pc.fabric.port(drive).read(start, 8).ok
    leaf = next(s.address for s in run.what_if(EDU, start).steps if s.what.startswith("level 1"))
    memory.write64(leaf, start | 3)                     # domain 0 reaches a page of the drive's
    claim = run.proof.claims[WRITES]
    assert (claim.pages, claim.counterexample.host) == (1, start) and claim.counterexample.source != drive
    memory.write64(leaf, 0)
    leaf = next(s.address for s in run.what_if(drive, start).steps if s.what.startswith("level 1"))
    memory.write64(leaf, run.vmm.base + Part.SECRET | 3)      # the drive reaches more than its own
    claim = run.proof.claims[READS]
    assert (claim.pages, claim.counterexample.source, claim.counterexample.lies) == (1, drive, "the core's secret")


def test_a_machine_before_its_core_has_memory():
    with Machine.load("q35-2g") as m:
        m.boot(Config(VTD_TRANS=True, VMM_SIZE_MIB=3072))
        proof = m.run.proof
        assert m.run.vmm.base is None
        assert not proof.holds and "nothing to protect" in proof.claims[0].why


def test_a_large_machine_is_proved_fast():
    """64 GiB in 4 KiB pages."""
    with Machine.load("q35-64g") as m:
        run = m.boot(Config(IOMMU_MAP_END="ram", VMM_SIZE_MIB=256))
        assert run.domains[0].leaves["4K"] > 60 << 18
        since = time.perf_counter()
        proof = run.proof
        assert time.perf_counter() - since < 2
        assert WRITES not in verdicts(proof)


def test_how_it_is_shown(machine):
    run = machine.boot(Config(VTD_TRANS=False))
    proof = run.proof
    assert str(proof).splitlines()[0].startswith("Proof: 6 of 13 claims do not hold")
    assert "No device can write the core&#x27;s memory." in proof._repr_html_()
    assert proof._repr_html_().count("<details>") == len(proof.counterexamples) == 6
    assert list(proof.frame["holds"]) == [c.holds for c in proof.claims]
    told = proof.to_json()
    assert told["claims"][0]["counterexample"]["host"] == run.vmm.base
    assert told["claims"][0]["counterexample"]["walk"]["steps"]
    machine.boot(Config(PROFILE="mended"))
    assert run.proof == proof                  # a run that is over keeps its proof
