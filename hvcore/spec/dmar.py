"""The DMAR table: remapping units, reserved memory and which functions they concern (VT-d 4.1, section 8).

`build(parse(data))` gives every byte back: fields that the specification calls reserved are fields here, 0 by default.
All addresses are host-physical.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias, TypeVar

from ..errors import BadTable
from .acpi import HEADER_SIZE, Header, build_table, parse_header
from .bits import mask

__all__ = ["Andd", "Atsr", "Dmar", "DmarFlag", "Drhd", "Rhsa", "Rmrr", "Satc", "Scope", "ScopeType", "Sidp", "Structure", "Unknown",
           "build", "parse", "type_of"]

_FIXED = struct.Struct("<BB10s")
_STRUCTURES = HEADER_SIZE + _FIXED.size
_SCOPE = struct.Struct("<BBBBBB")
_S = TypeVar("_S")


class ScopeType(IntEnum):
    """What a device scope names (section 8.3.1)."""

    ENDPOINT = 1
    BRIDGE = 2
    IOAPIC = 3
    HPET = 4
    NAMESPACE = 5


_SCOPE_TYPES: dict[int, int] = {kind.value: kind for kind in ScopeType}
_SCOPE_NAMES = {1: "endpoint", 2: "bridge and all below", 3: "IOAPIC {}", 4: "HPET {}", 5: "namespace device {}"}


class DmarFlag(IntEnum):
    """Bits of the table's flags (section 8.1)."""

    INTR_REMAP = 1
    X2APIC_OPT_OUT = 2
    DMA_CTRL_PLATFORM_OPT_IN = 4


@dataclass(frozen=True, slots=True)
class Scope:
    """A function by its path: from `start_bus` by (device, function) pairs, each but the last a bridge (section 8.3.1).

    `type` is a `ScopeType` where it is a known one; `enumeration_id` is the IOAPIC id, HPET number or ANDD number; only SIDP uses `flags`.
    """

    type: int
    enumeration_id: int
    start_bus: int
    path: tuple[tuple[int, int], ...]
    flags: int = 0
    reserved: int = 0

    def __str__(self) -> str:
        what = _SCOPE_NAMES.get(self.type, f"scope of type {self.type:#x} id {{}}").format(self.enumeration_id)
        where = "/".join(f"{device:02x}.{function:x}" for device, function in self.path) or "no path"
        return f"{what} {self.start_bus:02x}:{where}" + (f" flags {self.flags:#x}" if self.flags else "")


def _listed(scopes: Iterable[Scope]) -> str:
    return "".join(f"\n    {scope}" for scope in scopes)


@dataclass(frozen=True, slots=True)
class Drhd:
    """A remapping unit (section 8.3): registers at `base`, `size` their extent (bits 3:0 n: 2^n pages), flags bit 0 INCLUDE_PCI_ALL."""

    flags: int
    size: int
    segment: int
    base: int
    scopes: tuple[Scope, ...] = ()

    @property
    def include_all(self) -> bool:
        """Whether it covers all functions of the segment that no other unit lists."""
        return bool(self.flags & 1)

    @property
    def register_bytes(self) -> int:
        """Bytes of its register space."""
        return 4096 << (self.size & mask(3))

    def __str__(self) -> str:
        kind = ", INCLUDE_PCI_ALL" if self.include_all else ""
        rest = f", flags {self.flags:#x}" if self.flags & ~1 else ""
        return f"DRHD {self.base:#x}, {self.register_bytes >> 10} KiB, segment {self.segment:04x}{kind}{rest}{_listed(self.scopes)}"


@dataclass(frozen=True, slots=True)
class Rmrr:
    """Memory that devices use behind the system's back (section 8.4): `base` to `limit`, both included."""

    segment: int
    base: int
    limit: int
    scopes: tuple[Scope, ...] = ()
    reserved: int = 0

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.limit + 1

    def __str__(self) -> str:
        size = self.end - self.base
        extent = "limit below base" if size <= 0 else f"{size} bytes" if size % 1024 else f"{size >> 10} KiB"
        return f"RMRR [{self.base:#x}, {self.end:#x}), {extent}, segment {self.segment:04x}{_listed(self.scopes)}"


@dataclass(frozen=True, slots=True)
class Atsr:
    """Root ports that pass address translation requests (section 8.5); flags bit 0 ALL_PORTS."""

    flags: int
    segment: int
    scopes: tuple[Scope, ...] = ()
    reserved: int = 0

    @property
    def all_ports(self) -> bool:
        """Whether every root port of the segment does."""
        return bool(self.flags & 1)

    def __str__(self) -> str:
        return f"ATSR segment {self.segment:04x}, flags {self.flags:#x}{', ALL_PORTS' if self.all_ports else ''}{_listed(self.scopes)}"


@dataclass(frozen=True, slots=True)
class Rhsa:
    """The proximity domain of the unit whose registers are at `base` (section 8.6).  `rest` is what follows, normally nothing."""

    base: int
    proximity_domain: int
    reserved: int = 0
    rest: bytes = b""

    def __str__(self) -> str:
        return f"RHSA {self.base:#x} in proximity domain {self.proximity_domain}"


