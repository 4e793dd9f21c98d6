"""Interrupt controllers of a processor and a board: registers of the local APIC (Intel SDM volume 3, chapter 10; AMD64 APM volume 2,
chapter 16) and of the I/O APIC (Intel 82093AA data sheet; ICH9 data sheet, section 13.5)."""

from .bits import Access, Field, Layout, Register, mask
from .interrupts import MSI_ADDRESS, MSI_DATA

__all__ = ["APIC_BASE", "APIC_BASE_MSR", "DFR", "DIVIDE", "ESR", "ICR", "IOAPIC_DIRECT", "IOAPIC_INDIRECT", "IOAPIC_PINS", "LOCAL",
           "LOCAL_APIC_ADDRESS", "LVT", "RTE", "RTE_RESET", "SVR", "divisor", "entry_message"]

LOCAL_APIC_ADDRESS = 0xFEE00000
"""Where a processor finds its own local APIC's page after reset (IA32_APIC_BASE)."""
IOAPIC_PINS = 24

APIC_BASE_MSR = 0x1B
APIC_BASE = Layout("IA32_APIC_BASE", (Field("BASE", 51, 12, "page number"), Field("EN", 11, 11), Field("EXTD", 10, 10, "x2APIC mode"),
                                      Field("BSP", 8, 8, "boot processor")))

LVT = Layout("LVT", (Field("MODE", 17, 17, "timer: 1 periodic"), Field("MASK", 16, 16), Field("TM", 15, 15, "trigger mode: 1 level"),
                     Field("REMOTE_IRR", 14, 14), Field("POLARITY", 13, 13, "1 active low"), Field("DS", 12, 12, "delivery status"),
                     Field("DLM", 10, 8, "delivery mode"), Field("V", 7, 0, "vector")))
SVR = Layout("SVR", (Field("EN", 8, 8, "software enable"), Field("V", 7, 0, "spurious vector")))
DFR = Layout("DFR", (Field("MODEL", 31, 28, "0xf flat, 0 cluster"),))
ICR = Layout("ICR", (Field("DST", 63, 56, "APIC id, or a logical one"),
                     Field("DSH", 19, 18, "0 by destination, 1 self, 2 all, 3 all others"), Field("TM", 15, 15, "trigger mode: 1 level"),
                     Field("LEVEL", 14, 14, "1 assert"), Field("DS", 12, 12, "delivery status"),
                     Field("DM", 11, 11, "destination mode: 1 logical"), Field("DLM", 10, 8, "delivery mode; 6 start-up"),
                     Field("V", 7, 0, "vector")))
ESR = Layout("ESR", (Field("ILLEGAL_REGISTER", 7, 7), Field("RECEIVED_VECTOR", 6, 6, "below 16"), Field("SENT_VECTOR", 5, 5, "below 16"),
                     Field("RECEIVE_ACCEPT", 3, 3), Field("SEND_ACCEPT", 2, 2), Field("RECEIVE_CHECKSUM", 1, 1),
                     Field("SEND_CHECKSUM", 0, 0)))
DIVIDE = Layout("DCR", (Field("HIGH", 3, 3), Field("LOW", 1, 0)))

_RO, _RW, _WO = Access.RO, Access.RW, Access.WO
_MASKED = LVT["MASK"].mask
_BYTE3 = mask(31, 24)
_PIN = LVT["MASK"].mask | LVT["TM"].mask | LVT["POLARITY"].mask | LVT["DLM"].mask | LVT["V"].mask
_MODED = LVT["MASK"].mask | LVT["DLM"].mask | LVT["V"].mask
_FIXED = LVT["MASK"].mask | LVT["V"].mask


def _words(name: str, offset: int, section: str) -> tuple[Register, ...]:
    """The eight words of a register with a bit for each vector."""
    return tuple(Register(f"{name}{i}", offset + 16 * i, 32, _RO, section) for i in range(8))


