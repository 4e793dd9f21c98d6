"""The graph of domains: the tree of functions, whose way goes where, and that nothing lies on anything else."""

import re
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore import Machine
from hvcore.inspect.domains import Domain
from hvcore.inspect.functions import Function
from hvcore.inspect.runs import Runs
from hvcore.inspect.units import Unit
from widgets.domains import domains_figure
from widgets.drawing import Figure
from widgets.pcitree import LIMIT, tree_rows

SVG = "{http://www.w3.org/2000/svg}"
VMM = (0x77C00000, 0x7FC00000)
DOMAIN_0 = Runs.of([(0, VMM[0], "rw", 0), (*VMM, "-", 0), (VMM[1], 1 << 32, "rw", 0)])
NOTHING = Runs.of([])
UNIT = 0xFED90000
DISK, VGA, AUDIO, PORT = 0x010802, 0x030000, 0x040300, 0x060400


def domain(runs: Runs = DOMAIN_0, **other) -> Domain:
    values = {"unit": UNIT, "did": 0, "levels": 3, "root": 0x79BE1000, "translation": "translate", "devices": (0x00, 0x10),
              "table_pages": 2053, "leaves": {"4K": 1048576, "2M": 0, "1G": 0}, "runs": runs, "unreadable": NOTHING}
    return Domain(**values | other)


def unit(gsts: int = 0xC0000000, base: int = UNIT) -> Unit:
    return Unit(base, 0, True, 0x00D2008C22260206, 0xF42, gsts, 0x79BE0000, ())


def function(source: int, class_code: int = DISK, behind: int | None = None, **other) -> Function:
    values = {"segment": 0, "source": source, "requester": source, "vendor": 0x8086, "device": 0x1234, "class_code": class_code,
              "unit": UNIT, "secondary": behind, "subordinate": behind}
    return Function(**values | other)


def functions(*sources: int) -> list[Function]:
    return [function(source) for source in sources]


def words(figure: Figure) -> list[str]:
    return [text.text or "" for text in ET.fromstring(figure.svg).iter(f"{SVG}text")]


# --- what it says

def test_domains_show_functions_unit_tables_and_runs():
    figure = domains_figure([unit()], [domain()], functions(0x00, 0x10, 0x18))
    shown = words(figure)
    for text in ("bus 00", "00:00.0 NVMe", "00:02.0 NVMe", "unit 0xfed90000", "translating", "domain 0", "3 levels", "2,053 table pages",
                 "8.02 MiB", "root 0x79be1000", "1,048,576 × 4K", "rw 0x0-0x77c00000", "- 0x77c00000-0x7fc00000",
                 "rw 0x7fc00000-0x100000000", "blocked", "no context entry"):
        assert text in shown
    assert figure.alt == ("2 functions of unit 0xfed90000 in domain 0: 3.88 GiB rw, 128 MiB -; "
                          "1 function of unit 0xfed90000: no context entry: all blocked")


def test_a_unit_that_does_not_translate_leaves_everything_open():
    figure = domains_figure([unit(gsts=0x40000000)], [domain()], functions(0x00, 0x10, 0x18))
    assert "everything" in words(figure)
    assert figure.alt == "3 functions of unit 0xfed90000: translation is off"


def test_a_domain_with_many_runs_says_what_it_leaves_out():
    runs = Runs.of([(i << 13, (i << 13) + 4096, "r", 0) for i in range(40)])
    assert "and 34 more runs" in words(domains_figure([unit()], [domain(runs)], functions(0, 0x10)))


def test_a_unit_that_covers_nothing_blocks_nobody():
    figure = domains_figure([unit()], [], [])
    assert "covers no function that is here" in words(figure)
    assert "blocked" not in figure.alt


def test_a_refused_domain_and_a_machine_without_units():
    refused = domain(NOTHING, problem="translation type 3 is reserved: requests fault with reason 0x3")
    figure = domains_figure([unit()], [refused], functions(0x10))
    assert {"every request is refused", "see its remark"} <= set(words(figure))
    assert "translation type 3 is reserved" in figure.table
    bare = domains_figure([], [], [function(0x10, unit=None)])
    assert {"no unit", "everything"} <= set(words(bare))
    assert bare.alt == "no remapping unit: every device reaches all memory"


def test_functions_that_no_unit_covers_go_past_the_units():
    figure = domains_figure([unit()], [domain()], [function(0x00), function(0x10), function(0x18, unit=None)])
    assert figure.alt.endswith("; 1 function: no unit covers these")


def test_a_function_behind_a_bridge_takes_the_way_of_the_id_it_is_seen_under():
    listed = [function(0x10, PORT, 2), function(0x210, AUDIO, requester=0x200), function(0x218, AUDIO)]
    figure = domains_figure([unit()], [domain(devices=(0x200, 0x300))], listed)
    assert figure.alt.startswith("1 function of unit 0xfed90000 in domain 0")
    assert "1 unused id" in words(figure)
    mapped = next(g for g in ET.fromstring(figure.svg).iter(f"{SVG}g") if g.get("data-domain"))
    assert set(mapped.get("data-path").split()) == {str(0x210), str(0x200), "0xfed90000/0x0"}
    row = next(g for g in ET.fromstring(figure.svg).iter(f"{SVG}g") if g.get("data-device") == str(0x210))
    assert "seen as 02:00.0" in row.find(f"{SVG}title").text
    assert str(0x200) in row.get("data-path").split()


