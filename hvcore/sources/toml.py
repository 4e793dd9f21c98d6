r"""Machines as TOML.  Numbers are best hexadecimal; ranges are half-open; sizes are bytes or text like "16 GiB"; every key is optional
that is not said to be needed.

    name = "example"                          # the file's name
    source = "made up"
    ram = "6 GiB"                             # DRAM; without e820 a map like SeaBIOS's is made for it
    tolud = 0x8000_0000                       # top of low DRAM; the rest starts at 4 GiB
    ram_runs = [[0x0, 0x8000_0000]]           # or DRAM's ranges themselves
    acpi_address = 0x7ffe_0000                # where firmware keeps its tables
    e820 = [                                  # firmware's map: usable, reserved, ACPI data, ACPI NVS, unusable, or a type's number
        [0x0, 0x9fc00, "usable"],
    ]

    [ecam]                                    # configuration window: base (needed), first and last bus
    base = 0xb000_0000

    [[segment]]                               # another PCI segment: number (needed), and its configuration window as above
    number = 1
    base = 0xc000_0000

    [dmar]                                    # the table's header: host_address_width, flags, revision, oem_id, oem_table_id, oem_revision,
    host_address_width = 39                   # creator_id, creator_revision; or instead of all this and the structures: dmar = "file.dat"

    [[unit]]                                  # a remapping unit, in the table's order; base (needed), segment, version, size
    base = 0xfed9_0000                        # with dmar = "file.dat" only base, cap, ecap and version: registers of the unit there
    cap = 0xd2_008c_2226_0206
    ecap = 0xf42
    include_all = false
    scopes = ["ioapic 0 ff:00.0", "endpoint 00:02.0", "bridge 00:1c.0", "endpoint 00:1c.0/00.0", "hpet 0 00:1f.0", "namespace 1 00:15.0"]

    [[rmrr]]                                  # reserved memory: start, end (needed), segment, scopes
    start = 0x7b80_0000
    end = 0x8000_0000
    scopes = ["endpoint 00:02.0"]

    [[atsr]]                                  # root ports with ATS: all_ports, segment, scopes
    [[rhsa]]                                  # proximity_domain (needed) of the unit at base (needed)

    [[pci]]                                   # a function: at, id, class (needed); revision, subsystem = "1af4:1100"
    at = "00:02.0"                            # or "0001:00:02.0" in segment 1
    id = "1b36:0010"
    class = 0x010802                          # class, subclass, interface: a class 0108 is an NVMe controller, id 1234:11e8 the edu device
    buses = [1, 1]                            # of a bridge: secondary and subordinate bus
    pcie = true                               # whether it has a PCI Express capability; a bridge without one is a conventional PCI bridge
    port_type = "root port"                   # what the capability says: endpoint, legacy endpoint, root port, upstream port, downstream
                                              # port, pcie to pci bridge, pci to pcie bridge, integrated endpoint, event collector; left
                                              # out, a bridge of a root bus is a root port, others are switch ports, and what lies on a
                                              # conventional bus has no capability
    bars = [{ index = 0, kind = "mem64", size = "16 KiB", address = 0xfebf_0000, prefetchable = false }]   # kind: mem32, mem64, io

    [disk]                                    # what the NVMe controllers hold: size and seed of made-up content, or image = "file"
    size = "64 MiB"

A machine without a [[unit]] and without dmar has no VT-d.  A function that every machine needs and that is not listed is added, and
`assumptions` says so.
"""

import re
import tomllib
from collections.abc import Container, Sequence
from pathlib import Path

