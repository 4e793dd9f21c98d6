"""The fleet: what its items are, rows for whatever an item does, results that do not depend on workers, going on after any end."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.cli import main
from hvcore.doctor import examine
from hvcore.errors import HvlabError
from hvcore.fleet import Done, Failure, Report, Work, find_items, run_fleet
from hvcore.fleet.keeper import Keeper
from hvcore.fleet.progress import Progress, duration
from hvcore.fleet.report import shown
from hvcore.fleet.store import NAME, Store
from hvcore.sources import images_dir

HERE = Path(__file__).parent
FAKE = Work(examine="fleet_fakes:examine", limit=30)


def items(folder, **acts):
    """A folder with a kernel log an act: `name="hang"`."""
    folder.mkdir(exist_ok=True)
    for name, act in acts.items():
        (folder / f"{name}.log").write_text(f"Linux version 1\n{act}\n")
    return folder


def many(folder, count, act="ok"):
    return items(folder, **{f"m{i:03}": f"{act} {i}" if act == "ok" else act for i in range(count)})


def run(folder, out, **options):
    return run_fleet(folder, out, **{"work": FAKE, "stream": io.StringIO(), "workers": 1} | options)


def without_times(report):
    return [{k: v for k, v in d.to_json().items() if k not in ("seconds", "cpu")} for d in report.items]


# --- items


def test_items_are_archives_folders_logs_and_toml(tmp_path):
    root = tmp_path / "fleet"
    for folder in ("machine/more", "tables", "flat", "notes", "own"):
        (root / folder).mkdir(parents=True)
    log = "[    0.000000] BIOS-e820: [mem 0x0-0x9fbff] usable\n"
    for name in ("machine/dmesg.txt", "machine/more/e820.txt", "tables/kern-1.log", "flat/dmesg-a.txt", "flat/dmesg-b.txt", "own/x.log"):
        (root / name).write_text(log)
    for name in ("machine/lspci.txt", "machine/x.tar.gz", "machine/y.toml", "tables/DMAR.dat", "notes/README.txt", "notes/a.zip", "z.TGZ"):
        (root / name).write_text("nothing")
    found = [(i.path, i.kind) for i in find_items(root, root / "own")]
    assert found == [("flat/dmesg-a.txt", "log"), ("flat/dmesg-b.txt", "log"), ("machine", "folder"), ("machine/more", "folder"),
                     ("machine/x.tar.gz", "archive"), ("machine/y.toml", "toml"), ("notes/a.zip", "archive"), ("tables", "folder"),
                     ("z.TGZ", "archive")]


def test_a_digest_is_of_what_belongs_to_the_item(tmp_path):
    root = tmp_path / "m"
    root.mkdir()
    (root / "dmesg.txt").write_text("one")
    (root / "lspci.txt").write_text("two")

    def digests():
        return {i.path: i.digest for i in find_items(root)}

    first = digests()
    assert list(first) == ["."]
    (root / "x.zip").write_text("an item of its own")
    assert digests()["."] == first["."]
    (root / "lspci.txt").write_text("owt")
    assert digests()["."] != first["."]
    (root / "lspci.txt").rename(root / "lspci2.txt")
    (root / "lspci2.txt").write_text("two")
    assert digests()["."] != first["."]


def test_what_is_no_file_is_an_item_with_a_problem_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "loop.zip").symlink_to("loop.zip")
    (tmp_path / "gone.toml").symlink_to("nowhere")
    (tmp_path / "machine").mkdir()
    os.mkfifo(tmp_path / "machine" / "dmesg.txt")
    (tmp_path / "up").symlink_to(tmp_path)
    found = {i.path: i for i in find_items(tmp_path)}
    assert set(found) == {"pipe.tar", "loop.zip", "gone.toml", "machine"}
    assert found["pipe.tar"].problem == "it is no plain file"
    assert found["loop.zip"].problem.startswith("it cannot be read (")
    assert found["gone.toml"].problem == "it cannot be read (No such file or directory)"
    assert found["machine"].problem == ""
    with pytest.raises(HvlabError, match="not a file"):
        examine(tmp_path / "machine")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_an_item_with_a_problem(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "x.tar").touch(mode=0)
    found = [(i.path, i.problem) for i in find_items(tmp_path)]
    assert found == [(p, "it cannot be read (Permission denied)") for p in ("closed", "x.tar")]


# --- what items do


def test_whatever_an_item_does_is_a_row_and_spoils_nothing(fakes, tmp_path):
    folder = items(tmp_path / "f", a="ok 1", b="bad of no use", c="raise secret", d="exit", e="kill", f="noise 2", g="rewrite", h="endless",
                   i="nothing", j="kill-once", k="unknown-word", z="ok 3")
    found = {d.path: d for d in run(folder, tmp_path / "out").items}
    kinds = {path.removesuffix(".log"): d.failure.kind for path, d in found.items() if d.failure}
    assert kinds == {"b": "bad", "c": "crash", "d": "crash", "e": "killed", "g": "changed", "h": "crash", "i": "crash", "k": "crash"}
    assert found["b.log"].failure.text == "b.log: of no use"
    assert found["c.log"].failure.text.startswith("ValueError: secret (fleet_fakes.py:")
    assert found["e.log"].failure.text == "the process ended by SIGKILL"
    assert "9,437,2" in found["h.log"].failure.text
    assert [found[f"{n}.log"].record["machine"] for n in "afjz"] == ["a", "f", "j", "z"]
    tries = Counter(line.split()[1] for line in fakes.read_text().splitlines())
    assert tries == Counter({f"{n}.log": 2 if n in "ej" else 1 for n in "abcdefghijkz"})


def test_an_item_that_hangs_or_grows_is_ended(fakes, tmp_path):
    folder = items(tmp_path / "f", a="hang", b="ok 1", c="sleep 60", d="grow")
    report = run(folder, tmp_path / "out", work=Work(FAKE.examine, limit=4, memory=400 << 20), workers=2)
    kinds = [d.failure and d.failure.kind for d in report.items]
    assert kinds == ["time", None, "time", "memory"]
    assert report.items[0].failure.text == "it was not done after 4 s"
    assert all(4 <= d.seconds < 30 for d in report.items[::2])
    assert not alive(fakes)


def alive(calls):
    """Processes that examined and are still there."""
    pids = {int(line.split()[0]) for line in calls.read_text().splitlines()}
    return [p for p in pids if Path(f"/proc/{p}/cmdline").exists() and b"hvcore.fleet.child" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_a_process_whose_keeper_is_gone_is_ended_by_the_kernel(tmp_path):
    """The keeper's end of the limit is not needed: here there is none."""
    folder = items(tmp_path / "f", a="hang")
    item, = find_items(folder)
    job = {"root": str(folder), "path": item.path, "kind": item.kind, "digest": item.digest, "limit": 0.2}
    code = f"import fleet_fakes\nfrom hvcore.fleet import child\nchild.GRACE = 0.3\nchild.answer({job!r}, fleet_fakes.examine)"
    env = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, timeout=60, check=False)
    assert done.returncode == -signal.SIGALRM


