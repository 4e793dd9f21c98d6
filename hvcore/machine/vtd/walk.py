"""The unit's walk: root entry, context entry, second-level tables, and the evidence of it (VT-d, sections 3.4, 3.7 and 9).

    requester id 15:0    bus 15:8            devfn 7:0
                         index of the root   index of the context table
    IOVA                 ... | 47:39 level 4 | 38:30 level 3 | 29:21 level 2 | 20:12 level 1 | 11:0 offset

A walk looks at tables only, never at caches, and changes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ...errors import Unreadable
from ...spec.bits import bit
from ...spec.dma import Direction
from ...spec.vtd import (
    ADDRESS,
    CONTEXT_HIGH,
    CONTEXT_LOW,
    ECAP,
    RTADDR,
    SP,
    FaultReason,
    R,
    TranslationType,
    W,
    aw_levels,
    entry_reserved,
    in_interrupt_range,
    input_bits,
    leaf_levels,
    level_index,
    level_shift,
    ndoms,
    sagaw_levels,
)

__all__ = ["Context", "Found", "Mapping", "Step", "TableMemory", "Walk", "Walker"]

_PAGE = 4096
_DENIED = {R: FaultReason.READ_DENIED, W: FaultReason.WRITE_DENIED}


class TableMemory(Protocol):
    """Host-physical memory that tables are read from."""

    def read(self, address: int, length: int, /) -> bytes:
        """The bytes at an address; raises `Unreadable` where there is no memory."""
        ...

    def read64(self, address: int, /) -> int:
        """The little-endian word at an address; raises `Unreadable` where there is no memory."""
        ...


class Found(Enum):
    """What a step of a walk came upon."""

    TABLE = "points to the next table"
    LEAF = "maps a page"
    PASS_THROUGH = "passes addresses through"
    ABSENT = "is not present"
    RESERVED = "has reserved bits set"
    INVALID = "asks for what the unit does not do"
    UNREADABLE = "lies where no memory is"


@dataclass(frozen=True, slots=True)
class Step:
    """One entry that a walk read.

    `kind` is `root`, `context` or `page`; `level` is that of a paging entry; `table` the host-physical address of the table; `entry` the
    raw low word, `high` the raw high word of a root or context entry (None where there is none, or where no memory answers).
    `reserved` are the bits set that must not be.
    """

    kind: str
    level: int | None
    table: int
    index: int
    entry: int | None
    high: int | None
    found: Found
    reserved: int = 0

    @property
    def address(self) -> int:
        """Host-physical address of the entry."""
        return self.table + self.index * (8 if self.kind == "page" else 16)


@dataclass(frozen=True, slots=True)
class Context:
    """What a root and a context entry say of one requester, as a unit caches it.

    `reason` is why every request of it is refused (None: they go on); `root` the host-physical second-level table, `bits` the width of a
    legal IOVA, `did` the domain id (0 where there is no valid entry); `low` and `high` are the raw context entry, None where the walk did
    not reach it.
    """

    source: int
    low: int | None = None
    high: int | None = None
    reason: FaultReason | None = None
    fpd: bool = False
    tt: TranslationType = TranslationType.TRANSLATE
    root: int = 0
    levels: int = 0
    bits: int = 0
    did: int = 0


@dataclass(frozen=True, slots=True)
class Mapping:
    """What second-level tables say of one IOVA, as a unit caches it: the page of `size` bytes at host-physical `base`.

    `permission` holds R and W, AND-ed over all levels.  `read` and `write` are why that access is refused (None: it is not).
    Where no leaf was reached `base` is None and `size` 4096.
    """

    base: int | None
    size: int
    permission: int
    read: FaultReason | None
    write: FaultReason | None

    def refusal(self, access: Direction) -> FaultReason | None:
        """Why an access is refused; None where it goes through."""
        return self.read if access is Direction.READ else self.write


@dataclass(frozen=True, slots=True)
class Walk:
    """The evidence of one walk for requester `source` and `iova`: its steps in order, and the verdict.

    `address` is the host-physical address (None: no access gets through), `size` the bytes of the page it lies in, `permission` R and W.
    `read` and `write` say why that access is refused.
    """

    source: int
    iova: int
    steps: tuple[Step, ...]
    context: Context
    address: int | None
    size: int | None
    permission: int
    read: FaultReason | None
    write: FaultReason | None

    def refusal(self, access: Direction) -> FaultReason | None:
        """Why an access is refused; None where it goes through."""
        return self.read if access is Direction.READ else self.write


class Walker:
    """Walks tables in `memory` as a unit with `cap` and `ecap` does on a platform of `haw` host address bits."""

    def __init__(self, memory: TableMemory, cap: int, ecap: int, haw: int):
        self.memory, self.cap, self.ecap, self.haw = memory, cap, ecap, haw
        self._beyond = ~(bit(haw) - 1) & bit(64) - 1
        self._leaf_levels = frozenset(leaf_levels(cap))
        self._depths = frozenset(sagaw_levels(cap))
        self._reserved = {(level, leaf): entry_reserved(level, leaf, cap, ecap, haw) for level in range(1, 7) for leaf in (False, True)}
        self._types = {TranslationType.TRANSLATE} | {t for t, need in (
            (TranslationType.TRANSLATE_ATS, "DT"), (TranslationType.PASS_THROUGH, "PT")) if ECAP.get(ecap, need)}

    def walk(self, root: int, source: int, iova: int) -> Walk:
        """The whole way of `iova` from the latched root-table register `root`."""
        steps: list[Step] = []
        context = self.context(root, source, steps)
        reason = context.reason or self.address_refusal(context, iova)
        if reason:
            return Walk(source, iova, tuple(steps), context, None, None, 0, reason, reason)
        if context.tt is TranslationType.PASS_THROUGH:
            return Walk(source, iova, tuple(steps), context, iova, _PAGE, R | W, None, None)
        mapping = self.mapping(context, iova, steps)
        address = None if mapping.base is None else mapping.base | iova % mapping.size
        if address is not None and in_interrupt_range(address):
            blocked = FaultReason.INTERRUPT_RANGE
            return Walk(source, iova, tuple(steps), context, None, None, 0, mapping.read or blocked, mapping.write or blocked)
        size = None if address is None else mapping.size
        return Walk(source, iova, tuple(steps), context, address, size, mapping.permission, mapping.read, mapping.write)

    def address_refusal(self, context: Context, iova: int) -> FaultReason | None:
        """Why a context refuses an input address before any paging entry is read."""
        if iova >> context.bits:
            return FaultReason.BEYOND_WIDTH
        return FaultReason.INTERRUPT_RANGE if in_interrupt_range(iova) else None

    def context(self, root: int, source: int, steps: list[Step] | None = None) -> Context:
        """The context of a requester; what was read is added to `steps`."""
        trail = [] if steps is None else steps
        table = self._root_entry(root, source, trail)
        return Context(source, reason=table) if isinstance(table, FaultReason) else self._context_entry(table, source, trail)

    def _root_entry(self, root: int, source: int, steps: list[Step]) -> int | FaultReason:
        """The context table of a bus, or why there is none: reasons 8, 1, 0xA in this order."""
        table, bus = root & ~(_PAGE - 1), source >> 8
        pair = self._pair(table + 16 * bus)
        if pair is None or RTADDR.get(root, "TTM"):
            steps.append(Step("root", None, table, bus, None, None, Found.UNREADABLE if pair is None else Found.INVALID))
            return FaultReason.ROOT_TABLE_UNREACHABLE
        low, high = pair
        reserved = low & (0xFFE | self._beyond)
        found = Found.ABSENT if not low & 1 else Found.RESERVED if reserved | high else Found.TABLE
        steps.append(Step("root", None, table, bus, low, high, found, (reserved | high << 64) if found is Found.RESERVED else 0))
        failed = {Found.ABSENT: FaultReason.ROOT_NOT_PRESENT, Found.RESERVED: FaultReason.ROOT_RESERVED}
        return failed[found] if found in failed else low & ADDRESS

    def _context_entry(self, table: int, source: int, steps: list[Step]) -> Context:
        """The context of a function: reasons 9, 2, 0xB, 3 in this order.  FPD counts even in an entry that is not present."""
        devfn = source & 0xFF
        pair = self._pair(table + 16 * devfn)
        if pair is None:
            steps.append(Step("context", None, table, devfn, None, None, Found.UNREADABLE))
            return Context(source, reason=FaultReason.CONTEXT_TABLE_UNREACHABLE)
        low, high = pair
        reserved = low & (0xFF0 | self._beyond) | (high & ~0xFF_FF7F) << 64
        found, reason = self._judge_context(low, high, reserved)
        steps.append(Step("context", None, table, devfn, low, high, found, reserved if found is Found.RESERVED else 0))
        fpd = bool(CONTEXT_LOW.get(low, "FPD"))
        if reason:
            return Context(source, low, high, reason, fpd)
        aw = CONTEXT_HIGH.get(high, "AW")
        return Context(source, low, high, None, fpd, TranslationType(CONTEXT_LOW.get(low, "TT")), low & ADDRESS, aw_levels(aw),
                       input_bits(self.cap, aw), CONTEXT_HIGH.get(high, "DID") % ndoms(self.cap))

    def _judge_context(self, low: int, high: int, reserved: int) -> tuple[Found, FaultReason | None]:
        if not low & 1:
            return Found.ABSENT, FaultReason.CONTEXT_NOT_PRESENT
        if reserved:
            return Found.RESERVED, FaultReason.CONTEXT_RESERVED
        tt = TranslationType(CONTEXT_LOW.get(low, "TT"))
        if aw_levels(CONTEXT_HIGH.get(high, "AW")) not in self._depths or tt not in self._types:
            return Found.INVALID, FaultReason.CONTEXT_INVALID
        return Found.PASS_THROUGH if tt is TranslationType.PASS_THROUGH else Found.TABLE, None

    def mapping(self, context: Context, iova: int, steps: list[Step] | None = None) -> Mapping:
        """What the second-level tables of a context say of `iova`.

        At each level, in the hardware's order: can the entry be read; is it present; are its reserved bits clear; does it permit.
        An access that one level refuses is refused for that reason, whatever lies below.
        """
        refused: dict[int, FaultReason] = {}
        for step in self._descend(context, iova):
            if steps is not None:
                steps.append(step)
            for need in (R, W):
                reason = self._refusal(step, need, context.levels)
                if reason:
                    refused.setdefault(need, reason)
            if step.found is Found.LEAF or len(refused) == 2:
                break
        permission = sum(need for need in (R, W) if need not in refused)
        size = bit(level_shift(step.level or 1)) if permission else _PAGE
        return Mapping((step.entry or 0) & ADDRESS if permission else None, size, permission, refused.get(R), refused.get(W))

    def _descend(self, context: Context, iova: int) -> Iterator[Step]:
        """The entries from the top down to the first that leads no further."""
        table = context.root
        for level in range(context.levels, 0, -1):
            index = level_index(iova, level)
            entry = self._word(table + 8 * index)
            leaf = level == 1 or bool(entry and entry & SP and level in self._leaf_levels)
            reserved = 0 if entry is None else entry & self._reserved[level, leaf]
            found = self._judge_page(entry, leaf, reserved)
            yield Step("page", level, table, index, entry, None, found, reserved if found is Found.RESERVED else 0)
            if found is not Found.TABLE:
                return
            table = (entry or 0) & ADDRESS

    @staticmethod
    def _judge_page(entry: int | None, leaf: bool, reserved: int) -> Found:
        if entry is None:
            return Found.UNREADABLE
        if not entry & (R | W):
            return Found.ABSENT
        if reserved:
            return Found.RESERVED
        return Found.LEAF if leaf else Found.TABLE

    @staticmethod
    def _refusal(step: Step, need: int, top: int) -> FaultReason | None:
        """Why a paging entry refuses an access that needs permission bit `need`."""
        if step.found is Found.UNREADABLE:
            return FaultReason.CONTEXT_INVALID if step.level == top else FaultReason.PAGE_TABLE_UNREACHABLE
        if step.found is Found.RESERVED:
            return FaultReason.PAGE_RESERVED
        return None if (step.entry or 0) & need else _DENIED[need]

    def _word(self, address: int) -> int | None:
        try:
            return self.memory.read64(address)
        except Unreadable:
            return None

    def _pair(self, address: int) -> tuple[int, int] | None:
        try:
            raw = self.memory.read(address, 16)
        except Unreadable:
            return None
        return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")
