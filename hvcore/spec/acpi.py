"""ACPI tables: the header they share, RSDP, XSDT, MADT, MCFG, and how software finds them in memory (ACPI 6.5, section 5.2).

All addresses are host-physical.  Records are what the bytes say; `build_*` gives bytes with the right length and checksum, `parse_*` raises
`BadTable` with one sentence where bytes do not fit.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, TypeAlias

from ..errors import BadTable, Unreadable

__all__ = ["EBDA_POINTER", "HEADER_SIZE", "HIGH_BIOS", "Header", "InterruptOverride", "IoApic", "LocalApic", "LocalApicNmi", "Madt",
           "MadtEntry", "Mcfg", "McfgWindow", "Polarity", "Reader", "Rsdp", "TableRef", "Trigger", "UnknownEntry", "build_madt",
           "build_mcfg", "build_rsdp", "build_table", "build_xsdt", "checksum", "find_rsdp", "parse_header", "parse_madt", "parse_mcfg",
           "parse_rsdp", "parse_xsdt", "table", "tables"]

HIGH_BIOS = range(0xE0000, 0x100000, 16)
"""Where a PC's firmware leaves the RSDP, at a multiple of 16 (section 5.2.5.1)."""
EBDA_POINTER = 0x40E
"""Holds the real-mode segment of the extended BIOS data area, whose first KiB may hold the RSDP instead."""
LONGEST = 16 << 20
"""Bytes; a table that says it is longer is noise."""

_HEADER = struct.Struct("<4sIBB6s8sI4sI")
HEADER_SIZE = _HEADER.size


class Reader(Protocol):
    """Physical memory to be read; `read` raises `Unreadable` where there is none."""

    def read(self, address: int, length: int) -> bytes:
        """The bytes at a host-physical address."""
        ...


def checksum(data: bytes) -> int:
    """The byte that, added to `data`, makes all bytes sum to 0 modulo 256."""
    return -sum(data) & 0xFF


@dataclass(frozen=True, slots=True)
class Header:
    """What the first 36 bytes of a table say besides length and checksum (section 5.2.6).  Names are bytes, padding included."""

    signature: str
    revision: int = 1
    oem_id: bytes = b"HVLAB "
    oem_table_id: bytes = b"HVLAB   "
    oem_revision: int = 1
    creator_id: bytes = b"HVLB"
    creator_revision: int = 1

    def __str__(self) -> str:
        oem, model, creator = (b.rstrip(b" \0").decode("latin-1") for b in (self.oem_id, self.oem_table_id, self.creator_id))
        return f"{self.signature} revision {self.revision}, {oem} {model} {self.oem_revision:#x}, by {creator} {self.creator_revision:#x}"


def build_table(header: Header, body: bytes) -> bytes:
    """Header and body as one table.

    Raises `BadTable` where a name or number does not fit its field.
    """
    names = ((header.signature.encode("latin-1"), 4), (header.oem_id, 6), (header.oem_table_id, 8), (header.creator_id, 4))
    for name, size in names:
        if len(name) != size:
            raise BadTable(f"{header.signature}: {name!r} has {len(name)} bytes where the header has room for {size}: pad it with spaces")
    try:
        head = _HEADER.pack(names[0][0], HEADER_SIZE + len(body), header.revision, 0, header.oem_id, header.oem_table_id,
                            header.oem_revision, header.creator_id, header.creator_revision)
    except struct.error as e:
        raise BadTable(f"{header.signature}: a number of the header does not fit ({e})") from e
    return head[:9] + bytes([checksum(head + body)]) + head[10:] + body


def parse_header(data: bytes, signature: str) -> tuple[Header, bytes]:
    """The header of a table and the table whole, cut to the length it states (bytes beyond are not its own).

    Raises `BadTable`: truncated, another signature, wrong checksum.
    """
    if len(data) < HEADER_SIZE:
        raise BadTable(f"{signature}: only {len(data)} bytes, a table has at least {HEADER_SIZE}: the dump is cut short")
    found, length, revision, _, oem_id, oem_table_id, oem_revision, creator_id, creator_revision = _HEADER.unpack_from(data)
    if found != signature.encode("latin-1"):
        raise BadTable(f"{signature}: the bytes begin with {found!r}: this is another table")
    if length < HEADER_SIZE:
        raise BadTable(f"{signature}: the header says {length} bytes, less than the header's own {HEADER_SIZE}")
    if length > len(data):
        raise BadTable(f"{signature}: the header says {length} bytes but only {len(data)} are there: the dump is cut short")
    if rest := checksum(data[:length]):
        want = data[9] + rest & 0xFF
        raise BadTable(f"{signature}: the checksum at offset 9 is {data[9]:#04x}, the bytes want {want:#04x}: the dump is damaged")
    return Header(signature, revision, oem_id, oem_table_id, oem_revision, creator_id, creator_revision), data[:length]


