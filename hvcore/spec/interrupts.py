"""Message-signalled interrupts and their remapping: both formats of a message, table entries, what arrives (VT-d 2.4, sections 5.1, 9.10).

A message is a 4-byte write to 0xFEExxxxx.  Bit 4 of its address says which format it has:

    compatibility   0xFEE | destination 19:12 | 11:5 | 0 | RH 3 | DM 2 | 1:0      data: vector, delivery and trigger mode
    remappable      0xFEE | handle[14:0] 19:5        | 1 | SHV 3 | handle[15] 2 | 1:0      data: subhandle, where SHV is set
"""

from dataclasses import dataclass
from enum import IntEnum

from .bits import Field, Layout, bit, mask
from .vtd import CAP, IRTA, FaultReason

__all__ = ["FORMAT", "INTERRUPT_REASONS", "IRTE", "IRTE_HIGH", "IRTE_LOW", "MSI_ADDRESS", "MSI_DATA", "QUALIFIER", "QUEUE_IEC",
           "REMAPPABLE_ADDRESS", "REMAPPABLE_DATA", "DeliveryMode", "Interrupt", "SourceCheck", "as_written", "by_entry", "index_of",
           "irte_destination", "irte_reserved", "source_accepted", "table_entries"]


def _layout(name: str, *fields: tuple[str, int, int, str] | tuple[str, int, int]) -> Layout:
    return Layout(name, tuple(Field(*f) for f in fields))


MSI_ADDRESS = _layout("MSI_ADDRESS",
    ("DST_HIGH", 63, 40, "bits 31:8 of an x2APIC destination"), ("HEAD", 31, 20, "0xfee"), ("DST", 19, 12, "APIC id"),
    ("FORMAT", 4, 4, "1 remappable"), ("RH", 3, 3, "redirection hint"), ("DM", 2, 2, "destination mode: 1 logical"))
MSI_DATA = _layout("MSI_DATA", ("TM", 15, 15, "trigger mode: 1 level"), ("LEVEL", 14, 14, "1 assert"), ("DLM", 10, 8, "delivery mode"),
                   ("V", 7, 0, "vector"))
REMAPPABLE_ADDRESS = _layout("REMAPPABLE_ADDRESS",
    ("HEAD", 31, 20, "0xfee"), ("HANDLE", 19, 5, "bits 14:0"), ("FORMAT", 4, 4, "1 remappable"), ("SHV", 3, 3, "subhandle valid"),
    ("HANDLE15", 2, 2, "bit 15 of the handle"))
REMAPPABLE_DATA = _layout("REMAPPABLE_DATA", ("RSVD", 31, 16, "0 where SHV is set, else ignored"), ("SUBHANDLE", 15, 0))
FORMAT = MSI_ADDRESS["FORMAT"].mask
"""The address bit that tells the remappable format."""

IRTE = 16
"""Bytes of an interrupt remapping table entry."""
IRTE_LOW = _layout("IRTE_LOW",
    ("DST", 63, 32, "APIC id; without EIME in bits 47:40 alone"), ("V", 23, 16, "vector"), ("IM", 15, 15, "1 posted"), ("AVAIL", 11, 8),
    ("DLM", 7, 5, "delivery mode"), ("TM", 4, 4, "trigger mode: 1 level"), ("RH", 3, 3, "redirection hint"),
    ("DM", 2, 2, "destination mode: 1 logical"), ("FPD", 1, 1, "no fault records"), ("P", 0, 0))
IRTE_HIGH = _layout("IRTE_HIGH",
    ("SVT", 19, 18, "source check: 0 none, 1 requester id, 2 bus range"),
    ("SQ", 17, 16, "function bits ignored: 0 none, 1 bit 2, 2 bits 2:1, 3 bits 2:0"), ("SID", 15, 0))
QUALIFIER = (0xFFFF, 0xFFFB, 0xFFF9, 0xFFF8)
"""Bits of a requester id that count, by SQ."""
QUEUE_IEC = _layout("QUEUE_IEC", ("IIDX", 47, 32), ("IM", 31, 27, "2^IM entries"), ("G", 4, 4, "0 all, 1 by index"), ("TYPE", 3, 0))
"""Low word of an interrupt-entry-cache descriptor of the invalidation queue (section 6.5.2.7)."""
INTERRUPT_REASONS = frozenset(r for r in FaultReason if r >= FaultReason.IR_REQUEST_RESERVED)
"""The fault reasons of interrupt remapping; their fault records hold an interrupt index in FI 63:48."""


