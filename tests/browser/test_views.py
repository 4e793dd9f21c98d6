"""Fault table, walk explainer, lens, memory map and registers on one selection, as a person uses them in JupyterLab."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from accessible import amiss
from labserver import Lab, with_cell

pytestmark = pytest.mark.needs("chromium")

# The disk's own fault, and one more of each unit's first device at a known place.
CODE = """
from IPython.display import display
from hvcore import Machine
from hvcore.spec.dma import Direction, DmaRequest
from widgets import FaultTable, LensView, Picture, Registers, Selection, WalkExplainer, e820_view
machine = Machine.load("nvme-desktop-16g")
run, chosen = machine.boot(), Selection()
for unit, told in zip(machine.pc.units, run.units):
    unit.remap(DmaRequest(told.devices[0], 0x380000000, 8, Direction.WRITE))
faults, walk = FaultTable(run, chosen), WalkExplainer(run, chosen)
display(faults, walk, LensView(run, chosen), Picture(e820_view(run), chosen), Registers(run))
"""
SCALE = """
from hvcore.inspect.format import address
from hvcore.inspect.records import Column, Record, Records
from widgets import Table
class Row(Record):
    columns = (Column("number", lambda r: r.n, right=True), Column("address", lambda r: r.n * 4096, address, True),
               Column("kind", lambda r: ("read", "write")[r.n % 2]), Column("said_so", lambda r: f"00:{r.n % 32:02x}.0 says no"))
    def __init__(self, n): self.n = n
Table(Records(Row, [Row(n * 7919 % 100_003) for n in range(1000)], title="Rows"), choice=lambda i, row: {"address": row.n * 4096})
"""


class Views:
    """The cell's views."""

    def __init__(self, page: Page, panel: Locator):
        self.page = page
        self.faults, self.registers = panel.locator(".hvlab-table").first, panel.locator(".hvlab-table").last
        self.walk, self.lens, self.picture = panel.locator(".hvlab-walk"), panel.locator(".hvlab-lens"), panel.locator(".hvlab-picture")
        self.step = self.walk.locator(".hv-steps [aria-current=step]")


@pytest.fixture
def views(page: Page, lab: Lab) -> Iterator[Views]:
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield Views(page, with_cell(page, lab, CODE))
    assert not errors, errors[:3]


@pytest.fixture
def rows(page: Page, lab: Lab) -> Locator:
    """A table of a thousand rows."""
    return with_cell(page, lab, SCALE).locator(".hvlab-table")


def keep(page: Page, screenshots: Path | None, name: str) -> None:
    if screenshots:
        page.screenshot(path=screenshots / f"{name}.png")


def column(table: Locator, number: int) -> list[str]:
    return table.locator(f"tbody td:nth-child({number})").all_inner_texts()


# --- tables

def test_a_table_is_sorted_by_keyboard(page, rows):
    expect(rows.get_by_role("status")).to_have_text("rows 1-100 of 1000")
    rows.get_by_role("button", name="number").focus()
    page.keyboard.press("Enter")
    expect(rows.get_by_role("columnheader", name="number")).to_have_attribute("aria-sort", "ascending")
    numbers = [int(n) for n in column(rows, 1)]
    everything = sorted(n * 7919 % 100_003 for n in range(1000))
    assert numbers == everything[:100]
    expect(rows.get_by_role("button", name="number")).to_be_focused()
    page.keyboard.press("Enter")
    assert [int(n) for n in column(rows, 1)] == everything[:-101:-1]
    rows.get_by_role("button", name="Next rows").click()
    expect(rows.get_by_role("status")).to_have_text("rows 101-200 of 1000")
    assert [int(n) for n in column(rows, 1)] == everything[-101:-201:-1]
    rows.get_by_role("button", name="number").click()
    expect(rows.get_by_role("columnheader", name="number")).to_have_attribute("aria-sort", "none")


FILTERS = {
    "write": lambda n: n % 2, "kind: write": lambda n: n % 2, "kind: read; 00:1f.0": lambda n: not n % 2 and n % 32 == 31,
    "00:1f.0 READ": lambda n: not n % 2 and n % 32 == 31, "so: 00:1f.0": lambda n: n % 32 == 31, "kind: 00:1f.0": lambda n: False,
    "0x1000000 - 0x2000000": lambda n: 0x1000 <= n < 0x2000, "says (no": lambda n: False, "": lambda n: True,
    "address: 0x1000000-0x2000000 kind: write": lambda n: 0x1000 <= n < 0x2000 and n % 2}
"""What is written, and which rows of SCALE it leaves."""


def test_a_table_is_filtered(rows):
    for words, fits in FILTERS.items():
        left = [n * 7919 % 100_003 for n in range(1000) if fits(n * 7919 % 100_003)]
        rows.get_by_role("searchbox", name="Filter rows").fill(words)
        expect(rows.get_by_role("status")).to_contain_text(re.compile(f"(of |^){len(left)}( rows|, filtered|$)"))
        assert column(rows, 1) == [str(n) for n in left[:100]], words