from ..errors import BadMachine, BadTable, quoted
from ..machine.description import BarDescription, DiskDescription, EcamDescription, MachineDescription, PciDescription
from ..machine.memory import LIMIT, PAGE
from ..spec.dmar import Atsr, Dmar, Drhd, Rhsa, Rmrr, Scope, ScopeType, Structure, build, parse
from ..spec.e820 import E820Entry, E820Type, type_name
from ..spec.pci import PortType, parse_bdf
from .dmar_lines import check_units, units_of
from .files import read_table
from .kernel_log import LoggedUnit, read_text
from .located import located
from .memory_map import FOUR_GIB, Range, acpi_place, check_bootable, check_e820, dram_runs, free_ecam, guess_ecam, overlaps
from .pci_tree import complete, place_bars
from .toml_reader import Reader

__all__ = ["load_toml"]

_MACHINE = ("name", "source", "ram", "tolud", "ram_runs", "acpi_address", "e820", "ecam", "segment", "dmar", "unit", "rmrr", "atsr",
            "rhsa", "pci", "disk")
_DMAR = ("host_address_width", "flags", "revision", "oem_id", "oem_table_id", "oem_revision", "creator_id", "creator_revision")
_UNIT = ("base", "cap", "ecap", "version", "include_all", "segment", "size", "scopes")
_REGISTERS = ("base", "cap", "ecap", "version")
_RMRR, _ATSR, _RHSA = ("start", "end", "segment", "scopes"), ("all_ports", "segment", "scopes"), ("base", "proximity_domain")
_PCI = ("at", "id", "class", "revision", "subsystem", "pcie", "port_type", "buses", "bars")
_ECAM = ("base", "first", "last")
_BAR = ("index", "kind", "size", "address", "prefetchable")
_TYPES = {type_name(t): int(t) for t in E820Type}
_SCOPES = {kind.name.lower(): kind for kind in ScopeType}
_PORT_TYPES = {kind.name.lower().replace("_", " "): kind for kind in PortType}
_BRIDGES = range(PortType.ROOT_PORT, PortType.PCI_TO_PCIE_BRIDGE + 1)
"""Port types of bridges."""
_U16, _U32 = 0xFFFF, 0xFFFFFFFF


def load_toml(path: Path) -> MachineDescription:
    """The machine of a TOML file.  Raises `BadMachine` naming file and key."""
    try:
        values = tomllib.loads(read_text(path))
    except ValueError as e:
        raise BadMachine(f"{path}: not TOML: {e}") from e
    except RecursionError as e:
        raise BadMachine(f"{path}: not TOML: its arrays or tables are nested too deeply") from e
    return _describe(Reader(values, path, "", _MACHINE))


def _describe(root: Reader) -> MachineDescription:
    e820 = _e820(root)
    with located(root.path):
        check_bootable(e820)
    ecam = _ecam(root) or guess_ecam(e820)
    table, raw = _dmar(root)
    units, notes = units_of(table, _registers(root)) if table else ((), ())
    with located(root.path):
        check_units(units, [(e.start, e.end) for e in e820 if e.usable])
    registers = [(u.base, u.base + PAGE) for u in units]
    others = _segments(root)
    window = [(e.base, e.base + e.size) for e in (*([ecam] if ecam else []), *others)]
    runs = _runs(root, e820, [*registers, *window])
    _check_apart(root, runs, registers, window)
    listed = _functions(root, {0, *(e.segment for e in others)})
    with located(root.path):
        functions, tree_notes = complete(listed, table, segments=[e.segment for e in others])
    functions, moved = place_bars(functions, [*runs, *registers, *window])
    if moved:
        root.fail("pci", f"no window can be where these are: {', '.join(moved)}; move them, or leave out their addresses")
    ecam = ecam or free_ecam([*runs, *registers, *((e.start, e.end) for e in e820)], runs[0][1])
    acpi, acpi_note = _acpi(root, e820, runs, table)
    width = table.host_address_width if table else max(39, (runs[-1][1] - 1).bit_length())
    return MachineDescription(root.text("name", root.path.stem), e820, runs, acpi, raw, units, functions, ecam, _disk(root), width,
                              root.text("source", ""), (*notes, *tree_notes, *acpi_note), others)


