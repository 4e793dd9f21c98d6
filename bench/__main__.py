"""`make bench`: hvlab's speed beside a plain C program and beside `import pandas`, measured in the same run on the same machine.

Each row is the median of its repeats.  The C program is built here with gcc -O2.
"""

import ctypes
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .guestspeed import guest_speed
from .linux import linux
from .rows import REPEATS, Row, compare, limit, median
from .scans import scans
from .walks import walks

HERE = Path(__file__).resolve().parent
GIB, PAGE = 1 << 30, 4096
RAM_END, HOLE, LEVELS = 66 * GIB, (0x77C00000, 0x7FC00000), 3
"""64 GiB of RAM, 2 GiB of it below 4 GiB, so that it ends at 66 GiB; the hole is the hypervisor's own memory."""


def c_program() -> dict[str, Any]:
    """What the C program measured: seconds of `build`, and what it built."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/domain"
        subprocess.run(["gcc", "-O2", "-o", program, HERE / "domain.c"], check=True)
        numbers = [RAM_END // PAGE - 1, HOLE[0] // PAGE, HOLE[1] // PAGE - 1, LEVELS, REPEATS]
        result: dict[str, Any] = json.loads(subprocess.run([program, *map(str, numbers)], check=True, capture_output=True).stdout)
        return result


def tables() -> list[Row]:
    """Domain 0 of 64 GiB in 4 KiB pages, built by the core."""
    from hvcore.inspect.scan import scan
    from hvcore.machine.memory import Memory
    from hvcore.spec.paging import VTD
    from hvcore.vmm.heap import Heap
    from hvcore.vmm.iommu import map_domain

    c = c_program()
    memory = Memory([(0, GIB)])
    roots: list[int] = []
    def build() -> None:
        roots.append(map_domain(memory, Heap(memory, PAGE, GIB // 2, cursor=0), LEVELS, RAM_END, HOLE, superpages=False))

    built = median(build, before=memory.reset)
    found = scan(memory, VTD, roots[-1], LEVELS)
    rights = {"-": 0, "r": 1, "w": 2, "rw": 3}
    ours = [[run.start, run.end, rights[run.perm]] for run in found.runs]
    if ours != c["runs"] or found.table_pages != c["table_pages"]:
        raise SystemExit(f"the two did not build the same: {ours} in {found.table_pages} pages, C {c['runs']} in {c['table_pages']}")
    walked = statistics.median(c["build"])
    return [compare("domain 0 of 64 GiB, 4 KiB pages: build", built, "C, walking from the root for each page", walked)]


def python(code: str) -> float:
    """Seconds that `python -c code` takes, from start to exit."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def timed(code: str, before: str = "") -> float:
    """Seconds that `code` takes within a fresh process, after `before`."""
    script = f"import time\n{before}\nt = time.perf_counter()\n{code}\nprint(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout)


def importing() -> list[Row]:
    """`import hvcore` within a fresh process."""
    return [limit("import hvcore", statistics.median(timed("import hvcore") for _ in range(REPEATS)), 0.4)]


def booting() -> list[Row]:
    """Boots of the 16 GiB and the 1 TiB machine."""
    from hvcore import Config, Machine

    cold = timed("m.boot()", "from hvcore import Machine; m = Machine.load('nvme-desktop-16g')")
    machine = Machine.load("nvme-desktop-16g")
    boots, imports = [], []
    for _ in range(REPEATS):
        boots.append(median(machine.boot, 1))
        imports.append(python("import pandas"))
    machine.close()
    large = Machine.load("server-1t")
    config = Config(IOMMU_MAP_END="ram", IOMMU_SUPERPAGES=True)
    seconds = median(lambda: large.boot(config), 3)
    large.close()
    pandas = statistics.median(imports)
    return [compare("m.boot() of 16 GiB", statistics.median(boots), "python -c 'import pandas'", pandas),
            compare("the first m.boot() of a process", cold, "the same", pandas),
            limit("m.boot() of 1 TiB with superpages", seconds, 2.0)]


def resident() -> float:
    """MiB of this process in memory now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / (1 << 20)


def rebooting() -> list[Row]:
    """Memory that 100 reboots cost, after 25 that fill the caches.

    Before each look garbage is collected and the allocator gives back what is free: what it holds back comes and goes by 10 MiB.
    """
    from hvcore import Machine

    machine = Machine.load("nvme-desktop-16g")
    machine.boot()

    def after(reboots: int) -> float:
        for _ in range(reboots):
            machine.reboot()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
        return resident()

    before = after(25)
    growth = after(100) - before
    machine.close()
    return [limit("100 reboots: growth of memory", growth, 8, "MiB")]


def show(rows: list[Row]) -> None:
    """The rows as a table."""
    cells = [("what", "hvlab", "beside it", "ratio", "")]
    cells += [(r.what, r.ours, r.theirs, f"{r.ratio:.2f}" if r.ratio is not None else "", "" if r.good else "too much") for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> int:
    """Measures everything; exit status 1 where something is more than it may be."""
    rows = [row for part in (tables, walks, scans, importing, booting, rebooting, guest_speed, linux) for row in part()]
    show(rows)
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
