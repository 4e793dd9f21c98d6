"""What firmware does with PCI resources: base address registers without an address get one, bridges get their windows."""

from collections.abc import Iterable

from ..spec.bits import align_down, align_up
from .description import MachineDescription
from .pcifunction import Bar, Bridge, PciFunction

__all__ = ["APIC_HOLE", "place", "reserved_ranges", "set_bridge_windows"]

APIC_HOLE = 0xFEC00000
"""Where the hole below 4 GiB ends for devices: from here on lie the interrupt controllers and the firmware's ROM."""

_FOUR_GIB = 1 << 32
_PORTS = range(0xC000, 0x10000)
_BRIDGE_UNIT = 1 << 20

Range = tuple[int, int]


def reserved_ranges(machine: MachineDescription) -> tuple[Range, ...]:
    """What no base address register may take: remapping units, configuration windows, interrupt controllers and ROM."""
    units = [(u.base, u.base + 0x1000) for u in machine.units]
    windows = [(e.base, e.base + e.size) for e in machine.ecams]
    return (*units, *windows, (APIC_HOLE, _FOUR_GIB))


def place(functions: Iterable[PciFunction], machine: MachineDescription, taken: Iterable[Range]) -> list[str]:
    """Gives every memory and I/O BAR an address, in the order of `functions`; returns what is worth knowing.

    A given address stays.  Where it overlaps RAM or another window the register holds it but nothing answers there; one that the register
    cannot hold is replaced.  Both are noted.  `taken` are the half-open host-physical ranges in use besides RAM.
    """
    functions = list(functions)
    used = [*machine.ram_runs, *taken]
    notes = [note for function, bar in _bars(functions) if (note := _check_given(function, bar, used))]
    used += [(bar.address, bar.address + bar.size) for _, bar in _bars(functions) if bar.address is not None]
    used += [(e.start, e.end) for e in machine.e820]
    notes += _place_memory(functions, machine, used)
    _place_ports(functions)
    return notes


def _check_given(function: PciFunction, bar: Bar, used: list[Range]) -> str:
    """What is wrong with an address from the description; a good one that will be answered is added to `used`."""
    address, name = bar.address, f"BAR {bar.description.index} of {function}"
    if address is None:
        return ""
    if address & ~bar.writable:
        bar.address = None
        return f"{name} is placed anew: its register cannot hold {address:#x} (size {bar.size:#x}, {bar.description.kind})"
    if bar.description.kind == "io":
        return ""
    other = next((r for r in used if address < r[1] and r[0] < address + bar.size), None)
    if other:
        return f"{name} at {address:#x} stays unassigned: it overlaps {other[0]:#x}-{other[1]:#x}"
    if function.has_window:
        used.append((address, address + bar.size))
    return ""


def _bars(functions: Iterable[PciFunction]) -> list[tuple[PciFunction, Bar]]:
    return [(f, b) for f in functions for b in f.bars]


def _place_memory(functions: list[PciFunction], machine: MachineDescription, used: list[Range]) -> list[str]:
    """Lays the missing memory BARs one after another into the hole below 4 GiB; large 64-bit ones above RAM where it is full."""
    notes = []
    low = max((b for _, b in machine.ram_runs if b <= _FOUR_GIB), default=0)
    high = max(_FOUR_GIB, *(b for _, b in machine.ram_runs))
    for function, bar in _bars(functions):
        if bar.address is not None or bar.description.kind == "io":
            continue
        unit = max(bar.size, _BRIDGE_UNIT if function.parent else 0x1000)
        bar.address = _gap(low, APIC_HOLE, bar.size, unit, used)
        if bar.address is not None:
            low = bar.address + bar.size
        elif bar.description.kind == "mem64":
            bar.address = _gap(high, 1 << machine.host_address_width, bar.size, unit, used)
        if bar.address is None:
            notes.append(f"BAR {bar.description.index} of {function} stays unassigned: no room for {bar.size:#x} bytes")
        else:
            used.append((bar.address, bar.address + bar.size))
    return notes


def _gap(start: int, end: int, size: int, unit: int, used: list[Range]) -> int | None:
    """The first multiple of `unit` from `start` on where `size` bytes are free."""
    address = align_up(start, unit)
    for a, b in sorted(used):
        if a < address + size and address < b:
            address = align_up(b, unit)
    return address if address + size <= end else None


def _place_ports(functions: list[PciFunction]) -> None:
    """Lays the missing I/O BARs."""
    port = _PORTS.start
    for _, bar in _bars(functions):
        if bar.description.kind == "io" and bar.address is None and align_up(port, bar.size) + bar.size <= _PORTS.stop:
            bar.address = align_up(port, bar.size)
            port = bar.address + bar.size


def set_bridge_windows(bridge: Bridge) -> None:
    """Opens a bridge's windows over the BARs behind it: memory, prefetchable memory, I/O."""
    bars = [(b.address, b.address + b.size, b.description) for f in behind(bridge) for b in f.bars if b.address is not None]
    low = [(a, b) for a, b, d in bars if d.kind != "io" and b <= _FOUR_GIB]
    high = [(a, b) for a, b, d in bars if d.kind != "io" and b > _FOUR_GIB]
    if not high:
        low, high = _apart(low, [(a, b) for a, b, d in bars if d.kind != "io" and d.prefetchable])
    _memory_window(bridge, low, 0x20)
    _memory_window(bridge, high, 0x24)
    first, last = _limits([(a, b) for a, b, d in bars if d.kind == "io"], 0x1000, 0x10000)
    bridge.put_masked(0x1C, 2, first >> 8 | last)


def _apart(spans: list[Range], prefetchable: list[Range]) -> tuple[list[Range], list[Range]]:
    """What goes into the memory window and what into the other: there the `prefetchable` of the `spans`, unless the two would overlap."""
    others = [s for s in spans if s not in prefetchable]
    plain, fetched = (_limits(s, _BRIDGE_UNIT, _FOUR_GIB) for s in (others, prefetchable))
    overlap = plain[0] <= fetched[1] and fetched[0] <= plain[1]
    return (spans, []) if overlap else (others, prefetchable)


def behind(bridge: Bridge) -> Iterable[PciFunction]:
    """Every function below a bridge."""
    for function in bridge.children.values():
        yield function
        if isinstance(function, Bridge):
            yield from behind(function)


def _limits(spans: list[Range], unit: int, top: int) -> Range:
    """First and last unit of a window over `spans`; a closed window (first above last) where there are none."""
    if not spans:
        return top - unit, 0
    return align_down(min(s[0] for s in spans), unit), align_up(max(s[1] for s in spans), unit) - unit


def _memory_window(bridge: Bridge, spans: list[Range], offset: int) -> None:
    """Base and limit registers at `offset`; for the prefetchable window also their upper halves."""
    first, last = _limits(spans, _BRIDGE_UNIT, _FOUR_GIB)
    bridge.put_masked(offset, 4, (first >> 16 & 0xFFF0) | (last >> 16 & 0xFFF0) << 16)
    if offset == 0x24:
        bridge.put_masked(0x28, 8, first >> 32 | last >> 32 << 32)
