"""Memory dumps in files: raw ones, ELF cores, LiME's.  What is packed is refused with the way to unpack it."""

import struct
from collections.abc import Iterable
from pathlib import Path

from ..errors import BadSource
from ..spec.paging import PAGE
from .elfdump import MAGIC, elf_pieces
from .physical import ADDRESS_END, Buffer, FileMemory, Piece, mapped

__all__ = ["has_header", "open_dump"]

_KDUMP = ("is kdump-compressed, which is not read: take it again as ELF "
          "(QEMU: dump-guest-memory FILE without -z, -l, -s; Linux: makedumpfile -E)")
_WINDOWS = "is a Windows crash dump, which is not read: take it again as ELF"
_PACKED = "is compressed: unpack it first"
_REFUSED = {
    b"KDUMP   ": _KDUMP, b"DISKDUMP": _KDUMP, b"makedumpfile\0": _KDUMP, b"\x1f\x8b": _PACKED, b"\xfd7zXZ\0": _PACKED,
    b"\x28\xb5\x2f\xfd": _PACKED, b"PK\x03\x04": "is a zip file: of a tables.npz `hvlab decode` reads the domains, others unpack first",
    b"QEVM": "is a saved state of QEMU, not a dump of memory: load it into a QEMU and give qemu:SOCKET, or use dump-guest-memory",
    b"PAGEDU64": _WINDOWS, b"PAGEDUMP": _WINDOWS,
    b"QFI\xfb": "is a disk image, not a dump of memory",
}
_LIME = struct.Struct("<4sIQQQ")
_LIME_MAGIC = b"EMiL"


def open_dump(path: Path | str, ram: Iterable[tuple[int, int]] = ()) -> FileMemory:
    """The memory in a file.  `ram` are the half-open ranges of a raw dump that are RAM; where none are given all of the file is.

    Raises BadSource: not a file, a format that is not read, headers that contradict each other.
    """
    path, ram = Path(path), tuple(ram)
    data = mapped(path)
    head = bytes(data[:16])
    for magic, why in _REFUSED.items():
        if head.startswith(magic):
            raise BadSource(f"{path} {why}")
    if ram and head.startswith((MAGIC, _LIME_MAGIC)):
        raise BadSource(f"{path} says itself where its memory lies: leave the ranges of RAM out")
    if head.startswith(MAGIC):
        return FileMemory(path, *elf_pieces(data, len(data), str(path)))
    if head.startswith(_LIME_MAGIC):
        return FileMemory(path, *_lime_pieces(data, len(data), str(path)))
    return _raw(path, len(data), ram)


def has_header(path: Path | str) -> bool:
    """Whether a file says by its first bytes that it is a dump of memory, be it one that is not read."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(16)
    except (OSError, ValueError):
        return False
    return head.startswith((MAGIC, _LIME_MAGIC, *(magic for magic, why in _REFUSED.items() if why == _KDUMP)))


def _raw(path: Path, size: int, ram: tuple[tuple[int, int], ...]) -> FileMemory:
    """A file whose offsets are physical addresses."""
    if size < PAGE:
        raise BadSource(f"{path} has {size} bytes, less than one page of memory")
    if size > ADDRESS_END:
        raise BadSource(f"{path} is larger than any physical memory")
    told = [f"{path} has no header: it is taken for memory from address 0 up."]
    if not ram:
        return FileMemory(path, [Piece(0, size, 0)], told)
    pieces = [Piece(start, min(end, size), start) for start, end in ram if start < size]
    beyond = sum(end - max(start, size) for start, end in ram if end > size)
    told += [f"{beyond:,} bytes of the RAM that was named lie beyond the end of {path}."] * bool(beyond)
    return FileMemory(path, pieces, told)


def _lime_pieces(data: Buffer, size: int, name: str) -> tuple[list[Piece], list[str]]:
    """LiME: before each range a header with its first and last address."""
    pieces, at, notes = list[Piece](), 0, list[str]()
    while at + _LIME.size <= size:
        magic, version, first, last, _ = _LIME.unpack_from(data, at)
        if magic != _LIME_MAGIC or version != 1 or not first <= last < ADDRESS_END:
            raise BadSource(f"{name}: there is no LiME header at offset {at:#x}: the dump is damaged")
        at += _LIME.size
        there = min(last + 1 - first, size - at)
        if missing := last + 1 - first - there:
            notes.append(f"{name} is cut short: {missing:,} bytes that its headers promise are not there.")
        pieces.append(Piece(first, first + there, at))
        at += last + 1 - first
    return pieces, notes
