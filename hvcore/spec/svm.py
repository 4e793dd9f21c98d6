"""AMD-V: the VMCB, intercepts and exit codes (AMD64 Architecture Programmer's Manual, volume 2, section 15 and appendices B and C)."""

from enum import IntEnum

__all__ = ["ControlArea", "EFER", "EFER_LMA", "EFER_LME", "EFER_NXE", "EFER_SCE", "EFER_SVME", "EVENT_ERROR_CODE", "EVENT_EXCEPTION",
           "EVENT_EXTERNAL", "EVENT_TYPE", "EVENT_VALID", "ExitCode", "INTERCEPTS_1", "INTERCEPTS_2", "SaveArea", "VM_CR", "VM_HSAVE_PA",
           "exit_name", "io_access", "io_info"]

EFER, VM_CR, VM_HSAVE_PA = 0xC0000080, 0xC0010114, 0xC0010117
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE, EFER_SVME = 1 << 0, 1 << 8, 1 << 10, 1 << 11, 1 << 12

EVENT_TYPE, EVENT_EXTERNAL, EVENT_EXCEPTION = 7 << 8, 0 << 8, 3 << 8
EVENT_ERROR_CODE, EVENT_VALID = 1 << 11, 1 << 31


class ControlArea(IntEnum):
    """Byte offsets in the VMCB's control area."""

    EXCEPTIONS = 0x008
    INTERCEPTS_1 = 0x00C
    INTERCEPTS_2 = 0x010
    IOPM = 0x040
    MSRPM = 0x048
    ASID = 0x058
    TLB_CONTROL = 0x05C
    INTERRUPT_CONTROL = 0x060
    EXITCODE = 0x070
    EXITINFO1 = 0x078
    EXITINFO2 = 0x080
    EXITINTINFO = 0x088
    NESTED_CONTROL = 0x090
    EVENTINJ = 0x0A8
    N_CR3 = 0x0B0


class SaveArea(IntEnum):
    """Byte offsets in the VMCB's state save area.  A segment is selector u16, attributes u16, limit u32, base u64."""

    ES = 0x400
    CS = 0x410
    SS = 0x420
    DS = 0x430
    FS = 0x440
    GS = 0x450
    GDTR = 0x460
    LDTR = 0x470
    IDTR = 0x480
    TR = 0x490
    CPL = 0x4CB
    EFER = 0x4D0
    CR4 = 0x548
    CR3 = 0x550
    CR0 = 0x558
    DR7 = 0x560
    DR6 = 0x568
    RFLAGS = 0x570
    RIP = 0x578
    RSP = 0x5D8
    RAX = 0x5F8
    CR2 = 0x640
    G_PAT = 0x668


class ExitCode(IntEnum):
    """Why the guest stopped."""

    EXCEPTION = 0x040
    INTR = 0x060
    RDTSC = 0x06E
    CPUID = 0x072
    INVD = 0x076
    HLT = 0x078
    IOIO = 0x07B
    MSR = 0x07C
    SHUTDOWN = 0x07F
    VMRUN = 0x080
    VMMCALL = 0x081
    VMLOAD = 0x082
    VMSAVE = 0x083
    STGI = 0x084
    CLGI = 0x085
    SKINIT = 0x086
    RDTSCP = 0x087
    NPF = 0x400


INTERCEPTS_1 = {code: 1 << code - 0x60 for code in ExitCode if 0x60 <= code < 0x80}
"""Bit of each intercept in the word at ControlArea.INTERCEPTS_1."""
INTERCEPTS_2 = {code: 1 << code - 0x80 for code in ExitCode if 0x80 <= code < 0xA0}
"""Bit of each intercept in the word at ControlArea.INTERCEPTS_2."""


def io_info(port: int, width: int, read: bool) -> int:
    """EXITINFO1 of an IOIO exit: port 31:16, SZ32 SZ16 SZ8 6:4, TYPE 0 (IN)."""
    return port << 16 | width << 4 | read


def io_access(info: int) -> tuple[int, int, bool]:
    """Port, width in bytes and whether it is an IN, of an IOIO exit's EXITINFO1."""
    return info >> 16 & 0xFFFF, info >> 4 & 7, bool(info & 1)


def exit_name(code: int) -> str:
    """An exit code in the manual's words: `VMEXIT_NPF`, `VMEXIT_EXCP14`."""
    if ExitCode.EXCEPTION <= code < ExitCode.EXCEPTION + 32:
        return f"VMEXIT_EXCP{code - ExitCode.EXCEPTION}"
    return f"VMEXIT_{ExitCode(code).name}" if code in ExitCode._value2member_map_ else f"exit code {code:#x}"
