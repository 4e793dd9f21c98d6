"""The views of memory map, graph and protection window in JupyterLab: choosing a function shows its way, what is chosen is followed."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from accessible import amiss
from labserver import Lab, with_cell

pytestmark = pytest.mark.needs("chromium")

CODE = """
from IPython.display import display
from hvcore import Machine
from widgets.selection import Selection
from widgets.views import E820View, GraphView, PermissionsView, TimelineView
machine = Machine.load("q35-2g-bridges")
run = machine.boot()
selection = Selection()
for view in (E820View, GraphView, PermissionsView, TimelineView):
    display(view(run, selection))
"""


@pytest.fixture
def panel(page: Page, lab: Lab) -> Locator:
    return with_cell(page, lab, CODE, "views.ipynb")


def on_path(view: Locator) -> int:
    """How many shapes are marked as lying on the way."""
    return int(view.evaluate("e => e.querySelectorAll('.hv-on-path').length"))


def test_a_function_shows_its_way_and_a_blocked_one_where_it_ends(panel):
    graph = panel.locator(".hvlab-picture").nth(1)
    disk = graph.get_by_role("button", name=re.compile("^00:02.0 NVMe"))
    disk.click()
    expect(disk).to_have_class(re.compile("hv-chosen"))
    expect(graph.get_by_role("status")).to_contain_text("00:02.0 NVMe [1b36:0010]")
    marked = on_path(graph)
    assert marked >= 12
    expect(graph.locator("g.hv-on-path", has_text="blocked")).to_have_count(0)
    graph.get_by_role("button", name=re.compile("^02:04.0")).click()
    expect(graph.locator("g.hv-on-path", has_text="blocked")).to_have_count(1)
    expect(graph.locator("g.hv-on-path", has_text="domain 0")).to_have_count(0)


def test_by_keyboard_through_the_graph_and_what_is_chosen_is_followed(page, panel):
    e820, graph = (panel.locator(".hvlab-picture").nth(i) for i in (0, 1))
    graph.locator("[tabindex='0'][data-path]").first.focus()
    page.keyboard.press("ArrowDown")
    expect(graph.get_by_role("status")).not_to_be_empty()
    graph.get_by_role("button", name=re.compile("table pages")).focus()
    page.keyboard.press("Enter")
    expect(e820.locator(".hv-marker")).to_have_count(1)
    expect(e820.get_by_role("button", name=re.compile("^VMM 0x"))).to_have_class(re.compile("hv-chosen"))
    expect(graph.get_by_role("button", name=re.compile("table pages"))).to_have_class(re.compile("hv-chosen"))


def test_scales_and_axes_are_switched(panel):
    for number, name, words in ((0, "log", "log scale"), (0, "linear", "linear scale"), (3, "time", "virtual time")):
        view = panel.locator(".hvlab-picture").nth(number)
        view.get_by_role("button", name=name, exact=True).click()
        expect(view.get_by_role("button", name=name, exact=True)).to_have_attribute("aria-pressed", "true")
        expect(view.locator("svg")).to_contain_text(words)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_accessible_in_both_themes_and_in_a_narrow_window(page: Page, panel: Locator, screenshots: Path | None, theme: str):
    page.evaluate("(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", f"JupyterLab {theme}")
    page.wait_for_function(f"() => document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'")
    panel.locator(".hvlab-picture").nth(1).get_by_role("button", name=re.compile("^00:02.0")).click()
    if screenshots:
        page.screenshot(path=screenshots / f"run-views-{theme.lower()}.png")
    page.set_viewport_size({"width": 600, "height": 1100})
    assert not amiss(page, ".hvlab-picture")
    frame = panel.locator(".hvlab-picture .hv-frame").nth(1)
    assert frame.evaluate("e => e.scrollWidth > e.clientWidth")
    assert frame.locator("svg").bounding_box()["width"] == 864
