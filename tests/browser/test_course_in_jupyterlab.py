"""A prediction of the course as a person makes it: by keyboard, told of it, and held beside the machine's answer."""

import pytest
from playwright.sync_api import Page, expect

from accessible import amiss
from labserver import ERRORS, Lab, with_cell

pytestmark = pytest.mark.needs("chromium")

CELL = """
from ipywidgets import HTML
from widgets.course import Course
course, shown = Course("en"), HTML()
disk = course.predict("Is <b>the disk</b> there?", {"up": "yes", "disk-lost": "no"})
disk.observe(lambda change: setattr(shown, "value", disk.reveal("up")._repr_html_()), "chosen")
display(disk, course.predict("Another?", ["one", "two"]), shown, course.check("06-tables", 4096))
"""


def test_a_prediction_is_made_by_keyboard_and_held_beside_the_answer(page: Page, lab: Lab) -> None:
    panel = with_cell(page, lab, CELL)
    first, second = panel.get_by_role("group", name="Is <b>the disk</b> there?"), panel.get_by_role("group", name="Another?")
    expect(first.get_by_role("radio")).to_have_count(2)
    expect(panel.get_by_text("no prediction")).to_have_count(2)
    second.get_by_label("one").check()
    first.get_by_label("yes").focus()
    page.keyboard.press("ArrowDown")
    expect(first.get_by_label("no")).to_be_checked()
    expect(second.get_by_label("one")).to_be_checked()
    expect(panel.get_by_text("not as predicted")).to_be_visible()
    first.get_by_label("yes").check()
    expect(panel.get_by_text("✓ as predicted")).to_be_visible()
    expect(panel.get_by_text("Those are the tables of level 1.")).to_be_visible()
    assert not amiss(page, ".hvlab-predict")
    assert panel.locator(ERRORS).count() == 0
