"""`python -m bench.workbench`: how long the workbench takes in JupyterLab, from a click to the last change of what is shown.

The machine of 16 GiB is rebooted with VTD_TRANS switched each time, so that every view changes; a guest that computes for ever is stopped.
Beside each time stands the kernel's processor time: on a busy machine the one grows and the other stays.
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import psutil
from playwright.sync_api import Page, sync_playwright

from .__main__ import Row, show

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "browser"))
from labserver import CHROMIUM_ARGUMENTS, running_lab, with_cell

REPEATS = 15
REBOOTS = """
import os
from widgets import Workbench
print(os.getpid())
Workbench("nvme-desktop-16g")
"""
AT_WORK = """
import os
from hvcore import Config, Machine
from hvcore.spec.linuxboot import Elf, Segment
from widgets import Workbench
print(os.getpid())
machine = Machine.load("q35-2g")
endless = Elf(0x1000000, (Segment(0x1000000, bytes.fromhex("48 ff c0 eb fb"), 4096),))

def stop(phase):
    if phase is None and machine.phase == "guest runs":
        machine.stop()

machine.boot(Config(VTD_TRANS=False), guest=endless, watch=stop)
Workbench(machine)
"""
# Clicks a button; milliseconds until the outcome is one of these, and until the last change of the workbench (nothing more for 400 ms).
CLICK = """([name, outcomes]) => new Promise((done) => {
    const bench = document.querySelector('.hvlab-workbench'), began = performance.now();
    const outcome = () => bench.querySelector('.hvlab-outcome').textContent;
    let told = null, last = began, left = outcome() === 'running';
    const observer = new MutationObserver(() => {
        last = performance.now();
        if (outcome() === 'running') left = true;
        if (told === null && left && outcomes.includes(outcome())) told = last;
    });
    observer.observe(bench, { subtree: true, childList: true, characterData: true, attributes: true });
    const timer = setInterval(() => {
        if (told === null || performance.now() - last < 400) return;
        observer.disconnect();
        clearInterval(timer);
        done([told - began, last - began]);
    }, 50);
    [...bench.querySelectorAll('button')].find((button) => button.textContent.trim() === name).click();
})"""
DONE = ["up", "disk-lost", "stopped"]


def row(what: str, times: list[float], cpu: list[float], most: float) -> Row:
    """Median and maximum in seconds; the median is what must not be too much."""
    middle = statistics.median(times)
    figures = f"{middle:.2f} / {max(times):.2f} s, kernel's CPU {statistics.median(cpu):.2f} s"
    return Row(what, figures, f"limit: {most:g} s", middle / most, middle <= most)


def clicked(page: Page, kernel: psutil.Process, name: str, outcomes: list[str]) -> tuple[float, float, float]:
    """Seconds until the outcome is told, until the last change, and of the kernel's processor."""
    before = sum(kernel.cpu_times()[:2])
    told, last = page.evaluate(CLICK, [name, outcomes])
    return told / 1000, last / 1000, sum(kernel.cpu_times()[:2]) - before


def reboots(page: Page, kernel: psutil.Process) -> list[Row]:
    """Reboot, with every view changed."""
    times = []
    for i in range(REPEATS):
        page.get_by_role("button", name=f"VTD_TRANS={'yn'[i % 2]}", exact=True).click()
        page.locator(".hvlab-pending", has_text="VTD_TRANS").wait_for()
        times.append(clicked(page, kernel, "Reboot", DONE))
    told, last, cpu = (list(part) for part in zip(*times, strict=True))
    return [row("Reboot: until the outcome is told", told, cpu, 1.0), row("Reboot: until all views show it", last, cpu, 1.0)]


def stops(page: Page, kernel: psutil.Process) -> list[Row]:
    """Stop of a guest that computes, until its state is told."""
    times = []
    for _ in range(REPEATS):
        page.get_by_role("button", name="Go on", exact=True).click()
        page.locator(".hvlab-outcome", has_text="running").wait_for()
        times.append(clicked(page, kernel, "Stop", ["stopped"]))
    return [row("Stop: until it is told", [t[0] for t in times], [t[2] for t in times], 0.3)]


def main() -> int:
    """Measures both; exit status 1 where something takes longer than it may."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, running_lab(Path(folder)) as lab, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_ARGUMENTS)
        for cell, measure in ((REBOOTS, reboots), (AT_WORK, stops)):
            page = browser.new_page(viewport={"width": 1400, "height": 3000}, reduced_motion="reduce")
            panel = with_cell(page, lab, cell)
            kernel = psutil.Process(int(panel.locator(".jp-OutputArea-output pre").first.inner_text()))
            rows += measure(page, kernel)
            page.close()
        browser.close()
    show(rows)
    return 0 if all(r.good for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
