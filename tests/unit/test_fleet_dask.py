"""The fleet on a real Dask cluster: a scheduler and workers in processes of their own, some of which are killed midway."""

import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from hvcore.errors import HvlabError
from hvcore.fleet import Work, cluster, run_fleet
from hvcore.fleet.store import NAME

HERE = Path(__file__).parent
FAKE = Work(examine="fleet_fakes:examine", limit=30)
SCHEDULER = "from distributed.cli.dask_scheduler import main; main()"
WORKER = "from distributed.cli.dask_worker import main; main()"


class Cluster:
    """A scheduler that gives a task up after one lost worker (the fleet must not), and workers without nannies."""

    def __init__(self, folder):
        self.folder, self.file, self.processes = folder, folder / "scheduler.json", []
        self._start(SCHEDULER, "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(self.file))
        wait_for(self.file.exists)
        self.address = f"{self.file.read_text().split('tcp://')[1].split(chr(34))[0]}"
        self.address = f"tcp://{self.address}"

    def worker(self):
        words = ("--scheduler-file", str(self.file), "--no-nanny", "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard")
        return self._start(WORKER, *words, "--local-directory", str(self.folder))

    def _start(self, code, *words):
        env = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0", "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1s"}
        process = subprocess.Popen([sys.executable, "-c", code, *words], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def close(self):
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture
def dask(fakes, tmp_path):
    running = Cluster(tmp_path)
    yield running
    running.close()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def folder_of(path, count):
    """Items that take a while, among them every kind that hurts."""
    path.mkdir()
    acts = {7: "bad of no use", 11: "kill", 13: "raise x", 17: "exit", 19: "noise 1"}
    for i in range(count):
        (path / f"m{i:03}.log").write_text(f"Linux version 1\n{acts.get(i, 'sleep 0.15')}\n")
    return path


def without_times(report):
    return [{k: v for k, v in d.to_json().items() if k not in ("seconds", "cpu")} for d in report.items]


def recorded(out):
    return (out / NAME).read_bytes().count(b"\n") - 1 if (out / NAME).exists() else 0


class Killer(io.StringIO):
    """Progress that kills workers while the fleet runs: what `acts` says when so many items are recorded."""

    def __init__(self, out, acts):
        super().__init__()
        self.out, self.acts, self.done = out, dict(acts), []

    def isatty(self):
        for count in [c for c in self.acts if c <= recorded(self.out)]:
            self.done.append(count)
            self.acts.pop(count)()
        return True

    def write(self, text):
        self.isatty()
        return super().write(text)


def test_all_is_done_once_though_workers_are_killed(dask, fakes, tmp_path):
    folder, out = folder_of(tmp_path / "f", 30), tmp_path / "out"
    workers = [dask.worker() for _ in range(2)]

    def kill(number):
        os.kill(workers[number].pid, signal.SIGKILL)
        workers[number].wait()
        workers.append(dask.worker())

    stream = Killer(out, {3: lambda: kill(0), 14: lambda: kill(1)})
    report = run_fleet(folder, out, scheduler=dask.address, work=FAKE, stream=stream)
    assert stream.done == [3, 14]
    assert recorded(out) == 30
    assert Counter(d.path for d in report.items) == Counter(f"m{i:03}.log" for i in range(30))
    alone = run_fleet(folder, tmp_path / "alone", workers=1, work=FAKE, stream=io.StringIO())
    assert without_times(report) == without_times(alone)
    for name in ("outcomes.parquet", "problems.parquet"):
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not [p for p in {line.split()[0] for line in fakes.read_text().splitlines()} if Path(f"/proc/{p}").exists()]
    assert {f["item"] for f in report.to_json()["failures"]} == {f"m{i:03}.log" for i in (7, 11, 13, 17)}


def test_what_was_done_here_is_not_done_there_and_processes_end_with_it(dask, fakes, tmp_path):
    folder, out = folder_of(tmp_path / "f", 6), tmp_path / "out"
    (folder / "m001.log").rename(tmp_path / "m001.log")
    run_fleet(folder, out, workers=1, work=FAKE, stream=io.StringIO())
    calls = len(fakes.read_text().splitlines())
    (tmp_path / "m001.log").rename(folder / "m001.log")
    dask.worker()
    report = run_fleet(folder, out, scheduler=dask.address, work=FAKE, stream=io.StringIO())
    assert len(report.items) == 6 and not report.failed
    new, = fakes.read_text().splitlines()[calls:]
    pid, name = new.split()
    assert name == "m001.log"
    wait_for(lambda: not Path(f"/proc/{pid}/cmdline").exists(), 20)


def test_a_scheduler_that_dies_ends_the_fleet_and_what_is_done_is_kept(dask, fakes, tmp_path):
    folder, out = folder_of(tmp_path / "f", 12), tmp_path / "out"
    dask.worker()
    stream = Killer(out, {3: dask.processes[0].kill})
    with pytest.raises(HvlabError, match="the cluster is gone"):
        run_fleet(folder, out, scheduler=dask.address, work=FAKE, stream=stream)
    assert 3 <= recorded(out) < 12
    assert len(run_fleet(folder, out, workers=2, work=FAKE, stream=io.StringIO()).items) == recorded(out) == 12


def test_workers_that_cannot_examine_are_the_users_to_mend(dask, tmp_path):
    folder = folder_of(tmp_path / "f", 3)
    dask.worker()
    with pytest.raises(HvlabError, match="cannot begin: no_such_module:x: No module named"):
        run_fleet(folder, tmp_path / "out", scheduler=dask.address, work=Work("no_such_module:x"), stream=io.StringIO())


def test_no_scheduler_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_ANSWERS", "1s")
    folder = folder_of(tmp_path / "f", 1)
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        with pytest.raises(HvlabError, match="no Dask scheduler answers at"):
            run_fleet(folder, tmp_path / "out", scheduler=address, work=FAKE, stream=io.StringIO())
