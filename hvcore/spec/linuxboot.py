"""How a Linux kernel is loaded and started in 64-bit mode (Linux, Documentation/arch/x86/boot.rst and zero-page.rst), and its ELF image."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..errors import BadMachine
from .e820 import ENTRY_SIZE, E820Entry, pack, unpack

__all__ = ["BOOT_FLAG", "BOOT_PARAMS_SIZE", "CMD_LINE_PTR", "E820_ENTRIES", "E820_MAX", "E820_TABLE", "HEADER", "LOADFLAGS", "SENTINEL",
           "SETUP_HEADER", "TYPE_OF_LOADER", "VERSION", "VID_MODE", "Elf", "Kernel", "Segment", "boot_params", "load_elf", "rng_seed",
           "told_e820"]

# Offsets in boot_params ("zero page").  What is not here may stay zero for a kernel that is entered in 64-bit mode.
BOOT_PARAMS_SIZE = 4096
E820_ENTRIES, SENTINEL, VID_MODE, BOOT_FLAG, HEADER, VERSION = 0x1E8, 0x1EF, 0x1FA, 0x1FE, 0x202, 0x206
TYPE_OF_LOADER, LOADFLAGS, CMD_LINE_PTR, E820_TABLE = 0x210, 0x211, 0x228, 0x2D0
SETUP_HEADER, RAMDISK_IMAGE, RAMDISK_SIZE, EXT_RAMDISK_IMAGE, EXT_RAMDISK_SIZE = 0x1F1, 0x218, 0x21C, 0x0C0, 0x0C4
SETUP_DATA = 0x250
E820_MAX = 128
"""Entries that `e820_table` holds."""

_RNG_SEED = 9
_VID_MODE_NORMAL, _BOOT_FLAG_VALUE, _PROTOCOL, _LOADER_UNKNOWN, _LOADED_HIGH = 0xFFFF, 0xAA55, 0x020C, 0xFF, 1 << 0

_HEADER = struct.Struct("<4sBBBxQHHIQQQIHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_CLASS_64, _LITTLE_ENDIAN, _EXECUTABLE, _X86_64, _LOAD = 2, 1, 2, 62, 1
_MAX_ADDRESS = 1 << 40


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of an ELF file for guest-physical `address`: `size` bytes of memory, of which the first are `data` and the rest zero."""

    address: int
    data: bytes
    size: int

    @property
    def end(self) -> int:
        """The guest-physical address after it."""
        return self.address + self.size


@dataclass(frozen=True, slots=True)
class Elf:
    """What of an ELF file goes into memory.  `entry` is the guest-physical address of the first instruction."""

    entry: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a loader gets: the kernel unpacked, the bytes of its bzImage from `SETUP_HEADER` on (empty where it has none), the initial RAM
    disk, and what is added to the command line."""

    elf: Elf
    setup_header: bytes = b""
    initrd: bytes = b""
    command_line: str = ""


def load_elf(data: bytes) -> Elf:
    """The segments and the physical entry of a static x86-64 ELF executable, as the file `vmlinux` of a kernel is one.

    Raises BadMachine where the file is not that, or is cut off.
    """
    entry, offset, size, count = _header(data)
    table = [_program_header(data, offset + i * size) for i in range(count)]
    segments = tuple(_segment(data, row) for row in table if row[0] == _LOAD and row[6])
    if not segments:
        raise BadMachine("the guest's ELF file has nothing to load: it has no program header of type PT_LOAD")
    _check_apart(segments)
    return Elf(_physical(entry, table), segments)


def _header(data: bytes) -> tuple[int, int, int, int]:
    """Entry, offset of the program headers, size of one, their number."""
    if len(data) < _HEADER.size or data[:4] != b"\x7fELF":
        raise BadMachine("the guest is not an ELF file (it does not begin with 7f 45 4c 46); a bzImage must be unpacked to its vmlinux")
    _, bits, order, _, _, kind, machine, _, entry, offset, _, _, _, size, count = _HEADER.unpack_from(data)
    if (bits, order, machine) != (_CLASS_64, _LITTLE_ENDIAN, _X86_64):
        raise BadMachine(f"the guest's ELF file is not for x86-64 (class {bits}, byte order {order}, machine {machine})")
    if kind != _EXECUTABLE:
        raise BadMachine(f"the guest's ELF file is no executable at fixed addresses (its type is {kind}, not {_EXECUTABLE})")
    if size < _PROGRAM_HEADER.size:
        raise BadMachine(f"the guest's ELF file has program headers of {size} bytes, fewer than {_PROGRAM_HEADER.size}")
    return entry, offset, size, count


def _program_header(data: bytes, offset: int) -> tuple[int, ...]:
    """Type, flags, offset in the file, virtual address, physical address, size in the file, size in memory, alignment."""
    if offset + _PROGRAM_HEADER.size > len(data):
        raise BadMachine(f"the guest's ELF file is cut off: a program header at {offset:#x} lies beyond its {len(data)} bytes")
    return _PROGRAM_HEADER.unpack_from(data, offset)


def _segment(data: bytes, row: tuple[int, ...]) -> Segment:
    _, _, offset, _, address, filled, size, _ = row
    if offset + filled > len(data):
        raise BadMachine(f"the guest's ELF file is cut off: {filled} bytes at {offset:#x} lie beyond its {len(data)} bytes")
    if filled > size:
        raise BadMachine(f"the guest's ELF file has a segment at {address:#x} with more bytes ({filled}) than it takes in memory ({size})")
    if address + size > _MAX_ADDRESS:
        raise BadMachine(f"the guest's ELF file has a segment at {address:#x}+{size:#x}; a guest reaches {_MAX_ADDRESS:#x}")
    return Segment(address, data[offset:offset + filled], size)


def _check_apart(segments: tuple[Segment, ...]) -> None:
    for a, b in pairwise(sorted(segments, key=lambda s: s.address)):
        if a.end > b.address:
            raise BadMachine(f"the guest's ELF file has segments that overlap: {a.address:#x}+{a.size:#x} and {b.address:#x}")


def _physical(entry: int, table: Sequence[tuple[int, ...]]) -> int:
    """The entry as a physical address, whether the file gives it as such (as Linux does) or as a virtual one."""
    loaded = [row for row in table if row[0] == _LOAD]
    if any(row[4] <= entry < row[4] + row[6] for row in loaded):
        return entry
    for _, _, _, virtual, physical, _, size, _ in loaded:
        if virtual <= entry < virtual + size:
            return entry - virtual + physical
    raise BadMachine(f"the guest's ELF file starts at {entry:#x}, which none of its segments holds")


def rng_seed(seed: bytes) -> bytes:
    """A `setup_data` record, the last of its list, with which a loader seeds the kernel's random numbers (SETUP_RNG_SEED, Linux 6.0)."""
    return struct.pack("<QII", 0, _RNG_SEED, len(seed)) + seed


