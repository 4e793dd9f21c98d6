"""Debian's Linux on the core, used by its shell: answers, limits, stops, and how a run ends."""

import hashlib
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator

import pytest

from hvcore import Config, Machine, Run
from hvcore.cli import main
from hvcore.errors import BadConfig, BadMachine, HvlabError, Overdue
from hvcore.machine.nvme import Nvme
from hvcore.phases import Progress
from widgets import Workbench

SECOND = 1_000_000_000


@pytest.fixture(scope="session")
def seen() -> list[Progress]:
    """How far the machine of `linux` said that it was while it booted."""
    return []


@pytest.fixture(scope="session")
def linux(linux_cache: dict[str, str], seen: list[Progress]) -> Iterator[Machine]:
    """A Linux at its prompt, with its disk: booted once, its kernel has said what it had to say, and each test leaves it at the prompt."""
    with Machine.load("q35-6g") as m:
        m.boot(Config(VTD_TRANS=False), guest=f"linux-{linux_cache['default']}", limit=600, watch=lambda _phase: seen.append(m.progress))
        m.wait(10)
        m.shell("true")
        yield m


@pytest.fixture
def run(linux: Machine) -> Run:
    """Its run."""
    assert linux.state == "waiting" and linux.run is not None
    return linux.run


def virtual(machine: Machine) -> float:
    """Seconds of virtual time."""
    return machine.pc.clock.now / SECOND


def test_it_is_up_with_its_disk(linux: Machine, run: Run) -> None:
    assert (run.outcome, run.why) == ("up", "the guest's shell is ready and its disk was read")
    disk = next(f.disk for f in linux.pc.root.functions.values() if isinstance(f, Nvme))
    sums = [line.rpartition(" ")[2] for line in run.console.guest.splitlines() if "md5 of 1048576 bytes" in line]
    assert len(sums) == 2 and linux.linux and run.to_json()["outcome"] == "up"
    assert run.guest.shell("dd if=/dev/nvme0n1 bs=65536 count=16 2>/dev/null | md5sum").split()[0] == sums[0]
    assert hashlib.md5(disk.read(0, 2048)).hexdigest() == sums[0]


def test_it_tells_how_far_it_is(linux: Machine, run: Run, seen: list[Progress]) -> None:
    phases = list(dict.fromkeys(p.phase for p in seen if p.phase))
    assert phases[0] == "firmware" and [p for p in phases if p.startswith("guest: ")][:2] == ["guest: kernel", "guest: drivers"]
    assert "guest: init" in phases
    for before, after in itertools.pairwise(seen):
        assert (before.virtual_ns, before.blocks, before.seconds) <= (after.virtual_ns, after.blocks, after.seconds)
    assert any("Linux version" in p.line or p.line.startswith("[") for p in seen)
    now = linux.progress
    assert now.phase is None and now.instructions > 500_000_000 and now.line.startswith("lab# ") and "at rest: " in str(now)


@pytest.mark.parametrize(("line", "said", "status"), [
    ("echo hi", "hi", 0), ("false", "", 1), ("printf abc", "abc", 0), ("exit_status() { return 42; }; exit_status", "", 42),
    ("echo \"it's\" '\"q\"' \\\\ `echo x` $((6 * 7))", "it's \"q\" \\ x 42", 0), ("echo '\u00e4 \u20ac'", "\u00e4 \u20ac", 0),
    ("for i in 1 2\ndo\n\techo \"$i\tx\"\ndone", "1\tx\n2\tx", 0), ("cat <<EOF\na\n  b\nEOF\n", "a\n  b", 0),
    ("printf '\\377'", "\\xff", 0),
    ("seq 500", "\n".join(map(str, range(1, 501))), 0), ("echo 'lab# '", "lab# ", 0), ("echo x  # a comment", "x", 0),
    ("nosuch 2>/dev/null", "", 127), ("echo " + "y" * 7000 + " | wc -c", "7001", 0)])
def test_answers(run: Run, line: str, said: str, status: int) -> None:
    answer = run.guest.shell(line)
    assert (answer, answer.status) == (said, status)


def test_the_exit_status_stays_for_the_next_command(run: Run) -> None:
    assert run.guest.shell("(exit 7)").status == 7 and run.guest.shell("echo $?") == "7"


def test_command_means_the_shell(run: Run) -> None:
    assert "nvme nvme0: pci function" in run.guest.command("dmesg | grep nvme") and run.guest.command("uname") == "Linux"


def test_idle_time_costs_next_to_nothing(linux: Machine, run: Run) -> None:
    began, before = time.monotonic(), virtual(linux)
    assert run.guest.shell("sleep 50").status == 0
    assert 50 < virtual(linux) - before < 51 and time.monotonic() - began < 20


def test_a_command_that_reads_input_or_sleeps_too_long_is_ended(linux: Machine, run: Run) -> None:
    for line in ("cat", "echo first; sleep 100", "read x"):
        before = virtual(linux)
        with pytest.raises(Overdue, match="was still running after 3 s of virtual time; Ctrl-C ended it; it had printed") as told:
            run.guest.shell(line, limit=3)
        assert told.value.output.splitlines()[:1] == (["first"] if "first" in line else []) and 3 <= virtual(linux) - before < 4
        assert run.guest.shell("echo alive") == "alive"