def test_processes_take_many_items_and_are_renewed(fakes, tmp_path):
    folder = many(tmp_path / "f", 7)
    run(folder, tmp_path / "out", work=Work(FAKE.examine, turns=3))
    pids = [line.split()[0] for line in fakes.read_text().splitlines()]
    assert [pids.count(p) for p in dict.fromkeys(pids)] == [3, 3, 1]
    assert not alive(fakes)


def test_a_process_that_cannot_begin_says_why(fakes, tmp_path):
    folder = many(tmp_path / "f", 3)
    with pytest.raises(HvlabError, match="cannot begin: no_such_module:x: No module named"):
        run(folder, tmp_path / "out", work=Work("no_such_module:x"), workers=2)
    assert len(run(folder, tmp_path / "out").verdict_rows) == 6


def test_a_process_killed_between_two_items_is_begun_anew(fakes, tmp_path):
    folder = many(tmp_path / "f", 2)
    keeper = Keeper(FAKE)
    first, second = find_items(folder)
    try:
        assert keeper.do(folder, first).failure is None
        os.kill(int(fakes.read_text().split()[0]), signal.SIGKILL)
        time.sleep(0.1)
        assert keeper.do(folder, second).failure is None
    finally:
        keeper.close()


# --- the same for any number of workers


def test_results_are_equal_for_any_number_of_workers(fakes, tmp_path):
    folder = items(many(tmp_path / "f", 20), bad="bad of no use", dies="kill", wrong="raise x")
    reports = {n: run(folder, tmp_path / f"out{n}", workers=n) for n in (1, 2, 4)}
    assert without_times(reports[1]) == without_times(reports[2]) == without_times(reports[4])
    for name in ("outcomes.parquet", "problems.parquet"):
        assert len({(tmp_path / f"out{n}" / name).read_bytes() for n in reports}) == 1
    assert len({line.split()[0] for line in fakes.read_text().splitlines()}) >= 1 + 2 + 4


