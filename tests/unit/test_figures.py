"""The figures: what they draw, what they say in words, and that nobody's input gets out of its place."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.inspect.runs import Runs
from hvcore.spec.e820 import E820Entry
from widgets.drawing import Drawing, Figure, Fill
from widgets.e820 import e820_figure
from widgets.permissions import UNTRANSLATED, Lane, permissions_figure
from widgets.scale import SCALES, make_scale, ticks

SVG = "{http://www.w3.org/2000/svg}"
VMM = (0x77C00000, 0x7FC00000)
FIRMWARE = (E820Entry(0, 0x9FC00, 1), E820Entry(0x100000, 0x7FFD7000, 1), E820Entry(0x7FFD7000, 0x80000000, 2),
            E820Entry(0x100000000, 0x200000000, 1), E820Entry(0xFD00000000, 0x10000000000, 99))
GUEST = (FIRMWARE[0], E820Entry(0x100000, VMM[0], 1), *FIRMWARE[2:])
DOMAIN_0 = Runs.of([(0, VMM[0], "rw", 0), (*VMM, "-", 0), (VMM[1], 1 << 32, "rw", 0)])


def tips(figure: Figure) -> list[str]:
    return [title.text or "" for rect in ET.fromstring(figure.svg).iter(f"{SVG}rect") for title in rect.iter(f"{SVG}title")]


# --- scale

@given(st.sampled_from(SCALES), st.lists(st.tuples(st.integers(0, 1 << 57), st.integers(1, 1 << 40)), min_size=1, max_size=20))
def test_every_scale_keeps_the_order_and_stays_inside(kind, sizes):
    ranges = [(start, start + size) for start, size in sizes]
    place = make_scale(kind, ranges, 10.0, 900.0)
    edges = sorted({0} | {edge for r in ranges for edge in r})
    places = [place(edge) for edge in edges]
    assert places == sorted(places)
    assert places[0] == pytest.approx(10.0)
    assert places[-1] == pytest.approx(900.0)


def test_the_compressed_scale_shows_a_page_beside_terabytes():
    place = make_scale("compressed", [(0x1000, 0x2000), (1 << 40, 1 << 41)], 0, 100)
    linear = make_scale("linear", [(0x1000, 0x2000), (1 << 40, 1 << 41)], 0, 100)
    assert place(0x2000) - place(0x1000) > 2
    assert linear(0x2000) - linear(0x1000) < 1e-6


def test_an_unknown_scale_is_told():
    with pytest.raises(ValueError, match="choose one of compressed, linear, log"):
        make_scale("square", [(0, 1)], 0, 1)


@given(st.lists(st.integers(0, 1 << 48), min_size=1, max_size=60, unique=True))
def test_tick_labels_do_not_overlap(edges):
    edges = sorted(edges)
    shown = ticks(make_scale("linear", [(0, edges[-1])], 0, 900), edges, 60)
    assert shown[-1][0] == edges[-1]
    assert all(b - a >= 60 for (_, a), (_, b) in pairwise(shown))


# --- drawing

def test_text_of_others_is_escaped_everywhere():
    drawing = Drawing(100, 100)
    drawing.rect(0, 0, 10, 10, Fill("x", "#000"), "<script>&\"")
    drawing.text(0, 0, "</text><script>")
    drawing.box(0, 0, 50, ["<b>"], "<i>")
    figure = Figure("<title>", "<alt>", drawing.svg("<title>", "<alt>"))
    root = ET.fromstring(figure.svg)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {"svg", "title", "desc", "defs", "g", "rect", "text"}
    assert "<script>" not in figure.html


def test_each_hatched_fill_has_its_pattern_and_the_names_of_two_figures_differ():
    one, two = (e820_figure(FIRMWARE, guest) for guest in (GUEST, FIRMWARE))
    def names(figure):
        return {p.get("id") for p in ET.fromstring(figure.svg).iter(f"{SVG}pattern")}

    used = {rect.get("fill")[5:-1] for rect in ET.fromstring(one.svg).iter(f"{SVG}rect") if rect.get("fill", "").startswith("url(#")}
    assert used == names(one)
    assert not names(one) & names(two)


def test_a_figure_is_a_picture_with_a_name_and_the_same_in_words_and_as_a_table():
    figure = e820_figure(FIRMWARE, GUEST, VMM)
    bundle = figure._repr_mimebundle_()
    root = ET.fromstring(bundle["image/svg+xml"])
    assert root.get("role") == "img"
    named = {root.find(f"{SVG}title").get("id"), root.find(f"{SVG}desc").get("id")}
    assert set(root.get("aria-labelledby").split()) == named
    assert root.find(f"{SVG}desc").text == figure.alt
    assert "<details>" in bundle["text/html"]
    assert figure.alt in bundle["text/plain"]


# --- E820

@pytest.mark.parametrize("scale", SCALES)
def test_e820_draws_every_entry_of_both_maps(scale):
    figure = e820_figure(FIRMWARE, GUEST, VMM, scale=scale)
    for who, entries in (("firmware", FIRMWARE), ("guest", GUEST)):
        for entry in entries:
            assert any(tip.startswith(f"{who}: {entry.start:#x}-{entry.end:#x}, ") for tip in tips(figure))
    assert "VMM 0x77c00000-0x7fc00000, 128 MiB" in tips(figure)
    assert figure.alt == ("5 entries with 6.00 GiB usable from the firmware, 5 with 5.87 GiB usable for the guest; "
                          "the VMM keeps 128 MiB at 0x77c00000, which the guest's map does not show")


def test_e820_table_says_which_map_has_which_entry():
    table = ET.fromstring(e820_figure(FIRMWARE, GUEST, VMM).table)
    cells = [[cell.text or "" for cell in row] for row in table.find("tbody")]
    rows = {(start, end): (firmware, guest) for start, end, _, _, firmware, guest in cells}
    assert rows["0x100000", "0x7ffd7000"] == ("yes", "no")
    assert rows["0x100000", "0x77c00000"] == ("no", "yes")
    assert rows["0x0", "0x9fc00"] == ("yes", "yes")


def test_e820_without_a_vmm_and_without_entries():
    assert e820_figure((), ()).alt == "0 entries with 0 B usable from the firmware, 0 with 0 B usable for the guest"


# --- permissions

def test_permissions_say_who_reaches_the_vmm():
    lanes = [Lane("domain 0", DOMAIN_0), Lane("unit 0xfed91000", Runs.of([(0, 1 << 33, UNTRANSLATED, 0)]))]
    figure = permissions_figure(lanes, GUEST, VMM)
    first, second = figure.alt.split("; ")
    assert first.startswith("domain 0: ")
    assert "3.88 GiB read and write" in first
    assert first.endswith("nothing of the VMM's memory")
    assert second == "unit 0xfed91000: 8 GiB not translated: everything allowed, 128 MiB of the VMM's memory among it"
    assert "domain 0: 0x77c00000-0x7fc00000 -, 128 MiB" in tips(figure)


def test_a_run_that_is_moved_onto_the_vmm_counts_as_reaching_it():
    moved = Runs.of([(0x1000, 0x2000, "w", VMM[0])])
    figure = permissions_figure([Lane("domain 1", moved)], GUEST, VMM)
    assert figure.alt.endswith("4 KiB of the VMM's memory among it")
    assert "domain 1: 0x1000-0x2000 w, 4 KiB, to host-physical 0x77c01000" in tips(figure)


def test_pages_that_all_lead_to_one_page_are_one_span():
    blank = [(VMM[0] + i * 4096, VMM[0] + (i + 1) * 4096, "r", 0x8000 - i * 4096) for i in range(32768)]
    figure = permissions_figure([Lane("guest CPU", Runs.of([(0, VMM[0], "rwx", 0), *blank]))], GUEST, VMM)
    assert "guest CPU: 0x77c00000-0x7fc00000 r, 128 MiB, to host-physical 0x77c08000, each page" in tips(figure)
    assert "one and the same page everywhere" in figure.svg
    assert figure.alt.endswith("4 KiB of the VMM's memory among it")


def test_many_runs_are_drawn_by_pixel_and_one_alone_is_not_lost():
    many = [(i << 13, (i << 13) + 4096, "rw", 0) for i in range(20000)]
    lonely = (1 << 40, (1 << 40) + 4096, "w", 0)
    figure = permissions_figure([Lane("noise", Runs.of([*many, lonely]))], GUEST, VMM, scale="linear")
    assert len(figure.svg) < 60000
    assert any("write only" in tip for tip in tips(figure) if tip.startswith("noise: "))
    mixed = permissions_figure([Lane("noise", Runs.of([(a, b, "r" if a >> 13 & 1 else "w", o) for a, b, _, o in many]))])
    assert any("several within one pixel" in tip for tip in tips(mixed))
