"""Debian's Linux by the command line: saved, resumed, told of, reported on, dumped."""

import contextlib
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import nbformat
import pytest

from hvcore import Machine
from hvcore.cli import main

WORDS = "nvme_core.admin_timeout=5"


def hvlab(*words: object) -> str:
    """What a command printed, which must be one that can be done."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([str(word) for word in words]) == 0
    return out.getvalue()


@pytest.fixture(scope="session")
def release(linux_cache: dict[str, str]) -> str:
    return linux_cache["default"]


@pytest.fixture(scope="session")
def saved(release: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Linux that has lost its disk, at its prompt, in a file."""
    path = tmp_path_factory.mktemp("saved") / "shell.snap"
    said = hvlab("boot", "q35-6g", "--guest", f"linux-{release}", "--append", WORDS, "--command", "x=kept", "--save", path)
    assert said.startswith("lab# x=kept\n") and "disk-lost - 00:02.0's DMA read at 0x10" in said
    return path


def test_it_goes_on_from_its_shell_in_another_process_as_in_this_one(saved: Path) -> None:
    words = ["resume", str(saved), "--command", "echo $x; cat /proc/uptime", "--command", "dmesg | tail -3"]
    done = subprocess.run([sys.executable, "-m", "hvcore.cli", *words], capture_output=True, text=True, check=True)
    assert done.stdout == hvlab(*words) and not done.stderr
    assert re.match(r"lab# echo \$x; cat /proc/uptime\nkept\n\d+\.\d\d \d", done.stdout)


def test_what_was_done_is_in_the_next_file(saved: Path, tmp_path: Path) -> None:
    hvlab("resume", saved, "--command", "x=changed; echo told >/tmp/told", "--save", tmp_path / "next.snap")
    told = json.loads(hvlab("resume", tmp_path / "next.snap", "--command", "echo $x; cat /tmp/told", "--json"))
    assert told["console"]["guest"][-5:-2] == ["changed", "told", "lab# (s=$?; echo $s; exit $s)"] and told["outcome"] == "disk-lost"
    assert "kept" in hvlab("resume", saved, "--command", "echo $x")


