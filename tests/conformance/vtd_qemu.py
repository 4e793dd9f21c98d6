"""QEMU's `intel-iommu`, playing a scene.

`edu` devices make the DMA: their transfer takes 100 ms of virtual time, which passes as soon as nothing else is to be done.  The monitor
resets the machine before each scene and tells which interrupts have arrived at the local APIC.
"""

import base64
import json
import re
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from qtest import Qtest
from vtd_scene import (
    BASE,
    DUMP,
    FSTS,
    GCMD,
    OWN,
    PAGE,
    PAGE_END,
    PALETTE,
    RAM,
    REQUESTERS,
    RTADDR,
    SLOT,
    SLOTS,
    Ask,
    F,
    Log,
    Look,
    Moved,
    Poke,
    Registers,
    Result,
    Scene,
    Variant,
    Write,
    changes,
    landings,
    pages_of,
    palette,
    strays,
    switch_on,
)

from hvcore.spec.vtd import frcd_offset

__all__ = ["QemuUnit"]

_DEVICES = ("edu,addr=3.0,multifunction=on", "edu,addr=3.5", "edu,addr=4.0", "pcie-root-port,id=rp,addr=6,chassis=1",
            "edu,bus=rp,addr=0", "pcie-pci-bridge,id=express,addr=7", "edu,bus=express,addr=3", "i82801b11-bridge,id=conventional,addr=8",
            "edu,bus=conventional,addr=2")
_FUNCTIONS = (0x0018, 0x001D, 0x0020, 0x0500, 0x0618, 0x0710)
"""Where the `edu` devices are in configuration space."""
_BRIDGES = ((0x30, 5, 0xFD40), (0x38, 6, 0xFD50), (0x40, 7, 0xFD60))
"""The bridges: function, secondary bus, window of 1 MiB (upper 16 bits)."""
_BARS = (0xFD00_0000, 0xFD10_0000, 0xFD20_0000, 0xFD40_0000, 0xFD50_0000, 0xFD60_0000)
"""Where the registers of the `edu` devices are put."""
_SOURCE, _DESTINATION, _COUNT, _COMMAND, _BUFFER = 0x80, 0x88, 0x90, 0x98, 0x40000
_READ, _WRITE = 1, 3
_IRR = re.compile(r"^IRR\s+(.*)$", re.MULTILINE)


