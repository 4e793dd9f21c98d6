"""A running QEMU as a source: physical memory, a unit's registers and the PCI functions, read through its monitor and never changed.

Memory comes by `pmemsave` into a temporary file, some GB/s; where QEMU cannot write one (another user's, in a sandbox) the monitor prints
it (`xp`).  What is RAM or ROM the monitor's `info mtree -f` says; registers are read where it shows a remapping unit, and nowhere else,
for reading a device can change it.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadSource, Unreadable
from ..machine.description import PciDescription
from ..spec.bits import align_down, align_up
from ..spec.paging import ENTRIES, PAGE
from .lspci import parse_qemu_pci
from .physical import ADDRESS_END, U64, ranges
from .qmp import Monitor, Refused

__all__ = ["QemuMachine", "Region", "parse_memory_map"]

_VIEW = re.compile(r"^FlatView #\d+\r?$", re.MULTILINE)
_SPACE = re.compile(r'^\s*AS "([^"]*)"', re.MULTILINE)
_LINE = re.compile(r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:nv-)?([a-z/]+)\): (\S+)", re.MULTILINE)
_WORD = re.compile(r"0x([0-9a-f]{16})")
_MEMORY = frozenset({"ram", "rom", "romd"})
_UNIT = "intel_iommu"
_AHEAD = 16 * PAGE
"""Bytes read around one that is asked for alone."""
_GAP = 256 * PAGE
"""Pages nearer to each other than this are read together."""
_KEPT = 4096
"""Pages kept of one look, at most."""
_AT_ONCE, _PRINTED = 64 << 20, PAGE
"""Bytes that one command saves, and that one prints, at most."""


@dataclass(frozen=True, slots=True)
class Region:
    """What answers in the half-open host-physical range [start, end): its kind (`ram`, `rom`, `i/o`, ...) and name in QEMU."""

    start: int
    end: int
    kind: str
    name: str


def parse_memory_map(text: str) -> tuple[Region, ...]:
    """The regions of the address space `memory` in what `info mtree -f` prints.  Empty where it shows none."""
    for view in _VIEW.split(text)[1:]:
        if "memory" in _SPACE.findall(view):
            found = (Region(int(m[1], 16), int(m[2], 16) + 1, m[3], m[4]) for m in _LINE.finditer(view))
            return tuple(r for r in found if r.start < r.end <= ADDRESS_END)
    return ()


class QemuMachine:
    """One running QEMU, by its QMP socket.

    What is read within one `look` is read once; with `consistent` the guest is paused for as long (`stop`, then `cont` if it ran).
    Raises BadSource, in any method, where QEMU is gone.
    """

    def __init__(self, socket: Path | str, consistent: bool = False, deadline: float = 20):
        self._monitor, self._consistent = Monitor(socket, deadline), consistent
        self.socket = str(socket)
        self._depth = self.generation = 0
        self.regions: tuple[Region, ...] = ()
        self._pages: dict[int, bytes] = {}
        self._registers: dict[int, bytes] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="hvlab-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self._saves = True
        try:
            with self.look():
                pass
        except BadSource:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"QEMU at {self.socket}: {ranges(self.runs)} (host-physical)"

    def close(self) -> None:
        """Hangs up; QEMU goes on as it was."""
        self._monitor.close()
        self._folder.cleanup()

    # --- looking

    @contextlib.contextmanager
    def look(self) -> Iterator[int]:
        """Everything inside is read at one time: once, and with the guest paused if so wanted.  Gives the look's number."""
        paused = False
        if not self._depth:
            paused = self._consistent and self._pause()
        self._depth += 1
        try:
            if self._depth == 1:
                self._anew()
            yield self.generation
        finally:
            self._depth -= 1
            if paused:
                self._command("cont")

    def _pause(self) -> bool:
        """Stops the guest; whether it ran."""
        running = bool(self._command("query-status")["running"])
        if running:
            self._command("stop")
        return running

    def _anew(self) -> None:
        self.generation += 1
        self._pages.clear()
        self._registers.clear()
        self.regions = parse_memory_map(self._ask("info mtree -f"))
        runs = self.runs
        if not runs:
            raise BadSource(f"{self.socket}: QEMU does not tell where its memory is (info mtree -f): it is too old, or no PC")
        self._start = np.array([start for start, _ in runs], np.uint64)
        self._end = np.array([end for _, end in runs], np.uint64)

    def _command(self, name: str, **arguments: Any) -> Any:
        """A command that QEMU cannot refuse."""
        try:
            return self._monitor.execute(name, **arguments)
        except Refused as e:
            raise BadSource(f"{self.socket}: QEMU refuses {name}: {e}") from e

    def _ask(self, line: str) -> str:
        return str(self._command("human-monitor-command", **{"command-line": line}))

    # --- what there is

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The whole pages of RAM and ROM, half-open, ascending and apart."""
        found: list[tuple[int, int]] = []
        for r in sorted((r for r in self.regions if r.kind in _MEMORY), key=lambda r: r.start):
            if found and found[-1][1] >= r.start:
                found[-1] = found[-1][0], max(r.end, found[-1][1])
            else:
                found.append((r.start, r.end))
        whole = ((align_up(start, PAGE), align_down(end, PAGE)) for start, end in found)
        return tuple((start, end) for start, end in whole if start < end)

    @property
    def unit_bases(self) -> tuple[int, ...]:
        """Where the registers of a remapping unit begin."""
        return tuple(r.start for r in self.regions if r.name == _UNIT)

    @property
    def functions(self) -> tuple[PciDescription, ...]:
        """The PCI functions, as the monitor lists them."""
        return parse_qemu_pci(self._ask("info pci").replace("\r", ""))

    def registers(self, base: int) -> bytes:
        """The register page at `base`, as far as the unit has registers there; empty where no unit is."""
        with self.look():
            region = next((r for r in self.regions if r.name == _UNIT and r.start == base), None)
            if region is not None and base not in self._registers:
                self._registers[base] = self._fetch(base, (region.end - base) // 8 * 8)
            return self._registers.get(base, b"")

    # --- memory

    def read(self, address: int, length: int, /) -> bytes:
        """Bytes at an address.  Raises `Unreadable` where neither RAM nor ROM is."""
        with self.look():
            if not any(start <= address and address + length <= end for start, end in self.runs):
                raise Unreadable(address, length, "neither RAM nor ROM is there")
            first = address - address % PAGE
            return b"".join(self._page(p) for p in range(first, address + length, PAGE))[address - first:][:length]

    def _page(self, page: int) -> bytes:
        """One page, of those around which are kept."""
        if page not in self._pages:
            start, end = next((a, b) for a, b in self.runs if a <= page < b)
            low = max(page - page % _AHEAD, start)
            self._keep(low, self._fetch(low, min(low + _AHEAD, end) - low))
        return self._pages[page]

    def _keep(self, start: int, data: bytes) -> None:
        if len(self._pages) > _KEPT:
            self._pages.clear()
        for at in range(0, len(data), PAGE):
            self._pages[start + at] = data[at:at + PAGE]

    def tables(self, addresses: U64, /) -> tuple[U64, NDArray[np.bool_]]:
        """The 4 KiB pages at many page-aligned addresses: words [n, 512], zeros where there is no memory, and readable [n]."""
        with self.look():
            addresses = np.asarray(addresses, np.uint64)
            readable = self._readable(addresses)
            words = np.zeros((len(addresses), ENTRIES), np.uint64)
            wanted = addresses[readable]
            if not len(wanted):
                return words, readable
            if (wanted[1:] > wanted[:-1]).all():
                found = self._many(wanted)
                return (found, readable) if readable.all() else (_put(words, readable, found), readable)
            different, inverse = np.unique(wanted, return_inverse=True)
            return _put(words, readable, self._many(different)[inverse]), readable

    def _readable(self, addresses: U64) -> NDArray[np.bool_]:
        run = np.searchsorted(self._start, addresses, "right").astype(np.int64) - 1
        end = self._end[np.maximum(run, 0)]
        inside = (run >= 0) & (addresses < end) & (addresses % np.uint64(PAGE) == 0)
        return np.asarray(inside & (end - addresses >= PAGE), np.bool_)

    def _many(self, pages: U64) -> U64:
        """Different readable pages in ascending order; those near each other by one command."""
        if len(pages) <= _AHEAD // PAGE and all(page in self._pages for page in pages.tolist()):
            return np.array([np.frombuffer(self._pages[page], np.uint64) for page in pages.tolist()])
        words = np.empty((len(pages), ENTRIES), np.uint64)
        run = np.searchsorted(self._start, pages, "right")
        new = (np.diff(pages, prepend=pages[:1]) > _GAP) | (np.diff(run, prepend=run[:1]) != 0)
        cuts = [0, *np.flatnonzero(new).tolist(), len(pages)]
        for first, last in pairwise(cuts):
            self._together(pages[first:last], words[first:last])
        return words

    def _together(self, pages: U64, words: U64) -> None:
        """Pages that are near each other, at most `_AT_ONCE` bytes at a time."""
        at = 0
        while at < len(pages):
            start = int(pages[at])
            stop = int(np.searchsorted(pages, np.uint64(start + _AT_ONCE)))
            data = self._fetch(start, int(pages[stop - 1]) + PAGE - start)
            block = np.frombuffer(data, np.uint64).reshape(-1, ENTRIES)
            words[at:stop] = block[((pages[at:stop] - start) >> np.uint64(12)).astype(np.int64)]
            if len(data) <= _AHEAD:
                self._keep(start, data)
            at = stop

    def _fetch(self, start: int, length: int) -> bytes:
        """Bytes as QEMU has them, of memory or of a unit's registers."""
        if self._saves:
            with contextlib.suppress(Refused):
                return self._saved(start, length)
            self._saves = False
        return b"".join(self._printed(at, min(_PRINTED, start + length - at)) for at in range(start, start + length, _PRINTED))

    def _saved(self, start: int, length: int) -> bytes:
        path = Path(self._folder.name, "memory")
        self._monitor.execute("pmemsave", val=start, size=length, filename=str(path))
        try:
            data = path.read_bytes()
            path.unlink()
        except OSError as e:
            raise Refused(str(e)) from e
        if len(data) != length:
            raise BadSource(f"{self.socket}: QEMU saved {len(data)} bytes of {length} at {start:#x}: is there room in {self._folder.name}?")
        return data

    def _printed(self, start: int, length: int) -> bytes:
        """By the monitor's `xp`; whole words are printed."""
        count = -(-length // 8)
        words = [int(word, 16) for word in _WORD.findall(self._ask(f"xp /{count}gx {start:#x}"))]
        if len(words) != count:
            raise BadSource(f"{self.socket}: QEMU does not print the {length} bytes at {start:#x}")
        return b"".join(word.to_bytes(8, "little") for word in words)[:length]


def _put(words: U64, readable: NDArray[np.bool_], found: U64) -> U64:
    """The pages that were found at their places."""
    words[readable] = found
    return words
