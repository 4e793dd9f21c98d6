"""What a domain grants over its whole address space, and the rights at many addresses at once."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from inspecttables import identity
from test_inspect_unit import CAP, IOVAS, NVME, WIDE_CAP, Setup, scattered

from hvcore import inspect
from hvcore.inspect.domains import decode, read_domains
from hvcore.inspect.runs import Runs
from hvcore.machine.memory import Memory
from hvcore.spec import vtd
from hvcore.spec.dma import Direction, RemapFault

GIB = 1 << 30
SPACE = 1 << 64


@st.composite
def any_runs(draw: st.DrawFn) -> Runs:
    """Runs that touch, lie apart, and reach up to the end of 64 bits."""
    edges = sorted(draw(st.sets(st.one_of(st.integers(0, 40), st.integers(SPACE - 40, SPACE - 1)), max_size=12)))
    perms = st.sampled_from(["rw", "r", "w", "-", None])
    rows = [(a, b, draw(perms), draw(st.integers(-5, 5))) for a, b in pairwise(edges)]
    return Runs.of((a, b, perm, offset) for a, b, perm, offset in rows if perm)


@given(any_runs(), st.lists(st.one_of(st.integers(0, 45), st.integers(SPACE - 45, SPACE - 1))))
def test_many_addresses_at_once_are_as_each_by_itself(runs: Runs, addresses: list[int]) -> None:
    one_by_one = [run.perm if (run := runs.at(a)) else "-" for a in addresses]
    assert runs.rights_at(np.array(addresses, np.uint64)).tolist() == one_by_one
    assert runs.rights_at(addresses).tolist() == one_by_one


def test_rights_keep_the_shape_of_the_addresses() -> None:
    runs = Runs.of([(0, 4, "rw", 0), (4, 8, "r", 8)])
    assert runs.rights_at([[0, 3, 4], [7, 8, 9]]).tolist() == [["rw", "rw", "r"], ["r", "-", "-"]]
    assert str(runs.rights_at(5)) == "r"
    assert Runs.of([]).rights_at([0, SPACE - 1]).tolist() == ["-", "-"]


@given(any_runs(), st.one_of(st.integers(0, 45), st.integers(SPACE - 45, SPACE)))
def test_below_an_address(runs: Runs, end: int) -> None:
    kept = runs.below(end)
    assert [(r.start, r.end, r.perm, r.offset) for r in kept] == [
        (r.start, min(r.end, end), r.perm, r.offset) for r in runs if r.start < end]


def test_a_domain_ends_where_the_unit_takes_no_address() -> None:
    """A table of 3 levels reaches 39 bits; a unit with MGAW 31 lets the first 2 GiB of it be used."""
    s = Setup(CAP & ~(0x3F << 16) | 30 << 16)
    s.context(NVME, *vtd.context_entry(identity(s.memory, 0x100000, 3 * GIB // 4096), 1, 1))
    domain, = read_domains(s.memory, [s.on().unit], s.width)
    assert [(r.start, r.end, r.perm, r.offset) for r in domain.runs] == [(0, 3 * GIB, "rw", 0)]
    found = inspect.permissions(domain)
    assert [(r.start, r.end, r.perm, r.offset) for r in found] == [(0, 2 * GIB, "rw", 0)]
    assert domain.input_bits == 31
    answers = [s.request(a) for a in (2 * GIB - 8, 2 * GIB)]
    assert answers[0] == 2 * GIB - 8
    assert isinstance(answers[1], RemapFault)
    assert found.rights_at([2 * GIB - 8, 2 * GIB]).tolist() == ["rw", "-"]


def test_pass_through_reaches_the_whole_space() -> None:
    s = Setup(WIDE_CAP, 0xF42 | 0x40)
    s.context(NVME, *vtd.context_entry(0, 2, 1, tt=2))
    domain, = read_domains(s.memory, [s.on().unit], s.width)
    assert [(r.start, r.end, r.perm, r.offset) for r in inspect.permissions(domain)] == [(0, 1 << 48, "rw", 0)]


def test_a_domain_of_a_file_has_the_width_of_its_tables() -> None:
    s = Setup()
    s.context(NVME, *vtd.context_entry(identity(s.memory, 0x100000, 1000), 1, 1))
    domain, = decode(s.memory, 0x1000)
    assert domain.input_bits == 39
    assert inspect.permissions(domain) == domain.runs


def test_what_is_not_known_is_in_the_note() -> None:
    s = Setup()
    s.memory.write64(0x100000, s.memory.end | 3)
    s.context(NVME, *vtd.context_entry(0x100000, 1, 1))
    domain, = read_domains(s.memory, [s.on().unit], s.width)
    found = inspect.permissions(domain)
    assert (len(found), found.note) == (0, "1 ranges whose tables cannot be read")


def test_a_refused_context_grants_nothing_and_says_why() -> None:
    s = Setup()
    s.context(NVME, *vtd.context_entry(identity(s.memory, 0x100000, 1000), 2, 1))
    domain, = read_domains(s.memory, [s.on().unit], s.width)
    found = inspect.permissions(domain)
    assert (found.rights_at([0, 0x1000]).tolist(), "no tables of 4 levels" in found.note) == (["-", "-"], True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.lists(IOVAS, min_size=1, max_size=8))
def test_permissions_agree_with_what_the_unit_does(seed: int, wide: bool, iovas: list[int]) -> None:
    s = scattered(seed, wide)
    for domain in read_domains(s.memory, [s.unit], s.width):
        rights = inspect.permissions(domain).rights_at(iovas).tolist()
        for iova, letters in zip(iovas, rights, strict=True):
            for access in Direction:
                answer, granted = s.request(iova, access, domain.devices[0]), access.value[0] in letters
                assert granted or isinstance(answer, RemapFault)
                assert not granted or not isinstance(answer, RemapFault) or answer.reason not in (1, 2, 3, 4, 5, 6, 7)


def test_a_terabyte_of_addresses_in_one_look() -> None:
    memory = Memory([(0, 16 << 20)])
    memory.write64(0x1000, vtd.root_entry(0x2000))
    low, high = vtd.context_entry(0x3000, 2, 1)
    memory.u64(0x2000, 2)[:] = (low, high)
    memory.write64(0x3000, 0x4003)
    memory.write64(0x3008, 0x4001)
    memory.u64(0x4000, 512)[:] = np.arange(512, dtype=np.uint64) << np.uint64(30) | np.uint64(0x83)
    memory.write64(0x4000 + 8 * 7, 0)
    found = inspect.permissions(decode(memory, 0x1000)[0])
    addresses = np.arange(0, 1 << 41, 1 << 28, dtype=np.uint64)
    gib = addresses >> np.uint64(30)
    expected = np.where(gib < 512, "rw", np.where(gib < 1024, "r", "-"))
    expected[gib % np.uint64(512) == 7] = "-"
    assert (found.rights_at(addresses) == expected).all()
