"""The exercises of the lesson with a real Linux, and a lesson that has none."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hvcore import Config, Machine
from hvcore.errors import HvlabError
from widgets import exercises_linux, needs
from widgets.course import Course
from widgets.exercises import RIGHT, examine

FETCH, LEAVE, ASK = "go 0x77c09000 0x40000 32 1", "go 0x40000 0x7ffd7000 32 3", "devmem 0x7ffd7000 64"
OFF, ON = "devmem 0xfed90018 32 0", "devmem 0xfed90018 32 0x80000000"
GO = ("edu=0x80000000", "put() { devmem $((edu + $1)) 64 $2; }", "go() { put 0x80 $1; put 0x88 $2; put 0x90 $3; put 0x98 $4; }")


def key(name: str, answer: Any, machine: Machine) -> str:
    return examine(name, answer, machine).key


@pytest.fixture(scope="module")
def linux(linux_cache, tmp_path_factory) -> Iterator[Machine]:
    """A machine at the prompt of a Linux that has its disk and a function `go` for the edu device; translation on."""
    with Machine.load("q35-6g") as machine:
        run = machine.boot(Config(IOMMU_MAP_END="ram"), guest=f"linux-{linux_cache['default']}")
        assert run.outcome == "up"
        for line in GO:
            run.guest.shell(line)
        yield machine


@pytest.fixture
def unguarded(linux, tmp_path) -> Iterator[Machine]:
    """The same with translation off."""
    linux.save(tmp_path / "x.snap")
    with Machine.restore(tmp_path / "x.snap") as machine:
        machine.run.guest.shell(OFF)
        yield machine


def test_the_key_is_taken_when_the_shell_has_printed_it(unguarded):
    answers = {(FETCH, LEAVE, ASK): RIGHT, (FETCH, LEAVE, "devmem 0x7ffd7000; devmem 0x7ffd7004"): RIGHT, (FETCH, LEAVE): "not shown",
               (FETCH,): "in the device", (FETCH, "go 0x40000 0x4000000 32 3", "devmem 0x4000000 64"): "in RAM",
               ("go 0x77c00000 0x40000 32 1",): "not taken", ("devmem 0x77c09000 64",): "no dma"}
    assert {answer: key("11-key", list(answer), unguarded) for answer in answers} == answers
    assert key("11-key", "go", unguarded) == "no commands"
    assert key("11-key", ["cat"], unguarded) == "failed"


def test_a_check_leaves_the_students_machine_as_it_is(linux):
    before, requests = linux.pc.clock.now, len(linux.run.dma)
    assert key("11-tracks", [OFF], linux) == "not taken"
    assert (linux.pc.clock.now, len(linux.run.dma)) == (before, requests)
    assert linux.run.units[0].translating


def test_tracks_are_covered_when_translation_is_on_again_and_nothing_recorded(linux):
    answers = {(OFF, FETCH, ON): RIGHT, (OFF, FETCH): "left open", (FETCH,): "blocked", (OFF, ON): "not taken",
               (OFF, FETCH, ON, FETCH): "recorded", (OFF, FETCH, "devmem 0xfed90018 32 0xffffffff"): "left changed"}
    assert {answer: key("11-tracks", list(answer), linux) for answer in answers} == answers


def test_a_server_is_shut_when_root_gets_nothing(linux, monkeypatch):
    assert key("11-server", Config(IOMMU_MAP_END="ram"), linux) == "not up"
    assert key("11-server", "ram", linux) == "no config"
    monkeypatch.setattr(exercises_linux, "_SERVER", "q35-6g")
    assert key("11-server", Config(IOMMU_MAP_END="ram", HIDE_VTD_REGS=True), linux) == RIGHT
    assert key("11-server", Config(IOMMU_MAP_END="ram"), linux) == "switched off"
    assert key("11-server", Config(VTD_TRANS=False), linux) == "never on"


def test_without_a_linux_at_its_prompt_a_check_says_so():
    with Machine.load("q35-2g") as machine:
        machine.boot()
        assert [key(name, answer, machine) for name, answer in
                (("11-key", [ASK]), ("11-tracks", [OFF]), ("11-server", Config()))] == ["no shell"] * 3


# --- a lesson that lacks its Linux

@pytest.fixture
def notebook(monkeypatch, tmp_path) -> SimpleNamespace:
    """An IPython of which only the list of transformers matters, and an empty cache."""
    shell = SimpleNamespace(input_transformers_cleanup=[])
    monkeypatch.setattr(needs, "_shell", lambda: shell)
    monkeypatch.setenv("HVLAB_CACHE", str(tmp_path))
    return shell


def run_cell(shell: SimpleNamespace, *lines: str) -> list[str]:
    done = list(lines)
    for transform in shell.input_transformers_cleanup:
        done = transform(done)
    return done


def test_cells_rest_until_there_is_a_linux(notebook, capsys, monkeypatch):
    assert Course("en").linux("6.1") == ""
    assert Course("en").linux("6.1") == ""
    assert "hvlab linux fetch" in capsys.readouterr().out
    assert len(notebook.input_transformers_cleanup) == 1
    assert run_cell(notebook, "m.boot()\n", "m.run\n") == ["print('Not run: there is no Linux yet, see the first cell.')\n"]
    for cell in ("linux = course.linux('6.1')\n", "!hvlab linux fetch\n", "%pip list\n"):
        assert run_cell(notebook, cell) == [cell]
    monkeypatch.setattr(needs.cache, "find", lambda release=None: SimpleNamespace(release="6.1.0-9"))
    assert Course("en").linux("6.1") == "linux-6.1.0-9"
    assert run_cell(notebook, "m.boot()\n") == ["m.boot()\n"]


def test_another_release_does_where_the_wanted_one_is_not_there(linux_cache):
    assert Course("en").linux("6.12") == f"linux-{linux_cache['newest']}"
    assert Course("en").linux("4.19") == f"linux-{linux_cache['newest']}"


def test_what_refuses_a_linux_lets_cells_rest_too(notebook, monkeypatch, capsys):
    def refuse(*_: Any) -> None:
        raise HvlabError("no room for its records")

    monkeypatch.setattr(needs, "refuse_linux", refuse)
    assert Course("ja").linux("6.1") == ""
    assert "no room for its records" in capsys.readouterr().out
    assert "実行していません" in run_cell(notebook, "m.boot()\n")[0]


def test_outside_of_a_notebook_it_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HVLAB_CACHE", str(tmp_path / Path("none")))
    with pytest.raises(HvlabError, match="hvlab linux fetch"):
        Course("en").linux("6.1")
