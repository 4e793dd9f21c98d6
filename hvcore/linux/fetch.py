"""`hvlab linux fetch`: kernels from Debian's archive, or from packages that the user has, into the cache."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadMachine
from . import cache
from .apt import BUSYBOX, Package, choose, download, show
from .cache import Entry
from .deb import read_deb
from .store import store, store_files

__all__ = ["Fetched", "fetch"]

_UNPACKED = 4
"""The room that a kernel takes, in sizes of its package: the package and what comes out of it."""


@dataclass(frozen=True)
class Fetched:
    """A kernel in the cache; `new` if it was not there before."""

    entry: Entry
    new: bool

    def __str__(self) -> str:
        what = "fetched" if self.new else "is here already"
        return f"{self.entry.release}: {what}, {self.entry.size / (1 << 20):.0f} MiB in {self.entry.folder}"


def fetch(release: str | None = None, newest: int = 0, debs: list[Path] | None = None,
          progress: Callable[[str], None] = lambda _text: None) -> list[Fetched]:
    """Brings kernels into the cache: the one that Debian's linux-image-cloud-amd64 stands for, the newest of `release` (`6.1`),
    the `newest` N of the archive, or those in the files `debs`.  Raises BadMachine, one sentence that says what to do."""
    if debs:
        return [Fetched(entry, True) for entry in store_files(debs, progress)]
    progress("asking apt")
    wanted = show(*choose(release, newest))
    there = [cache.lookup(package.name, package.version) for package in wanted]
    if all(there):
        return [Fetched(entry, False) for entry in there if entry]
    with cache.writing() as folder:
        _check_room(folder, [p for p, entry in zip(wanted, there, strict=True) if not entry])
        busybox = read_deb(download(show(BUSYBOX)[0], folder, progress))
        return [Fetched(entry, False) if entry else Fetched(store(read_deb(download(package, folder, progress)), busybox, progress), True)
                for package, entry in zip(wanted, there, strict=True)]


def _check_room(folder: Path, packages: list[Package]) -> None:
    needed = _UNPACKED * sum(package.size for package in packages)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BadMachine(f"the disk of {folder.parent} has {free >> 20} MiB free and the kernels need {needed >> 20} MiB: "
                         "make room there, or name another folder in HVLAB_CACHE")