def _e820(root: Reader) -> tuple[E820Entry, ...]:
    """The map as given, or one like SeaBIOS's for `ram`."""
    if "e820" not in root:
        return _made_map(root)
    entries = [_entry(root, f"e820[{i}]", value) for i, value in enumerate(root.array("e820"))]
    with located(root.path):
        flat, notes = check_e820(entries, [f"e820[{i}]" for i in range(len(entries))])
    if notes:
        root.fail("e820", " ".join(notes))
    return flat


def _entry(root: Reader, key: str, value: object) -> E820Entry:
    if not isinstance(value, list) or len(value) != 3:
        root.fail(key, f"{quoted(value)} is not [start, end, \"type\"]")
    start, end, kind = value
    number = _TYPES.get(kind) if isinstance(kind, str) else root.number(key, kind, 1, _U32)
    if number is None:
        root.fail(key, f"{quoted(kind)} is no type: there are {', '.join(_TYPES)}, and numbers")
    return E820Entry(root.number(key, start), root.number(key, end, high=1 << 64), number)


def _made_map(root: Reader) -> tuple[E820Entry, ...]:
    """What SeaBIOS reports on a q35: firmware's last 164 KiB of low RAM reserved, the configuration window where [ecam] puts it."""
    if "ram" not in root:
        root.fail("", "needs e820, or ram to make a map for")
    ram = root.bytes_of("ram")
    top = _tolud(root) or min(ram, 2 << 30)
    ecam = _ecam(root)
    entries = [E820Entry(0, 0x9FC00, 1), E820Entry(0x9FC00, 0xA0000, 2), E820Entry(0xF0000, 0x100000, 2),
               E820Entry(0x100000, max(top - 0x29000, 0x100000), 1), E820Entry(max(top - 0x29000, 0x100000), top, 2)]
    entries += [E820Entry(ecam.base, ecam.base + ecam.size, 2)] if ecam else []
    entries += [E820Entry(FOUR_GIB, FOUR_GIB + ram - top, 1)] if ram > top else []
    with located(root.path):
        flat, notes = check_e820(entries)
    if notes or ram < top:
        root.fail("ram", f"{ram:#x} bytes with low RAM up to {top:#x} do not give a map: {' '.join(notes) or 'tolud is larger'}")
    return flat


def _tolud(root: Reader) -> int | None:
    if "tolud" not in root:
        return None
    top = root.integer("tolud", high=0xFEC00000)
    if top % PAGE:
        root.fail("tolud", f"{top:#x} is no multiple of {PAGE}")
    return top


def _runs(root: Reader, e820: Sequence[E820Entry], blocked: Sequence[Range]) -> tuple[Range, ...]:
    """Where DRAM is: as said, or as the map tells."""
    top = _tolud(root)
    if "ram_runs" in root:
        runs = _given_runs(root)
    elif top is not None and "ram" in root:
        ram = root.bytes_of("ram")
        runs = ((0, min(top, ram)), *([(FOUR_GIB, FOUR_GIB + ram - top)] if ram > top else []))
    else:
        with located(root.path):
            derived = dram_runs(e820, blocked)
        runs = ((0, top), *derived[1:]) if top is not None else derived
    if runs[-1][1] > LIMIT:
        root.fail("ram", f"RAM ends at {runs[-1][1]:#x}, beyond the {LIMIT >> 40} TiB that hvlab emulates")
    for e in e820:
        if e.usable and not any(start <= e.start and e.end <= end for start, end in runs):
            root.fail("e820", f"{e} is not all inside DRAM, which is {_said(runs)}")
    total = sum(end - start for start, end in runs)
    if "ram" in root and root.bytes_of("ram") != total:
        root.fail("ram", f"{root.bytes_of('ram'):#x} bytes, but DRAM is {_said(runs)}, {total:#x} bytes: correct ram, e820 or tolud")
    return runs


