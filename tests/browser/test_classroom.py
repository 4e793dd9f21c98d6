"""`make voila`: the workbench as an app; who closes the page ends the machine."""

import os
import re
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from test_in_jupyterlab import FOCUSED

from accessible import amiss
from labserver import ROOT, free_port

pytestmark = pytest.mark.needs("chromium")


def children(pid: int) -> list[int]:
    """The processes below one, of all depths, by what the kernel tells."""
    below = [int(p) for task in Path(f"/proc/{pid}/task").glob("*/children") for p in task.read_text().split()]
    return below + [p for child in below for p in children(child)]


def serves(origin: str) -> bool:
    try:
        urllib.request.urlopen(f"{origin}/static/none", timeout=5)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture
def app(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Where the app is served, and the process id of what `make` runs for it."""
    port = free_port()
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    recipe = subprocess.run(["make", "-n", "-o", ".venv/.installed", "voila", f"VOILA=--port={port}"], cwd=ROOT, check=True, text=True,
                            capture_output=True, env=alone).stdout
    names = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    setting, *command = shlex.split(recipe.replace("\\\n", " "))
    environment = os.environ | {name: str(tmp_path / name) for name in names} | dict([setting.split("=", 1)])
    with open(tmp_path / "voila.log", "w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            origin, tries = f"http://127.0.0.1:{port}", 600
            while tries and server.poll() is None and not serves(origin):
                time.sleep(0.1)
                tries -= 1
            assert tries and server.poll() is None, (tmp_path / "voila.log").read_text()[-2000:]
            yield origin, server.pid
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def test_a_visitor_has_a_machine_and_takes_it_along(browser: Browser, app: tuple[str, int]) -> None:
    origin, pid = app
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    outside: list[str] = []
    page.on("request", lambda r: outside.append(r.url) if r.url.startswith("http") and not r.url.startswith(origin) else None)
    page.goto(origin)
    outcome = page.locator(".hvlab-outcome")
    expect(outcome).to_have_text("disk-lost", timeout=90_000)
    expect(page.get_by_text("from widgets import")).to_have_count(0)
    assert len(children(pid)) == 1
    page.get_by_role("button", name="VTD_TRANS=y").click()
    page.get_by_role("button", name="Reboot", exact=True).click()
    expect(outcome).to_have_text("up")
    expect(page.get_by_label("Guest", exact=True)).to_have_value("lab")
    expect(page.get_by_role("button", name="Save", exact=True)).to_be_hidden()
    page.get_by_role("tab", name="History").click()
    page.get_by_role("button", name="Remember now").click()
    expect(page.get_by_role("radio", name=re.compile("^moment 1, "))).to_be_visible()
    assert not amiss(page)
    page.get_by_role("textbox", name=re.compile("^Guest's console.*: a command$")).focus()
    assert page.evaluate(FOCUSED)["whole"]
    page.goto("about:blank")
    for _ in range(300):
        if not children(pid):
            break
        time.sleep(0.1)
    assert not children(pid), "a kernel is left"
    assert not outside
    context.close()
