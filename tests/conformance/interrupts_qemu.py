"""Interrupt remapping in QEMU's `intel-iommu` and in our unit, side by side: the same table, register writes and messages.

`edu` devices send the messages: by their MSI capability, whose data has 16 bits, or with their DMA engine, which writes any 4 bytes.  What
becomes of a message is read from QEMU's trace: `vtd_ir_remap_msi` says what the unit made of it, `apic_deliver_irq` what arrived at the
local APICs.  No destination is the machine's one processor, which a stray NMI or INIT would wake.
"""

import json
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from qtest import Qtest

from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.spec.dma import RemapFault
from hvcore.spec.interrupts import Interrupt
from hvcore.spec.vtd import FRCD_HIGH, frcd_offset

__all__ = ["ABSENT", "CFI", "EIME", "IRE", "QIE", "SOURCES", "TABLE", "Invalidate", "Message", "Operation", "Outcome", "Put",
           "QemuInterrupts", "Scene", "run_ours", "send"]

BASE, RAM = 0xFED9_0000, 64 << 20
TABLE, QUEUE, WORD = 0x100_0000, 0x200_0000, 0x200_1000
"""Host-physical: the interrupt remapping table, the page of the invalidation queue, and what a DMA engine is to send."""
ABSENT = 0x5000_0000
"""Nothing answers here, in either machine."""
GCMD, FSTS, IQT, IQA, IRTA = 0x18, 0x34, 0x88, 0x90, 0xB8
QIE, IRE, SIRTP, CFI = 1 << 26, 1 << 25, 1 << 24, 1 << 23
EIME = 1 << 11
F = FRCD_HIGH["F"].mask

SOURCES = (0x0018, 0x001D, 0x0020, 0x0500)
"""Requester ids of the `edu` devices: 00:03.0, 00:03.5, 00:04.0 and 05:00.0 behind a root port."""
_BARS = (0xFD00_0000, 0xFD10_0000, 0xFD20_0000, 0xFD40_0000)
_QUEUE_SLOTS, _SLOT = 256, 16
_PATIENCE = 100_000
"""How often a transfer is asked whether it is over."""
_DEVICES = ["edu,addr=3.0,multifunction=on", "edu,addr=3.5", "edu,addr=4.0", "pcie-root-port,id=rp,addr=6,chassis=1", "edu,bus=rp,addr=0"]
_TRACED = ("vtd_ir_remap_msi", "apic_deliver_irq")
_MSI, _RAISE, _ACKNOWLEDGE = 0x40, 0x60, 0x64
_SOURCE, _DESTINATION, _COUNT, _COMMAND, _BUFFER = 0x80, 0x88, 0x90, 0x98, 0x40000
_REMAPPED = re.compile(r"vtd_ir_remap_msi \(.*\) -> \(addr (0x[0-9a-f]+), data (0x[0-9a-f]+)\)")
_DELIVERED = re.compile(r"apic_deliver_irq dest (\d+) dest_mode (\d+) delivery_mode (\d+) vector (\d+) trigger_mode (\d+)")


@dataclass(frozen=True)
class Put:
    """Software stores a table entry, without a word to the unit."""

    index: int
    low: int
    high: int


@dataclass(frozen=True)
class Invalidate:
    """Software invalidates interrupt entries through the queue: all, or 2**`im` at `index`."""

    index: int | None = None
    im: int = 0


@dataclass(frozen=True)
class Message:
    """Device `device` (an index of `SOURCES`) sends a message, by its MSI capability or with its DMA engine."""

    device: int
    address: int
    data: int
    dma: bool = False


Operation = Put | Invalidate | Message


@dataclass(frozen=True)
class Scene:
    """What IRTA holds (a table at `TABLE` or `ABSENT`, its size, EIME), the bits of GCMD that are set, and what happens then."""

    operations: tuple[Operation, ...]
    irta: int = TABLE | 3
    gcmd: int = IRE | QIE

    @property
    def messages(self) -> list[Message]:
        return [o for o in self.operations if isinstance(o, Message)]


