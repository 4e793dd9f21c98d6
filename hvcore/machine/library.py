"""The emulator's library in this process's memory: its exported functions, the entries of the table by which it calls them itself, and
what is changed there once in a process."""

import ctypes
import mmap
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from unicorn.unicorn_py3.unicorn import uclib

__all__ = ["Once", "address_of", "entries", "exported", "lasting_page"]


class _Ends(Protocol):
    def end(self) -> None: ...


_Mending = TypeVar("_Mending", bound=_Ends)


class Once(Generic[_Mending]):
    """What `make` does to the library, at the first `get` in a process; it gives None where this build, or this computer, does not fit."""

    def __init__(self, make: Callable[[], _Mending | None]):
        self._make, self._lock = make, threading.Lock()
        self._asked = False
        self._made: _Mending | None = None

    def get(self) -> _Mending | None:
        """What was made; the same again and again."""
        with self._lock:
            if not self._asked:
                self._asked = True
                self._made = self._make()
            return self._made

    def undo(self) -> None:
        """As it was; while no emulator runs."""
        with self._lock:
            if self._made is not None:
                self._made.end()
            self._asked, self._made = False, None


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
