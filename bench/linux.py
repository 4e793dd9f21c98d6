"""How long a real Linux takes to its shell, and to its shell from a snapshot; where `hvlab linux fetch` has brought a kernel."""

import tempfile
import time
from pathlib import Path

from hvcore import Config, Machine
from hvcore.errors import BadMachine
from hvcore.linux import linux_image

from .rows import Row, limit, median

__all__ = ["linux"]


def linux() -> list[Row]:
    """On a machine of 6 GiB."""
    try:
        linux_image()
    except BadMachine as e:
        print(f"no Linux is measured: {e}")
        return []
    with tempfile.TemporaryDirectory() as folder, Machine.load("q35-6g") as machine:
        booted = median(lambda: machine.boot(Config(VTD_TRANS=False), guest="linux", limit=600), 3)
        path = Path(folder) / "shell.snap"
        machine.save(path)
        asked = [resumed(path) for _ in range(5)]
    return [limit("a Linux to its shell, 6 GiB", booted, 20), limit("a Linux from a snapshot to its first answer", sorted(asked)[2], 1)]


def resumed(path: Path) -> float:
    """Seconds from a file to the answer of a shell."""
    start = time.perf_counter()
    with Machine.restore(path) as machine:
        machine.shell("uname -r")
        return time.perf_counter() - start
