"""Which pages of a machine's memory hold anything, and how they are packed.

A machine of 64 GiB has touched a few hundred megabytes.  The host says which of its pages are there (`mincore`), so that looking for them
touches no other; of those the ones that are all zero are left out, as memory that was never touched reads the same.
"""

import ctypes
import mmap
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadSnapshot
from ..machine.memory import PAGE, Memory

__all__ = ["CHUNK", "RAW", "ZSTD", "Pages", "best_codec", "check", "fill", "pack", "touched", "unpack"]

Pages = NDArray[np.int64]
"""Numbers of pages, in order: host-physical addresses by 4096."""

CHUNK = 1024
"""Pages that are packed together, 4 MiB."""
RAW, ZSTD = "raw", "zstd"
_LOOK = 1 << 18
"""Pages that are looked at in one go, 1 GiB."""
_HUGE = 512
"""Pages of one huge page of the host, 2 MiB."""
_MADV_HUGEPAGE = 14


def touched(memory: Memory) -> Pages:
    """The pages of RAM that are not all zero."""
    present = _present_exactly if _swapped() else _present
    words = memory.words.reshape(-1, PAGE // 8)
    found = []
    for start, end in memory.runs:
        for first in range(start // PAGE, end // PAGE, _LOOK):
            there = present(memory, first, min(first + _LOOK, end // PAGE))
            for at in range(0, len(there), CHUNK):
                some = there[at:at + CHUNK]
                found.append(some[words[some].any(axis=1)])
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _present(memory: Memory, first: int, end: int) -> Pages:
    """Pages of [first, end) that the host has in memory; all of them where it does not tell."""
    answer = np.empty(end - first, np.uint8)
    libc = _libc()
    if libc is None or libc.mincore(ctypes.c_void_p(memory.host + first * PAGE), ctypes.c_size_t((end - first) * PAGE),
                                    ctypes.c_void_p(answer.ctypes.data)):
        return np.arange(first, end, dtype=np.int64)
    return np.flatnonzero(answer & 1) + first


@cache
def _libc() -> Any:
    """The C library, where it has `mincore`."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):
        return None
    return libc if hasattr(libc, "mincore") else None


def _swapped() -> bool:
    """Whether some of this process's memory is on disk, where `mincore` does not see it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return any(line.startswith("VmSwap:") and line.split()[1] != "0" for line in status.splitlines())


def _present_exactly(memory: Memory, first: int, end: int) -> Pages:
    """Pages of [first, end) that are in memory or on disk; ten times slower."""
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek((memory.host // PAGE + first) * 8)
            entries = np.frombuffer(file.read((end - first) * 8), np.uint64)
    except OSError:
        entries = np.zeros(0, np.uint64)
    if len(entries) != end - first:
        return np.arange(first, end, dtype=np.int64)
    return np.flatnonzero(entries >> np.uint64(62)) + first


# --- packing

@cache
def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        return None
    return zstandard


def best_codec() -> str:
    """How pages are packed here: by Zstandard, which takes a third of the room, where its package is installed."""
    return ZSTD if _zstandard() is not None else RAW


def check(data: bytes | memoryview) -> int:
    """The checksum of what lies in a file."""
    return zlib.crc32(data)


def pack(codec: str, data: bytes) -> bytes:
    """Bytes as they lie in a file."""
    if codec == RAW:
        return data
    return bytes(_zstandard().ZstdCompressor(level=1).compress(data))


def unpack(codec: str, data: bytes, size: int) -> bytes:
    """`size` bytes from those in a file.  Raises BadSnapshot for others, and where the package that unpacks them is missing."""
    if codec == ZSTD:
        zstandard = _zstandard()
        if zstandard is None:
            raise BadSnapshot("it is packed by Zstandard: pip install zstandard")
        try:
            if zstandard.frame_content_size(data) != size:
                raise BadSnapshot("packed bytes have another size than was written down")
            data = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
        except zstandard.ZstdError as error:
            raise BadSnapshot(f"packed bytes are damaged ({error})") from error
    elif codec != RAW:
        raise BadSnapshot("it is packed in a way that this version does not know")
    if len(data) != size:
        raise BadSnapshot("packed bytes have another size than was written down")
    return data


def in_threads(do: Callable[[Any], Any], things: Any) -> Iterator[Any]:
    """`do` of each, on as many threads as there are processors, in order and never far ahead of who takes the results."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        waiting = []
        for thing in things:
            waiting.append(pool.submit(do, thing))
            if len(waiting) > 16:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()


# --- filling

def fill(memory: Memory, pages: Pages, data: bytes | NDArray[np.uint8]) -> None:
    """Puts the bytes of `pages` into memory."""
    source = np.frombuffer(data, np.uint8).reshape(-1, PAGE)
    target = memory.words.view(np.uint8).reshape(-1, PAGE)
    cuts = np.flatnonzero(np.diff(pages) != 1) + 1
    if len(cuts) * 4 > len(pages):
        target[pages] = source
        return
    for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(pages)], strict=True):
        if start < end:
            first = int(pages[start])
            target[first:first + end - start] = source[start:end]


def by_huge_pages(memory: Memory, pages: Pages) -> None:
    """Lets the host take huge pages where at least half of one will be filled: it has them ready five times faster."""
    blocks, counts = np.unique((pages * PAGE + memory.host) // (PAGE * _HUGE), return_counts=True)
    dense = blocks[counts >= _HUGE // 2]
    cuts = np.flatnonzero(np.diff(dense) != 1) + 1
    for run in np.split(dense, cuts):
        if len(run):
            start = max(int(run[0]) * PAGE * _HUGE - memory.host, 0)
            end = min((int(run[-1]) + 1) * PAGE * _HUGE - memory.host, memory.end)
            _advise(memory.map, start, end - start)


def _advise(host: mmap.mmap, start: int, length: int) -> None:
    try:
        host.madvise(_MADV_HUGEPAGE, start, length)
    except (OSError, ValueError):
        return


def runs_of(pages: Pages) -> list[list[int]]:
    """Pages as [first, count] of those that follow one another."""
    cuts = np.flatnonzero(np.diff(pages) != 1) + 1
    parts = np.split(pages, cuts) if len(pages) else []
    return [[int(part[0]), len(part)] for part in parts]
