"""Which guest, moments of the past and machines in files, as a person uses them: JupyterLab in Chromium, clicks and keys."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect
from test_in_jupyterlab import Bench, bench, keep

from accessible import amiss
from labserver import Lab, with_cell

__all__ = ["bench"]
pytestmark = pytest.mark.needs("chromium")

BENCH = "from widgets import Workbench\nWorkbench('q35-2g')"
NONE = "import os\nos.environ['HVLAB_CACHE'] = 'empty'\n" + BENCH
LONGEST_TASKS = """() => {
    window.longest = 0;
    new PerformanceObserver((list) => {
        for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration);
    }).observe({ type: 'longtask' });
}"""
"""The longest that the page could not answer, in milliseconds (0 where never for 50), from now on."""


def moments(bench: Bench) -> Locator:
    return bench.element.locator(".hvlab-moments")


def progress(bench: Bench) -> Locator:
    return bench.element.locator(".hvlab-progress")


def choose_linux(bench: Bench, release: str) -> None:
    bench.element.get_by_label("Guest", exact=True).select_option(f"linux-{release}")
    expect(bench.pending).to_contain_text(f"guest Linux {release}")


# --- the lab guest

def test_without_a_linux_a_sentence_says_how_to_have_one(page: Page, lab: Lab) -> None:
    bench = Bench(page, with_cell(page, lab, NONE))
    guest = bench.element.get_by_label("Guest", exact=True)
    expect(guest).to_have_value("lab")
    expect(guest.locator("option:disabled")).to_have_text("Linux: none is here")
    expect(bench.element.locator(".hvlab-guest")).to_contain_text("run hvlab linux fetch in a terminal")
    expect(bench.element.locator(".hvlab-runs")).to_have_text("lab guest:")
    assert not amiss(page)


def test_by_keyboard_back_to_before_the_fault_and_on_from_there(page: Page, bench: Bench, screenshots: Path | None) -> None:
    back = bench.button("Go back before this")
    expect(back.first).to_have_attribute("aria-disabled", "false")
    back.first.click()
    expect(bench.element.locator(".hvlab-status")).to_contain_text("nothing of the machine's past is kept: tick 'keep moments'")
    bench.open("History")
    moments(bench).get_by_role("checkbox", name="keep moments").focus()
    page.keyboard.press("Space")
    expect(moments(bench).get_by_role("radio")).to_have_count(1)
    bench.button("Reboot").focus()
    page.keyboard.press("Enter")
    expect(moments(bench).get_by_role("radio")).not_to_have_count(1)
    keep(page, screenshots, "moments")
    kept = moments(bench).get_by_role("radio").count()
    moments(bench).get_by_role("radio").first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    expect(moments(bench).get_by_role("radio", name=re.compile("^moment 2, "))).to_be_checked()
    expect(moments(bench).locator("tr.hv-chosen")).to_contain_text("every so often")
    back.first.focus()
    page.keyboard.press("Enter")
    expect(bench.outcome).to_have_text("stopped")
    expect(back.first).to_be_focused()
    expect(moments(bench).get_by_role("status")).to_contain_text("Gone back to moment 3")
    expect(bench.element.get_by_role("heading", name="Recorded faults: none")).to_be_visible()
    go = moments(bench).get_by_role("button", name="Go back to moment 2")
    go.focus()
    page.keyboard.press("Enter")
    expect(moments(bench).get_by_role("status")).to_contain_text("Gone back to moment 2")
    expect(go).to_be_focused()
    bench.button("Step").click()
    bench.open("Instructions")
    expect(bench.element.get_by_role("heading", name="Instructions executed: 1")).to_be_visible()
    bench.button("Next exit").click()
    expect(bench.element.get_by_role("heading", name="Exit to the core: 1")).to_be_visible()
    bench.button("Go on").click()
    expect(bench.outcome).to_have_text("disk-lost")
    bench.open("History")
    expect(moments(bench).get_by_role("radio")).to_have_count(kept)


def test_a_request_is_gone_back_before_and_a_machine_saved_and_restored(page: Page, bench: Bench, lab: Lab) -> None:
    bench.open("History")
    bench.button("Remember now").click()
    expect(moments(bench).get_by_role("status")).to_contain_text("Moment 1 is kept")
    bench.type("dma r 0x3000 64")
    expect(bench.log).to_contain_text("dma r 0x3000 64")
    bench.button("Save").click()
    expect(progress(bench)).to_contain_text("saved: q35-6g-lab.snap")
    assert (lab.root / "q35-6g-lab.snap").stat().st_size > 10_000
    bench.open("DMA requests")
    rows = bench.element.get_by_role("region", name=re.compile("DMA requests"))
    rows.get_by_role("row").filter(has_text="0x3000").first.get_by_role("button").click()
    bench.button("Go back before this").nth(1).click()
    expect(bench.log).not_to_contain_text("dma r")
    expect(rows).not_to_contain_text("0x3000")
    bench.button("Restore").click()
    expect(progress(bench)).to_contain_text("restored: q35-6g-lab.snap")
    expect(bench.log).to_contain_text("dma r 0x3000 64")
    expect(rows).to_contain_text("0x3000")
    name = bench.element.get_by_label("Snapshot")
    name.fill("small.ipynb")
    bench.button("Save").click()
    expect(bench.element.locator(".hvlab-status")).to_contain_text("small.ipynb is there already and is no snapshot")
    expect(bench.button("Save")).to_be_enabled()


@pytest.mark.parametrize("width", [600, 900])
def test_the_history_is_whole_when_narrow_light_and_dark(page: Page, bench: Bench, screenshots: Path | None, width: int) -> None:
    page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.set_viewport_size({"width": width, "height": 1100})
    bench.open("History")
    moments(bench).get_by_role("checkbox").check()
    expect(moments(bench).get_by_role("radio")).to_have_count(1)
    bench.button("Reboot").click()
    expect(moments(bench).get_by_role("radio")).not_to_have_count(1)
    expect(bench.outcome).to_have_text("disk-lost")
    moments(bench).get_by_role("radio").first.check()
    for theme in ("Light", "Dark"):
        page.evaluate(f"() => window.jupyterapp.commands.execute('apputils:change-theme', {{ theme: 'JupyterLab {theme}' }})")
        page.wait_for_function("light => document.body.dataset.jpThemeLight === light", arg=str(theme == "Light").lower())
        expect(page.locator("#jupyterlab-splash")).to_have_count(0)
        assert bench.element.evaluate("e => e.scrollWidth <= e.clientWidth")
        assert moments(bench).evaluate("e => e.scrollWidth <= e.clientWidth")
        keep(page, screenshots, f"history-{width}-{theme.lower()}")
        assert not amiss(page)


# --- a real Linux

def test_a_linux_boots_is_typed_to_interrupted_and_goes_back(page: Page, lab: Lab, linux_cache: dict[str, str],
                                                             screenshots: Path | None) -> None:
    release = linux_cache["default"]
    bench = Bench(page, with_cell(page, lab, BENCH))
    choose_linux(bench, release)
    bench.button("VTD_TRANS=y").click()
    bench.button("Reboot").click()
    expect(progress(bench)).to_contain_text(re.compile(r"s of virtual time in .* s, about \d+ M instructions"))
    expect(progress(bench).locator("code")).to_have_text(re.compile(r"\[ +\d+\.\d+\] "))
    keep(page, screenshots, "linux-boots")
    bench.button("Stop").click()
    expect(bench.outcome).to_have_text("stopped")
    expect(bench.element.locator(".hvlab-runs")).to_have_text(f"Linux {release}:")
    bench.button("Go on").click()
    expect(bench.outcome).to_have_text("up", timeout=120_000)
    expect(bench.pending).to_be_empty()
    expect(bench.log).to_have_accessible_name(f"Guest's console (Linux {release})")
    bench.open("History")
    bench.button("Remember now").click()
    expect(moments(bench).get_by_role("status")).to_contain_text("Moment 1 is kept")
    bench.type("ls /dev/nvme*")
    expect(bench.log).to_contain_text(re.compile(r"ls /dev/nvme\*\s+/dev/nvme0\s+/dev/nvme0n1\s"))
    page.evaluate(LONGEST_TASKS)
    bench.type("dmesg; yes")
    expect(bench.log).to_contain_text(re.compile(r"y\s+y\s+y\s+y"))
    bench.field.press("Control+c")
    expect(bench.log).to_contain_text(re.compile(r"\^C\s+lab# $"))
    expect(bench.outcome).to_have_text("up")
    assert page.evaluate("() => window.longest") < 1000
    keep(page, screenshots, "linux")
    assert not amiss(page)
    moments(bench).get_by_role("radio").last.check()
    bench.button("Go back to moment 1").click()
    expect(bench.log).not_to_contain_text("ls /dev/nvme")
    expect(bench.log).to_contain_text(re.compile("lab# $"))
    bench.type("printf '\\033[1;31mred\\033[m\\n'")
    expect(bench.log).to_contain_text(re.compile(r"\sred\slab# $"))
