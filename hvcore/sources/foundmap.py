"""The firmware's memory map as somebody left it in memory: hvlab's firmware, a PVH loader, or a Linux loader."""

import struct
from collections.abc import Iterator

from ..errors import BadTable, Unreadable
from ..machine.firmware import read_e820
from ..spec.acpi import Reader
from ..spec.e820 import ENTRY_SIZE, E820Entry, unpack
from ..spec.linuxboot import E820_ENTRIES, E820_MAX, E820_TABLE
from ..spec.paging import PAGE

__all__ = ["find_e820"]

_LOW = 1 << 20
_PVH_MAGIC, _PVH, _PVH_ENTRY = 0x336EC578, struct.Struct("<IIIIQQQQII"), struct.Struct("<QQII")
"""`hvm_start_info`, version 1, and the entries of its map (Xen's PVH boot protocol)."""
_HEADER, _BOOT_FLAG = 0x202, 0x1FE
"""Of a Linux zero page: `HdrS`, and 0xAA55 before it (the kernel's x86 boot protocol)."""
_MOST = 128


def find_e820(reader: Reader) -> tuple[tuple[E820Entry, ...], str] | None:
    """The map in the first MiB, and in a sentence where it was; None where none is left there.  It is what the guest was told at boot."""
    try:
        entries = read_e820(reader)
        if _plausible(entries):
            return entries, "The memory map is the one that hvlab's firmware left at 0xf0000."
    except (BadTable, Unreadable):
        pass
    low = _low_memory(reader)
    return next((found for look in (_pvh, _linux) for found in look(reader, low)), None)


def _low_memory(reader: Reader) -> bytes:
    """The first MiB, zeros where nothing is."""
    pages = []
    for at in range(0, _LOW, PAGE):
        try:
            pages.append(reader.read(at, PAGE))
        except Unreadable:
            pages.append(bytes(PAGE))
    return b"".join(pages)


def _places(data: bytes, what: bytes) -> Iterator[int]:
    at = data.find(what)
    while at >= 0:
        yield at
        at = data.find(what, at + 1)


def _pvh(reader: Reader, low: bytes) -> Iterator[tuple[tuple[E820Entry, ...], str]]:
    for at in _places(low, _PVH_MAGIC.to_bytes(4, "little")):
        if at % 4 or at + _PVH.size > len(low):
            continue
        _, version, *_, table, count, _ = _PVH.unpack_from(low, at)
        if version < 1 or not 0 < count <= _MOST:
            continue
        try:
            rows = _PVH_ENTRY.iter_unpack(reader.read(table, count * _PVH_ENTRY.size))
        except Unreadable:
            continue
        entries = tuple(E820Entry(start, start + size, kind) for start, size, kind, _ in rows)
        if _plausible(entries):
            yield entries, f"The memory map is the one that a PVH loader left at {table:#x}."


def _linux(_: Reader, low: bytes) -> Iterator[tuple[tuple[E820Entry, ...], str]]:
    for at in _places(low, b"HdrS"):
        page = at - _HEADER
        count = low[page + E820_ENTRIES] if page >= 0 else 0
        end = page + E820_TABLE + count * ENTRY_SIZE
        if page < 0 or page % 16 or low[page + _BOOT_FLAG:page + _BOOT_FLAG + 2] != b"\x55\xaa" or end > len(low):
            continue
        entries = unpack(low[page + E820_TABLE:end])
        if 0 < count <= E820_MAX and _plausible(entries):
            yield entries, f"The memory map is the one that a Linux loader left at {page + E820_TABLE:#x}."


def _plausible(entries: tuple[E820Entry, ...]) -> bool:
    """Whether this can be a machine's map: some usable memory, no empty entries, nothing beyond 52 bits."""
    return any(e.usable for e in entries) and all(e.start < e.end <= 1 << 52 and 0 < e.type < 0x1_0000_0000 for e in entries)
