"""A JupyterLab of its own on this machine, and notebooks opened in it by a real Chromium."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Locator, Page

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
                      "--disable-sync"]
QUIET = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}

# The light that says "idle" is on before the kernel is connected; cells run then would hang.  So: wait for the connection itself.
CONNECTED = """async () => {
    const app = window.jupyterapp, sleep = (ms) => new Promise((done) => setTimeout(done, ms));
    await app.restored;
    while (!app.shell.currentWidget?.sessionContext) await sleep(50);
    const panel = app.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    while (!panel.sessionContext.session?.kernel) await sleep(50);
    const kernel = panel.sessionContext.session.kernel;
    await kernel.info;
    while (kernel.connectionStatus !== 'connected' || kernel.status !== 'idle') await sleep(50);
}"""
ERRORS = "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']"


class Lab:
    """A running server: `url` of a notebook, `request` to its API; its notebooks are in the folder `root`."""

    def __init__(self, port: int, token: str, root: Path):
        self.origin, self.token, self.root = f"http://127.0.0.1:{port}", token, root

    def url(self, notebook: str) -> str:
        return f"{self.origin}/lab/tree/{notebook}?reset&token={self.token}"

    def request(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(f"{self.origin}/api/{path}?token={self.token}", method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or "null")

    def stop_kernels(self) -> None:
        for kernel in self.request("kernels"):
            self.request(f"kernels/{kernel['id']}", "DELETE")


SMALL = "small.ipynb"
"""A notebook with nothing but the workbench of a small machine."""


def notebook_of(*cells: str) -> str:
    """The text of a notebook with these code cells."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel))


def with_cell(page: Page, lab: Lab, code: str, name: str = "cell.ipynb") -> Locator:
    """The panel of a new notebook with one cell, run."""
    (lab.root / name).write_text(notebook_of(code))
    panel = open_notebook(page, lab, name)
    run_all(page, panel)
    return panel


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of the user's own Jupyter settings, and none is left behind."""
    names = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR",
             "IPYTHONDIR"]
    settings = folder / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(QUIET))
    return os.environ | {name: str(folder / name) for name in names} | {"PYTHONPATH": str(ROOT)}


@contextmanager
def running_lab(folder: Path) -> Iterator[Lab]:
    """JupyterLab on copies of the notebooks in `folder`."""
    shutil.copytree(ROOT / "notebooks", folder / "root", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "root" / SMALL).write_text(notebook_of("from widgets import Workbench\nWorkbench('q35-6g')"))
    lab = Lab(free_port(), secrets.token_hex(16), folder / "root")
    options = ["--no-browser", "--ip=127.0.0.1", f"--port={lab.origin.rpartition(':')[2]}", "--ServerApp.port_retries=0", "--allow-root",
               f"--IdentityProvider.token={lab.token}", f"--ServerApp.root_dir={lab.root}", "--ServerApp.terminals_enabled=False",
               "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=", "--LabApp.extension_manager=readonly"]
    with open(folder / "lab.log", "w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=_environment(folder), stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(lab, server, folder / "lab.log")
            yield lab
            lab.stop_kernels()
        finally:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(lab: Lab, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if server.poll() is not None:
            break
        try:
            lab.request("status")
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def open_notebook(page: Page, lab: Lab, name: str) -> Locator:
    """The notebook's panel, its kernel connected."""
    page.goto(lab.url(name))
    panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    panel.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=90_000)
    page.evaluate(CONNECTED)
    return panel


def run_all(page: Page, panel: Locator) -> None:
    """Runs every cell, to the end; no cell may fail."""
    assert page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    assert panel.locator(ERRORS).count() == 0, panel.locator(ERRORS).first.inner_text()
