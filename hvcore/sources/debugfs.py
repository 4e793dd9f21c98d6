"""What Linux tells of its remapping units under /sys/kernel/debug/iommu/intel: `dmar_translation_struct` and `iommu_regset`.

The tables come in one of three forms, by the kernel: a block for each bus (up to 5.2), a line for each context entry, and such lines with a
PASID and its entry behind (from 5.3).  The registers are one line each.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadSource
from ..spec.pci import bdf
from .files import read_bytes

__all__ = ["LoggedContext", "LoggedRegisters", "LoggedTables", "parse_regset", "parse_tables", "read_text"]

_LARGEST = 64 << 20
_UNIT = re.compile(r"^IOMMU (\S+): Root Table Address:\s*(?:0x)?([0-9a-f]{1,16})\s*$")
_OFF = re.compile(r"^DMA Remapping is not enabled on (\S+)\s*$")
_WORD = r"0x([0-9a-f]{16})"
_LINE = re.compile(rf"^([0-9a-f]{{2}}):([0-9a-f]{{2}})\.([0-7])\s+{_WORD}:{_WORD}\s+{_WORD}:{_WORD}"
                   rf"(?:\s+(-?\d{{1,8}})\s+{_WORD}:{_WORD}:{_WORD})?\s*$")
_OLD_BUS = re.compile(r"^ Bus: (\d{1,3}) H: ([0-9a-f]{1,16}) L: ([0-9a-f]{1,16})\s*$")
_OLD_LINE = re.compile(r"^\s+\d{1,3}\s+([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])\s+([0-9a-f]{1,16})\s+([0-9a-f]{1,16})\s*$")
_HEADINGS = ("B.D.F", "Root Table Entries:", " Context Table Entries for Bus:", "  Entry\tB:D.F")
_BASE = re.compile(r"^IOMMU: (\S+) Register Base Address: (?:0x)?([0-9a-f]{1,16})\s*$")
_REGISTER = re.compile(r"^([A-Z][A-Z0-9_a-z]*)\s+0x([0-9a-f]{1,4})\s+0x([0-9a-f]{1,16})\s*$")
_NARROW = frozenset({"VER", "GCMD", "GSTS", "FSTS", "FECTL", "FEDATA", "FEADDR", "FEUADDR", "PMEN", "PLMBASE", "PLMLIMIT", "ICS", "PRS",
                     "PECTL", "PEDATA", "PEADDR", "PEUADDR"})
"""The registers of 32 bits; Linux prints every one with 64, and some kernels with what lies behind it."""


@dataclass(frozen=True, slots=True)
class LoggedContext:
    """One context entry as Linux printed it: requester id, root entry and context entry, each as (low, high).

    `pasid` is None in legacy mode, where there is none.
    """

    source: int
    root_entry: tuple[int, int]
    entry: tuple[int, int]
    pasid: int | None = None


@dataclass(frozen=True, slots=True)
class LoggedTables:
    """The tables of one unit: its name in Linux, root table (host-physical; None: it does not translate), and the context entries."""

    name: str
    root: int | None
    contexts: tuple[LoggedContext, ...] = ()

    @property
    def scalable(self) -> bool:
        """Whether the unit is in scalable mode, in which the context entries name PASID directories."""
        return any(c.pasid is not None for c in self.contexts)


@dataclass(frozen=True, slots=True)
class LoggedRegisters:
    """The registers of one unit: its name in Linux, register base (host-physical), and (offset, bytes, value) of each."""

    name: str
    base: int
    values: tuple[tuple[int, int, int], ...]


def read_text(path: Path | str) -> str:
    """A saved file of debugfs.  Raises BadSource, or BadMachine for what is no file."""
    try:
        return read_bytes(Path(path), _LARGEST, "a text of debugfs").decode("ascii")
    except UnicodeDecodeError:
        raise BadSource(f"{path} is no text of Linux's debugfs: give a copy of dmar_translation_struct or iommu_regset") from None


def parse_tables(text: str, name: str = "the text") -> tuple[LoggedTables, ...]:
    """The units in `dmar_translation_struct`.  Raises BadSource with the line that is not of it."""
    heads: list[tuple[str, int | None, list[LoggedContext]]] = []
    bus = 0, (0, 0)
    for number, line in _lines(text):
        if m := _UNIT.match(line):
            heads.append((m[1], int(m[2], 16), []))
        elif m := _OFF.match(line):
            heads.append((m[1], None, []))
        elif heads and (m := _OLD_BUS.match(line)):
            bus = int(m[1]), (int(m[3], 16), int(m[2], 16))
        elif heads and (found_entry := _entry(line, bus[1])):
            heads[-1][2].append(found_entry)
        elif line.strip() and not line.startswith(_HEADINGS):
            raise BadSource(f"{name}, line {number}: {line[:60]!r} is nothing that dmar_translation_struct has: copy the file anew")
    if not heads:
        raise BadSource(f"{name} names no remapping unit: copy /sys/kernel/debug/iommu/intel/dmar_translation_struct")
    return tuple(LoggedTables(unit, root, tuple(contexts)) for unit, root, contexts in heads)


def _entry(line: str, old_root: tuple[int, int]) -> LoggedContext | None:
    """A context entry from a line of any form; None for another line."""
    if m := _LINE.match(line):
        root_high, root_low, high, low = (int(m[i], 16) for i in range(4, 8))
        pasid = int(m[8]) if m[8] is not None and int(m[8]) >= 0 else None
        return _checked(m, (root_low, root_high), (low, high), pasid)
    m = _OLD_LINE.match(line)
    return _checked(m, old_root, (int(m[5], 16), int(m[4], 16)), None) if m else None


def _checked(m: re.Match[str], root: tuple[int, int], entry: tuple[int, int], pasid: int | None) -> LoggedContext | None:
    bus, device, function = int(m[1], 16), int(m[2], 16), int(m[3])
    return LoggedContext(bdf(bus, device, function), root, entry, pasid) if device < 32 else None


def parse_regset(text: str, name: str = "the text") -> tuple[LoggedRegisters, ...]:
    """The units in `iommu_regset`.  Raises BadSource with the line that is not of it."""
    heads: list[tuple[str, int, list[tuple[int, int, int]]]] = []
    for number, line in _lines(text):
        if m := _BASE.match(line):
            heads.append((m[1], int(m[2], 16), []))
        elif heads and (m := _REGISTER.match(line)):
            size = 4 if m[1] in _NARROW else 8
            heads[-1][2].append((int(m[2], 16), size, int(m[3], 16) & (1 << 8 * size) - 1))
        elif line.strip() and not line.startswith("Name"):
            raise BadSource(f"{name}, line {number}: {line[:60]!r} is nothing that iommu_regset has: copy the file anew")
    found = tuple(LoggedRegisters(unit, base, tuple(values)) for unit, base, values in heads)
    _must_have(found, name)
    return found


def _must_have(units: Iterable[LoggedRegisters], name: str) -> None:
    """Without CAP and ECAP nothing else can be understood."""
    lacking = [u.name for u in units if {0x08, 0x10, 0x1C, 0x20} - {offset for offset, _, _ in u.values}]
    if lacking or not units:
        who = f"unit {lacking[0]} has" if lacking else "it names"
        raise BadSource(f"{name}: {who} no CAP, ECAP, GSTS and RTADDR: copy /sys/kernel/debug/iommu/intel/iommu_regset")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    yield from enumerate(text.replace("\r", "").split("\n"), 1)
