"""Files that a user names, read whole: only regular ones, and none that is far too large for what it should be."""

from pathlib import Path

from ..errors import BadMachine

__all__ = ["read_bytes", "read_table"]

_LARGEST_TABLE = 1 << 20
"""Bytes; the largest ACPI tables of real machines have some 400 KiB."""


def read_bytes(path: Path, most: int, what: str) -> bytes:
    """A file's content.  Raises `BadMachine` for a pipe, a device, or one of more than `most` bytes: too many for `what`."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise BadMachine(f"{path}: not a file")
        if size > most:
            raise BadMachine(f"{path}: {size >> 20} MiB are too many for {what}")
        return path.read_bytes()
    except OSError as e:
        raise BadMachine(f"{path} cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise BadMachine(f"{str(path)!r} is no path ({e})") from e


def read_table(path: Path) -> bytes:
    """A raw ACPI table's bytes.  Raises `BadMachine`."""
    return read_bytes(path, _LARGEST_TABLE, "an ACPI table")
