"""VT-d, legacy mode: registers, table entries, fault reasons (Intel VT-d specification, revision 2.4, sections 9, 10 and 7.2.3).

What one unit has is told by its two capability registers; every function that depends on them takes `cap` and `ecap` as raw words.
"""

from enum import IntEnum

from .bits import Access, Field, Layout, Register, bit, mask

__all__ = [
    "ADDRESS", "AFLOG", "CAP", "CCMD", "CONDITION", "CONTEXT_HIGH", "CONTEXT_LOW", "CONTEXT_RESERVED", "ECAP", "ENTRY_BITS", "FECTL",
    "FPD_SILENCES", "FRCD_HIGH", "FRCD_LOW", "FSTS", "FUNCTION_MASK", "GCMD", "GSTS", "ICS", "INTERRUPT_RANGE", "IOTLB", "IQA", "IQERCD",
    "IRTA", "IVA", "LINUX_TEXT", "PAGE_SIZE_NAMES", "PMEN", "PROTECTED", "QUEUE_CONTEXT", "QUEUE_IOTLB", "QUEUE_POINTER", "QUEUE_RESERVED",
    "QUEUE_WAIT", "R", "ROOT_ENTRY", "ROOT_RESERVED", "RTADDR", "SECOND_LEVEL", "SNP", "SP", "TM", "VER", "W", "FaultReason",
    "TranslationType", "aw_bits", "aw_levels", "context_entry", "entry_reserved", "frcd_count", "frcd_offset", "in_interrupt_range",
    "input_bits", "iotlb_offset", "leaf_levels", "level_index", "level_shift", "mgaw", "ndoms", "registers", "root_entry",
    "sagaw_levels",
]


def _layout(name: str, *fields: tuple[str, int, int, str] | tuple[str, int, int]) -> Layout:
    return Layout(name, tuple(Field(*f) for f in fields))


VER = _layout("VER", ("MAJOR", 7, 4), ("MINOR", 3, 0))
CAP = _layout("CAP",
    ("FL5LP", 60, 60, "first-level 5-level paging"), ("PI", 59, 59, "posted interrupts"), ("FL1GP", 56, 56, "first-level 1 GiB pages"),
    ("DRD", 55, 55, "DMA read draining"), ("DWD", 54, 54, "DMA write draining"),
    ("MAMV", 53, 48, "largest address mask of an invalidation"), ("NFR", 47, 40, "fault records - 1"),
    ("PSI", 39, 39, "page-selective invalidation"), ("SLLPS", 37, 34, "superpages: bit 0 2 MiB, bit 1 1 GiB"),
    ("FRO", 33, 24, "offset of the fault records / 16"), ("ISOCH", 23, 23, "deprecated: isochronous"),
    ("ZLR", 22, 22, "zero-length reads"), ("MGAW", 21, 16, "bits of an input address - 1"),
    ("SAGAW", 12, 8, "bit n: AW value n, n + 2 levels"), ("CM", 7, 7, "caching mode"), ("PHMR", 6, 6, "protected high memory"),
    ("PLMR", 5, 5, "protected low memory"), ("RWBF", 4, 4, "write-buffer flush required"), ("AFL", 3, 3, "advanced fault logging"),
    ("ND", 2, 0, "domain-id bits = 4 + 2 * ND"))
ECAP = _layout("ECAP",
    ("SLTS", 46, 46, "second-level translation in scalable mode"), ("SLADS", 45, 45, "second-level accessed and dirty bits"),
    ("SMTS", 43, 43, "scalable mode"), ("PASID", 40, 40), ("PSS", 39, 35), ("EAFS", 34, 34), ("NWFS", 33, 33),
    ("SRS", 31, 31, "supervisor requests"), ("ERS", 30, 30, "execute requests"), ("PRS", 29, 29, "page requests"), ("NEST", 26, 26),
    ("MTS", 25, 25, "memory types"), ("ECS", 24, 24, "extended contexts"), ("MHMV", 23, 20),
    ("IRO", 17, 8, "offset of the IOTLB registers / 16"), ("SC", 7, 7, "snoop control"), ("PT", 6, 6, "pass-through"),
    ("EIM", 4, 4, "x2APIC interrupts"), ("IR", 3, 3, "interrupt remapping"), ("DT", 2, 2, "device-TLBs"),
    ("QI", 1, 1, "queued invalidation"), ("C", 0, 0, "walks snoop the CPU's caches"))
