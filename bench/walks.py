"""Translations: a million random requests through a domain of 64 GiB in 4 KiB pages, beside a C walker on the same bytes."""

import ctypes
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .rows import REPEATS, Row, compare, median

if TYPE_CHECKING:
    from hvcore.machine.memory import Memory
    from hvcore.machine.vtd import RemappingUnit

__all__ = ["walks"]

HERE = Path(__file__).resolve().parent
GIB, PAGE = 1 << 30, 4096
REQUESTS, MAPPED, HOLE = 1_000_000, 64 * GIB, (0x77C00000, 0x7FC00000)
CAP, ECAP, HAW = 0x00D2_008C_2226_0206, 0xF42, 39
"""QEMU's unit: three levels, 39 bits."""
ROOT, CONTEXTS, FUNCTIONS = 0x3000_0000, 0x3000_1000, (0x00, 0x08, 0x10, 0xF8, 0xFA, 0xFB)
RTADDR, GCMD, SRTP, TE = 0x20, 0x18, 1 << 30, 1 << 31


class _CUnit(ctypes.Structure):
    """`struct unit` of walks.c."""

    _fields_ = (("memory", ctypes.c_void_p), ("ram_end", ctypes.c_uint64), ("root", ctypes.c_uint64), ("beyond_haw", ctypes.c_uint64),
                ("reserved", ctypes.c_uint64 * 2 * 7), ("mgaw", ctypes.c_uint32), ("depths", ctypes.c_uint32), ("types", ctypes.c_uint32),
                ("leaves", ctypes.c_uint32))


def _unit() -> "RemappingUnit":
    """A unit that translates, its domain built by the core; six functions share it, as under BitVisor."""
    from hvcore.machine.description import UnitDescription
    from hvcore.machine.memory import Memory
    from hvcore.machine.vtd import RemappingUnit
    from hvcore.spec.vtd import context_entry, root_entry
    from hvcore.vmm.heap import Heap
    from hvcore.vmm.iommu import map_domain

    memory = Memory([(0, GIB)])
    table = map_domain(memory, Heap(memory, PAGE, GIB // 2, cursor=0), 3, MAPPED, HOLE, superpages=False)
    memory.write64(ROOT, root_entry(CONTEXTS))
    for function in FUNCTIONS:
        for word, value in enumerate(context_entry(table, 1, 0)):
            memory.write64(CONTEXTS + 16 * function + 8 * word, value)
    unit = RemappingUnit(UnitDescription(0xFED9_0000, CAP, ECAP), memory, HAW)
    unit.mmio_write(RTADDR, 8, ROOT)
    unit.mmio_write(GCMD, 4, SRTP)
    unit.mmio_write(GCMD, 4, TE)
    return unit


def _c_unit(memory: "Memory") -> _CUnit:
    from hvcore.spec.vtd import entry_reserved, leaf_levels, mgaw, sagaw_levels

    depths, leaves = sum(1 << levels - 2 for levels in sagaw_levels(CAP)), sum(1 << level for level in leaf_levels(CAP))
    unit = _CUnit(memory.host, memory.end, ROOT, (1 << 64) - (1 << HAW), mgaw=mgaw(CAP), depths=depths, types=0b101, leaves=leaves)
    for level in range(1, 7):
        for leaf in (False, True):
            unit.reserved[level][leaf] = entry_reserved(level, leaf, CAP, ECAP, HAW)
    return unit


def _c_walker(folder: str) -> ctypes.CDLL:
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", f"{folder}/walks.so", HERE / "walks.c"], check=True)
    return ctypes.CDLL(f"{folder}/walks.so")


def _pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _alternately(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both, measured in turns so that a busy machine slows both."""
    times = [(median(first, 1), median(second, 1)) for _ in range(2 * REPEATS + 1)]
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def walks() -> list[Row]:
    """`unit.translate` and the C walker answer the same requests; stops where they differ."""
    unit, random = _unit(), np.random.default_rng(1)
    source = random.choice(np.array(FUNCTIONS, np.uint16), REQUESTS)
    iova, write = random.integers(0, MAPPED, REQUESTS, np.uint64), random.integers(0, 2, REQUESTS).astype(np.bool_)
    address, reason = np.zeros(REQUESTS, np.uint64), np.zeros(REQUESTS, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        library, yardstick = _c_walker(folder), _c_unit(unit.memory)
        arrays = [_pointer(array) for array in (source, iova, write, address, reason)]
        ours, theirs = _alternately(lambda: unit.translate(source, iova, write),
                                    lambda: library.translate_all(ctypes.byref(yardstick), ctypes.c_size_t(REQUESTS), *arrays))
    found = unit.translate(source, iova, write)
    if (found.address != address).any() or (found.reason != reason).any():
        raise SystemExit("unit.translate and the C walker do not agree")
    return [compare("a million random translations, 64 GiB in 4 KiB pages", ours, "C, walking from the root for each", theirs)]
