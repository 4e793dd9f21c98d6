"""A card that is at work before the core: whoever had the machine before (firmware, a boot loader, a guest) left it running.

It reads where the core's key will lie, again and again, as a card with a program of its own does, until its driver in the guest comes for
what it holds.  It reaches the machine as software does: configuration space by ports, registers by MMIO.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..machine.edu import BUFFER
from ..machine.firmware import read_e820
from ..spec.pci import BAR0, COMMAND
from ..vmm.heap import Panic
from ..vmm.layout import SECRET_SIZE, Part
from ..vmm.memmap import choose_region
from .earlydrive import start_drive

if TYPE_CHECKING:
    from ..machine.pc import Pc

__all__ = ["PERIOD_NS", "start_card"]

PERIOD_NS = 300_000
"""Virtual nanoseconds between two reads; each takes 100 us."""
_PERIODS = 200
_SOURCE, _DESTINATION, _COUNT, _COMMAND = 0x80, 0x88, 0x90, 0x98
_MEMORY_AND_MASTER = 6
_CONFIG_ADDRESS, _CONFIG_DATA = 0xCF8, 0xCFC


def start_card(pc: "Pc", size: int, device: str | None) -> None:
    """Sets the machine's first edu device and its NVMe drive to work; `size` is that of the core's region, which everybody can foretell.

    `device` is `edu` or `nvme` for that one only.  Where neither is, or the machine has no room for a core, nothing happens.
    """
    try:
        target = choose_region(read_e820(pc.memory), size) + Part.SECRET
    except Panic:
        return
    edus, drives = pc.root.find("edu"), pc.root.find("nvme")
    if edus and device != "nvme":
        _Card(pc, _registers(pc, edus[0].source), target).go()
    if drives and device != "edu":
        start_drive(pc, _registers(pc, drives[0].source), target, PERIOD_NS, _PERIODS)


def _registers(pc: "Pc", source: int) -> int:
    """The function's BAR 0 (host-physical), with memory decoding and bus mastering on."""
    def select(offset: int) -> None:
        pc.bus.port_write(_CONFIG_ADDRESS, 4, 1 << 31 | source << 8 | offset)

    select(COMMAND)
    pc.bus.port_write(_CONFIG_DATA, 2, _MEMORY_AND_MASTER)
    select(BAR0)
    low = pc.bus.port_read(_CONFIG_DATA, 4)
    select(BAR0 + 4)
    high = pc.bus.port_read(_CONFIG_DATA, 4) if low & 4 else 0
    return high << 32 | low & ~0xF


@dataclass
class _Card:
    """The edu device with a program: read the key's place into its own buffer, every `PERIOD_NS`, `left` times more."""

    pc: "Pc"
    registers: int
    target: int
    left: int = _PERIODS

    def go(self) -> None:
        """One read, and the next one after a while; a driver that programs the card in between ends its program."""
        if self.left < _PERIODS and self.pc.bus.read(self.registers + _SOURCE, 8) != self.target:
            return
        for register, value in ((_SOURCE, self.target), (_DESTINATION, BUFFER), (_COUNT, SECRET_SIZE), (_COMMAND, 1)):
            self.pc.bus.write(self.registers + register, 8, value)
        self.left -= 1
        if self.left:
            self.pc.clock.after(PERIOD_NS, self.go)
