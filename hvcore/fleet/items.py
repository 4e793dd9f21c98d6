"""What a fleet consists of: every archive, folder of logs, kernel log and .toml below a folder, each known by its path and its content."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from ..sources.archive import is_archive
from ..sources.folder import LOGS
from ..sources.tables import is_dump, is_table

__all__ = ["KINDS", "Item", "digest_of", "find_items"]

KINDS = ("archive", "folder", "log", "toml")
_MOST = 128 << 20
"""Bytes of a file that its digest covers, besides its size: whatever is longer is refused whole when it is read."""
_HEAD = 1 << 20
"""Bytes of a text in which a kernel's words are looked for."""
_LOG_ENDINGS = (".txt", ".log", ".dmesg", ".kmsg")
_LOG_NAMES = ("dmesg", "kern", "messages", "syslog", "journal")
_LOG_WORDS = (b"BIOS-e820", b"e820:", b"Linux version ", b"DMAR: ")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to be examined: its path below the fleet's folder (with `/`), its kind, and the digest of its content.

    `problem` says why it cannot be read, where it cannot; the digest is empty then.
    """

    path: str
    kind: str
    digest: str
    problem: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """By what a finished item is known again."""
        return self.path, self.digest


_Found: TypeAlias = tuple[str, str, str]
"""Path, kind, and what is wrong with it."""


def find_items(folder: Path, leave_out: Path | None = None) -> Iterator[Item]:
    """The items below a folder, by path; nothing below `leave_out`, which is the fleet's own.

    A folder is an item where it has a log of a known name (`dmesg.txt`, ...), or any log beside a raw table; what else lies in it belongs
    to it, but archives, .toml files and folders, which are items of their own.  Links to folders are not followed.
    """
    for path, kind, problem in sorted(_candidates(folder, leave_out)):
        try:
            yield Item(path, kind, "", problem) if problem else Item(path, kind, digest_of(folder, path, kind))
        except OSError as e:
            yield Item(path, kind, "", f"it cannot be read ({e.strerror or e})")


def digest_of(folder: Path, path: str, kind: str) -> str:
    """SHA-256 of an item's content, in hex: of the bytes of a file; of the names and bytes of a folder's own files.  Raises OSError."""
    whole = hashlib.sha256()
    place = folder / path
    if kind != "folder":
        _add_file(whole, place)
        return whole.hexdigest()
    for name in sorted(e.name for e in os.scandir(place) if _belongs(e)):
        whole.update(os.fsencode(name) + b"\0")
        _add_file(whole, place / name)
    return whole.hexdigest()


def _belongs(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry of a machine's folder is a file of that machine."""
    return not entry.is_dir() and not is_archive(Path(entry.name)) and not entry.name.endswith(".toml")


def _add_file(whole: "hashlib._Hash", path: Path) -> None:
    """Size and bytes of a file; of what is none (a pipe, a device, a link to nowhere) only that it is none."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        whole.update(b"nothing")
        return
    with open(file, "rb") as stream:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            whole.update(b"no file")
            return
        whole.update(b"%d:" % status.st_size)
        left = _MOST
        while left and (data := stream.read(min(left, 1 << 20))):
            whole.update(data)
            left -= len(data)


def _candidates(folder: Path, leave_out: Path | None) -> Iterator[_Found]:
    own = leave_out.resolve() if leave_out else None
    unreadable: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=unreadable.append):
        here = Path(place)
        folders[:] = [f for f in folders if own is None or (here / f).resolve() != own]
        below = PurePosixPath(here.relative_to(folder).as_posix())
        machine = _is_machine(names)
        if machine:
            yield str(below), "folder", ""
        for name in names:
            if kind := _file_kind(here / name, machine):
                yield str(below / name), kind, _oddity(here / name)
    for error in unreadable:
        yield Path(error.filename).relative_to(folder).as_posix(), "folder", f"it cannot be read ({error.strerror})"


def _is_machine(names: Iterable[str]) -> bool:
    """Whether a folder with files of these names is a machine's."""
    names = set(names)
    beside = any(is_table(n) or is_dump(n) for n in names)
    return bool(names & set(LOGS)) or beside and any(n.lower().startswith(_LOG_NAMES) for n in names)


def _file_kind(path: Path, in_machine: bool) -> str:
    """What kind of item a file is; empty where it is none."""
    name = path.name.lower()
    if is_archive(path):
        return "archive"
    if name.endswith(".toml"):
        return "toml"
    if in_machine or not name.endswith(_LOG_ENDINGS) and not name.startswith(_LOG_NAMES):
        return ""
    return "log" if _has_kernel_words(path) else ""


def _has_kernel_words(path: Path) -> bool:
    """Whether a text begins as a kernel's log does; also where it cannot be read, for then nobody knows."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return True
    return any(word in head for word in _LOG_WORDS)


def _oddity(path: Path) -> str:
    """Why an item that should be a file is none; empty where it is one."""
    try:
        return "" if stat.S_ISREG(path.stat().st_mode) else "it is no plain file"
    except OSError as e:
        return f"it cannot be read ({e.strerror})"
