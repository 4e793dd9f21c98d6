"""From what was found out about a machine to its description; every default that is taken is said in a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BadMachine
from ..machine.description import EcamDescription, MachineDescription, PciDescription
from ..machine.memory import PAGE
from ..spec.dmar import Dmar, build, parse
from ..spec.e820 import E820Entry
from ..spec.pci import format_bdf
from .dmar_lines import check_units, rebuild, units_of
from .e820_lines import LoggedMap
from .kernel_log import KernelLog
from .located import located
from .memory_map import (
    FOUR_GIB,
    Range,
    acpi_place,
    check_bootable,
    check_e820,
    dram_runs,
    fill_low_memory,
    free_ecam,
    guess_ecam,
    overlaps,
    unsaid,
)
from .pci_tree import complete, merge, place_bars

__all__ = ["Findings", "LEFT_ON", "NO_MAP", "describe"]

LEFT_ON = "Firmware left interrupt remapping on"
"""How the sentence begins that says so."""

NO_MAP = ("no BIOS-e820 lines: if it is a kernel log, its ring buffer had wrapped; "
          "add the output of `dmesg` from boot, or of `grep -r . /sys/firmware/memmap`")
_AMD = "An AMD machine (IVRS, AMD-Vi): it has no VT-d unit, VTD_TRANS has nothing to do."
_NO_DMAR = "There is no DMAR table and no DMAR line: the machine has no VT-d unit, VTD_TRANS has nothing to do."


@dataclass(frozen=True, slots=True)
class Findings:
    """What a folder or log gave.  `map` is the firmware's memory map, read from `map_file`; `dmar` the table's bytes, from `dmar_file`.

    `amd` says whether an IVRS table is there; `notes` are sentences on what was done to get so far.
    """

    name: str
    source: str
    log: KernelLog
    map: LoggedMap | None
    map_file: str
    lspci: tuple[PciDescription, ...] = ()
    dmar: bytes | None = None
    dmar_file: str = "DMAR.dat"
    amd: bool = False
    notes: tuple[str, ...] = field(default=())


def describe(found: Findings) -> MachineDescription:
    """The machine.  Raises `BadMachine`, in one sentence, where no machine can be made of it."""
    with located(found.map_file):
        e820, map_notes = _memory_map(found)
    functions = merge(found.lspci, found.log.functions)
    table, raw, dmar_notes = _dmar(found, functions)
    units, unit_notes = units_of(table, found.log.units) if table else ((), ())
    with located(found.map_file if found.dmar is None else found.dmar_file):
        check_units(units, [(e.start, e.end) for e in e820 if e.usable])
    ecam, ecam_notes = _ecam(found.log, e820)
    others = _other_ecams(found.log, e820)
    registers = [*((u.base, u.base + PAGE) for u in units), *(r for e in others for r in _window(e))]
    nvme = [source for segment, source in found.log.nvme if segment == 0]
    with located(found.map_file):
        runs = dram_runs(e820, [*registers, *_window(ecam), *_logged_bars(functions)])
        kinds = _unknown_kinds(functions)
        functions, tree_notes = complete(functions, table, nvme, found.log.root_buses, [e.segment for e in others])
    functions, moved = place_bars(functions, [*runs, *registers, *_window(ecam)])
    if ecam is None:
        ecam, ecam_notes = _place_ecam(e820, runs, registers, functions)
    rmrrs = [(r.base, r.end) for r in table.rmrrs] if table else []
    acpi, acpi_note = acpi_place(e820, runs, rmrrs, _dmar_address(found.log))
    notes = (*found.notes, *map_notes, *dmar_notes, *unit_notes, *_left_on(found.log), *ecam_notes, *tree_notes, *kinds,
             *_moved_note(moved), *([acpi_note] if acpi_note else []))
    return MachineDescription(found.name, e820, runs, acpi, raw, units, functions, ecam, host_address_width=_width(table, runs),
                              source=found.source, assumptions=notes, other_ecams=others)


def _memory_map(found: Findings) -> tuple[tuple[E820Entry, ...], tuple[str, ...]]:
    """The firmware's map, put right, and what was wrong with it."""
    if found.map is None:
        raise BadMachine(NO_MAP)
    e820, notes = check_e820(found.map.entries, [f"line {n}" for n in found.map.lines])
    e820, low_notes = fill_low_memory(e820)
    check_bootable(e820)
    cut = ("The log ends with its E820 lines: entries after the last one may be missing.",) if found.map.at_end else ()
    torn = tuple(f"Line {n} of {Path(found.map_file).name}: an E820 line that cannot be read was left out." for n in found.map.torn)
    return e820, (*notes, *low_notes, *unsaid(e820), *torn, *cut)


