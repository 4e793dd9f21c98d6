"""What is odd about a DMAR table: where it breaks the specification's rules, or names what is not there (VT-d, sections 8.2 to 8.9)."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise

from ..spec.dmar import Andd, Atsr, Dmar, Drhd, Rhsa, Rmrr, Scope, ScopeType, Structure, type_of
from ..spec.e820 import E820Entry, E820Type, type_name

__all__ = ["Checks"]

_PAGE = 4096
_FUNCTIONS = (ScopeType.ENDPOINT, ScopeType.BRIDGE)


class Checks:
    """A table looked at as a whole, so that each structure and scope is checked in little time.

    `e820` is firmware's memory map (empty: not known); `resolve(segment, scope)` the requester id that a scope leads to.
    """

    def __init__(self, table: Dmar, e820: tuple[E820Entry, ...], resolve: Callable[[int, Scope], int | None]):
        self.table, self.e820, self.resolve = table, e820, resolve
        drhds = list(table.drhds)
        self._highest = list(accumulate((type_of(s) for s in table.structures), max))
        self._bases = Counter(d.base for d in drhds)
        self._last = {d.segment: d for d in drhds}
        self._include_all = Counter(d.segment for d in drhds if d.include_all)
        self._claims = Counter(claim for d in drhds for claim in {self._claim(d.segment, s) for s in d.scopes})
        self._numbers = Counter(a.number for a in table.andds)
        self._named = {s.enumeration_id for t in table.structures for s in getattr(t, "scopes", ()) if s.type == ScopeType.NAMESPACE}
        self._overlapping = _overlapping(table.rmrrs)

    def _claim(self, segment: int, scope: Scope) -> tuple[int, int, int, int | None]:
        return segment, scope.type, 0 if scope.type in _FUNCTIONS else scope.enumeration_id, self.resolve(segment, scope)

    def structure(self, index: int) -> tuple[str, ...]:
        """What is odd about the structure at `index`, a few words each."""
        structure = self.table.structures[index]
        return (*self._order(index, structure), *self._rules(structure))

    def _order(self, index: int, structure: Structure) -> Iterator[str]:
        """Types must not fall (section 8.2): who reads only the DRHDs at the front misses later ones."""
        highest = self._highest[index]
        if type_of(structure) < highest:
            yield f"out of order: a structure of type {highest} comes before it"

    def _rules(self, structure: Structure) -> Iterator[str]:
        match structure:
            case Drhd():
                yield from self._drhd(structure)
            case Rmrr():
                yield from self._rmrr(structure)
            case Atsr():
                yield from _atsr(structure)
            case Rhsa(base=base) if base not in self._bases:
                yield f"no unit has its registers at {base:#x}"
            case Andd():
                yield from self._andd(structure)

    def _drhd(self, drhd: Drhd) -> Iterator[str]:
        if not drhd.base or drhd.base % _PAGE:
            yield f"registers at {drhd.base:#x}, which is no page"
        if self._bases[drhd.base] > 1:
            yield "another unit has the same registers"
        if drhd.include_all and self._last[drhd.segment] is not drhd:
            yield "INCLUDE_PCI_ALL, but not the last unit of its segment"
        if drhd.include_all and self._include_all[drhd.segment] > 1:
            yield "not the only INCLUDE_PCI_ALL unit of its segment"
        if not drhd.include_all and not drhd.scopes:
            yield "covers nothing: no scopes, no INCLUDE_PCI_ALL"

    def _rmrr(self, rmrr: Rmrr) -> Iterator[str]:
        if not rmrr.scopes:
            yield "names no device"
        if rmrr.limit <= rmrr.base:
            yield "its limit is not above its base"
            return
        if rmrr.base % _PAGE or rmrr.end % _PAGE:
            yield "not whole pages"
        if id(rmrr) in self._overlapping:
            yield "overlaps another RMRR"
        if self.e820:
            yield from _unreserved(self.e820, rmrr)

    def _andd(self, andd: Andd) -> Iterator[str]:
        if self._numbers[andd.number] > 1:
            yield f"number {andd.number} is there more than once"
        if andd.number not in self._named:
            yield "no scope names it"

    def scope(self, structure: Structure, scope: Scope, source: int | None, header: int | None, known: bool) -> Iterator[str]:
        """What is odd about a scope that leads to `source`, where a function has that header type (None: nothing answers there).

        `known` says whether configuration space could be read at all.
        """
        if source is None and (known or not _steps_possible(scope)):
            yield "leads nowhere"
        if scope.type not in ScopeType.__members__.values():
            yield "of no known type"
        if known and source is not None and scope.type in _FUNCTIONS:
            yield from _function(scope, header)
        if scope.type == ScopeType.NAMESPACE and scope.enumeration_id not in self._numbers:
            yield f"no ANDD has number {scope.enumeration_id}"
        if isinstance(structure, Drhd) and source is not None and self._claims[self._claim(structure.segment, scope)] > 1:
            yield "another unit names it, too"


def _steps_possible(scope: Scope) -> bool:
    """Whether every step of a path is a function, and there is one."""
    return bool(scope.path) and all(device < 32 and function < 8 for device, function in scope.path)


def _function(scope: Scope, header: int | None) -> Iterator[str]:
    """An endpoint or bridge scope beside what answers there."""
    if header is None:
        yield "there is no such function"
    elif header == 1 and scope.type == ScopeType.ENDPOINT:
        yield "named as an endpoint, but a bridge"
    elif header != 1 and scope.type == ScopeType.BRIDGE:
        yield "named as a bridge, but none"


def _atsr(atsr: Atsr) -> Iterator[str]:
    if atsr.all_ports and atsr.scopes:
        yield "ALL_PORTS, and yet names some"
    if not atsr.all_ports and not atsr.scopes:
        yield "names no port"
    if any(s.type != ScopeType.BRIDGE for s in atsr.scopes):
        yield "names something else than a port"


def _overlapping(rmrrs: tuple[Rmrr, ...]) -> set[int]:
    """The regions, by `id`, that share a byte with another one."""
    found: set[int] = set()
    reach: Rmrr | None = None
    for rmrr in sorted((r for r in rmrrs if r.limit > r.base), key=lambda r: r.base):
        if reach is not None and rmrr.base < reach.end:
            found |= {id(rmrr), id(reach)}
        if reach is None or rmrr.end > reach.end:
            reach = rmrr
    return found


def _unreserved(e820: tuple[E820Entry, ...], rmrr: Rmrr) -> Iterator[str]:
    """What firmware's map says of the region's memory, where that is not only `reserved`."""
    inside = [e for e in e820 if e.start < rmrr.end and rmrr.base < e.end]
    edges = sorted({rmrr.base, rmrr.end, *(min(max(edge, rmrr.base), rmrr.end) for e in inside for edge in (e.start, e.end))})
    for start, end in pairwise(edges):
        kinds = {e.type for e in inside if e.start <= start < e.end}
        if E820Type.USABLE in kinds:
            yield f"in usable RAM: [{start:#x}, {end:#x})"
        elif kinds != {E820Type.RESERVED}:
            said = " and ".join(map(type_name, sorted(kinds))) or "in no entry"
            yield f"not reserved in E820: [{start:#x}, {end:#x}) is {said}"
