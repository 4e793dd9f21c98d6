"""The project's files agree with each other: pyproject.toml, the lock, constraints.txt, environment.yml, the packages."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
FIXED = {"jupyterlab", "ipywidgets", "matplotlib", "pandas", "unicorn"}
PINNED = re.compile(r"^([a-z0-9][a-z0-9.-]*)==(\S+)(?: ; (.*?))?(?: \\)?$")


def pins(path: Path) -> list[tuple[str, str, str | None]]:
    """(name, version, marker) of each pinned requirement of a file, in order."""
    return [(m[1], m[2], m[3]) for line in path.read_text().splitlines() if (m := PINNED.match(line))]


def project() -> dict[str, list[Requirement]]:
    """The requirements of pyproject.toml, by extra ("" is the core)."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {extra: [Requirement(r) for r in rows] for extra, rows in {"": table["dependencies"], **table["optional-dependencies"]}.items()}


def conda() -> tuple[list[str], list[str]]:
    """environment.yml: conda's own packages, and the lines of its pip section."""
    rows = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    [pip] = [row["pip"] for row in rows if isinstance(row, dict)]
    return [row for row in rows if isinstance(row, str)], pip


def test_lock_satisfies_every_requirement_of_pyproject():
    locked = pins(ROOT / "requirements.lock")
    for requirement in (r for rows in project().values() for r in rows):
        versions = [version for name, version, _ in locked if name == requirement.name]
        assert versions, f"{requirement} is not in requirements.lock: run `make lock`"
        assert all(requirement.specifier.contains(v) for v in versions), f"{requirement} against {versions}: run `make lock`"


def test_every_locked_package_has_a_hash():
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.lock").read_text())
    named = [block for block in blocks if PINNED.match(block.splitlines()[0])]
    assert len(named) == len(pins(ROOT / "requirements.lock")) > 100
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", block) for block in named)


def test_constraints_are_the_lock_without_hashes():
    assert pins(ROOT / "constraints.txt") == pins(ROOT / "requirements.lock")


@pytest.mark.parametrize("name", ["requirements.lock", "constraints.txt", "environment.yml", "pyproject.toml"])
def test_no_file_names_a_registry(name):
    assert not re.search(r"://|index-url|find-links", (ROOT / name).read_text())


def test_environment_installs_pyproject_under_the_constraints():
    own, pip = conda()
    assert own == ["python=3.11", "pip"]
    assert pip[:2] == ["-c constraints.txt", "-e .[ui]"]
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert Requirement(f"python{python}").specifier.contains("3.11")


def test_environment_names_the_five_packages_at_the_locked_versions():
    rows = [Requirement(line) for line in conda()[1][2:]]
    locked = {name: version for name, version, _ in pins(ROOT / "requirements.lock")}
    assert {r.name: str(r.specifier) for r in rows} == {name: f"=={locked[name]}" for name in FIXED}
    required = {r.name for extra in ("", "ui") for r in project()[extra]}
    assert required >= FIXED


def test_ci_marker_cannot_be_skipped(tmp_path):
    """With HVLAB_CI a test whose program is absent fails; without it, it is skipped."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.needs('no-such-program')\ndef test_it(): pass\n")
    options = ["-q", "-p", "no:cacheprovider", "-o", "markers=needs(program): x", "--rootdir", str(tmp_path)]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    for ci, closing in (("", "1 skipped"), ("1", "1 error")):
        run = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "HVLAB_CI": ci}, cwd=tmp_path)
        assert closing in run.stdout


def test_packages_are_the_checkout_and_not_others_of_the_same_name():
    import hvcore
    import widgets

    assert Path(hvcore.__path__[0]) == ROOT / "hvcore"
    assert Path(widgets.__path__[0]) == ROOT / "widgets"


def test_import_is_light():
    """`import hvcore` loads nothing of the drawing, notebook or emulation packages: those come when they are used."""
    heavy = {"pandas", "matplotlib", "IPython", "ipywidgets", "anywidget", "capstone", "unicorn", "nbconvert"}
    code = "import sys, hvcore; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert not heavy & set(loaded)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_are_stored_without_output_and_state(path):
    """Outputs would go stale and bloat the history; what a notebook shows is tested by executing it."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.needs("make")
def test_in_a_terminal_of_make_lab_hvlab_is_found():
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", "-n", "-o", ".venv/.installed", "lab"]
    recipe = subprocess.run(command, cwd=ROOT, check=True, text=True, capture_output=True, env=alone).stdout
    assert ".venv/bin/jupyter lab" in recipe
    asked = recipe.replace(".venv/bin/jupyter lab", "sh -c 'command -v hvlab' #")
    said = subprocess.run(["sh", "-c", asked], cwd=ROOT, check=True, text=True, capture_output=True, env={"PATH": "/usr/bin:/bin"}).stdout
    assert said == f"{ROOT}/.venv/bin/hvlab\n"
