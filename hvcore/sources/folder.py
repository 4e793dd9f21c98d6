"""A machine from a folder of logs and tables, or from a single kernel log.

A folder holds any of: `dmesg.txt`, `e820.txt`, `linux.log`, `memmap.txt`, `seabios.txt` (logs), `DMAR.dat`, `IVRS.dat` (raw ACPI tables),
`lspci.txt` (`lspci -nn`, best with `-vvv`), `SOURCE.txt` (where it is from).  A folder saved from under BitVisor may hold its console
`bv.log`, the unit's `registers.txt` and `pci.txt` of the QEMU monitor besides.
"""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from ..errors import BadMachine
from ..machine.description import MachineDescription, PciDescription
from ..spec.e820 import E820Entry
from .assemble import NO_MAP, Findings, describe
from .e820_lines import LoggedMap
from .files import read_table
from .kernel_log import KernelLog, LoggedUnit, parse_log, read_text
from .lspci import parse_lspci, parse_qemu_pci

__all__ = ["LOGS", "load_folder", "load_log"]

LOGS = ("e820.txt", "dmesg.txt", "linux.log", "memmap.txt", "seabios.txt")
"""Files that may hold a memory map; of equally good ones the first is taken."""
_REGISTERS = re.compile(r"\bVER 0x([0-9a-f]{1,2}) CAP 0x([0-9a-f]{1,16}) ECAP 0x([0-9a-f]{1,16})")
_Q35_UNIT = 0xFED90000
_VMM_ALIGN = 4 << 20


def load_log(path: Path) -> MachineDescription:
    """The machine that one kernel log tells of.  Raises `BadMachine`."""
    log = parse_log(read_text(path))
    return describe(Findings(path.stem, f"kernel log {path.name}", log, log.map, str(path)))


def load_folder(path: Path) -> MachineDescription:
    """The machine of a folder.  Raises `BadMachine` where it holds no usable memory map, or a table that cannot be read."""
    logs = {name: parse_log(read_text(path / name)) for name in LOGS if (path / name).exists()}
    if not logs:
        raise BadMachine(f"{path}: not a machine folder, it has none of {', '.join(LOGS)}")
    log = max(logs.values(), key=lambda g: len(g.functions) + len(g.units) + len(g.tables) + len(g.nvme))
    name, found, notes = _choose_map(path, logs)
    unit_notes = _add_registers(path, log)
    functions, qemu = _optional(path / "lspci.txt"), _optional(path / "pci.txt")
    listed: tuple[PciDescription, ...] = (*parse_lspci(functions), *parse_qemu_pci(qemu))
    return describe(Findings(path.resolve().name, _source(path), log, found, str(path / name), listed, _table(path / "DMAR.dat"),
                             str(path / "DMAR.dat"), (path / "IVRS.dat").exists(), (*notes, *unit_notes)))


def _optional(path: Path) -> str:
    return read_text(path) if path.exists() else ""


def _table(path: Path) -> bytes | None:
    return read_table(path) if path.exists() else None


def _source(path: Path) -> str:
    """The first line of SOURCE.txt."""
    lines = _optional(path / "SOURCE.txt").split("\n")
    return lines[0].strip()


def _choose_map(path: Path, logs: dict[str, KernelLog]) -> tuple[str, LoggedMap, tuple[str, ...]]:
    """The best map of all files with its file's name: a whole one, else the one with most entries; and what was done to it."""
    maps = [(name, log.map) for name, log in logs.items() if log.map]
    if not maps:
        raise BadMachine(f"{path}: {', '.join(logs)}: {NO_MAP}")
    name, best = max(maps, key=lambda pair: (pair[1].whole, len(pair[1].entries)))
    notes = []
    differing = [other for other, found in maps if set(found.entries) != set(best.entries)]
    if differing:
        notes.append(f"The memory map of {', '.join(differing)} differs from that of {name}, which was used.")
    if (path / "bv.log").exists():
        best, restored = _without_vmm(best)
        notes += restored
    return name, best, tuple(notes)


def _without_vmm(found: LoggedMap) -> tuple[LoggedMap, list[str]]:
    """The map before BitVisor cut the entry that holds it: the gap above an entry that ends at 4 MiB is usable again."""
    for a, b in pairwise(found.entries):
        if a.usable and a.start >= 1 << 20 and a.end % _VMM_ALIGN == 0 and b.start - a.end >= 128 << 20:
            entries = tuple(E820Entry(a.start, b.start, a.type) if e == a else e for e in found.entries)
            return replace(found, entries=entries), [f"The log is of a system on BitVisor (bv.log): what its map leaves out, [{a.end:#x}, "
                                                     f"{b.start:#x}), was BitVisor's and is usable RAM here."]
    return found, []


def _add_registers(path: Path, log: KernelLog) -> tuple[str, ...]:
    """Takes the unit of `registers.txt`, where the log has none."""
    m = _REGISTERS.search(_optional(path / "registers.txt"))
    if not m or log.units:
        return ()
    log.units[_Q35_UNIT] = LoggedUnit(_Q35_UNIT, 1, int(m[1], 16), int(m[2], 16), int(m[3], 16))
    return (f"registers.txt does not say where the unit is: it is at {_Q35_UNIT:#x} with INCLUDE_PCI_ALL, as QEMU has it.",)
