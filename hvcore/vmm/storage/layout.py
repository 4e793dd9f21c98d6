"""The storage driver's pages: what its controller reaches, in one piece, and beside it what only the core does.

    shadow +0      completion queues: 16 pages for the admin queue, 4 for each I/O queue
           ...     submission queues, a page each
           ...     PRP lists, a page for each tag
           ...     buffers, 128 KiB for each tag
    state  +0x0000 control words, then 64 bytes for each submission queue, then for each completion queue
           +0x1000 tags, 512 bytes each

A tag is a command under way: its record says whose it is and where its data lie in the guest's memory.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from ...machine.memory import PAGE, Memory
from ..heap import Heap, Panic

__all__ = ["ADMIN_ENTRIES", "ENTRIES", "QUEUES", "SHADOW_PAGES", "SLOTS", "TAGS", "TRANSFER", "Control", "Cq", "Pages", "Phase", "Record",
           "Sq", "State", "Tag", "take_pages"]

QUEUES, ENTRIES, ADMIN_ENTRIES = 16, 1024, 4096
"""I/O queue pairs, and the entries that a queue of the guest's has at most."""

TAGS, SLOTS = 16, 64
"""Commands under way at once, and the entries of a shadow submission queue, which are more, so that it is never full."""

TRANSFER = 128 << 10
"""Bytes that one command moves at most."""

_ADMIN_CQ, _CQ, _BUFFER = ADMIN_ENTRIES * 16 // PAGE, ENTRIES * 16 // PAGE, TRANSFER // PAGE
_SQS = _ADMIN_CQ + QUEUES * _CQ
_LISTS = _SQS + QUEUES + 1
_BUFFERS = _LISTS + TAGS
SHADOW_PAGES = _BUFFERS + TAGS * _BUFFER
_STATE_PAGES, _SQ_RECORDS, _CQ_RECORDS, _RECORD, _TAG_RECORD = 3, 0x400, 0x900, 64, 512
_U64 = struct.Struct("<Q")


class Phase(IntEnum):
    """Where the driver stands with its controller."""

    OFF = 0
    ENABLING = 1
    ASKING = 2
    READY = 3
    FAILED = 4


class Control(IntEnum):
    """Control words: the phase, the guest's registers, the namespace's blocks, bits of the queues there are, the queue served last."""

    PHASE = 0x00
    CC = 0x08
    AQA = 0x10
    ASQ = 0x18
    ACQ = 0x20
    BLOCKS = 0x28
    SQS = 0x30
    CQS = 0x38
    TURN = 0x40


class Sq(IntEnum):
    """A submission queue of the guest's: entries, where it lies (guest-physical), head, tail, its completion queue; the shadow's tail."""

    SIZE = 0x00
    BASE = 0x08
    HEAD = 0x10
    TAIL = 0x18
    CQ = 0x20
    SLOT = 0x28


class Cq(IntEnum):
    """A completion queue of the guest's: entries, as many as the shadow has; where it lies (guest-physical).

    The rest counts in the shadow: the next entry to look at and its phase, the first that the guest has not taken, and how many the core
    took for itself before the guest's first.
    """

    SIZE = 0x00
    BASE = 0x08
    SEEN = 0x10
    PHASE = 0x18
    ACKED = 0x20
    SKEW = 0x28


class Tag(IntEnum):
    """A command under way: whether it is, its queue, the guest's id, opcode, the core's own answer (0: the controller's), data.

    NUMBER, SIZE, BASE, CQ are those of a queue that it creates or deletes, OWNER tells the core's own command from the guest's.  From
    PIECES on lie the guest-physical addresses of its data, page by page.
    """

    USED = 0x00
    QUEUE = 0x08
    CID = 0x10
    OPCODE = 0x18
    ANSWER = 0x20
    LENGTH = 0x28
    OUTWARD = 0x30
    LBA = 0x38
    DETAIL = 0x40
    NUMBER = 0x48
    SIZE = 0x50
    BASE = 0x58
    CQ = 0x60
    OWNER = 0x68
    PIECES = 0x80


class Record:
    """64-bit words in the driver's state pages, read and written where they lie."""

    __slots__ = ("at", "memory")

    def __init__(self, memory: Memory, at: int):
        self.memory, self.at = memory, at

    def __getitem__(self, word: int) -> int:
        return int(_U64.unpack_from(self.memory.map, self.at + word)[0])

    def __setitem__(self, word: int, value: int) -> None:
        _U64.pack_into(self.memory.map, self.at + word, value & 0xFFFF_FFFF_FFFF_FFFF)

    def clear(self, size: int = _RECORD) -> None:
        """All zeros."""
        self.memory.map[self.at:self.at + size] = bytes(size)


