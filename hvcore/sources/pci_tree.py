"""The PCI functions of a machine, made whole: what a log or lspci leaves out gets a stated default, so that every machine has a host
bridge, an NVMe controller and the `edu` device for DMA tests, and every bridge the numbers of the buses behind it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ..errors import BadMachine
from ..machine.description import BarDescription, PciDescription
from ..machine.topology import Topology
from ..spec.dmar import Dmar, Drhd, Scope, ScopeType
from ..spec.pci import bdf, format_bdf, split_bdf
from .memory_map import FOUR_GIB, MMIO, Range, overlaps

__all__ = ["EDU", "NVME_BAR", "complete", "merge", "place_bars"]

NVME_BAR = BarDescription(0, "mem64", 0x4000)
EDU = PciDescription(0, 0x1234, 0x11E8, 0x00FF00, "edu", revision=0x10, subsystem=(0x1AF4, 0x1100),
                     bars=(BarDescription(0, "mem32", 1 << 20),), pcie=False)
"""QEMU's educational device, at no slot yet."""
_HOST_BRIDGE = PciDescription(0, 0x8086, 0x29C0, 0x060000, pcie=False)
_ISA_BRIDGE = PciDescription(bdf(0, 0x1F, 0), 0x8086, 0x2918, 0x060100, pcie=False)
_NVME = PciDescription(0, 0x1B36, 0x0010, 0x010802, "nvme", subsystem=(0x1AF4, 0x1100), bars=(NVME_BAR,))
_ROOT_PORT = PciDescription(0, 0x1B36, 0x000C, 0x060400, "bridge")
_UNKNOWN = PciDescription(0, 0x1B36, 0x0005, 0xFF0000)
_BY_DEVICE = {
    0x02: PciDescription(0, 0x8086, 0x1912, 0x030000), 0x14: PciDescription(0, 0x8086, 0xA12F, 0x0C0330),
    0x1A: PciDescription(0, 0x8086, 0x8C2D, 0x0C0320), 0x1B: PciDescription(0, 0x8086, 0x8C20, 0x040300),
    0x1D: PciDescription(0, 0x8086, 0x8C26, 0x0C0320),
}
"""What Intel's chipsets have at these devices of bus 0: graphics, USB 3, USB 2, audio, USB 2."""
_NVME_CLASS, _BRIDGE_CLASS, _EDU_ID = 0x0108, 0x0604, (0x1234, 0x11E8)
_MOST_FUNCTIONS = 4096
_CPU_REACH = 1 << 40
"""Where the guest's CPU ends: a register window must lie below."""

Notes = list[str]


def merge(listed: Iterable[PciDescription], logged: Iterable[PciDescription]) -> tuple[PciDescription, ...]:
    """The functions of lspci and of a log as one list by requester id.

    Of a BAR that both have the log's is firmware's: a driver may have resized it before lspci ran.
    """
    found = {(f.segment, f.source): f for f in logged}
    for f in listed:
        other = found.get((f.segment, f.source))
        if other:
            buses = (f.secondary, f.subordinate) if f.secondary else (other.secondary, other.subordinate)
            bars = {b.index: b for b in f.bars} | {b.index: b for b in other.bars if b.address is not None}
            kind = f.port_type if f.port_type is not None else other.port_type
            f = replace(f, class_code=other.class_code, bars=tuple(bars[i] for i in sorted(bars)), secondary=buses[0], subordinate=buses[1],
                        pcie=kind is not None or f.pcie and other.pcie, port_type=kind)
        found[f.segment, f.source] = f
    return tuple(found[key] for key in sorted(found))


def complete(functions: Iterable[PciDescription], table: Dmar | None, nvme: Iterable[int] = (), roots: Iterable[int] = (),
             segments: Iterable[int] = ()) -> tuple[tuple[PciDescription, ...], tuple[str, ...]]:
    """The functions with everything a machine here needs, by requester id, and a sentence for each thing assumed.

    `nvme` are requester ids that a log calls NVMe controllers, `roots` buses that hang below no bridge, `segments` those besides 0 that
    have a configuration window.
    """
    notes: Notes = []
    functions = tuple(functions)
    if len(functions) > _MOST_FUNCTIONS:
        raise BadMachine(f"{len(functions)} PCI functions are listed, {_MOST_FUNCTIONS} are the most for a machine here: leave out some")
    others = _other_segments(functions, set(segments), notes)
    tree = [f for f in functions if f.segment == 0] or _from_scopes(table, notes)
    if not any(f.source == 0 for f in tree):
        tree.append(_HOST_BRIDGE)
        notes.append("No host bridge was listed: 8086:29c0 was put at 00:00.0.")
    _name_nvme(tree, nvme, notes)
    tree = [_with_model(f) for f in sorted(tree, key=lambda f: f.source)]
    _number_bridges(tree, set(roots), notes)
    _reach_nvme(tree, set(roots), table, notes)
    _add_nvme(tree, table, notes)
    _add_edu(tree, table, notes)
    return tuple(sorted([*tree, *others], key=lambda f: (f.segment, f.source))), tuple(notes)


