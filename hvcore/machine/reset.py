"""The ways a PC is reset by software: the keyboard controller, port 0xCF9.  Beside them the POST code port."""

from collections.abc import Callable

from .bus import Bus
from .ports import ByteDevice

__all__ = ["RESET_CONTROL", "RESET_VALUE", "ResetPorts"]

POST_CODE, KEYBOARD_DATA, KEYBOARD_COMMAND, RESET_CONTROL = 0x80, 0x60, 0x64, 0xCF9
_PORTS = (POST_CODE, KEYBOARD_DATA, KEYBOARD_COMMAND, RESET_CONTROL)
RESET_VALUE = 6
"""Written to `RESET_CONTROL`, it resets the whole machine."""
_PULSE_RESET = 0xFE
_RESET_CPU = 1 << 2


class ResetPorts(ByteDevice):
    """Calls `on_reset()` when software asks for a reset: command 0xFE to the keyboard controller, or a rise of bit 2 in port 0xCF9.

    No keyboard is there: its status and data read 0, so that nobody waits for it.  Writes to port 0x80 only leave `post_code`.
    """

    def __init__(self, bus: Bus, on_reset: Callable[[], None]):
        self._on_reset = on_reset
        self.reset()
        for port in _PORTS:
            bus.map_ports(port, 1, self)

    def reset(self) -> None:
        """Fresh registers."""
        self._registers = dict.fromkeys(_PORTS, 0)

    @property
    def post_code(self) -> int:
        """The last byte written to port 0x80."""
        return self._registers[POST_CODE]

    def byte_read(self, port: int) -> int:
        """IN."""
        return self._registers.get(port, 0xFF)

    def byte_write(self, port: int, value: int) -> None:
        """OUT."""
        if port in (POST_CODE, RESET_CONTROL):
            old, self._registers[port] = self._registers[port], value
            if port == RESET_CONTROL and value & ~old & _RESET_CPU:
                self._on_reset()
        elif port == KEYBOARD_COMMAND and value == _PULSE_RESET:
            self._on_reset()