# RSDP and XSDT

_RSDP = struct.Struct("<8sB6sBIIQB3s")
_RSDP_REVISION_0 = 20


@dataclass(frozen=True, slots=True)
class Rsdp:
    """The root pointer (section 5.2.5.3).  A revision below 2 has no XSDT: `xsdt` is None."""

    xsdt: int | None
    rsdt: int = 0
    revision: int = 2
    oem_id: bytes = b"HVLAB "

    def __str__(self) -> str:
        return f"RSDP revision {self.revision}: " + (f"XSDT at {self.xsdt:#x}" if self.xsdt is not None else f"RSDT at {self.rsdt:#x}")


def build_rsdp(rsdp: Rsdp) -> bytes:
    """36 bytes of a revision 2 RSDP, both checksums right."""
    raw = _RSDP.pack(b"RSD PTR ", 0, rsdp.oem_id, rsdp.revision, rsdp.rsdt, _RSDP.size, rsdp.xsdt or 0, 0, bytes(3))
    raw = raw[:8] + bytes([checksum(raw[:_RSDP_REVISION_0])]) + raw[9:]
    return raw[:32] + bytes([checksum(raw)]) + raw[33:]


def parse_rsdp(data: bytes) -> Rsdp:
    """The RSDP at the start of `data`, 36 bytes or the 20 of revision 0.

    Raises `BadTable`: truncated, no `RSD PTR `, wrong checksum.
    """
    if data[:8] != b"RSD PTR " or len(data) < _RSDP_REVISION_0:
        raise BadTable(f"RSDP: the bytes begin with {data[:8]!r} and are {len(data)}, not 'RSD PTR ' and at least {_RSDP_REVISION_0}")
    if checksum(data[:_RSDP_REVISION_0]):
        raise BadTable(f"RSDP: the first {_RSDP_REVISION_0} bytes have a wrong checksum")
    if data[15] < 2:
        return Rsdp(None, int.from_bytes(data[16:20], "little"), data[15], data[9:15])
    if len(data) < _RSDP.size or checksum(data[:_RSDP.size]):
        raise BadTable(f"RSDP: revision {data[15]}, but its {_RSDP.size} bytes are cut short or have a wrong extended checksum")
    _, _, oem_id, revision, rsdt, _, xsdt, _, _ = _RSDP.unpack_from(data)
    return Rsdp(xsdt, rsdt, revision, oem_id)


def build_xsdt(addresses: Iterable[int]) -> bytes:
    """The table of tables: their addresses, 8 bytes each (section 5.2.8)."""
    return build_table(Header("XSDT"), b"".join(a.to_bytes(8, "little") for a in addresses))


def parse_xsdt(data: bytes) -> tuple[int, ...]:
    """Addresses of an XSDT (8 bytes each) or of its predecessor RSDT (4 bytes each).

    Raises `BadTable` as `parse_header`.
    """
    signature, width = ("RSDT", 4) if data[:4] == b"RSDT" else ("XSDT", 8)
    body = parse_header(data, signature)[1][HEADER_SIZE:]
    return tuple(int.from_bytes(body[at:at + width], "little") for at in range(0, len(body) - width + 1, width))


# MADT (signature APIC)


@dataclass(frozen=True, slots=True)
class LocalApic:
    """One processor (section 5.2.12.2); `flags` bit 0: enabled."""

    processor: int
    apic_id: int
    flags: int = 1

    def __str__(self) -> str:
        return f"processor {self.processor}: local APIC {self.apic_id}, {'enabled' if self.flags & 1 else 'not enabled'}"


@dataclass(frozen=True, slots=True)
class IoApic:
    """One IOAPIC: register base and its first global interrupt (section 5.2.12.3)."""

    id: int
    address: int
    first_gsi: int = 0
    reserved: int = 0

    def __str__(self) -> str:
        return f"IOAPIC {self.id} at {self.address:#x}, interrupts from {self.first_gsi}"


class Polarity(IntEnum):
    """Bits 1:0 of an interrupt's flags."""

    BUS = 0
    HIGH = 1
    LOW = 3


class Trigger(IntEnum):
    """Bits 3:2 of an interrupt's flags."""

    BUS = 0
    EDGE = 1
    LEVEL = 3


