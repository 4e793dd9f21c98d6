"""ACPI tables as people send them: raw bytes, and the hex text of `acpidump`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from ..errors import BadMachine, BadTable
from ..machine.description import EcamDescription
from ..spec.acpi import parse_header, parse_mcfg

__all__ = ["SIGNATURES", "Tables", "ecams_of", "is_dump", "is_table", "parse_acpidump", "read_tables"]

SIGNATURES = ("DMAR", "IVRS", "MCFG", "APIC")
"""The tables that say something of a machine here."""
_RAW = ("", ".dat", ".aml", ".bin")
_LARGEST = 1 << 20
"""Bytes; the largest ACPI tables of real machines have some 400 KiB."""
_REACH = 1 << 40
"""Where the CPU's physical addresses end: no configuration window is beyond."""
_HEAD = re.compile(r"^\s*([A-Z][A-Z0-9]{3})(?: #?\d+)? @ 0x([0-9A-Fa-f]{1,16})\s*$")
_LINE = re.compile(r"^\s*([0-9A-Fa-f]{4,8}):((?: [0-9A-Fa-f]{2}){1,16})(?:\s|$)")


@dataclass(slots=True)
class Tables:
    """The tables by their signatures, the file that each is from, and where those lay that a dump has an address for."""

    data: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)


def is_table(name: str) -> bool:
    """Whether a file's name is one of a raw table that is read: `DMAR.dat`, `dmar.aml`, `DMAR`."""
    path = PurePath(name)
    return path.suffix.lower() in _RAW and path.stem.upper() in SIGNATURES


def is_dump(name: str) -> bool:
    """Whether a file's name is one of a text of `acpidump`, or of the hex of one table."""
    return name.lower().startswith("acpidump") or is_hex(name)


def is_hex(name: str) -> bool:
    """Whether a file's name is one of a table's bytes as hex text, without the line that names it: `dmar.hex`."""
    path = PurePath(name)
    return path.suffix.lower() == ".hex" and path.stem.upper() in SIGNATURES


def read_tables(files: Mapping[str, bytes]) -> Tables:
    """The tables among files.  A raw one comes before a dump's.  Raises `BadMachine` for one that is not what its header says."""
    found = Tables()
    for name in sorted(files, key=lambda n: (is_dump(n), is_hex(n), n)):
        if is_table(name):
            _take(found, PurePath(name).stem.upper(), name, files[name])
        elif is_dump(name):
            text = files[name].decode("utf-8", "replace")
            named = PurePath(name).stem.upper() if is_hex(name) else None
            for signature, address, data in parse_acpidump(text, name, named):
                _take(found, signature, name, data, address)
    return found


def _take(found: Tables, signature: str, name: str, data: bytes, address: int | None = None) -> None:
    if signature in found.data:
        return
    if len(data) > _LARGEST:
        raise BadMachine(f"{name}: {len(data) >> 10} KiB are too many for an ACPI table")
    try:
        parse_header(data, signature)
    except BadTable as e:
        raise BadMachine(f"{name}: {e}") from e
    found.data[signature], found.files[signature] = data, name
    if address is not None:
        found.addresses[signature] = address


def parse_acpidump(text: str, name: str = "acpidump", headless: str | None = None) -> list[tuple[str, int | None, bytes]]:
    """The tables of a text of `acpidump` that are read here: signature, address (host-physical), bytes.

    `headless` is the table that lines before any head belong to, None: they are passed over.  Raises `BadMachine` where lines are missing
    inside a table.
    """
    found: list[tuple[str, int | None, bytearray]] = [(headless, None, bytearray())] if headless else []
    for number, line in enumerate(text.splitlines(), 1):
        if head := _HEAD.match(line):
            found.append((head[1], int(head[2], 16), bytearray()))
        elif found and found[-1][0] in SIGNATURES and (m := _LINE.match(line)):
            signature, _, data = found[-1]
            if int(m[1], 16) != len(data):
                raise BadMachine(f"{name}: line {number}: {signature} goes on at offset {int(m[1], 16):#x}, not at {len(data):#x}: "
                                 "lines are missing or doubled, dump it again")
            data += bytes.fromhex(m[2])
    return [(signature, address, bytes(data)) for signature, address, data in found if signature in SIGNATURES and data]


def ecams_of(tables: Tables) -> tuple[EcamDescription, ...]:
    """The configuration windows of the MCFG table, where there is one, those only that can be."""
    if "MCFG" not in tables.data:
        return ()
    try:
        windows = parse_mcfg(tables.data["MCFG"]).windows
    except BadTable as e:
        raise BadMachine(f"{tables.files['MCFG']}: {e}") from e
    return tuple(EcamDescription(w.base + (w.first << 20), w.first, w.last, w.segment) for w in windows
                 if 0 < w.base < _REACH and w.first <= w.last and w.base % (1 << 20) == 0)
