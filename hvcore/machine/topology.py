"""Which remapping unit sees a function's DMA, as the wiring of the machine decides it (VT-d 4.1, section 8.3)."""

from collections.abc import Container, Iterable
from dataclasses import dataclass

from ..spec.dmar import Dmar, Scope, ScopeType
from ..spec.pci import PortType, bdf, forwarding_type, requester_behind, split_bdf
from .description import PciDescription
from .express import express_type

__all__ = ["Enumerator", "Topology"]

_ENUMERATED = (ScopeType.IOAPIC, ScopeType.HPET, ScopeType.NAMESPACE)


@dataclass(frozen=True, slots=True)
class Enumerator:
    """An IOAPIC, HPET or ACPI device as a scope of unit `unit` names it; `source` is its requester id, None: the path leads nowhere."""

    unit: int
    scope: Scope
    segment: int
    source: int | None


@dataclass(frozen=True, slots=True)
class _Hop:
    """A bridge, by its own requester id, the bus behind it, its type and the one by which it forwards."""

    source: int
    secondary: int
    express: PortType | None
    forwards_as: PortType | None


class Topology:
    """The units of a DMAR table over a tree of PCI functions.

    A unit is its index among the table's DRHDs, a function its (segment, requester id).  The most specific claim wins: a scope that
    names the function; else the innermost bridge scope above it; else the segment's INCLUDE_PCI_ALL unit.  Of two equal claims the
    table's first wins.  `unresolved` are scopes whose path leads through a bridge that is not there, or names an impossible function,
    each with its unit's index; `enumerators` are the units' IOAPICs, HPETs and ACPI devices.
    """

    def __init__(self, dmar: Dmar | None, functions: Iterable[PciDescription]):
        self.functions = tuple(functions)
        self._behind = {(f.segment, f.source): range(f.secondary, f.subordinate + 1) for f in self.functions if f.secondary}
        self._by_function: dict[tuple[int, int], int] = {}
        self._by_bus: dict[tuple[int, int], tuple[int, int]] = {}
        self._rest: dict[int, int] = {}
        unresolved = []
        for index, drhd in enumerate(dmar.drhds if dmar else ()):
            if drhd.include_all:
                self._rest.setdefault(drhd.segment, index)
            unresolved += [(index, s) for s in drhd.scopes if not self._claim(index, drhd.segment, s)]
        self.unresolved: tuple[tuple[int, Scope], ...] = tuple(unresolved)
        self.enumerators = tuple(Enumerator(index, s, d.segment, self.resolve(d.segment, s))
                                 for index, d in enumerate(dmar.drhds if dmar else ()) for s in d.scopes if s.type in _ENUMERATED)
        self._above = _hops(self.functions)

    @property
    def ioapic(self) -> Enumerator | None:
        """The machine's I/O APIC: the first that a unit's scope names by a path that leads somewhere; None where no unit names one."""
        return next((e for e in self.enumerators if e.scope.type == ScopeType.IOAPIC and e.source is not None), None)

    def _claim(self, index: int, segment: int, scope: Scope) -> bool:
        source = self.resolve(segment, scope)
        if source is None:
            return False
        self._by_function.setdefault((segment, source), index)
        if scope.type == ScopeType.BRIDGE:
            buses = self._behind.get((segment, source), range(0))
            for bus in buses:
                held = self._by_bus.get((segment, bus))
                if held is None or len(buses) < held[0]:
                    self._by_bus[segment, bus] = len(buses), index
        return True

    def resolve(self, segment: int, scope: Scope) -> int | None:
        """The requester id that a scope's path leads to, bridge by bridge by their secondary bus numbers; None where it leads nowhere."""
        bus: int | None = scope.start_bus
        source = None
        for device, function in scope.path:
            if bus is None or device > 31 or function > 7:
                return None
            source = bdf(bus, device, function)
            behind = self._behind.get((segment, source))
            bus = behind.start if behind else None
        return source

    def unit_index(self, segment: int, source: int) -> int | None:
        """The unit that covers requester `source`; None where none does and its DMA goes untranslated."""
        named = self._by_function.get((segment, source))
        if named is not None:
            return named
        bridged = self._by_bus.get((segment, split_bdf(source)[0]))
        return bridged[1] if bridged else self._rest.get(segment)

    def first_uncovered(self, segment: int, known: Container[int] = ()) -> int | None:
        """The lowest requester id, of those that are not `known`, that no unit covers; None where units cover all of the segment."""
        if segment in self._rest:
            return None
        return next((s for s in range(1 << 16) if s not in known and self.unit_index(segment, s) is None), None)

    def requester(self, segment: int, source: int) -> int:
        """The requester id that a unit sees of function `source`: its own, or what the topmost bridge that replaces it puts there."""
        above = self._above.get((segment, split_bdf(source)[0]))
        while above:
            source = requester_behind(source, above.forwards_as, above.source, above.secondary)
            above = self._above.get((segment, split_bdf(above.source)[0]))
        return source

    def covered(self, index: int) -> tuple[PciDescription, ...]:
        """The functions of the tree whose DMA unit `index` sees, in the tree's order."""
        return tuple(f for f in self.functions if self.unit_index(f.segment, self.requester(f.segment, f.source)) == index)

    def requesters(self, index: int) -> tuple[int, ...]:
        """The requester ids that belong to unit `index`: of each function it covers its own, and the one it is seen under."""
        pairs = ((f.source, self.requester(f.segment, f.source)) for f in self.covered(index))
        return tuple(dict.fromkeys(source for pair in pairs for source in pair))


def _hops(functions: Iterable[PciDescription]) -> dict[tuple[int, int], _Hop]:
    """The bridge above each bus, by (segment, bus).  Bus numbers grow downwards, so that the one above is known first."""
    hops: dict[tuple[int, int], _Hop] = {}
    for f in sorted(functions, key=lambda f: (f.segment, f.source)):
        if f.secondary > f.source >> 8 and (f.segment, f.secondary) not in hops:
            above = hops.get((f.segment, f.source >> 8))
            outer = above.express if above else None
            own = express_type(f, above is None, outer)
            hops[f.segment, f.secondary] = _Hop(f.source, f.secondary, own, forwarding_type(f.vendor, f.device_id, own, outer))
    return hops
