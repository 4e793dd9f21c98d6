"""The local APIC of a processor (Intel SDM volume 3, chapter 10; AMD64 APM volume 2, chapter 16), xAPIC mode.

    a message or a local interrupt -> IRR -> above TPR and what is in service? -> acknowledged: ISR -> EOI

There is one processor, so a message arrives here or nowhere.  What only another part of a processor could take (NMI, SMI, INIT,
start-up) is counted by its delivery mode in `lost`.
"""

from collections.abc import Callable

from ..spec.apic import DFR, ESR, ICR, LOCAL, LVT, SVR, divisor
from ..spec.interrupts import MSI_ADDRESS, MSI_DATA, DeliveryMode
from .apictimer import ApicTimer
from .clock import Clock

__all__ = ["SIZE", "LocalApic"]

SIZE = 0x1000
"""Bytes of the page at which a processor finds its local APIC."""

_AT = {r.offset >> 4: r for r in LOCAL}
_INDEX = {r.name: i for i, r in _AT.items()}
_LVTS = range(_INDEX["LVT_TIMER"], _INDEX["LVT_ERROR"] + 1)
_TPR, _SVR, _TIMER, _LINT0, _ERROR = (_INDEX[n] for n in ("TPR", "SVR", "LVT_TIMER", "LVT_LINT0", "LVT_ERROR"))
_ID, _LDR, _DFR, _ICR_LOW, _ICR_HIGH, _ESR = (_INDEX[n] for n in ("ID", "LDR", "DFR", "ICR_LOW", "ICR_HIGH", "ESR"))
_PPR, _EOI, _INITIAL_COUNT, _CURRENT_COUNT, _DIVIDE = (_INDEX[n] for n in ("PPR", "EOI", "INITIAL_COUNT", "CURRENT_COUNT", "DIVIDE"))
_ENABLED, _MASKED, _PERIODIC = SVR["EN"].mask, LVT["MASK"].mask, LVT["MODE"].mask
_WRITE_MASKS = {i: r.write_mask for i, r in _AT.items()}
_LOGICAL, _LEVEL = MSI_ADDRESS["DM"].mask, MSI_DATA["TM"].mask
_FIXED = (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY)
_FIRST_VECTOR, _ALL, _CLUSTER = 16, 0xFF, 0
_BY_DESTINATION, _SELF, _ALL_OTHERS = 0, 1, 3


def _nothing() -> None:
    """Nobody asks whether an interrupt waits."""


def _unheard(vector: int) -> None:
    """Nobody listens to an EOI."""


