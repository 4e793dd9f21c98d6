"""A report in Chromium without a network: its views are alive, it asks for nothing, and a stranger's words run nowhere; and its PDF."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from accessible import amiss
from hvcore import Machine
from hvcore.report import compare_report, write_report
from hvcore.sources import load

pytestmark = pytest.mark.needs("chromium")

WICKED = "</script><script>document.title='hit'</script><img src=x onerror=\"document.title='hit'\">]]> \u2028 \U0001f600"
LOGGED = b"<script>document.title='hit'</script></pre><svg onload=\"document.title='hit'\"></svg>]]>\n"
PIXELS = "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return new Set(new Uint32Array(d.buffer)).size; }"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with reports: of a machine with a wicked name and guest as a page and as a PDF, and of two runs."""
    folder = tmp_path_factory.mktemp("reports")
    with Machine(replace(load("nvme-desktop-16g"), name=WICKED, source=WICKED)) as machine:
        machine.boot()
        machine.pc.serial.extend(LOGGED)
        write_report(machine, folder / "one.html")
        write_report(machine, folder / "one.pdf")
        compare_report(machine, folder / "two.html", VTD_TRANS=False)
    return folder


@pytest.fixture(params=["light"])
def context(request, browser: Browser) -> Iterator[BrowserContext]:
    """Offline; any request but for the file itself, and any error, fails the test."""
    context = browser.new_context(offline=True, viewport={"width": 1300, "height": 1000}, color_scheme=request.param,
                                  reduced_motion="reduce")
    context.set_default_timeout(30_000)
    asked: list[str] = []
    broken: list[str] = []
    context.on("request", lambda r: asked.append(r.url))
    context.on("weberror", lambda e: broken.append(str(e.error)))
    context.on("console", lambda m: broken.append(m.text) if m.type in ("error", "warning") else None)
    yield context
    context.close()
    assert all(re.fullmatch(r"file://\S+/(one|two)\.html", url) for url in asked), asked[:3]
    assert len(asked) == 1
    assert not broken, broken[:3]


def opened(context: BrowserContext, path: Path) -> Page:
    page = context.new_page()
    page.goto(path.as_uri())
    page.locator("html[data-ready=yes]").wait_for()
    return page


@pytest.fixture
def page(context: BrowserContext, files: Path) -> Page:
    return opened(context, files / "one.html")


def view(page: Page, key: str) -> Locator:
    return page.locator(f"[data-view={key}]")


def keep(page: Page, screenshots: Path | None, name: str) -> None:
    if screenshots:
        page.screenshot(path=screenshots / f"{name}.png", full_page=True)


# --- alive

def test_the_page_map_is_panned_zoomed_and_pointed_at(page, screenshots):
    pages = view(page, "pages")
    stage, canvas = pages.get_by_role("application"), pages.locator("canvas[data-first]")
    expect(canvas).to_have_attribute("data-first", "0x0")
    assert canvas.evaluate(PIXELS) > 10
    whole = canvas.get_attribute("data-after")
    stage.focus()
    for _ in range(6):
        page.keyboard.press("+")
    expect(canvas).not_to_have_attribute("data-after", whole)
    zoomed = canvas.get_attribute("data-first")
    page.keyboard.press("Shift+ArrowRight")
    expect(canvas).not_to_have_attribute("data-first", zoomed)
    page.keyboard.press("0")
    expect(canvas).to_have_attribute("data-after", whole)
    box = stage.bounding_box()
    stage.hover(position={"x": box["width"] * 0.3, "y": 60})
    expect(pages.get_by_role("status")).to_contain_text(re.compile("guest CPU: 0x[0-9a-f]+ ·"))
    before = pages.get_by_role("status").inner_text()
    stage.hover(position={"x": box["width"] * 0.9, "y": 60})
    expect(pages.get_by_role("status")).not_to_have_text(before)
    pages.get_by_role("button", name="Grid").click()
    expect(pages.locator(".hv-rows")).to_have_count(1)
    keep(page, screenshots, "report")


def test_views_share_what_is_chosen_without_a_kernel(page):
    expect(view(page, "e820").locator(".hv-marker")).to_have_count(0)
    view(page, "faults").locator("button.hv-choose").first.click()
    expect(view(page, "e820").locator(".hv-marker")).to_have_count(1)
    expect(view(page, "e820").locator(".hv-chosen").first).to_have_accessible_name(re.compile("0x100000000-"))
    expect(view(page, "graph").locator(".hv-chosen").get_by_text("01:00.0 NVMe", exact=True)).to_have_count(1)
    expect(view(page, "pages").locator(".hv-stage > .hv-chosen")).to_be_visible()
    assert view(page, "graph").locator(".hv-on-path").count() > 2
    view(page, "runs").locator("button.hv-choose").nth(1).click()
    expect(view(page, "e820").locator(".hv-chosen").first).to_have_accessible_name(re.compile("VMM|0x"))
    expect(view(page, "faults").locator("button.hv-choose[aria-pressed=true]")).to_have_count(0)


def test_the_walk_is_stepped_and_the_proof_opened(page):
    walk = view(page, "walk")
    step = walk.locator(".hv-steps [aria-current=step]")
    step.focus()
    page.keyboard.press("ArrowRight")
    expect(step).to_have_text(re.compile("root entry"))
    expect(walk.locator("form")).to_be_hidden()
    proof = view(page, "proof")
    expect(proof.get_by_role("button", name="Prove")).to_have_count(0)
    proof.locator("summary").first.click()
    proof.locator("button.hv-choose").first.click()
    expect(proof.locator("button.hv-choose").first).to_have_attribute("aria-pressed", "true")


