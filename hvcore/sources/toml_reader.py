"""Values out of a TOML table: each key known, each value of its type and range, each mistake named by file and key."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ..errors import BadMachine, quoted

__all__ = ["Reader", "size"]

_SIZE = re.compile(r"(\d{1,12})\s*(KiB|MiB|GiB|TiB)?")
_UNITS = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_TOP = (1 << 64) - 1


def size(text: str) -> int | None:
    """`16 GiB` in bytes; None where it is no size."""
    m = _SIZE.fullmatch(text.strip())
    return int(m[1]) * _UNITS[m[2]] if m else None


class Reader:
    """One table of a TOML file.  `key` is its name, empty for the file itself; `known` are the keys it may have."""

    def __init__(self, values: object, path: Path, key: str, known: Sequence[str]):
        self.path, self.key = path, key
        if not isinstance(values, Mapping):
            self.fail("", f"must be a table with {', '.join(known)}")
        self.values: dict[str, object] = dict(values)
        for name in self.values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                self.fail(name, f"there is no such key here: did you mean {near}?")

    def fail(self, name: str, why: str) -> NoReturn:
        """Raises `BadMachine` for the key `name` of this table."""
        where = ".".join(part if len(part) <= 80 else part[:80] + "..." for part in (self.key, name) if part)
        raise BadMachine(f"{self.path}: {where + ': ' if where else ''}{why}")

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def integer(self, name: str, default: int | None = None, low: int = 0, high: int = _TOP) -> int:
        """A whole number from `low` to `high`; missing without a `default` is a mistake."""
        value = self.values.get(name, default)
        if value is None:
            self.fail(name, "is missing")
        return self.number(name, value, low, high)

    def number(self, name: str, value: object, low: int = 0, high: int = _TOP) -> int:
        """`value`, said to be of key `name`, as a whole number in range."""
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(name, f"{quoted(value)} is no whole number from {low:#x} to {high:#x}")
        return value

    def bytes_of(self, name: str, default: int | None = None) -> int:
        """A number of bytes: a whole number, or text like `16 GiB`."""
        value = self.values.get(name, default)
        if isinstance(value, str):
            found = size(value)
            if found is None:
                self.fail(name, f"{quoted(value)} is no size like \"16 GiB\"")
            if found > _TOP:
                self.fail(name, f"{quoted(value)} is beyond 64 bits")
            return found
        return self.integer(name, default)

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self.values.get(name, default)
        if not isinstance(value, str):
            self.fail(name, "is missing" if value is None else f"{quoted(value)} is no text")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """true or false."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            self.fail(name, f"{quoted(value)} is neither true nor false")
        return value

    def array(self, name: str) -> list[object]:
        """An array, empty where it is missing."""
        value = self.values.get(name, [])
        if not isinstance(value, list):
            self.fail(name, f"{quoted(value)} is no array")
        return value

    def tables(self, name: str, known: Sequence[str]) -> list["Reader"]:
        """An array of tables."""
        prefix = f"{self.key}." if self.key else ""
        return [Reader(value, self.path, f"{prefix}{name}[{i}]", known) for i, value in enumerate(self.array(name))]

    def table(self, name: str, known: Sequence[str]) -> "Reader":
        """A table, empty where it is missing."""
        return Reader(self.values.get(name, {}), self.path, name, known)
