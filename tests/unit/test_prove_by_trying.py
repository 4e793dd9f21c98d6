"""Proofs: every claim against brute force over whole address spaces."""

from collections.abc import Iterator
from random import Random
from unittest.mock import patch

import numpy as np
import test_vtd_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from inspecttables import Plain
from proof_bench import CPU_READS, CPU_TABLES_R, CPU_TABLES_W, CPU_WRITES, MIB, PAGE, READS, WRITES, proof_of
from test_vtd_batch import POOL, SOURCES, any_capabilities, any_scene
from vtd_bench import NVME, ROOT, Bench

from hvcore.inspect.proof import Claim
from hvcore.inspect.prove import Subject, read_proof
from hvcore.inspect.walk import walk
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.machine.vtd.caches import ContextCache, Iotlb
from hvcore.spec.dma import AddressType, Direction, DmaRequest
from hvcore.spec.paging import NESTED
from hvcore.spec.vtd import CAP

Reached = dict[tuple[int, str], set[tuple[int, int]]]
"""(host-physical page, access) -> the (requester, IOVA page) that reach it."""

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
