"""A machine from a folder of logs and tables, from an archive of one, or from a single kernel log.

A folder holds any of: `dmesg.txt`, `e820.txt`, `linux.log`, `memmap.txt`, `seabios.txt` and other logs (`kern.log`, `journal.txt`),
`DMAR.dat`, `IVRS.dat`, `MCFG.dat` (raw ACPI tables), `acpidump.txt` (the text of `acpidump`), `lspci.txt` (`lspci -nn`, best with `-vvv`),
`iommu.txt` (registers of units, as the kernel logs them), `SOURCE.txt` (where it is from).  A folder saved from under BitVisor may hold its
console `bv.log`, the unit's `registers.txt` and `pci.txt` of the QEMU monitor besides.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from ..errors import BadMachine
from ..machine.description import MachineDescription, PciDescription
from ..spec.e820 import E820Entry
from .archive import archive_name, read_archive
from .assemble import NO_MAP, Findings, describe
from .e820_lines import LoggedMap
from .files import read_bytes, read_table
from .kernel_log import KernelLog, LoggedUnit, parse_log, read_text, text_of
from .lspci import parse_lspci, parse_qemu_pci
from .tables import Tables, ecams_of, is_dump, is_table, read_tables

__all__ = ["LOGS", "load_archive", "load_folder", "load_log"]

LOGS = ("e820.txt", "dmesg.txt", "linux.log", "memmap.txt", "seabios.txt")
"""Files that may hold a memory map; of equally good ones the first is taken."""
_OTHER_LOGS = re.compile(r"(dmesg|kern|kernel|journal|journalctl|syslog|messages|memmap|e820)\b[^/]*", re.IGNORECASE)
_LISTS = re.compile(r"lspci\b[^/]*", re.IGNORECASE)
_REST = ("bv.log", "iommu.txt", "pci.txt", "registers.txt", "SOURCE.txt")
_LARGEST_TEXT = 64 << 20
_REGISTERS = re.compile(r"\bVER 0x([0-9a-f]{1,2}) CAP 0x([0-9a-f]{1,16}) ECAP 0x([0-9a-f]{1,16})")
_Q35_UNIT = 0xFED90000
_VMM_ALIGN = 4 << 20


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of one machine by their names; `where` is the folder or archive they are in."""

    where: Path
    data: Mapping[str, bytes]

    def text(self, name: str) -> str:
        """A file's text; empty where there is no such file."""
        return text_of(self.data[name], str(self.where / name)) if name in self.data else ""

    @property
    def logs(self) -> list[str]:
        """The names of logs: those that are known, then others by name."""
        return [*(name for name in LOGS if name in self.data), *sorted(n for n in self.data if n not in LOGS and _OTHER_LOGS.fullmatch(n))]


def load_log(path: Path) -> MachineDescription:
    """The machine that one kernel log tells of.  Raises `BadMachine`."""
    log = parse_log(read_text(path))
    return describe(Findings(path.stem, f"kernel log {path.name}", log, log.map, str(path)))


def load_folder(path: Path) -> MachineDescription:
    """The machine of a folder.  Raises `BadMachine` where it holds no usable memory map, or a table that cannot be read."""
    try:
        names = sorted(p.name for p in path.iterdir() if _wanted(p.name) and p.exists())
    except OSError as e:
        raise BadMachine(f"{path} cannot be read ({e.strerror})") from e
    files = _Files(path, {name: _read(path / name) for name in names})
    return _load(files, path.resolve().name, "")


def load_archive(path: Path) -> MachineDescription:
    """The machine of a .tar, .tar.gz or .zip, which holds what a folder holds.  Raises `BadMachine`, also for a hostile archive."""
    return _load(_Files(path, read_archive(path, _wanted)), archive_name(path), f"archive {path.name}")


