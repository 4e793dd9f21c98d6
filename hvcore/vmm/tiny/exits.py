"""What the core does at the exits of one of two guests: beside all else, it stands between the guest and what is the other's."""

from collections.abc import Callable, Sequence

from ...machine.longmode import translate
from ...machine.memory import PAGE
from ...spec.svm import ControlArea, ExitCode, SaveArea, io_access
from ..exits import GENERAL_PROTECTION, Exits, GuestDead
from ..instruction import length_at_rip
from ..layout import Data, Part
from ..mmio import Trap, carry_out, trap_at
from ..platform import Platform, config_read
from ..vmcb import Vmcb
from .functions import CONFIG_ADDRESS, CONFIG_DATA, allowed, put_within
from .tables import writable

__all__ = ["CONFIG_LATCH", "CONFIG_WINDOW", "FUNCTION_MAP", "TinyExits", "io_permissions"]

CONFIG_WINDOW, CONFIG_LATCH, FUNCTION_MAP = 0xE8, 0xF0, 0xF8
"""Words of a guest's data page: where the configuration window of bus 0 lies (0: there is none), what the guest last wrote to port 0xCF8,
and where its function map lies; both places host-physical."""
_ENABLE, _ADDRESS_BITS = 1 << 31, 0x80FFFFFC
_RESET_CONTROL, _KEYBOARD = 0xCF9, 0x64
_RESET_CPU, _PULSE = 1 << 2, 0xFE
_IOPM_SIZE = 3 * PAGE


def io_permissions() -> bytes:
    """An I/O permission map of 12 KiB in which the ports of configuration space and of a reset exit; the others do not."""
    bits = bytearray(_IOPM_SIZE)
    for port in (CONFIG_ADDRESS, _RESET_CONTROL, _KEYBOARD, *range(CONFIG_DATA, CONFIG_DATA + 4)):
        bits[port // 8] |= 1 << port % 8
    return bytes(bits)


class _Nobody:
    """A place where no device answers."""

    def mmio_read(self, offset: int, width: int) -> int:
        """All ones."""
        return -1

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """Lost."""


class _ConfigPage:
    """The configuration space of a function in its page of the configuration window, as a guest may change it."""

    def __init__(self, exits: "TinyExits", source: int):
        self._exits, self._source = exits, source

    def mmio_read(self, offset: int, width: int) -> int:
        """Not asked: the guest can read the page itself."""
        return -1

    def mmio_write(self, offset: int, width: int, value: int) -> None:
        """A store, filtered as one by mechanism 1."""
        self._exits.put(self._source, offset, width, value)


class TinyExits(Exits):
    """The policy of one of two guests.  `number` is 1 or 2."""

    def __init__(self, platform: Platform, base: int, number: int, traps: Sequence[Trap] = (),
                 pollers: Sequence[Callable[[], None]] = ()):
        super().__init__(platform, base, traps, pollers)
        self.number = number
        self.handlers[int(ExitCode.IOIO)] = self.io

    def io(self, vmcb: Vmcb) -> None:
        """Configuration space is filtered, a reset is this guest's own end, everything else goes to the ports."""
        port, width, read = io_access(vmcb.get(ControlArea.EXITINFO1))
        mechanism_1 = port == CONFIG_ADDRESS and width == 4 or CONFIG_DATA <= port < CONFIG_DATA + 4
        if read:
            vmcb.set(SaveArea.RAX, self.config_in(port, width) if mechanism_1 else self.platform.bus.port_read(port, width))
            return
        value = vmcb.get(SaveArea.RAX) & (1 << 8 * width) - 1
        if mechanism_1:
            self.config_out(port, width, value)
        elif port == _RESET_CONTROL and value & _RESET_CPU or port == _KEYBOARD and value == _PULSE:
            raise GuestDead(f"it asked for a reset (port {port:#x}), which the other guest would not survive: it alone has ended")
        else:
            self.platform.bus.port_write(port, width, value)

    # --- configuration space, mechanism 1

    def config_in(self, port: int, width: int) -> int:
        """What an IN gets: all ones of a function that the guest cannot see."""
        latch = self.memory.read64(self.base + Part.DATA + CONFIG_LATCH)
        if port == CONFIG_ADDRESS:
            return latch
        inside = min(width, CONFIG_DATA + 4 - port)
        if not latch & _ENABLE or not self._allowed(latch >> 8 & 0xFFFF, write=False):
            return (1 << 8 * width) - 1
        value = config_read(self.platform.bus, latch >> 8 & 0xFFFF, (latch & 0xFC) + port - CONFIG_DATA, inside)
        return value | -1 << 8 * inside

    def config_out(self, port: int, width: int, value: int) -> None:
        """What an OUT does: nothing to a function that is not the guest's own."""
        latch = self.memory.read64(self.base + Part.DATA + CONFIG_LATCH)
        if port == CONFIG_ADDRESS:
            self.memory.write64(self.base + Part.DATA + CONFIG_LATCH, value & _ADDRESS_BITS)
        elif latch & _ENABLE:
            inside = min(width, CONFIG_DATA + 4 - port)
            self.put(latch >> 8 & 0xFFFF, (latch & 0xFC) + port - CONFIG_DATA, inside, value & (1 << 8 * inside) - 1)

    def put(self, source: int, offset: int, width: int, value: int) -> None:
        """A write to configuration space: lost where the function is not the guest's own, or would answer at an address that is not."""
        if self._allowed(source, write=True):
            put_within(self.platform.bus, source, offset, width, value, self._is_its_own)

    def _is_its_own(self, start: int, end: int) -> bool:
        """Whether the guest's nested tables map all of the host-physical [start, end) to itself, or the core answers there for it."""
        root = self.memory.read64(self.base + Part.DATA + Data.N_CR3)
        pages = range(start & ~0xFFF, end, PAGE)
        return all(translate(self.memory, root, page) == page or trap_at(self.traps, page) for page in pages)

    def _allowed(self, source: int, write: bool) -> bool:
        return allowed(self.memory, self.memory.read64(self.base + Part.DATA + FUNCTION_MAP), source, write)

    # --- memory

    def nested_page_fault(self, vmcb: Vmcb) -> None:
        """What is absent from the guest's tables is a place where nobody answers; what it may only read, it does not change.

        An access there that is no plain move is a general protection fault to the guest.
        """
        address = vmcb.get(ControlArea.EXITINFO2)
        root = self.memory.read64(self.base + Part.DATA + Data.N_CR3)
        page = translate(self.memory, root, address & ~0xFFF)
        if trap_at(self.traps, address) or page == self.base + Part.BLANK:
            super().nested_page_fault(vmcb)
        elif page is None:
            if carry_out(self.memory, vmcb, Trap(address & ~0xFFF, (address & ~0xFFF) + PAGE, _Nobody()), address):
                vmcb.inject_exception(GENERAL_PROTECTION, 0)
        elif not writable(self.memory, root, address) and (length := length_at_rip(self.memory, vmcb)):
            if self._carry_out_config(vmcb, address):
                vmcb.skip(length)
        else:
            super().nested_page_fault(vmcb)

    def _carry_out_config(self, vmcb: Vmcb, address: int) -> str | None:
        """A store to the configuration window; why it could not be carried out, where it could not."""
        window = self.memory.read64(self.base + Part.DATA + CONFIG_WINDOW)
        if not window or not 0 <= address - window < 1 << 28:
            return "it is no store to configuration space"
        page = address & ~0xFFF
        return carry_out(self.memory, vmcb, Trap(page, page + PAGE, _ConfigPage(self, page - window >> 12)), address)
