"""Every table page of every unit as arrays, to a file and back; a file is a memory reader like any other."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BadTable, Unreadable
from ..spec.paging import ENTRIES, PAGE
from .domains import context_tables, read_domains
from .reader import MemoryReader, UnitReader, Words
from .runs import U64
from .units import read_registers, read_unit

__all__ = ["PageStore", "collect", "load_npz", "save_dump", "save_npz"]

_CHUNK = 4096
_PAGES = (1 << 64) // PAGE
_LARGEST = 16 << 30
"""Bytes of arrays that a file may unpack to."""


class PageStore:
    """Some 4 KiB pages of a physical memory: `address` u64 [n], ascending, and `page` u64 [n, 512].  Everything else is unreadable."""

    def __init__(self, address: U64, page: Words):
        order = np.argsort(address)
        self.address, self.page = address[order], page[order]

    def __len__(self) -> int:
        return len(self.address)

    def __repr__(self) -> str:
        where = f" from {int(self.address[0]):#x} to {int(self.address[-1]) + PAGE:#x}" if len(self) else ""
        return f"PageStore: {len(self):,} pages{where} (host-physical)"

    def tables(self, addresses: U64, /) -> tuple[Words, NDArray[np.bool_]]:
        """The pages at many addresses: words [n, 512], zeros where a page is not in the store, and readable [n]."""
        addresses = np.asarray(addresses, np.uint64)
        if not len(self):
            return np.zeros((len(addresses), ENTRIES), np.uint64), np.zeros(len(addresses), np.bool_)
        i = np.minimum(np.searchsorted(self.address, addresses), len(self) - 1)
        readable = self.address[i] == addresses
        words = self.page[i]
        words[~readable] = 0
        return words, readable

    def read(self, address: int, length: int, /) -> bytes:
        """Bytes at a physical address, across pages where they follow one another.  Raises `Unreadable`."""
        first, last = address // PAGE, (address + max(length, 1) - 1) // PAGE
        if last >= _PAGES:
            raise Unreadable(address, length, "it lies beyond 64 bits")
        words, readable = self.tables(np.arange(first, last + 1, dtype=np.uint64) * np.uint64(PAGE))
        if not readable.all():
            raise Unreadable(address, length, "the file does not hold that page")
        return words.tobytes()[address % PAGE:address % PAGE + length]


def collect(reader: MemoryReader, units: Iterable[UnitReader], host_address_width: int | None = None) -> tuple[U64, Words]:
    """Every page of every unit's root table, context tables and second-level tables: address [n], ascending, and page [n, 512]."""
    units = list(units)
    wanted = [d.tables for d in read_domains(reader, units, host_address_width)]
    for unit in map(read_unit, units):
        if unit.root_table is not None:
            contexts, _ = context_tables(reader, unit.root_table, host_address_width)
            wanted.append(np.array([unit.root_table, *contexts.values()], np.uint64))
    address = np.unique(np.concatenate([np.zeros(0, np.uint64), *wanted]))
    parts = [reader.tables(address[i:i + _CHUNK]) for i in range(0, len(address), _CHUNK)]
    readable = np.concatenate([np.zeros(0, np.bool_), *(ok for _, ok in parts)])
    page = np.concatenate([np.zeros((0, ENTRIES), np.uint64), *(words for words, _ in parts)])
    return address[readable], page[readable]


def save_npz(path: Path, address: U64, page: Words) -> None:
    """Writes `address` [n] and `page` [n, 512], compressed."""
    np.savez_compressed(path, address=address, page=page)


def save_dump(reader: MemoryReader, units: Iterable[UnitReader], folder: Path, host_address_width: int | None = None) -> list[Path]:
    """Writes `tables.npz` and `registers.json` into a folder, which is made; returns their paths.  Raises BadTable where it cannot."""
    units = list(units)
    tables, registers = folder / "tables.npz", folder / "registers.json"
    values = [{"base": u.description.base, "segment": u.description.segment, "include_all": u.description.include_all,
               "registers": {r.name: r.value for r in read_registers(u)}} for u in units]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_npz(tables, *collect(reader, units, host_address_width))
        registers.write_text(json.dumps({"units": values}, indent=1) + "\n")
    except OSError as e:
        raise BadTable(f"{folder} cannot be written: {e.strerror or e}") from e
    return [tables, registers]


def load_npz(path: Path | str) -> PageStore:
    """The pages of a file with `address` [n] and `page` [n, 512].  Raises BadTable with what is wrong with it."""
    path = Path(path)
    try:
        file = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise BadTable(f"{path} does not exist: give the path of a tables.npz") from None
    except Exception as e:
        raise _torn(path, e) from e
    if isinstance(file, np.ndarray) or not {"address", "page"} <= set(file.files):
        raise BadTable(f"{path} does not hold the arrays `address` and `page`: is it a tables.npz?")
    with file:
        if sum(info.file_size for info in file.zip.infolist()) > _LARGEST:
            raise BadTable(f"{path} unpacks to more than {_LARGEST >> 30} GiB: no machine has that many tables")
        try:
            address, page = file["address"], file["page"]
        except Exception as e:
            raise _torn(path, e) from e
    return PageStore(_checked(path, "address", address, 1), _checked_pages(path, address, page))


def _torn(path: Path, error: Exception) -> BadTable:
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return BadTable(f"{path} is not a readable .npz file: {'it holds no arrays of numbers' if 'pickle' in why else why}")


def _checked(path: Path, name: str, array: NDArray[np.generic], dimensions: int) -> U64:
    """The array as u64 words, if it is one of whole 64-bit numbers."""
    if array.dtype.kind not in "ui" or array.dtype.itemsize != 8 or array.ndim != dimensions:
        raise BadTable(f"{path}: `{name}` is {array.dtype} {list(array.shape)}, it should be uint64 with {dimensions} dimension(s)")
    return array.astype(np.uint64)


def _checked_pages(path: Path, address: NDArray[np.generic], page: NDArray[np.generic]) -> Words:
    words, places = _checked(path, "page", page, 2), _checked(path, "address", address, 1)
    if words.shape != (len(places), ENTRIES):
        raise BadTable(f"{path}: `page` is {list(words.shape)} for {len(places)} addresses, it should be [{len(places)}, {ENTRIES}]")
    if (places % np.uint64(PAGE)).any():
        raise BadTable(f"{path}: an `address` is not a multiple of 0x1000")
    if len(np.unique(places)) != len(places):
        raise BadTable(f"{path}: the same page `address` is there twice")
    return words