def _wanted(name: str) -> bool:
    return (name in LOGS or name in _REST or is_table(name) or is_dump(name) or _OTHER_LOGS.fullmatch(name) is not None
            or _LISTS.fullmatch(name) is not None)


def _read(path: Path) -> bytes:
    return read_table(path) if is_table(path.name) else read_bytes(path, _LARGEST_TEXT, "a log: give the part from one boot")


def _load(files: _Files, machine: str, source: str) -> MachineDescription:
    """The machine that files tell of."""
    logs = {name: parse_log(files.text(name)) for name in files.logs}
    if not logs:
        raise BadMachine(f"{files.where}: not a machine folder, it has none of {', '.join(LOGS)}")
    log = max(logs.values(), key=lambda g: len(g.functions) + len(g.units) + len(g.tables) + len(g.nvme))
    name, found, notes = _choose_map(files, logs)
    tables = _tables(files, log)
    _add_units(files, log)
    unit_notes = _add_registers(files, log)
    lists = [f for n in sorted(files.data) if _LISTS.fullmatch(n) for f in parse_lspci(files.text(n))]
    listed: tuple[PciDescription, ...] = (*lists, *parse_qemu_pci(files.text("pci.txt")))
    return describe(Findings(machine, _source(files) or source, log, found, str(files.where / name), listed, tables.data.get("DMAR"),
                             str(files.where / tables.files.get("DMAR", "DMAR.dat")), "IVRS" in tables.data, (*notes, *unit_notes)))


def _tables(files: _Files, log: KernelLog) -> Tables:
    """The raw tables; what they say of configuration windows and of their own place goes to the log, where it does not tell."""
    try:
        tables = read_tables({name: data for name, data in files.data.items() if is_table(name) or is_dump(name)})
        windows = ecams_of(tables)
    except BadMachine as e:
        raise BadMachine(f"{files.where / str(e)}") from e
    log.ecams += [w for w in windows if all(w.segment != other.segment for other in log.ecams)]
    for signature, address in tables.addresses.items():
        log.tables.setdefault(signature, (address, len(tables.data[signature])))
    return tables


def _source(files: _Files) -> str:
    """The first line of SOURCE.txt."""
    return files.text("SOURCE.txt").split("\n")[0].strip()


def _choose_map(files: _Files, logs: dict[str, KernelLog]) -> tuple[str, LoggedMap, tuple[str, ...]]:
    """The best map of all files with its file's name: a whole one, else the one with most entries; and what was done to it."""
    maps = [(name, log.map) for name, log in logs.items() if log.map]
    if not maps:
        raise BadMachine(f"{files.where}: {', '.join(logs)}: {NO_MAP}")
    name, best = max(maps, key=lambda pair: (pair[1].whole, len(pair[1].entries)))
    notes = []
    differing = [other for other, found in maps if set(found.entries) != set(best.entries)]
    if differing:
        notes.append(f"The memory map of {', '.join(differing)} differs from that of {name}, which was used.")
    if "bv.log" in files.data:
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


def _add_units(files: _Files, log: KernelLog) -> None:
    """Takes registers from `iommu.txt` for units of which the log does not print them."""
    told = parse_log(files.text("iommu.txt"))
    log.amd |= told.amd
    for base, unit in told.units.items():
        known = log.unit(base)
        if known.cap is None or known.ecap is None:
            known.version, known.cap, known.ecap = unit.version, unit.cap, unit.ecap


def _add_registers(files: _Files, log: KernelLog) -> tuple[str, ...]:
    """Takes the unit of `registers.txt`, where the log has none."""
    m = _REGISTERS.search(files.text("registers.txt"))
    if not m or log.units:
        return ()
    log.units[_Q35_UNIT] = LoggedUnit(_Q35_UNIT, 1, int(m[1], 16), int(m[2], 16), int(m[3], 16))
    return (f"registers.txt does not say where the unit is: it is at {_Q35_UNIT:#x} with INCLUDE_PCI_ALL, as QEMU has it.",)
