"""What the tables say now of what a unit remembers, entry by entry: beside the caches, the other truth (VT-d, section 6.2)."""

from collections.abc import Callable, Iterator

from ...spec.vtd import FaultReason, TranslationType
from .caches import Cached, CachedMapping
from .interrupts import InterruptEntry
from .walk import Context, Mapping, Walker

__all__ = ["from_tables"]


def from_tables(walker: Walker, root: int, cached: Cached, read_interrupt: Callable[[int], InterruptEntry | None]) -> Cached:
    """All of `cached`, in the same order, as the tables from the latched root-table register `root` and the interrupt table have it now.

    A mapping is read by the tables of its domain id; where no device's context has that domain id any more, nothing is mapped.
    """
    contexts = tuple(walker.context(root, context.source) for context in cached.contexts)
    known = {c.did: c for c in reversed(contexts) if _translates(c)}
    for did in {entry.did for entry in cached.mappings} - set(known):
        context = next((c for c in _contexts(walker, root) if c.did == did), None)
        if context is not None:
            known[did] = context
    mappings = tuple(CachedMapping(e.did, e.start, e.end, _mapping(walker, known.get(e.did), e.start)) for e in cached.mappings)
    return Cached(contexts, mappings, tuple(read_interrupt(e.index) or _unreadable(e.index) for e in cached.interrupts))


def _unreadable(index: int) -> InterruptEntry:
    return InterruptEntry(index, 0, 0, FaultReason.IR_TABLE_UNREACHABLE)


def _contexts(walker: Walker, root: int) -> Iterator[Context]:
    """Every context that translates, by requester id; a bus without a context table is passed over at once."""
    buses = [bus for bus in range(256) if walker.context(root, bus << 8).reason not in _NO_TABLE]
    return (c for bus in buses for devfn in range(256) if _translates(c := walker.context(root, bus << 8 | devfn)))


_NO_TABLE = (FaultReason.ROOT_TABLE_UNREACHABLE, FaultReason.ROOT_NOT_PRESENT, FaultReason.ROOT_RESERVED,
             FaultReason.CONTEXT_TABLE_UNREACHABLE)


def _translates(context: Context) -> bool:
    return context.reason is None and context.tt is not TranslationType.PASS_THROUGH


def _mapping(walker: Walker, context: Context | None, iova: int) -> Mapping:
    if context is None:
        return Mapping(None, 4096, 0, FaultReason.READ_DENIED, FaultReason.WRITE_DENIED)
    reason = walker.address_refusal(context, iova)
    return Mapping(None, 4096, 0, reason, reason) if reason else walker.mapping(context, iova)
