"""Long-mode page tables as the processor walks them (AMD64 Architecture Programmer's Manual, volume 2, section 5.3); nested ones alike."""

from ..errors import Unreadable
from .memory import Memory

__all__ = ["ADDRESS", "LARGE", "PHYSICAL_BITS", "PRESENT", "translate", "translate_nested"]

PHYSICAL_BITS = 40
"""Width of the processor's physical addresses: it reaches 1 TiB, whatever the model says."""
PRESENT, LARGE = 1 << 0, 1 << 7
ADDRESS = 0x000F_FFFF_FFFF_F000


def translate(memory: Memory, root: int, address: int) -> int | None:
    """Where `address` leads by the four-level tables at `root` (CR3 or N_CR3); None where it is not mapped or a table is no memory."""
    table = root & ADDRESS
    for level in (3, 2, 1, 0):
        shift = 12 + 9 * level
        try:
            entry = memory.read64(table + 8 * (address >> shift & 511))
        except Unreadable:
            return None
        if not entry & PRESENT:
            return None
        if level == 0 or level < 3 and entry & LARGE:
            return (entry & ADDRESS) >> shift << shift | address & (1 << shift) - 1
        table = entry & ADDRESS
    return None


def translate_nested(memory: Memory, cr3: int, n_cr3: int, address: int) -> int | None:
    """Host-physical address of a guest-virtual one: by the guest's tables, which lie at guest-physical addresses, and the nested ones."""
    table: int | None = translate(memory, n_cr3, cr3 & ADDRESS)
    for level in (3, 2, 1, 0):
        shift = 12 + 9 * level
        at = None if table is None else table + 8 * (address >> shift & 511)
        if at is None or not memory.backed(at, 8):
            return None
        entry = memory.read64(at)
        if not entry & PRESENT:
            return None
        if level == 0 or level < 3 and entry & LARGE:
            return translate(memory, n_cr3, (entry & ADDRESS) >> shift << shift | address & (1 << shift) - 1)
        table = translate(memory, n_cr3, entry & ADDRESS)
    return None
