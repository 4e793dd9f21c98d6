"""A Linux in a file: stopped anywhere in its kernel it goes on the same in another process, and steps back before its fault."""

import json
import subprocess
import sys
import time
from pathlib import Path

from snapshotfacts import different, facts

from hvcore import Config, Machine

COMMANDS = ["uname -r", "dd if=/dev/nvme0n1 bs=4096 count=64 2>/dev/null | md5sum",
            "cat /proc/uptime; echo kept > /tmp/kept; cat /tmp/kept"]
CHILD = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from hvcore import Machine
from snapshotfacts import facts
with Machine.restore(sys.argv[1]) as m:
    before = facts(m)
    m.resume()
    answers = [str(m.shell(line)) for line in json.loads(sys.argv[2])]
    print(json.dumps([before, answers, facts(m)]))
"""


def test_stopped_in_its_kernel_it_goes_on_in_another_process(linux_cache: dict[str, str], tmp_path: Path) -> None:
    with Machine.load("q35-6g") as m:
        m.keep_history(200)
        def watch(phase: str | None) -> None:
            if phase is None and m.pc.clock.now > 100_000_000 and m.state == "running":
                m.stop()

        m.boot(Config(VTD_TRANS=False), guest="linux", limit=600, watch=watch)
        assert m.state == "stopped"
        before = facts(m)
        m.save(tmp_path / "a.snap")
        m.resume()
        answers = [str(m.shell(line)) for line in COMMANDS]
        after = facts(m)
        assert "kept" in answers[2]
        done = subprocess.run([sys.executable, "-c", CHILD, tmp_path / "a.snap", json.dumps(COMMANDS)], capture_output=True, text=True,
                              check=True)
        there, answered, end = json.loads(done.stdout)
        assert different(before, there) == []
        assert answered == answers
        assert different(after, end) == []
        moment = m.rewind(to=m.snapshots[1])
        assert moment.time == m.pc.clock.now and "lab# " not in m.run.console.guest     # type: ignore[union-attr]
        m.resume()
        assert [str(m.shell(line)) for line in COMMANDS] == answers
        assert different(after, facts(m)) == []


def test_the_snapshot_is_small_and_quickly_there(linux_cache: dict[str, str], tmp_path: Path) -> None:
    with Machine.load("q35-6g") as m:
        m.boot(Config(VTD_TRANS=False), guest="linux", limit=600)
        m.save(tmp_path / "a.snap")
        shell = str(m.shell("uname -a"))
    assert (tmp_path / "a.snap").stat().st_size < 400 << 20
    worked = time.process_time()
    with Machine.restore(tmp_path / "a.snap") as restored:
        assert time.process_time() - worked < 2
        assert restored.state == "waiting" and restored.linux
        assert str(restored.shell("uname -a")) == shell
