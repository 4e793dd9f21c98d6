"""Invalidation of the caches: what the commands mean, and the queue that carries them (VT-d, sections 6.5 and 10.4.21 to 10.4.28)."""

from collections.abc import Callable

from ...errors import Unreadable
from ...spec.bits import Layout, mask
from ...spec.interrupts import QUEUE_IEC
from ...spec.vtd import (
    CAP,
    CCMD,
    ECAP,
    FSTS,
    GSTS,
    ICS,
    IOTLB,
    IQA,
    IVA,
    QUEUE_CONTEXT,
    QUEUE_IOTLB,
    QUEUE_RESERVED,
    QUEUE_WAIT,
    ndoms,
)
from ..memory import Memory
from .caches import ContextCache, Iotlb
from .faults import FaultLog
from .interrupts import InterruptRemapper
from .registers import EventRegisters, RegisterFile

__all__ = ["InvalidationQueue", "Invalidator", "Note"]

Note = Callable[[str, int, str], None]
"""Remembers (register, value, what the unit made of it)."""

_GLOBAL, _DOMAIN, _SELECTIVE = 1, 2, 3


class Invalidator:
    """Carries invalidations out.  Each returns the granularity of what was done, 0 where the request was wrong and nothing was done."""

    def __init__(self, cap: int, contexts: ContextCache, iotlb: Iotlb):
        self.contexts, self.iotlb = contexts, iotlb
        self._psi, self._mamv, self._domains = CAP.get(cap, "PSI"), CAP.get(cap, "MAMV"), ndoms(cap)

    def invalidate_contexts(self, granularity: int, did: int, source: int, fm: int) -> int:
        """The context cache: 1 all, 2 domain `did`, 3 the functions of `source` that were in `did`."""
        did %= self._domains
        if granularity == _GLOBAL:
            self.contexts.invalidate_all()
        elif granularity == _DOMAIN:
            self.contexts.invalidate_domain(did)
        elif granularity == _SELECTIVE:
            self.contexts.invalidate_device(did, source, fm)
        return granularity

    def invalidate_iotlb(self, granularity: int, did: int, address: int, am: int) -> int:
        """The IOTLB: 1 all, 2 domain `did`, 3 the 2**`am` pages at IOVA `address`; without CAP.PSI a page request does the whole domain."""
        did %= self._domains
        if granularity == _GLOBAL:
            self.iotlb.invalidate_all()
        elif granularity == _DOMAIN or (granularity == _SELECTIVE and not self._psi):
            self.iotlb.invalidate_domain(did)
            return _DOMAIN
        elif granularity == _SELECTIVE:
            if am > self._mamv:
                return 0
            self.iotlb.invalidate_pages(did, address, am)
        return granularity

    def context_command(self, file: RegisterFile, note: Note) -> None:
        """CCMD was written: with ICC set, does what CIRG asks, says what in CAIG and clears ICC."""
        word = file["CCMD"]
        if not CCMD.get(word, "ICC"):
            return
        f = CCMD.decode(word)
        done = 0 if _queued(file) else self.invalidate_contexts(f["CIRG"], f["DID"], f["SID"], f["FM"])
        file["CCMD"] = _completed(CCMD, word, "ICC", "CAIG", done)
        if not done:
            note("CCMD", word, "nothing invalidated: " + _why(file))

    def iotlb_command(self, file: RegisterFile, note: Note) -> None:
        """IOTLB was written: with IVT set, does what IIRG asks (page and mask from IVA), says what in IAIG and clears IVT."""
        word = file["IOTLB"]
        if not IOTLB.get(word, "IVT"):
            return
        f, iva = IOTLB.decode(word), file["IVA"]
        done = 0 if _queued(file) else self.invalidate_iotlb(f["IIRG"], f["DID"], iva & IVA["ADDR"].mask, IVA.get(iva, "AM"))
        file["IOTLB"] = _completed(IOTLB, word, "IVT", "IAIG", done)
        if not done:
            note("IOTLB", word, "nothing invalidated: " + _why(file))


def _queued(file: RegisterFile) -> int:
    return GSTS.get(file["GSTS"], "QIES")


def _why(file: RegisterFile) -> str:
    return "queued invalidation is enabled" if _queued(file) else "the granularity or the address mask is not supported"


