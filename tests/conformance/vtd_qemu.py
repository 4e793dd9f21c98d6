"""QEMU's `intel-iommu` and our remapping unit, side by side: the same tables, register writes and DMA requests; what came of each request.

QEMU runs a machine whose processor executes `cli; hlt` and is driven through its qtest socket.  `edu` devices make the DMA: their transfer
takes 100 ms of virtual time, which `-icount sleep=off` lets pass as soon as nothing else is to be done.

Host-physical memory of a scene (everything else is absent or left alone):

    TABLES  48 pages from 0x1000000    root, context and paging tables
    DATA    16 pages from 0x1200000    every 8-byte word holds a tag that says where it lies
"""

import base64
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.spec.dma import Direction, DmaRequest, RemapFault
from hvcore.spec.vtd import FRCD_HIGH, frcd_offset

__all__ = ["ABSENT", "CCMD", "DATA", "DATA_PAGES", "GCMD", "QIE", "SLOT", "SLOTS", "SOURCES", "TABLES", "TABLE_PAGES", "TE", "Ask",
           "Outcome", "Poke", "QemuUnit", "Scene", "Variant", "Write", "run_ours"]

PAGE = 4096
TABLES, TABLE_PAGES = 0x100_0000, 48
DATA, DATA_PAGES = 0x120_0000, 16
PALETTE, DUMP = 0x180_0000, 0x181_0000
"""A page per device: what its buffer holds when a scene starts, and where its buffer goes when the scene is over."""
RAM = 256 << 20
ABSENT = 0x5000_0000
"""Nothing answers here, in either machine."""
BASE = 0xFED9_0000
GCMD, RTADDR, CCMD, FSTS = 0x18, 0x20, 0x28, 0x34
TE, SRTP, QIE = 1 << 31, 1 << 30, 1 << 26
F = FRCD_HIGH["F"].mask

SOURCES = (0x0018, 0x001D, 0x0020, 0x0500)
"""Requester ids of the `edu` devices: 00:03.0, 00:03.5, 00:04.0 and 05:00.0 behind a root port."""
BARS = (0xFD00_0000, 0xFD10_0000, 0xFD20_0000, 0xFD40_0000)
_SOURCE, _DESTINATION, _COUNT, _COMMAND, _BUFFER = 0x80, 0x88, 0x90, 0x98, 0x40000
_READ, _WRITE = 1, 3
SLOTS, SLOT = 255, 16
"""A request of a scene has a slot in its device's buffer: for what it reads, or with the token that it writes.  (QEMU's `edu` aborts when
the last byte of its buffer takes part.)"""
_DEVICES = ["edu,addr=3.0,multifunction=on", "edu,addr=3.5", "edu,addr=4.0", "pcie-root-port,id=rp,addr=6,chassis=1", "edu,bus=rp,addr=0"]
_MASK = ",dma_mask=0xffffffffffffffff"


@dataclass(frozen=True)
class Variant:
    """How QEMU's unit is built: bits of its addresses, and whether it says that it caches what is not present."""

    aw_bits: int = 39
    caching_mode: bool = False

    @property
    def device(self) -> str:
        mode = "on" if self.caching_mode else "off"
        return f"intel-iommu,aw-bits={self.aw_bits},caching-mode={mode},x-scalable-mode=off,intremap=off,device-iotlb=off"


@dataclass(frozen=True)
class Poke:
    """Software stores a 64-bit word at a host-physical address."""

    address: int
    value: int


@dataclass(frozen=True)
class Write:
    """Software writes a register of the unit."""

    offset: int
    width: int
    value: int


@dataclass(frozen=True)
class Ask:
    """Device `device` (an index of `SOURCES`) reads or writes 8 bytes at an IOVA; software then clears the record and PFO, if `sweep`."""

    device: int
    iova: int
    write: bool = False
    sweep: bool = True