@dataclass(frozen=True)
class Pages:
    """Where the driver's pages lie (host-physical): those that its controller reaches are [shadow, end)."""

    shadow: int
    state: int

    @property
    def end(self) -> int:
        """Behind the last page that the controller reaches."""
        return self.shadow + SHADOW_PAGES * PAGE

    @property
    def last(self) -> int:
        """Behind the driver's last page."""
        return self.state + _STATE_PAGES * PAGE

    def cq(self, number: int) -> int:
        """A shadow completion queue."""
        return self.shadow + (_ADMIN_CQ + (number - 1) * _CQ if number else 0) * PAGE

    def sq(self, number: int) -> int:
        """A shadow submission queue."""
        return self.shadow + (_SQS + number) * PAGE

    def prp_list(self, tag: int) -> int:
        """The list of all pages but the first of a tag's buffer."""
        return self.shadow + (_LISTS + tag) * PAGE

    def buffer(self, tag: int) -> int:
        """A tag's buffer."""
        return self.shadow + (_BUFFERS + tag * _BUFFER) * PAGE


def take_pages(memory: Memory, heap: Heap) -> Pages:
    """Zeroed pages from the heap, with the PRP lists in them; panics where the heap has too few."""
    first = heap.alloc_pages(SHADOW_PAGES + _STATE_PAGES)
    if len(first) < SHADOW_PAGES + _STATE_PAGES:
        raise Panic("mm_page_alloc(0): Out of memory")
    pages = Pages(int(first[0]), int(first[0]) + SHADOW_PAGES * PAGE)
    memory.u8(pages.shadow, (SHADOW_PAGES + _STATE_PAGES) * PAGE)[:] = 0
    for tag in range(TAGS):
        buffer = pages.buffer(tag)
        memory.u64(pages.prp_list(tag), _BUFFER - 1)[:] = range(buffer + PAGE, buffer + TRANSFER, PAGE)
    return pages


class State:
    """The driver's state pages at `at` (host-physical).  A record that cannot be what the driver left there is a panic."""

    def __init__(self, memory: Memory, at: int):
        self.memory, self.at = memory, at
        self.control = Record(memory, at)

    def sq(self, number: int) -> Record:
        """A submission queue's record."""
        q = Record(self.memory, self.at + _SQ_RECORDS + number * _RECORD)
        size = max(q[Sq.SIZE], 1)
        _sound(size <= ADMIN_ENTRIES and q[Sq.HEAD] < size and q[Sq.TAIL] < size and q[Sq.CQ] <= QUEUES and q[Sq.SLOT] < SLOTS)
        return q

    def cq(self, number: int) -> Record:
        """A completion queue's record."""
        q = Record(self.memory, self.at + _CQ_RECORDS + number * _RECORD)
        size = max(q[Cq.SIZE], 1)
        indices = q[Cq.SEEN], q[Cq.ACKED], q[Cq.SKEW]
        _sound(size <= (ENTRIES if number else ADMIN_ENTRIES) and max(indices) < size and q[Cq.PHASE] <= 1)
        return q

    def tag(self, number: int) -> Record:
        """A tag's record."""
        t = Record(self.memory, self.at + PAGE + number * _TAG_RECORD)
        _sound(t[Tag.QUEUE] <= QUEUES and t[Tag.LENGTH] <= TRANSFER and t[Tag.NUMBER] <= QUEUES and t[Tag.CQ] <= QUEUES
               and t[Tag.SIZE] <= ENTRIES)
        return t

    def live(self, word: Control) -> list[int]:
        """The queues whose bits are set in SQS or CQS."""
        bits = self.control[word]
        _sound(not bits >> QUEUES + 1)
        return [n for n in range(bits.bit_length()) if bits >> n & 1]

    def mark(self, word: Control, number: int, there: bool) -> None:
        """Sets or clears a queue's bit."""
        bits = self.control[word]
        self.control[word] = bits | 1 << number if there else bits & ~(1 << number)

    def tags(self) -> list[int]:
        """The tags in use."""
        return [n for n in range(TAGS) if Record(self.memory, self.at + PAGE + n * _TAG_RECORD)[Tag.USED]]

    def free_tag(self) -> int | None:
        """A tag that is not in use."""
        return next((n for n in range(TAGS) if not Record(self.memory, self.at + PAGE + n * _TAG_RECORD)[Tag.USED]), None)

    def forget(self) -> None:
        """No queue, no tag."""
        for word in (Control.SQS, Control.CQS, Control.TURN, Control.BLOCKS):
            self.control[word] = 0
        Record(self.memory, self.at + _SQ_RECORDS).clear(_CQ_RECORDS - _SQ_RECORDS + (QUEUES + 1) * _RECORD)
        Record(self.memory, self.at + PAGE).clear(TAGS * _TAG_RECORD)


def _sound(holds: bool) -> None:
    if not holds:
        raise Panic("nvme: the storage driver's records are damaged")