def test_what_a_command_had_printed_when_its_time_was_over_is_told_once(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = hvlab("resume", saved, "--command", "echo from here; read x", "--command", "echo on")
    assert said.count("from here\n") == 1 and "lab# echo on\non\n" in said
    assert capsys.readouterr().err == ("hvlab: 'echo from here; read x' was still running after 60 s of virtual time; Ctrl-C ended it\n")


def test_one_that_has_panicked_is_saved_and_has_no_shell(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hvlab("resume", saved, "--command", "echo c >/proc/sysrq-trigger", "--save", tmp_path / "dead.snap")
    assert "was the guest's end: Kernel panic" in capsys.readouterr().err
    assert "guest-crash - Kernel panic - not syncing: sysrq" in hvlab("resume", tmp_path / "dead.snap", "--command", "ls")
    assert capsys.readouterr().err.startswith("hvlab: no guest was left for 'ls': Kernel panic")
    assert json.loads(hvlab("snapshot", "info", tmp_path / "dead.snap", "--json"))["state"] == "ended"


def test_one_that_was_stopped_at_work_first_comes_to_its_prompt(saved: Path, tmp_path: Path) -> None:
    with Machine.restore(saved) as m:
        m.key_in("i=0; while [ $i -lt 30000 ]; do i=$((i + 1)); done; echo counted $i\n")
        m.resume(0.05)
        assert m.state == "stopped"
        m.save(tmp_path / "busy.snap")
    assert "state         stopped\n" in hvlab("snapshot", "info", tmp_path / "busy.snap")
    told = json.loads(hvlab("resume", tmp_path / "busy.snap", "--command", "echo alive", "--json"))
    assert {"counted 30000", "alive"} <= set(told["console"]["guest"])


def test_a_file_says_what_it_is(saved: Path, release: str) -> None:
    told = json.loads(hvlab("snapshot", "info", saved, "--json"))
    assert re.fullmatch(rf"Linux {re.escape(release)} \(linux-image-{re.escape(release)} \S+\), busybox \S+", told["guest"])
    assert (told["machine"], told["state"], told["outcome"], told["config"]["VTD_TRANS"]) == ("q35-6g", "waiting", "disk-lost", True)
    assert told["size"] == saved.stat().st_size < told["memory"]
    assert "outcome       disk-lost: 00:02.0's DMA read at 0x10" in hvlab("snapshot", "info", saved)


def test_its_tables_are_dumped(saved: Path, tmp_path: Path) -> None:
    hvlab("dump", "--from", saved, "-o", tmp_path)
    root = json.loads((tmp_path / "registers.json").read_text())["units"][0]["registers"]["RTADDR"]
    domain, = json.loads(hvlab("decode", tmp_path / "tables.npz", "--root", hex(root), "--json"))["domains"]
    assert domain["runs"][-1]["end"] == 1 << 32


def test_the_doctor_asks_a_linux(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("hvcore.doctor.examine"), "POLICIES", ("off",))
    told = json.loads(hvlab("doctor", "q35-2g", "--guest", f"linux-{release}", "--json"))
    verdict, = told["verdicts"]
    assert told["guest"] == f"linux-{release}"
    assert (verdict["outcome"], verdict["why"]) == ("up", "the guest's shell is ready and its disk was read")
    assert "no-interrupt-remapping" in {problem["id"] for problem in told["problems"]}


# --- reports

class Words(HTMLParser):
    """The text of a page, and of what is folded away in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.shown, self.folded, self._depth = "", "", 0
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self._depth += tag in ("details", "script", "style")

    def handle_endtag(self, tag):
        self._depth -= tag in ("details", "script", "style")

    def handle_data(self, data):
        if self._depth:
            self.folded += data
        else:
            self.shown += data


def test_a_report_has_all_of_its_console_and_shows_what_tells(saved: Path, release: str, tmp_path: Path) -> None:
    assert hvlab("report", "--from", saved, "-o", tmp_path / "r.html") == f"{tmp_path / 'r.html'}\n"
    page, console = Words(tmp_path / "r.html"), json.loads(hvlab("resume", saved, "--json"))["console"]["guest"]
    assert len(console) > 250 and "\n".join(console) in page.folded and f"All {len(console)} lines" in page.folded
    lost = next(line for line in console if "Identify Controller failed" in line)
    assert lost in page.shown and "BIOS-provided physical RAM map" not in page.shown and " lines left out]\n" in page.shown
    assert "(s=$?; echo $s" not in page.shown and "lab# x=kept\n" in page.shown
    assert f"Linux {release} (linux-image-" in page.shown and f"rdinit=/init {WORDS}" in page.shown
    assert f"hvlab boot q35-6g --guest linux-{release} --append {WORDS}" in page.shown
    assert f"hvlab linux fetch --release {release} brings it." in page.shown
    assert re.search(r"Interrupt messages: \d\d", page.folded) and "Interrupt messages: " not in page.shown


@pytest.mark.needs("chromium", "pdftotext")
def test_a_printed_report_stays_short(saved: Path, tmp_path: Path) -> None:
    hvlab("report", "--from", saved, "-o", tmp_path / "r.pdf")
    text = subprocess.run(["pdftotext", "-layout", tmp_path / "r.pdf", "-"], capture_output=True, text=True, check=True).stdout
    assert 5 < text.count("\f") < 20
    assert "Identify Controller failed" in text and "lines left out]" in text and "BIOS-provided physical RAM map" not in text


def test_two_runs_of_it_are_compared(saved: Path, tmp_path: Path) -> None:
    hvlab("report", "--from", saved, "-o", tmp_path / "r.html", "--compare", "--set2", "VTD_TRANS=n")
    page = Words(tmp_path / "r.html")
    assert re.search(r"A: disk-lost.*B: up", page.shown, re.DOTALL) and "the guest's shell is ready and its disk was read" in page.shown
    assert page.folded.count("BIOS-provided physical RAM map") == 2 and f"rdinit=/init {WORDS}" in page.shown


def test_a_notebook_of_it_goes_on_from_the_file(saved: Path, tmp_path: Path) -> None:
    hvlab("report", "--from", saved, "-o", tmp_path / "r.ipynb")
    made = nbformat.read(tmp_path / "r.ipynb", 4)
    nbformat.validate(made)
    assert made.cells[1].source == f"SNAPSHOT = {str(saved)!r}\nIMAGE = None"
    text = json.dumps([c.outputs for c in made.cells if c.cell_type == "code"])
    assert "Identify Controller failed" in text and f"hvlab resume {saved}" in text
    assert next(c for c in made.cells if c.source == "run.console").metadata["scrolled"] is True
