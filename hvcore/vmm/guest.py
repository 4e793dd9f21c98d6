"""Loads a guest by the Linux boot protocol (64-bit entry): ELF segments where they want to lie, boot_params with the guest's E820 map,
first page tables and descriptors, all in memory that map calls usable.  Addresses are guest-physical."""

import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import BadMachine
from ..machine.memory import PAGE
from ..spec.bits import align_down, align_up
from ..spec.e820 import E820Entry
from ..spec.linuxboot import Elf, Kernel, boot_params, rng_seed

__all__ = ["GuestStart", "line_bytes", "load_guest"]

GIB = 1 << 30
_GDT = (0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
_GIBS = 1024
"""The first tables map 1 TiB to itself."""
_AREA = 8 * PAGE
_LINE = 2048
"""Bytes that x86 kernels keep of the command line (COMMAND_LINE_SIZE)."""
SEED = bytes(range(32))
"""What the loader seeds a kernel's random numbers with: always the same, so that boots repeat."""
_LOW_END, _RAMDISK_END = 1 << 20, 2 << 30


@dataclass(frozen=True)
class GuestStart:
    """Registers with which the guest begins: RIP, RSI (boot_params), CR3, GDT base, RSP."""

    entry: int
    boot_params: int
    cr3: int
    gdt: int
    stack: int


class LoadMemory(Protocol):
    """Memory by guest-physical addresses: the machine's own where they are host-physical."""

    def write(self, address: int, data: bytes) -> None: ...
    def write64(self, address: int, value: int) -> None: ...
    def u8(self, address: int, count: int) -> NDArray[np.uint8]: ...
    def u64(self, address: int, count: int) -> NDArray[np.uint64]: ...


def load_guest(memory: LoadMemory, guest: Elf | Kernel, e820: tuple[E820Entry, ...], command_line: str) -> GuestStart:
    """Puts the guest into memory.  Raises BadMachine where it has no room."""
    kernel = guest if isinstance(guest, Kernel) else Kernel(guest)
    elf = kernel.elf
    for segment in elf.segments:
        if not _usable(e820, segment.address, segment.address + segment.size):
            raise BadMachine(f"the guest wants {segment.address:#x}-{segment.address + segment.size:#x}, "
                             "which this machine's map does not call usable")
        place, filled = memory.u8(segment.address, segment.size), len(segment.data)
        place[:filled] = np.frombuffer(segment.data, np.uint8)
        place[filled:] = 0
    area = _boot_area(e820, elf)
    params, line, gdt, pml4 = area, area + PAGE, area + 2 * PAGE, area + 3 * PAGE
    ramdisk = _place_ramdisk(memory, kernel.initrd, e820, elf)
    seed = line + _LINE if kernel.setup_header else 0
    memory.write(params, boot_params(e820, line, kernel.setup_header, ramdisk, seed))
    if seed:
        memory.write(seed, rng_seed(SEED))
    memory.write(line, line_bytes(f"{command_line} {kernel.command_line}"))
    memory.write(gdt, struct.pack("<4Q", *_GDT))
    for i in range(_GIBS // 512):
        table = pml4 + PAGE * (i + 1)
        memory.write64(pml4 + 8 * i, table | 3)
        memory.u64(table, 512)[:] = [(512 * i + n) * GIB | 0x83 for n in range(512)]
    return GuestStart(elf.entry, params, pml4, gdt, area + _AREA)


def line_bytes(text: str) -> bytes:
    """The command line as the kernel reads it, without spaces around it.  Raises BadMachine where a kernel could not take it."""
    text = text.strip(" ")
    odd = next((c for c in text if not " " <= c <= "~"), None)
    if odd is not None:
        raise BadMachine(f"the guest's command line has the character {odd!r}: only printable ASCII is allowed")
    if len(text) >= _LINE:
        raise BadMachine(f"the guest's command line has {len(text)} characters; a kernel takes {_LINE - 1}: leave some out")
    return text.encode() + b"\0"


def _place_ramdisk(memory: LoadMemory, data: bytes, e820: tuple[E820Entry, ...], elf: Elf) -> tuple[int, int]:
    """The RAM disk as high as it can lie below 2 GiB, as loaders put it; its guest-physical address and size."""
    if not data:
        return 0, 0
    for e in sorted(e820, reverse=True):
        start = align_down(min(e.end, _RAMDISK_END) - len(data), PAGE)
        if e.usable and start >= max(e.start, _LOW_END) and all(start + len(data) <= s.address or s.end <= start for s in elf.segments):
            memory.write(start, data)
            return start, len(data)
    raise BadMachine(f"this machine's map has no room of {len(data)} bytes between 1 MiB and 2 GiB for the guest's initial RAM disk")


def _boot_area(e820: tuple[E820Entry, ...], elf: Elf) -> int:
    """Room for what the loader leaves: low memory if the map has it, else the first usable pages that no segment takes."""
    taken = [(s.address, s.address + s.size) for s in elf.segments]
    starts = [0x10000, *(align_up(max(e.start, PAGE), PAGE) for e in sorted(e820) if e.usable), *(align_up(end, PAGE) for _, end in taken)]
    for start in starts:
        if _usable(e820, start, start + _AREA) and all(start + _AREA <= a or b <= start for a, b in taken):
            return start
    raise BadMachine("there is no usable RAM for what the loader leaves to the guest")


def _usable(e820: tuple[E820Entry, ...], start: int, end: int) -> bool:
    return any(e.usable and e.start <= start and end <= e.end for e in e820)
