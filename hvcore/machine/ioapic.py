"""The I/O APIC of a PC (Intel 82093AA data sheet; ICH9 data sheet, section 13.5): interrupt lines become messages.

    line -> redirection table entry: masked? level-triggered and still in service? -> message to 0xFEExxxxx

The board tells whether a line is asserted, so an entry's polarity only is a bit that software reads back.  Input 0 is not connected.
"""

from collections.abc import Callable

from ..spec.apic import IOAPIC_INDIRECT, IOAPIC_PINS, RTE, RTE_RESET, entry_message
from ..spec.interrupts import DeliveryMode

__all__ = ["SIZE", "IoApic"]

SIZE = 0x1000
"""Bytes of its window."""

_SELECT, _WINDOW, _END = 0x00, 0x10, 0x40
_ID, _VERSION, _ARBITRATION = IOAPIC_INDIRECT
_TABLE = 0x10
_LEVEL, _REMOTE_IRR, _MASKED = RTE["TM"].mask, RTE["REMOTE_IRR"].mask, RTE["MASK"].mask
_WRITABLE = sum(f.mask for f in RTE if f.name not in ("REMOTE_IRR", "DS"))
_FIXED = (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY)


class IoApic:
    """24 inputs.  `send(address, data)` carries a message to the processors; `number` is the id in its register.

    `lines` are the levels of the inputs, `table` the entries; both may be looked at.
    """

    def __init__(self, send: Callable[[int, int], None], number: int = 0):
        self._send = send
        self.lines = self._selected = 0
        self.id = number << 24 & _ID.write_mask
        self.table = [RTE_RESET] * IOAPIC_PINS

    def set_pin(self, pin: int, level: bool) -> None:
        """An input is asserted or released.  An edge at a masked input is lost."""
        bit = 1 << pin
        if bool(self.lines & bit) == level:
            return
        self.lines ^= bit
        if level and not self.table[pin] & (_MASKED | _REMOTE_IRR):
            self._deliver(pin)

    def _deliver(self, pin: int) -> None:
        """Sends an entry's message.  A level-triggered one waits for its EOI before it is sent again."""
        entry = self.table[pin]
        if entry & _LEVEL and RTE.get(entry, "DLM") in _FIXED:
            self.table[pin] = entry | _REMOTE_IRR
        self._send(*entry_message(entry))

    def _service(self, pin: int) -> None:
        """A level that is high interrupts as soon as nothing holds it back."""
        entry = self.table[pin]
        if entry & _LEVEL and self.lines >> pin & 1 and not entry & (_MASKED | _REMOTE_IRR):
            self._deliver(pin)

    def end(self, vector: int) -> None:
        """EOI of a level-triggered interrupt, by its vector."""
        for pin, entry in enumerate(self.table):
            if entry & _REMOTE_IRR and entry & 0xFF == vector:
                self.table[pin] = entry & ~_REMOTE_IRR
                self._service(pin)

    # Registers

    def mmio_read(self, offset: int, width: int) -> int:
        """A load: the selector, or the register that it names."""
        at = offset & 0xFF
        return self._selected if at == _SELECT else self.register(self._selected) if at == _WINDOW else 0

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """A store."""
        at = offset & 0xFF
        if at == _SELECT:
            self._selected = value & 0xFF
        elif at == _WINDOW and width == 4:
            self._write(self._selected, value)
        elif at == _END:
            self.end(value & 0xFF)

    def register(self, number: int) -> int:
        """What software reads after it selected `number`, without side effects."""
        if number in (_ID.offset, _ARBITRATION.offset):
            return self.id
        if number == _VERSION.offset:
            return _VERSION.reset
        pin = number - _TABLE >> 1
        return self.table[pin] >> 32 * (number & 1) & 0xFFFFFFFF if 0 <= pin < IOAPIC_PINS else 0

    def _write(self, number: int, value: int) -> None:
        pin = number - _TABLE >> 1
        if number == _ID.offset:
            self.id = value & _ID.write_mask
        elif 0 <= pin < IOAPIC_PINS:
            shift = 32 * (number & 1)
            self._set_entry(pin, self.table[pin] & ~(0xFFFFFFFF << shift) | value << shift)

    def _set_entry(self, pin: int, entry: int) -> None:
        """One that is edge-triggered has nothing in service."""
        kept = self.table[pin] & _REMOTE_IRR if entry & _LEVEL else 0
        self.table[pin] = entry & _WRITABLE | kept
        self._service(pin)