GCMD = _layout("GCMD",
    ("TE", 31, 31, "translation enable"), ("SRTP", 30, 30, "set root table pointer (one-shot)"),
    ("SFL", 29, 29, "set fault log (one-shot)"), ("EAFL", 28, 28, "enable advanced fault logging"),
    ("WBF", 27, 27, "write-buffer flush (one-shot)"), ("QIE", 26, 26, "queued invalidation enable"),
    ("IRE", 25, 25, "interrupt remapping enable"), ("SIRTP", 24, 24, "set interrupt remapping table pointer (one-shot)"),
    ("CFI", 23, 23, "compatibility-format interrupts"))
GSTS = _layout("GSTS",
    ("TES", 31, 31), ("RTPS", 30, 30), ("FLS", 29, 29), ("AFLS", 28, 28), ("WBFS", 27, 27, "1 while busy"), ("QIES", 26, 26),
    ("IRES", 25, 25), ("IRTPS", 24, 24), ("CFIS", 23, 23))
RTADDR = _layout("RTADDR", ("RTA", 63, 12, "root table, host-physical / 4096"), ("TTM", 11, 10, "0 legacy, 1 scalable, 3 abort"))
CCMD = _layout("CCMD",
    ("ICC", 63, 63, "invalidate; cleared when done"), ("CIRG", 62, 61, "asked: 1 global, 2 domain, 3 device"), ("CAIG", 60, 59, "done"),
    ("FM", 33, 32, "function bits ignored: 0 none, 1 bit 2, 2 bits 2:1, 3 bits 2:0"), ("SID", 31, 16), ("DID", 15, 0))
IOTLB = _layout("IOTLB",
    ("IVT", 63, 63, "invalidate; cleared when done"), ("IIRG", 61, 60, "asked: 1 global, 2 domain, 3 page"), ("IAIG", 58, 57, "done"),
    ("DR", 49, 49, "drain reads"), ("DW", 48, 48, "drain writes"), ("DID", 47, 32))
IVA = _layout("IVA", ("ADDR", 63, 12), ("IH", 6, 6, "no table above the leaf changed"), ("AM", 5, 0, "2^AM pages"))
FSTS = _layout("FSTS",
    ("FRI", 15, 8, "first pending record"), ("PRO", 7, 7), ("ITE", 6, 6, "invalidation time-out"),
    ("ICE", 5, 5, "invalidation completion error"), ("IQE", 4, 4, "invalidation queue error"), ("APF", 3, 3), ("AFO", 2, 2),
    ("PPF", 1, 1, "a fault record is pending"), ("PFO", 0, 0, "a fault was lost"))
FECTL = _layout("FECTL", ("IM", 31, 31, "event masked"), ("IP", 30, 30, "event pending"))
FRCD_LOW = _layout("FRCD_LOW", ("FI", 63, 12, "page of the faulting address"))
FRCD_HIGH = _layout("FRCD_HIGH",
    ("F", 63, 63, "record holds a fault"), ("T", 62, 62, "1 read, 0 write"), ("AT", 61, 60), ("PV", 59, 40, "PASID"),
    ("FR", 39, 32, "reason"), ("PP", 31, 31), ("EXE", 30, 30), ("PRIV", 29, 29), ("SID", 15, 0, "requester id"))
AFLOG = _layout("AFLOG", ("FLA", 63, 12), ("FLS", 11, 9))
PMEN = _layout("PMEN", ("EPM", 31, 31, "protect"), ("PRS", 0, 0, "regions are protected"))
QUEUE_POINTER = _layout("QUEUE_POINTER", ("Q", 18, 4, "slot of 16 bytes"))
IQA = _layout("IQA", ("IQA", 63, 12), ("DW", 11, 11, "256-bit descriptors"), ("QS", 2, 0, "2^(QS + 8) slots"))
IQERCD = _layout("IQERCD", ("ICESID", 63, 48), ("ITESID", 47, 32), ("IQEI", 3, 0))
ICS = _layout("ICS", ("IWC", 0, 0, "a wait descriptor with IF completed"))
IRTA = _layout("IRTA", ("IRTA", 63, 12), ("EIME", 11, 11), ("S", 3, 0, "2^(S + 1) entries"))

