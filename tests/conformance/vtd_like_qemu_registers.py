"""QEMU's register page and invalidation queue: our unit with the departures of QEMU's, each of which can be switched off."""

from collections.abc import Callable

from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.machine.vtd.commands import Command
from hvcore.machine.vtd.invalidation import InvalidationQueue
from hvcore.spec.bits import Register, mask
from hvcore.spec.vtd import CCMD, FSTS, GCMD, GSTS, IOTLB, IQA, QUEUE_WAIT

__all__ = ["QemuRegisters", "Switches"]

_WAIT = 5
_DEVICE_TLB_RESERVED = (0xFFFF_0000_FFE0_FFF0, 0xFFE)
_IQT, _IQA = 0x88, 0x90
_SHORT = {"FEUADDR": 0, "IEUADDR": 0, "FEDATA": 0xFFFF}
"""What QEMU keeps of registers that the specification lets be shorter."""
_KEPT = {0x20: ("RTADDR", mask(11, 10), "root-pointer-bits"), 0xB8: ("IRTA", mask(63, 11) | 0xF, "interrupt-table-without-remapping")}
"""By offset: register, bits that QEMU keeps of it though the specification reserves them, departure."""


class Switches:
    """Which departures are on, and which were ever asked for."""

    def __init__(self, without: frozenset[str]):
        self.without, self.used = without, set[str]()

    def __call__(self, name: str) -> bool:
        self.used.add(name)
        return name not in self.without


class QemuQueue(InvalidationQueue):
    """QEMU's invalidation queue."""

    on: Switches
    latched = 0
    """IQA as it was when the queue was switched on, as far as addresses go."""
    last = 0
    """Type of the last descriptor that was looked at; 0 where none could be read."""

    def idle(self) -> bool:
        """Whether QEMU lets the queue be switched off."""
        return self.file["IQH"] == self.file["IQT"] and self.last == _WAIT

    def run(self) -> None:
        written = self.file["IQA"]
        if self.latched != written and self.on("queue-base-latched"):
            self.file["IQA"] = self.latched
        super().run()
        self.file["IQA"] = written

    def _carry_out(self, address: int) -> bool:
        if not self.memory.backed(address, 16):
            self.last = 0
            return False
        low, high = self.memory.read64(address), self.memory.read64(address + 8)
        self.last = kind = low & 0xF
        if kind in (3, 4, 6, 7) and kind not in self._verbs and self.on("descriptors-without-capability"):
            return kind != 3 or not (low & _DEVICE_TLB_RESERVED[0] or high & _DEVICE_TLB_RESERVED[1])
        return super()._carry_out(address)

    def _wait(self, low: int, high: int) -> bool:
        f = QUEUE_WAIT.decode(low)
        if not f["SW"] and not f["IF"] and self.on("wait-without-effect"):
            return False
        if f["SW"] and not self.memory.backed(high & mask(63, 2), 4) and self.on("wait-status-lost"):
            return False
        return super()._wait(low, high)


