"""What firmware tells the system of each PCI root bus: its bus numbers, the I/O ports and the memory that its host bridge forwards."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from ..spec.bits import align_down, align_up
from .description import MachineDescription
from .longmode import PHYSICAL_BITS
from .memory import PAGE
from .pcifunction import Bridge, PciFunction
from .pciplace import APIC_HOLE, Range, reserved_ranges
from .pm1 import EVENT

__all__ = ["CONFIG_PORTS", "RootBus", "root_buses"]

CONFIG_PORTS = (0xCF8, 0xD00)
"""The host bridge's own, half-open."""

_FOUR_GIB, _ONE_MIB = 1 << 32, 1 << 20
_VGA = (0xA0000, 0xC0000)
_LEGACY_PORTS = ((0, 0x400), (EVENT, EVENT + 0x10))
"""Ports of devices that are behind the first root bus without being PCI functions."""
_PORT_CELLS = ((0, CONFIG_PORTS[0]), (CONFIG_PORTS[1], 0x10000))
_Key = tuple[int, int]
_Span = tuple[int, int, _Key]
"""A half-open range in use, and behind which root bus, by (segment, bus)."""


@dataclass(frozen=True, slots=True)
class RootBus:
    """A PCI root bus: bus numbers `bus` to `last`, half-open ranges of `ports` and of `memory` (host-physical), `devices` on the bus."""

    segment: int
    bus: int
    last: int
    ports: tuple[Range, ...]
    memory: tuple[Range, ...]
    devices: tuple[int, ...]


def root_buses(machine: MachineDescription, functions: Iterable[PciFunction]) -> tuple[RootBus, ...]:
    """Every root bus of the placed `functions`; bus 0 of segment 0 always, with all that no other root bus needs.

    Windows of different root buses share no byte.  They lie where neither RAM nor remapping units, configuration windows and interrupt
    controllers are, and cross no border of an E820 entry; inside such an entry they hold nothing but what is in use.  Above 4 GiB there is
    a window only where something lies.
    """
    functions = tuple(functions)
    keys = {f: _root_of(*_place(f), [g for g in functions if isinstance(g, Bridge)]) for f in functions if f.parent is None}
    roots = sorted({(0, 0), *keys.values()})
    ports = [(*span, key) for f, key in keys.items() for span in _ports(f)] + [(*span, roots[0]) for span in _LEGACY_PORTS]
    memory = [(*span, key) for f, key in keys.items() for span in _memory(f)]
    port_windows = [w for cell in _PORT_CELLS for w in _share(cell, ports, roots[0])]
    memory_windows = [(*_VGA, roots[0]), *_memory_windows(machine, memory, roots[0])]
    lasts = _last_buses(machine, roots, keys)
    return tuple(RootBus(*root, lasts[root], tuple(w[:2] for w in port_windows if w[2] == root),
                         tuple(w[:2] for w in memory_windows if w[2] == root),
                         tuple(sorted({f.description.source >> 3 & 0x1F for f in keys if _place(f) == root}))) for root in roots)


def _place(function: PciFunction) -> _Key:
    return function.description.segment, function.description.source >> 8


def _root_of(segment: int, bus: int, bridges: list[Bridge]) -> _Key:
    """The root bus above a bus: itself where no bridge leads there."""
    above = next((b for b in bridges if b.description.segment == segment and bus in b.buses and b.description.source >> 8 < bus), None)
    return (segment, bus) if above is None else _root_of(segment, above.description.source >> 8, bridges)


def _last_buses(machine: MachineDescription, roots: list[_Key], keys: Mapping[PciFunction, _Key]) -> dict[_Key, int]:
    """The last bus number behind each root bus: up to the next one, as far as the configuration window goes, but all that is in use."""
    following = dict(pairwise(roots))
    lasts = {}
    for root in roots:
        segment, bus = root
        limit = next((e.last for e in machine.ecams if e.segment == segment and e.first <= bus <= e.last), 0xFF)
        used = [f.buses.stop - 1 for f, key in keys.items() if key == root and isinstance(f, Bridge) and f.buses]
        ends = [following[root][1] - 1] if root in following and following[root][0] == segment else []
        lasts[root] = min(max(limit, bus, *used), *ends, 0xFF)
    return lasts


# What is in use behind a root bus


def _ports(function: PciFunction) -> Iterator[Range]:
    """The I/O ports of a function on a root bus, a bridge's with all behind it."""
    yield from _bars(function, io=True)
    if isinstance(function, Bridge):
        base, limit = function.get(0x1C, 1) & 0xF0, function.get(0x1D, 1) & 0xF0
        yield from _opened(base << 8, limit << 8, 0x1000)