def _given_runs(root: Reader) -> tuple[Range, ...]:
    runs: list[Range] = []
    for i, value in enumerate(root.array("ram_runs")):
        key = f"ram_runs[{i}]"
        if not isinstance(value, list) or len(value) != 2:
            root.fail(key, f"{quoted(value)} is not [start, end]")
        start, end = root.number(key, value[0]), root.number(key, value[1])
        if start % PAGE or end % PAGE or start >= end or (runs and start < runs[-1][1]):
            root.fail(key, f"[{start:#x}, {end:#x}) must be whole pages, start before end, after the run before it")
        runs.append((start, end))
    if not runs or runs[0][0] or runs[0][1] > FOUR_GIB:
        root.fail("ram_runs", "the first run must start at 0 and end below 4 GiB")
    return tuple(runs)


def _said(runs: Sequence[Range]) -> str:
    return ", ".join(f"[{start:#x}, {end:#x})" for start, end in runs)


def _check_apart(root: Reader, runs: Sequence[Range], registers: Sequence[Range], window: Sequence[Range]) -> None:
    """RAM, units' registers and configuration window must not overlap."""
    for key, span in [*(("ecam", w) for w in window), *(("unit", r) for r in registers)]:
        hit = next((r for r in (*runs, *window) if overlaps(span, r) and r is not span), None)
        if hit:
            root.fail(key, f"[{span[0]:#x}, {span[1]:#x}) overlaps [{hit[0]:#x}, {hit[1]:#x}), which is {'RAM' if hit in runs else 'ecam'}")


def _ecam(root: Reader) -> EcamDescription | None:
    if "ecam" not in root:
        return None
    return _window(root.table("ecam", _ECAM), 0)


def _segments(root: Reader) -> tuple[EcamDescription, ...]:
    """The configuration windows of the segments besides 0."""
    found: dict[int, EcamDescription] = {}
    for table in root.tables("segment", ("number", *_ECAM)):
        number = table.integer("number", low=1, high=_U16)
        if number in found:
            table.fail("number", f"segment {number} is there twice")
        found[number] = _window(table, number)
    return tuple(found.values())


def _window(table: Reader, segment: int) -> EcamDescription:
    base, first, last = table.integer("base", high=_U32), table.integer("first", 0, high=255), table.integer("last", 255, high=255)
    if base % (1 << 20) or first > last or base + (last - first + 1 << 20) > 0xFEC00000:
        table.fail("base", f"{base:#x} with buses {first}-{last} must start at a multiple of 1 MiB and end below 0xfec00000")
    return EcamDescription(base, first, last, segment)


def _dmar(root: Reader) -> tuple[Dmar | None, bytes | None]:
    """The table and its bytes: of a file, or built from the structures."""
    if isinstance(root.values.get("dmar"), str):
        for key in ("rmrr", "atsr", "rhsa"):
            if key in root:
                root.fail(key, f"dmar = {quoted(root.text('dmar'))} already says it all: leave one out")
        file = root.path.parent / root.text("dmar")
        with located(f"{root.path}: dmar"):
            raw = read_table(file)
        with located(file):
            return parse(raw), raw
    if "unit" not in root:
        return None, None
    table = _table(root)
    try:
        return table, build(table)
    except BadTable as e:
        root.fail("dmar", str(e))


def _table(root: Reader) -> Dmar:
    header = root.table("dmar", _DMAR)
    structures: list[Structure] = [
        Drhd(int(u.flag("include_all")), u.integer("size", 0, high=15), u.integer("segment", 0, high=_U16), u.integer("base"), _scopes(u))
        for u in root.tables("unit", _UNIT)]
    structures += [_rmrr(r) for r in root.tables("rmrr", _RMRR)]
    structures += [Atsr(int(a.flag("all_ports")), a.integer("segment", 0, high=_U16), _scopes(a)) for a in root.tables("atsr", _ATSR)]
    structures += [Rhsa(r.integer("base"), r.integer("proximity_domain", high=_U32)) for r in root.tables("rhsa", _RHSA)]
    return Dmar(header.integer("host_address_width", 39, 1, 64), header.integer("flags", 0, high=255), tuple(structures),
                header.integer("revision", 1, high=255), _name(header, "oem_id", 6), _name(header, "oem_table_id", 8),
                header.integer("oem_revision", 1, high=_U32), _name(header, "creator_id", 4, "HVLB"),
                header.integer("creator_revision", 1, high=_U32))