def _dmar(found: Findings, functions: Sequence[PciDescription]) -> tuple[Dmar | None, bytes | None, tuple[str, ...]]:
    """The table, its bytes, and what was assumed of it."""
    if found.dmar is not None:
        with located(found.dmar_file):
            table = parse(found.dmar)
        return table, found.dmar, _other_table(found, table)
    table_or_none, notes = rebuild(found.log, functions)
    if table_or_none is None:
        return None, None, (_AMD if found.amd or found.log.amd or "IVRS" in found.log.tables else _NO_DMAR,)
    return table_or_none, build(table_or_none), notes


def _other_table(found: Findings, table: Dmar) -> tuple[str, ...]:
    """A sentence where log and table contradict each other."""
    notes = []
    name = Path(found.dmar_file).name
    logged = found.log.tables.get("DMAR")
    if logged and found.dmar is not None and logged[1] != len(found.dmar):
        notes.append(f"{name} has {len(found.dmar)} bytes, the log's table {logged[1]}: it is of another unit or firmware of "
                     "this model, and used byte for byte.")
    lost = sorted(set(found.log.units) - {d.base for d in table.drhds})
    if lost:
        notes.append(f"The log has a unit at {', '.join(map(hex, lost))} that {name} does not name: it was left out.")
    return tuple(notes)


def _left_on(log: KernelLog) -> tuple[str, ...]:
    """A sentence on units that remapped interrupts when the log's kernel began."""
    return (f"{LEFT_ON} at {', '.join(log.left_on)}, as the log's kernel found it: here it is off.",) if log.left_on else ()


def _dmar_address(log: KernelLog) -> int | None:
    address = log.tables.get("DMAR")
    return address[0] if address else None


def _ecam(log: KernelLog, e820: Sequence[E820Entry]) -> tuple[EcamDescription | None, tuple[str, ...]]:
    """The configuration window that the log names, else the one a reserved entry looks like."""
    usable = [(e.start, e.end) for e in e820 if e.usable]
    for ecam in log.ecams:
        if ecam.segment == 0 and not any(overlaps((ecam.base, ecam.base + ecam.size), u) for u in usable):
            return ecam, ()
    guess = guess_ecam(e820)
    if guess is None:
        return None, ()
    return guess, (f"The PCI configuration window was not logged: the reserved memory at {guess.base:#x} was taken for it.",)


def _other_ecams(log: KernelLog, e820: Sequence[E820Entry]) -> tuple[EcamDescription, ...]:
    """The configuration windows of the segments besides 0, the first of each that lies where no RAM is."""
    usable = [(e.start, e.end) for e in e820 if e.usable]
    found: dict[int, EcamDescription] = {}
    for e in log.ecams:
        if e.segment and not any(overlaps((e.base, e.base + e.size), u) for u in usable):
            found.setdefault(e.segment, e)
    return tuple(found.values())


def _unknown_kinds(functions: Sequence[PciDescription]) -> tuple[str, ...]:
    """A sentence on the bridges of which nothing says whether they are PCI Express ports."""
    names = [format_bdf(f.source) for f in functions if f.model == "bridge" and f.pcie and f.port_type is None]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    taken = "is taken for a PCI Express port, which keeps" if len(names) == 1 else "are taken for PCI Express ports, which keep"
    return (f"Not every bridge's kind is known: {', '.join(names[:4])}{more} {taken} the requester ids behind.",) if names else ()


def _place_ecam(e820: Sequence[E820Entry], runs: Sequence[Range], registers: Sequence[Range], functions: Sequence[PciDescription]) -> tuple[
        EcamDescription | None, tuple[str, ...]]:
    """A free place for the configuration window that nothing tells of."""
    taken = [*runs, *registers, *_logged_bars(functions), *((e.start, e.end) for e in e820)]
    ecam = free_ecam(taken, runs[0][1])
    said = f"it was put at {ecam.base:#x}" if ecam else "there is no room for one, only ports 0xcf8 and 0xcfc"
    return ecam, (f"The PCI configuration window was not logged: {said}.",)


def _moved_note(moved: Sequence[str]) -> tuple[str, ...]:
    more = f" and {len(moved) - 4} more" if len(moved) > 4 else ""
    return (f"Firmware places BARs whose logged address cannot be used here: {', '.join(moved[:4])}{more}.",) if moved else ()


def _window(ecam: EcamDescription | None) -> list[Range]:
    return [(ecam.base, ecam.base + ecam.size)] if ecam else []


def _logged_bars(functions: Sequence[PciDescription]) -> list[Range]:
    """The memory BARs below 4 GiB that have an address."""
    return [(b.address, b.address + b.size) for f in functions for b in f.bars
            if b.kind != "io" and b.address is not None and b.address < FOUR_GIB]


def _width(table: Dmar | None, runs: Sequence[Range]) -> int:
    """The host address width: the table's, else one that covers all RAM."""
    return table.host_address_width if table else max(39, (runs[-1][1] - 1).bit_length())

