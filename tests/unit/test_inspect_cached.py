"""What the IOTLB holds, as runs: against real units, and against a page-by-page reading."""

from hypothesis import given
from hypothesis import strategies as st
from vtd_bench import BASE, TABLE1, Bench

from hvcore import Config, Machine
from hvcore.inspect.cached import cached_runs, read_cached
from hvcore.machine.vtd.caches import CachedMapping
from hvcore.machine.vtd.walk import Mapping

PAGE, LARGE = 4096, 1 << 21

def entry(page: int, size: int, base: int | None, permission: int) -> CachedMapping:
    return CachedMapping(7, page * size, (page + 1) * size, Mapping(base, size, permission, None, None))

small = st.builds(entry, st.integers(0, 1023), st.just(PAGE), st.none() | st.integers(0, 2000).map(lambda n: n * PAGE), st.integers(1, 3))
large = st.builds(entry, st.integers(0, 1), st.just(LARGE), st.integers(0, 8).map(lambda n: n * LARGE), st.integers(1, 3))

@given(st.lists(small, max_size=20, unique_by=lambda e: e.start), st.lists(large, max_size=2, unique_by=lambda e: e.start))
def test_runs_say_for_each_page_what_the_smallest_entry_says(pages, larges):
    expected = {}
    for e in [*larges, *pages]:
        for address in range(e.start, e.end, PAGE):
            base = e.mapping.base
            expected[address] = ("-", address) if base is None else ("-rw"[e.mapping.permission] if e.mapping.permission < 3 else "rw",
                                                                     base + address - e.start)
    runs = cached_runs([*larges, *pages])
    found = {a: (r.perm, a + r.offset) for r in runs for a in range(r.start, r.end, PAGE)}
    assert found == expected
    assert all(a.end <= b.start for a, b in zip(runs, list(runs)[1:], strict=False))


def test_a_unit_tells_what_it_remembers_and_not_what_the_tables_say_now():
    bench = Bench()
    assert len(read_cached([bench.unit])) == 0
    for iova in (0x5000, 0x6000, 0x20_0000):
        bench.ask(iova)
    bench.memory.write64(TABLE1 + 8 * 5, 0)
    held, = read_cached([bench.unit])
    assert (held.unit, held.did, held.entries, held.held) == (BASE, 7, 3, LARGE + 2 * PAGE)
    assert [(r.start, r.end, r.perm, r.start + r.offset) for r in held.runs] == [
        (0x5000, 0x6000, "rw", 0x9000), (0x6000, 0x7000, "r", 0xA000), (0x20_0000, 0x40_0000, "rw", 0x40_0000)]
    bench.invalidate_iotlb(1)
    assert len(read_cached([bench.unit])) == 0


def test_a_run_keeps_its_caches():
    with Machine.load("q35-2g") as machine:
        run = machine.boot(Config(VTD_TRANS=True))
        before = run.cached.to_json()
        assert before[0]["did"] == 0
        assert before[0]["entries"] > 0
        machine.reboot(VTD_TRANS=False)
        assert run.cached.to_json() == before
        assert len(machine.run.cached) == 0
