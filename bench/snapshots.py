"""How large snapshots are and how long they take: the lab guest on machines of 6 and 64 GiB, and a Linux where one is in the cache.

    python -m bench.snapshots [--linux]
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvcore import Config, Machine
from hvcore.snapshot import info

SCENES = (("q35-6g", {"VTD_TRANS": False}, "lab"), ("q35-6g", {}, "lab"), ("q35-64g", {"PROFILE": "mended"}, "lab"),
          ("q35-64g", {"IOMMU_MAP_END": "ram", "VMM_SIZE_MIB": 512}, "lab"))
LINUX = (("q35-6g", {"VTD_TRANS": False}, "linux"), ("q35-64g", {"PROFILE": "mended"}, "linux"))


kept: list[Machine] = []


def best(do: Callable[[], Any], times: int = 3) -> tuple[float, float]:
    """The shortest wall time, and the processor time that went with it."""
    found = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        do()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(found)


def measure(name: str, options: dict[str, Any], guest: str, path: Path) -> str:
    """One row."""
    with Machine.load(name) as m:
        m.boot(Config(**options), guest=guest, limit=600)
        size = m.save(path)
        saved = best(lambda: m.save(path))
        restored = best(lambda: kept.append(Machine.restore(path)))
        memory = info(path).memory
        m.keep_history(None)
        m.remember()
        kept_in = best(lambda: m.remember())
        back = best(lambda: m.rewind(m.snapshots[0]), 1)
    while kept:
        kept.pop().close()
    cells = [name, guest, " ".join(f"{k}={v}" for k, v in options.items()) or "VTD_TRANS=y", f"{memory / 1e6:.1f}", f"{size / 1e6:.1f}",
             *(f"{wall:.2f} ({cpu:.2f})" for wall, cpu in (saved, restored, kept_in, back))]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Prints a table: MB of memory and of the file, seconds of wall time (of processor time)."""
    print("| machine | guest | options | memory, MB | file, MB | save, s | restore, s | a moment, s | rewind, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for scene in (*SCENES, *(LINUX if "--linux" in sys.argv else ())):
            print(measure(*scene, Path(folder) / "a.snap"), flush=True)


if __name__ == "__main__":
    main()
