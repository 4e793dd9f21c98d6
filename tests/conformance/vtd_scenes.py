"""Random scenes: mostly sound tables with structured noise, requests that hit and that just miss them, changes and invalidations."""

import random
import struct
from dataclasses import dataclass

from vtd_scene import (
    ABSENT,
    CCMD,
    DATA,
    DATA_PAGES,
    GCMD,
    PAGE,
    QIE,
    REQUESTERS,
    SLOT,
    SLOTS,
    TABLE_PAGES,
    TABLES,
    TE,
    Ask,
    Operation,
    Poke,
    Scene,
    Variant,
    Write,
)

from hvcore.spec.vtd import ADDRESS, INTERRUPT_RANGE, in_interrupt_range

__all__ = ["CONTEXTS", "PAGING", "QUEUE", "ROOT", "Builder", "Operations", "context_address", "invalidate_contexts", "invalidate_iotlb",
           "random_scene", "through_queue"]

ROOT = TABLES
CONTEXTS = {0: TABLES + PAGE, 5: TABLES + 2 * PAGE, 6: TABLES + 3 * PAGE}
"""Context tables by bus."""
PAGING = TABLES + 4 * PAGE
"""The first page of paging tables."""
QUEUE = TABLES + (TABLE_PAGES - 1) * PAGE
"""The page of the invalidation queue, in scenes that use it."""
IVA, IOTLB, IQT, IQA = 0xF0, 0xF8, 0x88, 0x90
Operations = list[Operation]
_INDEXES = (0, 1, 3, 5, 0x100, 511)
_MIDDLE = (0, 1, 3, 5, 0x100, 508)
"""At level 2, where the last would lead into ROM."""
_LENGTHS = (1, 2, 3, 4, 4, 4, 5, 12, 16, 64, 200, 700, 1500)
"""Of requests that are no word."""
_Noise = tuple[tuple[int, tuple[int, ...]], ...]
_ADDRESS_NOISE = (12, 13, 14, 15, 28, 29, 30, 32, 36, 38, 39, 40, 44, 47, 48, 51)
_FLAG_NOISE = (0, 0, 1, 1, 2, 3, 7, 7, 8, 9, 10, 11, 52, 58, 61, 62, 63)
_CONTEXT_NOISE: _Noise = ((0, (0, 1, 1, 2, 3, 4, 7, 11, 12, 13, 28, 38, 39, 47, 48, 52, 63)), (8, (0, 1, 2, 3, 6, 7, 8, 9, 23, 24, 40, 63)))
_ROOT_NOISE: _Noise = ((0, (0, 1, 5, 11, 28, 38, 39, 47, 63)), (8, (0, 12, 63)))


@dataclass(frozen=True)
class Leaf:
    """A page of `size` bytes at an IOVA, by the entry at host-physical `at`."""

    iova: int
    size: int
    at: int


class Builder:
    """Tables in the pages of `TABLES`: the root, a context table per bus, and what is allocated after them."""

    def __init__(self, variant: Variant):
        self.variant = variant
        self.words: dict[int, int] = {}
        self._next = PAGING
        for bus, table in CONTEXTS.items():
            self.words[ROOT + 16 * bus] = table | 1
        self.leaves: dict[int, list[Leaf]] = {}
        """What each top table maps."""

    def table(self) -> int:
        """A new page."""
        self._next += PAGE
        assert self._next <= QUEUE, "out of table pages"
        return self._next - PAGE

    def context(self, device: int, low: int, high: int) -> None:
        """The context entry of a device."""
        at = context_address(device)
        self.words[at], self.words[at + 8] = low, high

    def map(self, top: int, levels: int, iova: int, entry: int, leaf: int = 1) -> int:
        """Puts a leaf entry at level `leaf`, and tables above it where there are none; the address of the entry."""
        table = top
        for level in range(levels, leaf, -1):
            at = table + 8 * (iova >> 12 + 9 * (level - 1) & 511)
            table = self.words.setdefault(at, self.table() | 3 if at not in self.words else 0) & 0xFFFFF_FFFF_F000
        at = table + 8 * (iova >> 12 + 9 * (leaf - 1) & 511)
        self.words[at] = entry
        self.leaves.setdefault(top, []).append(Leaf(iova, 1 << 12 + 9 * (leaf - 1), at))
        return at

    def scene(self, operations: Operations, root: int | None = ROOT) -> Scene:
        pages: dict[int, bytearray] = {}
        for at, word in self.words.items():
            struct.pack_into("<Q", pages.setdefault(at & -PAGE, bytearray(PAGE)), at % PAGE, word)
        return Scene({at: bytes(page) for at, page in pages.items()}, root, tuple(operations))


