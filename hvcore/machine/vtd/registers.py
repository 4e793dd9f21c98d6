"""The register page of a remapping unit: bytes, written by the rules of their declarations; and the interrupts that registers describe."""

from collections.abc import Callable, Iterable

from ...errors import BadMachine
from ...spec.bits import Register, align_up
from ...spec.vtd import FECTL

__all__ = ["EventRegisters", "RegisterFile"]

_IM, _IP = FECTL["IM"].mask, FECTL["IP"].mask


class RegisterFile:
    """Registers by name (`file["GSTS"]`) over one bytearray of whole 4 KiB pages.

    Raises `BadMachine` where two registers overlap, which only capability words of no real unit lead to.
    """

    def __init__(self, registers: Iterable[Register], where: str):
        self.registers = tuple(registers)
        self._named = {r.name: r for r in self.registers}
        self._words: dict[int, Register] = {}
        for register in self.registers:
            self._claim(register, where)
        self.bytes = bytearray(align_up(max(r.offset + r.size for r in self.registers), 4096))
        self._shown = bytearray(b"\xff" * len(self.bytes))
        for r in self.registers:
            self._shown[r.offset:r.offset + r.size] = (~r.hidden & (1 << r.width) - 1).to_bytes(r.size, "little")
        self.reset()

    def _claim(self, register: Register, where: str) -> None:
        for offset in range(register.offset, register.offset + register.size, 4):
            if other := self._words.get(offset):
                raise BadMachine(f"{where}: register {register.name} lies over {other.name} at offset {offset:#x}, "
                                 "so its cap (FRO, NFR) or ecap (IRO) is wrong: give the values its kernel log prints")
            self._words[offset] = register

    def reset(self) -> None:
        """Every byte as at power-on."""
        self.bytes[:] = bytes(len(self.bytes))
        for register in self.registers:
            self[register.name] = register.reset

    def __getitem__(self, name: str) -> int:
        register = self._named[name]
        return int.from_bytes(self.bytes[register.offset:register.offset + register.size], "little")

    def __setitem__(self, name: str, value: int) -> None:
        register = self._named[name]
        self.bytes[register.offset:register.offset + register.size] = value.to_bytes(register.size, "little")

    def at(self, offset: int) -> Register | None:
        """The register that holds the 32-bit word at `offset`."""
        return self._words.get(offset)

    def peek(self, offset: int, width: int) -> int:
        """`width` bytes as software reads them, little-endian: zeros for what is write-only and beyond the page."""
        shown = int.from_bytes(self._shown[offset:offset + width], "little")
        return int.from_bytes(self.bytes[offset:offset + width], "little") & shown

    def merged(self, register: Register, offset: int, width: int, value: int) -> int:
        """What a write of `width` bytes at `offset` amounts to as a write of all of `register`: the rest of it keeps its writable bits."""
        shift = 8 * (offset - register.offset)
        untouched = ~((1 << 8 * width) - 1 << shift)
        return self[register.name] & register.write_mask & untouched | value << shift


class EventRegisters:
    """An interrupt that the unit itself sends: control, data, address and upper address under a prefix, `FE` or `IE` (sections 10.4.10-13).

    `send(address, data)` carries the message.  While IM is set a raised event waits in IP.
    """

    def __init__(self, file: RegisterFile, prefix: str, send: Callable[[int, int], None]):
        self.file, self.prefix, self.send = file, prefix, send

    def _get(self, name: str) -> int:
        return self.file[self.prefix + name]

    def raise_event(self) -> None:
        """Sends the message, or remembers it while masked."""
        if self._get("CTL") & _IM:
            self.file[self.prefix + "CTL"] |= _IP
        else:
            self.withdraw()
            self.send(self._get("UADDR") << 32 | self._get("ADDR"), self._get("DATA"))

    def withdraw(self) -> None:
        """Clears IP: sent, or software has dealt with the cause."""
        self.file[self.prefix + "CTL"] &= ~_IP

    def control_written(self) -> None:
        """After a write of the control register: an event that waited goes out once it is unmasked."""
        if self._get("CTL") & (_IM | _IP) == _IP:
            self.raise_event()