def test_tables_are_sorted_and_filtered_and_scales_chosen(page):
    runs = view(page, "runs")
    runs.get_by_role("searchbox").fill("perm: -")
    expect(runs.locator("tbody tr")).to_have_count(2)
    e820 = view(page, "e820")
    drawn = e820.locator("svg").inner_html()
    e820.get_by_role("button", name="linear").click()
    expect(e820.get_by_role("button", name="linear")).to_have_attribute("aria-pressed", "true")
    assert e820.locator("svg").inner_html() != drawn


def test_two_runs_are_chosen_from_apart(context, files, screenshots):
    page = opened(context, files / "two.html")
    view(page, "a-faults").locator("button.hv-choose").first.click()
    expect(view(page, "a-e820").locator(".hv-marker")).to_have_count(1)
    assert view(page, "b-e820").locator(".hv-marker").count() == 0
    expect(view(page, "changed-pages").get_by_role("button", name=re.compile("gained"))).to_have_count(1)
    assert not amiss(page, "#changed")
    keep(page, screenshots, "report-two")


# --- for everybody

@pytest.mark.parametrize("context", ["light", "dark"], indirect=True)
def test_nothing_is_amiss_for_axe(page, screenshots, request):
    for details in page.locator("main > section > details, .hv-view details").all():
        details.evaluate("d => { d.open = true; }")
    assert not amiss(page, "body")
    light = page.evaluate("matchMedia('(prefers-color-scheme: light)').matches")
    red = int(re.search(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
    assert (red > 200) == light
    keep(page, screenshots, f"report-{'light' if light else 'dark'}")


def test_keys_reach_the_report_and_its_sections(page):
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the report")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Outcome and advice")).to_be_focused()
    page.get_by_role("link", name="Proof").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#proof$"))
    expect(page.get_by_role("heading", name="Proof", level=2)).to_be_in_viewport()


def test_the_machine_can_be_copied(context, page):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.get_by_role("button", name="Copy: the machine's description and the command")
    button.click()
    expect(button).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith("mkdir -p machine")


def test_a_narrow_page_does_not_scroll_sideways(page):
    page.set_viewport_size({"width": 600, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_strangers_words_run_nowhere(page):
    expect(page).to_have_title(f"Report: {WICKED}".replace("\u2028", " "))
    expect(page.get_by_role("heading", level=1)).to_contain_text("<script>document.title='hit'</script>")
    expect(page.get_by_role("region", name="The guest's console")).to_contain_text("<svg onload=")
    for key in ("e820", "pages", "walk"):
        expect(view(page, key).locator(".hvlab-view")).to_have_count(1)
    assert page.locator("img").count() == 0


def test_what_is_smuggled_in_does_not_run(files, browser):
    """The policy holds even where something was not escaped."""
    smuggled = LOGGED.decode() + WICKED
    bad = files / "bad.html"
    bad.write_text((files / "one.html").read_text().replace("<main", f"{smuggled}<main"))
    context = browser.new_context(offline=True)
    page = opened(context, bad)
    assert page.locator("body > img").count() == 1
    assert page.title().startswith("Report: ")
    expect(view(page, "pages").locator("canvas[data-first]")).to_be_visible()
    context.close()
    unguarded = browser.new_context(offline=True, bypass_csp=True)
    assert opened(unguarded, bad).title() == "hit"
    unguarded.close()


def test_without_scripts_there_are_pictures(browser, files):
    context = browser.new_context(offline=True, java_script_enabled=False)
    page = context.new_page()
    page.goto((files / "one.html").as_uri())
    for key in ("e820", "graph", "pages", "walk", "timeline"):
        expect(view(page, key).get_by_role("img").first).to_be_visible()
    expect(view(page, "proof")).to_contain_text("No device can write the core's memory.")
    context.close()


# --- print

def test_the_pdf_is_tagged(files):
    """Structure, language, title and words for pictures, as the file's objects have them."""
    data = (files / "one.pdf").read_bytes()
    assert data.startswith(b"%PDF-")
    assert b"/Marked true" in data
    assert b"/StructTreeRoot" in data
    assert b"/Lang (en" in data
    for kind in (b"/H1", b"/H2", b"/H3", b"/Table", b"/TH", b"/TD", b"/Caption", b"/LI", b"/Link"):
        assert re.search(rb"/S " + kind + rb"\b", data), kind
    figures = re.findall(rb"/S /Figure\b", data)
    words = re.findall(rb"/Alt \(", data) + re.findall(rb"/Alt <", data)
    assert len(figures) >= 5
    assert len(words) >= len(figures)
    assert 5 <= len(re.findall(rb"/Type /Page\b", data)) <= 30


@pytest.mark.needs("pdftotext")
def test_the_pdf_says_it_all_with_page_numbers(files):
    command = [shutil.which("pdftotext"), "-layout", str(files / "one.pdf"), "-"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pages = text.split("\f")[:-1]
    for number, page in enumerate(pages, 1):
        assert re.search(rf"hvlab\s+{number} / {len(pages)}\s*$", page), f"page {number}"
        assert len(page.split()) > 25, f"page {number} is next to empty"
    for words in ("disk-lost", "Remapping units", "Run it again", "END_OF_FILE", "No device can forge an interrupt.", "Every option"):
        assert words in text
