"""The workbench as a person uses it: JupyterLab in Chromium, clicks and keys."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from labserver import SMALL, Lab, open_notebook, run_all

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.xdist_group("browser")]


PERMISSIONS = re.compile("Permissions")


@pytest.fixture
def small(page: Page, lab: Lab) -> Locator:
    """A notebook with the workbench of a machine of 6 GiB, run."""
    panel = open_notebook(page, lab, SMALL)
    run_all(page, panel)
    return panel


def keep(page: Page, screenshots: Path | None, name: str) -> None:
    """A picture for a person, where one is wanted."""
    if screenshots:
        page.screenshot(path=screenshots / f"{name}.png")


def test_the_notebook_runs_and_without_vtd_trans_the_disk_is_back(page, lab, screenshots):
    panel = open_notebook(page, lab, "00-workbench.ipynb")
    run_all(page, panel)
    page.evaluate("() => window.jupyterapp.shell.currentWidget.content.scrollToItem(0)")
    outcome, pending = panel.locator(".hvlab-outcome"), panel.locator(".hvlab-pending")
    expect(outcome).to_have_text("disk-lost")
    expect(panel.locator(".hvlab-why")).to_contain_text("PTE Read access is not set")
    expect(panel.get_by_role("img", name=PERMISSIONS).first).to_contain_text("domain 0")
    keep(page, screenshots, "workbench")
    panel.get_by_role("button", name="VTD_TRANS=y").click()
    expect(panel.get_by_role("button", name="VTD_TRANS=n")).to_be_visible()
    expect(pending).to_contain_text("VTD_TRANS=n")
    expect(outcome).to_have_text("disk-lost")
    panel.get_by_role("button", name="Reboot").click()
    expect(outcome).to_have_text("up")
    expect(pending).to_be_empty()
    expect(panel.get_by_role("img", name=PERMISSIONS).first).to_contain_text("untranslated")
    keep(page, screenshots, "workbench-off")


def test_the_guest_answers_and_an_address_is_looked_up(page, small, screenshots):
    log = small.get_by_role("log", name="Guest's console")
    field = small.get_by_role("textbox", name="Guest's console: a command")
    expect(log).to_contain_text("lab: ready")
    field.fill("peek 0x100000 4")
    field.press("Enter")
    expect(log).to_contain_text("lab> peek 0x100000 4")
    expect(field).to_have_value("")
    field.press("ArrowUp")
    expect(field).to_have_value("peek 0x100000 4")
    address = small.get_by_role("textbox", name="Address")
    address.fill("0x77c09000")
    address.press("Enter")
    expect(small.locator(".hvlab-lens")).to_contain_text("secret")
    keep(page, screenshots, "console")
    address.fill("nowhere")
    address.press("Enter")
    expect(small.locator(".hvlab-why")).to_contain_text("'nowhere' is no address")


def test_the_keyboard_reaches_the_controls_and_another_machine_can_be_chosen(page, small, screenshots):
    small.get_by_role("button", name="VTD_TRANS=y").focus()
    page.keyboard.press("Space")
    expect(small.get_by_role("button", name="VTD_TRANS=n")).to_be_focused()
    pending = small.locator(".hvlab-pending")
    expect(pending).to_contain_text("VTD_TRANS=n")
    page.keyboard.press("Space")
    expect(pending).to_be_empty()
    small.get_by_label("Machine").select_option("q35-2g")
    expect(pending).to_contain_text("machine q35-2g")
    expect(small.locator(".hvlab-outcome")).to_have_text("disk-lost")
    small.get_by_role("button", name="Reboot").focus()
    page.keyboard.press("Enter")
    expect(small.locator(".hvlab-outcome")).to_have_text("up")
    expect(pending).to_be_empty()
    keep(page, screenshots, "small")


def test_the_dark_theme_and_a_narrow_window(page, small, screenshots):
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
    page.set_viewport_size({"width": 900, "height": 1100})
    picture = small.get_by_role("img", name=re.compile("E820")).first
    colour = picture.get_by_text("firmware", exact=True).evaluate("e => getComputedStyle(e).fill")
    assert all(int(part) > 200 for part in re.findall(r"\d+", colour)[:3]), colour
    area = small.locator(".jp-OutputArea").first
    assert picture.bounding_box()["width"] == 640
    assert area.evaluate("e => e.scrollWidth <= e.clientWidth")
    keep(page, screenshots, "dark")