def context_address(device: int) -> int:
    """Where the context entry of a device lies."""
    return CONTEXTS[REQUESTERS[device] >> 8] + 16 * (REQUESTERS[device] & 0xFF)


def random_scene(seed: int, variant: Variant, requests: int = SLOTS) -> Scene:
    """The scene of a seed."""
    return _Random(seed, variant).scene(requests)


class _Random:
    def __init__(self, seed: int, variant: Variant):
        self.random, self.used = random.Random(seed), 0
        self.builder = Builder(variant)
        self.depths = (3,) if variant.aw_bits == 39 else (3, 4)
        self.domains = [self._domain(did) for did in (1, 2, 0x1234)]
        self.of = [self._attach(device) for device in range(len(REQUESTERS))]
        self._add_noise()

    def _domain(self, did: int) -> tuple[int, int, int]:
        """(did, levels, top table) of a new domain with a few pages of each size."""
        r, levels, top = self.random, self.random.choice(self.depths), self.builder.table()
        upper = [self._iova(levels) for _ in range(2)]
        for _ in range(r.randrange(4, 10)):
            iova = r.choice(upper) & ~0x1F_FFFF | r.choice(_INDEXES) << 12
            self.builder.map(top, levels, iova, self._leaf(DATA + r.randrange(DATA_PAGES) * PAGE))
        if r.random() < .7:
            self._map_large(top, levels, 2, r.choice(upper) ^ 2 << 21, r.choice((DATA, DATA, ABSENT, 0xFEE0_0000)))
        if r.random() < .5:
            self._map_large(top, levels, 3, r.choice(upper) ^ 2 << 30, r.choice((0, 0, 0x4000_0000, 0xC000_0000)))
        return did, levels, top

    def _map_large(self, top: int, levels: int, leaf: int, iova: int, address: int) -> None:
        shift = 12 + 9 * (leaf - 1)
        self.builder.map(top, levels, iova >> shift << shift, self._leaf(address >> shift << shift) | 0x80, leaf)

    def _leaf(self, address: int) -> int:
        return address | self.random.choice((3, 3, 3, 3, 1, 2, 0)) | self.random.choice((0, 0, 0x60, 0x404, 1 << 63, 0x3FF << 52))

    def _iova(self, levels: int) -> int:
        r = self.random
        iova = r.choice(_INDEXES) << 30 | r.choice(_MIDDLE) << 21
        return iova | (r.choice(_INDEXES) << 39 if levels == 4 else 0)

    def _attach(self, device: int) -> tuple[int, int, int]:
        r = self.random
        domain = did, levels, top = r.choice(self.domains)
        kind = r.choice((0, 0, 0, 0, 0, 0, 0, 2, 1, 3) if r.random() < .3 else (0,))
        self.builder.context(device, top | kind << 2 | (r.random() < .15) << 1 | 1, did << 8 | (r.random() < .1) << 5 | levels - 2)
        return domain

    def _flip(self, at: int, bits: tuple[int, ...]) -> None:
        self.builder.words[at] = self.builder.words.get(at, 0) ^ 1 << self.random.choice(bits)

    def _add_noise(self) -> None:
        r = self.random
        entries = [at for at in self.builder.words if at >= PAGING]
        for at in r.sample(entries, min(len(entries), r.choice((0, 0, 1, 2, 4, 8)))):
            self.builder.words[at] = self._noisy(self.builder.words[at])
        if r.random() < .25:
            word, bits = r.choice(_CONTEXT_NOISE)
            self._flip(context_address(r.randrange(len(REQUESTERS))) + word, bits)
        if r.random() < .08:
            word, bits = r.choice(_ROOT_NOISE)
            self._flip(ROOT + 16 * r.choice(tuple(CONTEXTS)) + word, bits)

    def _noisy(self, entry: int) -> int:
        """An entry with one bit wrong, or all.

        One into the interrupt range keeps its SP bit, so that it never counts as a table, which QEMU would read from the local APIC.
        """
        r = self.random
        if in_interrupt_range(entry & ADDRESS):
            return entry
        kind = r.random()
        if kind < .05:
            return r.choice((0, (1 << 64) - 1, (1 << 64) - 2, (1 << 64) - 4))
        return entry ^ 1 << r.choice(_ADDRESS_NOISE if kind < .4 else _FLAG_NOISE)

    # What happens.

    def scene(self, requests: int) -> Scene:
        r, operations = self.random, Operations()
        changing, sized = r.random() < .5, r.random() < .3
        while self.used < requests - 3:
            if changing and r.random() < .08:
                operations += r.choice((self._change_entry, self._move_a_page, self._change_context))()
            device = r.randrange(len(REQUESTERS))
            target = self._target(device)
            long = self._sized(device, target, requests - 3 - self.used) if sized and r.random() < .2 else None
            operations.append(long or self._ask(device, target))
        return self.builder.scene(through_queue(operations, QUEUE) if changing and r.random() < .4 else operations)

    def _ask(self, device: int, iova: int) -> Ask:
        """The next request for a word: in the 16 bytes of its page that no other such request of the scene touches."""
        self.used += 1
        if _leads_into_rom(iova):
            iova ^= 1 << 21
        return Ask(device, iova & ~0xFFF | SLOT * (self.used - 1), self.random.random() < .5, self.random.random() < .97)

    def _sized(self, device: int, target: int, room: int) -> Ask | None:
        """A request of another size, within a page or over its end; None where it would meet what a scene must leave alone."""
        r, length = self.random, self.random.choice(_LENGTHS)
        if length == 4 and r.random() < .3:
            target = INTERRUPT_RANGE.start | r.getrandbits(8) << 12
        page, over = target & ~0xFFF, r.random() < .4
        start = page + PAGE - r.randrange(length + 1) if over else page | r.choice((r.randrange(PAGE), r.randrange(PAGE) & ~3))
        end, need = start + length, -(-length // SLOT)
        message = length == 4 and not start % 4
        if need > room or end >> 64 or _leads_into_rom(start) or _leads_into_rom(end) or (not message and _near_interrupts(start, end)):
            return None
        self.used += need
        return Ask(device, start, r.random() < .5, r.random() < .97, length)

    def _target(self, device: int) -> int:
        """An IOVA: mostly in a mapped page and at an offset that leads into DATA, else near one or nowhere."""
        r = self.random
        page = r.choice(self.builder.leaves[self.of[device][2]])
        iova = page.iova | {1 << 12: 0, 1 << 21: r.randrange(DATA_PAGES) * PAGE, 1 << 30: DATA + r.randrange(DATA_PAGES) * PAGE}[page.size]
        if r.random() < .8:
            return iova
        return r.choice((iova ^ 1 << r.choice((12, 21, 30, 39, 40, 48, 52, 63)), iova & 0xFFF_FFFF | 0xFEE0_0000, r.getrandbits(39),
                         0xFEDF_F000, 0xFEF0_0000, 0xFEE0_1000, DATA, (1 << 39) - 0x60_1000))

    def _change_entry(self) -> Operations:
        """Software changes any paging entry, and invalidates: everything, just enough, too little or nothing."""
        r, (did, _, top) = self.random, self.random.choice(self.of)
        at = r.choice([a for a in self.builder.words if a >= PAGING])
        iova = r.choice(self.builder.leaves[top]).iova
        return [Poke(at, self._noisy(self.builder.words[at])), *r.choice((
            [], invalidate_contexts(1), invalidate_iotlb(1), invalidate_iotlb(2, did), invalidate_iotlb(2, did ^ 3),
            invalidate_iotlb(3, did, iova, r.choice((0, 0, 1, 3, 9, 18))), [*invalidate_contexts(1), *invalidate_iotlb(1)]))]

    def _move_a_page(self) -> Operations:
        """A page is used, moves, is invalidated nearly or exactly, and is used again."""
        r, device = self.random, self.random.randrange(len(REQUESTERS))
        did, _, top = self.of[device]
        page = r.choice(self.builder.leaves[top])
        address = r.choice((DATA, DATA, 0xFEE0_0000)) + (r.randrange(DATA_PAGES) << 12 if page.size == PAGE else 0)
        entry = address & -page.size | 0x83
        near = page.iova ^ r.choice((0, 0, 1, 2, 7, 0x100, 0x1FF)) << 12
        invalidation = r.choice((
            invalidate_iotlb(3, did, near, r.choice((0, 1, 2, 3, 9))), invalidate_iotlb(2, did), invalidate_iotlb(2, did ^ 3)))
        return [self._ask(device, page.iova), Poke(page.at, entry), *invalidation, self._ask(device, page.iova)]

    def _change_context(self) -> Operations:
        """A device is used, gets other tables, another domain id, FPD or nothing; contexts are invalidated; it is used again."""
        r, device = self.random, self.random.randrange(len(REQUESTERS))
        (did, levels, top), (_, _, other), source = self.of[device], r.choice(self.domains), REQUESTERS[device]
        low, high = r.choice((other | 1, top | 1, top | 3, top | 0xB, 0)), r.choice((did, did, did ^ 0x300)) << 8 | levels - 2
        at, target = context_address(device), self._target(device)
        contexts = r.choice((
            [], invalidate_contexts(1), invalidate_contexts(2, did), invalidate_contexts(2, did ^ 3), invalidate_contexts(3, did, source),
            invalidate_contexts(3, did, source ^ r.randrange(8), r.randrange(4)),
            invalidate_contexts(3, did, source ^ r.randrange(1, 8), 3), invalidate_contexts(3, did ^ 3, source, 3)))
        translations = r.choice(([], invalidate_iotlb(1), invalidate_iotlb(1), invalidate_iotlb(2, did)))
        return [self._ask(device, target), Poke(at, low), Poke(at + 8, high), *contexts, *translations, self._ask(device, target)]


def _leads_into_rom(iova: int) -> bool:
    """Whether an IOVA reaches QEMU's ROM below 4 GiB, be it passed through or by way of a 1 GiB page."""
    return iova & 0x3FE0_0000 == 0x3FE0_0000


def _near_interrupts(start: int, end: int) -> bool:
    """Whether any of a request is in the interrupt range, where QEMU would take its bytes for interrupts."""
    return start < INTERRUPT_RANGE.stop and INTERRUPT_RANGE.start < end


def invalidate_contexts(granularity: int, did: int = 0, source: int = 0, fm: int = 0) -> Operations:
    """A context command."""
    return [Write(CCMD, 8, 1 << 63 | granularity << 61 | fm << 32 | source << 16 | did)]


def invalidate_iotlb(granularity: int, did: int = 0, iova: int = 0, am: int = 0) -> Operations:
    """An IOTLB command."""
    return [Write(IVA, 8, iova & ~0xFFF | am), Write(IOTLB, 8, 1 << 63 | granularity << 60 | did << 32)]


def through_queue(operations: Operations, page: int) -> Operations:
    """The same with the invalidation queue, in `page`: descriptors instead of commands, and a wait descriptor at the end."""
    changed: Operations = [Write(IQT, 8, 0), Write(IQA, 8, page), Write(GCMD, 4, TE | QIE)]
    tail = iva = 0
    for operation in [*operations, Write(IQT, 8, 0)]:
        if not isinstance(operation, Write):
            changed.append(operation)
        elif operation.offset == IVA:
            iva = operation.value
        else:
            low, high = _descriptor(operation, iva, page)
            changed += [Poke(page + tail, low), Poke(page + tail + 8, high), Write(IQT, 8, tail := (tail + 16) % PAGE)]
    return changed


def _descriptor(command: Write, iva: int, page: int) -> tuple[int, int]:
    """What a context or IOTLB command is as a descriptor; any other register: wait, with a status write to the last word of the page."""
    value = command.value
    if command.offset == CCMD:
        return 1 | (value >> 61 & 3) << 4 | (value & 0xFFFF) << 16 | (value >> 16 & 0xFFFF) << 32 | (value >> 32 & 3) << 48, 0
    if command.offset == IOTLB:
        return 2 | (value >> 60 & 3) << 4 | (value >> 32 & 0xFFFF) << 16, iva
    return 5 | 1 << 5 | 0x1234 << 32, page + PAGE - 4