def _name(header: Reader, key: str, length: int, default: str = "HVLAB") -> bytes:
    """A name of the table's header, padded with spaces."""
    text = header.text(key, default)
    if len(text) > length or not text.isascii():
        header.fail(key, f"{quoted(text)} is not up to {length} ASCII characters")
    return text.encode().ljust(length)


def _rmrr(table: Reader) -> Rmrr:
    start, end = table.integer("start"), table.integer("end")
    if end <= start:
        table.fail("end", f"{end:#x} is not above start, {start:#x}")
    return Rmrr(table.integer("segment", 0, high=_U16), start, end - 1, _scopes(table))


def _scopes(table: Reader) -> tuple[Scope, ...]:
    return tuple(_scope(table, f"scopes[{i}]", value) for i, value in enumerate(table.array("scopes")))


_SCOPE = re.compile(rf"({'|'.join(_SCOPES)})(?: (\d{{1,3}}))? ([0-9a-fA-F]{{2}}:[0-9a-fA-F]{{2}}\.[0-7])((?:/[0-9a-fA-F]{{2}}\.[0-7])*)")


def _scope(table: Reader, key: str, value: object) -> Scope:
    """`endpoint 00:1c.0/00.0`, `ioapic 2 f0:1f.0`: what it is, its number if it has one, bus and path."""
    m = _SCOPE.fullmatch(value) if isinstance(value, str) else None
    if not m or int(m[2] or "0") > 255:
        table.fail(key, f"{quoted(value)} is no scope like \"endpoint 00:1c.0/00.0\" or \"ioapic 2 f0:1f.0\"; "
                        f"there are {', '.join(_SCOPES)}")
    steps = [m[3].split(":")[1], *m[4].split("/")[1:]]
    path = tuple((int(step[:2], 16), int(step[3])) for step in steps)
    return Scope(_SCOPES[m[1]], int(m[2] or "0"), int(m[3][:2], 16), path)


def _registers(root: Reader) -> dict[int, LoggedUnit]:
    """The registers that [[unit]] gives, by base."""
    known = _REGISTERS if isinstance(root.values.get("dmar"), str) else _UNIT
    units = {}
    for u in root.tables("unit", known):
        cap, ecap = (u.integer(key) if key in u else None for key in ("cap", "ecap"))
        units[u.integer("base")] = LoggedUnit(u.integer("base"), version=u.integer("version", 0x10, high=255), cap=cap, ecap=ecap)
    return units


def _functions(root: Reader, segments: Container[int]) -> list[PciDescription]:
    found: dict[tuple[int, int], PciDescription] = {}
    for table in root.tables("pci", _PCI):
        function = _function(table)
        key = function.segment, function.source
        if key in found:
            table.fail("at", f"{table.text('at')} is there twice")
        if function.segment not in segments:
            table.fail("at", f"PCI segment {function.segment} is not there: add a [[segment]] with its number and configuration window")
        found[key] = function
    return list(found.values())