def _other_segments(functions: Iterable[PciDescription], segments: set[int], notes: Notes) -> list[PciDescription]:
    """The functions of the segments besides 0 that have a configuration window."""
    others = [f for f in functions if f.segment]
    kept = [_with_model(f) for f in others if f.segment in segments]
    if len(kept) < len(others):
        notes.append(f"{len(others) - len(kept)} functions of PCI segments without a configuration window were left out.")
    return kept


def _from_scopes(table: Dmar | None, notes: Notes) -> list[PciDescription]:
    """The least a PC has, and what the DMAR names: for a log without PCI lines."""
    found = {f.source: f for f in (_HOST_BRIDGE, _ISA_BRIDGE)}
    scopes = [s for structure in (table.structures if table else ()) for s in getattr(structure, "scopes", ())]
    for scope in scopes:
        if scope.type in (ScopeType.ENDPOINT, ScopeType.BRIDGE):
            _add_path(found, scope)
    named = len(found) - 2
    also = f" and the {named} that the DMAR table's scopes name, with made-up identities" if named else ""
    notes.append(f"No PCI functions were listed: there are a host bridge, an ISA bridge{also}.")
    return list(found.values())


def _add_path(found: dict[int, PciDescription], scope: Scope) -> None:
    """The functions along a scope's path; every one but an endpoint at its end is a bridge with a bus behind it."""
    bus = scope.start_bus
    for step, (device, function) in enumerate(scope.path):
        if device > 31 or function > 7:
            return
        source = bdf(bus, device, function)
        if step == len(scope.path) - 1 and scope.type == ScopeType.ENDPOINT:
            like = _BY_DEVICE.get(device, _UNKNOWN) if bus == 0 else _UNKNOWN
            found.setdefault(source, replace(like, source=source))
            return
        if source not in found:
            behind = _free_bus(found.values(), set(), bus + 1)
            found[source] = replace(_ROOT_PORT, source=source, secondary=behind, subordinate=behind)
        bus = found[source].secondary


def _free_bus(functions: Iterable[PciDescription], taken: set[int], low: int = 1) -> int:
    """The lowest bus number from `low` up that nothing uses."""
    used = taken | {n for f in functions for n in (f.source >> 8, *range(f.secondary, f.subordinate + 1))}
    free = next((n for n in range(low, 256) if n not in used), None)
    if free is None:
        raise BadMachine("the PCI buses are all in use: there is no number left for a bridge whose bus is not known")
    return free


def _name_nvme(tree: list[PciDescription], nvme: Iterable[int], notes: Notes) -> None:
    for source in nvme:
        at = next((i for i, f in enumerate(tree) if f.source == source), None)
        if at is None:
            tree.append(replace(_NVME, source=source))
            notes.append(f"The log names the NVMe controller {format_bdf(source)} without its PCI lines: it is 1b36:0010 here.")
        elif tree[at].class_code >> 8 != _NVME_CLASS:
            tree[at] = replace(tree[at], class_code=_NVME.class_code)


def _with_model(function: PciDescription) -> PciDescription:
    """What answers the function, by its class and identity."""
    if function.class_code >> 8 == _NVME_CLASS:
        others = tuple(b for b in function.bars if b.index > 1)
        first = next((b for b in function.bars if b.index == 0 and b.kind != "io" and b.size >= NVME_BAR.size), NVME_BAR)
        return replace(function, model="nvme", bars=(first, *others))
    if (function.vendor, function.device_id) == _EDU_ID:
        return replace(function, model="edu", bars=function.bars or EDU.bars)
    return replace(function, model="bridge" if function.model == "bridge" or function.class_code >> 8 == _BRIDGE_CLASS else "stub")


def _behind(tree: Iterable[PciDescription]) -> set[int]:
    """Every bus that lies behind some bridge."""
    return {n for f in tree if f.secondary for n in range(f.secondary, f.subordinate + 1)}


def _number_bridges(tree: list[PciDescription], roots: set[int], notes: Notes) -> None:
    """Gives bridges of bus 0 whose buses are not known the buses that hang nowhere, in order, then unused ones."""
    unnumbered = [i for i, f in enumerate(tree) if f.model == "bridge" and not f.secondary and f.source < 0x100]
    homeless = sorted({f.source >> 8 for f in tree if f.source & 0xFF == 0} - _behind(tree) - roots - {0})
    for n, i in enumerate(unnumbered):
        bus = homeless[n] if n < len(homeless) else _free_bus(tree, roots)
        tree[i] = replace(tree[i], secondary=bus, subordinate=bus)
    if unnumbered:
        said = ", ".join(f"{format_bdf(tree[i].source)} leads to bus {tree[i].secondary:02x}" for i in unnumbered)
        notes.append(f"The buses behind some bridges are not known: {said}.")


