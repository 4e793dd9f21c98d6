"""A shell that is typed to: a script in the place of a guest prints what one would; what is typed is held against a real shell."""

import copy
import shlex
import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hvcore import Config, Machine
from hvcore.errors import HvlabError, Overdue
from hvcore.machine.clock import Clock
from hvcore.machine.rest import Rest
from hvcore.outcome import Ending
from hvcore.shell import STATUS, Answer, Shell, _typed

Script = Callable[[str], bytes | None]
"""What a line prints behind its echo, without the prompt; None for one that never ends."""
WALL = 60.0


class Guest:
    """Stands for `Control` and what is under it: echoes what is typed and prints what a script says."""

    def __init__(self, script: Script, noise: tuple[int, bytes] = (0, b"")):
        self.script, self.noise = script, noise
        self.rest = Rest(Clock(), lambda: None)
        self.rest.prompt = b"lab# "
        self.rest.sent(b"lab# ")
        self.booting = SimpleNamespace(pc=SimpleNamespace(rest=self.rest), ended=None, linux=True, has_shell=True, boots=1)
        self.engine = SimpleNamespace(stopped=False, busy=False)
        self.state, self.typed, self.limits = "waiting", [""], [0.0]
        self.status = 0

    def key_in(self, text: str) -> None:
        self.rest.typed()
        self.typed.append(text)

    def go(self, limit: float, wall: float, watch: Any = None) -> bool:
        self.limits.append(limit)
        line = self.typed[-1]
        if line == "\x03":
            self.rest.sent(b"^C\r\n" + (b"lab# " if self.engine.busy != "stubborn" else b""))
            return True
        at, noise = self.noise
        echo = line.encode().replace(b"\n", b"\r\n")
        self.rest.sent(echo[:at] + noise + echo[at:])
        if line == STATUS + "\n":
            self.rest.sent(b"%d\r\nlab# " % self.status)
            return True
        said = self.script(line.removesuffix("\n"))
        if said is not None:
            self.rest.sent(said.replace(b"\n", b"\r\n") + b"lab# ")
        return True


def run(script: Script, line: str, limit: float = 60, **more: Any) -> Answer:
    return Shell(Guest(script, **more)).run(line, limit, WALL)  # type: ignore[arg-type]


@pytest.mark.parametrize(("said", "told"), [
    (b"", ""), (b"hi\n", "hi"), (b"hi", "hi"), (b"\n", ""), (b"a\n\nb\n\n", "a\n\nb\n"), ("\u00e4\u20ac\n".encode(), "\u00e4\u20ac"),
    (b"\xff\n", "\\xff"), (b"lab# \n", "lab# "), (b"x" * 100_000, "x" * 100_000)])
def test_what_is_told(said: bytes, told: str) -> None:
    answer = run(lambda _line: said, "go")
    assert answer == told and answer.status == 0 and isinstance(answer, str)


def test_the_kernel_may_print_into_the_echo_and_behind_the_prompt() -> None:
    stamp = b"[    1.5] usb 1-1: new device\r\n"
    for at in range(7):
        assert run(lambda _line: b"hi\n", "go on", noise=(at, stamp)) == "[    1.5] usb 1-1: new device\nhi"


def test_the_exit_status_is_asked_for_and_shown() -> None:
    guest = Guest(lambda _line: b"nothing\n")
    guest.status = 127
    answer = Shell(guest).run("nosuch", 60, WALL)  # type: ignore[arg-type]
    assert guest.typed[1:] == ["nosuch\n", STATUS + "\n"]
    assert (answer, answer.status, repr(answer)) == ("nothing", 127, "nothing\n[exit status 127]")
    assert "<pre" in answer._repr_html_() and "exit status 127" in answer._repr_html_()
    assert repr(Answer("a < b", 0)) == "a < b" and "a &lt; b" in Answer("a < b", 0)._repr_html_()
    assert repr(Answer("", 1)) == "[exit status 1]"
    again = copy.copy(answer)
    assert (again, again.status, answer.splitlines()) == ("nothing", 127, ["nothing"])


def test_a_command_that_does_not_end_is_ended_and_says_what_it_printed() -> None:
    guest = Guest(lambda _line: None)
    with pytest.raises(Overdue, match="'cat' was still running after 7 s of virtual time; Ctrl-C ended it; it had printed nothing") as told:
        Shell(guest).run("cat", 7, WALL)  # type: ignore[arg-type]
    assert guest.typed[-1] == "\x03" and guest.limits[1] == 7 and told.value.output == ""


def test_a_command_that_is_not_whole() -> None:
    guest = Guest(lambda _line: None)
    guest.script = lambda _line: guest.rest.sent(b"> ")  # type: ignore[func-returns-value]
    with pytest.raises(Overdue, match=r"'echo \"x' is no whole command: the shell asked for more"):
        Shell(guest).run('echo "x', 60, WALL)  # type: ignore[arg-type]


def test_a_command_that_was_cut_off_tells_the_end_of_what_it_printed() -> None:
    guest = Guest(lambda _line: None)
    guest.script = lambda _line: guest.rest.sent(b"y\r\n" * 5000)  # type: ignore[func-returns-value]
    with pytest.raises(Overdue, match=r"it had printed 9999 characters, at the end '") as told:
        Shell(guest).run("yes", 60, WALL)  # type: ignore[arg-type]
    assert told.value.output == "\n".join(["y"] * 5000) and len(str(told.value)) < 5000


@pytest.mark.parametrize(("change", "why"), [
    ({"state": "running"}, "the machine is running"), ({"state": "off"}, "boot a Linux first"),
    ({"linux": False}, "has no shell: type to its monitor"), ({"ended": Ending("guest-crash", "it died")}, "no shell any more: it died"),
    ({"busy": True}, "the machine is stopped: resume"), ({"busy": False}, "in the middle of a command: send"),
    ({"has_shell": False, "busy": False}, "init is not hvlab's")])
