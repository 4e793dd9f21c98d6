"""When a guest with a shell is at rest: what it prints, what is typed to it, and the time that it has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.machine.clock import Clock
from hvcore.machine.rest import Rest

PROMPT = b"lab# "


class Bench:
    def __init__(self) -> None:
        self.clock, self.pauses = Clock(), 0
        self.rest = Rest(self.clock, self._pause)
        self.rest.prompt = PROMPT

    def _pause(self) -> None:
        self.pauses += 1


@pytest.mark.parametrize(("printed", "at_prompt"), [
    (b"", False), (b"lab#", False), (b"lab# ", True), (b"hi\r\nlab# ", True), (b"no line feed, lab# ", True), (b"lab# ls\r\n", False),
    (b"lab# \r\n", False), (b"lab# [    1.5] usb: new\r\n", True), (b"lab# [    1.5] usb: new\r\n[    1.6] usb: more", True),
    (b"lab# [    1.5] usb: new\r\nhi\r\n", False), (b"lab# [    1.5] usb: new\r\nlab# ", True), (b"lablab# ", True), (b"lab> ", False)])
def test_what_is_a_prompt(printed: bytes, at_prompt: bool) -> None:
    for size in (1, 3, len(printed) or 1):
        rest = Bench().rest
        for start in range(0, len(printed), size):
            rest.sent(printed[start:start + size])
        assert rest.at_prompt is at_prompt and rest.said == printed


def test_what_is_printed_behind_a_prompt_where_the_processor_has_halted_does_not_hide_it() -> None:
    rest = Bench().rest
    rest.sent(b"lab# ")
    assert rest.halted()
    rest.sent(b"a job in the background\r\n")
    assert rest.at_prompt and rest.halted()
    rest.typed()
    assert not rest.at_prompt and not rest.halted() and rest.said == b""
    rest.sent(b"ls\r\nlab# more\r\n")
    assert not rest.at_prompt and rest.said == b"ls\r\nlab# more\r\n"


def test_a_guest_without_a_shell_is_never_at_a_prompt() -> None:
    rest = Bench().rest
    rest.prompt = None
    rest.sent(b"lab# ")
    assert not rest.at_prompt and not rest.halted() and rest.said == b""


def test_the_time_that_a_guest_has() -> None:
    bench = Bench()
    bench.rest.allow(1000)
    bench.clock.advance(999)
    assert not bench.rest.late and bench.pauses == 0 and not bench.rest.halted()
    bench.clock.advance(1)
    assert bench.rest.late and bench.pauses == 1 and bench.rest.halted()
    bench.rest.allow(None)
    bench.clock.advance(10_000)
    assert not bench.rest.late and bench.pauses == 1


def test_new_time_takes_the_place_of_what_was_left() -> None:
    bench = Bench()
    bench.rest.allow(1000)
    bench.rest.allow(5000)
    bench.clock.advance(4999)
    assert not bench.rest.late
    bench.clock.advance(1)
    assert bench.rest.late and bench.pauses == 1


def test_a_guest_that_shall_wait_goes_through_its_prompt() -> None:
    bench = Bench()
    bench.rest.sent(PROMPT)
    bench.rest.allow(1000, through_prompt=True)
    assert not bench.rest.halted() and bench.rest.at_prompt
    bench.clock.advance(1000)
    assert bench.rest.halted()
    bench.rest.allow(None)
    assert bench.rest.halted() and bench.rest.at_prompt


@given(st.lists(st.sampled_from([PROMPT, b"lab", b"# ", b"x", b"[ 1.0] k", b"\r\n"])))
def test_a_console_that_ends_with_the_prompt_is_at_it_and_one_without_it_is_not(parts: list[bytes]) -> None:
    rest, text = Bench().rest, b"".join(parts)
    rest.sent(text)
    assert rest.said == text
    if text.endswith(PROMPT):
        assert rest.at_prompt
    elif PROMPT not in text:
        assert not rest.at_prompt
    else:
        behind = text.rpartition(PROMPT)[2]
        assert rest.at_prompt == all(line.startswith(b"[") for line in behind.split(b"\n") if line)
