"""The workbench as a person uses it: JupyterLab in Chromium, clicks and keys."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from accessible import amiss
from labserver import Lab, open_notebook, run_all, with_cell

pytestmark = pytest.mark.needs("chromium")

CODE = """
from widgets import Workbench
bench = Workbench("q35-6g")
bench
"""
AT_WORK = """
from hvcore import Config, Machine
from hvcore.spec.linuxboot import Elf, Segment
from widgets import Workbench
machine = Machine.load("q35-2g")
endless = Elf(0x1000000, (Segment(0x1000000, bytes.fromhex("48 ff c0 eb fb"), 4096),))

def stop(phase):
    if phase is None and machine.phase == "guest runs":
        machine.stop()

machine.boot(Config(VTD_TRANS=False), guest=endless, watch=stop)
Workbench(machine)
"""
"""A guest that counts for ever (inc rax; jmp), stopped."""
TABS = ("Walk, step by step", "History", "Attacks", "Proof", "DMA requests", "Protection window", "Registers", "Permission runs",
        "Before and after", "Instructions")
# What has the focus: its name, whether it is the workbench's, whether its outline is seen and nothing cuts it off; buttons that do
# nothing now have none.
FOCUSED = """() => {
    const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
    const out = parseFloat(style.outlineWidth) + parseFloat(style.outlineOffset) - 1;
    let whole = true;
    for (let x = e.parentElement; x && !x.matches('.jp-OutputArea'); x = x.parentElement) {
        const edge = x.getBoundingClientRect();
        if (getComputedStyle(x).overflowX === 'visible' || x.matches('svg')) continue;
        whole &&= box.left - out >= edge.left && box.right + out <= edge.right && box.bottom + out <= edge.bottom;
    }
    const name = e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent;
    return { inside: Boolean(e.closest('.hvlab-workbench')), name: name.trim().slice(0, 60),
             seen: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 && box.width > 0 && box.height > 0,
             top: box.top, tag: e.tagName, whole };
}"""


AT_END = """([log, width]) => log.scrollHeight > log.clientHeight + 100 && (width > 1000) === (log.clientWidth > 400)
    && log.scrollHeight - log.scrollTop - log.clientHeight < 24"""
"""Whether a long log that is as wide as the page lets it be shows its end."""


class Bench:
    """A workbench in the notebook, by the names that a person reads."""

    def __init__(self, page: Page, panel: Locator):
        self.page, self.panel = page, panel
        self.element = panel.locator(".hvlab-workbench")
        self.outcome = self.element.locator(".hvlab-outcome")
        self.pending = self.element.locator(".hvlab-pending")
        self.e820, self.graph = self.picture("E820"), self.picture("Domains")
        self.lens = self.element.locator(".hvlab-lens")
        self.stage = self.element.get_by_role("application").first
        self.canvas = self.stage.locator("canvas")
        self.log = self.element.get_by_role("log", name="Guest's console")
        self.field = self.element.get_by_role("textbox", name=re.compile("^Guest's console.*: a command$"))

    def picture(self, title: str) -> Locator:
        return self.element.locator(".hvlab-picture").filter(has=self.page.get_by_role("heading", name=re.compile(title)))

    def button(self, name: str) -> Locator:
        return self.element.get_by_role("button", name=name, exact=True)

    def type(self, command: str) -> None:
        self.field.fill(command)
        self.field.press("Enter")

    def open(self, tab: str) -> None:
        self.element.get_by_role("tab", name=tab).click()


@pytest.fixture
def bench(page: Page, lab: Lab) -> Bench:
    """A notebook with the workbench of a machine of 6 GiB, run."""
    return Bench(page, with_cell(page, lab, CODE))


def keep(page: Page, screenshots: Path | None, name: str) -> None:
    """A picture for a person, where one is wanted."""
    if screenshots:
        page.screenshot(path=screenshots / f"{name}.png")


def dark(page: Page) -> None:
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")


# --- from the notebook to a disk that is back

def test_the_notebook_runs_and_without_vtd_trans_the_disk_is_back(page, lab, screenshots):
    panel = open_notebook(page, lab, "00-workbench.ipynb")
    run_all(page, panel)
    page.evaluate("() => window.jupyterapp.shell.currentWidget.content.scrollToItem(0)")
    bench = Bench(page, panel)
    expect(bench.outcome).to_have_text("disk-lost")
    expect(bench.element.locator(".hvlab-why")).to_contain_text("PTE Read access is not set")
    expect(bench.stage).to_have_accessible_name(re.compile("domain 0: "))
    keep(page, screenshots, "workbench")
    bench.button("VTD_TRANS=y").click()
    expect(bench.button("VTD_TRANS=n")).to_be_visible()
    expect(bench.pending).to_contain_text("VTD_TRANS=n")
    expect(bench.outcome).to_have_text("disk-lost")
    bench.button("Reboot").click()
    expect(bench.outcome).to_have_text("up")
    expect(bench.pending).to_be_empty()
    expect(bench.stage).to_have_accessible_name(re.compile("not translated"))
    expect(bench.element.get_by_text("Nothing is enforced")).to_be_visible()
    keep(page, screenshots, "workbench-off")


def test_from_the_screen_alone_what_was_stopped_where_why_and_what_to_change(bench):
    address = bench.element.locator(".hvlab-advice").inner_text()
    stopped = re.match(r"00:02\.0 \(NVMe\) was stopped: its DMA read at (0x[0-9a-f]+) was blocked", address)
    assert stopped, address
    expect(bench.lens.get_by_role("textbox", name="Address")).to_have_value(stopped[1])
    expect(bench.lens.get_by_role("status")).to_contain_text("nothing mapped")
    expect(bench.e820.locator(".hv-marker")).to_be_visible()
    expect(bench.graph.get_by_role("button", name=re.compile("^00:02.0"))).to_have_class(re.compile("hv-chosen"))
    bench.button("Set IOMMU_MAP_END=ram and reboot").click()
    expect(bench.outcome).to_have_text("up")
    expect(bench.element.get_by_label("IOMMU_MAP_END")).to_have_value("ram")
    expect(bench.element.locator(".hvlab-advice")).to_have_count(0)
    expect(bench.lens.get_by_role("status")).to_contain_text(f"leads to host-physical {stopped[1]} (rw)")


def test_before_and_after_a_reboot_with_other_options(bench):
    bench.open("Before and after")
    expect(bench.element.get_by_text("then this shows what changed")).to_be_visible()
    bench.element.get_by_label("IOMMU_MAP_END").select_option("ram")
    bench.button("Reboot").click()
    expect(bench.element.get_by_role("heading", name=re.compile("what changed"))).to_be_visible()
    expect(bench.element.get_by_text("IOMMU_MAP_END=4gib").first).to_be_visible()
    expect(bench.element.get_by_role("application").nth(1)).to_have_accessible_name(re.compile(r"domain 0: .* gained"))


# --- the machine at work

def test_the_guest_answers_and_an_address_is_looked_up(page, bench, screenshots):
    expect(bench.log).to_contain_text("lab: ready")
    bench.type("peek 0x100000 4")
    expect(bench.log).to_contain_text("lab> peek 0x100000 4")
    expect(bench.field).to_have_value("")
    bench.field.press("ArrowUp")
    expect(bench.field).to_have_value("peek 0x100000 4")
    for width in (700, 1400):
        page.set_viewport_size({"width": width, "height": 1100})
        page.wait_for_function(AT_END, arg=[bench.log.element_handle(), width])
    bench.log.evaluate("log => log.scrollTop = 0")
    bench.type("cpuid 0")
    expect(bench.log).to_contain_text("lab> cpuid 0")
    page.wait_for_function(AT_END, arg=[bench.log.element_handle(), 1400])
    cells = bench.panel.locator(".jp-Cell").count()
    bench.log.focus()
    for key in ("Home", "a", "End"):
        page.keyboard.press(key)
    page.wait_for_function(AT_END, arg=[bench.log.element_handle(), 1400])
    expect(bench.panel.locator(".jp-Cell")).to_have_count(cells)
    address = bench.lens.get_by_role("textbox", name="Address")
    address.fill("0x77c09000")
    address.press("Enter")
    expect(bench.lens).to_contain_text("secret")
    expect(bench.e820.locator(".hv-marker")).to_be_visible()
    keep(page, screenshots, "console")
    address.fill("nowhere")
    address.press("Enter")
    expect(bench.lens.get_by_role("status")).to_contain_text("'nowhere' is no address")


def test_a_guest_at_work_goes_on_is_stopped_and_stepped(page, lab):
    bench = Bench(page, with_cell(page, lab, AT_WORK))
    expect(bench.outcome).to_have_text("stopped")
    bench.button("Go on").click()
    expect(bench.outcome).to_have_text("running")
    expect(bench.button("Reboot")).to_be_disabled()
    bench.button("Stop").click()
    expect(bench.outcome).to_have_text("stopped")
    bench.open("Instructions")
    bench.button("Step").click()
    expect(bench.element.get_by_role("heading", name="Instructions executed: 1")).to_be_visible()
    expect(bench.element.get_by_role("region", name="Instructions executed")).to_contain_text(re.compile("inc|jmp"))
    guest = bench.element.get_by_label("Guest", exact=True)
    expect(guest).to_have_value("own")
    guest.select_option("lab guest")
    expect(bench.pending).to_contain_text("guest lab guest")
    bench.button("Reboot").click()
    expect(bench.outcome).to_have_text("up")
    expect(bench.log).to_contain_text("lab: ready")


def test_another_machine_is_chosen_by_keyboard(page, bench, screenshots):
    bench.button("VTD_TRANS=y").focus()
    page.keyboard.press("Space")
    expect(bench.button("VTD_TRANS=n")).to_be_focused()
    expect(bench.pending).to_contain_text("VTD_TRANS=n")
    page.keyboard.press("Space")
    expect(bench.pending).to_be_empty()
    bench.element.get_by_label("Machine").focus()
    page.keyboard.type("q35-2g")
    expect(bench.pending).to_contain_text("machine q35-2g")
    expect(bench.outcome).to_have_text("disk-lost")
    bench.button("Reboot").focus()
    page.keyboard.press("Enter")
    expect(bench.outcome).to_have_text("up")
    expect(bench.pending).to_be_empty()
    keep(page, screenshots, "small")


# --- views that follow one another

def test_a_fault_in_the_table_is_followed_by_every_view(bench):
    bench.e820.get_by_role("button", name=re.compile("firmware: 0x0-")).click()
    expect(bench.lens.get_by_role("textbox", name="Address")).to_have_value("0x0")
    row = bench.element.get_by_role("region", name=re.compile("Recorded faults")).get_by_role("row").nth(1)
    address = re.search(r"0x[0-9a-f]{8,}(?=\s)", row.inner_text().replace("0xfed90000", ""))[0]
    row.get_by_role("button").first.click()
    expect(row).to_have_class("hv-chosen")
    expect(bench.lens.get_by_role("textbox", name="Address")).to_have_value(address)
    expect(bench.lens.get_by_role("status")).to_contain_text(f"IOVA {address} of domain 0: nothing mapped")
    expect(bench.e820.locator(".hv-marker")).to_be_visible()
    expect(bench.graph.get_by_role("button", name=re.compile("^00:02.0"))).to_have_class(re.compile("hv-chosen"))
    expect(bench.canvas).to_have_attribute("data-cursor", address)
    expect(bench.stage.locator(".hv-chosen")).to_be_visible()


def test_the_page_map_is_panned_and_zoomed_by_keyboard(page, bench):
    def edge() -> int:
        return int(bench.canvas.get_attribute("data-first"), 0)

    bench.stage.focus()
    for key in ("Home", "+", "+", "+"):
        page.keyboard.press(key)
    assert edge() == 0
    page.keyboard.press("PageDown")
    page.wait_for_function("canvas => Number(canvas.dataset.first) > 0", arg=bench.canvas.element_handle())
    page.keyboard.press("Enter")
    expect(bench.lens.get_by_role("textbox", name="Address")).to_have_value(bench.canvas.get_attribute("data-cursor"))


# --- care

def test_by_tab_through_every_control_and_out_again(page, bench):
    """Each stop is seen, inside the order of the screen, and after the last one the focus leaves."""
    bench.element.get_by_label("Machine").focus()
    stops = []
    for _ in range(150):
        at = page.evaluate(FOCUSED)
        if not at["inside"]:
            break
        stops.append(at)
        page.keyboard.press("Tab")
    else:
        pytest.fail(f"no way out: {[at['name'] for at in stops[-5:]]}")
    assert not [at for at in stops if not at["seen"]]
    assert not [at["name"] for at in stops if not at["whole"]]
    names = [at["name"] for at in stops]
    wanted = ["Guest", "VTD_TRANS=y", "Reboot", "Snapshot", "Save", "Restore", "Set IOMMU_MAP_END=ram and reboot", "Filter rows",
              "Go back before this", "Address", "compressed", "Bands", "Walk, step by step",
              "Guest's console (lab guest)", "Guest's console (lab guest): a command", "Core's console"]
    places = [names.index(name) for name in wanted]
    assert places == sorted(places), list(zip(wanted, places, strict=True))
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(FOCUSED)["name"] == names[-1]


def test_tabs_are_used_by_keyboard(page, bench):
    bench.element.get_by_role("tab", name="Protection window").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(bench.element.get_by_role("tab", name="Registers")).to_have_attribute("aria-selected", "true")
    expect(bench.element.get_by_role("heading", name=re.compile("Registers of the unit"))).to_be_visible()


def test_nothing_of_levels_a_and_aa_is_amiss(page, bench):
    bench.element.get_by_label("IOMMU_MAP_END").select_option("ram")
    bench.button("Reboot").click()
    expect(bench.outcome).to_have_text("up")
    for tab in TABS:
        bench.open(tab)
        expect(bench.element.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        assert not amiss(page), tab
    dark(page)
    for tab in TABS:
        bench.open(tab)
        assert not amiss(page), f"{tab}, dark"


@pytest.mark.parametrize("width", [600, 1900])
def test_dark_and_narrow_or_wide(page, bench, screenshots, width):
    dark(page)
    page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.set_viewport_size({"width": width, "height": 1100})
    colour = bench.e820.locator("svg").get_by_text("firmware", exact=True).evaluate("e => getComputedStyle(e).fill")
    assert all(int(part) > 200 for part in re.findall(r"\d+", colour)[:3]), colour
    assert bench.element.evaluate("e => e.scrollWidth <= e.clientWidth")
    for tab in bench.element.get_by_role("tab").all():
        assert tab.evaluate("e => e.scrollWidth <= e.clientWidth + 1"), tab.inner_text()
    keep(page, screenshots, f"dark-{width}")
    assert not amiss(page)


def test_the_report_is_written_beside_the_notebook_and_linked(page, bench, lab):
    bench.element.get_by_role("button", name="Report").click()
    link = bench.element.get_by_role("link", name=re.compile(r"report-.*-run-1\.html"))
    expect(link).to_be_visible()
    written = lab.root / link.inner_text()
    assert written.stat().st_size > 100_000
    expect(bench.element.get_by_role("button", name="Report")).to_be_enabled()
    address = link.evaluate("a => a.href")
    assert address.startswith(lab.origin)
    answer = page.request.get(address)
    assert answer.ok
    assert answer.body() == written.read_bytes()
    other = page.context.new_page()
    other.goto(address)
    expect(other.locator("html[data-ready=yes]")).to_have_count(1)
    expect(other.locator("[data-view=pages] canvas[data-first]")).to_be_visible()