@dataclass(frozen=True, slots=True)
class InterruptOverride:
    """ISA interrupt `source` that arrives at another global interrupt or in another shape (section 5.2.12.5)."""

    source: int
    gsi: int
    flags: int = 0
    bus: int = 0

    def __str__(self) -> str:
        return f"IRQ {self.source} arrives as interrupt {self.gsi}, flags {self.flags:#x}"


@dataclass(frozen=True, slots=True)
class LocalApicNmi:
    """The local APIC input `lint` to which NMI is wired (section 5.2.12.7); processor 0xff: all."""

    processor: int
    flags: int
    lint: int

    def __str__(self) -> str:
        return f"NMI at LINT{self.lint} of processor {self.processor:#x}, flags {self.flags:#x}"


@dataclass(frozen=True, slots=True)
class UnknownEntry:
    """A structure of another type; `body` is what follows its type and length."""

    type: int
    body: bytes

    def __str__(self) -> str:
        return f"structure of type {self.type}: {self.body.hex(' ')}"


MadtEntry: TypeAlias = LocalApic | IoApic | InterruptOverride | LocalApicNmi | UnknownEntry


@dataclass(frozen=True, slots=True)
class Madt:
    """Interrupt controllers; `flags` bit 0: a pair of 8259 is there too."""

    entries: tuple[MadtEntry, ...]
    local_apic: int = 0xFEE00000
    flags: int = 1
    header: Header = field(default_factory=lambda: Header("APIC", 4))

    def __str__(self) -> str:
        return "\n".join([f"{self.header}; local APICs at {self.local_apic:#x}, flags {self.flags:#x}", *(f"  {e}" for e in self.entries)])


@dataclass(frozen=True, slots=True)
class _MadtKind:
    record: Callable[..., MadtEntry]
    format: struct.Struct
    names: tuple[str, ...]


_MADT_KINDS = {
    0: _MadtKind(LocalApic, struct.Struct("<BBI"), ("processor", "apic_id", "flags")),
    1: _MadtKind(IoApic, struct.Struct("<BBII"), ("id", "reserved", "address", "first_gsi")),
    2: _MadtKind(InterruptOverride, struct.Struct("<BBIH"), ("bus", "source", "gsi", "flags")),
    4: _MadtKind(LocalApicNmi, struct.Struct("<BHB"), ("processor", "flags", "lint")),
}
_MADT_TYPES = {LocalApic: 0, IoApic: 1, InterruptOverride: 2, LocalApicNmi: 4}


def build_madt(madt: Madt) -> bytes:
    """The table's bytes."""
    body = struct.pack("<II", madt.local_apic, madt.flags)
    return build_table(madt.header, body + b"".join(_build_madt_entry(e) for e in madt.entries))


def _build_madt_entry(entry: MadtEntry) -> bytes:
    if isinstance(entry, UnknownEntry):
        number, body = entry.type, entry.body
    else:
        number = _MADT_TYPES[type(entry)]
        kind = _MADT_KINDS[number]
        body = kind.format.pack(*(getattr(entry, name) for name in kind.names))
    return bytes([number, 2 + len(body)]) + body


def parse_madt(data: bytes) -> Madt:
    """The record of a MADT; structures of a known type but another length come as unknown.

    Raises `BadTable`: as `parse_header`, or a structure shorter than 2 bytes or running past the end.
    """
    header, data = parse_header(data, "APIC")
    if len(data) < HEADER_SIZE + 8:
        raise BadTable(f"APIC: {len(data)} bytes, at least {HEADER_SIZE + 8} are needed")
    local_apic, flags = struct.unpack_from("<II", data, HEADER_SIZE)
    return Madt(tuple(_madt_entries(data)), local_apic, flags, header)


def _madt_entries(data: bytes) -> Iterator[MadtEntry]:
    at = HEADER_SIZE + 8
    while at < len(data):
        length = data[at + 1] if at + 1 < len(data) else 0
        if length < 2 or at + length > len(data):
            raise BadTable(f"APIC: the structure at offset {at:#x} has length {length}, which cannot be: the table ends at {len(data):#x}")
        body = data[at + 2:at + length]
        kind = _MADT_KINDS.get(data[at])
        if kind and len(body) == kind.format.size:
            yield kind.record(**dict(zip(kind.names, kind.format.unpack(body), strict=True)))
        else:
            yield UnknownEntry(data[at], body)
        at += length


# MCFG


@dataclass(frozen=True, slots=True)
class McfgWindow:
    """A PCI Express configuration window (PCI Firmware 3.3, section 4.1.2): `base` is bus 0's place, `first`..`last` its buses."""

    base: int
    first: int = 0
    last: int = 255
    segment: int = 0
    reserved: int = 0

    def __str__(self) -> str:
        start, end = self.base + (self.first << 20), self.base + (self.last + 1 << 20)
        return f"segment {self.segment:04x}, buses {self.first:02x}-{self.last:02x}: [{start:#x}, {end:#x})"


