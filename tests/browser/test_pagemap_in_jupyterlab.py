"""The page map as a person uses it: zoomed, searched and chosen in, beside a picture that follows."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from accessible import amiss
from labserver import Lab, with_cell

pytestmark = pytest.mark.needs("chromium")

BAD = 0x8765432
"""The one page of 2^28 that can be written."""
ONE_PAGE = f"""
from hvcore.inspect.runs import Runs
from widgets.lanes import MapLane
from widgets.pagemap import PageMap
runs = Runs.of([(0, {BAD << 12}, "r", 0), ({BAD << 12}, {BAD + 1 << 12}, "rw", 1 << 30), ({BAD + 1 << 12}, 1 << 40, "r", 0)])
view = PageMap(axis="linear")
view.show_lanes([MapLane("domain 3", runs, "iova", ("0xfed90000/0x3",))])
view
"""
MACHINE = """
from hvcore import Config, Machine
from widgets import e820_view
from widgets.pagemap import PageMap
from widgets.picture import Picture
from widgets.selection import Selection
machine = Machine.load("q35-6g")
before, after, chosen = machine.boot(Config(VTD_TRANS=True)), machine.reboot(IOMMU_MAP_END="ram"), Selection()
display(PageMap(after, chosen), Picture(e820_view(after), chosen), PageMap.compare(before, after))
"""
COLOURS = """canvas => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size;
}"""


class Map:
    """A page map in the notebook."""

    def __init__(self, page: Page, element: Locator):
        self.page, self.element = page, element
        self.stage = element.get_by_role("application")
        self.canvas = self.stage.locator("canvas")
        self.said = element.get_by_role("status")

    def press(self, *keys: str) -> None:
        self.stage.focus()
        for key in keys:
            self.page.keyboard.press(key)

    def seen(self, name: str) -> int:
        """A number that the canvas tells of what it drew."""
        return int(self.canvas.get_attribute(f"data-{name}"), 0)

    def click(self, name: str) -> None:
        self.element.get_by_role("button", name=name).click()


@pytest.fixture
def one(page: Page, lab: Lab) -> Map:
    return Map(page, with_cell(page, lab, ONE_PAGE).locator(".hvlab-pagemap"))


@pytest.fixture
def three(page: Page, lab: Lab) -> tuple[Map, Locator, Map]:
    """A map and a picture with one selection, and the map of what changed."""
    panel = with_cell(page, lab, MACHINE)
    maps = panel.locator(".hvlab-pagemap")
    return Map(page, maps.nth(0)), panel.locator(".hvlab-picture"), Map(page, maps.nth(1))


def keep(page: Page, screenshots: Path | None, name: str) -> None:
    if screenshots:
        page.screenshot(path=screenshots / f"{name}.png")


def test_one_page_among_2_to_the_28_is_seen_found_and_zoomed_to(page, one, screenshots):
    expect(one.canvas).to_have_attribute("data-mixed", "1")
    one.element.get_by_label("What to find").select_option("mixed pixel")
    one.press("n")
    expect(one.canvas).to_have_attribute("data-cursor", f"{BAD << 12:#x}")
    expect(one.said).to_contain_text("several in this pixel: read and write, read only; zoom in")
    one.press(*["+"] * 30)
    expect(one.element.locator(".hv-quiet").first).to_contain_text("one page is 160 pixels wide")
    assert one.seen("first") <= BAD << 12 < one.seen("after")
    expect(one.canvas).to_have_attribute("data-mixed", "0")
    expect(one.said).not_to_contain_text("several")
    one.press("ArrowLeft", "ArrowRight")
    words = (f"domain 3: {BAD << 12:#x}", f"read and write, {BAD << 12:#x}-{BAD + 1 << 12:#x}, 1 page (4 KiB)",
             f"leads to host-physical {(BAD << 12) + (1 << 30):#x}", "E820 has nothing here")
    expect(one.said).to_have_text(" \u00b7 ".join(words))
    keep(page, screenshots, "pagemap-page")
    assert not amiss(page, ".hvlab-pagemap")
    one.press("0")
    expect(one.canvas).to_have_attribute("data-after", f"{1 << 40:#x}")
    one.press("n")
    expect(one.said).to_have_text("domain 3: no further mixed pixel")


def test_the_grid_rings_the_one_page_and_shows_it_large(page, one, screenshots):
    one.click("Grid")
    expect(one.canvas).to_have_attribute("data-mixed", "1")
    keep(page, screenshots, "pagemap-grid")
    one.element.get_by_label("What to find").select_option("page that can be written")
    one.press("Home", "n")
    expect(one.canvas).to_have_attribute("data-cursor", f"{BAD << 12:#x}")
    one.press(*["+"] * 25)
    expect(one.element.locator(".hv-quiet").first).to_contain_text("each cell: 1 page (4 KiB), each row: 32 KiB")
    assert one.seen("first") <= BAD << 12 < one.seen("after")
    keep(page, screenshots, "pagemap-grid-page")
    one.press("ArrowDown")
    expect(one.canvas).to_have_attribute("data-cursor", f"{BAD + 8 << 12:#x}")
    assert not amiss(page, ".hvlab-pagemap")


def test_one_permission_is_looked_at_alone(one):
    colours = one.canvas.evaluate(COLOURS)
    button = one.element.get_by_role("button", name="rw: read and write")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(one.canvas).to_have_attribute("data-mixed", "1")
    one.page.wait_for_function(f"([canvas, colours]) => ({COLOURS})(canvas) !== colours", arg=[one.canvas.element_handle(), colours])
    one.element.get_by_role("button", name="mixed").click()
    expect(button).to_have_attribute("aria-pressed", "false")


def test_what_is_pointed_at_is_told_and_dragging_pans(page, one):
    one.press(*["+"] * 4)
    box = one.canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 65)
    expect(one.said).to_contain_text("domain 3: 0x")
    assert float(one.canvas.get_attribute("data-hover-ms")) >= 0
    first = one.seen("first")
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 - 200, box["y"] + 65)
    page.mouse.up()
    expect(one.canvas).not_to_have_attribute("data-first", f"{first:#x}")
    assert one.seen("first") > first
    there = one.seen("first")
    one.press("Shift+ArrowLeft")
    page.wait_for_function("([canvas, first]) => Number(canvas.dataset.first) < first", arg=[one.canvas.element_handle(), there])


def test_views_follow_one_another(page, three, screenshots):
    found, picture, _ = three
    picture.get_by_role("button", name=re.compile("firmware: 0x100000000-")).click()
    expect(found.canvas).to_have_attribute("data-cursor", "0x100000000")
    expect(found.stage.locator(".hv-chosen")).to_be_visible()
    found.element.get_by_role("button", name="domain 0", exact=True).click()
    found.press("Home", "n")
    expect(found.said).to_contain_text("the VMM's memory")
    found.press("Enter")
    expect(picture.locator(".hv-chosen").first).to_have_accessible_name(re.compile("VMM|usable"))
    expect(picture.locator(".hv-marker")).to_be_visible()
    found.press("+", "+", "+", "+", "PageDown", "PageDown", "PageDown")
    expect(found.stage.locator(".hv-chosen")).to_be_hidden()
    found.click("Show the selected address")
    expect(found.stage.locator(".hv-chosen")).to_be_visible()
    picture.get_by_role("button", name=re.compile("firmware: 0x100000000-")).click()
    expect(found.said).to_contain_text("0x100000000")
    keep(page, screenshots, "pagemap")
    assert not amiss(page, ".hvlab-pagemap")


def test_what_changed_between_two_runs(page, three, screenshots):
    changes = three[2]
    changes.element.scroll_into_view_if_needed()
    changes.element.get_by_role("button", name="domain 0", exact=True).click()
    expect(changes.element.get_by_label("What to find")).to_have_value("difference")
    changes.press("Home", "n")
    expect(changes.said).to_contain_text("not mapped before, read and write after, 0x100000000-0x200000000")
    expect(changes.element.get_by_role("button", name="+: gained")).to_be_visible()
    expect(changes.stage).to_have_attribute("aria-label", re.compile(r"domain 0: .*1,048,576 pages \(4 GiB\) gained"))
    keep(page, screenshots, "pagemap-changes")


@pytest.mark.parametrize("width", [600, 2400])
def test_dark_and_narrow_or_wide(page, three, screenshots, width):
    found = three[0]
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
    page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.set_viewport_size({"width": width, "height": 1100})
    page.wait_for_function("canvas => Math.abs(canvas.width - canvas.parentElement.clientWidth) < 2", arg=found.canvas.element_handle())
    assert found.element.evaluate("e => e.scrollWidth <= e.clientWidth")
    keep(page, screenshots, f"pagemap-dark-{width}")
    assert not amiss(page, ".hvlab-pagemap")