# Descriptors of the invalidation queue: low words of types 1, 2 and 5 (section 6.5.2); an IOTLB descriptor's high word is laid out as IVA.
QUEUE_CONTEXT = _layout("QUEUE_CONTEXT", ("FM", 49, 48), ("SID", 47, 32), ("DID", 31, 16), ("G", 5, 4), ("TYPE", 3, 0))
QUEUE_IOTLB = _layout("QUEUE_IOTLB", ("DID", 31, 16), ("DR", 7, 7), ("DW", 6, 6), ("G", 5, 4), ("TYPE", 3, 0))
QUEUE_WAIT = _layout("QUEUE_WAIT", ("DATA", 63, 32), ("FN", 6, 6), ("SW", 5, 5), ("IF", 4, 4), ("TYPE", 3, 0))
QUEUE_RESERVED = {
    1: (0xFFFC_0000_0000_FFC0, mask(63)),
    2: (0xFFFF_FFFF_0000_FF00, 0xF80),
    3: (mask(11, 4) | mask(31, 21) | mask(51, 48), mask(11, 1)),
    4: (0xFFFF_0000_07FF_FFE0, mask(63)),
    5: (0xFFFF_FF80, 0x3),
}
"""Bits that must be zero in the low and the high word of a descriptor, by its type.  Of type 3 the PFSID of later revisions may be set."""

# Table entries.  Address fields end at bit 51 here; bits HAW and up are reserved on a given platform.
ROOT_ENTRY = _layout("ROOT_ENTRY", ("CTP", 51, 12, "context table, host-physical / 4096"), ("P", 0, 0))
CONTEXT_LOW = _layout("CONTEXT_LOW",
    ("SLPTPTR", 51, 12, "second-level table, host-physical / 4096"), ("TT", 3, 2, "translation type"),
    ("FPD", 1, 1, "no fault records"), ("P", 0, 0))
CONTEXT_HIGH = _layout("CONTEXT_HIGH", ("DID", 23, 8, "domain id"), ("IGN", 6, 3, "for software"), ("AW", 2, 0, "levels - 2"))
ROOT_RESERVED = (0xFFE, mask(63))
CONTEXT_RESERVED = (0xFF0, mask(63) & ~(mask(23, 8) | mask(6)))
"""Bits that must be zero in the low and the high word of a present root and context entry, beside those beyond the host address width."""
SECOND_LEVEL = _layout("SECOND_LEVEL",
    ("IGN2", 63, 63), ("TM", 62, 62, "transient mapping"), ("IGN1", 61, 52), ("ADDR", 51, 12), ("SNP", 11, 11, "snoop"),
    ("IGN0", 10, 8), ("SP", 7, 7, "superpage"), ("EMT", 6, 3, "ignored in legacy mode"), ("X", 2, 2, "ignored in legacy mode"),
    ("W", 1, 1), ("R", 0, 0))

R, W, SP, SNP, TM = 1, 2, bit(7), bit(11), bit(62)
ADDRESS = 0x000F_FFFF_FFFF_F000
"""Bits 51:12, the address field of every table entry."""
INTERRUPT_RANGE = range(0xFEE0_0000, 0xFEF0_0000)
"""Addresses at which a 4-byte write is an interrupt request and nothing else is legal (section 3.13)."""
ENTRY_BITS = 9
"""Bits of an input address that one level resolves."""
PAGE_SIZE_NAMES = {1: "4K", 2: "2M", 3: "1G"}
"""Names of leaves by the level they lie at."""


class TranslationType(IntEnum):
    """TT of a context entry."""

    TRANSLATE = 0
    TRANSLATE_ATS = 1
    PASS_THROUGH = 2
    RESERVED = 3


class FaultReason(IntEnum):
    """FR of a fault record: DMA remapping in legacy mode, then interrupt remapping (section 7.2.3, 7.3)."""

    ROOT_NOT_PRESENT = 0x1
    CONTEXT_NOT_PRESENT = 0x2
    CONTEXT_INVALID = 0x3
    BEYOND_WIDTH = 0x4
    WRITE_DENIED = 0x5
    READ_DENIED = 0x6
    PAGE_TABLE_UNREACHABLE = 0x7
    ROOT_TABLE_UNREACHABLE = 0x8
    CONTEXT_TABLE_UNREACHABLE = 0x9
    ROOT_RESERVED = 0xA
    CONTEXT_RESERVED = 0xB
    PAGE_RESERVED = 0xC
    REQUEST_BLOCKED = 0xD
    INTERRUPT_RANGE = 0xE
    IR_REQUEST_RESERVED = 0x20
    IR_INDEX_BEYOND_TABLE = 0x21
    IR_NOT_PRESENT = 0x22
    IR_TABLE_UNREACHABLE = 0x23
    IR_ENTRY_RESERVED = 0x24
    IR_COMPATIBILITY_BLOCKED = 0x25
    IR_SOURCE_REFUSED = 0x26


