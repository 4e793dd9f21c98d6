"""The 16550A serial port (National Semiconductor PC16550D data sheet)."""

from collections import deque
from collections.abc import Callable

from .bus import Bus
from .ports import ByteDevice, Lines

__all__ = ["COM1", "Uart"]

COM1, COM1_IRQ = 0x3F8, 4
FIFO = 16
"""Bytes that the receiver's FIFO holds."""

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCRATCH = range(8)
IER_RX, IER_THRE = 1 << 0, 1 << 1
IIR_NONE, IIR_THRE, IIR_RX, IIR_TIMEOUT, IIR_FIFOS = 0x01, 0x02, 0x04, 0x0C, 0xC0
FCR_ENABLE, FCR_CLEAR_RX = 1 << 0, 1 << 1
LCR_DLAB = 1 << 7
MCR_LOOPBACK = 1 << 4
LSR_READY, LSR_THRE, LSR_EMPTY = 1 << 0, 1 << 5, 1 << 6
MSR_CONNECTED = 0xB0
"""Clear to send, data set ready, carrier detect."""

_TRIGGERS = (1, 4, 8, 14)
_LOOPBACK = ((1 << 1, 1 << 4), (1 << 0, 1 << 5), (1 << 2, 1 << 6), (1 << 3, 1 << 7))
"""MCR's outputs and the MSR inputs they are looped to: RTS-CTS, DTR-DSR, OUT1-RI, OUT2-DCD."""


class Uart(ByteDevice):
    """A serial port at `base` with interrupt line `irq`.

    What the guest sends goes to `transmit` at once, a byte a call; what `receive` queues waits outside and refills the FIFO as it is read,
    so nothing is ever overrun.  The baud rate takes no time, modem lines never change outside loopback.
    """

    def __init__(self, bus: Bus, lines: Lines, transmit: Callable[[bytes], None], base: int = COM1, irq: int = COM1_IRQ):
        self._lines, self._transmit, self._base, self._irq = lines, transmit, base, irq
        self.reset()
        bus.map_ports(base, 8, self)

    def reset(self) -> None:
        """Registers as after master reset; nothing waits."""
        self._ier = self._lcr = self._mcr = self._scratch = 0
        self._divisor, self._fifo_control = 1, 0
        self._fifo: deque[int] = deque()
        self._waiting: deque[int] = deque()
        self._thre_pending = False
        self._update()

    def receive(self, data: bytes) -> None:
        """Queues input of any length for the guest."""
        self._waiting.extend(data)
        self._refill()

    @property
    def waiting(self) -> int:
        """Bytes of input that the guest has not read yet."""
        return len(self._fifo) + len(self._waiting)

    def _refill(self) -> None:
        room = FIFO if self._fifo_control & FCR_ENABLE else 1
        while self._waiting and len(self._fifo) < room and not self._mcr & MCR_LOOPBACK:
            self._fifo.append(self._waiting.popleft())
        self._update()

    def _cause(self) -> int:
        """The interrupt cause of highest priority, as IIR shows it."""
        if self._ier & IER_RX and self._fifo:
            full = not self._fifo_control & FCR_ENABLE or len(self._fifo) >= _TRIGGERS[self._fifo_control >> 6]
            return IIR_RX if full else IIR_TIMEOUT
        return IIR_THRE if self._ier & IER_THRE and self._thre_pending else IIR_NONE

    def _update(self) -> None:
        self._lines.set_line(self._irq, self._cause() != IIR_NONE)

    def byte_read(self, port: int) -> int:
        """IN."""
        register = port - self._base
        dlab = self._lcr & LCR_DLAB
        if register == DATA and not dlab:
            return self._read_data()
        if register == IIR:
            return self._read_cause()
        values = {DATA: self._divisor & 0xFF, IER: self._divisor >> 8 if dlab else self._ier, LCR: self._lcr, MCR: self._mcr,
                  LSR: LSR_THRE | LSR_EMPTY | (LSR_READY if self._fifo else 0), MSR: self._modem(), SCRATCH: self._scratch}
        return values.get(register, 0xFF)

    def _read_data(self) -> int:
        value = self._fifo.popleft() if self._fifo else 0
        self._refill()
        return value

    def _read_cause(self) -> int:
        """IIR; reading it takes a transmitter interrupt away."""
        cause = self._cause()
        if cause == IIR_THRE:
            self._thre_pending = False
            self._update()
        return cause | (IIR_FIFOS if self._fifo_control & FCR_ENABLE else 0)

    def _modem(self) -> int:
        if not self._mcr & MCR_LOOPBACK:
            return MSR_CONNECTED
        return sum(line for output, line in _LOOPBACK if self._mcr & output)

    def byte_write(self, port: int, value: int) -> None:
        """OUT.  LSR and MSR are read-only."""
        register = port - self._base
        if self._lcr & LCR_DLAB and register in (DATA, IER):
            shift = 8 * register
            self._divisor = self._divisor & ~(0xFF << shift) | value << shift
        elif write := {DATA: self._send, IER: self._enable, IIR: self._set_fifo, LCR: self._set_format, MCR: self._set_modem,
                       SCRATCH: self._set_scratch}.get(register):
            write(value)
        self._refill()

    def _send(self, value: int) -> None:
        """THR: the byte leaves at once, so the transmitter is empty again."""
        self._thre_pending = True
        if not self._mcr & MCR_LOOPBACK:
            self._transmit(bytes([value]))
        elif len(self._fifo) < FIFO:
            self._fifo.append(value)

    def _enable(self, value: int) -> None:
        """IER: enabling the transmitter's interrupt while it is empty raises it."""
        self._thre_pending |= bool(value & ~self._ier & IER_THRE)
        self._ier = value & 0x0F

    def _set_fifo(self, value: int) -> None:
        """FCR: switching the FIFOs on or off empties them."""
        if value & FCR_CLEAR_RX or (value ^ self._fifo_control) & FCR_ENABLE:
            self._fifo.clear()
        self._fifo_control = value & 0xC1 if value & FCR_ENABLE else 0

    def _set_format(self, value: int) -> None:
        self._lcr = value

    def _set_modem(self, value: int) -> None:
        self._mcr = value & 0x1F

    def _set_scratch(self, value: int) -> None:
        self._scratch = value
