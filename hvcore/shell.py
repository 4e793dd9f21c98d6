"""A Linux guest's shell: a command is typed on its console, and what it printed and its exit status are read there.

What is typed is what a person would type: the line, and then one that asks for the exit status and leaves it as it was.  A command of
several lines, or with characters that the terminal would act upon, is typed as one quoted line.
"""

import html
import re
from collections.abc import Iterator

from .control import Control, Watch, check_virtual, check_wall
from .errors import HvlabError, Overdue, quoted

__all__ = ["Answer", "Shell"]

STATUS = "(s=$?; echo $s; exit $s)"
"""Typed behind each command: prints its exit status, and has it still."""
GRACE = 5.0
"""Seconds of virtual time that a command gets to end after Ctrl-C."""
_GRACE_OF_WALL = 10.0
_INTERRUPT = "\x03"
_LONGEST = 3000
"""Bytes of a line that is typed; the terminal takes 4095."""
_KERNELS = re.compile(rb"\[ *\d+\.\d+\] [^\n]*\n")
_WAY_OUT = "'\\x1c' for Ctrl-\\, or '\\x04' for Ctrl-D"
_SHOWN = 2000
"""Characters at the end of an output that an error quotes."""


class Answer(str):
    """What a command printed, without echo and prompt; `status` is its exit status, 0 for success."""

    status: int

    def __new__(cls, text: str, status: int = 0) -> "Answer":
        """Text with a status."""
        answer = super().__new__(cls, text)
        answer.status = status
        return answer

    def __repr__(self) -> str:
        failed = f"{chr(10) if self else ''}[exit status {self.status}]" if self.status else ""
        return f"{self}{failed}"

    def _repr_html_(self) -> str:
        style = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:var(--jp-code-font-family,monospace)"
        failed = f"<p>exit status {self.status}</p>" if self.status else ""
        return f'<pre style="{style}">{html.escape(self)}</pre>{failed}'


class Shell:
    """The shell of a guest under `control`."""

    def __init__(self, control: Control):
        self._control, self._booting = control, control.booting

    def run(self, line: str, limit: float, wall: float, watch: Watch | None = None) -> Answer:
        """Types a command, lets the machine run until the prompt is back, and gives what was printed.

        After `limit` seconds of virtual time, or `wall` seconds of wall time, Ctrl-C is typed.  Raises Overdue then, and HvlabError where
        there is no shell that takes a command, where the command is not whole, and where it ends the guest.
        """
        _check(line, limit)
        check_wall("wall is", wall)
        self._must_be_ready()
        told = ""
        for typed in _typed(line):
            told = self._type(typed, line, limit, wall, watch)
        status = self._type(STATUS, line, limit, wall, watch)
        numbers = re.findall(r"^(\d{1,3})$", status, re.MULTILINE)
        if not numbers:
            raise HvlabError(f"the shell did not say how {quoted(line)} ended; it printed {quoted(status)}: "
                             "send('exit\\n') begins a new one")
        return Answer(told, int(numbers[-1]))

    def _must_be_ready(self) -> None:
        """Raises HvlabError, a sentence for each reason, where no shell waits for a command."""
        control, booting = self._control, self._booting
        state = control.state
        if state == "running":
            raise HvlabError("the machine is running: stop() it, or wait until it has done what it does")
        if state == "off":
            raise HvlabError("there is no shell: boot a Linux first, as in boot(guest='linux')")
        if booting.ended is not None:
            raise HvlabError(f"there is no shell any more: {booting.ended.why}")
        if not booting.linux:
            raise HvlabError("the guest is no Linux and has no shell: type to its monitor with command(), or boot(guest='linux')")
        if control.engine.busy:
            raise HvlabError("the machine is stopped: resume() it until its shell waits at the prompt")
        if not booting.pc.rest.at_prompt and not booting.has_shell:
            raise HvlabError("the guest's init is not hvlab's, and shell() knows the prompt of that one only: send() types on its console")
        if not booting.pc.rest.at_prompt:
            raise HvlabError(f"the shell is in the middle of a command: send() what it waits for, '\\x03' for Ctrl-C, {_WAY_OUT}")

    def _type(self, typed: str, line: str, limit: float, wall: float, watch: Watch | None) -> str:
        """One line of the console, up to the next prompt: what came between."""
        boot = self._booting.boots
        self._control.key_in(typed + "\n")
        in_time = self._control.go(limit, wall, watch)
        said, rest = self._said(typed), self._booting.pc.rest
        if self._booting.ended is not None:
            raise HvlabError(f"{quoted(line)} was the guest's end: {self._booting.ended.why}")
        if self._booting.boots != boot:
            raise HvlabError(f"{quoted(line)} reset the machine, which has booted again")
        if rest.at_prompt and not self._control.engine.stopped:
            return said
        if in_time and self._control.engine.stopped:
            raise HvlabError(f"the machine was stopped while {quoted(line)} ran: resume() lets it go on{_so_far(said)}")
        spent = f"{limit:g} s of virtual time" if in_time else f"{wall:g} s of wall time"
        how = "Ctrl-C ended it" if self._interrupt() else f"Ctrl-C does not end it: send() what it waits for, {_WAY_OUT}"
        what = "is no whole command: the shell asked for more" if said == "> " else f"was still running after {spent}"
        raise Overdue(f"{quoted(line)} {what}; {how}{_so_far(said)}", said)

    def _interrupt(self) -> bool:
        """Types Ctrl-C; whether the prompt came back."""
        self._control.key_in(_INTERRUPT)
        self._control.go(GRACE, _GRACE_OF_WALL, None)
        return self._booting.pc.rest.at_prompt

    def _said(self, typed: str) -> str:
        """What was printed since a line was typed, without its echo and the prompt behind."""
        rest = self._booting.pc.rest
        text = bytes(rest.said).replace(b"\r", b"")
        if rest.at_prompt and rest.prompt:
            before, _, after = text.rpartition(rest.prompt)
            text = before + after
        return _without_echo(text, typed.encode() + b"\n").decode("utf-8", "backslashreplace").removesuffix("\n")


