"""The file of results: one JSON object a line, appended as items are done, so that a fleet goes on where it stopped."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from ..errors import HvlabError
from .result import Done

__all__ = ["NAME", "Store"]

NAME = "items.jsonl"
_HEAD = {"hvlab-fleet": 1}
"""The first line: what the file is, and the version of its format."""
_SYNC = 2.0
"""Seconds after which what was written is forced to the disk, at the latest with the next line."""


class Store:
    """The results in a folder, open for more; use it in `with`.  Only one may have it open at a time."""

    def __init__(self, folder: Path):
        """Makes the folder and the file where they are not there.  Raises HvlabError where they are not a fleet's, or in use."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as e:
            raise HvlabError(f"{folder}: no results can be written there ({e.strerror}): give another folder with -o") from e
        self.path = folder / NAME
        self._synced = time.monotonic()
        try:
            self.done = self._begin()
        except BaseException:
            os.close(self._file)
            raise

    def _begin(self) -> dict[tuple[str, str], Done]:
        """Takes the file for this process, drops a torn last line, reads the rest."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise HvlabError(f"{self.path} is in use: another hvlab fleet writes there; wait for it, or give another folder with -o") from e
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].split(b"\n")
        if whole and not _is_head(lines[0]) or not whole and not _head_line().startswith(data):
            raise HvlabError(f"{self.path} is not a file of hvlab fleet's, or of another version: give another folder with -o")
        os.ftruncate(self._file, whole)
        if not whole:
            self._write(_head_line())
        return {done.key: done for done in _read(lines[1:])}

    def add(self, done: Done) -> None:
        """One more; it is in the file when this returns."""
        self._write(json.dumps(done.to_json()).encode() + b"\n")
        self.done[done.key] = done
        if time.monotonic() - self._synced > _SYNC:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._file, left):]

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        os.fsync(self._file)
        os.close(self._file)


def _head_line() -> bytes:
    return json.dumps(_HEAD).encode() + b"\n"


def _is_head(line: bytes) -> bool:
    try:
        return bool(json.loads(line) == _HEAD)
    except ValueError:
        return False


def _read(lines: list[bytes]) -> Iterator[Done]:
    """The results of lines; one that is damaged is left out, and its item is done again."""
    for line in lines:
        try:
            yield Done.of(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