# --- going on


def test_what_is_done_is_not_done_again(fakes, tmp_path):
    folder, out = items(many(tmp_path / "f", 4), bad="bad x"), tmp_path / "out"
    first = run(folder, out)
    calls = fakes.read_text()
    assert without_times(run(folder, out)) == without_times(first)
    assert fakes.read_text() == calls
    (folder / "m001.log").write_text("Linux version 1\nok new words\n")
    (folder / "m002.log").unlink()
    again = run(folder, out)
    assert [line.split()[1] for line in fakes.read_text().splitlines()[5:]] == ["m001.log"]
    assert [d.path for d in again.items] == ["bad.log", "m000.log", "m001.log", "m003.log"]
    assert again.items[2].record["verdicts"][0]["why"] == "because new words"
    run(folder, out, retry=True)
    assert [line.split()[1] for line in fakes.read_text().splitlines()[6:]] == ["bad.log"]


def test_a_torn_last_line_is_dropped_and_its_item_done_again(fakes, tmp_path):
    folder, out = many(tmp_path / "f", 4), tmp_path / "out"
    whole = run(folder, out)
    results = out / NAME
    results.write_bytes(results.read_bytes()[:-25])
    assert without_times(run(folder, out)) == without_times(whole)
    assert [line.split()[1] for line in fakes.read_text().splitlines()[4:]] == ["m003.log"]
    assert all(json.loads(line) for line in results.read_text().splitlines())


def test_what_was_another_when_it_was_examined_is_done_again(fakes, tmp_path):
    folder, out = items(tmp_path / "f", a="ok 1", b="ok 2"), tmp_path / "out"
    item = next(find_items(folder))
    out.mkdir()
    with Store(out) as store:
        store.add(Done(item.path, item.digest, item.kind, None, Failure("changed", "was another")))
    report = run(folder, out)
    assert not report.failed and len(report.items) == 2
    assert lines(out) == 3


def test_a_folder_that_a_worker_does_not_see_is_not_the_items_fault(fakes, tmp_path):
    folder = items(tmp_path / "f", a="ok 1")
    item, = find_items(folder)
    keeper = Keeper(FAKE)
    try:
        assert keeper.do(tmp_path / "elsewhere", item).failure.kind == "changed"
    finally:
        keeper.close()


def _done(number):
    failure = None if number % 2 else Failure("bad", "why")
    return Done(f"päth {number}\n", f"{number:064x}", "log", {"machine": "m", "verdicts": []}, failure)


@given(st.integers(1, 4), st.data())
def test_a_file_cut_anywhere_keeps_all_whole_lines(tmp_path_factory, count, data):
    folder = tmp_path_factory.mktemp("store")
    dones = [_done(n) for n in range(count)]
    with Store(folder) as store:
        for done in dones:
            store.add(done)
    raw = (folder / NAME).read_bytes()
    cut = data.draw(st.integers(0, len(raw)))
    (folder / NAME).write_bytes(raw[:cut])
    kept = max(0, raw[:cut].count(b"\n") - 1)
    with Store(folder) as store:
        assert list(store.done.values()) == dones[:kept]
        store.add(_done(9))
    with Store(folder) as store:
        assert list(store.done.values()) == [*dones[:kept], _done(9)]


def test_a_damaged_line_in_the_middle_costs_that_item_only(tmp_path):
    with Store(tmp_path) as store:
        for n in range(3):
            store.add(_done(n))
    head, first, second, third, _ = (tmp_path / NAME).read_bytes().split(b"\n")
    (tmp_path / NAME).write_bytes(b"\n".join([head, first, second[:30] + b"\0\xff", third, b""]))
    with Store(tmp_path) as store:
        assert list(store.done.values()) == [_done(0), _done(2)]


