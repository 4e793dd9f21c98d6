"""What a console shows of what was printed: as a terminal would, and of much the end."""

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from widgets.screen import lines_of, tail


def test_colours_and_titles_are_left_out():
    assert lines_of("\x1b[1;34mdev\x1b[m  \x1b]0;title\x07\x1b(Bnull\n") == "dev  null\n"
    assert lines_of("\x1b[2J\x1b[Hlab# \x1b[6n") == "lab# "


def test_what_goes_back_in_a_line_overwrites_it():
    assert lines_of("10 %\r20 %\r100 %\r\nok\r\n") == "100 %\nok\n"
    assert lines_of("abcdef\rxy") == "xycdef"
    assert lines_of("abcdef\rxy\x1b[K") == "xy"
    assert lines_of("lab# sl\x08\x08ls\x1b[J") == "lab# ls"
    assert lines_of("abc\x1b[2Dx") == "axc"
    assert lines_of("abc\x1b[1K-") == "   -"
    assert lines_of("abc\r\x1b[2K-") == "-"
    assert lines_of("abc\r\x1b[P\x1b[2C!") == "bc!"
    assert lines_of("\x1b[3Gx") == "  x"


def test_a_sequence_that_is_not_whole_yet_is_not_shown():
    assert lines_of("a\x1b") == lines_of("a\x1b[") == lines_of("a\x1b[1;3") == lines_of("a\x1b]0;ti") == "a"


def test_other_control_characters_have_no_picture():
    assert lines_of("a\x00\x07\x0b\x7f\x9bb\tc") == "ab\tc"


@given(st.text(st.sampled_from("ab \x1b[]0;1?KCDPGJmHx\r\x08\n\x07\x00é"), max_size=200))
def test_whatever_is_printed_only_text_is_shown(printed):
    shown = lines_of(printed)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert shown.count("\n") == printed.count("\n")
    assert lines_of(shown) == shown


def test_no_output_is_slow_or_large():
    hostile = ["\x1b[" * 30000, "\x1b[99999999C" * 5000, "\x1b]" * 30000, "a\x08" * 30000, "\x1b[1P" * 15000, "\x1b[" + "0" * 60000]
    since = time.perf_counter()
    assert max(len(lines_of(text)) for text in hostile) <= 60000
    assert time.perf_counter() - since < 5


def test_the_end_begins_with_a_line_and_stays_where_it_begins_for_a_while():
    lines = [f"line {i}\r\n".encode() for i in range(2000)]
    shown = tail(b"".join(lines), 4096)
    assert shown.startswith("line ") and shown.endswith("line 1999\n")
    assert 3000 < len(shown) <= 4096
    beginnings = {tail(b"".join(lines[:n]), 4096)[:10] for n in range(1900, 2000)}
    assert len(beginnings) <= 2
    assert tail(b"short", 4096) == "short"
    assert tail(b"x" * 5000, 4096) == "x" * (5000 - 1024)


def test_utf_8_is_shown_as_such_and_other_bytes_one_by_one():
    assert tail("é".encode(), 100) == "é"
    assert tail("né".encode()[:-1], 100) == "n"
    assert tail(b"\xe9!", 100) == "é!"
    assert tail("日本\n".encode() + b"\xff\xe9\n" + "語".encode() + b"\xe6", 100) == "日本\nÿé\n語"
    assert tail(("é" * 100).encode(), 41).strip("é") == ""