class QemuRegisters(RemappingUnit):
    """Our unit with QEMU's registers, except for the departures in `without`."""

    def __init__(self, description: UnitDescription, memory: Memory, haw: int, message: Callable[[int, int], None],
                 without: frozenset[str] = frozenset()):
        self.on, self._message, self._haw = Switches(without), message, haw
        self._half = False
        super().__init__(description, memory, haw, self._send)
        q = self._queue
        self._queue = self._queue_of_qemu = QemuQueue(memory, self.file, q.invalidator, q.interrupts, q.faults, q.event, q.note)
        self._queue_of_qemu.on = self.on
        self._effects = self._write_effects()

    def _send(self, address: int, data: int) -> None:
        """The unit's own interrupts."""
        if address >> 20 != 0xFEE and self.on("event-address-ignored"):
            address = 0xFEE0_0000 | address & mask(19)
        self._message(address, data)

    # Registers.

    def mmio_read(self, offset: int, width: int) -> int:
        if offset & ~7 != _IQA:
            return super().mmio_read(offset, width)
        queue, written = self._queue_of_qemu, self.file["IQA"]
        if queue.latched & IQA["IQA"].mask == written & IQA["IQA"].mask or not self.on("queue-base-latched"):
            return super().mmio_read(offset, width)
        word = queue.latched & IQA["IQA"].mask | IQA.get(written, "QS")
        return word >> 8 * (offset - _IQA) & mask(8 * width - 1)

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        self._half = width == 4 and not offset & 4
        if width == 4 and offset == _IQT + 4 and self.file["IQH"] != self.file["IQT"] and self.on("queue-error-no-resume"):
            return
        before = self.file["RTADDR"], self.file["IRTA"]
        super().mmio_write(offset, width, value)
        self._keep(offset, width, value, dict(zip(("RTADDR", "IRTA"), before, strict=True)))

    def _keep(self, offset: int, width: int, value: int, before: dict[str, int]) -> None:
        """Reserved bits that were written stay."""
        register, bits, name = _KEPT.get(offset & ~7, ("", 0, ""))
        if not register:
            return
        written = mask(8 * width - 1) << 8 * (offset & 7)
        kept = (before[register] & ~written | value << 8 * (offset & 7)) & bits
        if (self.file[register] & bits or kept) and self.on(name):
            self.file[register] = self.file[register] & ~bits | kept

    def _store(self, register: Register, value: int) -> None:
        if (short := _SHORT.get(register.name)) is not None and value & ~short and self.on("event-registers-short"):
            value &= short
        super()._store(register, value)

    def _write_effects(self) -> dict[str, Callable[[], None]]:
        effects = super()._write_effects()
        return effects | {"CCMD": lambda: self._invalidate("CCMD", CCMD["ICC"].mask, effects["CCMD"]),
                          "IOTLB": lambda: self._invalidate("IOTLB", IOTLB["IVT"].mask, effects["IOTLB"]),
                          "FRCD0_HIGH": lambda: self._record_written(effects["FRCD0_HIGH"])}

    def _invalidate(self, register: str, busy: int, effect: Callable[[], None]) -> None:
        """A command register was written.  Only the half with the busy bit starts a command; none does while the queue is on."""
        stuck = self._half or GSTS.get(self.file["GSTS"], "QIES")
        if not (self.file[register] & busy and stuck and self.on("command-stuck-under-queue")):
            effect()

    def _record_written(self, effect: Callable[[], None]) -> None:
        before = self.file["FECTL"]
        effect()
        if before != self.file["FECTL"] and self.on("pending-until-status-write"):
            self.file["FECTL"] = before

    def _status_written(self) -> None:
        self._faults.status_written()
        waiting = self.file["IQH"] != self.file["IQT"] and not self.file["FSTS"] & FSTS["IQE"].mask
        if not (waiting and self.on("queue-error-no-resume")):
            self._queue.run()

    # Commands.

    def _carry_out(self, command: Command, value: int) -> None:
        queue = self._queue_of_qemu
        if command.name == "QIE" and not GCMD.get(value, "QIE") and not queue.idle() and self.on("queue-off-refused"):
            return
        missing = not command.supported(self.description.cap, self.description.ecap)
        if command.name == "SIRTP" and missing and self.on("interrupt-table-without-remapping"):
            self.file["GSTS"] |= GSTS["IRTPS"].mask
        super()._carry_out(command, value)

    def _queue_switched(self) -> None:
        if GSTS.get(self.file["GSTS"], "QIES"):
            written = self.file["IQA"]
            self._queue_of_qemu.latched = written & mask(self._haw - 1, 12) | IQA.get(written, "QS")
        super()._queue_switched()

    def _latch_root(self) -> None:
        super()._latch_root()
        if self._root & ~mask(self._haw - 1, 12) and self.on("root-pointer-bits"):
            self._root &= mask(self._haw - 1, 12)
