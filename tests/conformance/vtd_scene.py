"""What a scene is: the tables, register writes and DMA requests that both machines play, and what may come of each.

Host-physical memory of a scene (everything else is absent or left alone):

    TABLES   48 pages from 0x1000000    root, context and paging tables, the invalidation queue
    DATA     16 pages from 0x1200000    every 8-byte word holds a tag that says where it lies
    PALETTE  a page per device          what its buffer holds when a scene starts: a token in every word
    DUMP     a page per device          where its buffer goes when the scene is over
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hvcore.spec.pci import format_bdf
from hvcore.spec.vtd import CAP, ECAP, FRCD_HIGH, registers

__all__ = ["ABSENT", "APIC", "BASE", "CCMD", "DATA", "DATA_PAGES", "DUMP", "F", "FSTS", "GCMD", "OWN", "PAGE", "PAGE_END", "PALETTE",
           "QIE", "RAM", "REQUESTERS", "RTADDR", "SLOT", "SLOTS", "SRTP", "TABLES", "TABLE_PAGES", "TE", "Ask", "Log", "Look", "Moved",
           "Operation", "Outcome", "Poke", "Registers", "Result", "Scene", "Variant", "Write", "changes", "landings", "pages_of",
           "palette", "register_name", "strays", "switch_on"]

PAGE = 4096
TABLES, TABLE_PAGES = 0x100_0000, 48
DATA, DATA_PAGES = 0x120_0000, 16
PALETTE, DUMP = 0x180_0000, 0x181_0000
RAM = 256 << 20
ABSENT = 0x5000_0000
"""Nothing answers here, in either machine."""
APIC = 0xFEE0_0000
"""A 4-byte write here is an interrupt for the processor."""
BASE = 0xFED9_0000
"""The unit's register page."""
PAGE_END = 0x230
"""Where QEMU's registers end."""
GCMD, RTADDR, CCMD, FSTS = 0x18, 0x20, 0x28, 0x34
TE, SRTP, QIE = 1 << 31, 1 << 30, 1 << 26
F = FRCD_HIGH["F"].mask
_NAMES = {r.offset + half: r.name + "+4" * (half > 0)
          for r in registers(CAP.make(FRO=0x22), ECAP.make(IRO=0xF)) for half in range(0, r.size, 4)}

REQUESTERS = (0x0018, 0x001D, 0x0020, 0x0500, 0x0600, 0x0040)
"""Requester ids of the `edu` devices as the unit sees them: 00:03.0, 00:03.5, 00:04.0; 05:00.0 behind a root port; 06:03.0 behind a
PCIe-to-PCI bridge, which makes it 06:00.0; 07:02.0 behind a conventional bridge at 00:08.0, which makes it 00:08.0."""
SLOTS, SLOT = 255, 16
"""A device's buffer: each request of a scene has its own place in it, in slots, for what it reads or with the token that it writes.
(QEMU's `edu` aborts when the last byte of its buffer takes part.)"""
_PAGES = ((0, -1), (0, (1 << 30) - 1), (0, (1 << 21) - 1), (0, PAGE - 1), (DATA, (1 << 21) - 1), (TABLES, (1 << 21) - 1))
_JOIN = 8
"""Changed bytes of memory that lie no further apart count as one run."""


@dataclass(frozen=True)
class Variant:
    """How QEMU's unit is built: bits of its addresses, and whether it says that it caches what is not present."""

    aw_bits: int = 39
    caching_mode: bool = False

    @property
    def device(self) -> str:
        """QEMU's argument."""
        mode = "on" if self.caching_mode else "off"
        return f"intel-iommu,aw-bits={self.aw_bits},caching-mode={mode},x-scalable-mode=off,intremap=off,device-iotlb=off"

    def __str__(self) -> str:
        return f"{self.aw_bits} bits{', caching mode' if self.caching_mode else ''}"


def register_name(offset: int) -> str:
    """The register at an offset of QEMU's page, `+4` for its upper half; the offset where there is none."""
    return _NAMES.get(offset, f"offset {offset:#x}")


@dataclass(frozen=True)
class Poke:
    """Software stores a 64-bit word at a host-physical address."""

    address: int
    value: int

    def __str__(self) -> str:
        return f"memory {self.address:#x} := {self.value:#x}"


@dataclass(frozen=True)
class Write:
    """Software writes a register of the unit."""

    offset: int
    width: int
    value: int

    def __str__(self) -> str:
        return f"{register_name(self.offset)} := {self.value:#x} ({self.width} bytes)"