def test_why_no_command_is_taken(change: dict[str, Any], why: str) -> None:
    guest = Guest(lambda _line: b"")
    for name, value in change.items():
        setattr(guest if name == "state" else guest.engine if name == "busy" else guest.booting, name, value)
    if "busy" in change:
        guest.rest.typed()
    with pytest.raises(HvlabError, match=why):
        Shell(guest).run("ls", 60, WALL)  # type: ignore[arg-type]
    assert guest.typed == [""]


@pytest.mark.parametrize("wall", [0, -1, "x", float("nan"), True])
def test_a_wall_time_that_nobody_could_wait(wall: Any) -> None:
    guest = Guest(lambda _line: b"")
    with pytest.raises(HvlabError, match="wall is a number of seconds of wall time"):
        Shell(guest).run("ls", 60, wall)  # type: ignore[arg-type]
    with Machine.load("q35-2g") as m:
        run = m.boot(Config(VTD_TRANS=False))
        for call in (m.resume, lambda wall: m.boot(limit=wall), lambda wall: m.send("time\n", limit=wall),
                     lambda wall: m.wait(1, wall=wall)):
            with pytest.raises(HvlabError, match="a number of seconds of wall time, or "):
                call(wall)
        for text in (5, None, b"time\n"):
            with pytest.raises(HvlabError, match="a guest's console takes text"):
                m.send(text)  # type: ignore[arg-type]
        assert m.run is run and m.state == "waiting" and "lab> " in m.send("time\n")
    assert guest.typed == [""]


@pytest.mark.parametrize(("line", "limit", "why"), [
    ("", 60, "takes a command"), (" \n", 60, "takes a command"), (5, 60, "takes a command as text"), ("a\0b", 60, "zero byte"),
    ("ls", 0, "limit is a number"), ("ls", float("inf"), "limit is a number"), ("ls", float("nan"), "limit is a number"),
    ("ls", "1", "limit is a number"), ("ls", 1e300, "limit is a number"), ("ls", True, "limit is a number"),
    ("\ud800", 60, "half of a character")])
def test_what_is_no_command(line: Any, limit: Any, why: str) -> None:
    with pytest.raises(HvlabError, match=why):
        run(lambda _line: b"", line, limit)


def test_what_ends_or_resets_the_guest_says_so() -> None:
    guest = Guest(lambda _line: None)

    def end(_line: str) -> None:
        guest.booting.ended = Ending("guest-crash", "Kernel panic - not syncing: oh")
    guest.script = end
    with pytest.raises(HvlabError, match="'boom' was the guest's end: Kernel panic - not syncing: oh"):
        Shell(guest).run("boom", 60, WALL)  # type: ignore[arg-type]
    guest = Guest(lambda _line: None)

    def reset(_line: str) -> None:
        guest.booting.boots += 1
    guest.script = reset
    with pytest.raises(HvlabError, match="'reboot -f' reset the machine"):
        Shell(guest).run("reboot -f", 60, WALL)  # type: ignore[arg-type]


def test_a_stop_from_outside_and_the_end_of_wall_time() -> None:
    guest = Guest(lambda _line: None)
    guest.script = lambda _line: setattr(guest.engine, "stopped", True)
    with pytest.raises(HvlabError, match=r"was stopped while 'ls' ran: resume\(\) lets it go on"):
        Shell(guest).run("ls", 60, WALL)  # type: ignore[arg-type]
    assert guest.typed[-1] == "ls\n"
    guest = Guest(lambda _line: None)
    go = guest.go
    guest.go = lambda limit, wall, watch=None: go(limit, wall) and wall != WALL  # type: ignore[method-assign]
    with pytest.raises(Overdue, match="after 60 s of wall time; Ctrl-C ended it"):
        Shell(guest).run("ls", 600, WALL)  # type: ignore[arg-type]


@pytest.mark.needs("bash")
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60))
@example("two\nlines")
@example("it's \"quoted\" \\n $x `y` \t \x1b[0m \x03 \u20ac")
@example("\u00e4" * 3000)
@example("x" * 9000)
def test_a_real_shell_reads_what_is_typed_as_it_was_meant(text: str) -> None:
    typed = list(_typed(f"printf %s {shlex.quote(text)}"))
    assert all(line.isprintable() and len(line.encode()) < 4095 for line in typed)
    done = subprocess.run(["bash"], input="\n".join(typed).encode() + b"\n", capture_output=True, env={"LC_ALL": "C"}, check=True)
    assert done.stdout == text.encode() and not done.stderr


def test_plain_lines_are_typed_as_they_are() -> None:
    assert list(_typed("dmesg | grep -c 'nvme'  # \u00e4\n")) == ["dmesg | grep -c 'nvme'  # \u00e4"]


def test_the_lab_guest_has_no_shell_and_waits() -> None:
    with Machine.load("q35-2g") as m:
        with pytest.raises(HvlabError, match="boot a Linux first"):
            m.shell("ls")
        with pytest.raises(HvlabError, match="boot the machine first"):
            m.wait(1)
        run = m.boot(Config())
        with pytest.raises(HvlabError, match=r"type to its monitor with command\(\)"):
            run.guest.shell("ls")
        before = m.pc.clock.now
        run.guest.wait(2.5)
        assert m.pc.clock.now - before == 2_500_000_000 and m.state == "waiting" and run.outcome == "up"
        assert "help" in run.guest.command("help")
        for wrong in (0, -1, float("inf"), 1e300, "1"):
            with pytest.raises(HvlabError, match="wait takes a number of seconds"):
                m.wait(wrong)  # type: ignore[arg-type]
