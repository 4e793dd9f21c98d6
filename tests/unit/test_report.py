"""Reports: what is in them, that nothing in them is a stranger's script, and that a machine can be made from them again."""

import base64
import hashlib
import json
import re
import subprocess
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import ipywidgets.widgets.widget as ipywidgets_registry
import pytest

from hvcore import Config, Machine, inspect
from hvcore.cli import main
from hvcore.errors import HvlabError
from hvcore.inspect.records import Column, Record, Records
from hvcore.report import chapter_of, compare_report, write, write_report
from hvcore.report.again import commands, files_of, settings
from hvcore.report.alive import ROWS, alive, quiet
from hvcore.report.chapter import KEPT, log
from hvcore.sources import load, shipped
from widgets import PageMap, Selection, Table, Workbench

WICKED = "</script><script>alert(1)</script><img src=x onerror=alert(2)>]]>\"'&amp;<!-- \u2028\u202e\u00e9\U0001f600 --><style>*{}</style>"
"""What a machine might be called by somebody who wants to run a script in the reader's browser."""
LOGGED = b"<script>alert(3)</script>\x1b[2J</pre></script><svg onload=alert(4)>]]>\x00\xe9\r\n"
SECTIONS = ["outcome", "machine", "doctor", "domains", "permissions", "faults", "window", "proof", "consoles", "again", "about"]


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and the text of scripts and of everything else."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.text, self.words, self.scripts, self.elements, self._open = path.read_text("utf-8"), "", [], [], ""
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.words += data

    def all(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    @property
    def states(self):
        return json.loads(self.scripts[0])

    @property
    def policy(self):
        return next(a["content"] for tag, a in self.elements if a.get("http-equiv") == "Content-Security-Policy")


def undoctored(machine, path, grid=None):
    """A report without the doctor's six boots."""
    return write(path, f"Report: {machine.name}", [chapter_of(machine, grid)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of a machine with a wicked name and a wicked guest."""
    folder = tmp_path_factory.mktemp("report")
    with Machine(replace(load("q35-6g"), name=WICKED, source=WICKED)) as machine:
        machine.boot()
        machine.pc.serial.extend(LOGGED)
        return Page(write_report(machine, folder / "wicked.html"))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    with Machine.load("q35-6g") as machine:
        machine.boot()
        return Page(compare_report(machine, tmp_path_factory.mktemp("report") / "both.html", VTD_TRANS=False))


# --- what is in it

def test_every_section_is_there_and_linked(made):
    sections = [attributes["id"] for tag, attributes in made.elements if tag == "section"]
    assert sections == SECTIONS
    assert [href for href in made.all("href") if href != "#main"] == [f"#{name}" for name in SECTIONS]


def test_it_says_what_the_run_says(made):
    for words in ("disk-lost", "PTE Read access is not set", "IOMMU_MAP_END=ram", "ram-above-4gib", "128 MiB", "0x77c00000",
                  "No device can write the core's", "(IOMMU) dom 0(PT Devs.) ... Ready.",
                  "nvme nvme0: I/O 0 QID 0 timeout", "capstone", "Made by hvlab"):
        assert words in made.words, words


def test_names_are_unique_and_refer_to_something(made, both):
    for page in (made, both):
        ids = page.all("id")
        assert len(ids) == len(set(ids))
        wanted = {name for names in page.all("aria-labelledby") for name in names.split()}
        assert wanted <= set(ids)
        assert {name[1:] for name in page.all("href")} <= set(ids)


def test_every_picture_has_words(made, both):
    for page in (made, both):
        pictures = [a for tag, a in page.elements if tag == "svg"]
        assert len(pictures) >= 5
        assert all(a["role"] == "img" and a["aria-labelledby"] for a in pictures)
        assert page.text.count("<desc") >= len(pictures)


def test_views_have_their_states(made):
    assert set(made.states) == {"e820", "graph", "pages", "runs", "faults", "walk", "dma", "timeline", "proof"}
    assert len(base64.b64decode(made.states["pages"]["state"]["start"]["$bytes"])) == 8 * sum(
        lane["count"] for lane in made.states["pages"]["state"]["lanes"])
    assert {view["selection"] for view in made.states.values()} == {"run"}
    assert made.states["walk"]["state"]["walks"][0]["steps"]
    assert sorted(made.all("data-view")) == sorted(made.states)


def test_two_runs_are_compared(both):
    titles = re.findall(r"<h2[^>]*>([^<]*)", both.text)
    assert titles[1:4] == ["A and B: Outcomes and options", "A and B: What changed", "A and B: Side by side"]
    assert "A: Proof" in titles
    assert "B: Proof" in titles
    assert re.search(r'<th scope="row">VTD_TRANS</th><td>y</td><td>n</td>', both.text)
    assert "gained" in json.dumps(both.states["changed-pages"])
    assert {view["selection"] for view in both.states.values()} == {"a-", "b-", "both", "beside"}
    assert both.states["a-walk"]["state"]["walks"]
    assert "b-walk" not in both.states


def test_attacks_are_in_it_where_they_were_run(tmp_path):
    with Machine.load("q35-2g") as machine, Machine.load("q35-2g") as other:
        machine.boot()
        grid = inspect.matrix(other, policies=["bitvisor"], attacks=["steal-key", "clear-te"])
        page = Page(undoctored(machine, tmp_path / "r.html", grid))
    assert set(page.states["matrix"]["state"]["cells"]) == {"bitvisor/steal-key", "bitvisor/clear-te"}
    assert "attacks" in page.all("id")


@pytest.mark.parametrize(("name", "options"), [("q35-64g", {"IOMMU_MAP_END": "ram", "IOMMU_SUPERPAGES": True}), ("dell-r630-64g", {})])
def test_a_large_machine_fits(tmp_path, name, options):
    with Machine.load(name) as machine:
        machine.boot(Config(**options))
        assert write_report(machine, tmp_path / "r.html").stat().st_size < 2_000_000


def test_two_guests_have_their_own_section(tmp_path):
    with Machine.load("q35-6g") as machine:
        machine.boot(Config(TINYVISOR=True))
        page = Page(undoctored(machine, tmp_path / "r.html"))
    assert "guests" in page.all("id")
    assert "The second guest's console" in page.words


def test_a_core_that_panics_is_reported(tmp_path):
    with Machine.load("server-64g") as machine:
        machine.boot(Config(IOMMU_MAP_END="ram"))
        assert "Out of memory" in Page(undoctored(machine, tmp_path / "r.html")).words


# --- nothing in it is a stranger's

def test_only_scripts_that_the_policy_names_are_there(made, both):
    for page in (made, both):
        hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in page.scripts[1:]}
        told = re.search(r"script-src ([^;]*)", page.policy)[1].split()
        assert hashes == set(told)
        assert len(told) == len(page.scripts) - 1
        assert "default-src 'none'" in page.policy
        assert page.text.index("Content-Security-Policy") < page.text.index("<title>")


def test_a_machines_words_are_words(made):
    assert WICKED in made.words
    assert "<script>alert(3)</script>\u241b[2J</pre></script><svg onload=alert(4)>]]>\u2400" in made.words
    assert not [name for name in {name for _, attributes in made.elements for name in attributes} if name.startswith("on")]
    assert {tag for tag, _ in made.elements} & {"img", "iframe", "object", "embed", "link", "base", "form"} == set()
    assert not any("alert(" in script for script in made.scripts[1:])
    assert "<" not in made.scripts[0]
    assert WICKED in json.dumps(made.states, ensure_ascii=False) or "alert(1)" not in made.scripts[0]


def test_it_names_no_other_place(made, both):
    for page in (made, both):
        assert set(re.findall(r"https?://[^\s\"'<)\\]+", page.text)) <= {"http://www.w3.org/2000/svg"}
        assert not page.all("src") and all(href.startswith("#") for href in page.all("href"))
        assert "@import" not in page.text


# --- to run it again

def same(description):
    """A description without what its notes say, and without port types of bridges whose buses nobody knows: TOML has none of these."""
    return replace(description, assumptions=(), pci=tuple(f if f.secondary else replace(f, port_type=None) for f in description.pci))


@pytest.mark.parametrize("name", list(shipped()))
def test_a_description_comes_back_from_its_files(tmp_path, name):
    description = load(name)
    for file, data in files_of(description).items():
        (tmp_path / file).write_bytes(data)
    assert same(load(tmp_path / "machine.toml")) == same(description)


def test_the_command_is_a_script_that_makes_the_files(made):
    description = replace(load("q35-6g"), name=WICKED + "\x7f\nEND_OF_FILE\n$(touch bad)'", source="`touch bad`")
    script = commands(description, Config(VTD_TRANS=False, VMM_SIZE_MIB=64))
    assert script.endswith("\nhvlab boot machine.toml --set VTD_TRANS=n --set VMM_SIZE_MIB=64")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["sh", "-e", "-c", script.rpartition("\n")[0]], cwd=folder, check=True)
        assert sorted(p.name for p in Path(folder).rglob("*")) == ["dmar.dat", "machine", "machine.toml"]
        assert same(load(Path(folder, "machine", "machine.toml"))) == same(description)


def test_the_report_holds_that_script(made):
    assert commands(replace(load("q35-6g"), name=WICKED, source=WICKED), Config()) in made.words


def test_settings_are_what_the_profile_does_not_say():
    assert settings(Config()) == []
    assert settings(Config(PROFILE="mended", VTD_TRANS=False)) == ["PROFILE=mended", "VTD_TRANS=n"]


# --- views

def test_views_of_a_report_tell_no_browser():
    with Machine.load("q35-2g") as machine:
        run, known = machine.boot(), dict(ipywidgets_registry._instances)
        view = alive("pages", quiet(PageMap)(run, quiet(Selection)()), "run")
        assert PageMap(run).comm is not None
        assert dict(ipywidgets_registry._instances).keys() - known.keys()
        assert quiet(PageMap)(run, quiet(Selection)()).comm is None
    assert view.state["lanes"][0]["name"] == "guest CPU"


def test_a_report_leaves_no_widget_behind(tmp_path):
    with Machine.load("q35-2g") as machine:
        machine.boot()
        known = set(ipywidgets_registry._instances)
        write_report(machine, tmp_path / "r.html")
        assert set(ipywidgets_registry._instances) == known


class Row(Record):
    columns = (Column("n", lambda r: r.n, right=True),)

    def __init__(self, n):
        self.n = n


def test_a_long_table_is_cut_and_says_so():
    view = alive("t", quiet(Table)(Records(Row, [Row(n) for n in range(ROWS + 1)], title="Rows"), quiet(Selection)()), "run")
    assert [len(column) for column in view.state["cells"]] == [ROWS]
    assert view.state["note"] == "Of 2,001 rows the first 2,000 are in this report."
    assert view.state["label"] == "Rows: 2,001"


def test_a_page_map_of_too_many_pieces_is_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("hvcore.report.alive.PIECES", 2)
    with Machine.load("q35-2g") as machine:
        machine.boot()
        page = Page(undoctored(machine, tmp_path / "r.html"))
    assert "pages" not in page.states
    assert "pages" not in page.all("data-view")
    assert page.text.count("Permissions: who may read and write which pages") >= 1


def test_a_long_console_is_cut_in_the_middle():
    told = log("a" * KEPT + "b" * 1000 + "c" * KEPT, "console")
    assert "b" not in re.sub(r"<[^>]*>|\[.*\]", "", told)
    assert "a\n[1,000 characters are left out here]\nc" in told
    assert "left out" not in log("d" * 2 * KEPT, "console")


def test_a_machine_that_is_closed_still_has_its_report(tmp_path):
    with Machine.load("q35-6g") as machine:
        machine.boot()
    page = Page(undoctored(machine, tmp_path / "r.html"))
    assert "disk-lost" in page.words
    assert "walk" not in page.states


# --- mistakes, the command line, the button

def test_a_machine_that_was_not_booted_has_no_report():
    with Machine.load("q35-2g") as machine, pytest.raises(HvlabError, match="was not booted"):
        chapter_of(machine)


@pytest.mark.parametrize("name", ["r.txt", "r", "no/such/folder/r.html"])
def test_a_name_that_is_none(tmp_path, name, capsys):
    assert main(["report", "q35-2g", "-o", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_pdf_needs_a_browser(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["report", "q35-2g", "-o", str(tmp_path / "r.pdf")]) == 2
    assert "Chromium, which is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--compare"], ["--set2", "VTD_TRANS=n"], ["--compare", "--set2", "VTD_TRANSS=n"]])
def test_a_comparison_needs_another_option(tmp_path, words, capsys):
    assert main(["report", "q35-2g", "-o", str(tmp_path / "r.html"), *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_line_writes_and_says_where(tmp_path, capsys):
    path = tmp_path / "r.html"
    assert main(["report", "q35-2g", "-o", str(path), "--set", "PROFILE=mended", "--compare", "--set2", "VTD_TRANS=n"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert "A: Outcome and advice" in path.read_text()


def test_the_workbench_writes_a_report_beside_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench = Workbench("q35-2g")
    said = []
    bench.verdict.status.observe(lambda change: said.append(change.new), "value")
    bench.controls.buttons["report"].click()
    bench.wait()
    page = Page(tmp_path / "report-q35-2g-run-1.html")
    assert "Report: q35-2g" in page.words
    assert 'href="report-q35-2g-run-1.html"' in bench.link.outputs[0]["data"]["text/html"]
    assert any("report: proof" in words for words in said)
    assert ">up<" in bench.verdict.status.value
    assert not bench.controls.buttons["report"].disabled
    bench.close()


def test_a_report_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report-q35-2g-run-1.html").mkdir()
    bench = Workbench("q35-2g")
    bench.controls.buttons["report"].click()
    bench.wait()
    assert "cannot be written" in bench.verdict.status.value
    assert not bench.controls.buttons["report"].disabled
    bench.close()


def test_visitors_of_a_classroom_have_no_such_button(monkeypatch):
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5.13")
    bench = Workbench("q35-2g")
    assert bench.controls.buttons["report"].layout.display == "none"
    bench.close()
