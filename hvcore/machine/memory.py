"""Physical memory: one sparse host mapping, seen by the CPU emulator, by NumPy and by DMA alike."""

import ctypes
import mmap
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from ..errors import BadMachine, Unreadable

__all__ = ["LIMIT", "PAGE", "Memory"]

PAGE = 4096
LIMIT = 2 << 40
"""Highest physical address (exclusive) that a machine's RAM may reach."""


class Memory:
    """RAM in the half-open host-physical ranges `runs`; everything else is not memory.

    The host maps addresses 0 up to the end of RAM without reserving swap: a page costs nothing until it is touched.
    `read` and `write` are what a device or an inspector does and raise `Unreadable` outside RAM; `u64` and its like are views, not copies.
    """

    def __init__(self, runs: Iterable[tuple[int, int]]):
        self.runs = tuple(sorted(runs))
        self._starts = np.array([a for a, _ in self.runs], np.uint64)
        self._ends = np.array([b for _, b in self.runs], np.uint64)
        self.end = max((b for _, b in self.runs), default=0)
        if self.end > LIMIT:
            raise BadMachine(f"RAM ends at {self.end:#x}, beyond the {LIMIT >> 40} TiB that hvlab emulates: lower the machine's RAM")
        if not self.runs or any(a % PAGE or b % PAGE or a >= b for a, b in self.runs):
            raise BadMachine("a machine needs RAM in whole 4 KiB pages: look at the usable entries of its E820 map")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        try:
            self.map = mmap.mmap(-1, self.end, flags=flags)
        except OSError as e:
            raise BadMachine(f"the host refused {self.end >> 30} GiB of address space ({e.strerror}): "
                             "raise `ulimit -v`, or allow overcommit (sysctl vm.overcommit_memory=0)") from e
        self.host = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self._bytes = np.frombuffer(self.map, np.uint8)
        self._words = self._bytes.view(np.uint64)
        self._pages = self._words.reshape(-1, PAGE // 8)
        self.listeners: list[Callable[[int, int], None]] = []
        self.recorder: Callable[[int, bytes, object], None] | None = None

    def backed(self, address: int, length: int = 1) -> bool:
        """Whether all of [address, address+length) is RAM of one run."""
        return any(a <= address and address + length <= b for a, b in self.runs)

    def _check(self, address: int, length: int) -> None:
        if not self.backed(address, length):
            raise Unreadable(address, length)

    def read(self, address: int, length: int) -> bytes:
        """The bytes at a physical address."""
        self._check(address, length)
        return self.map[address:address + length]

    def write(self, address: int, data: bytes, by: object = None) -> None:
        """Bytes into RAM, by software of the host or by a device; a CPU that translated code there is told.

        `by` is for the `recorder`: the request of a device, or the name of other hardware; None for software.
        """
        self._check(address, len(data))
        self.map[address:address + len(data)] = data
        for listener in self.listeners:
            listener(address, address + len(data))
        if self.recorder is not None:
            self.recorder(address, data, by)

    def read64(self, address: int) -> int:
        """A little-endian 64-bit word at any address."""
        return int.from_bytes(self.read(address, 8), "little")

    def write64(self, address: int, value: int) -> None:
        """Stores a little-endian 64-bit word."""
        self.write(address, value.to_bytes(8, "little"))

    def read32(self, address: int) -> int:
        """A little-endian 32-bit word at any address."""
        return int.from_bytes(self.read(address, 4), "little")

    def write32(self, address: int, value: int) -> None:
        """Stores a little-endian 32-bit word."""
        self.write(address, value.to_bytes(4, "little"))

    def u8(self, address: int, count: int) -> NDArray[np.uint8]:
        """A writable view of `count` bytes."""
        self._check(address, count)
        return self._bytes[address:address + count]

    def u64(self, address: int, count: int) -> NDArray[np.uint64]:
        """A writable view of `count` words from an address that is a multiple of 8."""
        self._check(address, 8 * count)
        if address % 8:
            raise ValueError(f"{address:#x} is not a multiple of 8")
        return self._words[address // 8:address // 8 + count]

    @property
    def words(self) -> NDArray[np.uint64]:
        """All words from address 0 to the end of RAM, as a view; those outside RAM mean nothing: ask `readable`."""
        return self._words

    def readable(self, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether a whole 4 KiB page of RAM begins at each of many addresses."""
        run = np.searchsorted(self._starts, addresses, "right").astype(np.int64) - 1
        end = self._ends[np.maximum(run, 0)]
        return np.asarray((run >= 0) & (addresses < end) & (addresses % np.uint64(PAGE) == 0), np.bool_)

    def tables(self, addresses: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """The 4 KiB pages at many page-aligned addresses: words [n, 512], zeros where there is no RAM, and readable [n].

        Pages that follow each other in memory are a view that cannot be written to, all others a copy.
        """
        addresses = np.asarray(addresses, np.uint64)
        if self._consecutive(addresses):
            words = self._pages[int(addresses[0]) // PAGE:][:len(addresses)]
            words.flags.writeable = False
            return words, np.ones(len(addresses), np.bool_)
        readable = self.readable(addresses)
        if readable.all():
            return self._pages[(addresses >> np.uint64(12)).astype(np.int64)], readable
        words = np.zeros((len(addresses), PAGE // 8), np.uint64)
        words[readable] = self._pages[(addresses[readable] >> np.uint64(12)).astype(np.int64)]
        return words, readable

    def _consecutive(self, addresses: NDArray[np.uint64]) -> bool:
        """Whether these are addresses of pages of RAM one after another."""
        if not len(addresses) or int(addresses[0]) % PAGE or not self.backed(int(addresses[0]), PAGE * len(addresses)):
            return False
        return bool((addresses[1:] - addresses[:-1] == PAGE).all())

    def reset(self) -> None:
        """All zeros, and the host's pages given back."""
        self.map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Gives the host's pages back for good; views that are still held keep the address space."""
        self.reset()
        self.listeners.clear()
        self.recorder = None
