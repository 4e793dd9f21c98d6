"""Permission runs of whole domains in 4 KiB pages, 16 GiB to 1 TiB, beside a C scan of the same bytes.

Each size has a process of its own, `python -m bench.scans GIB`, so that its peak memory is its own: the kernel's high-water mark of
resident pages (VmHWM) less the tables.  That counts interpreter, NumPy and all else, too.
"""

import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .rows import REPEATS, Row

if TYPE_CHECKING:
    from hvcore.inspect.scan import TableScan
    from hvcore.machine.memory import Memory
    from hvcore.spec.paging import PagingFormat

__all__ = ["Yardstick", "scans"]

HERE = Path(__file__).resolve().parent
GIB, MIB, PAGE = 1 << 30, 1 << 20, 4096
SIZES, LEVELS, RAM, HOLE = (16, 64, 256, 1024), 4, 3 * GIB, (0x77C00000, 0x7FC00000)
"""Sizes in GiB.  The emulated RAM holds the tables only: an IOVA need not lead to memory for its permission to be read."""
CAP, ECAP, HAW = 0x00D2_008C_222F_0606, 0xF42, 46
"""QEMU's unit, with 3 and 4 levels and 48 bits."""
MOST_RATIO, MOST_MIB = 2, 300
ROOM = 1 << 16
"""Runs that the C scan has room for."""
_RIGHTS = {"-": 0, "r": 1, "w": 2, "rw": 3}


class _Scan(ctypes.Structure):
    """`struct scan` of scans.c."""

    _fields_ = (("memory", ctypes.c_void_p), ("ram_end", ctypes.c_uint64), ("reserved", ctypes.c_uint64 * 2 * 7),
                ("leaves", ctypes.c_uint64), ("runs", ctypes.c_void_p), ("most", ctypes.c_uint64), ("count", ctypes.c_uint64),
                ("tables", ctypes.c_uint64), ("refused", ctypes.c_uint64), ("lost", ctypes.c_uint64))


def scans() -> list[Row]:
    """One row for each size: too much is more than twice the C scan's time, or more memory than the limit."""
    return [_row(gib, _measured(gib)) for gib in SIZES]


def _measured(gib: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.scans", str(gib)]
    result: dict[str, Any] = json.loads(subprocess.run(command, cwd=HERE.parent, check=True, capture_output=True).stdout)
    return result


def _row(gib: int, found: dict[str, Any]) -> Row:
    ours, theirs, pages = found["ours"], found["theirs"], gib * GIB // PAGE
    figure = f"{ours:.3f} s, {ours / pages * 1e9:.2f} ns a page, {found['peak']:.0f} MiB beside the tables"
    return Row(f"permission runs of {gib} GiB in 4 KiB pages, {found['tables'] / MIB:.0f} MiB of tables", figure, f"C: {theirs:.3f} s",
               ours / theirs, ours <= MOST_RATIO * theirs and found["peak"] <= MOST_MIB)


def measure(gib: int) -> dict[str, float]:
    """Median seconds of both, in turns so that a busy machine slows both, and MiB at the peak; stops where the two do not agree."""
    from hvcore.inspect.scan import scan
    from hvcore.machine.memory import Memory
    from hvcore.spec.paging import vtd_format
    from hvcore.vmm.heap import Heap
    from hvcore.vmm.iommu import map_domain

    memory, fmt = Memory([(0, RAM)]), vtd_format(CAP, ECAP, HAW)
    root = map_domain(memory, Heap(memory, PAGE, RAM, cursor=0), LEVELS, gib * GIB, HOLE, superpages=False)
    yardstick = Yardstick(memory, fmt, root, LEVELS)
    times = [(_seconds(lambda: scan(memory, fmt, root, LEVELS)), _seconds(yardstick.scan)) for _ in range(2 * REPEATS + 1)]
    yardstick.check(scan(memory, fmt, root, LEVELS))
    tables = yardstick.state.tables * PAGE
    return {"ours": statistics.median(a for a, _ in times), "theirs": statistics.median(b for _, b in times), "tables": tables,
            "peak": (_peak() - tables) / MIB}


class Yardstick:
    """The C scan of the table at `root` in the bytes of `memory`, which is RAM from 0 to its end.  `fmt` is one of VT-d's."""

    def __init__(self, memory: "Memory", fmt: "PagingFormat", root: int, levels: int):
        self.root, self.levels, self.runs, self.library = root, levels, (ctypes.c_uint64 * 4 * ROOM)(), _library()
        leaves = sum(1 << level for level in fmt.superpage_levels)
        self.state = _Scan(memory.host, memory.end, leaves=leaves, runs=ctypes.addressof(self.runs), most=ROOM)
        for level in range(1, 7):
            self.state.reserved[level][:] = fmt.reserved_table[level - 1], fmt.reserved_leaf[level - 1]

    def scan(self) -> None:
        """Fills `state` and `runs`."""
        self.library.scan_all(ctypes.byref(self.state), ctypes.c_uint64(self.root), self.levels)

    def check(self, found: "TableScan") -> None:
        """Stops where our scan found anything else."""
        state = self.state
        ours = [[r.start, r.end, _RIGHTS[r.perm], r.offset % (1 << 64)] for r in found.runs]
        theirs = [list(run) for run in self.runs[:state.count]]
        counts = (found.table_pages, found.reserved), (state.tables, state.refused)
        if ours != theirs or counts[0] != counts[1]:
            raise SystemExit(f"the two scans do not agree: {ours[:5]} {counts[0]}, C {theirs[:5]} {counts[1]}")


def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", f"{folder}/scans.so", HERE / "scans.c"], check=True)
        return ctypes.CDLL(f"{folder}/scans.so")


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _peak() -> int:
    """Bytes of this process that were in memory at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
