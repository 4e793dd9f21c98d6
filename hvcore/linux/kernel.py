"""A Linux kernel's file: the vmlinux inside a bzImage, and its setup header (Linux, Documentation/arch/x86/boot.rst)."""

import re
import struct
from dataclasses import dataclass

from ..errors import BadMachine
from ..spec.linuxboot import Elf, load_elf
from .unpack import unpack

__all__ = ["SETUP_HEADER", "KernelFile", "read_kernel", "setup_header_of"]

SETUP_HEADER = 0x1F1
"""Offset of the setup header in a bzImage, and in boot_params."""
_BOOT_FLAG, _JUMP, _MAGIC, _VERSION, _VERSION_STRING, _INITRD_MAX = 0x1FE, 0x200, 0x202, 0x206, 0x20E, 0x22C
_XLOADFLAGS, _PAYLOAD, _PREFERRED = 0x236, 0x248, 0x258
_HEADER_END = 0x264
_OLDEST = 0x0208
"""The boot protocol that brought the payload's place (Linux 2.6.26)."""
_MADE, _KERNEL_64 = 0x020C, 1 << 0
_SECTOR, _SECTORS_OF_OLD = 512, 4
_LARGEST = 1 << 30
"""Bytes of an unpacked kernel.  Debian's have about 55 MiB."""
_RELEASE = re.compile(rb"Linux version (\S{1,100}) ")


@dataclass(frozen=True)
class KernelFile:
    """What a kernel's file holds.  `release` is what `uname -r` will say; `setup_header` lies at 0x1f1 of boot_params."""

    release: str
    vmlinux: bytes
    setup_header: bytes

    @property
    def elf(self) -> Elf:
        """What of it goes into memory."""
        return load_elf(self.vmlinux)


def read_kernel(data: bytes) -> KernelFile:
    """A bzImage or a vmlinux.  Raises BadMachine, one sentence, where it is neither, is damaged, or is for another processor."""
    if data[:4] == b"\x7fELF":
        return KernelFile(_release(data), data, _made_header(load_elf(data)))
    header = setup_header_of(data)
    packed = _payload(data)
    size = int.from_bytes(packed[-4:], "little")
    if size > _LARGEST:
        raise BadMachine(f"the kernel says that it unpacks to {size} bytes; hvlab takes {_LARGEST} at most")
    vmlinux = unpack(packed, size)
    load_elf(vmlinux)
    return KernelFile(_release_of_image(data) or _release(vmlinux), vmlinux, header)


def setup_header_of(data: bytes) -> bytes:
    """A bzImage's setup header, from 0x1f1 to its end.  Only the file's first KiB is needed.  Raises BadMachine where it is none."""
    if len(data) < _HEADER_END or data[_MAGIC:_MAGIC + 4] != b"HdrS" or data[_BOOT_FLAG:_BOOT_FLAG + 2] != b"\x55\xaa":
        raise BadMachine("the kernel is neither a bzImage for x86 nor an ELF file: give a vmlinuz or vmlinux of an x86-64 Linux")
    version = _u16(data, _VERSION)
    if version < _OLDEST:
        raise BadMachine(f"the kernel's boot protocol {version >> 8}.{version & 0xFF:02} is older than 2.08: take Linux 2.6.26 or newer")
    end = _MAGIC + data[_JUMP + 1]
    if not _PAYLOAD + 8 <= end <= len(data):
        raise BadMachine(f"the kernel's setup header ends at {end:#x}, which cannot be: the file is damaged")
    return data[SETUP_HEADER:end]


def _payload(data: bytes) -> bytes:
    """The packed kernel; the last four bytes are its unpacked size, in gzip's trailer or after the stream."""
    sectors = data[SETUP_HEADER] or _SECTORS_OF_OLD
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    start = (sectors + 1) * _SECTOR + offset
    if length < 8:
        raise BadMachine("the kernel's bzImage holds no packed kernel: give its vmlinux instead")
    if start + length > len(data):
        raise BadMachine(f"the kernel's bzImage is cut off: it should have at least {start + length} bytes and has {len(data)}")
    return data[start:start + length]


def _release_of_image(data: bytes) -> str:
    """The first word of the version string to which the setup header points; empty where it points to none."""
    start = _SECTOR + _u16(data, _VERSION_STRING)
    words = data[start:start + 200].partition(b"\0")[0].split()
    return words[0].decode("ascii", "replace") if start > _SECTOR and words else ""


def _release(vmlinux: bytes) -> str:
    """What the kernel's banner calls itself."""
    found = _RELEASE.search(vmlinux)
    return found[1].decode("ascii", "replace") if found else "of unknown version"


def _made_header(elf: Elf) -> bytes:
    """The setup header of a kernel without one: what a boot loader would need to know of it."""
    page = bytearray(_HEADER_END + 8)
    start, end = min(s.address for s in elf.segments), max(s.end for s in elf.segments)
    struct.pack_into("<H", page, _BOOT_FLAG, 0xAA55)
    struct.pack_into("<BB4sH", page, _JUMP, 0xEB, len(page) - _MAGIC, b"HdrS", _MADE)
    struct.pack_into("<II", page, _INITRD_MAX, 0x7FFFFFFF, 0x200000)
    struct.pack_into("<HI", page, _XLOADFLAGS, _KERNEL_64, 2047)
    struct.pack_into("<QI", page, _PREFERRED, start, min(end - start, 0xFFFFFFFF))
    return bytes(page[SETUP_HEADER:])


def _u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset:offset + 2], "little")
