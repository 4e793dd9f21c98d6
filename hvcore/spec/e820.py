"""The firmware's memory map: entries, their types and their byte layout (ACPI 6.5, section 15, INT 15h E820h)."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["ENTRY_SIZE", "E820Entry", "E820Type", "pack", "type_name", "unpack"]

_ENTRY = struct.Struct("<QQI")
ENTRY_SIZE = _ENTRY.size
"""Bytes of one entry: base u64, length u64, type u32."""


class E820Type(IntEnum):
    """Address range types; any other number is to be treated as reserved."""

    USABLE = 1
    RESERVED = 2
    ACPI_DATA = 3
    ACPI_NVS = 4
    UNUSABLE = 5
    PERSISTENT = 7
    PERSISTENT_LEGACY = 12
    RUNTIME_CODE = 20


_NAMES = {1: "usable", 2: "reserved", 3: "ACPI data", 4: "ACPI NVS", 5: "unusable", 7: "persistent (type 7)", 12: "persistent (type 12)"}


def type_name(number: int) -> str:
    """A type in the words of a Linux kernel log: `usable`, `reserved`, `type 20`."""
    return _NAMES.get(number, f"type {number}")


@dataclass(frozen=True, slots=True, order=True)
class E820Entry:
    """The half-open host-physical range [start, end) and its type number."""

    start: int
    end: int
    type: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def usable(self) -> bool:
        """Whether an operating system may use it as RAM."""
        return self.type == E820Type.USABLE

    def __str__(self) -> str:
        return f"[mem {self.start:#018x}-{self.end - 1:#018x}] {type_name(self.type)}"


def pack(entries: Iterable[E820Entry]) -> bytes:
    """Entries as INT 15h E820h returns them, 20 bytes each."""
    return b"".join(_ENTRY.pack(e.start, e.size, e.type) for e in entries)


def unpack(data: bytes) -> tuple[E820Entry, ...]:
    """Entries of 20 bytes each, in the order they lie."""
    return tuple(E820Entry(base, base + length, kind) for base, length, kind in _ENTRY.iter_unpack(data))