def test_rows_are_gone_through_and_chosen_by_keys(page, rows):
    first = rows.locator("button.hv-choose").first
    first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    third = rows.locator("button.hv-choose").nth(2)
    expect(third).to_be_focused()
    page.keyboard.press("Enter")
    expect(third).to_have_attribute("aria-pressed", "true")
    expect(third).to_be_focused()
    assert rows.locator("button.hv-choose[tabindex='0']").count() == 1
    page.keyboard.press("End")
    expect(rows.locator("button.hv-choose").nth(99)).to_be_focused()


# --- views on one selection

def test_a_fault_chosen_by_keyboard_is_followed_everywhere(page, views, screenshots):
    views.faults.get_by_role("searchbox").fill("address: 0x380000000")
    expect(views.faults.locator("tbody tr")).to_have_count(1)
    views.faults.locator("button.hv-choose").focus()
    page.keyboard.press("Enter")
    expect(views.walk.locator("h5")).to_have_text(re.compile("write at IOVA 0x380000000"))
    expect(views.walk.get_by_label("IOVA", exact=True)).to_have_value("0x380000000")
    expect(views.lens.get_by_role("status")).to_contain_text("IOVA 0x380000000 of domain 0: nothing mapped")
    expect(views.picture.locator(".hv-marker")).to_be_visible()
    expect(views.picture.locator(".hv-chosen").first).to_have_accessible_name(re.compile("0x100000000-"))
    expect(views.registers).to_contain_text("GSTS")
    keep(page, screenshots, "views")
    assert not amiss(page, ".hvlab-view")


def test_the_walk_is_stepped_by_keys(page, views, screenshots):
    views.faults.locator("button.hv-choose").last.click()
    expect(views.step).to_have_text(re.compile("translation"))
    views.step.focus()
    for what in ("root entry", "context entry", "address width", "level 3", "verdict"):
        page.keyboard.press("ArrowRight")
        expect(views.step).to_have_text(re.compile(what))
        expect(views.step).to_be_focused()
    expect(views.walk.get_by_role("button", name="Next step")).to_be_disabled()
    page.keyboard.press("ArrowLeft")
    detail = views.walk.get_by_role("group")
    expect(detail).to_contain_text(re.compile(r"table 0x[0-9a-f]+ \+ 8 × index 0x[0-9a-f]+ = entry 0x[0-9a-f]+"))
    expect(detail.get_by_role("row", name=re.compile("had to be set"))).to_have_count(1)
    assert detail.locator(".hv-bit").count() == 64
    assert detail.locator(".hv-lacks").count() == 1
    expect(detail.get_by_role("img", name=re.compile("level 3, bits 38:30, 0x[0-9a-f]+ .used here"))).to_be_visible()
    detail.get_by_role("button", name="ADDR", exact=True).click()
    assert detail.locator(".hv-marked").count() == 40
    page.keyboard.press("Home")
    expect(views.step).to_have_text(re.compile("translation"))
    views.walk.get_by_role("button", name=re.compile("level 3")).click()
    entry = views.walk.get_by_role("button", name=re.compile("Choose the entry's address"))
    address = entry.inner_text().rpartition(" ")[2]
    entry.click()
    expect(views.lens.get_by_role("status")).to_have_text(f"host-physical {address}")
    expect(views.lens).to_contain_text("page of its second-level tables")
    expect(views.step).to_have_text(re.compile("level 3"))
    keep(page, screenshots, "walk")


def test_any_request_can_be_asked_about(page, views):
    views.walk.get_by_label("Access", exact=True).select_option("write")
    field = views.walk.get_by_label("IOVA", exact=True)
    field.fill("0x100123")
    field.press("Enter")
    expect(views.walk.locator("h5")).to_contain_text("write at IOVA 0x100123")
    expect(views.walk.locator(".hv-verdict")).to_have_text(re.compile("✓ goes through: reaches host-physical 0x100123"))
    field.fill("nowhere")
    field.press("Enter")
    expect(views.walk.get_by_role("status")).to_have_text("'nowhere' is no address: write it like 0x7a3e1000")
    views.walk.get_by_label("Fault", exact=True).select_option("0")
    expect(views.faults.locator("tr.hv-chosen")).to_have_count(1)
    expect(views.walk.locator(".hv-verdict")).to_have_text(re.compile("✗ blocked"))


@pytest.mark.parametrize("width", [600, 2000])
def test_dark_and_narrow_or_wide(page, views, screenshots, width):
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
    page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.set_viewport_size({"width": width, "height": 1400})
    views.faults.locator("button.hv-choose").last.click()
    views.walk.get_by_role("button", name=re.compile("level 3")).click()
    for view in (views.faults, views.walk, views.lens):
        assert view.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
    keep(page, screenshots, f"views-dark-{width}")
    assert not amiss(page, ".hvlab-view")