class DeliveryMode(IntEnum):
    """DLM; 3 and 6 are reserved and no APIC does anything for them."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    NMI = 4
    INIT = 5
    EXTINT = 7


class SourceCheck(IntEnum):
    """SVT: what of the requester id is compared with SID."""

    NONE = 0
    REQUESTER = 1
    BUS_RANGE = 2
    RESERVED = 3


@dataclass(frozen=True, slots=True)
class Interrupt:
    """A message of requester `source` that gets through, and what the processors' local APICs see of it.

    `address` and `data` are as the device wrote them; `index` is the table entry that decided (None: none did, the message went on as it
    was).  `destination` is an APIC id, or a logical one where `logical`; `delivery` is a `DeliveryMode` or a reserved number; `level` is
    the trigger mode.
    """

    source: int
    address: int
    data: int
    index: int | None
    destination: int
    logical: bool
    redirectable: bool
    vector: int
    delivery: int
    level: bool

    @property
    def message(self) -> tuple[int, int]:
        """Address and data as they go on to the APICs, in compatibility format and asserted; as they were where nothing was remapped."""
        if self.index is None:
            return self.address, self.data
        high, low = self.destination >> 8, self.destination & 0xFF
        address = MSI_ADDRESS.make(HEAD=0xFEE, DST_HIGH=high, DST=low, RH=int(self.redirectable), DM=int(self.logical))
        return address, MSI_DATA.make(V=self.vector, DLM=self.delivery, LEVEL=1, TM=int(self.level))


def as_written(source: int, address: int, data: int) -> Interrupt:
    """A message in compatibility format that nothing changes, bit 4 or not."""
    a, d = MSI_ADDRESS.decode(address), MSI_DATA.decode(data)
    destination = a["DST_HIGH"] << 8 | a["DST"]
    return Interrupt(source, address, data, None, destination, bool(a["DM"]), bool(a["RH"]), d["V"], d["DLM"], bool(d["TM"]))


def by_entry(source: int, address: int, data: int, index: int, low: int, eime: bool) -> Interrupt:
    """What table entry `index` with the raw low word `low` makes of a message."""
    e, destination = IRTE_LOW.decode(low), irte_destination(low, eime)
    return Interrupt(source, address, data, index, destination, bool(e["DM"]), bool(e["RH"]), e["V"], e["DLM"], bool(e["TM"]))


def index_of(address: int, data: int) -> int | None:
    """The table index that a remappable message asks for, which may lie beyond every table; None where it has reserved bits set.

    Without SHV the data is not looked at (section 5.1.3).
    """
    a = REMAPPABLE_ADDRESS.decode(address)
    handle = a["HANDLE15"] << 15 | a["HANDLE"]
    if not a["SHV"]:
        return handle
    return None if REMAPPABLE_DATA.get(data, "RSVD") else handle + REMAPPABLE_DATA.get(data, "SUBHANDLE")


def irte_destination(low: int, eime: bool) -> int:
    """The destination of an entry: 32 bits with extended interrupt mode (x2APIC), else the 8 in bits 47:40."""
    return low >> 32 if eime else low >> 40 & 0xFF


def irte_reserved(cap: int, eime: bool) -> tuple[int, int]:
    """Bits that must be zero in the low and the high word of a present entry for remapping; IM among them without CAP.PI."""
    low = mask(14, 12) | mask(31, 24) | (0 if CAP.get(cap, "PI") else bit(15)) | (0 if eime else mask(39, 32) | mask(63, 48))
    return low, mask(63, 20)


def source_accepted(high: int, source: int) -> bool:
    """Whether an entry with the raw high word `high` takes a message of requester `source`.

    For a bus range SID has its first bus in 15:8 and its last in 7:0.  What a reserved SVT does is not specified: here, as in QEMU, nobody
    passes it.
    """
    e = IRTE_HIGH.decode(high)
    if e["SVT"] == SourceCheck.REQUESTER:
        return not (source ^ e["SID"]) & QUALIFIER[e["SQ"]]
    if e["SVT"] == SourceCheck.BUS_RANGE:
        return e["SID"] >> 8 <= source >> 8 <= e["SID"] & 0xFF
    return e["SVT"] == SourceCheck.NONE


def table_entries(irta: int) -> int:
    """How many entries the table of an IRTA register has."""
    return 2 << IRTA.get(irta, "S")