def boot_params(e820: Sequence[E820Entry], cmdline_address: int, setup_header: bytes = b"", ramdisk: tuple[int, int] = (0, 0),
                setup_data: int = 0) -> bytes:
    """The 4096 bytes of boot_params for a kernel entered in 64-bit mode.

    `e820` is the map that the guest gets, in this order; `cmdline_address` the guest-physical address, below 4 GiB, of the
    command line (text that a zero byte ends); `setup_header` the kernel's own header, `ramdisk` guest-physical address and bytes of its
    initial RAM disk, `setup_data` the guest-physical address of the first such record, 0 for none.  Raises BadMachine beyond 128 entries or
    4 GiB.
    """
    if len(e820) > E820_MAX:
        raise BadMachine(f"the guest's memory map has {len(e820)} entries; Linux's boot_params holds {E820_MAX}")
    if not 0 <= cmdline_address < 1 << 32:
        raise BadMachine(f"the guest's command line at {cmdline_address:#x} is not below 4 GiB, where boot_params can name it")
    page = bytearray(BOOT_PARAMS_SIZE)
    page[SETUP_HEADER:SETUP_HEADER + len(setup_header)] = setup_header
    page[E820_ENTRIES] = len(e820)
    struct.pack_into("<H", page, VID_MODE, _VID_MODE_NORMAL)
    struct.pack_into("<H", page, BOOT_FLAG, _BOOT_FLAG_VALUE)
    page[HEADER:HEADER + 4] = b"HdrS"
    if not setup_header:
        struct.pack_into("<H", page, VERSION, _PROTOCOL)
    page[TYPE_OF_LOADER], page[LOADFLAGS] = _LOADER_UNKNOWN, page[LOADFLAGS] | _LOADED_HIGH
    for at, value in ((RAMDISK_IMAGE, ramdisk[0]), (RAMDISK_SIZE, ramdisk[1])):
        struct.pack_into("<I", page, at, value & 0xFFFFFFFF)
    struct.pack_into("<Q", page, SETUP_DATA, setup_data)
    for at, value in ((EXT_RAMDISK_IMAGE, ramdisk[0]), (EXT_RAMDISK_SIZE, ramdisk[1])):
        struct.pack_into("<I", page, at, value >> 32)
    struct.pack_into("<I", page, CMD_LINE_PTR, cmdline_address)
    page[E820_TABLE:E820_TABLE + len(e820) * ENTRY_SIZE] = pack(e820)
    return bytes(page)


def told_e820(page: bytes) -> tuple[E820Entry, ...]:
    """The memory map in the 4096 bytes of boot_params."""
    return unpack(page[E820_TABLE:E820_TABLE + ENTRY_SIZE * min(page[E820_ENTRIES], E820_MAX)])