def _completed(layout: Layout, word: int, busy: str, actual: str, done: int) -> int:
    return layout[busy].put(layout[actual].put(word, done), 0)


def _misplaced(head: int, tail: int, size: int, step: int) -> str:
    """What is wrong with the pointers of a queue of `size` bytes and descriptors of `step`, empty where nothing is."""
    if tail >= size:
        return "the tail lies beyond the queue"
    return "head or tail lies within a 256-bit descriptor" if (head | tail) % step else ""


class InvalidationQueue:
    """The queue in memory between IQH and IQT.  Descriptors are carried out in order as soon as the tail moves.

    They have 16 bytes, or 32 where IQA.DW says so, which only units with scalable mode take.
    """

    def __init__(self, memory: Memory, file: RegisterFile, invalidator: Invalidator, interrupts: InterruptRemapper, faults: FaultLog,
                 event: EventRegisters, note: Note):
        self.memory, self.file, self.invalidator, self.interrupts = memory, file, invalidator, interrupts
        self.faults, self.event, self.note = faults, event, note
        ecap = file["ECAP"]
        self._verbs: dict[int, Callable[[int, int], bool]] = {1: self._context, 2: self._iotlb, 5: self._wait}
        if ECAP.get(ecap, "DT"):
            self._verbs[3] = self._accept
        if ECAP.get(ecap, "IR"):
            self._verbs[4] = self._interrupt_entries

    def run(self) -> None:
        """Fetches until head meets tail, or until a descriptor is wrong: then FSTS.IQE is set and IQH stays at it."""
        word, tail = self.file["IQA"], self.file["IQT"]
        base, size, step = word & IQA["IQA"].mask, 4096 << IQA.get(word, "QS"), 32 if IQA.get(word, "DW") else 16
        while _queued(self.file) and not self.file["FSTS"] & FSTS["IQE"].mask and self.file["IQH"] != tail:
            head = self.file["IQH"]
            wrong = _misplaced(head, tail, size, step)
            if wrong or step == 32 and not self._empty(base + head + 16) or not self._carry_out(base + head):
                self.note("IQH", head, f"queue error: {wrong or 'wrong descriptor'}")
                self.faults.raise_status(FSTS["IQE"].mask)
            else:
                self.file["IQH"] = (head + step) % size

    def _empty(self, address: int) -> bool:
        """Whether the upper half of a 256-bit descriptor is zero, as it must be in all that are known here."""
        try:
            return not any(self.memory.read(address, 16))
        except Unreadable:
            return False

    def _carry_out(self, address: int) -> bool:
        """One descriptor at a host-physical address; False where it is wrong or lies where no memory is."""
        try:
            low, high = self.memory.read64(address), self.memory.read64(address + 8)
        except Unreadable:
            return False
        kind = low & 0xF
        reserved_low, reserved_high = QUEUE_RESERVED.get(kind, (0, 0))
        verb = self._verbs.get(kind)
        return verb is not None and not low & reserved_low and not high & reserved_high and verb(low, high)

    def _context(self, low: int, _: int) -> bool:
        f = QUEUE_CONTEXT.decode(low)
        return bool(self.invalidator.invalidate_contexts(f["G"], f["DID"], f["SID"], f["FM"]))

    def _iotlb(self, low: int, high: int) -> bool:
        f = QUEUE_IOTLB.decode(low)
        return bool(self.invalidator.invalidate_iotlb(f["G"], f["DID"], high & IVA["ADDR"].mask, IVA.get(high, "AM")))

    def _accept(self, *_: int) -> bool:
        """Device-TLBs: the machine has none, so nothing is stale in them."""
        return True

    def _interrupt_entries(self, low: int, _: int) -> bool:
        f = QUEUE_IEC.decode(low)
        return self.interrupts.invalidate(bool(f["G"]), f["IIDX"], f["IM"])

    def _wait(self, low: int, high: int) -> bool:
        """All before it is done already: writes the status word (lost where no memory is) and raises the completion event."""
        f = QUEUE_WAIT.decode(low)
        address = high & mask(63, 2)
        if f["SW"] and self.memory.backed(address, 4):
            self.memory.write(address, f["DATA"].to_bytes(4, "little"), "wait descriptor of an invalidation queue")
        if f["IF"] and not self.file["ICS"] & ICS["IWC"].mask:
            self.file["ICS"] |= ICS["IWC"].mask
            self.event.raise_event()
        return True