LOCAL = (
    Register("ID", 0x20, 32, _RW, "10.4.6", write_mask=_BYTE3),
    Register("VERSION", 0x30, 32, _RO, "10.4.8", reset=5 << 16 | 0x14, note="six LVT entries"),
    Register("TPR", 0x80, 32, _RW, "10.8.3.1", write_mask=mask(7)),
    Register("APR", 0x90, 32, _RO, "10.8.3.1", note="no arbitration: 0"),
    Register("PPR", 0xA0, 32, _RO, "10.8.3.1"),
    Register("EOI", 0xB0, 32, _WO, "10.8.5"),
    Register("LDR", 0xD0, 32, _RW, "10.6.2.2", write_mask=_BYTE3),
    Register("DFR", 0xE0, 32, _RW, "10.6.2.2", DFR, write_mask=DFR["MODEL"].mask, reset=mask(31)),
    Register("SVR", 0xF0, 32, _RW, "10.9", SVR, write_mask=mask(8), reset=0xFF),
    *_words("ISR", 0x100, "10.8.4"), *_words("TMR", 0x180, "10.8.4"), *_words("IRR", 0x200, "10.8.4"),
    Register("ESR", 0x280, 32, _RW, "10.5.3", ESR, note="a write shows what was detected since the last one"),
    Register("ICR_LOW", 0x300, 32, _RW, "10.6.1", ICR, write_mask=mask(19, 18) | mask(15, 14) | mask(11)),
    Register("ICR_HIGH", 0x310, 32, _RW, "10.6.1", write_mask=_BYTE3),
    Register("LVT_TIMER", 0x320, 32, _RW, "10.5.1", LVT, write_mask=_FIXED | LVT["MODE"].mask, reset=_MASKED),
    Register("LVT_THERMAL", 0x330, 32, _RW, "10.5.1", LVT, write_mask=_MODED, reset=_MASKED),
    Register("LVT_PERFORMANCE", 0x340, 32, _RW, "10.5.1", LVT, write_mask=_MODED, reset=_MASKED),
    Register("LVT_LINT0", 0x350, 32, _RW, "10.5.1", LVT, write_mask=_PIN, reset=_MASKED),
    Register("LVT_LINT1", 0x360, 32, _RW, "10.5.1", LVT, write_mask=_PIN, reset=_MASKED),
    Register("LVT_ERROR", 0x370, 32, _RW, "10.5.1", LVT, write_mask=_FIXED, reset=_MASKED),
    Register("INITIAL_COUNT", 0x380, 32, _RW, "10.5.4", write_mask=mask(31)),
    Register("CURRENT_COUNT", 0x390, 32, _RO, "10.5.4"),
    Register("DIVIDE", 0x3E0, 32, _RW, "10.5.4", DIVIDE, write_mask=DIVIDE["HIGH"].mask | DIVIDE["LOW"].mask),
)
"""The local APIC's page.  Each register is 32 bits wide at a multiple of 16 bytes; what is not named here is reserved."""

IOAPIC_DIRECT = (
    Register("IOREGSEL", 0x00, 32, _RW, "ICH9 13.5.2", write_mask=mask(7)),
    Register("IOWIN", 0x10, 32, _RW, "ICH9 13.5.3", note="the register that IOREGSEL names"),
    Register("EOIR", 0x40, 32, _WO, "ICH9 13.5.4", note="a vector"),
)
"""The I/O APIC's window."""

IOAPIC_INDIRECT = (
    Register("ID", 0x00, 32, _RW, "ICH9 13.5.5", write_mask=mask(27, 24)),
    Register("VER", 0x01, 32, _RO, "ICH9 13.5.6", reset=IOAPIC_PINS - 1 << 16 | 0x20, note="24 entries, with an EOI register"),
    Register("ARB", 0x02, 32, _RO, "82093AA 3.2.3", note="as the id"),
)
"""By their number in IOREGSEL; from 0x10 on follow the two halves of each redirection table entry, the low one first."""

RTE = Layout("RTE", (Field("DST", 63, 56, "APIC id, or a logical one"), Field("EXTENDED", 55, 48, "address bits 11:4 of the message"),
                     Field("MASK", 16, 16), Field("TM", 15, 15, "trigger mode: 1 level"), Field("REMOTE_IRR", 14, 14, "level: in service"),
                     Field("POLARITY", 13, 13, "1 active low"), Field("DS", 12, 12, "delivery status"),
                     Field("DM", 11, 11, "destination mode: 1 logical"), Field("DLM", 10, 8, "delivery mode"), Field("V", 7, 0, "vector")))
RTE_RESET = RTE["MASK"].mask
"""A redirection table entry after reset: masked."""


_LOGICAL, _TO_LOGICAL = RTE["DM"].mask, MSI_ADDRESS["DM"].mask
_SAME = sum(RTE[name].mask for name in ("TM", "DLM", "V"))
"""Fields that lie in a message's data where they lie in an entry."""
_MESSAGES, _ASSERTED = MSI_ADDRESS.make(HEAD=0xFEE), MSI_DATA.make(LEVEL=1)


def divisor(dcr: int) -> int:
    """By what the timer divides the bus clock, from the divide configuration register."""
    return 1 << ((dcr >> 1 & 4 | dcr & 3) + 1 & 7)


def entry_message(entry: int) -> tuple[int, int]:
    """Address and data of the message that a redirection table entry makes.

    Bits 63:48 go to 19:4 of the address, so that an entry can hold a message in remappable format (VT-d 4.1, section 5.1.5.1).
    """
    logical = _TO_LOGICAL if entry & _LOGICAL else 0
    return _MESSAGES | entry >> 48 << 4 | logical, entry & _SAME | _ASSERTED
