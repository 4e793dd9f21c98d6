"""One JupyterLab for all browser tests, one fresh page for each."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from labserver import CHROMIUM_ARGUMENTS, Lab, running_lab

expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, lab: Lab) -> Iterator[Page]:
    """A page that may ask only this machine; an error in its scripts or on its console fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 1100}, reduced_motion="reduce")
    context.set_default_timeout(60_000)
    page = context.new_page()
    outside: list[str] = []
    broken: list[str] = []
    page.on("request", lambda r: outside.append(r.url) if r.url.startswith("http") and not r.url.startswith(lab.origin) else None)
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("console", lambda message: broken.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    lab.stop_kernels()
    assert not outside, f"asked other hosts: {outside[:3]}"
    assert not broken, f"errors in the page: {broken[:3]}"


@pytest.fixture
def screenshots() -> Path | None:
    """Where to keep pictures, for a person to look at: the folder HVLAB_SCREENSHOTS, if it is set."""
    folder = os.environ.get("HVLAB_SCREENSHOTS")
    return Path(folder) if folder else None