def test_a_command_that_computes_is_ended_by_either_limit(linux: Machine, run: Run) -> None:
    with pytest.raises(Overdue, match=r"after 0.05 s of virtual time"):
        run.guest.shell("while :; do :; done", limit=0.05)
    with pytest.raises(Overdue, match=r"after 0.5 s of wall time; Ctrl-C ended it"):
        linux.shell("while :; do :; done", limit=600, wall=0.5)
    assert run.guest.shell("echo alive") == "alive"


def test_a_command_that_is_not_whole(run: Run) -> None:
    with pytest.raises(Overdue, match="is no whole command: the shell asked for more"):
        run.guest.shell("echo 'open", limit=2)
    assert run.guest.shell("echo alive") == "alive"


def test_what_comes_from_the_background_does_not_hide_the_prompt(linux: Machine, run: Run) -> None:
    assert run.guest.shell("(sleep 2; echo from behind; echo from the kernel >/dev/kmsg) &").status == 0
    before = linux.pc.clock.now
    run.guest.wait(5)
    assert 5 * SECOND <= linux.pc.clock.now - before < 5.1 * SECOND and linux.state == "waiting"
    assert "from behind\n" in run.console.guest and "] from the kernel\n" in run.console.guest
    assert run.guest.shell("echo here").splitlines()[0] == "here"


def test_lines_typed_by_hand(linux: Machine, run: Run) -> None:
    assert linux.send("cat\n").startswith("cat") and linux.state == "stopped" and run.outcome == "up"
    with pytest.raises(HvlabError, match="in the middle of a command"):
        run.guest.shell("ls")
    assert linux.send("told\n") == "told\r\ntold\r\n"
    assert linux.send("\x04").endswith("lab# ") and linux.state == "waiting"


