"""What a fleet costs: archives of real machines examined one after another in one process, then the fleet with two workers.

    python -m bench.fleet --items 1000
"""

import argparse
import io
import os
import resource
import tarfile
import tempfile
import time
from pathlib import Path

from hvcore.doctor import examine
from hvcore.fleet import run_fleet
from hvcore.sources import images_dir

WORKERS = 2


def archives(folder, count):
    """So many archives, in turn of each real machine; no two are the same."""
    machines = sorted((images_dir() / "machines" / "real").glob("*/"))
    for i in range(count):
        machine = machines[i % len(machines)]
        with tarfile.open(folder / f"{i:05}-{machine.name}.tar.gz", "w:gz") as tar:
            for path in sorted(machine.iterdir()):
                if path.name != "SOURCE.txt":
                    tar.add(path, f"{machine.name}/{path.name}")
            words = f"variant {i}\n".encode()
            info = tarfile.TarInfo(f"{machine.name}/SOURCE.txt")
            info.size = len(words)
            tar.addfile(info, io.BytesIO(words))
    return len(machines)


def cpu():
    """Seconds of CPU time, user and system, of this process and of its children that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def alone(paths):
    """Wall and CPU time of one archive in a process that has examined one before."""
    examine(paths[0])
    began, used = time.perf_counter(), cpu()
    for path in paths:
        examine(path)
    return (time.perf_counter() - began) / len(paths), (cpu() - used) / len(paths)


def main():
    """Prints both, and their relation."""
    parser = argparse.ArgumentParser(prog="bench.fleet")
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2, help="how often each machine is examined alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "archives")
        folder.mkdir()
        kinds = archives(folder, options.items)
        print(f"{options.items} archives of {kinds} machines, {WORKERS} workers, load average {os.getloadavg()[0]:.1f}", flush=True)
        wall, used = alone(sorted(folder.iterdir())[:kinds] * options.rounds)
        print(f"alone: {wall:.3f} s an archive, {used:.3f} s of CPU time", flush=True)
        began, before = time.perf_counter(), cpu()
        report = run_fleet(folder, Path(place, "out"), workers=WORKERS)
        each, spent = (time.perf_counter() - began) / options.items, (cpu() - before) / options.items
        load = os.getloadavg()[0]
        print(f"fleet: {each:.3f} s an archive, {spent:.3f} s of CPU time, {len(report.failed)} failed, load average {load:.1f}")
        print(f"wall time: {each / (wall / WORKERS):.3f} of one alone by {WORKERS} workers; CPU time: {spent / used:.3f} of one alone")


if __name__ == "__main__":
    main()
