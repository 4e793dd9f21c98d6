"""The core's own memory: what lies where in the region it takes, counted from the region's start (host-physical).

    +0x00000  text    the world-switch stub                       read, execute
    +0x01000  data    pointers, descriptor table, guest registers
    +0x02000  VMCB of the guest
    +0x03000  host save area (VM_HSAVE_PA)
    +0x04000  host's own VMLOAD/VMSAVE state
    +0x05000  stack, growing down from +0x06000
    +0x06000  MSR permission map, two pages
    +0x08000  blank   what the guest's CPU sees in place of the core
    +0x09000  secret  the storage key
    +0x10000  heap    nested page tables, VT-d tables, one page after the other
"""

from enum import IntEnum

__all__ = ["HEAP", "Data", "GUEST_REGISTERS", "Part", "SECRET_SIZE", "named_ranges"]


class Part(IntEnum):
    """Offsets of the parts."""

    TEXT = 0x0000
    DATA = 0x1000
    VMCB = 0x2000
    HSAVE = 0x3000
    HOST = 0x4000
    STACK = 0x5000
    MSRPM = 0x6000
    BLANK = 0x8000
    SECRET = 0x9000


HEAP = 0x10000
SECRET_SIZE = 32


class Data(IntEnum):
    """Offsets in the data page; `stub/world_switch.S` has the same."""

    VMCB = 0x00
    HOST = 0x08
    WAIT = 0x10
    CR3 = 0x18
    GDTR = 0x20
    HSAVE = 0x30
    STACK = 0x38
    GDT = 0x40
    N_CR3 = 0x60
    HEAP_NEXT = 0x68
    GPRS = 0x100


GUEST_REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
"""Numbers of the general registers as the data page keeps them; RAX and RSP are in the VMCB instead."""


def named_ranges(base: int, size: int) -> list[tuple[str, int, int]]:
    """The parts as (name, start, end), host-physical and half-open."""
    starts = [*Part, Part.SECRET + 0x1000]
    parts = [(part.name.lower(), base + part, base + starts[i + 1]) for i, part in enumerate(Part)]
    return [*parts, ("heap", base + HEAP, base + size)]
