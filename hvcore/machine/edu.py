"""QEMU's `edu` device, 1234:11e8 (QEMU: docs/specs/edu): a DMA engine that reads and writes wherever software tells it."""

from collections.abc import Callable
from math import factorial

from .clock import Timer
from .description import BarDescription, PciDescription
from .pcifunction import Bridge, Host, PciFunction

__all__ = ["BUFFER", "BUFFER_SIZE", "Edu"]

BUFFER, BUFFER_SIZE = 0x40000, 4096
"""The device's own memory, as its DMA addresses count."""

IDENTIFICATION = 0x010000ED
DMA_NS, FACTORIAL_NS = 100_000, 10_000
"""Virtual nanoseconds that a transfer and a factorial take.  (QEMU's transfer takes 100 ms.)"""

ID, LIVENESS, FACTORIAL, STATUS, IRQ_STATUS, IRQ_RAISE, IRQ_ACK = 0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x64
DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
START, TO_RAM, INTERRUPT = 1 << 0, 1 << 1, 1 << 2
COMPUTING, INTERRUPT_WHEN_DONE = 1 << 0, 1 << 7
FACTORIAL_DONE, DMA_DONE = 1 << 0, 1 << 8

_DMA_REGISTERS = (DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND)


class Edu(PciFunction):
    """The device.  Unlike QEMU's default it drives all 64 address bits (QEMU's `dma_mask=0xffffffffffffffff`; its default is 28 bits), it
    ignores a transfer outside its buffer (QEMU aborts), and it interrupts by its pin only.

    A DMA read that fails leaves the buffer as it was; nothing tells software, as on the real bus.
    """

    has_window = True
    pin = 1
    default_bars = (BarDescription(0, "mem32", 1 << 20),)

    def __init__(self, description: PciDescription, host: Host, parent: Bridge | None = None, multifunction: bool = False):
        super().__init__(description, host, parent, multifunction)
        self._timers: list[Timer] = []
        self._clear()

    def reset(self) -> None:
        """Power-on state."""
        super().reset()
        for timer in self._timers:
            timer.cancel()
        self._clear()

    def _clear(self) -> None:
        self._timers.clear()
        self._registers = {LIVENESS: 0, FACTORIAL: 0, STATUS: 0, IRQ_STATUS: 0}
        self._dma = dict.fromkeys(_DMA_REGISTERS, 0)
        self.buffer = bytearray(BUFFER_SIZE)

    def _later(self, delay: int, callback: Callable[[], None]) -> None:
        self._timers = [t for t in self._timers if t.at > self.host.clock.now]
        self._timers.append(self.host.clock.after(delay, callback))

    def mmio_read(self, offset: int, width: int) -> int:
        """Registers below 0x80 by 4 bytes, the DMA registers by 8 or by halves; else all ones."""
        if offset & ~4 in _DMA_REGISTERS and width in (4, 8):
            return self._dma[offset & ~4] >> 8 * (offset & 4)
        if width != 4:
            return -1
        return IDENTIFICATION if offset == ID else self._registers.get(offset, -1)

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """The DMA registers cannot be changed while a transfer runs.  A write of their low half clears the high one, as in QEMU; the high
        half may follow, for the processor's bus is 4 bytes wide."""
        if offset in _DMA_REGISTERS and width in (4, 8):
            self._write_dma(offset, value)
        elif offset - 4 in _DMA_REGISTERS and width == 4:
            self._write_dma(offset - 4, self._dma[offset - 4] & 0xFFFFFFFF | value << 32)
        elif width == 4 and (write := _WRITES.get(offset)):
            write(self, value)

    def _write_dma(self, offset: int, value: int) -> None:
        if self._dma[DMA_COMMAND] & START or offset == DMA_COMMAND and not value & START:
            return
        self._dma[offset] = value
        if offset == DMA_COMMAND:
            self._later(DMA_NS, self._transfer)

    def _invert(self, value: int) -> None:
        self._registers[LIVENESS] = ~value & 0xFFFFFFFF

    def _start_factorial(self, value: int) -> None:
        if not self._registers[STATUS] & COMPUTING:
            self._registers[FACTORIAL] = value
            self._registers[STATUS] |= COMPUTING
            self._later(FACTORIAL_NS, self._finish_factorial)

    def _finish_factorial(self) -> None:
        n = self._registers[FACTORIAL]
        self._registers[FACTORIAL] = factorial(n) & 0xFFFFFFFF if n < 34 else 0
        self._registers[STATUS] &= ~COMPUTING
        if self._registers[STATUS] & INTERRUPT_WHEN_DONE:
            self._raise(FACTORIAL_DONE)

    def _set_status(self, value: int) -> None:
        self._registers[STATUS] = self._registers[STATUS] & ~INTERRUPT_WHEN_DONE | value & INTERRUPT_WHEN_DONE

    def _raise(self, bits: int) -> None:
        self._registers[IRQ_STATUS] |= bits
        self.set_intx(self._registers[IRQ_STATUS] != 0)

    def _acknowledge(self, bits: int) -> None:
        self._registers[IRQ_STATUS] &= ~bits
        self.set_intx(self._registers[IRQ_STATUS] != 0)

    def _transfer(self) -> None:
        """The DMA itself, when its time is over."""
        command, count = self._dma[DMA_COMMAND], self._dma[DMA_COUNT]
        inside = self._dma[DMA_SOURCE if command & TO_RAM else DMA_DESTINATION] - BUFFER
        if count and inside >= 0 and inside + count <= BUFFER_SIZE:
            if command & TO_RAM:
                self.dma_write(self._dma[DMA_DESTINATION], bytes(self.buffer[inside:inside + count]))
            elif (data := self.dma_read(self._dma[DMA_SOURCE], count).data) is not None:
                self.buffer[inside:inside + count] = data
        self._dma[DMA_COMMAND] &= ~START
        if command & INTERRUPT:
            self._raise(DMA_DONE)

    def config_written(self, offset: int, width: int) -> None:
        """COMMAND may have opened or closed the interrupt pin."""
        self.set_intx(self._registers[IRQ_STATUS] != 0)


_WRITES: dict[int, Callable[[Edu, int], None]] = {
    LIVENESS: Edu._invert, FACTORIAL: Edu._start_factorial, STATUS: Edu._set_status, IRQ_RAISE: Edu._raise, IRQ_ACK: Edu._acknowledge}