LINUX_TEXT: dict[int, str] = {
    0x1: "Present bit in root entry is clear",
    0x2: "Present bit in context entry is clear",
    0x3: "Invalid context entry",
    0x4: "Access beyond MGAW",
    0x5: "PTE Write access is not set",
    0x6: "PTE Read access is not set",
    0x7: "Next page table ptr is invalid",
    0x8: "Root table address invalid",
    0x9: "Context table ptr is invalid",
    0xA: "non-zero reserved fields in RTP",
    0xB: "non-zero reserved fields in CTP",
    0xC: "non-zero reserved fields in PTE",
    0xD: "PCE for translation request specifies blocking",
    0xE: "Unknown",
    0x20: "Detected reserved fields in the decoded interrupt-remapped request",
    0x21: "Interrupt index exceeded the interrupt-remapping table size",
    0x22: "Present field in the IRTE entry is clear",
    0x23: "Error accessing interrupt-remapping table pointed by IRTA_REG",
    0x24: "Detected reserved fields in the IRTE entry",
    0x25: "Blocked a compatibility format interrupt request",
    0x26: "Blocked an interrupt request due to source-id verification failure",
}
"""What Linux prints for a reason."""

PROTECTED = 0
"""In place of a reason: a request that a protected memory region blocked.  The unit neither records nor reports these (section 10.4.16)."""

CONDITION: dict[int, str] = {
    PROTECTED: "the page lies in a protected memory region (PMEN), which blocks in silence",
    0x1: "the root entry of the bus is not present",
    0x2: "the context entry of the function is not present",
    0x3: "the context entry asks for a width or a translation type the unit lacks, or its top table lies where no memory is",
    0x4: "the address lies beyond the smaller of MGAW and the context's address width",
    0x5: "no write permission on the way down, or nothing mapped",
    0x6: "no read permission on the way down, or nothing mapped",
    0x7: "a paging table below the top lies where no memory is",
    0x8: "the root table lies where no memory is",
    0x9: "the context table lies where no memory is",
    0xA: "a reserved bit is set in the root entry",
    0xB: "a reserved bit is set in the context entry",
    0xC: "a reserved bit is set in a paging entry",
    0xD: "the context entry blocks this kind of request",
    0xE: "the address, or what it is mapped to, lies in the interrupt range 0xfee00000-0xfeefffff",
    0x20: "the message asks for a subhandle and has bits 31:16 of its data set",
    0x21: "the interrupt index lies beyond the interrupt remapping table",
    0x22: "the interrupt remapping table entry is not present",
    0x23: "the interrupt remapping table lies where no memory is",
    0x24: "a reserved bit is set in the interrupt remapping table entry",
    0x25: "the message has the compatibility format, and EIME is set or CFIS is clear",
    0x26: "the requester is not the one that the interrupt remapping table entry names",
}
"""When the unit gives a reason, in plain English."""

FPD_SILENCES = frozenset({0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0x22, 0x24, 0x26})
"""Reasons that are not recorded where the context entry, or the interrupt remapping table entry, has FPD set (the qualified faults of
section 7.2.3)."""


FUNCTION_MASK = (0, 0b100, 0b110, 0b111)
"""Function-number bits of a source id that a context invalidation ignores, by its FM field."""


def sagaw_levels(cap: int) -> tuple[int, ...]:
    """The depths of second-level tables that a unit walks, ascending; 3 means 39-bit, 4 means 48-bit input addresses."""
    supported = CAP.get(cap, "SAGAW")
    return tuple(aw_levels(aw) for aw in range(5) if supported >> aw & 1)


def aw_levels(aw: int) -> int:
    """Levels of a context entry's AW value (0..4)."""
    return aw + 2


def aw_bits(aw: int) -> int:
    """Bits of an input address under a context entry's AW value (0..4)."""
    return min(30 + ENTRY_BITS * aw, 64)


def mgaw(cap: int) -> int:
    """Bits of the widest input address a unit takes, whatever a context says."""
    return CAP.get(cap, "MGAW") + 1


def input_bits(cap: int, aw: int) -> int:
    """Bits of an input address that are legal under AW value `aw` on a unit."""
    return min(mgaw(cap), aw_bits(aw))


def ndoms(cap: int) -> int:
    """How many domain ids a unit tells apart."""
    return 1 << 4 + 2 * CAP.get(cap, "ND")


