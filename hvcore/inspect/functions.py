"""PCI functions as their configuration space is: what each is, what lies behind a bridge, and which unit sees its DMA."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..spec import pci
from . import format as show
from .records import Column, Record, Records

__all__ = ["Function", "read_functions"]

_HEADER_KIND, _BRIDGE_HEADER = 0x7F, 1


class FunctionReader(Protocol):
    """What is read of a PCI function."""

    source: int

    def get(self, offset: int, width: int) -> int:
        """`width` bytes of configuration space, without side effects."""
        ...

    def requester(self) -> int:
        """The requester id that leaves the topmost bridge above."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class Function(Record):
    """One PCI function: `source` is its own requester id, `requester` the one under which its DMA reaches a unit.

    `unit` is the register base of the unit that sees it (host-physical), None where none does.  `secondary` and `subordinate` are the first
    and last bus behind a bridge, None for other functions and for a bridge that leads nowhere.  (PCI Local Bus 3.0, section 6.1.)
    """

    segment: int
    source: int
    requester: int
    vendor: int
    device: int
    class_code: int
    unit: int | None = None
    secondary: int | None = None
    subordinate: int | None = None

    title = "PCI functions"
    legend = "requester: the id that a unit sees; unit: register base"
    columns = (
        Column("segment", lambda f: f.segment, right=True), Column("source", lambda f: pci.format_bdf(f.source)),
        Column("kind", lambda f: f.kind), Column("vendor", lambda f: f.vendor, show.address, True),
        Column("device", lambda f: f.device, show.address, True), Column("requester", lambda f: pci.format_bdf(f.requester)),
        Column("unit", lambda f: f.unit, show.address, True), Column("secondary", lambda f: f.secondary, show.address, True),
        Column("subordinate", lambda f: f.subordinate, show.address, True),
    )

    @property
    def kind(self) -> str:
        """Its class in a word."""
        return pci.class_name(self.class_code)


def read_functions(functions: Mapping[tuple[int, int], FunctionReader], unit_of: Callable[[int, int], int | None]) -> Records[Function]:
    """All functions, which are given by segment and requester id as described; `unit_of(segment, requester)` is the register base of the
    unit that covers a requester id."""
    return Records(Function, [_read(segment, f, unit_of) for (segment, _), f in functions.items()])


def _read(segment: int, function: FunctionReader, unit_of: Callable[[int, int], int | None]) -> Function:
    source, requester = function.source, function.requester()
    bridge = function.get(pci.HEADER_TYPE, 1) & _HEADER_KIND == _BRIDGE_HEADER
    first, last = (function.get(offset, 1) for offset in (pci.SECONDARY_BUS, pci.SUBORDINATE_BUS)) if bridge else (0, 0)
    leads = bridge and first > source >> 8
    return Function(segment, source, requester, function.get(pci.VENDOR_ID, 2), function.get(pci.DEVICE_ID, 2), function.get(pci.CLASS, 3),
                    unit_of(segment, requester), first if leads else None, last if leads else None)
