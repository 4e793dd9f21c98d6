"""How bytes, text and numbers are spoilt.  Everything is drawn from the `Random` that is given, so that a seed repeats a case."""

import re
from collections.abc import Callable, Sequence
from random import Random

__all__ = ["check_sentence", "junk", "mutated", "number", "often", "spoilt_text", "torn"]

EDGES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 0x20, 0x7F, 0x80, 0xFF, 0x100, 0xFFF, 0x1000, 0x7FFF, 0xFFFF, 0x9FC00, 0x100000, 0x7FFFFFFF,
         0x80000000, 0xFEC00000, 0xFEE00000, 0xFFFFFFFF, 1 << 32, 1 << 39, 1 << 47, 1 << 52, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_REPEATED = 1 << 19
"""Most characters or bytes that a repeated piece grows to."""


def often(r: Random, chance: float) -> bool:
    """True in `chance` of the cases."""
    return r.random() < chance


def number(r: Random, bits: int) -> int:
    """A number of up to `bits` bits: an edge, a single bit, a few bits, or anything."""
    kind = r.randrange(4)
    value = (r.choice(EDGES) + r.randint(-1, 1) if kind == 0 else 1 << r.randrange(bits) if kind == 1
             else r.getrandbits(r.randint(1, bits)) if kind == 2 else r.getrandbits(bits))
    return value & (1 << bits) - 1


def junk(r: Random, most: int) -> bytes:
    """Up to `most` bytes of nothing in particular."""
    return r.choice((bytes, lambda n: b"\xff" * n, r.randbytes))(r.randrange(most + 1))


def check_sentence(error: Exception, place: str = "") -> None:
    """What a user is told is one line, not too long, which names the place."""
    text = str(error)
    assert text.strip() and "\n" not in text and len(text) < 10_000, f"no sentence: {text[:200]!r}"
    assert place in text, f"no place: {text[:200]!r}"


# --- bytes

def _flip(r: Random, data: bytearray) -> None:
    at = r.randrange(8 * len(data))
    data[at // 8] ^= 1 << at % 8


def _put(r: Random, data: bytearray) -> None:
    """A number of 1, 2, 4 or 8 bytes over what is there."""
    width, at = r.choice((1, 1, 2, 2, 4, 8)), r.randrange(len(data))
    data[at:at + width] = number(r, 8 * width).to_bytes(width, "little")[:len(data) - at]


def _span(r: Random, data: Sequence[object]) -> tuple[int, int]:
    start = r.randrange(len(data))
    return start, min(len(data), start + r.choice((1, 2, 4, 8, 16, 64, len(data))))


def _delete(r: Random, data: bytearray) -> None:
    start, end = _span(r, data)
    del data[start:end]


def _insert(r: Random, data: bytearray) -> None:
    at = r.randrange(len(data) + 1)
    data[at:at] = junk(r, 40)


def _copy(r: Random, data: bytearray) -> None:
    """A piece of it, once more or many times, somewhere else."""
    start, end = _span(r, data)
    at = r.randrange(len(data) + 1)
    times = _REPEATED // (end - start) if often(r, 0.02) else r.randint(1, 3)
    data[at:at] = bytes(data[start:end]) * times


def _cover(r: Random, data: bytearray) -> None:
    start, end = _span(r, data)
    data[start:end] = r.choice((b"\0", b"\xff")) * (end - start)


def _cut(r: Random, data: bytearray) -> None:
    del data[r.randrange(len(data) + 1):]


_BYTE_OPERATIONS: tuple[Callable[[Random, bytearray], None], ...] = (_flip, _flip, _put, _put, _put, _delete, _insert, _copy, _cover, _cut)


def mutated(r: Random, data: bytes, most: int = 4) -> bytes:
    """The bytes after 1 to `most` mutations."""
    out = bytearray(data)
    for _ in range(r.randint(1, most)):
        if out:
            r.choice(_BYTE_OPERATIONS)(r, out)
    return bytes(out)


def torn(r: Random, first: bytes, second: bytes) -> bytes:
    """The beginning of one and the end of another."""
    return first[:r.randrange(len(first) + 1)] + second[r.randrange(len(second) + 1):]


# --- text

_NUMBER = re.compile(r"0x[0-9a-fA-F_]+|\b[0-9a-f]{8,16}\b|\b\d+\b")
_ODD = ("\0", "\r", "\x0b", "\x85", "\u2028", "\ufeff", "\u0663", "²", "\U0001f600", "\t", "\"", "[", "]", "{", "=", "#", "\\", "-", "'''",
        "\"\"\"", "[[", "9" * 5000, "[" * 3000, "0x" + "f" * 20, "-1", "1e400", "nan", "true", "''")


def _spoil_number(r: Random, text: str) -> str:
    """Another number in the place of one, in the same base."""
    found = [m for m in _NUMBER.finditer(text) if len(m[0]) <= 24]
    if not found:
        return text
    m = r.choice(found)
    old = int(m[0].replace("_", ""), 16 if not m[0].isdecimal() else 10)
    value = r.choice((number(r, 64), max(old + r.choice((-0x1000, -1, 1, 0x1000)), 0), old ^ 1 << r.randrange(40), old * 2, old // 2))
    new = f"{value:#x}" if m[0].startswith("0x") else f"{value:0{len(m[0])}x}" if len(m[0]) >= 8 else str(value)
    return text[:m.start()] + new + text[m.end():]


def _spoil_place(r: Random, text: str) -> str:
    at = r.randrange(len(text) + 1)
    return text[:at] + r.choice(_ODD) + text[at + r.choice((0, 0, 1, 5)):]


def _spoil_lines(r: Random, text: str) -> str:
    """Lines that are lost, repeated, in another place, or joined."""
    lines = text.split("\n")
    i, j = r.randrange(len(lines)), r.randrange(len(lines))
    kind = r.randrange(4)
    if kind == 0:
        del lines[i]
    elif kind == 1:
        lines[j:j] = [lines[i]] * r.choice((1, 2, 300))
    elif kind == 2:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines[i:i + 2] = ["".join(lines[i:i + 2])]
    return "\n".join(lines)


def _spoil_piece(r: Random, text: str) -> str:
    """A piece many times, with or without a line between."""
    start, end = _span(r, text)
    piece = text[start:end].replace("\n", r.choice(("\n", " ")))
    return text[:start] + piece * r.choice((2, 10, _REPEATED // len(piece))) + text[end:]


def _spoil_end(r: Random, text: str) -> str:
    return text[:r.randrange(len(text) + 1)] if often(r, 0.7) else text[r.randrange(len(text) + 1):]


_TEXT_OPERATIONS: tuple[tuple[Callable[[Random, str], str], int], ...] = (
    (_spoil_number, 10), (_spoil_place, 5), (_spoil_lines, 5), (_spoil_end, 2), (_spoil_piece, 1))


def spoilt_text(r: Random, text: str, most: int = 4) -> str:
    """The text after 1 to `most` mutations, in half of the cases of numbers alone."""
    operations, weights = zip(*(_TEXT_OPERATIONS if often(r, 0.5) else _TEXT_OPERATIONS[:1]), strict=True)
    for operation in r.choices(operations, weights, k=r.randint(1, most)):
        if text:
            text = operation(r, text)
    return text