def leaf_levels(cap: int) -> tuple[int, ...]:
    """Levels at which a unit takes a leaf: 1 always, 2 and 3 by CAP.SLLPS."""
    sllps = CAP.get(cap, "SLLPS")
    return (1, *(level for level in (2, 3) if sllps >> level - 2 & 1))


def level_shift(level: int) -> int:
    """Lowest bit of an input address that level `level` resolves; an entry there covers 2**shift bytes."""
    return 12 + ENTRY_BITS * (level - 1)


def level_index(address: int, level: int) -> int:
    """The entry number of an input address (IOVA) in its table of `level`."""
    return address >> level_shift(level) & (1 << ENTRY_BITS) - 1


def entry_reserved(level: int, leaf: bool, cap: int, ecap: int, haw: int) -> int:
    """Bits that must be zero in a second-level entry that has R or W (section 9.8).

    `leaf` says whether the entry maps a page; `haw` is the host address width in bits.  SP is ignored at level 1, and reserved above it
    where the unit takes no leaf at that level.  SNP needs ECAP.SC and TM needs ECAP.DT, each in a leaf only.
    """
    reserved = ADDRESS & ~(bit(haw) - 1)
    if not leaf:
        return reserved | SNP | TM | (0 if level == 1 or level in leaf_levels(cap) else SP)
    if level > 1:
        reserved |= mask(level_shift(level) - 1, 12)
    return reserved | (0 if ECAP.get(ecap, "SC") else SNP) | (0 if ECAP.get(ecap, "DT") else TM)


def root_entry(context_table: int) -> int:
    """Low word of a present root entry for a context table at a host-physical address; the high word is 0 (section 9.1)."""
    return context_table & ADDRESS | 1


def context_entry(root: int, aw: int, did: int, tt: int = 0, fpd: bool = False) -> tuple[int, int]:
    """Low and high word of a present context entry for a second-level table at host-physical `root` (section 9.3)."""
    return root & ADDRESS | CONTEXT_LOW.make(P=1, FPD=int(fpd), TT=tt), CONTEXT_HIGH.make(AW=aw, DID=did)


def in_interrupt_range(address: int) -> bool:
    """Whether an address lies in `INTERRUPT_RANGE`."""
    return address >> 20 == 0xFEE


def iotlb_offset(ecap: int) -> int:
    """Offset of IVA in the register page; IOTLB follows it."""
    return 16 * ECAP.get(ecap, "IRO")


def frcd_offset(cap: int, index: int = 0) -> int:
    """Offset of the low word of fault record `index` in the register page."""
    return 16 * (CAP.get(cap, "FRO") + index)


def frcd_count(cap: int) -> int:
    """How many fault records a unit has."""
    return CAP.get(cap, "NFR") + 1


_EVENT = ("CTL", "DATA", "ADDR", "UADDR")
_PMR_GRANULE = 21
"""Protected memory regions have 2 MiB granules here; the specification leaves it to the hardware (section 10.4.17)."""


def _rw(name: str, offset: int, width: int, section: str, writable: int, layout: Layout | None = None, reset: int = 0) -> Register:
    return Register(name, offset, width, Access.RW, section, layout, write_mask=writable, reset=reset)


def _ro(name: str, offset: int, width: int, section: str, layout: Layout | None = None, reset: int = 0) -> Register:
    return Register(name, offset, width, Access.RO, section, layout, reset=reset)


def _event(prefix: str, offset: int, section: int, present: bool) -> tuple[Register, ...]:
    """The four registers of an event's message-signalled interrupt; masked after reset."""
    masks, resets, layouts = (bit(31), mask(31), mask(31, 2), mask(31)), (bit(31), 0, 0, 0), (FECTL, None, None, None)
    return tuple(_rw(prefix + _EVENT[i], offset + 4 * i, 32, f"10.4.{section + i}", masks[i] if present else 0, layouts[i],
                     resets[i] if present else 0) for i in range(4))


def _fault_records(cap: int) -> tuple[Register, ...]:
    low = [_ro(f"FRCD{i}_LOW", frcd_offset(cap, i), 64, "10.4.14", FRCD_LOW) for i in range(frcd_count(cap))]
    high = [Register(f"FRCD{i}_HIGH", frcd_offset(cap, i) + 8, 64, Access.W1C, "10.4.14", FRCD_HIGH, w1c_mask=FRCD_HIGH["F"].mask)
            for i in range(frcd_count(cap))]
    return tuple(r for pair in zip(low, high, strict=True) for r in pair)