def _function(table: Reader) -> PciDescription:
    try:
        segment, source = parse_bdf(table.text("at"))
    except ValueError as e:
        table.fail("at", str(e))
    vendor, device = _pair(table, "id", table.text("id"))
    secondary, subordinate = _buses(table, source)
    subsystem = _pair(table, "subsystem", table.text("subsystem", "0000:0000"))
    return PciDescription(source, vendor, device, table.integer("class", high=0xFFFFFF), "bridge" if secondary else "stub", segment,
                          revision=table.integer("revision", 0, high=255), subsystem=subsystem,
                          bars=tuple(_bar(b) for b in table.tables("bars", _BAR)), secondary=secondary, subordinate=subordinate,
                          pcie=table.flag("pcie", True), port_type=_port_type(table, bool(secondary)))


def _port_type(table: Reader, bridge: bool) -> PortType | None:
    """The type in the PCI Express capability; None where it is left to the place."""
    if "port_type" not in table:
        return None
    name = table.text("port_type")
    kind = _PORT_TYPES.get(name)
    if kind is None:
        table.fail("port_type", f"{quoted(name)} is none of {', '.join(_PORT_TYPES)}")
    if not table.flag("pcie", True):
        table.fail("port_type", "pcie = false says that there is no PCI Express capability: leave one out")
    if (kind in _BRIDGES) != bridge:
        table.fail("port_type", f"{quoted(name)} is {'a bridge, it needs buses' if kind in _BRIDGES else 'no bridge, but has buses'}")
    return kind


def _pair(table: Reader, key: str, text: str) -> tuple[int, int]:
    """`1b36:0010`."""
    try:
        first, second = (int(part, 16) for part in text.split(":"))
    except ValueError:
        first = second = -1
    if not (0 <= first <= _U16 and 0 <= second <= _U16):
        table.fail(key, f"{quoted(text)} is no pair of numbers like 1b36:0010")
    return first, second


def _buses(table: Reader, source: int) -> tuple[int, int]:
    """Secondary and subordinate bus of a bridge; (0, 0) for what is none."""
    values = table.array("buses")
    if not values:
        return 0, 0
    numbers = [table.number("buses", v, 1, 255) for v in values]
    if len(numbers) != 2 or not source >> 8 < numbers[0] <= numbers[1]:
        table.fail("buses", f"{quoted(values)} is not [secondary, subordinate] above the bridge's own bus")
    return numbers[0], numbers[1]


def _bar(table: Reader) -> BarDescription:
    index, kind, length = table.integer("index", high=5), table.text("kind"), table.bytes_of("size")
    if kind not in ("mem32", "mem64", "io"):
        table.fail("kind", f"{quoted(kind)} is none of mem32, mem64, io")
    if length & (length - 1) or length < (4 if kind == "io" else 16) or (kind != "mem64" and length > 1 << 31):
        table.fail("size", f"{length:#x} is no size of a window: a power of two, 16 or more")
    if kind == "mem64" and index == 5:
        table.fail("index", "a 64-bit window takes two registers, 5 is the last")
    address = table.integer("address") if "address" in table else None
    return BarDescription(index, kind, length, address, table.flag("prefetchable"))


def _acpi(root: Reader, e820: Sequence[E820Entry], runs: Sequence[Range], table: Dmar | None) -> tuple[int, tuple[str, ...]]:
    if "acpi_address" not in root:
        place, note = acpi_place(e820, runs, [(r.base, r.end) for r in table.rmrrs] if table else [], None)
        return place, (note,) if note else ()
    place = root.integer("acpi_address", high=_U32)
    if place % PAGE or not any(start <= place < end for start, end in runs):
        root.fail("acpi_address", f"{place:#x} is no page of RAM")
    return place, ()


def _disk(root: Reader) -> DiskDescription:
    """The disk's content; whether an image can be opened shows when the machine is built."""
    table = root.table("disk", ("size", "seed", "image"))
    if "image" in table:
        return DiskDescription(image=str(root.path.parent / table.text("image")))
    length = table.bytes_of("size", DiskDescription().size)
    if not length or length % 512:
        table.fail("size", f"{length} bytes are no whole number of 512-byte blocks")
    return DiskDescription(length, table.integer("seed", 1))
