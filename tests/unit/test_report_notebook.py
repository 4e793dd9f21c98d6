"""A report as a notebook: executed by nbclient, its parameters where papermill looks for them, turned into a page by nbconvert."""

import json

import nbformat
import pytest

from hvcore.cli import main
from hvcore.errors import HvlabError
from hvcore.report.notebook import Origin, cells, write_notebook


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "x.ipynb"
    assert main(["report", "q35-6g", "--set", "IOMMU_MAP_END=4gib", "-o", str(path)]) == 0
    return nbformat.read(path, 4)


def test_its_cells_ran_and_show_the_machine(made):
    nbformat.validate(made)
    code = [c for c in made.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code)
    text = json.dumps([c.outputs for c in code])
    for word in ("disk-lost", "IOMMU_MAP_END=ram", "ram-above-4gib", "No device can read the core", "lab: ready", "image/png"):
        assert word in text, word
    assert not any(o.output_type == "error" for c in code for o in c.outputs)


def test_its_parameters_are_where_papermill_looks(made):
    tagged, = (c for c in made.cells if "parameters" in c.metadata.get("tags", ()))
    assert tagged.source == "SOURCE = 'q35-6g'\nOPTIONS = {'IOMMU_MAP_END': '4gib'}"


def test_it_becomes_a_page(made):
    from nbconvert import HTMLExporter
    page, _ = HTMLExporter().from_notebook_node(made)
    assert page.count("<h2") >= 8
    assert "disk-lost" in page


def test_a_hostile_name_stays_a_string():
    source = "x'; import os #\n"
    told: dict[str, object] = {}
    exec(cells(Origin.boot(source, {"QUIRKS": "none"}))[1][1], told)
    assert (told["SOURCE"], told["OPTIONS"]) == (source, {"QUIRKS": "none"})


def test_what_cannot_be_is_a_sentence(tmp_path, capsys):
    with pytest.raises(HvlabError, match="there is no folder"):
        write_notebook(Origin.boot("q35-2g", {}), tmp_path / "no" / "x.ipynb")
    assert main(["report", "nothing", "-o", str(tmp_path / "x.ipynb")]) == 2
    assert "'nothing' is neither a file" in capsys.readouterr().err
    assert main(["report", "q35-2g", "--attacks", "-o", str(tmp_path / "x.ipynb")]) == 2
    assert "of one run" in capsys.readouterr().err
