"""Kernel modules: which of them a driver needs, in the order in which they must be loaded."""

import gzip
import lzma
import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from ..errors import BadMachine
from .unpack import unpack_zstd

__all__ = ["LARGEST", "load_order", "module_name", "names_of", "unpacked"]

LARGEST = 64 << 20
"""Bytes of an unpacked module."""
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def module_name(path: str) -> str:
    """The kernel's name of the module in a file: `.../nvme-core.ko.xz` is nvme_core."""
    return PurePosixPath(path).name.partition(".ko")[0].replace("-", "_")


def names_of(builtin: str) -> frozenset[str]:
    """The modules that a `modules.builtin` lists: they are part of the kernel itself."""
    return frozenset(module_name(line) for line in builtin.split())


def unpacked(path: str, data: bytes) -> bytes:
    """A module's ELF file; `path` says by its end how it is packed.  Raises BadMachine where it is damaged."""
    try:
        match PurePosixPath(path).suffix:
            case ".xz":
                data = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data, LARGEST)
            case ".gz":
                data = gzip.decompress(data)
            case ".zst":
                data = unpack_zstd(data, LARGEST)
    except (OSError, EOFError, ValueError, lzma.LZMAError) as e:
        raise BadMachine(f"the kernel module {path} is damaged ({e}): fetch or copy the package again") from e
    if data[:4] != b"\x7fELF":
        raise BadMachine(f"the kernel module {path} is no ELF file: fetch or copy the package again")
    return data


def load_order(wanted: Iterable[str], builtin: frozenset[str], module: Callable[[str], bytes | None]) -> list[str]:
    """The modules `wanted` and what they depend on, each after what it needs, without those that are built in.

    `module` gives the ELF file of a name, or None where the kernel has no such module; that one is left out.
    """
    order: list[str] = []
    seen = set(builtin)

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        if (data := module(name)) is not None:
            for needed in _depends(data):
                visit(needed)
            order.append(name)

    for name in wanted:
        visit(name)
    return order


def _depends(data: bytes) -> list[str]:
    found = _DEPENDS.search(data)
    return [name.replace("-", "_") for name in found[1].decode("ascii", "replace").split(",") if name] if found else []
