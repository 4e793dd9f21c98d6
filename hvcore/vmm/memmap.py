"""Which memory the core takes, and the memory map it shows to its guest, as BitVisor does both."""

from collections.abc import Iterable
from dataclasses import replace

from ..spec.bits import align_down, align_up
from ..spec.e820 import E820Entry, E820Type
from .heap import Panic

__all__ = ["choose_region", "guest_map"]

ALIGN = 4 << 20
FOUR_GIB = 1 << 32


def choose_region(e820: Iterable[E820Entry], size: int) -> int:
    """Start of the core's region (host-physical): the top of the highest available entry below 4 GiB that holds `size` bytes after its
    start was raised and its end lowered to 4 MiB.  Panics where there is none."""
    found = 0
    for entry in e820:
        if entry.usable and entry.start < FOUR_GIB:
            start, end = align_up(entry.start, ALIGN), align_down(min(entry.end, FOUR_GIB), ALIGN)
            if end - start >= size:
                found = max(found, end - size)
    if not found:
        raise Panic("Out of memory.")
    return found


def guest_map(e820: Iterable[E820Entry], base: int) -> tuple[E820Entry, ...]:
    """The firmware's map with the available entry that holds the core cut to end at `base`.

    From there to the entry's old end nothing is reported; an entry that begins inside that range becomes reserved.
    """
    entries = tuple(e820)
    holder = next(e for e in entries if e.usable and e.start <= base < e.end)
    shown = []
    for e in entries:
        if e == holder:
            if e.start < base:
                shown.append(replace(e, end=base))
        elif e.usable and holder.start < e.start < holder.end:
            shown.append(replace(e, type=int(E820Type.RESERVED)))
        else:
            shown.append(e)
    return tuple(shown)