@dataclass(frozen=True, slots=True)
class Mcfg:
    """PCI Express configuration windows."""

    windows: tuple[McfgWindow, ...]
    header: Header = field(default_factory=lambda: Header("MCFG"))
    reserved: int = 0

    def __str__(self) -> str:
        return "\n".join([str(self.header), *(f"  {w}" for w in self.windows)])


_MCFG_WINDOW = struct.Struct("<QHBBI")


def build_mcfg(mcfg: Mcfg) -> bytes:
    """The table's bytes."""
    windows = b"".join(_MCFG_WINDOW.pack(w.base, w.segment, w.first, w.last, w.reserved) for w in mcfg.windows)
    return build_table(mcfg.header, mcfg.reserved.to_bytes(8, "little") + windows)


def parse_mcfg(data: bytes) -> Mcfg:
    """The record of an MCFG.

    Raises `BadTable`: as `parse_header`, or no whole number of windows.
    """
    header, data = parse_header(data, "MCFG")
    body = data[HEADER_SIZE + 8:]
    if len(data) < HEADER_SIZE + 8 or len(body) % _MCFG_WINDOW.size:
        raise BadTable(f"MCFG: {len(data)} bytes are no whole number of {_MCFG_WINDOW.size}-byte windows after offset {HEADER_SIZE + 8:#x}")
    windows = tuple(McfgWindow(base, first, last, segment, reserved)
                    for base, segment, first, last, reserved in _MCFG_WINDOW.iter_unpack(body))
    return Mcfg(windows, header, int.from_bytes(data[HEADER_SIZE:HEADER_SIZE + 8], "little"))


# Finding tables in memory


@dataclass(frozen=True, slots=True)
class TableRef:
    """Where a table lies.  `signature` and `length` (bytes) are None where its header cannot be read."""

    signature: str | None
    address: int
    length: int | None

    def __str__(self) -> str:
        if self.length is None:
            return f"unreadable table at {self.address:#x}"
        return f"{self.signature} {self.address:#018x} {self.length:06X}"


def find_rsdp(reader: Reader) -> int | None:
    """The address of the RSDP, searched as section 5.2.5.1 says; None where there is none with a right checksum."""
    for at in _rsdp_places(reader):
        head = _read(reader, at, _RSDP_REVISION_0)
        if head and head[:8] == b"RSD PTR " and _rsdp_at(reader, at):
            return at
    return None


def _rsdp_places(reader: Reader) -> Iterator[int]:
    pointer = _read(reader, EBDA_POINTER, 2)
    ebda = int.from_bytes(pointer, "little") << 4 if pointer else 0
    if 0x80000 <= ebda < 0xA0000:
        yield from range(ebda, ebda + 1024, 16)
    yield from HIGH_BIOS


def _rsdp_at(reader: Reader, at: int) -> Rsdp | None:
    data = _read(reader, at, _RSDP.size) or _read(reader, at, _RSDP_REVISION_0)
    try:
        return parse_rsdp(data) if data else None
    except BadTable:
        return None


def _read(reader: Reader, address: int, length: int) -> bytes | None:
    try:
        return reader.read(address, length)
    except Unreadable:
        return None


def tables(reader: Reader) -> list[TableRef]:
    """The XSDT (RSDT on old firmware) and the tables it names, in its order; empty where there is no RSDP.

    Raises `BadTable` where the XSDT itself cannot be used.
    """
    at = find_rsdp(reader)
    rsdp = _rsdp_at(reader, at) if at is not None else None
    if rsdp is None:
        return []
    root = _reference(reader, rsdp.rsdt if rsdp.xsdt is None else rsdp.xsdt)
    if root.length is None:
        raise BadTable(f"XSDT: the RSDP at {at:#x} names {root.address:#x}, where there is no table")
    return [root, *(_reference(reader, address) for address in parse_xsdt(reader.read(root.address, root.length)))]


def _reference(reader: Reader, address: int) -> TableRef:
    head = _read(reader, address, 8)
    length = int.from_bytes(head[4:], "little") if head else 0
    if head is None or not HEADER_SIZE <= length <= LONGEST or _read(reader, address, length) is None:
        return TableRef(None, address, None)
    return TableRef(head[:4].decode("latin-1"), address, length)


def table(reader: Reader, signature: str) -> bytes | None:
    """The bytes of the first table with this signature, as they lie in memory; None where there is none."""
    for ref in tables(reader):
        if ref.signature == signature and ref.length is not None:
            return reader.read(ref.address, ref.length)
    return None
