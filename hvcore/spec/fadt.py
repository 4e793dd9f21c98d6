"""ACPI's fixed hardware: the FADT (signature FACP) and the FACS (ACPI 6.5, sections 5.2.9 and 5.2.10).

All table addresses are host-physical and below 4 GiB, register blocks are I/O ports.
"""

import struct
from dataclasses import dataclass, field
from enum import IntFlag

from .acpi import Header, build_table

__all__ = ["FACS_ALIGN", "FACS_SIZE", "BootFlag", "Fadt", "FadtFlag", "build_facs", "build_fadt"]

FACS_SIZE = FACS_ALIGN = 64
MINOR = 5
"""With the header's revision 6: ACPI 6.5."""


class FadtFlag(IntFlag):
    """What the hardware is like (table 5.10)."""

    WBINVD = 1 << 0
    PROC_C1 = 1 << 2
    PWR_BUTTON = 1 << 4
    """There is no power button among the fixed hardware."""
    SLP_BUTTON = 1 << 5
    """There is no sleep button among the fixed hardware."""
    FIX_RTC = 1 << 6
    """The real-time clock's alarm does not arrive in the PM1 registers."""
    TMR_VAL_EXT = 1 << 8
    """The power-management timer has 32 bits, else 24."""
    RESET_REG_SUP = 1 << 10


class BootFlag(IntFlag):
    """IAPC_BOOT_ARCH: what of a legacy PC is there (table 5.11)."""

    LEGACY_DEVICES = 1 << 0
    KEYBOARD_CONTROLLER = 1 << 1
    VGA_NOT_PRESENT = 1 << 2
    MSI_NOT_SUPPORTED = 1 << 3
    NO_PCIE_ASPM = 1 << 4
    NO_CMOS_RTC = 1 << 5


@dataclass(frozen=True, slots=True)
class Fadt:
    """A PC that is always in ACPI mode (there is no SMI command port), without GPE blocks and without processor states but C1.

    `century` is the CMOS register of the century, 0 where there is none.  Software resets the PC by `reset_value` to port `reset`.
    """

    facs: int
    dsdt: int
    sci: int
    pm1_event: int
    pm1_control: int
    pm_timer: int
    reset: int
    reset_value: int
    flags: FadtFlag
    boot: BootFlag
    century: int = 0
    header: Header = field(default_factory=lambda: Header("FACP", 6))


_PM1_EVENT_SIZE, _PM1_CONTROL_SIZE, _PM_TIMER_SIZE = 4, 2, 4
_NO_C2, _NO_C3 = 101, 1001
"""Latencies, in microseconds, from which on the states do not exist."""
_GAS = struct.Struct("<BBBBQ")
_NO_REGISTER = bytes(_GAS.size)
_SYSTEM_IO = 1
_BYTE, _WORD, _DWORD = 1, 2, 3


def _register(port: int, bits: int, access: int) -> bytes:
    """A generic address structure for I/O ports (section 5.2.3.2)."""
    return _GAS.pack(_SYSTEM_IO, bits, 0, access, port)


def build_fadt(fadt: Fadt) -> bytes:
    """The table's 276 bytes: each block by its old 32-bit field and, but for the FACS, by its extended one."""
    f = fadt
    body = b"".join((
        struct.pack("<IIBBH", f.facs, f.dsdt, 0, 0, f.sci),
        struct.pack("<IBBBB", 0, 0, 0, 0, 0),
        struct.pack("<8I", f.pm1_event, 0, f.pm1_control, 0, 0, f.pm_timer, 0, 0),
        struct.pack("<8B", _PM1_EVENT_SIZE, _PM1_CONTROL_SIZE, 0, _PM_TIMER_SIZE, 0, 0, 0, 0),
        struct.pack("<HHHHBB", _NO_C2, _NO_C3, 0, 0, 0, 0),
        struct.pack("<BBBHBI", 0, 0, f.century, f.boot, 0, f.flags),
        _register(f.reset, 8, _BYTE), struct.pack("<BHB", f.reset_value, 0, MINOR),
        struct.pack("<QQ", 0, f.dsdt),
        _register(f.pm1_event, 8 * _PM1_EVENT_SIZE, _WORD), _NO_REGISTER,
        _register(f.pm1_control, 8 * _PM1_CONTROL_SIZE, _WORD), _NO_REGISTER,
        _NO_REGISTER, _register(f.pm_timer, 8 * _PM_TIMER_SIZE, _DWORD),
        _NO_REGISTER * 4, bytes(8)))
    return build_table(f.header, body)


def build_facs() -> bytes:
    """The 64 bytes, version 2, that system software and firmware share: no waking vector, the global lock free.  It has no checksum."""
    return struct.pack("<4sI4I QB31x", b"FACS", FACS_SIZE, 0, 0, 0, 0, 0, 2)
