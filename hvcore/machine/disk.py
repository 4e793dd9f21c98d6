"""The disk behind the NVMe controllers: reproducible content or a file's, with what was written kept in memory."""

import os
import stat
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BadMachine
from .description import DiskDescription

__all__ = ["BLOCK", "Disk", "lab_blocks"]

BLOCK = 512
"""Bytes of a logical block."""

SIGNATURE = b"HVLABBLK"
_GOLDEN, _STAR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x2545F4914F6CDD1D)
_FNV_START, _FNV_PRIME = 0xCBF29CE484222325, np.uint64(0x100000001B3)
_WORDS = 60
_CHUNK = 4096


def lab_blocks(seed: int, lba: int, count: int) -> NDArray[np.uint8]:
    """The generated blocks `lba`..`lba + count - 1` as bytes [count, 512].

    Bytes 0-7 `HVLABBLK`, 8-15 the LBA, 16-23 the seed, 24-503 sixty words of xorshift64* seeded by both, 504-511 the FNV-1a of what
    precedes; all little-endian.  So a reader can tell from a block alone whether it is whole and which one it is.
    """
    words = np.empty((count, BLOCK // 8), np.uint64)
    words[:, 0] = int.from_bytes(SIGNATURE, "little")
    words[:, 1] = np.arange(count, dtype=np.uint64) + np.uint64(lba)
    words[:, 2] = seed & (1 << 64) - 1
    state = (words[:, 2] ^ words[:, 1] * _GOLDEN) | np.uint64(1)
    for i in range(_WORDS):
        state ^= state >> np.uint64(12)
        state ^= state << np.uint64(25)
        state ^= state >> np.uint64(27)
        words[:, 3 + i] = state * _STAR
    words[:, -1] = _fnv1a(words.view(np.uint8)[:, :BLOCK - 8])
    return words.view(np.uint8)


def _fnv1a(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """FNV-1a, 64 bits, of each row."""
    sums = np.full(len(rows), _FNV_START, np.uint64)
    for column in rows.T.astype(np.uint64):
        sums ^= column
        sums *= _FNV_PRIME
    return sums


def _generated(seed: int) -> Callable[[int, int], bytes]:
    return lambda lba, count: lab_blocks(seed, lba, count).tobytes()


def _of_file(descriptor: int) -> Callable[[int, int], bytes]:
    return lambda lba, count: os.pread(descriptor, count * BLOCK, lba * BLOCK).ljust(count * BLOCK, b"\0")


class Disk:
    """A disk of `blocks` logical blocks of 512 bytes.

    What is written stays in memory and hides the content beneath; a file is opened read-only and never changed.  A file that does not
    end on a block is padded with zeros.  Raises BadMachine where there is no such file or no whole block.
    """

    def __init__(self, description: DiskDescription):
        self._written: dict[int, bytes] = {}
        self.lay_over(description)

    def lay_over(self, description: DiskDescription) -> None:
        """What was written now hides the content that is described here."""
        self.description = description
        size = description.size
        self._beneath = _generated(description.seed)
        if description.image is not None:
            descriptor = _open(description.image)
            weakref.finalize(self, os.close, descriptor)
            size = os.fstat(descriptor).st_size
            self._beneath = _of_file(descriptor)
        self.blocks = -(-size // BLOCK)
        if self.blocks < 1:
            raise BadMachine(f"the disk {description.image or 'of the machine'} is empty: give it at least one block of {BLOCK} bytes")

    def read(self, lba: int, count: int) -> bytes:
        """`count` blocks from block `lba` on."""
        self._check(lba, count)
        written = [i for i in range(count) if lba + i in self._written]
        if len(written) == count:
            return b"".join(self._written[lba + i] for i in written)
        data = bytearray(self._beneath(lba, count))
        for i in written:
            data[i * BLOCK:(i + 1) * BLOCK] = self._written[lba + i]
        return bytes(data)

    def write(self, lba: int, data: bytes) -> None:
        """Whole blocks from block `lba` on."""
        if len(data) % BLOCK:
            raise ValueError(f"{len(data)} bytes are not whole blocks of {BLOCK}")
        self._check(lba, len(data) // BLOCK)
        for i in range(len(data) // BLOCK):
            self._written[lba + i] = data[i * BLOCK:(i + 1) * BLOCK]

    def zero(self, lba: int, count: int) -> None:
        """`count` blocks of zeros from block `lba` on."""
        self._check(lba, count)
        self._written.update(dict.fromkeys(range(lba, lba + count), bytes(BLOCK)))

    def _check(self, lba: int, count: int) -> None:
        if lba < 0 or count < 0 or lba + count > self.blocks:
            raise ValueError(f"blocks {lba} to {lba + count} are not all on a disk of {self.blocks} blocks")

    def reset(self) -> None:
        """Forgets all that was written: the content is the machine description's again."""
        self._written.clear()

    def write_image(self, path: str | Path, blocks: int | None = None) -> None:
        """The first `blocks` blocks (all where None) into a new raw file, for another emulator to use."""
        count = self.blocks if blocks is None else blocks
        with open(path, "wb") as file:
            file.writelines(self.read(lba, min(_CHUNK, count - lba)) for lba in range(0, count, _CHUNK))


def _open(image: str) -> int:
    """A read-only descriptor of a disk image.  A pipe is not waited for: only a regular file is one."""
    try:
        if not stat.S_ISREG(os.stat(image).st_mode):
            raise BadMachine(f"the disk image {image} is not a file: correct `image` in the machine's [disk]")
        return os.open(image, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise BadMachine(f"the disk image {image} cannot be opened ({why}): correct `image` in the machine's [disk]") from e