@dataclass(frozen=True, slots=True)
class Andd:
    """An ACPI device that does DMA (section 8.7): its number, by which scopes name it, and its path in the namespace.

    `padding` is what follows the path: a NUL, and often more.
    """

    number: int
    path: str
    reserved: bytes = bytes(3)
    padding: bytes = b"\0"

    def __str__(self) -> str:
        return f"ANDD {self.number}: {self.path}"


@dataclass(frozen=True, slots=True)
class Satc:
    """Devices of the SoC with translation caches (section 8.8); flags bit 0 ATC_REQUIRED."""

    flags: int
    segment: int
    scopes: tuple[Scope, ...] = ()
    reserved: int = 0

    def __str__(self) -> str:
        return f"SATC segment {self.segment:04x}, flags {self.flags:#x}{', ATC_REQUIRED' if self.flags & 1 else ''}{_listed(self.scopes)}"


@dataclass(frozen=True, slots=True)
class Sidp:
    """Properties of devices of the SoC, in the flags of their scopes (section 8.9)."""

    segment: int
    scopes: tuple[Scope, ...] = ()
    reserved: int = 0

    def __str__(self) -> str:
        return f"SIDP segment {self.segment:04x}{_listed(self.scopes)}"


@dataclass(frozen=True, slots=True)
class Unknown:
    """A structure of another type; `body` is what follows its type and length."""

    type: int
    body: bytes

    def __str__(self) -> str:
        return f"structure of type {self.type:#x}: {self.body.hex(' ')}"


Structure: TypeAlias = Drhd | Rmrr | Atsr | Rhsa | Andd | Satc | Sidp | Unknown


@dataclass(frozen=True, slots=True)
class Dmar:
    """The whole table, in its order.  `host_address_width` in bits (the table holds one less); names are bytes as they lie there."""

    host_address_width: int
    flags: int
    structures: tuple[Structure, ...]
    revision: int = 1
    oem_id: bytes = b"HVLAB "
    oem_table_id: bytes = b"HVLAB   "
    oem_revision: int = 1
    creator_id: bytes = b"HVLB"
    creator_revision: int = 1
    reserved: bytes = bytes(10)

    def _of(self, kind: type[_S]) -> tuple[_S, ...]:
        return tuple(s for s in self.structures if isinstance(s, kind))

    @property
    def drhds(self) -> tuple[Drhd, ...]:
        """Its remapping units."""
        return self._of(Drhd)

    @property
    def rmrrs(self) -> tuple[Rmrr, ...]:
        """Its reserved memory regions."""
        return self._of(Rmrr)

    @property
    def atsrs(self) -> tuple[Atsr, ...]:
        """Its ATS root ports."""
        return self._of(Atsr)

    @property
    def rhsas(self) -> tuple[Rhsa, ...]:
        """Its units' proximity domains."""
        return self._of(Rhsa)

    @property
    def andds(self) -> tuple[Andd, ...]:
        """Its ACPI namespace devices."""
        return self._of(Andd)

    @property
    def satcs(self) -> tuple[Satc, ...]:
        """Its devices with translation caches."""
        return self._of(Satc)

    @property
    def sidps(self) -> tuple[Sidp, ...]:
        """Its devices with properties."""
        return self._of(Sidp)

    @property
    def header(self) -> Header:
        """What the table's header says."""
        return Header("DMAR", self.revision, self.oem_id, self.oem_table_id, self.oem_revision, self.creator_id, self.creator_revision)

    def __str__(self) -> str:
        names = ", ".join(f.name for f in DmarFlag if self.flags & f)
        head = f"{self.header}; host address width {self.host_address_width}, flags {self.flags:#x}{f' ({names})' if names else ''}"
        return "\n".join([head, *(f"  {s}" for s in self.structures)])


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a structure lies after its type and length: fixed fields by `format`, then scopes where `scopes` says so."""

    record: Callable[..., Structure]
    format: struct.Struct
    names: tuple[str, ...]
    scopes: bool = True


_KINDS = {
    0: _Kind(Drhd, struct.Struct("<BBHQ"), ("flags", "size", "segment", "base")),
    1: _Kind(Rmrr, struct.Struct("<HHQQ"), ("reserved", "segment", "base", "limit")),
    2: _Kind(Atsr, struct.Struct("<BBH"), ("flags", "reserved", "segment")),
    3: _Kind(Rhsa, struct.Struct("<IQI"), ("reserved", "base", "proximity_domain"), scopes=False),
    4: _Kind(Andd, struct.Struct("<3sB"), ("reserved", "number"), scopes=False),
    5: _Kind(Satc, struct.Struct("<BBH"), ("flags", "reserved", "segment")),
    6: _Kind(Sidp, struct.Struct("<HH"), ("reserved", "segment")),
}
_TYPES: dict[type, int] = {Drhd: 0, Rmrr: 1, Atsr: 2, Rhsa: 3, Andd: 4, Satc: 5, Sidp: 6}
_NAMES = {number: kind.__name__.upper() for kind, number in _TYPES.items()}


def type_of(structure: Structure) -> int:
    """The number of a structure's type (section 8.2)."""
    return structure.type if isinstance(structure, Unknown) else _TYPES[type(structure)]