class QemuUnit(Qtest):
    """A QEMU with an `intel-iommu` and an `edu` per entry of `REQUESTERS`."""

    def __init__(self, variant: Variant, arguments: Sequence[str] = ()):
        devices = [variant.device] + [d + ",dma_mask=0xffffffffffffffff" * d.startswith("edu") for d in _DEVICES]
        super().__init__(["-qmp", "unix:monitor,server=on,wait=off", *[word for d in devices for word in ("-device", d)], *arguments], RAM)
        self._due = ""
        self.cap, self.ecap = self.read(0x08, 8), self.read(0x10, 8)
        record = BASE + frcd_offset(self.cap)
        self._record_high = record + 8
        self._look = f"readq {record:#x}\nreadq {record + 8:#x}\nreadl {BASE + FSTS:#x}\n"
        self._monitor = socket.socket(socket.AF_UNIX)
        self._monitor.settimeout(60)
        self._monitor.connect(str(self.folder / "monitor"))
        self._answers = self._monitor.makefile("r")
        self._answers.readline()
        self._command("qmp_capabilities")
        for device in range(len(REQUESTERS)):
            self.write_memory(PALETTE + device * PAGE, palette(device))

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._answers.close()
        self._monitor.close()
        super().__exit__(kind, value, trace)

    # The sockets.

    def _send(self, lines: str) -> list[int]:
        """Sends commands, after those that are due; what each answered (0 where it was plain OK)."""
        due, self._due = self._due, ""
        self._socket.sendall((due + lines).encode())
        values = []
        for _ in range(due.count("\n") + lines.count("\n")):
            words = self._replies.readline().split()
            if not words or words[0] != b"OK":
                raise RuntimeError(f"QEMU answered {words} to one of:\n{due}{lines}")
            values.append(int(words[1], 16) if len(words) > 1 else 0)
        return values[due.count("\n"):]

    def _read_memory(self, address: int, length: int) -> bytes:
        self._send("")
        self._socket.sendall(f"b64read {address:#x} {length:#x}\n".encode())
        return base64.b64decode(self._replies.readline().split()[1])

    def _command(self, name: str, **arguments: str) -> Any:
        """What the monitor returns; events are passed over."""
        self._monitor.sendall((json.dumps({"execute": name, "arguments": arguments}) + "\n").encode())
        while "return" not in (answer := json.loads(self._answers.readline())):
            pass
        return answer["return"]

    def read(self, offset: int, width: int) -> int:
        """A register of the unit."""
        return self._send(f"read{'l' if width == 4 else 'q'} {BASE + offset:#x}\n")[0]

    def write(self, offset: int, width: int, value: int) -> None:
        """Writes a register of the unit."""
        self._send(f"write{'l' if width == 4 else 'q'} {BASE + offset:#x} {value:#x}\n")

    def vectors(self) -> frozenset[int]:
        """Interrupts that the processor's APIC has received since the machine was reset."""
        found = _IRR.search(self._command("human-monitor-command", **{"command-line": "info lapic"}))
        assert found, "QEMU's monitor shows no IRR"
        return frozenset(int(word) for word in re.findall(r"\d+", found[1]))

    # The machine.

    def _reset(self) -> None:
        """Power-on; a mark in a register tells when it is done.  Memory is as it was."""
        self.write(RTADDR, 8, PAGE)
        self._command("system_reset")
        while self.read(RTADDR, 8):
            pass
        for function, bus, window in _BRIDGES:
            for offset, value in ((0x18, bus << 16 | bus << 8), (0x20, window << 16 | window), (0x04, 6)):
                self.configure(function, offset, value)
        for function, bar in zip(_FUNCTIONS, _BARS, strict=True):
            self.configure(function, 0x10, bar)
            self.configure(function, 0x04, 6)

    def _buffers(self, command: int, memory: int) -> None:
        """The whole buffer of every device from or to its page at `memory`, with translation off."""
        ends = (_DESTINATION, _SOURCE) if command == _READ else (_SOURCE, _DESTINATION)
        for device, bar in enumerate(_BARS):
            page = memory + device * PAGE
            self._due += (f"writeq {bar + ends[0]:#x} {_BUFFER:#x}\nwriteq {bar + ends[1]:#x} {page:#x}\n"
                          f"writeq {bar + _COUNT:#x} {SLOTS * SLOT}\nwriteq {bar + _COMMAND:#x} {command}\n")
        for bar in _BARS:
            self._finished(bar, "")
        self._due += "".join(f"writeq {bar + _COUNT:#x} 8\n" for bar in _BARS)

    def _finished(self, bar: int, look: str) -> list[int]:
        """What `look` reads once the transfer of a device is over."""
        question = f"readq {bar + _COMMAND:#x}\n{look}"
        while (answers := self._send(question))[0] & 1:
            pass
        return answers[1:]

    def _ask(self, ask: Ask, place: int) -> tuple[int, int, int]:
        """One transfer; the fault record (low, high) and FSTS after it."""
        bar, ends = _BARS[ask.device], (_BUFFER + place, ask.iova) if ask.write else (ask.iova, _BUFFER + place)
        count = "" if ask.length == 8 else f"writeq {bar + _COUNT:#x} {ask.length}\n"
        self._due += count + (f"writeq {bar + _SOURCE:#x} {ends[0]:#x}\nwriteq {bar + _DESTINATION:#x} {ends[1]:#x}\n"
                              f"writeq {bar + _COMMAND:#x} {_WRITE if ask.write else _READ}\n")
        low, high, status = self._finished(bar, self._look)
        if count:
            self._due += f"writeq {bar + _COUNT:#x} 8\n"
        if ask.sweep and (high & F or status & 1):
            self._due += f"writeq {self._record_high:#x} {F:#x}\nwritel {BASE + FSTS:#x} 1\n"
        return low, high, status

    def _watched(self, ask: Ask, place: int) -> tuple[tuple[int, int, int], Moved | None]:
        """A transfer, and what it changed in memory."""
        regions = [*((r.start, len(r)) for r in OWN), *strays([ask])]
        before = [self._read_memory(*region) for region in regions]
        record = self._ask(ask, place)
        return record, changes((start, old, self._read_memory(start, length)) for (start, length), old in zip(regions, before, strict=True))

    def _registers(self, look: Look) -> Registers:
        letter, step = ("l", 4) if look.width == 4 else ("q", 8)
        values = self._send("".join(f"read{letter} {BASE + at:#x}\n" for at in range(0, PAGE_END, step)))
        words = [low | high << 32 for low, high in zip(values[::2], values[1::2], strict=True)] if step == 4 else values
        return Registers(tuple(words), self.vectors() if look.apic else None)

    # A scene.

    def run(self, scene: Scene) -> list[Result]:
        """Plays a scene; what came of its requests and looks."""
        self._start(scene)
        log, asks = Log(scene), iter(enumerate(scene.places))
        for operation in scene.operations:
            if isinstance(operation, Poke):
                self._due += f"writeq {operation.address:#x} {operation.value:#x}\n"
            elif isinstance(operation, Write):
                self._write(operation)
            elif isinstance(operation, Look):
                log.seen.append(self._registers(operation))
            else:
                self._play(operation, *next(asks), log)
        return self._finish(log)

    def _play(self, ask: Ask, number: int, place: int, log: Log) -> None:
        if ask.write and not ask.word:
            record, log.moved[number] = self._watched(ask, place)
        else:
            record = self._ask(ask, place)
        log.seen.append(record)

    def _write(self, write: Write) -> None:
        self._due += f"write{'l' if write.width == 4 else 'q'} {BASE + write.offset:#x} {write.value:#x}\n"

    def _start(self, scene: Scene) -> None:
        self._reset()
        self._send("")
        for address, data in pages_of(scene).items():
            self.write_memory(address, data)
        self._buffers(_READ, PALETTE)
        for write in () if scene.root is None else switch_on(scene.root):
            self._write(write)

    def _finish(self, log: Log) -> list[Result]:
        self.write(GCMD, 4, 0)
        self._buffers(_WRITE, DUMP)
        dump = self._read_memory(DUMP, PAGE * len(REQUESTERS))
        landed = landings((r.start, self._read_memory(r.start, len(r))) for r in OWN)
        landed |= self._clear([p for p, _ in strays(a for a in log.scene.requests if a.word)])
        for place, length in strays(a for a in log.scene.requests if not a.word):
            self._due += f"memset {place:#x} {length:#x} 0\n"
        return log.results([dump[at:at + PAGE] for at in range(0, len(dump), PAGE)], landed)

    def _clear(self, places: list[int]) -> dict[tuple[int, int], int]:
        """What landed in words of memory, which are zero from now on."""
        words = self._send("".join(f"readq {p:#x}\n" for p in places))
        self._due += "".join(f"writeq {p:#x} 0\n" for p, word in zip(places, words, strict=True) if word)
        return landings((p, np.uint64(word).tobytes()) for p, word in zip(places, words, strict=True) if word)
