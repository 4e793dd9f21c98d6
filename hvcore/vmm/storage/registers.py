"""The controller's registers as the guest sees them: the core answers, in the controller's place."""

from ...spec.nvme import CAP, CC, DOORBELLS
from .driver import Driver
from .layout import ENTRIES, QUEUES, Control

__all__ = ["Registers", "SIZE", "offered"]

_VS, _INTMS, _INTMC, _CC, _CSTS, _AQA, _ASQ, _ACQ = 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x24, 0x28, 0x30
_LOW, _HIGH = 0x0000_0000_FFFF_FFFF, 0xFFFF_FFFF_0000_0000
_KEPT = {_AQA: (Control.AQA, 0, 0x0FFF_0FFF), _ASQ: (Control.ASQ, 0, _LOW & ~0xFFF), _ASQ + 4: (Control.ASQ, 32, _LOW),
         _ACQ: (Control.ACQ, 0, _LOW & ~0xFFF), _ACQ + 4: (Control.ACQ, 32, _LOW)}
"""Registers that are the guest's alone: control word, shift of this half in it, bits that can be set."""

SIZE = DOORBELLS + 8 * (QUEUES + 1)
"""Bytes of the registers with the doorbells of all queues that the driver has."""

_CC_WRITABLE = 0x00FF_FFF1


def offered(cap: int) -> int:
    """CAP as the guest gets it: no more than the driver does."""
    kept = {name: CAP.get(cap, name) for name in ("CQR", "TO")}
    return CAP.make(MQES=min(CAP.get(cap, "MQES"), ENTRIES - 1), CSS=1, **kept)



class Registers:
    """What the guest's loads and stores in the controller's first pages come to."""

    def __init__(self, driver: Driver):
        self.driver, self.controller = driver, driver.controller
        self.control = driver.state.control

    def mmio_read(self, offset: int, width: int) -> int:
        """A load.  Doorbells and what the driver does not know read 0."""
        dwords = range(offset & ~3, offset + width, 4)
        return sum(self._read32(at) << 32 * i for i, at in enumerate(dwords)) >> 8 * (offset & 3)

    def _read32(self, offset: int) -> int:
        if offset in (0, 4):
            return offered(self.controller.read(0, 8)) >> 8 * offset & _LOW
        if offset in (_VS, _INTMS, _INTMC):
            return self.controller.read(offset)
        if offset == _CSTS:
            return self.driver.status()
        if offset == _CC:
            return self.control[Control.CC]
        if offset in _KEPT:
            word, shift, _ = _KEPT[offset]
            return self.control[word] >> shift & _LOW
        return 0

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """A store of 4 or 8 aligned bytes; others are lost."""
        if width in (4, 8) and offset % width == 0:
            for i in range(0, width, 4):
                self._write32(offset + i, value >> 8 * i & _LOW)

    def _write32(self, offset: int, value: int) -> None:
        if offset >= DOORBELLS:
            self._ring(offset - DOORBELLS, value & 0xFFFF)
        elif offset in (_INTMS, _INTMC):
            self.controller.write(offset, value)
        elif offset == _CC:
            self._configure(self.control[Control.CC], value & _CC_WRITABLE)
        elif offset in _KEPT:
            word, shift, bits = _KEPT[offset]
            self.control[word] = self.control[word] & ~(_LOW << shift) | (value & bits) << shift

    def _configure(self, old: int, new: int) -> None:
        """CC: enable, disable, shutdown notification."""
        self.control[Control.CC] = new
        enabled = CC.get(new, "EN")
        if enabled and not CC.get(old, "EN"):
            self.driver.enable()
        elif CC.get(old, "EN") and not enabled:
            self.driver.disable()
        elif CC.get(new, "SHN") != CC.get(old, "SHN"):
            self.driver.notify_shutdown()

    def _ring(self, offset: int, value: int) -> None:
        index = offset // 4
        if index <= 2 * QUEUES + 1:
            (self.driver.ring_cq if index & 1 else self.driver.ring_sq)(index >> 1, value)
