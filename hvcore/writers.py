"""What the log of writes must know of the core, and what is known of words and addresses beside the log."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .inspect.domains import Domain
from .inspect.e820 import E820Map
from .inspect.provenance import NOBODY, UNSEEN, Told
from .inspect.scan import scan
from .machine.memory import Memory
from .machine.pc import Pc
from .machine.writes import WriteLog
from .spec.e820 import type_name
from .spec.paging import NESTED, PAGE
from .vmm.core import Core
from .vmm.layout import HEAP

__all__ = ["follow", "untold", "what_lies"]


def follow(log: WriteLog, core: Callable[[], Core | None]) -> None:
    """Lets a log keep the writers of the core's memory, whatever core there is by then."""
    known = _Known(log, core)
    log.region, log.top, log.opens = known.region, known.top, known.opens


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """What a log asks of the core that there is by then."""

    log: WriteLog
    core: Callable[[], Core | None]

    def region(self) -> list[tuple[int, int]]:
        """The core's memory."""
        return _region(self.core())

    def top(self) -> int | None:
        """The next free page of its heap."""
        return _top(self.core())

    def opens(self, address: int) -> bool:
        """Whether an address holds what keeps guests out."""
        return _keeps_guests_out(self.log, self.core(), address)


def _region(core: Core | None) -> list[tuple[int, int]]:
    """The core's half-open range, host-physical; none before it has one."""
    return [] if core is None or core.base is None else [(core.base, core.base + core.size)]


def _top(core: Core | None) -> int | None:
    return core.heap.top if core and core.heap else None


def _keeps_guests_out(log: WriteLog, core: Core | None, address: int) -> bool:
    """Whether an address of the core's region holds what guests are kept out by: its first pages, and those taken for guests."""
    top = log.top_when("guest")
    return any(address < base + HEAP for base, _ in _region(core)) or top is None or address >= top


def untold(pc: Pc, core: Core | None, word: int) -> Told:
    """What is known of a word of which no write was seen."""
    zero = not pc.memory.backed(word, 8) or not pc.memory.read64(word)
    phase = pc.writes.handed_out_in(word)
    base = next((start for start, end in _region(core) if start <= word < end), None)
    if base is not None and phase is not None:
        return Told("core", "the core's policy", phase, "it took the page in this phase; nobody else was seen to write since")
    if base is not None and word < base + HEAP and zero:
        text = pc.writes.newest(base)
        return Told("core", "the core's policy", text.phase if text else "", "cleared with the first pages of its memory")
    if zero:
        return Told(NOBODY, "nobody", "", "zeros, as at power-on; whoever wrote zeros was not seen")
    return Told(UNSEEN, "a processor, or the core as it loaded the guest" if base is None else "the world switch", "", "not watched then")


def what_lies(memory: Memory, domains: Iterable[Domain], nested_root: int | None, parts: Sequence[tuple[str, int, int]],
              e820: E820Map) -> Callable[[int], str]:
    """What lies at a host-physical address, in words: a table, a part of the core, or what firmware's E820 says."""
    nested = scan(memory, NESTED, nested_root, 4).tables if nested_root is not None else None
    owned = [("the guest's nested tables", nested)] if nested is not None else []
    owned += [(f"second-level tables of domain {d.did} of unit {d.unit or 0:#x}", d.tables) for d in domains]

    def lies(address: int) -> str:
        page = np.uint64(address & -PAGE)
        tables = (name for name, pages in owned if (i := int(np.searchsorted(pages, page))) < len(pages) and pages[i] == page)
        part = next((f"the core's {name}" for name, start, end in parts if start <= address < end), None)
        entry = next((type_name(e.type) for e in e820.firmware if e.start <= address < e.end), "no entry")
        return next(tables, None) or part or f"memory that firmware's E820 calls {entry}"

    return lies