@dataclass(frozen=True)
class Outcome:
    """What became of a message: address and data behind the unit; what the APICs were told (destination 7:0, destination mode, delivery
    mode, vector, trigger mode); the fault record.  Each is None where there is none."""

    message: tuple[int, int] | None
    arrived: tuple[int, int, int, int, int] | None
    record: tuple[int, int] | None = None

    def __str__(self) -> str:
        what = f"{self.message[0]:#x} {self.message[1]:#x}" if self.message else "blocked"
        return what + (f", record {self.record[0]:#x} {self.record[1]:#x}" if self.record else "")


@dataclass
class _Queue:
    """Descriptors in slots, one after the other; `store` writes one, `ring` writes IQT."""

    store: Callable[[int, int], None]
    ring: Callable[[int], None]
    slot: int = field(default=0)

    def put(self, what: Invalidate) -> None:
        low = 4 if what.index is None else 4 | 1 << 4 | what.im << 27 | what.index << 32
        self.store(QUEUE + _SLOT * self.slot, low)
        self.slot = (self.slot + 1) % _QUEUE_SLOTS
        self.ring(_SLOT * self.slot)


def _switch_on(scene: Scene) -> Sequence[tuple[int, int, int]]:
    """Register writes (offset, width, value), one command each."""
    steps = [(GCMD, 4, 0), (IRTA, 8, scene.irta), (GCMD, 4, SIRTP), (IQT, 8, 0), (IQA, 8, QUEUE)]
    command = 0
    for bit in (QIE, CFI, IRE):
        if scene.gcmd & bit:
            command |= bit
            steps.append((GCMD, 4, command))
    return steps


class QemuInterrupts(Qtest):
    """A QEMU with an `intel-iommu` that remaps interrupts and four `edu`; `eim` with extended interrupt mode."""

    def __init__(self, eim: bool = False):
        unit = "intel-iommu,intremap=on," + ("eim=on,x-buggy-eim=on" if eim else "eim=off")
        devices = [unit, *(d + ",dma_mask=0xffffffffffffffff" if d.startswith("edu") else d for d in _DEVICES)]
        arguments = [word for d in devices for word in ("-device", d)] + [word for name in _TRACED for word in ("-trace", name)]
        super().__init__([*arguments, "-D", "trace", "-qmp", "unix:qmp,server,nowait"], RAM)
        for offset, value in ((0x18, 0x50500), (0x20, 0xFD40_FD40), (0x04, 6)):
            self.configure(0x30, offset, value)
        for source, bar in zip(SOURCES, _BARS, strict=True):
            self.configure(source, 0x10, bar)
            self.configure(source, 0x04, 6)
            self.exchange(f"writeq {bar + _COUNT:#x} 4")
        self.cap, self.ecap = self.exchange(f"readq {BASE + 8:#x}", f"readq {BASE + 16:#x}")
        self._record = BASE + frcd_offset(self.cap)
        self._trace = (self.folder / "trace").open()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._trace.close()
        super().__exit__(kind, value, trace)

    def monitor(self, command: str) -> str:
        """What the human monitor answers."""
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(self.folder / "qmp"))
            with s.makefile("rw") as stream:
                stream.readline()
                for request in ({"execute": "qmp_capabilities"},
                                {"execute": "human-monitor-command", "arguments": {"command-line": command}}):
                    stream.write(json.dumps(request) + "\n")
                    stream.flush()
                    reply: dict[str, Any] = json.loads(stream.readline())
        return str(reply["return"])

    def run(self, scene: Scene) -> list[Outcome]:
        """Plays a scene; the outcome of each of its messages."""
        self.write_memory(TABLE, bytes(0x1000))
        self.exchange(*(f"write{'l' if width == 4 else 'q'} {BASE + offset:#x} {value:#x}" for offset, width, value in _switch_on(scene)))
        queue = _Queue(self._store, self._ring)
        outcomes = []
        for operation in scene.operations:
            if isinstance(operation, Message):
                outcomes.append(self._send(operation))
            elif isinstance(operation, Put):
                at = TABLE + 16 * operation.index
                self.exchange(f"writeq {at:#x} {operation.low:#x}", f"writeq {at + 8:#x} {operation.high:#x}")
            else:
                queue.put(operation)
        return outcomes

    def _store(self, address: int, low: int) -> None:
        self.exchange(f"writeq {address:#x} {low:#x}", f"writeq {address + 8:#x} 0")

    def _ring(self, tail: int) -> None:
        self.exchange(f"writeq {BASE + IQT:#x} {tail:#x}")

    def _send(self, message: Message) -> Outcome:
        (self._by_dma if message.dma else self._by_capability)(message)
        low, high, _ = self.exchange(f"readq {self._record:#x}", f"readq {self._record + 8:#x}", f"writeq {self._record + 8:#x} {F:#x}")
        text = self._trace.read()
        remapped, delivered = _REMAPPED.findall(text), _DELIVERED.findall(text)
        return Outcome((int(remapped[-1][0], 16), int(remapped[-1][1], 16)) if remapped else None,
                       tuple(map(int, delivered[-1])) if delivered else None,  # type: ignore[arg-type]
                       (low, high) if high & F else None)

    def _by_capability(self, message: Message) -> None:
        """A 64-bit MSI capability lies at `_MSI`; raising an interrupt sends its message."""
        self.configure(SOURCES[message.device], _MSI + 4, message.address & 0xFFFF_FFFF, message.address >> 32, message.data)
        self.configure(SOURCES[message.device], _MSI, 1 << 16)
        bar = _BARS[message.device]
        self.exchange(f"writel {bar + _RAISE:#x} 1", f"writel {bar + _ACKNOWLEDGE:#x} 1")

    def _by_dma(self, message: Message) -> None:
        """The word goes into the device's buffer, then from there to the address."""
        bar = _BARS[message.device]
        self.exchange(f"writel {WORD:#x} {message.data:#x}")
        for source, destination, command in ((WORD, _BUFFER, 1), (_BUFFER, message.address, 3)):
            self.exchange(f"writeq {bar + _SOURCE:#x} {source:#x}", f"writeq {bar + _DESTINATION:#x} {destination:#x}",
                          f"writeq {bar + _COMMAND:#x} {command}")
            if not any(self.exchange(f"readq {bar + _COMMAND:#x}")[0] & 1 == 0 for _ in range(_PATIENCE)):
                raise RuntimeError(f"QEMU's transfer for {message} does not end: is its processor awake?")