@dataclass(frozen=True)
class Ask:
    """Device `device` (an index of `REQUESTERS`) reads or writes `length` bytes at an IOVA; software then clears the record and PFO, if
    `sweep`.  `slot` says where in the device's buffer; None: in slots that no other request of the scene uses."""

    device: int
    iova: int
    write: bool = False
    sweep: bool = True
    length: int = 8
    slot: int | None = None

    @property
    def word(self) -> bool:
        """One aligned word, of which is known where it was read or landed."""
        return self.length == 8 and not self.iova % 8 and self.slot is None

    def __str__(self) -> str:
        who = f"device {self.device} ({format_bdf(REQUESTERS[self.device])})"
        what = f"{who} {'writes' if self.write else 'reads'} {self.length} bytes at {self.iova:#x}"
        return what + ("" if self.sweep else ", its record stays")


@dataclass(frozen=True)
class Look:
    """Software reads the register page, `width` bytes at a time; with `apic` also which interrupts the processor has received."""

    width: int = 8
    apic: bool = False

    def __str__(self) -> str:
        return f"all registers are read, {self.width} bytes at a time"


Operation = Poke | Write | Ask | Look


@dataclass(frozen=True)
class Scene:
    """Tables (bytes by host-physical page address) and what happens.

    With `root` the scene begins with translation on, from the root table there; without, at power-on.
    """

    tables: dict[int, bytes]
    root: int | None
    operations: tuple[Operation, ...]

    @property
    def requests(self) -> list[Ask]:
        """The DMA requests."""
        return [o for o in self.operations if isinstance(o, Ask)]

    @property
    def places(self) -> list[int]:
        """Where in its device's buffer each request has its bytes."""
        found, free = [], 0
        for ask in self.requests:
            found.append(SLOT * (free if ask.slot is None else ask.slot))
            free += -(-ask.length // SLOT) if ask.slot is None else 0
        assert free <= SLOTS, "the requests of a scene have no room in the buffers"
        return found


@dataclass(frozen=True)
class Moved:
    """Bytes that arrived: half-open ranges (host-physical of a write, in the device's buffer of a read) and their checksum."""

    ranges: tuple[tuple[int, int], ...]
    checksum: int

    def __str__(self) -> str:
        return ", ".join(f"{a:#x}..{b:#x}" for a, b in self.ranges) + f" (checksum {self.checksum:08x})"


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    `where` is the word that was read (words of `DATA` say where they lie), or the address at which the token lies that was written;
    for a request that is no aligned word, the bytes that moved; None where nothing arrived.  `low` and `high` are the fault record,
    None where F is clear; `status` is FSTS.
    """

    where: int | Moved | None
    low: int | None
    high: int | None
    status: int

    def __str__(self) -> str:
        where = "nothing arrived" if self.where is None else str(self.where) if isinstance(self.where, Moved) else f"{self.where:#x}"
        return f"{where}, {self._record()}, FSTS {self.status:#x}"

    def _record(self) -> str:
        if self.low is None or self.high is None:
            return "no record"
        f = FRCD_HIGH.decode(self.high)
        raw = f"({self.low:#x}, {self.high:#x})"
        return f"fault {f['FR']:#x} of a {'read' if f['T'] else 'write'} by {format_bdf(f['SID'])} at {self.low:#x} {raw}"


@dataclass(frozen=True)
class Registers:
    """The register page as 64-bit words, and the vectors of the interrupts received, None where nobody asked."""

    words: tuple[int, ...]
    vectors: frozenset[int] | None = None

    def __str__(self) -> str:
        page = ", ".join(f"{8 * i:#x}: {word:#x}" for i, word in enumerate(self.words) if word and i > 2)
        return page + ("" if self.vectors is None else f"; interrupts {sorted(self.vectors)}")


Result = Outcome | Registers


def _token(device: int, word: int) -> int:
    """What lies in a word of a device's buffer.

    Both halves are harmless as the data of an interrupt (fixed delivery), and the word is no present table entry.
    """
    code = device << 12 | word >> 8 << 11 | word & 0xFF
    return (0x7E57_0000 | code) << 32 | code << 16


_WORDS = SLOTS * SLOT // 8
_PALETTES = [np.array([_token(device, word) for word in range(_WORDS)], np.uint64).tobytes() for device in range(len(REQUESTERS))]
_TOKENS = {_token(device, word): (device, 8 * word) for device in range(len(REQUESTERS)) for word in range(_WORDS)}
_MARK = np.uint64(0x7E57)
_DATA = (np.arange(DATA, DATA + DATA_PAGES * PAGE, 8, dtype=np.uint64) | np.uint64(0xD << 60)).tobytes()
OWN = (range(TABLES, TABLES + TABLE_PAGES * PAGE), range(DATA, DATA + DATA_PAGES * PAGE))
"""Where the requests of a scene are meant to land."""
_KEPT = range(PALETTE, DUMP + len(REQUESTERS) * PAGE)


def palette(device: int) -> bytes:
    """What a device's buffer holds when a scene starts."""
    return _PALETTES[device]


def pages_of(scene: Scene) -> dict[int, bytes]:
    """Every page of `TABLES` and `DATA` as a scene starts."""
    tables = {a: scene.tables.get(a, bytes(PAGE)) for a in range(TABLES, TABLES + TABLE_PAGES * PAGE, PAGE)}
    return tables | {DATA + at: _DATA[at:at + PAGE] for at in range(0, len(_DATA), PAGE)}


def switch_on(root: int) -> Sequence[Write]:
    """Software hands a root table over, empties the caches and enables translation."""
    return (Write(RTADDR, 8, root), Write(GCMD, 4, SRTP), Write(CCMD, 8, 1 << 63 | 1 << 61), Write(0xF8, 8, 1 << 63 | 1 << 60),
            Write(GCMD, 4, TE))


def strays(asks: Iterable[Ask]) -> list[tuple[int, int]]:
    """Where else in RAM writes may land: (address, length), each within a page.

    That is untranslated, through a large page at DATA, TABLES or 0, or through a page entry met at another level than it was made for.
    """
    parts = {part for a in asks if a.write for part in _parts(a)}
    places = {(base | i & mask, n) for i, n in parts for base, mask in _PAGES}
    return sorted((p, n) for p, n in places if p < RAM and not any(p in r for r in (*OWN, _KEPT)))


def _parts(ask: Ask) -> Iterator[tuple[int, int]]:
    """A request cut at page boundaries."""
    at, end = ask.iova, ask.iova + ask.length
    while at < end:
        stop = min(end, (at | PAGE - 1) + 1)
        yield at, stop - at
        at = stop


def landings(regions: Iterable[tuple[int, bytes]]) -> dict[tuple[int, int], int]:
    """Where tokens lie in memory, by (device, place in its buffer)."""
    found = {}
    for start, raw in regions:
        words = np.frombuffer(raw, np.uint64)
        for i in np.flatnonzero(words >> np.uint64(48) == _MARK):
            if key := _TOKENS.get(int(words[i])):
                found[key] = start + 8 * int(i)
    return found


def changes(regions: Iterable[tuple[int, bytes, bytes]]) -> Moved | None:
    """What changed in memory: regions as (address, bytes before, bytes after)."""
    ranges, checksum = list[tuple[int, int]](), 0
    for start, before, after in regions:
        for first, last in _runs(np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8))):
            ranges.append((start + first, start + last + 1))
            checksum = zlib.crc32(after[first:last + 1], checksum)
    return Moved(tuple(ranges), checksum) if ranges else None


