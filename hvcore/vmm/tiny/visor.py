"""The two guests of a core with TINYVISOR: what is split, in the order in which the core comes to it."""

from dataclasses import dataclass
from typing import Protocol

from ...errors import BadConfig
from ...machine.bus import Bus
from ...machine.memory import PAGE, Memory
from ...spec.e820 import E820Entry
from ...spec.linuxboot import Elf, Kernel
from ...spec.pci import format_bdf
from ...spec.svm import INTERCEPTS_1, ControlArea, ExitCode
from ..guest import GuestStart, load_guest
from ..heap import Heap, Panic
from ..iommu import Domain
from ..layout import HEAP, Data, Part
from ..nested import build_host
from ..pci import Function
from ..platform import Console, Platform, SplitPlatform
from . import functions as fn
from .exits import CONFIG_WINDOW, FUNCTION_MAP, TinyExits, io_permissions
from .memory import GuestMemory
from .split import choose_share, guest_2_map, without
from .tables import map_range, nested_of_its_own, take_from_domain, take_from_nested

__all__ = ["DOMAIN", "SecondGuest", "TinyVisor"]

DOMAIN = 1
"""Domain id of guest 2's functions."""
_IOPM_PAGES = 3


class Splittable(Protocol):
    """What of the core is needed to start a second guest."""

    platform: SplitPlatform
    memory: Memory
    bus: Bus
    console: Console

    def lay_out(self, base: int) -> None: ...
    def stand_at_stub(self, platform: Platform, base: int, start: GuestStart, host: int, n_cr3: int) -> None: ...


@dataclass(frozen=True)
class SecondGuest:
    """Guest 2 once it is there: the core's block for it (host-physical, laid out as the region's beginning), its processor's ports, the
    policy at its exits, and where its boot_params lie (guest-physical)."""

    base: int
    platform: Platform
    exits: TinyExits
    boot_params: int


class TinyVisor:
    """Splits the machine of a core.  `share` is guest 2's part, `others` are the functions that are not, `guest` is what runs on it, None
    before it was started."""

    def __init__(self, core: Splittable, functions: list[Function], e820: tuple[E820Entry, ...], wanted: str):
        self.core, self.memory, self.bus = core, core.memory, core.bus
        self.share = choose_share(core.bus, functions, e820, wanted)
        self.others = [f.source for f in functions if f.source not in self.share.functions]
        self.windows = [w for source in sorted(self.share.functions) for w in fn.windows(core.bus, source)]
        self.guest: SecondGuest | None = None
        self._must_not_overlap()
        names = ", ".join(format_bdf(f) for f in sorted(self.share.functions)) or "no PCI function"
        ram = f"0x{self.share.start:08X}-0x{self.share.end:08X} ({self.share.size >> 20} MiB)"
        core.console.print(f"TinyVisor: guest 2 gets {ram} and {names}.")

    def _must_not_overlap(self) -> None:
        low = next((w for w in self.windows if w[0] < self.share.size), None)
        if low is not None:
            raise BadConfig(f"GUEST2_DEVICES gives guest 2 a device with registers at {low[0]:#x}, where its RAM would lie: choose another")

    # --- memory and remapping

    def rest(self, e820: tuple[E820Entry, ...]) -> tuple[E820Entry, ...]:
        """Guest 1's map: what a single guest would be told, without guest 2's RAM."""
        return without(e820, self.share.start, self.share.end)

    def of_guest_1(self, functions: list[Function]) -> list[Function]:
        """Those whose requester ids belong to domain 0."""
        return [f for f in functions if f.source not in self.share.requesters]

    def domain_1(self, heap: Heap, root: int, levels: int) -> list[tuple[Domain, list[Function]]]:
        """Takes guest 2's RAM from domain 0, whose table is at `root`, and builds domain 1; which requesters belong to it."""
        take_from_domain(self.memory, root, levels, self.share.start, self.share.end)
        self.core.console.print(f"(IOMMU) dom {DOMAIN}(guest 2) ", end="")
        table = map_range(self.memory, heap, levels, self.share.start, self.share.end)
        self.core.console.print("... Ready.")
        return [(Domain(DOMAIN, levels, table), [Function(source, False) for source in sorted(self.share.requesters)])]

    # --- the guests

    def confine_first(self, heap: Heap, base: int) -> None:
        """What guest 1 loses: guest 2's RAM and windows in its nested tables, guest 2's functions in configuration space, and the power to
        change bridges."""
        root = self.memory.read64(base + Part.DATA + Data.N_CR3)
        pages = [(page, page + PAGE) for page in fn.config_pages(self.memory, self.share.functions)]
        take_from_nested(self.memory, heap, root, (self.share.start, self.share.end), [*self.windows, *pages],
                         fn.config_pages(self.memory, self.others))
        self._guard_ports(heap, base, fn.function_map(True, self.share.functions, self.share.bridges))

    def start_second(self, elf: Elf | Kernel, command_line: str, heap: Heap) -> SecondGuest:
        """Loads guest 2 at its own addresses and leaves the second processor at its stub."""
        share = self.share
        start = load_guest(GuestMemory(self.memory, share.start, share.end), elf, guest_2_map(share.size), command_line)
        base = _block(heap, HEAP // PAGE)
        self.memory.u8(base, HEAP)[:] = 0
        self.core.lay_out(base)
        n_cr3 = nested_of_its_own(self.memory, heap, share.start, share.end, self.windows,
                                  fn.config_pages(self.memory, share.functions | share.above))
        platform = self.core.platform.second()
        self.core.stand_at_stub(platform, base, start, build_host(self.memory, heap, base + Part.TEXT), n_cr3)
        self._guard_ports(heap, base, fn.function_map(False, share.functions, share.above))
        self.core.console.print("Processor 1 (AP)")
        self.guest = SecondGuest(base, platform, TinyExits(platform, base, 2), start.boot_params)
        return self.guest

    def _guard_ports(self, heap: Heap, base: int, function_map: bytes) -> None:
        """Lets the guest whose block is at `base` exit at the ports of configuration space and resets, and lays its function map."""
        iopm, functions = _block(heap, _IOPM_PAGES), _block(heap, fn.MAP_PAGES)
        self.memory.write(iopm, io_permissions())
        self.memory.write(functions, function_map)
        self.memory.write64(base + Part.DATA + FUNCTION_MAP, functions)
        self.memory.write64(base + Part.DATA + CONFIG_WINDOW, fn.config_window(self.memory))
        vmcb = self.memory.read64(base + Part.DATA + Data.VMCB)
        self.memory.write64(vmcb + ControlArea.IOPM, iopm)
        asked = self.memory.read32(vmcb + ControlArea.INTERCEPTS_1)
        self.memory.write32(vmcb + ControlArea.INTERCEPTS_1, asked | INTERCEPTS_1[ExitCode.IOIO])


def _block(heap: Heap, count: int) -> int:
    """The first of `count` pages of the heap that follow one another.  They are not zeroed; panics where the heap ends."""
    pages = heap.alloc_pages(count)
    if len(pages) < count:
        raise Panic(f"mm_page_alloc: Out of memory for {count} pages of the second guest")
    return int(pages[0])
