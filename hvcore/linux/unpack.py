"""The compressed kernel inside a bzImage, in the formats that Linux's build makes; it never unpacks to more than it says."""

import bz2
import lzma
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any

from ..errors import BadMachine

__all__ = ["unpack", "unpack_zstd"]

_Unpack = Callable[[bytes, int], bytes]

_LZ4_MAGIC = bytes.fromhex("02214c18")
_LZ4_BLOCK = 8 << 20
"""Bytes to which a block of LZ4's legacy frame unpacks at most."""
_CHUNK = 1 << 20
_MEMORY = 512 << 20
"""Bytes that LZMA's dictionary may take."""


def unpack(packed: bytes, size: int) -> bytes:
    """The `size` bytes to which `packed` unpacks; what follows the packed stream is left out.

    Raises BadMachine where the format is unknown, the bytes are damaged, or they make more or fewer than `size` bytes.
    """
    name, work = _format(packed)
    try:
        data = work(packed, size)
    except (OSError, ValueError, EOFError, MemoryError, RuntimeError, lzma.LZMAError, zlib.error) as e:
        raise BadMachine(f"the kernel's {name} stream is damaged ({e}): fetch or copy it again") from e
    if len(data) != size:
        more = "more" if len(data) > size else f"{len(data)}"
        raise BadMachine(f"the kernel's {name} stream should unpack to {size} bytes, but makes {more}: fetch or copy it again")
    return data


def _format(packed: bytes) -> tuple[str, _Unpack]:
    for magic, name, work in _FORMATS:
        if packed.startswith(magic):
            return name, work
    known = ", ".join(name for _, name, _ in _FORMATS)
    raise BadMachine(f"the kernel is packed in an unknown format (it begins with {packed[:4].hex(' ')}; known are {known}): "
                     "give its vmlinux instead")


def _gzip(packed: bytes, size: int) -> bytes:
    return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed, size + 1)


def _bzip2(packed: bytes, size: int) -> bytes:
    return bz2.BZ2Decompressor().decompress(packed, size + 1)


def _lzma(packed: bytes, size: int) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_AUTO, _MEMORY).decompress(packed, size + 1)


def _lz4(packed: bytes, size: int) -> bytes:
    """Blocks after the magic, each with its packed length before it; the kernel's size after the last one ends them."""
    block = _extra("lz4.block", "lz4")
    parts, at, made = [], len(_LZ4_MAGIC), 0
    while made < size and at + 4 <= len(packed):
        length = struct.unpack_from("<I", packed, at)[0]
        if length > len(packed) - at - 4:
            raise ValueError(f"a block of {length} bytes is cut off")
        parts.append(block.decompress(packed[at + 4:at + 4 + length], uncompressed_size=_LZ4_BLOCK))
        made += len(parts[-1])
        at += 4 + length
    return b"".join(parts)


def unpack_zstd(packed: bytes, most: int) -> bytes:
    """What a zstd stream holds, `most` bytes at most.  Raises ValueError where it is damaged, BadMachine where nothing can unpack it."""
    if sys.version_info >= (3, 14):
        from compression import zstd
        try:
            return zstd.ZstdDecompressor().decompress(packed, most)
        except zstd.ZstdError as e:
            raise ValueError(str(e)) from e
    zstandard = _extra("zstandard", "zstandard")
    try:
        with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
            out = bytearray()
            while len(out) < most and (part := reader.read(min(_CHUNK, most - len(out)))):
                out += part
            return bytes(out)
    except zstandard.ZstdError as e:
        raise ValueError(str(e)) from e


def _zstd(packed: bytes, size: int) -> bytes:
    """The kernel's size, four bytes after the stream, would be taken for the beginning of another one."""
    return unpack_zstd(packed[:-4], size + 1)


def _extra(module: str, package: str) -> Any:
    """A module of the extra `linux`.  Raises BadMachine where it is not installed."""
    from importlib import import_module
    try:
        return import_module(module)
    except ImportError:
        raise BadMachine(f"this kernel needs the Python package {package} to be unpacked: run `pip install {package}` "
                         "(hvlab's extra `linux` has it)") from None


_FORMATS: tuple[tuple[bytes, str, _Unpack], ...] = (
    (b"\x1f\x8b", "gzip", _gzip), (b"BZh", "bzip2", _bzip2), (b"\xfd7zXZ\0", "xz", _lzma), (b"\x5d\0\0", "lzma", _lzma),
    (_LZ4_MAGIC, "lz4", _lz4), (b"\x28\xb5\x2f\xfd", "zstd", _zstd))