class LocalApic:
    """The local APIC with the id `number`, in the time of `clock`.

    `irr`, `isr` and `tmr` have a bit for each vector.  `deliverable` is the vector that the processor would take now, None where there is
    none; `changed` is called after everything that may have changed it but `acknowledge`.  `ended` is told the vector of a
    level-triggered interrupt at its EOI.  `passes_pic`: LINT0 lets the 8259 pair's interrupts through; `edge_from_pic`: LINT0 makes a
    vector of its own of them.  After reset the APIC is off by software (SVR) and everything is masked but LINT0, which passes the 8259
    pair: what reset and firmware leave of the boot processor.
    """

    def __init__(self, clock: Clock, number: int = 0):
        self.changed: Callable[[], None] = _nothing
        self.ended: Callable[[int], None] = _unheard
        self.lost: dict[int, int] = {}
        self.irr = self.isr = self.tmr = 0
        self._detected = 0
        self.deliverable: int | None = None
        self.timer = ApicTimer(clock, self._timer_expired)
        self._values = {i: r.reset for i, r in _AT.items()}
        self._values[_ID] = number << 24
        self._values[_LINT0] = LVT.make(DLM=DeliveryMode.EXTINT)
        self._lint0()

    # Registers

    def register(self, name: str) -> int:
        """A register's value by its name in `spec.apic.LOCAL`, without side effects."""
        return self._read(_INDEX[name])

    def _read(self, index: int) -> int:
        if index == _PPR:
            return self.priority
        if index == _CURRENT_COUNT:
            return self.timer.current()
        if 0x10 <= index < 0x28:
            bits = (self.isr, self.tmr, self.irr)[index - 0x10 >> 3]
            return bits >> 32 * (index & 7) & 0xFFFFFFFF
        return self._values.get(index, 0)

    def mmio_read(self, offset: int, width: int) -> int:
        """A load; what lies beside the 32 bits of a register reads 0, and a reserved register is an error."""
        index = offset >> 4
        if index not in _AT:
            self._error(ESR["ILLEGAL_REGISTER"].mask)
            self.changed()
            return 0
        return self._read(index) >> 8 * (offset & 0xF)

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """A store of 4 bytes at a multiple of 16; others are lost."""
        if width != 4 or offset & 0xF:
            return
        index = offset >> 4
        reaction = _REACTIONS.get(index)
        if reaction is not None:
            reaction(self, value)
        elif index in _LVTS:
            self._set_local(index, value)
        elif index in _AT:
            self._keep(index, value)
        else:
            self._error(ESR["ILLEGAL_REGISTER"].mask)
        self.changed()

    def _keep(self, index: int, value: int) -> None:
        """A register that only holds what its mask takes."""
        writable = _WRITE_MASKS[index]
        self._values[index] = self._values[index] & ~writable | value & writable

    def _set_priority(self, value: int) -> None:
        self._values[_TPR] = value & 0xFF
        self._judge()

    def _set_spurious(self, value: int) -> None:
        """Off by software, every local interrupt is masked."""
        self._keep(_SVR, value)
        if not value & _ENABLED:
            for index in _LVTS:
                self._set_local(index, self._values[index])
        self._judge()

    def _set_local(self, index: int, value: int) -> None:
        """An entry of the local vector table: while the APIC is off by software it stays masked."""
        self._keep(index, value | (0 if self.enabled else _MASKED))
        if index == _TIMER:
            self.timer.set_mode(bool(value & _PERIODIC), not self._values[_TIMER] & _MASKED)
        elif index == _LINT0:
            self._lint0()

    def _lint0(self) -> None:
        entry = self._values[_LINT0]
        mode = None if entry & _MASKED else LVT.get(entry, "DLM")
        self.passes_pic, self.edge_from_pic = mode == DeliveryMode.EXTINT, mode == DeliveryMode.FIXED

    def _start_timer(self, value: int) -> None:
        self._values[_INITIAL_COUNT] = value
        self.timer.start(value)

    def _set_divider(self, value: int) -> None:
        self._keep(_DIVIDE, value)
        self.timer.set_divisor(divisor(value))

    @property
    def enabled(self) -> bool:
        """Whether software has switched the APIC on."""
        return bool(self._values[_SVR] & _ENABLED)

    # Errors

    def _error(self, bits: int) -> None:
        """An error is detected: its interrupt comes now, software sees it in ESR after its next write there."""
        new = bits & ~self._detected
        self._detected |= bits
        if new:
            self._local(_ERROR)

    def _show_errors(self, _value: int) -> None:
        self._values[_ESR], self._detected = self._detected, 0

    # What waits, what is in service

    @property
    def priority(self) -> int:
        """PPR: the task's priority or that of what is in service, the higher one."""
        task, serving = self._values[_TPR], self.isr.bit_length() - 1
        return task if serving < 0 or task >> 4 >= serving >> 4 else serving & 0xF0

    def _judge(self) -> None:
        """What the processor would take now."""
        waiting = self.irr.bit_length() - 1
        taken = waiting >= 0 and waiting >> 4 > self.priority >> 4 and self.enabled
        self.deliverable = waiting if taken else None

    def accept(self, vector: int, level: bool = False) -> None:
        """A fixed interrupt arrives.  One that waits already is merged with it; off by software, the APIC takes none."""
        if not self.enabled:
            return
        if vector < _FIRST_VECTOR:
            self._error(ESR["RECEIVED_VECTOR"].mask)
            return
        bit = 1 << vector
        self.irr |= bit
        self.tmr = self.tmr | bit if level else self.tmr & ~bit
        self._judge()

    def acknowledge(self) -> int:
        """The processor takes the interrupt: its vector, now in service; the spurious one where there is none."""
        vector = self.deliverable
        if vector is None:
            return SVR.get(self._values[_SVR], "V")
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector
        self._judge()
        return vector

    def _end(self, _value: int) -> None:
        """EOI: what was in service with the highest vector is over."""
        serving = self.isr.bit_length() - 1
        if serving < 0:
            return
        self.isr ^= 1 << serving
        self._judge()
        if self.tmr >> serving & 1:
            self.ended(serving)

    # Where interrupts come from

    def _timer_expired(self) -> None:
        self._local(_TIMER)
        self.changed()

    def from_pic(self) -> None:
        """The 8259 pair's output rises: LINT0, where it is a fixed interrupt.  Its trigger mode is taken for edge."""
        if self.edge_from_pic:
            self._local(_LINT0)

    def _local(self, index: int) -> None:
        """A local interrupt occurs."""
        entry = self._values[index]
        if entry & _MASKED:
            return
        mode = entry >> 8 & 7
        if mode == DeliveryMode.FIXED:
            self.accept(entry & 0xFF)
        else:
            self._lose(mode)

    def _lose(self, mode: int) -> None:
        self.lost[mode] = self.lost.get(mode, 0) + 1

    def message(self, address: int, data: int) -> bool:
        """A message-signalled interrupt in compatibility format; whether it was for this APIC."""
        if not self._addressed(address >> 12 & 0xFF | address >> 40 << 8, bool(address & _LOGICAL)):
            return False
        self._take(data >> 8 & 7, data & 0xFF, bool(data & _LEVEL))
        self.changed()
        return True

    def _take(self, mode: int, vector: int, level: bool) -> None:
        if mode in _FIXED:
            self.accept(vector, level)
        else:
            self._lose(mode)

    def _addressed(self, destination: int, logical: bool) -> bool:
        """Whether a destination means this APIC: its id, or a bit of its logical id, or everyone."""
        if destination == _ALL:
            return True
        if destination > _ALL:
            return False
        if not logical:
            return destination == self._values[_ID] >> 24
        own = self._values[_LDR] >> 24
        if DFR.get(self._values[_DFR], "MODEL") == _CLUSTER:
            return destination >> 4 == own >> 4 and bool(destination & own & 0xF)
        return bool(destination & own)

    def _send(self, value: int) -> None:
        """The interrupt command register: between processors, of which there is one."""
        self._keep(_ICR_LOW, value)
        icr = ICR.decode(self._values[_ICR_LOW] | self._values[_ICR_HIGH] << 32)
        mode, shorthand = icr["DLM"], icr["DSH"]
        if mode in _FIXED and icr["V"] < _FIRST_VECTOR:
            self._error(ESR["SENT_VECTOR"].mask)
            return
        if shorthand == _BY_DESTINATION:
            here = self._addressed(icr["DST"], bool(icr["DM"]))
        else:
            here = shorthand != _ALL_OTHERS
        if here and mode in _FIXED:
            self.accept(icr["V"])
        else:
            self._lose(mode)


_REACTIONS: dict[int, Callable[[LocalApic, int], None]] = {
    _EOI: LocalApic._end, _INITIAL_COUNT: LocalApic._start_timer, _ESR: LocalApic._show_errors, _SVR: LocalApic._set_spurious,
    _ICR_LOW: LocalApic._send, _DIVIDE: LocalApic._set_divider, _TPR: LocalApic._set_priority}
"""What a write does that does more than being kept."""
