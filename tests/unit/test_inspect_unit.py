"""Units, faults, domains and explanations: read from a remapping unit that works beside them."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inspecttables import identity

from hvcore.inspect import domains as domains_module
from hvcore.inspect.domains import decode, read_contexts, read_domains
from hvcore.inspect.explain import explain, explain_fault
from hvcore.inspect.faults import read_faults
from hvcore.inspect.units import read_registers, read_unit, read_units
from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.spec import vtd
from hvcore.spec.dma import Direction, DmaRequest, RemapFault

BASE, ROOT, CONTEXTS, TOP = 0xFED90000, 0x1000, 0x2000, 0x3000
CAP, ECAP = 0x00D2008C22260206, 0xF42
WIDE_CAP = 0x00D2008C22260206 & ~(0x1F << 8) & ~(0x3F << 16) | 0x6 << 8 | 47 << 16
"""The same with 3 and 4 levels and 48 bits."""
NVME = 0x10
SIZE = 16 << 20


class Setup:
    """A small memory and one unit over it."""

    def __init__(self, cap: int = CAP, ecap: int = ECAP, width: int = 39):
        self.memory = Memory([(0, SIZE)])
        self.width = width
        self.unit = RemappingUnit(UnitDescription(BASE, cap, ecap, include_all=True), self.memory, width, ideal_caches=True)

    def context(self, source: int, low: int, high: int) -> None:
        bus = source >> 8
        self.memory.write64(ROOT + 16 * bus, vtd.root_entry(CONTEXTS + 0x100000 * bus))
        entry = CONTEXTS + 0x100000 * bus + 16 * (source & 0xFF)
        self.memory.write64(entry, low)
        self.memory.write64(entry + 8, high)

    def on(self) -> "Setup":
        self.unit.mmio_write(0x20, 8, ROOT)
        self.unit.mmio_write(0x18, 4, vtd.GCMD["SRTP"].mask)
        self.unit.mmio_write(0x18, 4, vtd.GCMD["TE"].mask)
        return self

    def request(self, iova: int, access: Direction = Direction.READ, source: int = NVME) -> int | RemapFault:
        return self.unit.remap(DmaRequest(source, iova, 8, access))


@pytest.fixture
def simple() -> Setup:
    """One device may read and write [0, 4 MiB); the page at 1 MiB is read-only, that at 2 MiB withheld."""
    s = Setup()
    root = identity(s.memory, 0x10000, 1024)
    s.memory.write64(0x10000 + 8 * 256, 256 << 12 | 1)
    s.memory.write64(0x10000 + 8 * 512, 512 << 12)
    s.context(NVME, *vtd.context_entry(root, 1, 7))
    return s.on()


def test_unit_as_its_registers_say(simple: Setup) -> None:
    unit = read_unit(simple.unit, [NVME, 0xF8])
    assert (unit.translating, unit.root_table, unit.legacy, unit.mgaw, unit.levels) == (True, ROOT, True, 39, (3,))
    assert unit.superpages == ("2M", "1G")
    assert unit.to_json() == {"base": BASE, "segment": 0, "include_all": True, "cap": CAP, "ecap": ECAP, "gsts": 0xC0000000,
                              "rtaddr": ROOT, "devices": ["00:02.0", "00:1f.0"]}
    assert "00:02.0 00:1f.0" in str(read_units([simple.unit], lambda base: [NVME, 0xF8] if base == BASE else []))


def test_a_unit_in_words(simple: Setup) -> None:
    unit = read_unit(simple.unit, [NVME], haw=46)
    assert (unit.version, unit.haw, unit.caching_mode, unit.queue, unit.interrupts) == ("1.0", 46, False, "off", "-")
    told = {d.what: (d.value, d.field) for d in unit.details}
    assert told["host address width"] == ("46 bits", "DMAR") and told["input address width"] == ("39 bits", "CAP.MGAW")
    assert told["superpages"] == ("2M 1G", "CAP.SLLPS") and told["root table"] == (f"{ROOT:#x}", "RTADDR.RTA")
    assert told["translation"] == ("on", "GSTS.TES") and told["queued invalidation"] == ("off", "GSTS.QIES")
    simple.unit.mmio_write(0x18, 4, vtd.GCMD["TE"].mask | vtd.GCMD["QIE"].mask)
    assert read_unit(simple.unit).queue == "on"
    able = replace(unit, ecap=ECAP | 1 << 3)
    assert (able.interrupts, replace(able, gsts=1 << 25).interrupts) == ("not remapped", "remapped")
    without = replace(unit, ecap=0, cap=CAP | 1 << 7, ver=None, haw=None)
    assert (without.queue, without.interrupts, without.version, without.caching_mode) == ("-", "-", None, True)
    assert {d.what: d.value for d in without.details}["host address width"] == ""


def test_unit_before_software_touched_it() -> None:
    unit = read_unit(Setup().unit)
    assert (unit.translating, unit.root_table) == (False, None)
    domains = read_domains(Setup().memory, [Setup().unit])
    assert (len(domains), domains.note) == (0, f"The unit at {BASE:#x} has no root table.")


def test_registers_with_their_fields(simple: Setup) -> None:
    rows = {r.name: r for r in read_registers(simple.unit)}
    assert (rows["GSTS"].value, rows["GSTS"].fields, rows["GSTS"].offset) == (0xC0000000, "TES=1 RTPS=1", 0x1C)
    assert rows["CAP"].value == CAP
    assert "MGAW=0x26" in rows["CAP"].fields


def test_domain_of_a_unit(simple: Setup) -> None:
    (domain,) = read_domains(simple.memory, [simple.unit], 39)
    assert (domain.unit, domain.did, domain.levels, domain.devices, domain.table_pages) == (BASE, 7, 3, (NVME,), 4)
    assert [(r.start, r.end, r.perm) for r in domain.runs] == [
        (0, 1 << 20, "rw"), (1 << 20, (1 << 20) + 4096, "r"), ((1 << 20) + 4096, 2 << 20, "rw"),
        (2 << 20, (2 << 20) + 4096, "-"), ((2 << 20) + 4096, 4 << 20, "rw")]


def test_reading_has_no_effect(simple: Setup) -> None:
    simple.request(64 << 20)
    before = bytes(simple.unit.file.bytes), simple.unit.cached
    first = read_faults([simple.unit])
    read_registers(simple.unit)
    read_domains(simple.memory, [simple.unit])
    explain_fault(simple.memory, {BASE: simple.unit}, first[0])
    assert (bytes(simple.unit.file.bytes), simple.unit.cached) == before
    assert read_faults([simple.unit]) == first


def test_a_fault_in_linux_words(simple: Setup) -> None:
    simple.request(0x101E63008)
    (fault,) = read_faults([simple.unit])
    assert fault.to_json() == {"unit": BASE, "source": "00:02.0", "address": 0x101E63000, "access": "read", "reason": 6,
                               "text": "PTE Read access is not set"}
    assert fault.linux_line == ("DMAR: [DMA Read NO_PASID] Request device [00:02.0] fault addr 0x101e63000 [fault reason 0x06] "
                                "PTE Read access is not set")


def test_faults_come_in_the_order_they_were_recorded_and_losses_are_told() -> None:
    s = Setup(CAP & ~(0xFF << 40) | 2 << 40)
    s.on()
    for source in (0x100, 0x200, 0x300, 0x400):
        s.request(0x5000, Direction.WRITE, source)
    faults = read_faults([s.unit])
    assert [f.source for f in faults] == [0x100, 0x200, 0x300]
    assert {f.reason for f in faults} == {1}
    assert "lost faults" in faults.note
    s.unit.mmio_write(vtd.frcd_offset(s.unit.description.cap) + 8, 8, 1 << 63)
    assert [f.source for f in read_faults([s.unit])] == [0x200, 0x300]


def test_domains_group_by_id_table_levels_and_type() -> None:
    s = Setup(WIDE_CAP)
    one, two = identity(s.memory, 0x10000, 512), identity(s.memory, 0x20000, 512, 1)
    for source, root, aw, did, tt in ((1, one, 1, 5, 0), (2, one, 1, 5, 0), (3, one, 1, 6, 0), (4, two, 1, 5, 0), (5, 0, 2, 5, 2)):
        s.context(source, *vtd.context_entry(root, aw, did, tt))
    s.context(0x108, *vtd.context_entry(one, 1, 5, fpd=True))
    domains = read_domains(s.memory, [s.on().unit], 39)
    assert [(d.did, d.root, d.translation, d.devices) for d in domains] == [
        (5, one, "translate", (1, 2, 0x108)), (5, two, "translate", (4,)), (5, 0, "pass-through", (5,)), (6, one, "translate", (3,))]
    assert [domains[i].runs[0].perm for i in range(4)] == ["rw", "r", "rw", "rw"]
    assert domains[2].runs[0].end == 1 << 48
    assert domains[0].quiet == (0x108,)
    assert domains[0].remark == "faults not recorded (FPD) for 01:01.0"


def test_contexts_that_the_unit_refuses_grant_nothing() -> None:
    s = Setup(ecap=ECAP & ~(1 << 6))
    root = identity(s.memory, 0x10000, 512)
    for source, low, high in ((1, root | 0x11, 1), (2, root | 1, 2), (3, root | 9, 1), (4, root | 0xD, 1), (5, root | 5, 1)):
        s.context(source, low, high)
    s.on()
    domains = read_domains(s.memory, [s.unit], 39)
    assert all(len(d.runs) == 0 and d.problem for d in domains)
    reasons = {c.source: c.problem for c in read_contexts(s.memory, ROOT, read_unit(s.unit), 39)}
    assert [str(reasons[i])[-3:] for i in (1, 2, 3, 4, 5)] == ["0xb", "0x3", "0x3", "0x3", "0x3"]


def test_translation_off_is_told() -> None:
    s = Setup()
    s.context(NVME, *vtd.context_entry(identity(s.memory, 0x10000, 512), 1, 0))
    s.on().unit.mmio_write(0x18, 4, 0)
    domains = read_domains(s.memory, [s.unit])
    assert len(domains) == 1
    assert "does not translate" in domains.note
    assert explain(s.memory, s.unit, NVME, 0x123456789, "read").host == 0x123456789


def test_root_entries_that_cannot_be_used_are_told() -> None:
    s = Setup()
    s.memory.write64(ROOT + 16 * 3, 0x2003)
    s.memory.write64(ROOT + 16 * 4, SIZE | 1)
    domains = read_domains(s.memory, [s.on().unit], 39)
    assert len(domains) == 0
    assert "buses 03 have reserved bits" in domains.note
    assert "buses 04 cannot be read" in domains.note


# --- explanations

def test_explaining_a_blocked_read(simple: Setup) -> None:
    simple.request(0x101E63000)
    why = explain_fault(simple.memory, {BASE: simple.unit}, read_faults([simple.unit])[0], 39)
    assert (why.reason, why.host, why.recorded) == (6, None, True)
    assert [s.what for s in why.steps] == [
        "translation", "root entry, bus 00", "context entry, 00:02.0", "address width", "level 3, entry 4"]
    assert why.steps[1].address == ROOT
    assert why.steps[2].raw == (simple.memory.read64(CONTEXTS + 0x100), 0x701)
    assert why.steps[-1].text == "all zero"
    assert "=> blocked with reason 0x6 (PTE Read access is not set)" in str(why)
    assert why.to_json()["steps"][-1]["ok"] is False


def test_explaining_one_that_goes_through(simple: Setup) -> None:
    why = explain(simple.memory, simple.unit, NVME, 0x123456, Direction.WRITE, 39)
    assert (why.reason, why.host) == (None, 0x123456)
    assert [s.text for s in why.steps[-2:]] == ["rw, 4 KiB page at 0x123000", "page 0x123000 + offset 0x456 = 0x123456"]
    assert explain(simple.memory, simple.unit, NVME, 1 << 20, "write", 39).reason == 5
    assert explain(simple.memory, simple.unit, NVME, 1 << 20, "read", 39).host == 1 << 20


def test_a_quiet_device_is_told() -> None:
    s = Setup()
    s.context(NVME, *vtd.context_entry(identity(s.memory, 0x10000, 512), 1, 0, fpd=True))
    why = explain(s.memory, s.on().unit, NVME, 64 << 20, "read")
    assert (why.reason, why.recorded) == (6, False)
    assert "not recorded, for the context entry has FPD set" in why.verdict


def test_protected_memory_blocks_while_translation_is_off() -> None:
    s = Setup(CAP | 1 << 5)
    s.unit.mmio_write(0x68, 4, 4 << 20)
    s.unit.mmio_write(0x6C, 4, 6 << 20)
    s.unit.mmio_write(0x64, 4, 1 << 31)
    for iova in (0, 4 << 20, (8 << 20) - 1, 8 << 20):
        answer = s.unit.remap(DmaRequest(NVME, iova, 1, Direction.READ))
        why = explain(s.memory, s.unit, NVME, iova, "read")
        assert (why.host, why.reason) == ((None, answer.reason) if isinstance(answer, RemapFault) else (answer, None))
    assert not explain(s.memory, s.unit, NVME, 4 << 20, "read").recorded


def scattered(seed: int, wide: bool) -> Setup:
    """A unit over tables in which much is a little wrong."""
    r = random.Random(seed)
    s = Setup(WIDE_CAP if wide else CAP, r.choice([ECAP, ECAP & ~0x40, ECAP | 0x84]), r.choice([39, 46]))
    tables = [0x10000 + 0x1000 * n for n in range(6)]
    for table in tables:
        for index in (0, 1, 2, 511):
            low = r.choice([0, 1, 2, 3, 3, 3, 3, 3, 0x83, 0x803, 0x103])
            high = r.choice([0] * 8 + [1 << 62, 1 << 63, 1 << 45])
            s.memory.write64(table + 8 * index, low | high | r.choice([*tables, *tables, SIZE, 0xFEE00000, 0x40000000, 0x200000]))
    for source in (0, 1, 8, 0x10, 0x100, 0x208):
        low = r.choice([1, 1, 1, 1, 0, 3, 5, 9, 0xD, 0x11]) | r.choice([*tables, SIZE])
        s.context(source, low, r.choice([1, 1, 1, 2, 2, 3, 0x701, 0x81, 1 << 24 | 1]))
    if not r.randrange(3):
        s.memory.write64(ROOT + 16, r.choice([0, SIZE | 1, 0x2003, 1 << 45 | 1]))
    return s.on()


IOVAS = st.builds(lambda a, b, c, d, e: a << 39 | b << 30 | c << 21 | d << 12 | e, st.sampled_from([0, 0, 0, 1, 511, 512]),
                  *[st.sampled_from([0, 1, 2, 3, 511])] * 3, st.sampled_from([0, 8, 0x800]))


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.booleans(), st.lists(st.one_of(IOVAS, st.just(0xFEE00000)), min_size=1, max_size=8))
def test_explanations_agree_with_what_the_unit_does(seed: int, wide: bool, iovas: list[int]) -> None:
    s = scattered(seed, wide)
    for source in (0, 1, 8, 0x10, 0x100, 0x208, 0x300):
        for iova in iovas:
            for access in Direction:
                answer, why = s.request(iova, access, source), explain(s.memory, s.unit, source, iova, access, s.width)
                if isinstance(answer, RemapFault):
                    assert (why.reason, why.host) == (answer.reason, None), str(why)
                    assert answer.recorded <= why.recorded, str(why)
                else:
                    assert (why.reason, why.host) == (None, answer), str(why)


@settings(max_examples=150)
@given(st.integers(0, 10_000), st.booleans(), st.lists(IOVAS, min_size=1, max_size=8))
def test_domains_agree_with_what_the_unit_does(seed: int, wide: bool, iovas: list[int]) -> None:
    s = scattered(seed, wide)
    domain_of = {source: d for d in read_domains(s.memory, [s.unit], s.width) for source in d.devices}
    for source in (0, 1, 8, 0x10, 0x100, 0x208):
        for iova in iovas:
            run = domain_of[source].runs.at(iova) if source in domain_of else None
            for access in Direction:
                answer = s.request(iova, access, source)
                if not isinstance(answer, RemapFault):
                    assert run is not None
                    assert access.value[0] in run.perm
                    assert answer == iova + run.offset
                elif answer.reason in (5, 6):
                    assert run is None or access.value[0] not in run.perm


@pytest.mark.parametrize("seed", range(4))
def test_noise_everywhere_is_decoded_to_something(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains_module, "BUDGET", 100_000)
    memory = Memory([(0, 2 << 20)])
    words = memory.u64(0, memory.end // 8)
    noise = np.random.default_rng(seed).integers(0, 1 << 64, len(words), np.uint64, endpoint=False)
    words[:] = noise if seed % 2 else noise & np.uint64((2 << 20) - 1)
    words[ROOT // 8 + 1:ROOT // 8 + 512:2] = 0
    words[ROOT // 8:ROOT // 8 + 512:2] &= np.uint64((2 << 20) - 4096)
    words[ROOT // 8:ROOT // 8 + 512:2] |= np.uint64(1)
    domains = decode(memory, ROOT)
    assert sum(len(d.runs) for d in domains) <= 100_000 + 3000
    for domain in domains[:50]:
        assert domain.problem or domain.levels <= 5
        assert str(domain)


def test_what_the_budget_did_not_reach_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains_module, "BUDGET", 1)
    s = Setup()
    for source, did in ((1, 1), (2, 2)):
        s.context(source, *vtd.context_entry(identity(s.memory, 0x10000 * source, 512), 1, did))
    first, second = decode(s.memory, ROOT)
    assert (first.mapped, first.problem) == (2 << 20, None)
    assert second.mapped == 0
    assert str(second.problem).startswith("not scanned")


def test_a_root_table_that_was_written_but_not_latched_is_not_walked(simple: Setup) -> None:
    simple.unit.mmio_write(0x20, 8, 0x5000)
    unit = read_unit(simple.unit)
    assert (unit.rtaddr, unit.root_table) == (0x5000, ROOT)
    assert explain(simple.memory, simple.unit, NVME, 0x1000, "read").host == simple.request(0x1000) == 0x1000
    assert [d.devices for d in read_domains(simple.memory, [simple.unit])] == [(NVME,)]
    assert any("0x5000" in detail.value for detail in unit.details if detail.what == "written since, not latched")
    simple.unit.mmio_write(0x18, 4, vtd.GCMD["TE"].mask | vtd.GCMD["SRTP"].mask)
    assert read_unit(simple.unit).root_table == 0x5000
    assert explain(simple.memory, simple.unit, NVME, 0x1000, "read").reason == 1
