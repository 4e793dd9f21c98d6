"""An NVMe controller on PCI: registers, doorbells, the way of a command, interrupts (NVM Express Base Specification 1.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..spec.bits import Register
from ..spec.nvme import (
    ADMIN_QUEUES,
    CAP,
    CC,
    COMMAND_SIZE,
    COMPLETION_SIZE,
    CSTS,
    DO_NOT_RETRY,
    DOORBELLS,
    Command,
    Completion,
    Status,
    registers,
)
from .clock import Timer
from .description import BarDescription, PciDescription
from .disk import Disk
from .msix import Msix
from .nvmecommands import ADMIN, IO
from .nvmedata import ENTRY_SIZES, prp_pieces
from .nvmequeue import MAX_ENTRIES, VECTORS, CompletionQueue, Reply, SubmissionQueue
from .pcifunction import Bridge, Host, PciFunction

__all__ = ["Nvme"]

READY_NS, COMMAND_NS = 100_000, 10_000
"""Virtual nanoseconds from CC.EN to CSTS.RDY, and those that one command takes."""

MSIX_TABLE, MSIX_PENDING, BAR_SIZE = 0x2000, 0x3000, 0x4000
_CAPABILITIES = CAP.make(MQES=MAX_ENTRIES - 1, CQR=1, TO=15, CSS=1)
_RDY, _CFS, _SHUTDOWN_COMPLETE = CSTS["RDY"].mask, CSTS["CFS"].mask, CSTS.make(SHST=2)
_WORTH_RETRYING = (Status.SUCCESS, Status.DATA_TRANSFER_ERROR, Status.ABORT_REQUESTED)


@dataclass(frozen=True, slots=True, eq=False)
class _Due:
    """What a timer of the controller comes to: it leaves `timers`, then does what it was set for."""

    timers: dict[str, Timer]
    name: str
    callback: Callable[[], None]

    def __call__(self) -> None:
        self.timers.pop(self.name, None)
        self.callback()


class Nvme(PciFunction):
    """The controller, with its own `disk` as namespace 1.

    A doorbell only starts a virtual timer; each time it runs out, one command is fetched, carried out and completed.  A command that cannot
    be fetched and a completion that cannot be written make CSTS 2 (fatal, not ready) and stop the controller until it is enabled anew, as
    in QEMU.  `submissions` and `completions` are the queues by number, 0 being the admin queues.
    """

    has_window = True
    pin = 1
    default_bars = (BarDescription(0, "mem64", BAR_SIZE),)

    def __init__(self, description: PciDescription, host: Host, parent: Bridge | None = None, multifunction: bool = False):
        self.msix: Msix | None = None
        super().__init__(description, host, parent, multifunction)
        self.disk = Disk(host.disk)
        self._at = {r.offset + i: r for r in registers(_CAPABILITIES) for i in range(0, r.size, 4)}
        self._timers: dict[str, Timer] = {}
        self._power_up()

    def add_capabilities(self) -> None:
        """MSI-X, where BAR 0 has room for its table."""
        if self.bars and self.bars[0].size >= BAR_SIZE:
            self.msix = Msix(self, VECTORS, MSIX_TABLE, MSIX_PENDING)

    def reset(self) -> None:
        """Power-on state.  The disk keeps what was written to it."""
        super().reset()
        self._power_up()

    def _power_up(self) -> None:
        self._values = {r.name: r.reset for r in self._at.values()}
        if self.msix:
            self.msix.reset()
        self._forget()

    def _forget(self) -> None:
        """No queue, no command, no timer."""
        self._cancel()
        self.submissions: dict[int, SubmissionQueue] = {}
        self.completions: dict[int, CompletionQueue] = {}
        self.held_events: list[int] = []
        self.features: dict[int, int] = {}
        self._last_served = 0
        self._signal()

    def _cancel(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    # Registers

    def register(self, name: str) -> int:
        """A register's value by its name in the specification, without side effects."""
        return self._values[name]

    def mmio_read(self, offset: int, width: int) -> int:
        """A load.  Doorbells and what is no register read 0."""
        if self.msix and self.msix.answers(offset):
            return self.msix.read(offset, width)
        dwords = range(offset & ~3, offset + width, 4)
        return sum(self._read32(at) << 32 * i for i, at in enumerate(dwords)) >> 8 * (offset & 3)

    def _read32(self, offset: int) -> int:
        r = self._at.get(offset)
        return self._values[r.name] >> 8 * (offset - r.offset) & 0xFFFFFFFF if r else 0

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """A store of 4 or 8 aligned bytes; others are lost."""
        if width not in (4, 8) or offset % width:
            return
        if self.msix and self.msix.answers(offset):
            self.msix.write(offset, width, value)
            return
        for i in range(0, width, 4):
            self._write32(offset + i, value >> 8 * i & 0xFFFFFFFF)

    def _write32(self, offset: int, value: int) -> None:
        if offset >= DOORBELLS:
            self._ring((offset - DOORBELLS) // 4, value & 0xFFFF)
        elif r := self._at.get(offset):
            old = self._values[r.name]
            shift = 8 * (offset - r.offset)
            self._values[r.name] = r.written(old, old & ~(0xFFFFFFFF << shift) | value << shift)
            self._react(r, old, value)

    def _react(self, r: Register, old: int, value: int) -> None:
        """What a write does beyond the register's own bits."""
        if r.name in ("INTMS", "INTMC"):
            masked = old | value if r.name == "INTMS" else old & ~value
            self._values["INTMS"] = self._values["INTMC"] = masked
            self._signal()
        elif r.name == "CC":
            self._configure(old, self._values["CC"])

    def _configure(self, old: int, new: int) -> None:
        """CC: enable, disable, shutdown notification."""
        if CC.get(new, "EN") != CC.get(old, "EN"):
            self._forget()
            self._values["CSTS"] &= _CFS
            if CC.get(new, "EN"):
                self._values["CSTS"] = 0
                self._start("enable", READY_NS, self._enable)
        if CC.get(new, "SHN") and not CC.get(old, "SHN"):
            self._start("shutdown", READY_NS, self._shut_down)

    def _start(self, name: str, delay: int, callback: Callable[[], None]) -> None:
        """Runs `callback` after `delay` virtual nanoseconds unless the controller is reset before."""
        if name not in self._timers:
            self._timers[name] = self.host.clock.after(delay, _Due(self._timers, name, callback))

    def _enable(self) -> None:
        """Sets up the admin queues; a configuration that is not supported is fatal."""
        cc, queues = self._values["CC"], self._values["AQA"]
        entries, completions = ADMIN_QUEUES.get(queues, "ASQS") + 1, ADMIN_QUEUES.get(queues, "ACQS") + 1
        if CC.get(cc, "CSS") or CC.get(cc, "MPS") or CC.get(cc, "AMS") or entries < 2 or completions < 2:
            self._fail()
            return
        self.completions[0] = CompletionQueue(0, self._values["ACQ"], completions, 0, True)
        self.submissions[0] = SubmissionQueue(0, self._values["ASQ"], entries, self.completions[0])
        self._values["CSTS"] = _RDY

    def _shut_down(self) -> None:
        """Nothing is cached, so the shutdown is complete: no command is carried out until the controller is enabled anew."""
        self._values["CSTS"] |= _SHUTDOWN_COMPLETE

    def _fail(self) -> None:
        self._cancel()
        self._values["CSTS"] = _CFS

    @property
    def entry_sizes_set(self) -> bool:
        """Whether CC names the sizes of I/O queue entries that the controller has."""
        cc = self._values["CC"]
        return (CC.get(cc, "IOSQES"), CC.get(cc, "IOCQES")) == ENTRY_SIZES

    @property
    def _running(self) -> bool:
        return self._values["CSTS"] == _RDY

    # Commands

    def _ring(self, index: int, value: int) -> None:
        """A doorbell.  One of no queue, or a value beyond its queue, is ignored."""
        queues: dict[int, SubmissionQueue] | dict[int, CompletionQueue] = self.completions if index & 1 else self.submissions
        queue = queues.get(index >> 1)
        if queue is None or value >= queue.size or not self._running:
            return
        if isinstance(queue, SubmissionQueue):
            queue.tail = value
        else:
            queue.head = value
            self._drain(queue)
            self._settle(queue.vector)
            self._signal()
        self._kick()

    def _kick(self) -> None:
        """Serves the next command after a while, if there is one."""
        if self._running and any(q.ready for q in self.submissions.values()):
            self._start("serve", COMMAND_NS, self._serve)

    def _serve(self) -> None:
        """Carries out one command: the queues take turns."""
        ready = sorted(n for n, q in self.submissions.items() if q.ready)
        if not ready or not self._running:
            return
        self._last_served = next((n for n in ready if n > self._last_served), ready[0])
        queue = self.submissions[self._last_served]
        data = self.dma_read(queue.base + COMMAND_SIZE * queue.head, COMMAND_SIZE).data
        if data is None:
            self._fail()
            return
        queue.head = (queue.head + 1) % queue.size
        command = Command.unpack(data)
        reply = self._carry_out(queue, command)
        if reply:
            self.complete(queue, command.cid, reply)
        self._kick()

    def _carry_out(self, queue: SubmissionQueue, command: Command) -> Reply | None:
        """A command's reply; None for one that is held.  Fused commands and scatter-gather lists are not supported."""
        handler = (IO if queue.number else ADMIN).get(command.opcode)
        if handler is None:
            return Reply(Status.INVALID_OPCODE)
        return Reply(Status.INVALID_FIELD) if command.flags else handler(self, command)

    def complete(self, queue: SubmissionQueue, cid: int, reply: Reply) -> None:
        """Posts a completion, now or when the host has made room."""
        queue.completions.waiting.append((queue, cid, reply))
        self._drain(queue.completions)

    def _drain(self, queue: CompletionQueue) -> None:
        """Writes the completions for which there is room and interrupts."""
        while queue.waiting and not queue.full and self._running:
            source, cid, (status, result) = queue.waiting.popleft()
            final = status if status in _WORTH_RETRYING else status | DO_NOT_RETRY
            entry = Completion(result, source.head, source.number, cid, final, queue.phase)
            if not self.dma_write(queue.base + COMPLETION_SIZE * queue.tail, entry.pack()).ok:
                self._fail()
                return
            queue.advance()
            if queue.interrupts and self.msix and self.msix.enabled:
                self.msix.notify(queue.vector)
        self._signal()

    # Data

    def send(self, command: Command, data: bytes) -> Status:
        """Data to the host's memory, where the command's PRP entries point."""
        pieces = prp_pieces(self._fetch, command.prp1, command.prp2, len(data))
        if isinstance(pieces, Status):
            return pieces
        at = 0
        for iova, length in pieces:
            if not self.dma_write(iova, data[at:at + length]).ok:
                return Status.DATA_TRANSFER_ERROR
            at += length
        return Status.SUCCESS

    def receive(self, command: Command, length: int) -> bytes | Status:
        """Data from the host's memory."""
        pieces = prp_pieces(self._fetch, command.prp1, command.prp2, length)
        if isinstance(pieces, Status):
            return pieces
        parts = []
        for iova, size in pieces:
            data = self._fetch(iova, size)
            if data is None:
                return Status.DATA_TRANSFER_ERROR
            parts.append(data)
        return b"".join(parts)

    def _fetch(self, iova: int, length: int) -> bytes | None:
        return self.dma_read(iova, length).data

    # Interrupts

    def _settle(self, vector: int) -> None:
        """A message that waits unsent is not needed once the host has taken everything that it would tell of (PCI 3.0, section 6.8.3.5)."""
        if self.msix and all(q.head == q.tail for q in self.completions.values() if q.interrupts and q.vector == vector):
            self.msix.settle(vector)

    def _signal(self) -> None:
        """Drives the interrupt pin: high while an unmasked queue holds what the host has not taken, unless messages are used."""
        by_pin = not (self.msix and self.msix.enabled)
        self.set_intx(by_pin and any(q.interrupts and q.head != q.tail and not self._values["INTMS"] >> q.vector & 1
                                     for q in self.completions.values()))

    def config_written(self, offset: int, width: int) -> None:
        """MSI-X or the pin may have been switched on or off."""
        if self.msix:
            self.msix.flush()
        self._signal()