def _reach_nvme(tree: list[PciDescription], roots: set[int], table: Dmar | None, notes: Notes) -> None:
    """A root port for each bus that has an NVMe controller and hangs nowhere."""
    for bus in sorted({f.source >> 8 for f in tree if f.model == "nvme"} - _behind(tree) - roots - {0}):
        slot = _free_slot(tree, table)
        if slot is not None:
            tree.append(replace(_ROOT_PORT, source=slot, secondary=bus, subordinate=bus))
            notes.append(f"No bridge to bus {bus:02x} was listed: a root port was put at {format_bdf(slot)}.")


def _free_slot(tree: Sequence[PciDescription], table: Dmar | None) -> int | None:
    """The first unused device of bus 0 that some unit covers, of those that no scope names if possible; None where there is none."""
    used = {split_bdf(f.source)[1] for f in tree if f.source < 0x100}
    named = set(_named_devices(table))
    units = Topology(table, tree)
    free = sorted((d for d in range(1, 32) if d not in used), key=lambda d: d in named)
    covered = (d for d in free if not table or not table.drhds or units.unit_index(0, bdf(0, d, 0)) is not None)
    return next((bdf(0, d, 0) for d in covered), None)


def _named_devices(table: Dmar | None) -> Iterator[int]:
    for structure in table.structures if table else ():
        if isinstance(structure, Drhd):
            yield from (s.path[0][0] for s in structure.scopes if s.start_bus == 0 and s.path)


def _add_nvme(tree: list[PciDescription], table: Dmar | None, notes: Notes) -> None:
    if any(f.model == "nvme" for f in tree):
        return
    slot = _free_slot(tree, table)
    made_up = next((f for f in tree if (f.vendor, f.device_id) == (_UNKNOWN.vendor, _UNKNOWN.device_id)), None)
    if slot is None and made_up:
        tree.remove(made_up)
        slot = made_up.source
    slot = _free_slot(tree, None) if slot is None else slot
    if slot is None:
        raise BadMachine("no NVMe controller was listed, and bus 0 has no free slot for one")
    tree.append(replace(_NVME, source=slot))
    notes.append(f"No NVMe controller was listed: 1b36:0010 was put at {format_bdf(slot)}.")


def _add_edu(tree: list[PciDescription], table: Dmar | None, notes: Notes) -> None:
    if any(f.model == "edu" for f in tree):
        return
    slot = _free_slot(tree, table)
    if slot is None:
        notes.append("There is no edu device for DMA tests: the DMAR table has no INCLUDE_PCI_ALL unit and names no free slot of bus 0, "
                     "and BitVisor stops at a function that no unit covers.")
        return
    tree.append(replace(EDU, source=slot))
    notes.append(f"The edu device for DMA tests (1234:11e8) was put at {format_bdf(slot)}.")


def place_bars(functions: Iterable[PciDescription], taken: Iterable[Range]) -> tuple[tuple[PciDescription, ...], tuple[str, ...]]:
    """The functions with BARs that can be, and the names of those whose address cannot be used: it becomes None, firmware places it.

    `taken` is what is no device's: RAM, configuration window, units' registers.
    """
    memory, ports = [*taken, MMIO], [(0, 0x100), (0x10000, 1 << 64)]
    moved: list[str] = []
    done = []
    for f in functions:
        bars = []
        for bar in _possible(f):
            claimed = ports if bar.kind == "io" else memory
            if bar.address is not None and _usable_place(bar, claimed):
                claimed.append((bar.address, bar.address + bar.size))
            elif bar.address is not None:
                moved.append(f"{format_bdf(f.source)} BAR {bar.index} ({bar.address:#x})")
                bar = replace(bar, address=None)
            bars.append(bar)
        done.append(replace(f, bars=tuple(bars)))
    return tuple(done), tuple(moved)


def _possible(function: PciDescription) -> Iterator[BarDescription]:
    """The function's BARs by index, without those of impossible size or inside the upper half of a 64-bit one."""
    next_free = 0
    for bar in sorted(function.bars, key=lambda b: b.index):
        last = bar.index + (bar.kind == "mem64")
        size_ok = bar.size >= (4 if bar.kind == "io" else 16) and bar.size & (bar.size - 1) == 0
        if bar.index >= next_free and last <= (1 if function.model == "bridge" else 5) and size_ok:
            next_free = last + 1
            yield bar


def _usable_place(bar: BarDescription, claimed: Iterable[Range]) -> bool:
    address = bar.address or 0
    end = address + bar.size
    reach = {"mem32": FOUR_GIB, "mem64": _CPU_REACH, "io": 0x10000}[bar.kind]
    return address % bar.size == 0 and end <= reach and not any(overlaps((address, end), c) for c in claimed)