def _page_requests(prs: int) -> tuple[Register, ...]:
    """The page-request registers: no device makes page requests, so the queue stays empty."""
    pointer, base = (mask(18, 4), mask(63, 12) | mask(2)) if prs else (0, 0)
    return (
        _rw("PQH", 0xC0, 64, "10.4.30", pointer, QUEUE_POINTER),
        _rw("PQT", 0xC8, 64, "10.4.31", pointer, QUEUE_POINTER),
        _rw("PQA", 0xD0, 64, "10.4.32", base),
        Register("PRS", 0xDC, 32, Access.W1C, "10.4.33", w1c_mask=1 if prs else 0),
        *_event("PE", 0xE0, 34, bool(prs)),
    )


def registers(cap: int, ecap: int, version: int = 0x10) -> tuple[Register, ...]:
    """Every register of a unit with capability registers `cap` and `ecap`, by offset.

    Where the capability of a register is missing it is there but takes nothing and reads 0 (RsvdZ), as the specification has it.
    Sections are those of revision 2.4.  IQERCD came later; it reads 0 here.
    """
    def has(condition: int, writable: int) -> int:
        return writable if condition else 0

    plmr, phmr, afl = (CAP.get(cap, name) for name in ("PLMR", "PHMR", "AFL"))
    qi, ir, ecs, smts = (ECAP.get(ecap, name) for name in ("QI", "IR", "ECS", "SMTS"))
    iro, granule = iotlb_offset(ecap), _PMR_GRANULE
    fixed = (
        _ro("VER", 0x00, 32, "10.4.1", VER, version),
        _ro("CAP", 0x08, 64, "10.4.2", CAP, cap),
        _ro("ECAP", 0x10, 64, "10.4.3", ECAP, ecap),
        Register("GCMD", 0x18, 32, Access.WO, "10.4.4", GCMD, write_mask=mask(31, 23)),
        _ro("GSTS", 0x1C, 32, "10.4.5", GSTS),
        _rw("RTADDR", 0x20, 64, "10.4.6", mask(63, 12) | has(ecs or smts, bit(11)) | has(smts, bit(10)), RTADDR),
        Register("CCMD", 0x28, 64, Access.RW, "10.4.7", CCMD, write_mask=mask(63, 61) | mask(33), hidden=mask(33, 16)),
        Register("FSTS", 0x34, 32, Access.W1C, "10.4.9", FSTS, w1c_mask=0x7D),
        *_event("FE", 0x38, 10, True),
        _rw("AFLOG", 0x58, 64, "10.4.15", has(afl, mask(63, 9)), AFLOG),
        _rw("PMEN", 0x64, 32, "10.4.16", has(plmr or phmr, bit(31)), PMEN),
        _rw("PLMBASE", 0x68, 32, "10.4.17", has(plmr, mask(31, granule))),
        _rw("PLMLIMIT", 0x6C, 32, "10.4.18", has(plmr, mask(31, granule))),
        _rw("PHMBASE", 0x70, 64, "10.4.19", has(phmr, mask(51, granule))),
        _rw("PHMLIMIT", 0x78, 64, "10.4.20", has(phmr, mask(51, granule))),
        _ro("IQH", 0x80, 64, "10.4.21", QUEUE_POINTER),
        _rw("IQT", 0x88, 64, "10.4.22", has(qi, mask(18, 4)), QUEUE_POINTER),
        _rw("IQA", 0x90, 64, "10.4.23", has(qi, mask(63, 12) | mask(2) | has(smts, bit(11))), IQA),
        Register("ICS", 0x9C, 32, Access.W1C, "10.4.24", ICS, w1c_mask=has(qi, 1)),
        *_event("IE", 0xA0, 25, bool(qi)),
        _ro("IQERCD", 0xB0, 64, "11.4.9.9 of 4.1", IQERCD),
        _rw("IRTA", 0xB8, 64, "10.4.29", has(ir, mask(63, 12) | mask(3) | has(ECAP.get(ecap, "EIM"), bit(11))), IRTA),
        *_page_requests(ECAP.get(ecap, "PRS")),
    )
    moving = (
        Register("IVA", iro, 64, Access.WO, "10.4.8.2", IVA, write_mask=mask(63, 12) | mask(6), hidden=mask(63)),
        _rw("IOTLB", iro + 8, 64, "10.4.8.1", bit(63) | mask(61, 60) | mask(49, 32), IOTLB),
        *_fault_records(cap),
    )
    return tuple(sorted(fixed + moving, key=lambda r: r.offset))