def _runs(indexes: "np.ndarray[tuple[int], np.dtype[np.intp]]") -> list[tuple[int, int]]:
    """Runs of ascending indexes: first and last of each."""
    if not len(indexes):
        return []
    gaps = np.flatnonzero(np.diff(indexes) > _JOIN)
    return [(int(indexes[a]), int(indexes[b])) for a, b in zip([0, *(gaps + 1)], [*gaps, len(indexes) - 1], strict=True)]


@dataclass
class Log:
    """A scene as it went, in order: for each request its record (low, high, FSTS), and what a write that is no word changed; for each
    look what was seen.  `results` puts it together with the buffers and the memory of the end."""

    scene: Scene
    seen: list[tuple[int, int, int] | Registers] = field(default_factory=list)
    moved: dict[int, Moved | None] = field(default_factory=dict)

    def results(self, buffers: Sequence[bytes], landed: dict[tuple[int, int], int]) -> list[Result]:
        """Every outcome, in order."""
        asks = iter(enumerate(zip(self.scene.requests, self.scene.places, strict=True)))
        found = list[Result]()
        for entry in self.seen:
            if isinstance(entry, Registers):
                found.append(entry)
                continue
            number, (ask, place) = next(asks)
            low, high, status = entry
            where = self._where(number, ask, place, buffers, landed)
            found.append(Outcome(where, low, high, status) if high & F else Outcome(where, None, None, status))
        return found

    def _where(self, number: int, ask: Ask, place: int, buffers: Sequence[bytes],
               landed: dict[tuple[int, int], int]) -> int | Moved | None:
        if ask.write:
            return landed.get((ask.device, place)) if ask.word else self.moved[number]
        now = buffers[ask.device][place:place + ask.length]
        if not ask.word:
            return changes([(0, bytes(ask.length), now)])
        was = palette(ask.device)[place:place + 8]
        return int.from_bytes(now, "little") or None if now != was else None