def _memory(function: PciFunction) -> Iterator[Range]:
    """The same for memory."""
    yield from _bars(function, io=False)
    if isinstance(function, Bridge):
        yield from _opened(function.get(0x20, 2) << 16, function.get(0x22, 2) << 16, _ONE_MIB)
        low = [(function.get(at, 2) & 0xFFF0) << 16 for at in (0x24, 0x26)]
        yield from _opened(low[0] | function.get(0x28, 4) << 32, low[1] | function.get(0x2C, 4) << 32, _ONE_MIB)


def _bars(function: PciFunction, io: bool) -> Iterator[Range]:
    """What the function's base address registers hold."""
    for bar in function.bars:
        if (bar.description.kind == "io") is io and bar.address is not None:
            address = function.get(bar.offset, 4 * bar.dwords) & bar.writable
            yield address, address + bar.size


def _opened(first: int, last: int, unit: int) -> Iterator[Range]:
    """A bridge's window from its first to its last unit; none while it is closed."""
    if first <= last:
        yield first, last + unit


# How the room is shared


def _memory_windows(machine: MachineDescription, spans: list[_Span], default: _Key) -> list[_Span]:
    free, claimed = [], []
    for cell in _cells(machine):
        if any(e.start <= cell[0] and cell[1] <= e.end for e in machine.e820):
            claimed += list(_in_use(cell, spans))
        elif cell[0] < APIC_HOLE or _inside(cell, spans):
            free += list(_share(cell, spans, default))
    windows = [*claimed, *(_away(w, claimed, spans) for w in free)]
    return sorted(w for w in windows if w[0] < w[1])


def _cells(machine: MachineDescription) -> Iterator[Range]:
    """Free memory in whole pages, cut at the borders of E820 entries."""
    borders = {edge for e in machine.e820 for edge in (e.start, e.end)}
    for gap in _gaps([*machine.ram_runs, *reserved_ranges(machine)]):
        for start, end in pairwise(sorted({*gap, *(e for e in borders if gap[0] < e < gap[1])})):
            if align_up(start, PAGE) < align_down(end, PAGE):
                yield align_up(start, PAGE), align_down(end, PAGE)


def _inside(cell: Range, spans: Iterable[_Span]) -> list[_Span]:
    """What of a cell is in use, by address."""
    touching = (s for s in spans if s[0] < cell[1] and cell[0] < s[1])
    return sorted((max(start, cell[0]), min(end, cell[1]), key) for start, end, key in touching)


def _in_use(cell: Range, spans: Iterable[_Span]) -> Iterator[_Span]:
    """The pages of a cell that are in use, those of one root bus next to each other as one."""
    held: _Span | None = None
    for start, end, key in _inside(cell, spans):
        start, end = align_down(start, PAGE), align_up(end, PAGE)
        if held and held[2] == key and start <= held[1]:
            held = held[0], max(held[1], end), key
            continue
        if held:
            yield held
            start, end = max(start, held[1]), max(end, held[1])
        held = start, end, key
    if held:
        yield held


def _away(window: _Span, claimed: list[_Span], spans: Iterable[_Span]) -> _Span:
    """A window one page away from those inside E820 entries, where nothing is in use: systems join windows, here across a border."""
    start, end, key = window
    if any(c[1] == start for c in claimed) and not _inside((start, start + PAGE), spans):
        start += PAGE
    if any(c[0] == end for c in claimed) and not _inside((end - PAGE, end), spans):
        end -= PAGE
    return start, end, key


def _gaps(taken: Iterable[Range]) -> Iterator[Range]:
    """What is left of the processor's addresses from 1 MiB on."""
    at, top = _ONE_MIB, 1 << PHYSICAL_BITS
    for start, end in (*sorted(taken), (top, top)):
        if at < min(start, top):
            yield at, min(start, top)
        at = max(at, end)


def _share(cell: Range, spans: Iterable[_Span], default: _Key) -> Iterator[_Span]:
    """Divides a cell among the root buses that use some of it: each has it up to where the next one's first span begins."""
    inside = _inside(cell, spans)
    at, key = cell[0], inside[0][2] if inside else default
    for start, _, other in inside:
        if other != key:
            if start > at:
                yield at, start, key
            at, key = start, other
    if at < cell[1]:
        yield at, cell[1], key
