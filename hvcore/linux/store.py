"""From Debian's packages to a kernel in the cache."""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ..errors import BadMachine
from . import cache
from .cache import Entry
from .deb import Deb, read_deb, take
from .initramfs import applets
from .kernel import read_kernel
from .modules import load_order, module_name, names_of, unpacked

__all__ = ["DRIVERS", "store", "store_files"]

DRIVERS = ("nvme",)
"""Modules that the guest needs; what they depend on comes with them."""
_BUSYBOX = "busybox-static"
_KERNEL = re.compile(r"linux-image-\d.*")
_MODULE = re.compile(r"(?:usr/)?lib/modules/[^/]+/.*\.ko(\.(xz|zst|gz))?")
_LIKELY = re.compile(r"(?:usr/)?lib/modules/[^/]+/kernel/(drivers/nvme/host|block|crypto|lib)/[^/]+\.ko(\.(xz|zst|gz))?")
"""Modules that are read at once with the kernel; others only where something depends on them."""
_ARCHITECTURE = "amd64"


def store_files(paths: list[Path], progress: Callable[[str], None]) -> list[Entry]:
    """Kernels from packages that the user has: one or more of linux-image-..., and busybox-static.  Raises BadMachine."""
    debs = [read_deb(path) for path in paths]
    busyboxes = [deb for deb in debs if deb.package == _BUSYBOX]
    kernels = [deb for deb in debs if _KERNEL.fullmatch(deb.package)]
    for deb in debs:
        if deb not in busyboxes and deb not in kernels:
            raise BadMachine(f"{deb.path} is the package {deb.package}: give linux-image-VERSION-cloud-amd64 and busybox-static")
        if deb.architecture != _ARCHITECTURE:
            raise BadMachine(f"{deb.path} is for {deb.architecture}: hvlab's guest needs the package for {_ARCHITECTURE}")
    if not kernels or len(busyboxes) != 1:
        missing = "linux-image-VERSION-cloud-amd64" if not kernels else f"exactly one {_BUSYBOX}"
        raise BadMachine(f"--deb needs both a kernel and a busybox: {missing} is missing")
    return [store(kernel, busyboxes[0], progress) for kernel in kernels]


def store(kernel: Deb, busybox: Deb, progress: Callable[[str], None]) -> Entry:
    """Unpacks a kernel and a busybox into the cache.  Raises BadMachine."""
    progress(f"unpacking {kernel.package}")
    taken = take(kernel.path, _wanted)
    images = [data for name, data in taken.items() if name.startswith("boot/")]
    if len(images) != 1:
        raise BadMachine(f"{kernel.path} holds no kernel as boot/vmlinuz-...: give the package linux-image-VERSION-cloud-amd64 itself")
    read = read_kernel(images[0])
    builtin = names_of("\n".join(data.decode("utf-8", "replace") for name, data in taken.items() if name.endswith("/modules.builtin")))
    modules = _modules(kernel.path, builtin, {name: data for name, data in taken.items() if _MODULE.fullmatch(name)})
    return cache.add(kernel.package, kernel.version, read.release, busybox.version, modules,
                     {"vmlinuz": images[0], "vmlinux": read.vmlinux, "busybox": _busybox(busybox)})


def _wanted(name: str) -> bool:
    return name.startswith("boot/vmlinuz-") or name.endswith("/modules.builtin") or bool(_LIKELY.fullmatch(name))


def _busybox(deb: Deb) -> bytes:
    for data in take(deb.path, lambda name: name in ("bin/busybox", "usr/bin/busybox")).values():
        applets(data)
        return data
    raise BadMachine(f"{deb.path} holds no busybox: give the package {_BUSYBOX}")


def _modules(path: Path, builtin: frozenset[str], first: dict[str, bytes]) -> dict[str, bytes]:
    """The modules that the guest needs, by name and in load order.  `first` are files of the package that were taken already.

    The package is read once more where something depends on a module that is not among them.
    """
    packed = {module_name(name): (name, data) for name, data in first.items()}
    asked = set(packed)
    there: dict[str, bytes] = {}

    def module(name: str) -> bytes | None:
        missing.add(name)
        if name in packed and name not in there:
            there[name] = unpacked(PurePosixPath(packed[name][0]).name, packed[name][1])
        return there.get(name)

    while True:
        missing: set[str] = set()
        order = load_order(DRIVERS, builtin, module)
        if missing <= asked:
            return {name: there[name] for name in order}
        asked |= missing
        found = take(path, lambda name: bool(_MODULE.fullmatch(name)) and module_name(name) in missing)  # noqa: B023 -- used at once
        packed |= {module_name(name): (name, data) for name, data in found.items()}
