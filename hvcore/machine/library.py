"""The emulator's library in this process's memory: its exported functions, and the entries of the table by which it calls them itself."""

import ctypes
import mmap
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unicorn.unicorn_py3.unicorn import uclib

__all__ = ["address_of", "entries", "exported", "lasting_page"]


def address_of(function: Any) -> int:
    """Where a function of ctypes lies in this process."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def exported(name: str) -> int:
    """The address of a function of the library; 0 where there is none of that name."""
    symbol = getattr(uclib, name, None)
    return address_of(symbol) if symbol is not None else 0


def entries(names: Sequence[str]) -> list[Any] | None:
    """The entries through which the library calls the functions `names` of its own, as words that can be set; Linux only.

    An entry holds its function's address once the library has called it.  None where not each of them is there just once.
    """
    functions = [exported(name) for name in names]
    if not all(functions):
        return None
    found: list[list[int]] = [[] for _ in functions]
    for start, end in _writable(functions[0]):
        data = ctypes.string_at(start, end - start)
        for places, function in zip(found, functions, strict=True):
            places += [start + at.start() for at in re.finditer(re.escape(function.to_bytes(8, "little")), data) if not at.start() % 8]
    return [ctypes.c_uint64.from_address(places[0]) for places in found] if all(len(places) == 1 for places in found) else None


def lasting_page(code: bytes) -> mmap.mmap:
    """A page of machine code that stays for as long as the process.  Raises OSError where none can be had."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(page))
    page[:len(code)] = code
    return page


def _writable(function: int) -> list[tuple[int, int]]:
    """The writable parts of the file in memory that a function comes from."""
    parts = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        span, rights, _offset, _device, _inode, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in span.split("-"))
        parts.append((start, end, rights, name))
    names = [name for start, end, _rights, name in parts if start <= function < end and name]
    return [(start, end) for start, end, rights, name in parts if rights.startswith("rw") and name in names]
