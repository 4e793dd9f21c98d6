"""Message-signalled interrupts of a function: the MSI-X capability, its table and pending bits (PCI Local Bus 3.0, section 6.8.2)."""

from .pcifunction import PciFunction

__all__ = ["ENTRY", "Msix"]

ENTRY = 16
"""Bytes of a table entry: address u64, data u32, vector control u32."""

_CAPABILITY = 0x11
_ENABLE, _MASK_ALL, _MASKED = 1 << 15, 1 << 14, 1 << 0


class Msix:
    """The vectors of `function`, its table at `table` and its pending bits at `pending` in BAR 0."""

    def __init__(self, function: PciFunction, vectors: int, table: int, pending: int):
        self._function, self.vectors, self._table_at, self._pending_at = function, vectors, table, pending
        body = (vectors - 1).to_bytes(2, "little") + table.to_bytes(4, "little") + pending.to_bytes(4, "little")
        self._capability = function.add_capability(_CAPABILITY, body, (_ENABLE | _MASK_ALL).to_bytes(2, "little"))
        self.reset()

    def reset(self) -> None:
        """Every vector masked, none pending."""
        self._table = bytearray(ENTRY * self.vectors)
        self._table[12::ENTRY] = bytes([_MASKED]) * self.vectors
        self._pending = 0

    def _control(self) -> int:
        return self._function.get(self._capability + 2, 2)

    @property
    def enabled(self) -> bool:
        """Whether the function signals by messages and not by its pin."""
        return bool(self._control() & _ENABLE)

    def answers(self, offset: int) -> bool:
        """Whether an offset in BAR 0 lies in the table or the pending bits."""
        return 0 <= offset - self._table_at < len(self._table) or 0 <= offset - self._pending_at < 8

    def read(self, offset: int, width: int) -> int:
        """A load from the table or the pending bits."""
        if offset >= self._pending_at:
            return self._pending >> 8 * (offset - self._pending_at)
        at = offset - self._table_at
        return int.from_bytes(self._table[at:at + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """A store to the table; the pending bits are read-only.  Unmasking sends what was pending."""
        at = offset - self._table_at
        if width in (4, 8) and at % width == 0 and at + width <= len(self._table):
            self._table[at:at + width] = value.to_bytes(width, "little")
            self.flush()

    def notify(self, vector: int) -> None:
        """Signals `vector`, or keeps it pending while it is masked."""
        self._pending |= 1 << vector
        self.flush()

    def settle(self, vector: int) -> None:
        """What `vector` would have told has been seen without it: it is pending no more."""
        self._pending &= ~(1 << vector)

    def flush(self) -> None:
        """Sends the pending vectors that nothing masks."""
        if not self._pending or self._control() & (_ENABLE | _MASK_ALL) != _ENABLE:
            return
        for vector in range(self.vectors):
            at = ENTRY * vector
            if self._pending >> vector & 1 and not self._table[at + 12] & _MASKED:
                self._pending &= ~(1 << vector)
                self._function.dma_write(int.from_bytes(self._table[at:at + 8], "little") & ~3, bytes(self._table[at + 8:at + 12]))
