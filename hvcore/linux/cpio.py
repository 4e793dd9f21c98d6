"""Archives that Linux unpacks as its first file system: cpio, format "newc" (Linux, driver-api/early-userspace/buffer-format.rst)."""

import stat
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["CpioEntry", "archive", "device", "directory", "file", "link"]

_END = "TRAILER!!!"
_BLOCK = 512


@dataclass(frozen=True)
class CpioEntry:
    """A file, folder, link or device.  `name` has no slash before it; `mode` is as stat(2) has it; `data` is a link's target, too."""

    name: str
    mode: int
    data: bytes = b""
    major: int = 0
    minor: int = 0


def directory(name: str, permissions: int = 0o755) -> CpioEntry:
    """A folder."""
    return CpioEntry(name, stat.S_IFDIR | permissions)


def file(name: str, data: bytes, permissions: int = 0o644) -> CpioEntry:
    """A plain file."""
    return CpioEntry(name, stat.S_IFREG | permissions, data)


def link(name: str, target: str) -> CpioEntry:
    """A symbolic link."""
    return CpioEntry(name, stat.S_IFLNK | 0o777, target.encode())


def device(name: str, major: int, minor: int, permissions: int = 0o600) -> CpioEntry:
    """A character device."""
    return CpioEntry(name, stat.S_IFCHR | permissions, b"", major, minor)


def archive(entries: Iterable[CpioEntry]) -> bytes:
    """The archive's bytes, the same for the same entries in any order: sorted by name, owned by root, of time 0."""
    out = bytearray()
    for number, entry in enumerate(sorted(entries, key=lambda e: e.name.split("/")), 1):
        _append(out, number, entry)
    _append(out, 0, CpioEntry(_END, 0))
    return bytes(out) + bytes(-len(out) % _BLOCK)


def _append(out: bytearray, number: int, entry: CpioEntry) -> None:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, entry.major, entry.minor, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    out += bytes(-len(out) % 4)
    out += entry.data
    out += bytes(-len(out) % 4)
