"""The guests of a run, each with what is its own: RAM, devices, console, and how it fares.

What a guest has is read where the core and the processor have it: the map in its boot_params, its nested tables, and, where there are two,
the map of functions in its block of the core's memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import outcome
from .errors import Unreadable
from .inspect import format as show
from .inspect.lens import Fact
from .inspect.records import Column, Record
from .inspect.runs import Runs
from .inspect.scan import scan
from .machine.longmode import translate
from .machine.memory import Memory
from .spec.e820 import E820Entry
from .spec.linuxboot import BOOT_PARAMS_SIZE, told_e820
from .spec.paging import NESTED
from .spec.pci import format_bdf
from .spec.svm import ControlArea
from .vmm.layout import Data, Part
from .vmm.tiny.exits import FUNCTION_MAP
from .vmm.tiny.functions import mapped_functions

__all__ = ["GuestView", "Tenure", "look_at", "owned_functions", "reached_by", "told_map"]

Range = tuple[int, int]


def _ranges(value: object) -> str:
    return " ".join(f"{a:#x}-{b:#x}" for a, b in value) if isinstance(value, tuple) else ""


@dataclass(frozen=True, slots=True, repr=False)
class GuestView(Record):
    """One guest.  `ram` are the half-open host-physical ranges that it may use as RAM, `devices` the requester ids of its PCI functions,
    `console` what it printed, `e820` the map it was told (guest-physical), `cpu` what its processor reaches (guest-physical runs)."""

    number: int
    outcome: str
    why: str
    ram: tuple[Range, ...]
    devices: tuple[int, ...]
    console: str
    e820: tuple[E820Entry, ...]
    cpu: Runs
    _send: Callable[[str], str] = field(compare=False)

    title = "Guests"
    legend = "ram: host-physical, half-open"
    columns = (
        Column("name", lambda g: g.name), Column("outcome", lambda g: g.outcome), Column("ram", lambda g: g.ram, _ranges),
        Column("devices", lambda g: tuple(map(format_bdf, g.devices)), show.devices), Column("why", lambda g: g.why),
    )

    @property
    def name(self) -> str:
        """`guest 1` or `guest 2`."""
        return f"guest {self.number}"

    def command(self, line: str) -> str:
        """Types a line to this guest's monitor; its answer without echo and prompt.  Raises HvlabError where it does not listen."""
        return self._send(line)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `console` by lines."""
        return {"name": self.name, "outcome": self.outcome, "why": self.why, "ram": [list(r) for r in self.ram],
                "devices": [format_bdf(d) for d in self.devices], "console": self.console.splitlines()}


@dataclass(frozen=True)
class Tenure:
    """Where a guest is to be found: its number, its block of the core's memory and the guest-physical address of its boot_params."""

    number: int
    base: int
    boot_params: int


def look_at(memory: Memory, tenure: Tenure, functions: Sequence[int], split: bool, ending: outcome.Ending, console: str,
            send: Callable[[str], str]) -> GuestView:
    """Reads a guest.  `functions` are the machine's of segment 0; where it is not `split`, all are its own.

    Where the core's pointers lead nowhere any more, only console and ending are told.
    """
    try:
        root = memory.read64(memory.read64(tenure.base + Part.DATA + Data.VMCB) + ControlArea.N_CR3)
        devices = owned_functions(memory, tenure.base, functions) if split else tuple(functions)
    except Unreadable:
        return GuestView(tenure.number, ending.outcome, ending.why, (), (), console, (), Runs.of([]), send)
    cpu = scan(memory, NESTED, root, 4).runs
    e820 = told_map(memory, root, tenure.boot_params)
    return GuestView(tenure.number, ending.outcome, ending.why, tuple(_ram(e820, cpu)), devices, console, e820, cpu, send)


def reached_by(guest: GuestView, address: int) -> Iterator[Fact]:
    """At which of its guest-physical addresses a guest's processor reaches a host-physical one."""
    found = list(guest.cpu.reaching(address))
    for at, run in found[:3]:
        yield Fact(f"{guest.name}'s CPU", f"{run.perm} at guest-physical {at:#x}", run.start + run.offset, run.end + run.offset)
    if not found:
        yield Fact(f"{guest.name}'s CPU", "not reachable")


def told_map(memory: Memory, root: int, boot_params: int) -> tuple[E820Entry, ...]:
    """The map in the boot_params at a guest-physical address, through the nested tables at `root`."""
    at = translate(memory, root, boot_params)
    if at is None or not memory.backed(at, BOOT_PARAMS_SIZE):
        return ()
    return told_e820(memory.read(at, BOOT_PARAMS_SIZE))


def owned_functions(memory: Memory, base: int, functions: Sequence[int]) -> tuple[int, ...]:
    """Those of `functions` (requester ids of segment 0) that the guest whose block is at `base` may write to."""
    return mapped_functions(memory, memory.read64(base + Part.DATA + FUNCTION_MAP), functions)


def _ram(e820: Sequence[E820Entry], cpu: Runs) -> Iterator[Range]:
    """The usable entries as host-physical ranges, by the nested tables; pieces that follow one another are one."""
    pieces: list[Range] = []
    for e in sorted(e for e in e820 if e.usable):
        hits = np.flatnonzero((cpu.start < np.uint64(e.end)) & (cpu.end > np.uint64(e.start)) & cpu.granting)
        pieces += [(max(e.start, r.start) + r.offset, min(e.end, r.end) + r.offset) for r in (cpu[int(i)] for i in hits)]
    last: Range | None = None
    for start, end in pieces:
        if last is not None and last[1] == start:
            last = last[0], end
            continue
        if last is not None:
            yield last
        last = start, end
    if last is not None:
        yield last