@dataclass(frozen=True)
class Scene:
    """Tables (bytes by host-physical page address) and what happens while translation is on; at most `SLOTS` requests."""

    tables: dict[int, bytes]
    root: int
    operations: tuple[Poke | Write | Ask, ...]

    @property
    def requests(self) -> list[Ask]:
        return [o for o in self.operations if isinstance(o, Ask)]


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    `where` is what was read (words of `DATA` say where they lie), or the address at which the token lies that was written; None where
    nothing arrived.  `low` and `high` are the fault record, None where F is clear; `status` is FSTS.
    """

    where: int | None
    low: int | None
    high: int | None
    status: int

    def __str__(self) -> str:
        where = "nothing arrived" if self.where is None else f"{self.where:#x}"
        record = "no record" if self.high is None else f"record {self.low:#x} {self.high:#x}"
        return f"{where}, {record}, FSTS {self.status:#x}"


def token(device: int, slot: int) -> int:
    """What a device writes in a slot.  Its low half is harmless as interrupt data, and it is no present table entry."""
    return (0x7E57_0000 | device << 8 | slot) << 32 | (device << 8 | slot) << 16


def _palette(device: int) -> bytes:
    return b"".join(struct.pack("<QQ", token(device, slot), 0) for slot in range(SLOTS))


def _data() -> bytes:
    return (np.arange(DATA, DATA + DATA_PAGES * PAGE, 8, dtype=np.uint64) | np.uint64(0xD << 60)).tobytes()


_DATA = _data()
_TOKENS = {token(device, slot): (device, slot) for device in range(len(SOURCES)) for slot in range(SLOTS)}
_TOKEN_MARK = np.uint64(0x7E57)
_OWN = (range(TABLES, TABLES + TABLE_PAGES * PAGE), range(DATA, DATA + DATA_PAGES * PAGE), range(PALETTE, DUMP + len(SOURCES) * PAGE))


def pages_of(scene: Scene) -> dict[int, bytes]:
    """Every page of `TABLES` and `DATA` as a scene starts."""
    tables = {a: scene.tables.get(a, bytes(PAGE)) for a in range(TABLES, TABLES + TABLE_PAGES * PAGE, PAGE)}
    return tables | {DATA + at: _DATA[at:at + PAGE] for at in range(0, len(_DATA), PAGE)}


def strays(scene: Scene) -> list[int]:
    """Where else in RAM a write of a scene may land: through a large page, or untranslated."""
    iovas = [a.iova for a in scene.requests if a.write]
    places = {p for i in iovas for p in (i, i & (1 << 30) - 1, DATA | i & (1 << 21) - 1, TABLES | i & (1 << 21) - 1)}
    return sorted(p for p in places if p < RAM and not any(r.start <= p < r.stop for r in _OWN))


def landings(regions: Iterable[tuple[int, bytes]]) -> dict[tuple[int, int], int]:
    """Where tokens lie in memory, by (device, slot)."""
    found = {}
    for start, raw in regions:
        words = np.frombuffer(raw, np.uint64)
        for i in np.flatnonzero(words >> np.uint64(48) == _TOKEN_MARK):
            found[_TOKENS[int(words[i])]] = start + 8 * int(i)
    return found


@dataclass
class _Log:
    """The requests of a scene as they went: the slot contents and the records, put together at the end."""

    asks: list[Ask] = field(default_factory=list)
    records: list[tuple[int, int, int]] = field(default_factory=list)

    def outcomes(self, read: Callable[[int, int], int], landed: dict[tuple[int, int], int]) -> list[Outcome]:
        return [_outcome(landed.get((a.device, i)) if a.write else read(a.device, i) or None, *r)
                for i, (a, r) in enumerate(zip(self.asks, self.records, strict=True))]


def _outcome(where: int | None, low: int, high: int, status: int) -> Outcome:
    return Outcome(where, low, high, status) if high & F else Outcome(where, None, None, status)


class QemuUnit:
    """A QEMU with an `intel-iommu` and four `edu`."""

    def __init__(self, variant: Variant):
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        rom = b"\xf4" * 0xFFF0 + b"\xfa\xf4\xeb\xfd" + bytes(12)
        (folder / "rom").write_bytes(rom)
        devices = [variant.device] + [d + _MASK if d.startswith("edu") else d for d in _DEVICES]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "qtest"))
            listener.listen(1)
            listener.settimeout(60)
            self._process = subprocess.Popen(
                ["qemu-system-x86_64", "-machine", "q35,hpet=off,pit=off", "-accel", "tcg", "-icount", "shift=0,sleep=off",
                 "-m", f"{RAM >> 20}M", "-nodefaults", "-display", "none", "-bios", str(folder / "rom"),
                 "-qtest", f"unix:{folder / 'qtest'}", "-qtest-log", "/dev/null", *[word for d in devices for word in ("-device", d)]],
                stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self._socket, _ = listener.accept()
        self._socket.settimeout(60)
        self._due = ""
        self._replies = self._socket.makefile("rb")
        self._place_devices()
        self.cap, self.ecap = self.read(0x08, 8), self.read(0x10, 8)
        record = BASE + frcd_offset(self.cap)
        self._record_high = record + 8
        self._look = f"readq {record:#x}\nreadq {record + 8:#x}\nreadl {BASE + FSTS:#x}\n"
        for device in range(len(SOURCES)):
            self._write_memory(PALETTE + device * PAGE, _palette(device))

    def __enter__(self) -> "QemuUnit":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._replies.close()
        self._socket.close()
        self._folder.cleanup()

    # The socket.

    def _exchange(self, lines: str) -> list[int]:
        """Sends commands, after those that are due; what each answered (0 where it was plain OK)."""
        due, self._due = self._due, ""
        self._socket.sendall((due + lines).encode())
        values = []
        for _ in range(due.count("\n") + lines.count("\n")):
            words = self._replies.readline().split()
            if not words or words[0] != b"OK":
                raise RuntimeError(f"QEMU answered {words} to one of:\n{lines}")
            values.append(int(words[1], 16) if len(words) > 1 else 0)
        return values[due.count("\n"):]

    def _write_memory(self, address: int, data: bytes) -> None:
        self._exchange(f"b64write {address:#x} {len(data):#x} {base64.b64encode(data).decode()}\n")

    def _read_memory(self, address: int, length: int) -> bytes:
        self._socket.sendall(f"b64read {address:#x} {length:#x}\n".encode())
        return base64.b64decode(self._replies.readline().split()[1])

    def read(self, offset: int, width: int) -> int:
        """A register of the unit."""
        return self._exchange(f"read{'l' if width == 4 else 'q'} {BASE + offset:#x}\n")[0]

    def write(self, offset: int, width: int, value: int) -> None:
        """Writes a register of the unit."""
        self._exchange(f"write{'l' if width == 4 else 'q'} {BASE + offset:#x} {value:#x}\n")

    # The devices.

    def _place_devices(self) -> None:
        """The root port's bus number and window, then every device's BAR and its command register: memory and bus master."""
        for offset, value in ((0x18, 0x50500), (0x20, 0xFD40_FD40), (0x04, 6)):
            self._configure(0x30, offset, value)
        for source, bar in zip(SOURCES, BARS, strict=True):
            self._configure(source, 0x10, bar)
            self._configure(source, 0x04, 6)
        self._exchange("".join(f"writeq {bar + _COUNT:#x} 8\n" for bar in BARS))

    def _configure(self, source: int, offset: int, value: int) -> None:
        self._exchange(f"outl 0xcf8 {0x8000_0000 | source << 8 | offset:#x}\noutl 0xcfc {value:#x}\n")

    def _buffers(self, command: int, memory: int) -> None:
        """The whole buffer of every device from or to its page at `memory`, with translation off."""
        ends = (_DESTINATION, _SOURCE) if command == _READ else (_SOURCE, _DESTINATION)
        for device, bar in enumerate(BARS):
            page = memory + device * PAGE
            self._exchange(f"writeq {bar + ends[0]:#x} {_BUFFER:#x}\nwriteq {bar + ends[1]:#x} {page:#x}\n"
                           f"writeq {bar + _COUNT:#x} {SLOTS * SLOT}\nwriteq {bar + _COMMAND:#x} {command}\n")
        for bar in BARS:
            self._finished(bar, "")
        self._exchange("".join(f"writeq {bar + _COUNT:#x} 8\n" for bar in BARS))

    def _finished(self, bar: int, look: str) -> list[int]:
        """What `look` reads once the transfer of a device is over."""
        question = f"readq {bar + _COMMAND:#x}\n{look}"
        while (answers := self._exchange(question))[0] & 1:
            pass
        return answers[1:]

    def _ask(self, ask: Ask, slot: int) -> tuple[int, int, int]:
        """One transfer; the fault record (low, high) and FSTS after it."""
        bar, place = BARS[ask.device], _BUFFER + slot * SLOT
        ends = (place, ask.iova) if ask.write else (ask.iova, place)
        self._exchange(f"writeq {bar + _SOURCE:#x} {ends[0]:#x}\nwriteq {bar + _DESTINATION:#x} {ends[1]:#x}\n"
                       f"writeq {bar + _COMMAND:#x} {_WRITE if ask.write else _READ}\n")
        low, high, status = self._finished(bar, self._look)
        if ask.sweep and (high & F or status & 1):
            self._due = f"writeq {self._record_high:#x} {F:#x}\nwritel {BASE + FSTS:#x} 1\n"
        return low, high, status

    # A scene.

    def run(self, scene: Scene) -> list[Outcome]:
        """Plays a scene; the outcome of each of its requests."""
        self._start(scene)
        log = _Log()
        for operation in scene.operations:
            if isinstance(operation, Ask):
                log.records.append(self._ask(operation, len(log.asks)))
                log.asks.append(operation)
            elif isinstance(operation, Poke):
                self._exchange(f"writeq {operation.address:#x} {operation.value:#x}\n")
            else:
                self.write(operation.offset, operation.width, operation.value)
        return self._finish(log, strays(scene))

    def _start(self, scene: Scene) -> None:
        for address, data in pages_of(scene).items():
            self._write_memory(address, data)
        self._buffers(_READ, PALETTE)
        for offset, width, value in _switch_on(scene.root):
            self.write(offset, width, value)

    def _finish(self, log: _Log, places: list[int]) -> list[Outcome]:
        self.write(GCMD, 4, 0)
        self._exchange(f"writeq {self._record_high:#x} {F:#x}\nwritel {BASE + FSTS:#x} 0x7f\n")
        self._buffers(_WRITE, DUMP)
        slots = np.frombuffer(self._read_memory(DUMP, PAGE * len(SOURCES)), np.uint64).reshape(len(SOURCES), -1, 2)[:, :, 0].tolist()
        landed = landings((r.start, self._read_memory(r.start, len(r))) for r in _OWN[:2])
        landed |= landings(zip(places, self._clear(places), strict=True))

        def read(device: int, slot: int) -> int:
            word: int = slots[device][slot]
            return 0 if word == token(device, slot) else word

        return log.outcomes(read, landed)


    def _clear(self, places: list[int]) -> list[bytes]:
        """Words of memory as they were, and zero from now on."""
        words = self._exchange("".join(f"readq {p:#x}\n" for p in places))
        self._exchange("".join(f"writeq {p:#x} 0\n" for p, word in zip(places, words, strict=True) if word))
        return [word.to_bytes(8, "little") for word in words]


def _switch_on(root: int) -> Sequence[tuple[int, int, int]]:
    return (RTADDR, 8, root), (GCMD, 4, SRTP), (CCMD, 8, 1 << 63 | 1 << 61), (0xF8, 8, 1 << 63 | 1 << 60), (GCMD, 4, TE)


MakeUnit = Callable[[UnitDescription, Memory, int], RemappingUnit]
_MEMORY = Memory([(0, RAM)])


def run_ours(scene: Scene, variant: Variant, cap: int, ecap: int, make: MakeUnit = RemappingUnit) -> list[Outcome]:
    """Plays a scene on a unit of ours, new from `make`, with QEMU's capability registers."""
    memory = _MEMORY
    memory.reset()
    for address, data in pages_of(scene).items():
        memory.write(address, data)
    unit = make(UnitDescription(BASE, cap, ecap), memory, variant.aw_bits)
    for offset, width, value in _switch_on(scene.root):
        unit.mmio_write(offset, width, value)
    log, data_read, record = _Log(), {}, frcd_offset(cap)
    for operation in scene.operations:
        if isinstance(operation, Ask):
            slot = len(log.asks)
            data_read[operation.device, slot] = _carry(unit, memory, operation, slot)
            log.asks.append(operation)
            high = unit.mmio_read(record + 8, 8)
            status = unit.mmio_read(FSTS, 4)
            log.records.append((unit.mmio_read(record, 8), high, status))
            if operation.sweep and (high & F or status & 1):
                unit.mmio_write(record + 8, 8, F)
                unit.mmio_write(FSTS, 4, 1)
        elif isinstance(operation, Poke):
            memory.write64(operation.address, operation.value)
        else:
            unit.mmio_write(operation.offset, operation.width, operation.value)
    landed = landings((start, memory.read(start, length)) for start, length in (
        *((r.start, len(r)) for r in _OWN[:2]), *((p, 8) for p in strays(scene))))
    return log.outcomes(lambda device, slot: data_read[device, slot], landed)


def _carry(unit: RemappingUnit, memory: Memory, ask: Ask, slot: int) -> int:
    """One request through our unit, to memory; the word that was read, 0 where nothing arrived."""
    address = unit.remap(DmaRequest(SOURCES[ask.device], ask.iova, 8, Direction.WRITE if ask.write else Direction.READ))
    if isinstance(address, RemapFault) or not memory.backed(address, 8):
        return 0
    if ask.write:
        memory.write64(address, token(ask.device, slot))
        return 0
    return memory.read64(address)
