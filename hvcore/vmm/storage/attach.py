"""Finds the first NVMe controller in configuration space and puts the driver before it."""

from collections.abc import Iterable
from dataclasses import dataclass

from ...machine.memory import PAGE
from ...spec.bits import align_up
from ...spec.nvme import CAP
from ...spec.pci import BAR0, COMMAND, COMMAND_MEMORY, REVISION, format_bdf
from ..heap import Heap
from ..mmio import Trap
from ..pci import Function
from ..platform import Console, Platform, config_read
from ..tiny.functions import windows
from .driver import Controller, Driver
from .layout import ENTRIES, SLOTS, take_pages
from .registers import SIZE, Registers

__all__ = ["Attached", "attach"]

NVME_CLASS = 0x010802
_BAR_IO = 1 << 0


@dataclass(frozen=True)
class Attached:
    """A driver, the registers that it answers in its controller's place, and the controller's requester id."""

    driver: Driver
    trap: Trap
    source: int

    @property
    def shadow(self) -> tuple[int, int]:
        """The half-open host-physical range that the controller must reach, and nothing else."""
        return self.driver.pages.shadow, self.driver.pages.end

    @property
    def working(self) -> tuple[int, int]:
        """The half-open host-physical range that changes while the driver works: the shadow, and its records."""
        return self.driver.pages.shadow, self.driver.pages.last


def attach(platform: Platform, heap: Heap, base: int, size: int, functions: Iterable[Function], console: Console,
           stubborn: bool) -> Attached | None:
    """The driver for the core at [base, base + size); None, and a word on the console, where there is nothing that it could drive."""
    source = next((f.source for f in functions if config_read(platform.bus, f.source, REVISION, 4) >> 8 == NVME_CLASS), None)
    if source is None:
        console.print("nvme: no controller")
        return None
    name, bar = format_bdf(source), _registers(platform, source)
    if bar is None:
        console.print(f"nvme: {name}: its registers do not lie in memory, not driven")
        return None
    cap = platform.bus.read(bar, 8)
    if CAP.get(cap, "DSTRD") or CAP.get(cap, "MPSMIN") or not CAP.get(cap, "CSS") & 1 or CAP.get(cap, "MQES") + 1 < SLOTS:
        console.print(f"nvme: {name}: CAP 0x{cap:X} is not what the driver knows, not driven")
        return None
    pages = take_pages(platform.memory, heap)
    controller = Controller(platform.bus, bar, platform.cpu.clock)
    driver = Driver(platform.memory, base, size, pages, controller, console, name, stubborn)
    console.print(f"nvme: {name}: driven by the core, queues of up to {ENTRIES} entries, shadow 0x{pages.shadow:X}-0x{pages.end:X}")
    return Attached(driver, Trap(bar, bar + align_up(SIZE, PAGE), Registers(driver)), source)


def _registers(platform: Platform, source: int) -> int | None:
    """Where BAR 0 lies (host-physical); None where it is not in memory, not decoded, or too small."""
    low = config_read(platform.bus, source, BAR0, 4)
    if low & _BAR_IO or not config_read(platform.bus, source, COMMAND, 2) & COMMAND_MEMORY:
        return None
    start, end = next(iter(windows(platform.bus, source)), (0, 0))
    return start if start & 0xFFFF_FFFF == low & -PAGE and end - start >= SIZE else None
