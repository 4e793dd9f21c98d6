"""What a terminal would show of what was printed to it: lines of plain text, without escape sequences and other control characters."""

import re
from codecs import getincrementaldecoder

__all__ = ["lines_of", "tail"]

_SEQUENCE = re.compile(r"\x1b(?:\[([0-?]*)[ -/]*([@-~])|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]+[0-~]|[0-Z\\-~]|\[[0-?]*[ -/]*)?")
"""An escape sequence: one that moves the cursor within a line and the like (its parameters, its letter), one with text for the terminal,
a short one; also one that has not come to its end."""
_TOKEN = re.compile(rf"{_SEQUENCE.pattern}|[^\x1b\r\x08]+|[\r\x08]")
_CONTROL = re.compile(r"[\x00-\x07\x0b-\x1f\x7f-\x9f]")
_WIDEST = 4096
"""Columns; a cursor that is sent further stays there."""


def lines_of(text: str) -> str:
    """The text as it would stand on a terminal that scrolls.

    A carriage return and a backspace go back in the line, what comes then overwrites it; of escape sequences those count that move within
    the line or erase of it.  Colours and the rest are left out, and whatever else has no picture.
    """
    text = text.replace("\r\n", "\n")
    if "\x1b" not in text and "\x08" not in text and "\r" not in text and not _CONTROL.search(text):
        return text
    return "\n".join(map(_line, text.split("\n")))


def _line(line: str) -> str:
    line = line.strip("\r")
    if "\r" in line or "\x08" in line or "\x1b[" in line:
        line = _overwritten(line)
    elif "\x1b" in line:
        line = _SEQUENCE.sub("", line)
    return _CONTROL.sub("", line)


def _overwritten(line: str) -> str:
    """One line after everything that goes back in it."""
    cells: list[str] = []
    at = 0
    for token in _TOKEN.finditer(line):
        said = token[0]
        if said == "\r":
            at = 0
        elif said == "\x08":
            at = max(0, at - 1)
        elif said[0] == "\x1b":
            at = _obey(cells, at, token[1], token[2])
        else:
            said = _CONTROL.sub("", said)
            cells += [" "] * (at - len(cells))
            cells[at:at + len(said)] = said
            at += len(said)
    return "".join(cells)


def _obey(cells: list[str], at: int, parameters: str | None, letter: str | None) -> int:
    """Carries out a sequence that concerns its own line; where the cursor is then."""
    first = (parameters or "").partition(";")[0]
    count = min(int(first), _WIDEST) if re.fullmatch(r"[0-9]{1,9}", first) else 0
    if letter == "C":
        return min(at + max(count, 1), max(_WIDEST, at))
    if letter == "D":
        return max(0, at - max(count, 1))
    if letter == "G":
        return max(count, 1) - 1
    if letter in ("K", "J") and count == 0:
        del cells[at:]
    elif letter == "K" and count == 1:
        cells[:at + 1] = [" "] * min(at + 1, len(cells))
    elif letter == "K":
        cells.clear()
    elif letter == "P":
        del cells[at:at + max(count, 1)]
    return at


def tail(printed: bytes | bytearray, most: int) -> str:
    """The end of what was printed, at most `most` bytes and if possible from the beginning of a line, as `lines_of` has it.

    What is left out grows in steps of a quarter of `most`: text that grows mostly keeps its beginning.
    """
    step = most // 4
    start = max(0, -(-(len(printed) - most) // step) * step)
    data = bytes(printed[start:])
    if start:
        data = data[data.find(b"\n", 0, step) + 1:].lstrip(bytes(range(0x80, 0xC0)))
    return lines_of(_decoded(data))


def _decoded(data: bytes) -> str:
    """UTF-8 line by line where a line is that, else its bytes one by one; the last character may not be whole yet."""
    try:
        return _whole(data)
    except UnicodeDecodeError:
        return "\n".join(map(_or_bytes, data.split(b"\n")))


def _or_bytes(line: bytes) -> str:
    try:
        return _whole(line)
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _whole(data: bytes) -> str:
    return getincrementaldecoder("utf-8")().decode(data)
