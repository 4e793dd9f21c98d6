"""A Linux to boot: a kernel of the cache with hvlab's initramfs, or files of the user's own."""

import html
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadMachine
from ..spec.linuxboot import Elf, load_elf
from . import cache
from .cache import Entry
from .initramfs import initramfs
from .kernel import KernelFile, read_kernel, setup_header_of

__all__ = ["LinuxImage", "linux_image"]

_HEAD = 1024
"""Bytes of a bzImage that hold its setup header."""
_LARGEST = 2 << 30


@dataclass(frozen=True, repr=False)
class LinuxImage:
    """A Linux to boot.  `version` is what `uname -r` says; `setup_header` belongs at 0x1f1 of boot_params."""

    version: str
    elf: Elf
    setup_header: bytes
    initrd: bytes

    def __repr__(self) -> str:
        kernel = sum(len(s.data) for s in self.elf.segments)
        return f"Linux {self.version}: kernel {kernel / (1 << 20):.1f} MiB, initramfs {len(self.initrd) / (1 << 20):.1f} MiB"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>"


def linux_image(release: str | None = None, kernel: Path | None = None, initrd: Path | None = None) -> LinuxImage:
    """The kernel `release` of the cache (`6.1`, `6.12.117`; the newest where None), with hvlab's own initramfs.

    `kernel` (a bzImage or vmlinux) and `initrd` are files of the user's own instead.  Raises BadMachine, one sentence.
    """
    own = read_kernel(_file(kernel, "kernel")) if kernel is not None else None
    if own is not None and initrd is not None:
        return LinuxImage(own.release, own.elf, own.setup_header, _file(initrd, "initrd"))
    entry = _entry(release, own)
    first = _file(initrd, "initrd") if initrd is not None else _initramfs(entry, own)
    if own is not None:
        return LinuxImage(own.release, own.elf, own.setup_header, first)
    return LinuxImage(entry.release, load_elf(entry.read("vmlinux")), setup_header_of(entry.read("vmlinuz")[:_HEAD]), first)


def _entry(release: str | None, own: KernelFile | None) -> Entry:
    """The kernel of the cache; for a kernel of the user's own the one of the same release, or any: busybox is in each."""
    if own is None:
        return cache.find(release)
    there = cache.entries()
    if not there:
        raise BadMachine("no busybox here for the initramfs: run `hvlab linux fetch`, or give an initramfs of your own with --initrd")
    return next((e for e in there if e.release == own.release), there[0])


def _initramfs(entry: Entry, own: KernelFile | None) -> bytes:
    """hvlab's initramfs; modules only for the kernel to which they belong."""
    fits = own is None or own.release == entry.release
    modules = {name: entry.read(f"modules/{name}.ko") for name in entry.modules} if fits else {}
    versions = {"linux": own.release if own else f"{entry.release} ({entry.package} {entry.version})", "busybox": entry.busybox}
    return initramfs(entry.read("busybox"), modules, versions)


def _file(path: Path, what: str) -> bytes:
    """A file's bytes.  Raises BadMachine for what is no plain file, too: a device or a pipe might never end."""
    try:
        if path.exists() and not path.is_file():
            raise BadMachine(f"the {what} {path} cannot be read: it is no file")
        if path.stat().st_size > _LARGEST:
            raise BadMachine(f"the {what} {path} is larger than {_LARGEST >> 30} GiB")
        return path.read_bytes()
    except OSError as e:
        raise BadMachine(f"the {what} {path} cannot be read: {e.strerror or e}") from e
