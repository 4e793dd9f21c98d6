"""The tabs of attacks and of the proof as a person uses them in JupyterLab: keys, evidence, what the other views make of it."""

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from accessible import amiss
from labserver import Lab, with_cell

pytestmark = pytest.mark.needs("chromium")

CODE = """
from widgets import Workbench
bench = Workbench("q35-6g")
bench
"""
SMALL = """
bench.attacks.run(["off", "bitvisor", "article"])
bench.attacks.wait()
bench
"""


class Bench:
    """The workbench in the notebook, by the names that a person reads."""

    def __init__(self, page: Page, panel: Locator):
        self.page = page
        self.element = panel.locator(".hvlab-workbench")
        self.grid, self.one, self.proof = (self.element.locator(f".hvlab-{name}") for name in ("matrix", "attack", "proof"))
        self.lens, self.walk = self.element.locator(".hvlab-lens"), self.element.locator(".hvlab-walk")
        self.outcome = self.element.locator(".hvlab-outcome")
        self.evidence = self.grid.get_by_role("region", name=re.compile("Evidence"))

    def open(self, tab: str) -> None:
        self.element.get_by_role("tab", name=tab, exact=True).click()

    def button(self, name: str) -> Locator:
        return self.element.get_by_role("button", name=name, exact=True)


@pytest.fixture
def bench(page: Page, lab: Lab) -> Bench:
    return Bench(page, with_cell(page, lab, CODE))


def dark(page: Page) -> None:
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")


def keep(page: Page, screenshots, name: str) -> None:
    if screenshots:
        page.screenshot(path=screenshots / f"{name}.png")


def test_the_grid_is_run_gone_through_by_keys_followed_by_all_views_and_booted_from(page, bench, screenshots):
    bench.open("Attacks")
    said = bench.grid.locator(".hv-said")
    bench.grid.get_by_role("button", name="Run all attacks").click()
    expect(bench.grid.locator("td button").first).to_be_visible()
    bench.grid.get_by_role("button", name="Stop the attacks").click()
    expect(said).to_have_text(re.compile(r"^Stopped\. \d+ of 64 attacks: "))
    bench.grid.get_by_role("button", name="Run all attacks again").click()
    expect(said).to_have_text(re.compile(r"^64 attacks: \d+ blocked, \d+ succeeded"), timeout=60_000)
    expect(bench.outcome).to_have_text("disk-lost")
    cells = bench.grid.get_by_role("table").first.locator("td button")
    expect(cells).to_have_count(64)
    assert bench.grid.locator("td button[tabindex='0']").count() == 1
    cells.first.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    expect(cells.nth(8)).to_be_focused()
    expect(cells.nth(8)).to_have_attribute("aria-pressed", "true")
    expect(cells.nth(8)).to_have_text("# blocked")
    expect(bench.evidence).to_have_accessible_name("Evidence: steal-key under the policy bitvisor")
    expect(bench.evidence).to_contain_text("00:03.0's DMA read at 0x77c09000 (reason 0x6: PTE Read access is not set)")
    expect(bench.evidence.get_by_label("What the guest said")).to_contain_text("attack: steal-key is over")
    expect(bench.lens.get_by_role("textbox", name="Address")).to_have_value("0x77c09000")
    expect(bench.lens).to_contain_text("secret")
    bench.open("Walk, step by step")
    expect(bench.walk.locator("h5")).to_have_text(re.compile("00:03.0 read at IOVA 0x77c09000"))
    expect(bench.walk.locator(".hv-verdict")).to_contain_text("blocked with reason 0x6")
    bench.open("Attacks")
    assert not amiss(page)
    cells.nth(8).focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    expect(bench.evidence).to_contain_text("the core's key, as the attacker has it")
    keep(page, screenshots, "attacks")
    bench.evidence.get_by_role("button", name="Boot this policy").click()
    expect(bench.outcome).to_have_text("up")
    expect(bench.element.get_by_label("Policy", exact=True)).to_have_value("off")
    expect(bench.button("VTD_TRANS=n")).to_be_visible()


def test_the_guest_attacks_and_the_proof_has_a_counterexample_that_all_views_follow(page, bench, screenshots):
    bench.open("Walk, step by step")
    expect(bench.walk).to_contain_text(re.compile(r"Without the unit: 0x[0-9a-f]+, .* would have been read"))
    bench.open("Attacks")
    bench.one.get_by_label("Attack", exact=True).select_option("clear-te")
    expect(bench.one).to_contain_text("the CPU stores 0 to the units' GCMD")
    bench.one.get_by_role("button", name="Attack", exact=True).click()
    expect(bench.one.locator(".hv-chip")).to_have_text("! succeeded")
    expect(bench.lens.get_by_role("textbox", name="Address")).to_have_value("0x77c09000")
    bench.open("Proof")
    bench.proof.get_by_role("button", name="Prove").click()
    claim = bench.proof.get_by_role("listitem").filter(has_text="No device can write the core's memory.")
    expect(claim.locator("strong")).to_have_text("✗ does not hold")
    expect(bench.proof).to_contain_text("Of run 1, policy bitvisor")
    claim.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(claim.get_by_role("row", name=re.compile("translation off"))).to_be_visible()
    example = claim.get_by_role("button", name=re.compile("in all views"))
    address, device = re.match(r"Choose (0x[0-9a-f]+) of (\S+) in all views", example.inner_text()).groups()
    example.click()
    expect(example).to_have_attribute("aria-pressed", "true")
    expect(bench.lens.get_by_role("textbox", name="Address")).to_have_value(address)
    expect(bench.element.get_by_role("application").first.locator("canvas")).to_have_attribute("data-cursor", address)
    keep(page, screenshots, "proof")
    bench.open("Walk, step by step")
    expect(bench.walk.locator("h5")).to_have_text(re.compile(f"{re.escape(device)} .* at IOVA {address}"))
    expect(bench.walk.locator(".hv-verdict")).to_contain_text(f"reaches host-physical {address}")
    bench.open("Proof")
    bench.element.get_by_label("Policy", exact=True).select_option("mended")
    bench.button("Reboot").click()
    expect(bench.proof).to_contain_text("Of run 2, policy mended")
    expect(claim.locator("strong")).to_have_text("✓ holds")


def test_dark_and_narrow(page, lab, screenshots):
    bench = Bench(page, with_cell(page, lab, CODE + SMALL))
    bench.open("Attacks")
    bench.grid.locator("td button").first.click()
    bench.one.get_by_role("button", name="Attack", exact=True).click()
    expect(bench.one.locator(".hv-chip")).to_be_visible()
    bench.button("More options").click()
    dark(page)
    page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.set_viewport_size({"width": 600, "height": 1100})
    assert bench.element.evaluate("e => e.scrollWidth <= e.clientWidth")
    assert not amiss(page)
    keep(page, screenshots, "attacks-dark-600")
    bench.open("Proof")
    bench.proof.get_by_role("button", name="Prove").click()
    bench.proof.locator("summary").first.click()
    assert bench.element.evaluate("e => e.scrollWidth <= e.clientWidth")
    assert not amiss(page)
    keep(page, screenshots, "proof-dark-600")
