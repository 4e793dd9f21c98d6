"""Every notebook runs from top to bottom, and the workbench's says what it should."""

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that executes a notebook once and gives it with its outputs; Jupyter's folders are fresh ones."""
    folder = tmp_path_factory.mktemp("jupyter")
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    environment = os.environ | {name: str(folder / name) for name in names} | {"PYTHONPATH": str(ROOT)}
    done: dict[Path, nbformat.NotebookNode] = {}

    def execute(path: Path) -> nbformat.NotebookNode:
        if path not in done:
            notebook = nbformat.read(path, as_version=4)
            client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
            done[path] = client.execute(env=environment)
        return done[path]

    return execute


def output(notebook: nbformat.NotebookNode, source: str, kind: str = "text/plain") -> str:
    """What the cell whose code begins with `source` printed or showed."""
    [cell] = [c for c in notebook.cells if c.cell_type == "code" and c.source.startswith(source)]
    return "\n".join(o.text if o.output_type == "stream" else o.data.get(kind, "") for o in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_it_runs_without_error_and_is_readable(executed, path):
    notebook = executed(path)
    streams = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream"]
    assert not [o.text for o in streams if o.name == "stderr"]
    headings = [line for c in notebook.cells if c.cell_type == "markdown" for line in c.source.splitlines() if line.startswith("#")]
    assert sum(line.startswith("# ") for line in headings) == 1
    assert headings[0].startswith("# ")


@pytest.fixture
def workbench(executed) -> nbformat.NotebookNode:
    return executed(ROOT / "notebooks" / "00-workbench.ipynb")


def test_the_disk_is_lost_with_vtd_trans_and_the_fault_says_where(workbench):
    assert output(workbench, "run = m.boot").startswith("disk-lost\n")
    faults = output(workbench, "run.faults")
    assert "PTE Read access is not set" in faults


def test_the_disk_is_back_without_it(workbench):
    assert output(workbench, "free = m.reboot").startswith("up\n")
    assert "HVLABBLK" in output(workbench, "print(free.guest")


def test_mapping_all_ram_costs_tables_and_superpages_do_not(workbench):
    lines = output(workbench, "server = Machine").splitlines()
    rows = [re.match(r"(.{20}) (\S+) +(\d+) of (\d+) pages: (.*)", line).groups() for line in lines]
    assert [(name.strip(), outcome) for name, outcome, *_ in rows] == [
        ("first 4 GiB", "disk-lost"), ("all RAM", "vmm-panic"), ("all RAM, superpages", "up")]
    few, all_used, super_used = (int(used) for _, _, used, _, _ in rows)
    assert all_used == int(rows[1][3]) > 10 * super_used > 10 * few
    assert "Out of memory" in rows[1][4]


def test_the_views_are_pictures_with_words(workbench):
    said_by = {"run.e820.figure()": "usable for the guest", "run.domains.figure()": "in domain 0", "run.permissions.figure()": "domain 0: ",
               "PageMap(run": "domain 0: ", "chosen = Selection()": "blocked", "run.history.figure()": "TE on"}
    for call, said in said_by.items():
        assert said in output(workbench, call)
        assert "<svg" in output(workbench, call, "text/html")


def test_the_workbench_has_a_form_without_a_kernel(workbench):
    static = output(workbench, "from hvcore import", "text/html")
    assert static.count("<svg") == 3
    assert "disk-lost" in static
    assert "nvme nvme0: Removing after probe failure status: -5" in static