def test_a_command_is_stopped_and_goes_on(linux: Machine, run: Run) -> None:
    times = []

    def stop() -> None:
        began = time.monotonic()
        linux.stop()
        times.append(time.monotonic() - began)
    timer = threading.Timer(0.3, stop)
    timer.start()
    with pytest.raises(HvlabError, match=r"the machine was stopped while '.*' ran: resume\(\) lets it go on"):
        run.guest.shell("i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done; echo counted $i")
    assert (linux.state, run.outcome) == ("stopped", "stopped")
    with pytest.raises(HvlabError, match="the machine is stopped"):
        run.guest.shell("ls")
    for _ in range(10):
        began = time.monotonic()
        linux.resume(0.02)
        times.append(time.monotonic() - began - 0.05)
        assert linux.state == "stopped"
    linux.resume()
    assert linux.state == "waiting" and run.console.guest.endswith("counted 200000\nlab# ")
    assert sorted(times)[len(times) // 2] < 0.1
    assert run.guest.shell("echo alive") == "alive"


def test_a_new_shell_follows_one_that_ends(run: Run) -> None:
    assert "built-in shell (ash)" in run.guest.shell("exit 3")
    assert run.guest.shell("echo alive") == "alive"


def test_who_only_speaks_of_a_panic_does_not_die_of_it(linux: Machine, run: Run) -> None:
    words = "Kernel panic - not syncing: only words"
    assert run.guest.shell(f"echo '{words}'; echo '---[ end {words} ]---'; sleep 10").splitlines()[0] == words
    run.guest.wait(10)
    assert (linux.state, run.outcome) == ("waiting", "up")


def test_attacks_are_the_lab_guests(linux: Machine) -> None:
    with pytest.raises(HvlabError, match="the attacks are the lab guest's, and a Linux has been booted"):
        linux.attack("steal-key")
    assert linux.state == "waiting"


def test_the_disk_is_lost_where_the_core_maps_too_little_and_the_kernel_says_so(linux_cache: dict[str, str]) -> None:
    """And what a panic, a reset and a machine that is rebooted with other options come to."""
    with Machine.load("q35-6g") as m:
        run = m.boot(Config(VTD_TRANS=True), guest="linux", command_line="nvme_core.admin_timeout=5", limit=600)
        assert run.outcome == "disk-lost" and run.why.startswith("00:02.0's DMA read at 0x10") and m.state == "waiting"
        assert "PTE Read access is not set, reason 6" in run.why
        assert "the guest says: nvme nvme0: I/O " in run.why
        assert " QID 0 timeout, disable controller; nvme nvme0: Identify Controller failed (-4)" in run.why
        with pytest.raises(HvlabError, match="was the guest's end: Kernel panic - not syncing: sysrq triggered crash"):
            run.guest.shell("echo c >/proc/sysrq-trigger")
        assert (m.state, run.outcome, run.why) == ("ended", "guest-crash", "Kernel panic - not syncing: sysrq triggered crash")
        with pytest.raises(HvlabError, match="no shell any more: Kernel panic"):
            run.guest.shell("ls")
        again = m.reboot(VTD_TRANS=False)
        assert m.linux and again.outcome == "up" and "admin_timeout=5" in again.guest.shell("cat /proc/cmdline")
        assert m.boot(Config(VTD_TRANS=False)).outcome == "up" and not m.linux


def test_a_kernel_that_finds_no_init_panics_and_one_without_a_shell_is_given_up(linux_cache: dict[str, str]) -> None:
    with Machine.load("q35-2g") as m:
        run = m.boot(Config(VTD_TRANS=False), guest="linux", command_line="rdinit=/nosuch", limit=600)
        assert run.outcome == "guest-crash" and run.why.startswith("Kernel panic - not syncing: ")
        run = m.boot(Config(VTD_TRANS=False), guest="linux", command_line="rdinit=/nosuch panic=-1", limit=600)
        assert run.outcome == "guest-crash"
        assert re.fullmatch("Kernel panic - not syncing: .*; the guest reset the machine before it waited for input", run.why)
        run = m.boot(Config(VTD_TRANS=False), guest="linux", command_line="quiet rdinit=/bin/sleep -- 10000", limit=600)
        assert run.outcome == "guest-crash" and run.why.startswith("no shell within 600 s of virtual time")
        run = m.boot(Config(VTD_TRANS=False), guest="linux", limit=0.7)
        assert run.outcome == "guest-crash" and run.why.startswith("still running after 0.7 s of wall time")


def test_a_shell_that_is_not_hvlabs_is_typed_to(linux_cache: dict[str, str], tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    with Machine.load("q35-2g") as m:
        run = m.boot(Config(VTD_TRANS=False), guest="linux", command_line="rdinit=/bin/sh", limit=600)
        assert run.outcome == "up" and run.why.startswith("the guest runs /bin/sh, an init that is not hvlab's; ")
        with pytest.raises(HvlabError, match=r"the guest's init is not hvlab's, .*: send\(\) types on its console"):
            m.shell("ls")
        assert "\n42\r\n" in m.send("echo $((6 * 7))\n")
        before = virtual(m)
        assert m.resume() is run and virtual(m) - before == pytest.approx(60, abs=1)
        m.save(tmp_path / "sh.snap")
    assert main(["resume", str(tmp_path / "sh.snap"), "--command", "echo $((6 * 8)) $PPID"]) == 0
    shown = capsys.readouterr()
    assert "\n48 0\n" in shown.out and "\x1b" not in shown.out and "lab# " not in shown.out and not shown.err


def test_the_command_line_boots_it(linux_cache: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "q35-2g", "--guest", "linux", "--append", "one.two=3", "--command", "cat /proc/cmdline", "--command", "read x",
                 "--command", "echo c >/proc/sysrq-trigger", "--command", "ls"]) == 0
    shown = capsys.readouterr()
    assert "lab# cat /proc/cmdline\n" in shown.out and "one.two=3" in shown.out and "guest-crash - Kernel panic" in shown.out
    said = shown.err.splitlines()
    assert said[0].startswith("hvlab: 'read x' was still running after 60 s of virtual time") and "was the guest's end" in said[1]
    assert said[2].startswith("hvlab: no guest was left for 'ls': Kernel panic") and len(said) == 3


def test_what_no_linux_can_be_is_one_sentence(linux_cache: dict[str, str], tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    with Machine.load("q35-2g") as m:
        for wrong, error, why in (({"guest": "linux-1.2"}, BadMachine, "no Linux kernel 1.2 here"),
                                  ({"guest": "linux", "kernel": tmp_path / "nosuch"}, BadMachine, "cannot be read"),
                                  ({"guest": "linux", "config": Config(TINYVISOR=True)}, BadConfig, "takes two lab guests, no Linux")):
            with pytest.raises(error, match=why):
                m.boot(**wrong)
        assert m.state == "off" and m.guest is None
    assert main(["boot", "q35-2g", "--guest", "linux-1.2", "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("hvlab: no Linux kernel 1.2 here") and shown.err.count("\n") == 1 and not shown.out
    with Machine(Machine.load("q35-2g").description, public_only=True) as m:
        with pytest.raises(HvlabError, match="a Linux needs parts of the emulator"):
            m.boot(guest="linux")
        assert m.boot(Config(VTD_TRANS=False)).outcome == "up"


def test_the_workbench_and_a_worker_type_to_it(linux: Machine, run: Run) -> None:
    bench = Workbench(linux)
    try:
        for line, state in (("echo from the workbench", "waiting"), ("cat", "stopped"), ("to cat", "stopped"), ("^C", "waiting")):
            bench._command(line)
            bench.wait()
            assert linux.state == state
        assert bench.guest_console.text.endswith("echo from the workbench\nfrom the workbench\nlab# cat\nto cat\nto cat\n^C\nlab# ")
        answer = bench.worker.shell(linux, "echo told; false").result()
        assert (answer, answer.status) == ("told", 1)
        assert bench.run is run and 'hvlab-outcome">up<' in bench.verdict.html
    finally:
        bench.close()


def test_its_run_as_json(run: Run) -> None:
    told = json.loads(json.dumps(run.to_json()))
    assert told["outcome"] == "up" and any(line.startswith("lab: ready (Linux ") for line in told["console"]["guest"])