_MEMORY = Memory([(0, RAM)])
MakeUnit = Callable[[UnitDescription, Memory, int], RemappingUnit]
Send = Callable[[RemappingUnit, Message], Interrupt | RemapFault]


def send(unit: RemappingUnit, message: Message) -> Interrupt | RemapFault:
    """A message to a unit of ours, which does not know how the device made it."""
    return unit.interrupt(SOURCES[message.device], message.address, message.data)


def run_ours(scene: Scene, cap: int, ecap: int, make: MakeUnit = RemappingUnit, sender: Send = send) -> list[Outcome]:
    """Plays a scene on a unit of ours, new from `make`, with QEMU's capability registers."""
    memory = _MEMORY
    memory.reset()
    unit = make(UnitDescription(BASE, cap, ecap), memory, 39)
    for offset, width, value in _switch_on(scene):
        unit.mmio_write(offset, width, value)
    queue = _Queue(memory.write64, lambda tail: unit.mmio_write(IQT, 8, tail))
    outcomes = []
    for operation in scene.operations:
        if isinstance(operation, Message):
            outcomes.append(_look(unit, sender(unit, operation)))
        elif isinstance(operation, Put):
            memory.write64(TABLE + 16 * operation.index, operation.low)
            memory.write64(TABLE + 16 * operation.index + 8, operation.high)
        else:
            queue.put(operation)
    return outcomes


def _look(unit: RemappingUnit, result: Interrupt | RemapFault) -> Outcome:
    """The outcome of a message; the fault record is read, then cleared, and nothing else may be pending."""
    at = frcd_offset(unit.description.cap)
    low, high = unit.mmio_read(at, 8), unit.mmio_read(at + 8, 8)
    unit.mmio_write(at + 8, 8, F)
    record = (low, high) if high & F else None
    if isinstance(result, RemapFault):
        return Outcome(None, None, record)
    r = result
    return Outcome(r.message, (r.destination & 0xFF, int(r.logical), r.delivery, r.vector, int(r.level)), record)
