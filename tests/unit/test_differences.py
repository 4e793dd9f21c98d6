"""Differences of two runs as figures, the figures of a run's parts, and the views made of them."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore import Config, Machine
from hvcore.errors import HvlabError
from hvcore.inspect.runs import Runs
from widgets.compare import compare_figures
from widgets.differences import KINDS, changes_of, subjects_of
from widgets.scale import SCALES
from widgets.selection import Selection
from widgets.views import E820View, GraphView, PermissionsView, TimelineView

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def runs():
    with Machine.load("q35-6g") as machine:
        on = machine.boot(Config(VTD_TRANS=True))
        yield on, machine.boot(Config(VTD_TRANS=False))


# --- what differs

@pytest.mark.parametrize(("before", "after", "kind"), [
    ("rw", "r", "lost"), ("r", "rw", "gained"), ("r", "w", "changed"), ("-", "rw", "gained"), ("rw", "-", "lost"), ("rwx", "rx", "lost"),
    ("untranslated", "rw", None), ("untranslated", "r", "lost"), ("usable", "reserved", "changed"),
])
def test_a_difference_is_gained_lost_or_changed(before, after, kind):
    found = changes_of(Runs.of([(0x1000, 0x3000, before, 0)]), Runs.of([(0x1000, 0x3000, after, 0)]))
    assert [(r.start, r.end, r.perm) for r in found] == ([(0x1000, 0x3000, kind)] if kind else [])


def test_what_leads_elsewhere_has_changed_and_no_access_is_as_good_as_no_entry():
    assert [r.perm for r in changes_of(Runs.of([(0, 4096, "rw", 0)]), Runs.of([(0, 4096, "rw", 4096)]))] == ["changed"]
    assert len(changes_of(Runs.of([(0, 4096, "-", 0)]), Runs.of([]))) == 0


PAGES = st.lists(st.sampled_from(["", "-", "r", "w", "rw"]), max_size=24)


def as_runs(pages: list[str]) -> Runs:
    return Runs.of((i << 12, i + 1 << 12, perm, 0) for i, perm in enumerate(pages) if perm)


@given(PAGES, PAGES)
def test_differences_agree_with_a_comparison_page_by_page(before, after):
    found = changes_of(as_runs(before), as_runs(after))
    count = max(len(before), len(after))
    for i in range(count):
        a, b = (set((pages[i] if i < len(pages) else "").replace("-", "")) for pages in (before, after))
        kind = None if a == b else "gained" if a < b else "lost" if b < a else "changed"
        run = found.at(i << 12)
        assert (run.perm if run else None) == kind


def test_switching_translation_off_gives_devices_the_vmm(runs):
    on, off = runs
    subject = next(s for s in subjects_of(on, off) if s.name.startswith("unit"))
    assert subject.name == "unit 0xfed90000, domain 0"
    base, end = on.vmm.base, on.vmm.base + on.vmm.size
    pages = np.arange(base, end, 4096, dtype=np.uint64)
    assert set(subject.differences.rights_at(pages)) == {"gained"}
    assert set(subject.differences.letters) == {"gained"}
    assert "unit 0xfed90000, domain 0: " in on.diff(off).figure().alt


@pytest.mark.parametrize("scale", SCALES)
def test_the_figure_of_differences_marks_them_and_says_what_is_the_same(runs, scale):
    on, off = runs
    figure = on.diff(off).figure(scale=scale)
    root = ET.fromstring(figure.svg)
    texts = {t.text for t in root.iter(f"{SVG}text")}
    assert {"guest CPU: no difference", "E820 of the guest: no difference", "before", "after", "difference", "+ gained"} <= texts
    assert {"untranslated", "gained"} <= {td.text for td in ET.fromstring(figure.table).iter("td")}
    assert "no difference" in on.diff(on).figure().alt
    assert "gained" not in on.diff(on).figure().alt
    assert len({fill.hatch for fill in KINDS.values()}) == 3


# --- side by side

def places(svg: str) -> list[str]:
    """The labels of a figure's axis with their places."""
    return re.findall(r'<text x="([\d.]+)"[^>]*>(0x[0-9a-f]+)<', svg)


def test_figures_side_by_side_have_the_same_axis_and_mark_the_same_ranges(runs):
    both = compare_figures(*runs)
    assert places(both.e820.before.svg) == places(both.e820.after.svg)
    assert places(both.permissions.before.svg) == places(both.permissions.after.svg)
    before, after = (re.findall(r"different: (0x[0-9a-f]+-0x[0-9a-f]+)", f.svg) for f in (both.permissions.before, both.permissions.after))
    assert before == after
    assert before
    assert "different: " not in both.e820.before.svg
    assert [f.svg.count(">≠<") for f in (both.graph.before, both.graph.after)] == [1, 1]
    same = compare_figures(runs[0], runs[0])
    assert all("≠<" not in f.svg and "different: " not in f.svg for pair in same.pairs for f in (pair.before, pair.after))


def test_the_comparison_shows_both_by_name(runs):
    both = compare_figures(*runs)
    assert both._repr_html_().count("<figure") == 6
    assert f"run {runs[0].number}: " in both._repr_html_()


# --- figures of a run's parts

@pytest.mark.parametrize("part", ["e820", "units", "domains", "permissions", "history"])
def test_parts_of_a_run_have_figures_that_can_be_saved(runs, part, tmp_path):
    figure = getattr(runs[1], part).figure()
    assert figure.save(tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")
    assert ET.parse(figure.save(tmp_path / "it.svg")).getroot().tag == f"{SVG}svg"
    assert figure.alt
    assert "<desc id=" in figure.svg


def test_a_kept_run_has_figures_too(runs):
    assert not runs[0].live
    assert "in domain 0" in runs[0].domains.figure().alt
    assert "translation is off" in runs[1].domains.figure().alt


def test_the_figure_is_of_the_records_it_was_asked_of(runs):
    assert "in domain 0" in runs[0].units.figure().alt
    with pytest.raises(HvlabError, match="no figure of these records"):
        runs[0].faults.figure()


def test_without_the_drawing_packages_a_sentence_says_what_to_install():
    code = ("import sys; sys.modules['anywidget'] = None\n"
            "from hvcore import Machine\n"
            "from hvcore.errors import HvlabError\n"
            "with Machine.load('q35-2g') as machine:\n"
            "    try: machine.boot().e820.figure()\n"
            "    except HvlabError as e: print(e)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "anywidget" in done.stdout
    assert "pip install" in done.stdout


# --- views

@pytest.mark.parametrize(("view", "names"), [(E820View, set(SCALES)), (PermissionsView, set(SCALES)), (GraphView, {""}),
                                             (TimelineView, {"even", "time"})])
def test_a_view_shows_a_run_and_then_another_and_stays_on_its_scale(runs, view, names):
    selection = Selection()
    shown = view(runs[0], selection)
    assert shown.selection is selection
    assert set(shown.pictures) == names
    shown.shown = max(names)
    before = shown.figure
    shown.show(runs[1])
    assert shown.shown == max(names)
    assert (shown.figure == before) == (view is E820View)
    shown.show(runs[0])
    assert shown.figure == before
