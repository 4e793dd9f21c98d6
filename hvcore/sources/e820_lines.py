"""E820 lines in kernel logs, Xen's and SeaBIOS's consoles and /sys/firmware/memmap, in every spelling that is met in the wild.

Only what the firmware said: Linux's later edits (`e820: update`, `reserve RAM buffer`, `extended physical RAM map`) stay out.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..spec.e820 import E820Entry

__all__ = ["LoggedMap", "read_maps"]

_WORDS = {
    "usable": 1, "system ram": 1, "kernel usable ram": 1,
    "reserved": 2, "device reserved": 2, "soft reserved": 0xEFFFFFFF,
    "acpi data": 3, "acpi tables": 3,
    "acpi nvs": 4, "acpi non-volatile storage": 4,
    "unusable memory": 5, "unusable": 5,
    "persistent memory (legacy)": 12, "persistent memory": 7,
}
"""Range types as Linux 2.6 to 7, Xen and /sys/firmware/memmap spell them, lower case."""

_TYPE = re.compile(
    r"\s*(?:\d+(?:\.\d+)?\s*[KMGT]?B\s+)?(?:\(\s*)?(?:persistent \()?"
    rf"(?:type (?P<number>\d{{1,9}})|(?P<word>{'|'.join(map(re.escape, _WORDS))}))(?![a-z])", re.IGNORECASE)
_NUMBERED = re.compile(r"\s*(?P<number>\d{1,9})\s+[A-Z]")


@dataclass(frozen=True, slots=True)
class _Spelling:
    """How one kind of software prints an entry.  `last` is 1 where the second number is the last byte, 0 where it is the first after."""

    name: str
    pattern: re.Pattern[str]
    last: int
    type: re.Pattern[str] = _TYPE


_BIOS = (
    _Spelling("linux", re.compile(r"BIOS-e820: \[mem 0x([0-9a-f]{1,16})-0x([0-9a-f]{1,16})\]", re.IGNORECASE), 1),
    _Spelling("linux-2.6", re.compile(r"BIOS-e820: ([0-9a-f]{8,16}) - ([0-9a-f]{8,16})(?= )", re.IGNORECASE), 0),
    _Spelling("seabios", re.compile(r"^\s*\d+: ([0-9a-f]{16}) - ([0-9a-f]{16}) = "), 0, _NUMBERED),
)
_XEN = (
    _Spelling("xen", re.compile(r"(?<!\S)([0-9a-f]{16}) - ([0-9a-f]{16})(?= \()"), 0),
    _Spelling("xen-4.14", re.compile(r"\[([0-9a-f]{16}), ([0-9a-f]{16})\](?= \()"), 1),
)
_XEN_HEADER = re.compile(r"(?:Xen|EFI|PVH|Multiboot)\S* RAM map:")
_HEADER = re.compile(r"BIOS-provided physical RAM map|e820 map has \d+ items")
_GAP = re.compile(r"BIOS-e820: \[gap ")
_SYSFS = re.compile(r"memmap/(\d{1,6})/(start|end|type)[:\s]\s*(.+)")


@dataclass(frozen=True, slots=True)
class LoggedMap:
    """One firmware map as a log holds it: entries in its order, the number of each entry's line (from 1), and the line after the last.

    `torn` are numbers of lines that begin like an entry and cannot be read.
    """

    entries: tuple[E820Entry, ...]
    lines: tuple[int, ...]
    spelling: str
    at_end: bool = False
    torn: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it has what a PC's map has at least: RAM below 640 KiB and at 1 MiB, and does not stop where the log does."""
        low = any(e.usable and e.start < 0xA0000 for e in self.entries)
        return low and not self.at_end and any(e.usable and e.start <= 0x100000 < e.end for e in self.entries)


@dataclass(slots=True)
class _Collector:
    """Entries of the map that is being read, and the maps before it."""

    maps: list[LoggedMap]
    entries: list[E820Entry]
    lines: list[int]
    torn: list[int]
    spelling: str = ""

    def close(self, at_end: bool = False) -> None:
        """Ends the map."""
        if self.entries:
            self.maps.append(LoggedMap(tuple(self.entries), tuple(self.lines), self.spelling, at_end, tuple(self.torn)))
            self.entries, self.lines, self.torn = [], [], []

    def add(self, number: int, spelling: str, entry: E820Entry) -> None:
        """Takes an entry; one that repeats the first, or is spelt otherwise, begins another map."""
        if self.entries and (spelling != self.spelling or entry == self.entries[0]):
            self.close()
        self.spelling = spelling
        self.entries.append(entry)
        self.lines.append(number)


def read_maps(lines: Iterable[str]) -> tuple[LoggedMap, ...]:
    """Every firmware map in a log, in order.  A log that holds two boots, or says its map twice, gives several."""
    lines = list(lines)
    found = _Collector([], [], [], [])
    in_xen = False
    last_content = max((n for n, line in enumerate(lines, 1) if line.strip()), default=0)
    for number, line in enumerate(lines, 1):
        if _HEADER.search(line):
            found.close()
        if _XEN_HEADER.search(line):
            found.close()
            in_xen = True
            continue
        hit = _entry(line, _XEN if in_xen else _BIOS)
        if hit:
            found.add(number, *hit)
        elif in_xen:
            in_xen = False
        elif "BIOS-e820" in line and not _GAP.search(line):
            found.torn.append(number)
    found.close(at_end=bool(found.lines) and max([found.lines[-1], *found.torn]) == last_content)
    sysfs = _sysfs(lines)
    return (*found.maps, *([sysfs] if sysfs else []))


def _entry(line: str, spellings: tuple[_Spelling, ...]) -> tuple[str, E820Entry] | None:
    for spelling in spellings:
        m = spelling.pattern.search(line)
        kind = spelling.type.match(line, m.end()) if m else None
        if m and kind:
            number = int(kind["number"]) if kind["number"] else _WORDS[kind["word"].lower()]
            return spelling.name, E820Entry(int(m[1], 16), int(m[2], 16) + spelling.last, number)
    return None


def _sysfs(lines: list[str]) -> LoggedMap | None:
    """A map from `grep -r . /sys/firmware/memmap`: three lines an entry, in any order."""
    found: dict[int, dict[str, str]] = {}
    where: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        m = _SYSFS.search(line)
        if m:
            found.setdefault(int(m[1]), {})[m[2]] = m[3].strip()
            where[int(m[1])] = number
    numbers = [n for n in sorted(found) if _sysfs_whole(found[n])]
    entries = tuple(_sysfs_entry(found[n]) for n in numbers)
    return LoggedMap(entries, tuple(where[n] for n in numbers), "memmap") if entries else None


def _sysfs_whole(values: dict[str, str]) -> bool:
    hexadecimal: Callable[[str], object] = re.compile(r"0x[0-9a-f]{1,16}").fullmatch
    return len(values) == 3 and bool(hexadecimal(values["start"]) and hexadecimal(values["end"]))


def _sysfs_entry(values: dict[str, str]) -> E820Entry:
    kind = _TYPE.match(values["type"])
    number = _WORDS[kind["word"].lower()] if kind and kind["word"] else 2
    return E820Entry(int(values["start"], 16), int(values["end"], 16) + 1, number)