@pytest.mark.parametrize("content", ["my own notes\n", "notes", '{"hvlab-fleet": 2}\n', "[]\n"])
def test_a_file_of_others_is_left_alone(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with pytest.raises(HvlabError, match="give another folder with -o"):
        Store(tmp_path)
    assert (tmp_path / NAME).read_text() == content


def test_two_fleets_do_not_write_into_one_file(tmp_path):
    with Store(tmp_path), pytest.raises(HvlabError, match="is in use"):
        Store(tmp_path)
    with Store(tmp_path) as store:
        assert store.done == {}


FLEET = """
import sys
from hvcore.cli import main
import hvcore.fleet
real = hvcore.fleet.run_fleet
hvcore.fleet.run_fleet = lambda *a, **k: real(*a, **{**k, "work": hvcore.fleet.Work("fleet_fakes:examine")})
sys.exit(main(["fleet", *sys.argv[1:]]))
"""


def lines(out):
    return (out / NAME).read_bytes().count(b"\n") - 1 if (out / NAME).exists() else 0


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("by", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_fleet_that_is_stopped_keeps_what_is_done_and_goes_on(fakes, tmp_path, by, status):
    folder, out = many(tmp_path / "f", 16, "sleep 0.5"), tmp_path / "out"
    command = [sys.executable, "-c", FLEET, str(folder), "-o", str(out), "--workers", "2"]
    fleet = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: lines(out) >= 2)
    fleet.send_signal(by)
    _, said = fleet.communicate(timeout=60)
    kept = lines(out)
    assert fleet.returncode == status
    assert 2 <= kept < 16
    wait_for(lambda: not alive(fakes))
    if by == signal.SIGINT:
        assert f"{kept} of 16 items are done and kept in {out}: the same command goes on there" in said
    before = {line.split()[1] for line in fakes.read_text().splitlines()}
    report = run(folder, out, workers=4)
    tries = Counter(line.split()[1] for line in fakes.read_text().splitlines())
    assert len(report.items) == 16 and not report.failed
    assert lines(out) == 16
    assert sum(tries.values()) - 16 == len(before) - kept <= 2


# --- what is told


def test_progress_is_a_bar_on_a_terminal_and_plain_lines_elsewhere(monkeypatch):
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr("hvcore.fleet.progress.time.monotonic", lambda: float(next(clock)))

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream in (Terminal(), io.StringIO()):
        progress = Progress(6, 2, stream)
        for failed in (False, True, False, False):
            progress.step(failed)
        progress.end()
        said = stream.getvalue()
        assert "2 of 6 were done before" in said
        assert "5 of 6 items, 0.2/s, 5 s left, 1 could not be examined" in said
        assert "6 of 6 items, 0.2/s, 1 could not be examined" in said
        assert said.count("\r") == (5 if stream.isatty() else 0)
        assert ("4 of 6" in said) == stream.isatty()
        assert "[#########################.....]" in said or not stream.isatty()


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (99, "99 s"), (600, "10 min"), (3 * 3600 + 300, "3 h 5 min")])
def test_durations(seconds, words):
    assert duration(seconds) == words


@given(st.text(st.characters(), max_size=40) | st.binary(max_size=40).map(os.fsdecode))
def test_words_from_outside_can_be_shown_anywhere(text):
    safe = shown(text)
    assert safe.encode() is not None and safe.isprintable()
    assert safe == text or not (text.isprintable() and text.encode("utf-8", "replace").decode() == text)