def test_what_lies_on_a_way_names_its_functions_and_its_domain():
    figure = domains_figure([unit()], [domain()], functions(0x10, 0x18))
    on = [e for e in ET.fromstring(figure.svg).iter() if str(0x10) in e.get("data-path", "").split()]
    blocked = [e for e in ET.fromstring(figure.svg).iter() if str(0x18) in e.get("data-path", "").split()]
    assert sum(e.tag == f"{SVG}path" for e in on) == 6
    assert sum(e.tag == f"{SVG}path" for e in blocked) == 2
    assert {e.get("data-domain") for e in on if e.get("data-domain")} == {"0xfed90000/0x0"}
    assert any((e.get("data-start"), e.get("data-space")) == ("0x79be1000", "physical") for e in on)
    assert any((e.get("data-start"), e.get("data-space")) == ("0x77c00000", "iova") for e in on)


# --- the tree

def test_the_tree_puts_what_lies_behind_a_bridge_below_it():
    listed = [function(0x00, 0x060000), function(0x08, PORT, 1), function(0x10, VGA), function(0x100, DISK)]
    assert [(row.depth, row.words) for row in tree_rows(listed, lambda f: 0)] == [
        (0, "bus 00"), (1, "00:00.0 host bridge"), (1, "00:01.0 PCI bridge to bus 01"), (2, "01:00.0 NVMe"), (1, "00:02.0 VGA")]


def test_a_large_tree_is_folded_but_not_across_fates():
    listed = [function(0xFF00 + i, 0x088000) for i in range(60)] + functions(0x10)
    rows = tree_rows(listed, lambda f: f.source == 0xFF05)
    assert [row.words for row in rows] == ["bus 00", "00:02.0 NVMe", "bus ff", "ff:00.0 to 00.4: 5 × system", "ff:00.5 system",
                                           "ff:00.6 to 07.3: 54 × system"]


TREES = st.lists(st.tuples(st.integers(0, 0x3FF), st.sampled_from((DISK, VGA, AUDIO, 0x088000, 0x060000)), st.booleans()), max_size=90,
                 unique_by=lambda row: row[0])


@given(TREES)
def test_every_function_is_in_exactly_one_row(tree):
    listed = [function(source, kind, (source >> 8) + 1 if bridge and source >> 8 < 3 else None) for source, kind, bridge in tree]
    shown = [f.source for row in tree_rows(listed, lambda f: f.source % 3) for f in row.functions]
    assert sorted(shown) == sorted(f.source for f in listed)


# --- the layout

def boxes(root: ET.Element) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of each node and each sample of memory, without the legend."""
    found = [tuple(float(r.get(name)) for name in ("x", "y", "width", "height")) for r in root.iter(f"{SVG}rect") if r.get("x")]
    return [(x, y, x + w, y + h) for x, y, w, h in found if y > 20]


def ends(root: ET.Element) -> list[tuple[float, float]]:
    """Both ends of each link."""
    lines = [re.findall(r"-?[\d.]+", p.get("d")) for p in root.iter(f"{SVG}path") if p.get("d", "").startswith("M") and "C" in p.get("d")]
    return [(float(x), float(y)) for line in lines for x, y in (line[:2], line[-2:])]


def assert_tidy(figure: Figure) -> None:
    root = ET.fromstring(figure.svg)
    nodes = boxes(root)
    width, height = map(float, root.get("viewBox").split()[2:])
    assert all(left >= 0 and right <= width and bottom <= height for left, _, right, bottom in nodes)
    for (l1, t1, r1, b1), (l2, t2, r2, b2) in combinations(nodes, 2):
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1, "two nodes intersect"
    for x, y in ends(root):
        assert any(min(abs(x - left), abs(x - right)) < 0.2 and top - 0.2 <= y <= bottom + 0.2 for left, top, right, bottom in nodes) or (
            x == 848), "a link ends nowhere"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0x2FF), st.integers(0, 4)), min_size=1, max_size=80, unique_by=lambda row: row[0]),
       st.lists(st.booleans(), min_size=1, max_size=4), st.integers(0, 9))
def test_no_two_nodes_intersect_and_links_end_at_nodes(placed, on, runs):
    units = [unit(0xC0000000 if translating else 0, UNIT + 4096 * i) for i, translating in enumerate(on)]
    listed = [function(source, unit=None if which == 4 else units[which % len(units)].base) for source, which in placed]
    perms = Runs.of([(i << 13, (i << 13) + 4096, "rw", 0) for i in range(runs)])
    domains = [domain(perms, unit=u.base, did=did, devices=tuple(f.source for f in listed if f.source % 3 == did))
               for u in units for did in (0, 1)]
    assert_tidy(domains_figure(units, domains, listed))


@pytest.mark.parametrize("name", ["q35-2g-bridges", "huananzhi-x99-qd4-32g", "hp-compaq-8000-elite-4g"])
def test_graphs_of_machines_are_tidy(name):
    with Machine.load(name) as machine:
        run = machine.boot()
        figure = domains_figure(run.units, run.domains, run.functions)
        rows = [row for row in tree_rows(run.functions, lambda f: 0) if row.functions]
    assert_tidy(figure)
    assert len(rows) <= LIMIT
    counted = sum(int(words.split(" function")[0]) for words in figure.alt.split("; "))
    assert counted == len(run.functions)
