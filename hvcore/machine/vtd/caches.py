"""What a unit remembers of tables: contexts, translations, interrupt entries, stale until they are invalidated (VT-d, section 6.2)."""

from dataclasses import dataclass

from ...spec.vtd import FUNCTION_MASK
from .interrupts import InterruptEntry
from .walk import Context, Mapping

__all__ = ["Cached", "CachedMapping", "ContextCache", "Iotlb"]

_PAGE_SHIFT = 12
_SHIFTS = (12, 21, 30)


@dataclass(frozen=True, slots=True)
class CachedMapping:
    """One IOTLB entry: the half-open IOVA range [start, end) of domain `did` and what the tables said of it when it was filled."""

    did: int
    start: int
    end: int
    mapping: Mapping


@dataclass(frozen=True, slots=True)
class Cached:
    """All that a unit remembers at one moment."""

    contexts: tuple[Context, ...]
    mappings: tuple[CachedMapping, ...]
    interrupts: tuple[InterruptEntry, ...] = ()


class ContextCache:
    """Contexts by source id, tagged with a domain id; an entry that allows nothing (held in caching mode only) has domain id 0."""

    def __init__(self) -> None:
        self.entries: dict[int, Context] = {}

    def insert(self, context: Context) -> None:
        """Remembers a context."""
        self.entries[context.source] = context

    def invalidate_all(self) -> None:
        """Global invalidation."""
        self.entries.clear()

    def invalidate_domain(self, did: int) -> None:
        """Forgets the contexts of one domain."""
        self.entries = {source: c for source, c in self.entries.items() if c.did != did}

    def invalidate_device(self, did: int, source: int, fm: int) -> None:
        """Forgets the contexts of `source` that are tagged `did`; `fm` says which bits of the function number do not count."""
        kept = ~FUNCTION_MASK[fm]
        self.entries = {s: c for s, c in self.entries.items() if c.did != did or s & kept != source & kept}


class Iotlb:
    """Translations by domain id and page, of 4 KiB, 2 MiB and 1 GiB; the oldest makes room when `capacity` of one size is reached.

    Devices that share a domain id share its entries, also where their tables differ: that is what the tag means.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self.capacity = capacity
        self._sizes: tuple[dict[tuple[int, int], Mapping], ...] = ({}, {}, {})

    def find(self, did: int, iova: int) -> Mapping | None:
        """The entry that answers for an IOVA, the smallest page first."""
        small, large, huge = self._sizes
        found = small.get((did, iova >> 12))
        if found is None and large:
            found = large.get((did, iova >> 21))
        if found is None and huge:
            found = huge.get((did, iova >> 30))
        return found

    def insert(self, did: int, iova: int, mapping: Mapping) -> None:
        """Remembers what the tables said of the page that holds an IOVA."""
        shift = mapping.size.bit_length() - 1
        entries = self._sizes[_SHIFTS.index(shift)]
        if len(entries) >= self.capacity:
            del entries[next(iter(entries))]
        entries[did, iova >> shift] = mapping

    def entries(self) -> tuple[CachedMapping, ...]:
        """Every entry, by domain and IOVA."""
        found = [CachedMapping(did, page << shift, page + 1 << shift, mapping)
                 for shift, entries in zip(_SHIFTS, self._sizes, strict=True) for (did, page), mapping in entries.items()]
        return tuple(sorted(found, key=lambda e: (e.did, e.start, e.end)))

    def by_domain(self) -> dict[int, list[tuple[int, dict[int, Mapping]]]]:
        """By domain id the page sizes it has entries of, as address bits below the page number, the smallest first, and those entries."""
        found: dict[int, dict[int, dict[int, Mapping]]] = {}
        for shift, entries in zip(_SHIFTS, self._sizes, strict=True):
            for (did, page), mapping in entries.items():
                found.setdefault(did, {}).setdefault(shift, {})[page] = mapping
        return {did: list(sizes.items()) for did, sizes in found.items()}

    def invalidate_all(self) -> None:
        """Global invalidation."""
        for entries in self._sizes:
            entries.clear()

    def invalidate_domain(self, did: int) -> None:
        """Forgets a domain's translations."""
        for entries in self._sizes:
            for key in [k for k in entries if k[0] == did]:
                del entries[key]

    def invalidate_pages(self, did: int, iova: int, am: int) -> None:
        """Forgets a domain's translations that touch the 2**`am` pages of 4 KiB around `iova`, aligned to their size; superpages whole."""
        first = iova >> _PAGE_SHIFT + am << am
        last = first + (1 << am) - 1
        for shift, entries in zip(_SHIFTS, self._sizes, strict=True):
            low, high = first >> shift - _PAGE_SHIFT, last >> shift - _PAGE_SHIFT
            for key in [k for k in entries if k[0] == did and low <= k[1] <= high]:
                del entries[key]