def test_the_report_counts_and_is_safe(fakes, tmp_path):
    folder = items(tmp_path / "f", ax="ok <script>alert(1)</script>", ay="ok \x1b[31mred", az="ok 1", bad="bad <b>&\x1b[2J")
    (folder / os.fsdecode(b"\xff\x1b.log")).write_text("Linux version 1\nok 5\n")
    report = run(folder, tmp_path / "out")
    summary = report.to_json()
    numbers = {d.path: sum(d.path.encode("utf-8", "surrogateescape")) for d in report.items if d.record}
    assert summary["items"] == 5 and summary["examined"] == 4 and summary["failed"] == {"bad": 1}
    for i, policy in enumerate(("off", "mended")):
        assert summary["outcomes"][policy].get("disk-lost", 0) == sum((n + i) % 3 == 0 for n in numbers.values())
        assert sum(summary["outcomes"][policy].values()) == 4
    assert {p["id"]: p["items"] for p in summary["problems"]} == {f"problem-{i}": n for i in range(2)
                                                                   if (n := sum(v % 3 > i for v in numbers.values()))}
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in html and "<b>" not in html and "\x1b" not in html and "\x1b" not in str(report)
    assert "&lt;b&gt;&amp;\\x1b[2J" in html
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    outcomes = pd.read_parquet(tmp_path / "out" / "outcomes.parquet")
    assert list(outcomes.columns) == ["item", "digest", "machine", "policy", "outcome", "why"]
    assert len(outcomes) == 8 and set(outcomes["item"]) >= {"ax.log", r"\udcff\x1b.log"}
    problems = pd.read_parquet(tmp_path / "out" / "problems.parquet")
    assert len(problems) == sum(n % 3 for n in numbers.values())
    frame = pd.read_parquet(tmp_path / "out" / "items.parquet").set_index("item")
    assert frame.loc["bad.log", "failure"] == "bad" and frame.loc["az.log", "failure"] == ""


def test_a_fleet_in_which_all_fail_has_a_report():
    report = Report("x", [Done("a", "", "log", None, Failure("time", "it was not done"))])
    assert "it took longer than the limit" in str(report)
    assert "None." in report.html
    assert len(report.outcomes) == len(report.problems) == 0


# --- the command, with the real doctor


@pytest.fixture
def fleet(tmp_path):
    """Two machines that boot fast, one of them as an archive, one that lacks everything, and an archive that climbs out."""
    folder = tmp_path / "fleet"
    folder.mkdir()
    machines = images_dir() / "machines"
    shutil.copy(machines / "q35-2g.toml", folder)
    with tarfile.open(folder / "hp.tar.gz", "w:gz") as tar:
        tar.add(machines / "real" / "hp-compaq-8000-elite-4g", "hp")
    (folder / "short.log").write_text("Linux version 6.1\n")
    with tarfile.open(folder / "evil.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../../dmesg.txt"))
    return folder


def test_the_command_says_what_the_doctor_says(fleet, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["fleet", str(fleet), "-o", str(out), "--workers", "2", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["items"] == 4 and summary["failed"] == {"bad": 2}
    whys = {f["item"]: f["why"] for f in summary["failures"]}
    assert "climbs out of the archive" in whys["evil.tar"]
    assert whys["short.log"].startswith("short.log: ")
    table = pd.read_parquet(out / "outcomes.parquet")
    for name in ("q35-2g.toml", "hp.tar.gz"):
        alone = examine(fleet / name).to_json()
        rows = table[table["item"] == name]
        assert list(zip(rows["policy"], rows["outcome"], rows["why"], strict=True)) == [
            (v["policy"], v["outcome"], v["why"]) for v in alone["verdicts"]]
        stored = next(json.loads(x) for x in (out / NAME).read_text().splitlines()[1:] if json.loads(x)["path"] == name)
        assert stored["record"] == json.loads(json.dumps(alone))
    assert main(["fleet", str(fleet), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert "4 of 4 were done before" in said.err
    assert "Outcomes by policy" in said.out and "Could not be examined" in said.out


@pytest.mark.parametrize(("words", "said"), [
    (["nowhere"], "no folder is there"), (["."], "no archive, folder of logs, kernel log or .toml"),
    ([".", "--workers", "0"], "give 1 or more"), ([".", "--workers", "2", "--scheduler", "tcp://x:1"], "leave one of"),
    ([".", "--limit", "0"], "a limit of 0 s"), ([".", "--limit", "nan"], "a limit of nan s")])
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["fleet", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("hvlab: ") and said in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    many(tmp_path / "f", 1)
    assert main(["fleet", str(tmp_path / "f"), "-o", str(tmp_path / "file")]) == 2
    assert "give another folder with -o" in capsys.readouterr().err
