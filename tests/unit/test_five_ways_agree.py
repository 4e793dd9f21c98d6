"""One question, five answers: of the unit, of its arrays, of its walk, of the inspectors, and of `hvlab translate` over a dump."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vtd_batch import POOL, SOURCES, any_bench, any_iova
from vtd_bench import NVME, ROOT, Bench

from hvcore import translate
from hvcore.inspect.domains import read_domains
from hvcore.inspect.dump import PageStore
from hvcore.inspect.explain import explain
from hvcore.machine.vtd.batch import How
from hvcore.spec.dma import Direction, DmaRequest, RemapFault
from hvcore.spec.vtd import PROTECTED

Request = tuple[int, int, str]
Answer = tuple[int | None, int | None]
"""Where a request arrives (None: nowhere) and the reason why it does not (None: it does)."""


def asked_of(bench: Bench, request: Request) -> Answer:
    source, iova, access = request
    result = bench.unit.remap(DmaRequest(source, iova, 1, Direction(access)))
    return (None, result.reason) if isinstance(result, RemapFault) else (result, None)


def as_arrays(bench: Bench, requests: list[Request]) -> list[Answer]:
    source, iova, access = zip(*requests, strict=True)
    found = bench.unit.translate(source, np.array(iova, np.uint64), list(access))
    rows = zip(found.how.tolist(), found.address.tolist(), found.reason.tolist(), strict=True)
    return [(None, reason) if how in (How.BLOCKED, How.PROTECTED) else (address, None) for how, address, reason in rows]


def walked(bench: Bench, request: Request) -> Answer:
    walk = bench.unit.walk(*request[:2])
    reason = walk.refusal(Direction(request[2]))
    return (None, int(reason)) if reason else (walk.address, None)


def explained(bench: Bench, request: Request) -> Answer:
    told = explain(bench.memory, bench.unit, *request, bench.unit.walker.haw)
    return told.host, told.reason


def from_a_file(bench: Bench, requests: list[Request]) -> list[Answer]:
    """Some pages of the bench's memory as a dump, all others named as RAM, for the tables lie in the dump."""
    held = [0x8000, *POOL]
    store = PageStore(np.array(held, np.uint64), np.array([bench.memory.u64(page, 512) for page in held]))
    walker = bench.unit.walker
    unit = translate.FileUnit(translate.FilePages(store, bench.memory.runs), bench.unit.root, walker.cap, walker.ecap, walker.haw)
    source, iova, access = zip(*requests, strict=True)
    count = len(requests)
    asked = translate.Asked(np.array(source, np.int64), np.array(iova, np.uint64), np.ones(count, np.int64),
                            np.array([a == "write" for a in access], np.uint8))
    return [(a.phys[0][0], None) if a.reason == 0 else (None, a.reason) for a in unit.answers(asked)]


def any_root(r: Random) -> int:
    """RTADDR: the bench's table, sometimes with bits that it takes and no memory answers to, or that it does not take."""
    return 0x8000 | (1 << r.choice((3, 11, 40, 51, 52, 63)) if r.random() < 0.1 else 0)


@settings(max_examples=200)
@given(st.integers(0, 1 << 48))
def test_all_ways_agree(seed):
    """Of requests of one byte, with nothing in the caches: there every way answers from the tables as they are now."""
    r = Random(seed)
    bench = any_bench(r)
    bench.unit.ideal_caches = True
    if r.random() < 0.5:
        bench.enable(any_root(r))
    requests = [(r.choice(SOURCES), any_iova(r, r.random() < 0.5), r.choice(("read", "write"))) for _ in range(20)]
    truth = [asked_of(bench, request) for request in requests]
    assert as_arrays(bench, requests) == truth
    assert [explained(bench, request) for request in requests] == truth
    if bench.unit.register("GSTS") >> 31:
        for request, answer, dumped in zip(requests, truth, from_a_file(bench, requests), strict=True):
            if answer[1] != PROTECTED:  # which walks and dumps know nothing of
                assert walked(bench, request) == dumped == answer, request


@pytest.mark.parametrize("high", [1 << 40, 1 << 52, 1 << 63])
def test_a_root_table_beyond_every_memory_is_told_by_all(high):
    bench = Bench(on=False)
    bench.enable(ROOT | high)
    request = NVME, 0x5000, "read"
    assert asked_of(bench, request) == walked(bench, request) == explained(bench, request) == (None, 8)
    assert as_arrays(bench, [request]) == [(None, 8)]
    domains = read_domains(bench.memory, [bench.unit], 39)
    assert not len(domains) and "reason 0x8" in domains.note
