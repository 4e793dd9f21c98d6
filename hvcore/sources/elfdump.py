"""ELF core dumps of a machine: `vmcore`, and QEMU's `dump-guest-memory`.  Their PT_LOAD headers say where in memory each part lies."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import BadSource
from .physical import ADDRESS_END, Buffer, Piece

__all__ = ["MAGIC", "elf_pieces"]

MAGIC = b"\x7fELF"
_CORE, _LOAD, _MANY = 4, 1, 0xFFFF
_MOST = 1 << 20
"""Program headers; a machine's memory has a few, and with its page tables some thousands."""
_MACHINES = {3: "i386", 62: "x86-64"}


@dataclass(frozen=True, slots=True)
class _Class:
    """Where things lie in one class of ELF file: file header, program header (with the order of its fields), section header 0."""

    head: struct.Struct
    program: struct.Struct
    order: tuple[str, ...]
    sections: int
    info: int


_CLASSES = {
    1: _Class(struct.Struct("<HHIIIIIHHHHHH"), struct.Struct("<8I"),
              ("type", "offset", "vaddr", "paddr", "filesz", "memsz", "flags", "align"), 32, 28),
    2: _Class(struct.Struct("<HHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ"),
              ("type", "flags", "offset", "vaddr", "paddr", "filesz", "memsz", "align"), 40, 44),
}


@dataclass(frozen=True, slots=True)
class _Load:
    """One PT_LOAD: where its bytes lie in the file and in physical memory, and how many of its `memsz` bytes are there."""

    offset: int
    paddr: int
    filesz: int
    memsz: int


def elf_pieces(data: Buffer, size: int, name: str) -> tuple[list[Piece], list[str]]:
    """The pieces of memory in an ELF core of `size` bytes, and in a sentence each what is missing.  Raises BadSource."""
    pieces, notes, nowhere, missing = list[Piece](), list[str](), 0, 0
    for load in _loads(data, size, name):
        if load.paddr + max(load.memsz, load.filesz) > ADDRESS_END:
            nowhere += 1
            continue
        there = min(load.filesz, max(size - load.offset, 0))
        missing += load.filesz - there
        pieces.append(Piece(load.paddr, load.paddr + there, load.offset))
    if nowhere:
        notes.append(f"{nowhere} segments of {name} have no physical address and are left out.")
    if missing:
        notes.append(f"{name} is cut short: {missing:,} bytes that its headers promise are not there.")
    if not any(p.start < p.end for p in pieces):
        raise BadSource(f"{name}: this ELF file holds no memory: dump it again, with physical addresses")
    return pieces, notes


def _loads(data: Buffer, size: int, name: str) -> Iterator[_Load]:
    kind, first, count = _header(data, size, name)
    for i in range(count):
        row = dict(zip(kind.order, kind.program.unpack_from(data, first + i * kind.program.size), strict=True))
        if row["type"] == _LOAD:
            yield _Load(row["offset"], row["paddr"], row["filesz"], row["memsz"])


def _header(data: Buffer, size: int, name: str) -> tuple[_Class, int, int]:
    """The file's class, where its program headers begin, how many there are.  Raises BadSource."""
    kind = _CLASSES.get(data[4] if size > 6 else 0)
    if kind is None or size < 16 + kind.head.size:
        raise BadSource(f"{name}: the ELF header is cut short or damaged: dump the memory again")
    if data[5] != 1:
        raise BadSource(f"{name}: this ELF file is big-endian, of no machine with VT-d")
    file_type, machine, _, _, first, sections, _, _, entry, count, _, _, _ = kind.head.unpack_from(data, 16)
    if file_type != _CORE:
        raise BadSource(f"{name}: this ELF file is no core dump (type {file_type}): give a vmcore, or what dump-guest-memory wrote")
    if machine not in _MACHINES:
        raise BadSource(f"{name}: this dump is of a machine of type {machine}, not of an x86")
    count = _many(data, size, kind, sections) if count == _MANY else count
    if entry != kind.program.size or not 0 < count <= _MOST or first + count * entry > size:
        raise BadSource(f"{name}: {count} program headers of {entry} bytes at {first:#x} do not lie in the file: it is damaged")
    return kind, first, count


def _many(data: Buffer, size: int, kind: _Class, sections: int) -> int:
    """The number of program headers where it has no room in the file header: section header 0 has it."""
    if not 0 < sections <= size - kind.sections - 24:
        return 0
    return int(struct.unpack_from("<I", data, sections + kind.info)[0])