def _check(line: str, limit: float) -> None:
    if not isinstance(line, str) or not line.strip():
        raise HvlabError(f"shell takes a command as text, as in shell('dmesg | grep nvme'), not {quoted(line)}")
    if "\0" in line:
        raise HvlabError(f"{quoted(line)} has a zero byte, which no command can have")
    if not line.isascii() and any("\ud800" <= c <= "\udfff" for c in line):
        raise HvlabError(f"{quoted(line)} has half of a character, which no console can take")
    check_virtual("limit is", limit)


def _typed(line: str) -> Iterator[str]:
    """The lines to type for a command: itself, or, where that would not do, text that is put together and evaluated."""
    line = line.strip("\n")
    if len(line.encode()) <= _LONGEST and line.isprintable():
        yield line
        return
    pieces = [""]
    for escaped in map(_in_quotes, line.encode()):
        if len(pieces[-1]) + len(escaped) > _LONGEST:
            pieces.append("")
        pieces[-1] += escaped
    before = ""
    for piece in pieces[:-1]:
        yield f"hvlab={before}$'{piece}'"
        before = '"$hvlab"'
    yield f"eval {before}$'{pieces[-1]}'"


def _in_quotes(byte: int) -> str:
    """A byte inside $'...'."""
    if 0x20 <= byte < 0x7F and byte not in b"'\\":
        return chr(byte)
    return {0x0A: "\\n", 0x09: "\\t", 0x27: "\\'", 0x5C: "\\\\"}.get(byte, f"\\{byte:03o}")


def _without_echo(text: bytes, echo: bytes) -> bytes:
    """Text behind the echo with which it begins; lines that the kernel has printed into the echo stay."""
    if text.startswith(echo):
        return text[len(echo):]
    between, at = b"", 0
    for byte in echo:
        while kernels := _KERNELS.match(text, at):
            between, at = between + kernels[0], kernels.end()
        if text[at:at + 1] != bytes((byte,)):
            return text
        at += 1
    return between + text[at:]


def _so_far(said: str) -> str:
    """The end of a sentence: what was printed."""
    if not said:
        return "; it had printed nothing"
    cut = f"{len(said)} characters, at the end " if len(said) > _SHOWN else ""
    return f"; it had printed {cut}{said[-_SHOWN:]!r}"
