"""The page map's half in Python: what is sent for runs, for two maps, for caches; each against a page-by-page reading."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore import Config, Machine
from hvcore.inspect.runs import Runs
from hvcore.spec.e820 import E820Entry
from widgets.lanes import MapLane, lanes_of
from widgets.pagemap import PageMap
from widgets.pieces import KINDS, MAP_FILLS, NOTHING, Kind, Kinds, Pieces, change, compared, pieces_of, staleness
from widgets.selection import domain_key

PAGE = 4096
RIGHTS = ("rw", "r", "w", "-", "")


def runs_from(pages: dict[int, tuple[str, int]]) -> Runs:
    """Runs of pages {page: (right, page it leads to)}, joined where they may be."""
    rows: list[tuple[int, int, str, int]] = []
    for page, (right, target) in sorted(pages.items()):
        offset = (target - page) * PAGE
        if rows and rows[-1][1:] == (page * PAGE, right, offset):
            rows[-1] = (rows[-1][0], (page + 1) * PAGE, right, offset)
        else:
            rows.append((page * PAGE, (page + 1) * PAGE, right, offset))
    return Runs.of(rows)


def unfolded(pieces: Pieces, kinds: Kinds, pages: int) -> list[tuple[Kind, int]]:
    """Kind and offset of each page below `pages`."""
    known, edges = list(kinds.known), [*pieces.start.tolist(), float(pages)]
    out = [(NOTHING, 0)] * pages
    for i, (a, b) in enumerate(pairwise(edges)):
        for page in range(int(a), min(int(b), pages)):
            out[page] = known[int(pieces.kind[i])], int(pieces.offset[i])
    return out


some_pages = st.dictionaries(st.integers(0, 40), st.tuples(st.sampled_from(RIGHTS[:4]), st.integers(0, 50)), max_size=40)


@given(some_pages)
def test_pieces_hold_for_each_page_what_its_run_says(pages):
    kinds = Kinds()
    pieces = pieces_of(runs_from(pages), kinds)
    assert pieces.start[0] == 0
    assert all(a < b for a, b in pairwise(pieces.start.tolist()))
    assert pieces.kind[-1] == 0
    for page, (kind, offset) in enumerate(unfolded(pieces, kinds, 45)):
        if page not in pages:
            assert (kind, offset) == (NOTHING, 0)
            continue
        right, target = pages[page]
        assert MAP_FILLS[right].name in kind.words
        neighbours = [pages[n] for n in (page - 1, page + 1) if n in pages]
        if kind.fill == "one page":
            assert (right, target) in neighbours
        else:
            assert (kind.fill, page + offset) == (right, target)
            assert (right, target) not in neighbours


@given(some_pages, some_pages)
def test_changes_are_what_a_page_by_page_comparison_finds(before, after):
    kinds = Kinds()
    pieces = compared(runs_from(before), runs_from(after), kinds, change)
    counted: dict[str, int] = {}
    for page, (kind, _) in enumerate(unfolded(pieces, kinds, 45)):
        (old, a), (new, b) = before.get(page, ("", 0)), after.get(page, ("", 0))
        had, has = set(old) - {"-"}, set(new) - {"-"}
        if not had and not has:
            expected = ""
        elif had and has and a != b:
            expected = "changed"
        else:
            expected = "same" if had == has else "gained" if had <= has else "lost" if has <= had else "changed"
        assert kind.fill == expected, page
        for right in {old, new} - {"", "-"}:
            assert MAP_FILLS[right].name in kind.words
        counted[expected] = counted.get(expected, 0) + 1
    fills = [kind.fill for kind in kinds.known]
    found: dict[str, int] = {}
    for number, pages in pieces.pages().items():
        found[fills[number]] = found.get(fills[number], 0) + pages
    assert {name: n for name, n in found.items() if name} == {name: n for name, n in counted.items() if name}


@given(some_pages, some_pages)
def test_stale_is_what_is_cached_and_no_longer_in_the_tables(cached, tables):
    kinds = Kinds()
    pieces = compared(runs_from(cached), runs_from(tables), kinds, staleness, offsets=True)
    for page, (kind, offset) in enumerate(unfolded(pieces, kinds, 45)):
        if page not in cached:
            assert kind == NOTHING
            continue
        right, target = cached[page]
        now, there = tables.get(page, ("", 0))
        fresh = right == now and (right == "-" or target == there)
        assert kind.fill == (right if fresh else "stale")
        assert right == "-" or page + offset == target


def test_the_farthest_addresses_are_exact():
    last = (1 << 57) - PAGE
    pieces = pieces_of(Runs.of([(last, last + PAGE, "rw", -last)]), Kinds())
    assert (pieces.start * PAGE).astype(np.uint64).tolist() == [0, last, 1 << 57]
    assert int(pieces.offset[1]) * PAGE == -last


def test_a_map_of_too_many_kinds_is_told():
    kinds = Kinds()
    for n in range(KINDS):
        kinds.number(Kind("same", str(n)))
    with pytest.raises(ValueError, match="255 kinds"):
        kinds.number(Kind("same", "one more"))


# --- what is sent

LANES = [MapLane("guest CPU", Runs.of([(0, 8 * PAGE, "rwx", 0)])),
         MapLane("domain 3", Runs.of([(0, PAGE, "r", 0), (PAGE, 2 * PAGE, "rw", 0x7000), (5 * PAGE, 6 * PAGE, "-", 0)]), "iova",
                 ("0xfed90000/0x3",))]


def sent(view: PageMap, lane: int) -> list[tuple[int, str, int]]:
    """(first page, words, offset) of each piece of a lane, read as the browser reads it."""
    told = view.lanes[lane]
    part = slice(told["first"], told["first"] + told["count"])
    offset = np.frombuffer(view.offset)[part] if view.offset else np.zeros(told["count"])
    numbers = np.frombuffer(view.kind, np.uint8)[part].tolist()
    return [(int(s), view.kinds[n]["words"], int(o)) for s, n, o in zip(np.frombuffer(view.start)[part], numbers, offset, strict=True)]


def test_lanes_are_sent_one_after_another():
    view = PageMap()
    view.show_lanes(LANES, [E820Entry(0, 0x9FC00, 1)], (0x4000, 0x6000))
    assert sent(view, 0) == [(0, "read, write, execute", 0), (8, "not mapped", 0)]
    assert sent(view, 1) == [(0, "read only", 0), (1, "read and write", 7), (2, "not mapped", 0), (5, "entry without access", 0),
                             (6, "not mapped", 0)]
    assert view.lanes[1]["keys"] == ["0xfed90000/0x3"]
    assert view.lanes[1]["space"] == "iova"
    assert view.vmm == ["0x4000", "0x6000"]
    assert view.e820[0]["words"] == "usable"
    assert [fill["key"] for fill in view.fills[:2]] == ["", "mixed"]
    assert view.lanes[0]["words"] == "8 pages (32 KiB) read, write, execute"
    assert sorted(view.lanes[1]["words"].split(", ")) == ["1 page (4 KiB) entry without access", "1 page (4 KiB) read and write",
                                                          "1 page (4 KiB) read only"]
    assert view.words == "; ".join(f"{lane['name']}: {lane['words']}" for lane in view.lanes)
    assert "4 KiB" in view.figure.alt


def test_offsets_that_are_all_zero_are_not_sent():
    view = PageMap()
    view.show_lanes(LANES[:1])
    assert view.offset == b""
    assert len(view.start) == 8 * len(view.kind)


def test_the_compressed_axis_has_an_ascending_place_for_each_edge():
    view = PageMap()
    view.show_lanes(LANES, [E820Entry(0, 0x9FC00, 1), E820Entry(1 << 40, (1 << 40) + 0x1234, 2)])
    pages, places = view.places["pages"], view.places["places"]
    assert pages == [0, 1, 2, 5, 6, 8, 0xA0, 1 << 28, (1 << 28) + 2]
    assert all(a < b for a, b in pairwise(places))
    assert (places[0], places[-1]) == (0, 1 << 20)


def test_without_lanes_it_says_so():
    view = PageMap()
    view.show_lanes([])
    assert view.words == "there is no lane"
    assert view.start == b""


# --- runs of a machine

@pytest.fixture(scope="module")
def runs():
    with Machine.load("q35-6g") as machine:
        broken = machine.boot(Config(VTD_TRANS=True))
        mended = machine.reboot(IOMMU_MAP_END="ram")
        off = machine.reboot(VTD_TRANS=False)
        yield broken, mended, off


def test_a_domain_is_followed_by_what_is_cached_of_it(runs):
    _, mended, off = runs
    lanes = lanes_of(mended)
    assert [lane.name for lane in lanes] == ["guest CPU", "domain 0", "domain 0, cached (IOTLB)"]
    assert lanes[1].keys == (domain_key(mended.units[0].base, 0),)
    assert lanes[2].runs == mended.cached[0].runs
    assert lanes[2].tables == mended.domains[0].runs
    assert [lane.name for lane in lanes_of(off)] == ["guest CPU", f"unit {off.units[0].base:#x}, untranslated"]


def test_the_map_of_a_run_counts_its_pages(runs):
    broken = runs[0]
    view = PageMap(broken)
    start, end = broken.vmm.base // PAGE, (broken.vmm.base + broken.vmm.size) // PAGE
    assert (start, "entry without access", 0) in sent(view, 1)
    assert (end, "read and write", 0) in sent(view, 1)
    assert f"{(1 << 20) - (end - start):,} pages" in view.lanes[1]["words"]
    assert view.figure.title.startswith("Permissions")


def test_the_pages_that_a_mend_gains_are_those_above_4_gib(runs):
    broken, mended, _ = runs
    view = PageMap.compare(broken, mended)
    gained = [(page, words) for page, words, _ in sent(view, 1) if "not mapped before" in words]
    assert gained == [(1 << 20, "not mapped before, read and write after")]
    end = max(e.end for e in mended.e820.firmware if e.usable) // PAGE
    assert f"{end - (1 << 20):,} pages" in view.lanes[1]["words"]
    assert "gained" in view.figure.alt
    assert view.figure.svg.startswith("<svg")


def test_translation_switched_off_opens_all_memory_to_the_devices_of_a_domain(runs):
    broken, _, off = runs
    view = PageMap.compare(broken, off)
    assert [lane["name"] for lane in view.lanes] == ["guest CPU", "domain 0", "domain 0, cached (IOTLB)"]
    found = {page: words for page, words, _ in sent(view, 1)}
    assert found[0] == "read and write before, not translated: everything allowed after"
    assert found[broken.vmm.base // PAGE] == "entry without access before, not translated: everything allowed after"
    assert "lost" not in view.lanes[1]["words"]
    back = PageMap.compare(off, broken).lanes[1]["words"]
    assert "lost" in back
    assert "gained" not in back


def test_another_run_takes_the_place_of_the_one_shown(runs):
    broken, _, off = runs
    view = PageMap(broken, lane=2)
    view.show(off)
    assert [lane["name"] for lane in view.lanes] == [lane.name for lane in lanes_of(off)]
    assert view.lane == 1
    bundle = view._repr_mimebundle_()[0]
    assert bundle["image/png"]
    assert "not translated: everything allowed" in bundle["text/html"]
