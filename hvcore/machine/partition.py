"""The second processor, with the legacy devices of a PC of its own.

A partition has its own I/O ports: serial port, interrupt controllers, timers, CMOS and debug port are its own, at the usual addresses.
Memory, memory-mapped windows, PCI functions and time are the machine's.  The processor waits from power-on until somebody starts it.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .apic import LocalApic
from .bus import Bus, Window
from .cmos import Cmos
from .cpu import Cpu
from .ioapic import IoApic
from .pic import Pic
from .pit import Pit
from .pmtimer import PmTimer
from .printed import Printed
from .reset import ResetPorts
from .uart import Uart

if TYPE_CHECKING:
    from .pc import Pc

__all__ = ["Partition", "PartitionBus"]

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC


class PartitionBus(Bus):
    """I/O ports of a partition's own; memory-mapped windows are those of the machine's bus but for the first processor's APICs."""

    def __init__(self, machine: Bus):
        super().__init__(machine.memory)
        self._machine = machine

    def window(self, address: int) -> Window | None:
        """The machine's window that holds a physical address."""
        window = self._machine.window(address)
        return None if window is not None and isinstance(window.device, (LocalApic, IoApic)) else window


class Partition:
    """A processor of `pc` on ports of its own.  `serial` is what was sent on its COM1, `debug` what it wrote to port 0xE9.

    `halted`: it stands behind an HLT of the host; `parked`: nobody lets it run any more.  Its reset ports reset the whole machine, for
    there is one reset line.
    """

    def __init__(self, pc: "Pc"):
        self.memory, self.clock = pc.memory, pc.clock
        self.bus: Bus = PartitionBus(pc.bus)
        self.halted = self.parked = False
        self.serial = Printed()
        self.debug = Printed()
        self._legacy(pc)
        self.cpu = Cpu(pc.memory, self.bus, pc.clock, pc.public_only)
        self.interrupts.changed = self._interrupts_changed

    def _legacy(self, pc: "Pc") -> None:
        self.interrupts = Pic(self.bus)
        self.pit = Pit(self.bus, self.clock, self.interrupts)
        self.pm_timer = PmTimer(self.bus, self.clock)
        self.cmos = Cmos(self.bus, self.clock, ())
        self.uart = Uart(self.bus, self.interrupts, self._sent)
        self.reset_ports = ResetPorts(self.bus, pc.reset)
        self.bus.map_ports(0xE9, 1, self)
        self.bus.map_ports(CONFIG_ADDRESS, 1, pc.root)
        self.bus.map_ports(CONFIG_DATA, 4, pc.root)

    def _sent(self, data: bytes) -> None:
        self.serial.put(data)

    def port_read(self, port: int, width: int) -> int:
        """0xE9: the debug port is there."""
        return port

    def port_write(self, port: int, width: int, value: int) -> None:
        """One byte to the debug port."""
        self.debug.put(bytes((value & 0xFF,)))

    def type(self, data: Iterable[int]) -> None:
        """Input on its COM1."""
        self.uart.receive(bytes(data))

    def _interrupts_changed(self) -> None:
        self.cpu.pin(self.interrupts.pending() is not None)

    def close(self) -> None:
        """The processor never runs again."""
        self.cpu.close()
