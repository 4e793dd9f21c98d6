"""The interrupt controllers of QEMU's q35 and ours under the same accesses: QEMU's processor runs a player that carries them out."""

import struct
import subprocess
import tempfile
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

from hvcore.machine.apic import LocalApic
from hvcore.machine.bus import Bus
from hvcore.machine.clock import Clock
from hvcore.machine.firmware import IOAPIC_ADDRESS
from hvcore.machine.interrupts import InterruptSystem
from hvcore.machine.ioapic import IoApic
from hvcore.machine.memory import Memory
from hvcore.machine.pic import Pic
from hvcore.machine.uart import Uart
from hvcore.spec.apic import LOCAL_APIC_ADDRESS

__all__ = ["COM2", "LINE", "NOTHING", "Command", "Operation", "OurControllers", "run_qemu"]

Command = tuple["Operation", int, int]
COM2, LINE = 0x2F8, 3
"""The serial port by whose interrupt line the player raises and drops a line of the board."""
NOTHING = 0xFFFFFFFF
"""What TAKE answers where no interrupt came."""
_ROM, _RESET = 0xFFFF0000, 0xFFFFFF80
_SOURCE = Path(__file__).with_name("apic_player.S")
_DEADLINE = 120
_ARGUMENTS = ("-machine", "q35,hpet=off", "-accel", "tcg", "-icount", "shift=3,sleep=off", "-m", "64M", "-nodefaults", "-display", "none",
              "-chardev", "null,id=com1", "-device", "isa-serial,chardev=com1", "-chardev", "null,id=com2", "-device",
              "isa-serial,chardev=com2", "-chardev", "file,id=answers,path=answers", "-device", "isa-debugcon,chardev=answers", "-device",
              "isa-debug-exit,iobase=0x501", "-bios", "rom", "-device", "loader,file=script,addr=0x100000,force-raw=on")


class Operation(IntEnum):
    """What the player does with its arguments a and b."""

    LOAD = 0
    STORE = 1
    TAKE = 2
    INPUT = 3
    OUTPUT = 4
    OUTPUT4 = 5
    MEASURE = 6


def run_qemu(commands: Sequence[Command]) -> list[int]:
    """What each command answered on a q35 fresh from power-on, whose firmware is the player."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _build(folder)
        (folder / "script").write_bytes(struct.pack("<I", len(commands)) + b"".join(struct.pack("<III", *c) for c in commands))
        subprocess.run(["qemu-system-x86_64", *_ARGUMENTS], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
                       timeout=_DEADLINE, check=False)
        return [value for value, in struct.iter_unpack("<I", (folder / "answers").read_bytes())]


def _build(folder: Path) -> None:
    """The player as a ROM of 64 KiB below 4 GiB."""
    subprocess.run(["gcc", "-m32", "-c", "-o", folder / "player.o", _SOURCE], check=True)
    subprocess.run(["ld", "-m", "elf_i386", "--oformat", "binary", f"-Ttext={_ROM:#x}", f"--section-start=.reset={_RESET:#x}", "-e",
                    "start", "-o", folder / "rom", folder / "player.o"], check=True)


class OurControllers:
    """Ours, with what reset itself leaves of LINT0: masked."""

    def __init__(self) -> None:
        self.bus, self.clock = Bus(Memory([(0, 4096)])), Clock()
        self.apic = LocalApic(self.clock)
        self.system = InterruptSystem(Pic(self.bus), IoApic(self._send), self.apic)
        self.bus.map_mmio(LOCAL_APIC_ADDRESS, 4096, "local APIC", self.apic)
        self.bus.map_mmio(LOCAL_APIC_ADDRESS + 4096, (1 << 20) - 4096, "messages", self)
        self.bus.map_mmio(IOAPIC_ADDRESS, 4096, "I/O APIC", self.system.ioapic)
        self.uart = Uart(self.bus, self.system, lambda data: None, COM2, LINE)

    def _send(self, address: int, data: int) -> None:
        self.system.message(address, data)

    def mmio_read(self, offset: int, width: int) -> int:
        """Nobody reads what is a place for messages."""
        return 0

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """A store there is a message, as on QEMU."""
        self.system.message(LOCAL_APIC_ADDRESS + 4096 + offset, value)

    def run(self, commands: Sequence[Command]) -> list[int]:
        """The same answers."""
        return [self._one(*command) for command in commands]

    def _one(self, operation: Operation, a: int, b: int) -> int:
        if operation is Operation.LOAD:
            return self.bus.read(a, 4)
        if operation is Operation.STORE:
            self.bus.write(a, 4, b)
        elif operation is Operation.TAKE:
            return NOTHING if self.system.pending() is None else self.system.acknowledge()
        elif operation is Operation.INPUT:
            return self.bus.port_read(a, 1)
        elif operation is Operation.OUTPUT:
            self.bus.port_write(a, 1, b)
        return 0
