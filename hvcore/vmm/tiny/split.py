"""What guest 2 gets of the machine: a range of RAM and some PCI functions."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...errors import BadConfig
from ...machine.bus import Bus
from ...spec import pci
from ...spec.bits import align_down
from ...spec.e820 import E820Entry, E820Type
from ...spec.pci import format_bdf, parse_bdf
from ..heap import Panic
from ..memmap import FOUR_GIB
from ..pci import Function, requesters
from ..platform import config_read

__all__ = ["Share", "choose_functions", "choose_ram", "choose_share", "guest_2_map", "without"]

MIB, MIB2 = 1 << 20, 2 << 20
MOST, LEAST = 512 * MIB, 32 * MIB
"""Guest 2's RAM: no more than this nor a quarter of what lies below 4 GiB; the guest's image needs the least."""
_LOW, _HIGH = 0xA0000, 0x100000
_EDU, _NVME = (0x1234, 0x11E8), 0x010802


@dataclass(frozen=True)
class Share:
    """Guest 2's part: RAM [start, end) host-physical and its PCI `functions`, by requester id.

    `requesters` are the ids under which their DMA reaches a remapping unit.  `bridges` are all of the machine's: no guest can change one,
    for their bus numbers decide who is who at the units.  Guest 2 sees those `above` its functions, guest 1 all.
    """

    start: int
    end: int
    functions: frozenset[int]
    requesters: frozenset[int]
    bridges: frozenset[int]
    above: frozenset[int]

    @property
    def size(self) -> int:
        """Bytes of RAM."""
        return self.end - self.start

    def owns(self, address: int) -> bool:
        """Whether a host-physical address lies in its RAM."""
        return self.start <= address < self.end


def choose_ram(e820: Iterable[E820Entry]) -> tuple[int, int]:
    """A half-open host-physical range for guest 2 out of the map that a single guest would get: the top of the highest usable entry
    below 4 GiB that has room, in whole 2 MiB.  Panics where none has."""
    low = [replace(e, end=min(e.end, FOUR_GIB)) for e in e820 if e.usable and e.start < FOUR_GIB]
    size = min(MOST, align_down(sum(e.size for e in low) // 4, MIB2))
    ends = [align_down(e.end, MIB2) for e in low if align_down(e.end, MIB2) - size >= max(e.start, LEAST)]
    if size < LEAST or not ends:
        raise Panic("TinyVisor: no RAM below 4 GiB for a second guest")
    return max(ends) - size, max(ends)


def without(e820: Iterable[E820Entry], start: int, end: int) -> tuple[E820Entry, ...]:
    """A map in which nothing is reported of [start, end), which lies in one usable entry."""
    shown: list[E820Entry] = []
    for e in e820:
        if e.usable and e.start <= start and end <= e.end:
            shown += [replace(e, end=start)] * (e.start < start) + [replace(e, start=end)] * (end < e.end)
        else:
            shown.append(e)
    return tuple(shown)


def guest_2_map(size: int) -> tuple[E820Entry, ...]:
    """The map that guest 2 is told, guest-physical: `size` bytes from 0, but for the hole below 1 MiB that every PC has."""
    usable, reserved = int(E820Type.USABLE), int(E820Type.RESERVED)
    return E820Entry(0, _LOW, usable), E820Entry(_LOW, _HIGH, reserved), E820Entry(_HIGH, size, usable)


def choose_share(bus: Bus, functions: list[Function], e820: Iterable[E820Entry], wanted: str) -> Share:
    """Guest 2's part of a machine with these PCI functions and, for a single guest, this map."""
    start, end = choose_ram(e820)
    given, ids, above = choose_functions(bus, functions, wanted)
    bridges = frozenset(f.source for f in functions if f.bridge)
    return Share(start, end, given, ids, bridges, frozenset(b.source for b in above))


# --- functions

def choose_functions(bus: Bus, functions: list[Function], wanted: str) -> tuple[frozenset[int], frozenset[int], list[Function]]:
    """Guest 2's functions, their requester ids at the units, and the bridges above them.

    `wanted` names them as `00:03.0,00:04.0`; `auto` is every edu device, or the NVMe controllers where there is none; `none`.  With a
    function come all others whose DMA cannot be told from its own.  Raises BadConfig for what is no function or cannot be given.
    """
    known = {f.source: f for f in functions}
    named = _by_kind(bus, functions) if wanted == "auto" else _by_name(known, wanted)
    seen_as = requesters(bus, functions)
    ids = {seen_as[source] for source in named}
    given = frozenset(source for source, seen in seen_as.items() if seen in ids and not known[source].bridge)
    above = [b for b in functions if b.bridge and any(b.secondary <= s >> 8 <= b.subordinate for s in given)]
    return given, frozenset(given | ids), above


def _by_kind(bus: Bus, functions: list[Function]) -> list[int]:
    edu = [f.source for f in functions if (_word(bus, f, pci.VENDOR_ID), _word(bus, f, pci.DEVICE_ID)) == _EDU]
    return edu or [f.source for f in functions if config_read(bus, f.source, pci.REVISION, 4) >> 8 == _NVME]


def _word(bus: Bus, function: Function, offset: int) -> int:
    return config_read(bus, function.source, offset, 2)


def _by_name(known: dict[int, Function], wanted: str) -> list[int]:
    named = [parse_bdf(word)[1] for word in wanted.split(",") if word != "none"]
    for source in named:
        if source not in known:
            raise BadConfig(f"GUEST2_DEVICES names {format_bdf(source)}, where this machine has no PCI function: look at run.functions")
        if known[source].bridge:
            raise BadConfig(f"GUEST2_DEVICES names {format_bdf(source)}, which is a bridge: name what lies behind it")
    return named
