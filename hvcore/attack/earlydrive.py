"""An NVMe drive left running: it writes the place where the core's key will lie to its disk, block by block, until the guest resets it."""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..spec.nvme import COMMAND_SIZE, AdminOpcode, NvmOpcode

if TYPE_CHECKING:
    from ..machine.pc import Pc

__all__ = ["start_drive"]

_QUEUES = 0x60000
"""Where its queues lie: low memory that neither the loader nor the core touches.  Admin SQ, admin CQ, I/O SQ, I/O CQ, a page each."""
_DEPTH, _BLOCK = 32, 512
_CC, _AQA, _ASQ, _ACQ, _DOORBELLS = 0x14, 0x24, 0x28, 0x30, 0x1000
_ENABLE = 4 << 20 | 6 << 16 | 1
_READY_NS = 400_000


def start_drive(pc: "Pc", registers: int, target: int, period: int, periods: int) -> None:
    """Enables the controller at `registers` with queues in low memory; from then on it dumps the block at `target` every `period` ns."""
    _Drive(pc, registers, target, period, periods).enable()


@dataclass
class _Drive:
    """The drive's program: I/O writes of one block from `target` to the last block but one, where the guest's driver looks for it."""

    pc: "Pc"
    registers: int
    target: int
    period: int
    left: int
    tail: int = 0

    def enable(self) -> None:
        """Admin queues, enable; the I/O queues come when the controller is ready."""
        self.pc.memory.u8(_QUEUES, 4 * 4096)[:] = 0
        for register, width, value in ((_AQA, 4, (_DEPTH - 1) * 0x10001), (_ASQ, 8, _QUEUES), (_ACQ, 8, _QUEUES + 4096), (_CC, 4, _ENABLE)):
            self.pc.bus.write(self.registers + register, width, value)
        self.pc.clock.after(_READY_NS, self.create_queues)

    def create_queues(self) -> None:
        """One I/O queue pair."""
        size = (_DEPTH - 1) << 16 | 1
        self._command(0, 0, AdminOpcode.CREATE_CQ, _QUEUES + 3 * 4096, size, 1)
        self._command(0, 1, AdminOpcode.CREATE_SQ, _QUEUES + 2 * 4096, size, 1 << 16 | 1)
        self._ring(0, 2)
        self.pc.clock.after(self.period, self.go)

    def go(self) -> None:
        """One block, and the next after a while; a driver with queues of its own ends it."""
        if self.pc.bus.read(self.registers + _ASQ, 8) != _QUEUES or not self.left:
            return
        last_but_one = self.pc.machine.disk.size // _BLOCK - 2
        second = (self.target & ~0xFFF) + 4096 if self.target % 4096 + _BLOCK > 4096 else 0
        self._command(2, self.tail, NvmOpcode.WRITE, self.target, last_but_one & 0xFFFF_FFFF, last_but_one >> 32, second, namespace=1)
        self.tail = (self.tail + 1) % _DEPTH
        self._ring(1, self.tail)
        self.pc.bus.write(self.registers + _DOORBELLS + 12, 4, (self.tail - 1) % _DEPTH)
        self.left -= 1
        self.pc.clock.after(self.period, self.go)

    def _command(self, page: int, slot: int, opcode: int, prp1: int, dw10: int, dw11: int, prp2: int = 0, namespace: int = 0) -> None:
        entry = struct.pack("<BBHIQQQQ6I", opcode, 0, slot, namespace, 0, 0, prp1, prp2, dw10, dw11, 0, 0, 0, 0)
        self.pc.memory.write(_QUEUES + 4096 * page + COMMAND_SIZE * slot, entry)

    def _ring(self, queue: int, tail: int) -> None:
        self.pc.bus.write(self.registers + _DOORBELLS + 8 * queue, 4, tail)