def parse(data: bytes) -> Dmar:
    """The record of a DMAR table; bytes after the length it states are not looked at.

    Raises `BadTable`, in one sentence: truncated, another signature, wrong checksum, a structure or scope whose length cannot be.
    """
    header, data = parse_header(data, "DMAR")
    if len(data) < _STRUCTURES:
        raise BadTable(f"DMAR: {len(data)} bytes, at least {_STRUCTURES} are needed before the first structure")
    width, flags, reserved = _FIXED.unpack_from(data, HEADER_SIZE)
    return Dmar(width + 1, flags, tuple(_structures(data)), header.revision, header.oem_id, header.oem_table_id, header.oem_revision,
                header.creator_id, header.creator_revision, reserved)


def _structures(data: bytes) -> Iterator[Structure]:
    at = _STRUCTURES
    while at < len(data):
        if at + 4 > len(data):
            raise BadTable(f"DMAR: {len(data) - at} bytes at offset {at:#x} are too few for a structure, which has at least 4")
        number, length = struct.unpack_from("<HH", data, at)
        name = _NAMES.get(number, f"structure of type {number:#x}")
        if length < 4:
            raise BadTable(f"DMAR: the {name} at offset {at:#x} has length {length}, at least 4 are needed: nothing after it can be read")
        if at + length > len(data):
            raise BadTable(f"DMAR: the {name} at offset {at:#x} with {length} bytes runs past the table's end at {len(data):#x}")
        yield _structure(number, data[at + 4:at + length], at)
        at += length


def _structure(number: int, body: bytes, at: int) -> Structure:
    kind = _KINDS.get(number)
    if kind is None:
        return Unknown(number, body)
    if len(body) < kind.format.size:
        least = kind.format.size + 4
        raise BadTable(f"DMAR: the {_NAMES[number]} at offset {at:#x} has length {len(body) + 4}, at least {least} are needed")
    values = dict(zip(kind.names, kind.format.unpack_from(body), strict=True))
    rest = body[kind.format.size:]
    if kind.scopes:
        return kind.record(**values, scopes=tuple(_scopes(rest, at + 4 + kind.format.size)))
    if kind.record is Rhsa:
        return kind.record(**values, rest=rest)
    path = rest.split(b"\0", 1)[0]
    return kind.record(**values, path=path.decode("latin-1"), padding=rest[len(path):])


def _scopes(data: bytes, base: int) -> Iterator[Scope]:
    at = 0
    while at < len(data):
        if at + _SCOPE.size > len(data):
            raise BadTable(f"DMAR: {len(data) - at} bytes at offset {base + at:#x} are too few for a device scope ({_SCOPE.size})")
        length = data[at + 1]
        which = f"the device scope at offset {base + at:#x} has length {length}"
        if length < _SCOPE.size or length % 2:
            raise BadTable(f"DMAR: {which}: it must be {_SCOPE.size} and 2 more for each step of its path")
        if at + length > len(data):
            raise BadTable(f"DMAR: {which} and runs past its structure's end at {base + len(data):#x}")
        number, _, flags, reserved, enumeration_id, bus = _SCOPE.unpack_from(data, at)
        steps = data[at + _SCOPE.size:at + length]
        yield Scope(_scope_type(number), enumeration_id, bus, tuple(zip(steps[::2], steps[1::2], strict=True)), flags, reserved)
        at += length


def _scope_type(number: int) -> int:
    return _SCOPE_TYPES.get(number, number)


def build(dmar: Dmar) -> bytes:
    """The table's bytes, length and checksum right.

    Raises `BadTable` where a value does not fit its field.
    """
    try:
        fixed = _FIXED.pack(dmar.host_address_width - 1, dmar.flags, dmar.reserved)
        body = fixed + b"".join(_build_structure(s) for s in dmar.structures)
    except (struct.error, ValueError) as e:
        raise BadTable(f"DMAR: a value does not fit its field ({e}): look at the record it was built from") from e
    return build_table(dmar.header, body)


def _build_structure(structure: Structure) -> bytes:
    if isinstance(structure, Unknown):
        number, body = structure.type, structure.body
    else:
        number = _TYPES[type(structure)]
        kind = _KINDS[number]
        body = kind.format.pack(*(getattr(structure, name) for name in kind.names)) + _tail(structure)
    return struct.pack("<HH", number, 4 + len(body)) + body


def _tail(structure: Structure) -> bytes:
    match structure:
        case Rhsa(rest=rest):
            return rest
        case Andd(path=path, padding=padding):
            return path.encode("latin-1") + padding
        case Unknown(body=body):
            return body
    return b"".join(_build_scope(s) for s in structure.scopes)


def _build_scope(scope: Scope) -> bytes:
    steps = bytes(n for step in scope.path for n in step)
    return _SCOPE.pack(scope.type, _SCOPE.size + len(steps), scope.flags, scope.reserved, scope.enumeration_id, scope.start_bus) + steps
