"""The DMAR table as it lies in memory: its structures, what their scopes lead to, and what is odd about them (VT-d, section 8)."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..errors import BadTable, Unreadable
from ..spec import acpi
from ..spec.dmar import Andd, Atsr, Dmar, DmarFlag, Drhd, Rhsa, Rmrr, Satc, Scope, ScopeType, Sidp, Structure, Unknown, parse
from ..spec.e820 import E820Entry
from ..spec.pci import CLASS, DEVICE_ID, HEADER_TYPE, SECONDARY_BUS, VENDOR_ID, bdf, class_name, format_bdf
from . import format as show
from .dmarcheck import Checks
from .records import Column, Record, Records

__all__ = ["ConfigSpace", "DmarScope", "DmarStructure", "DmarTable", "read_dmar", "resolve"]

_SHOWN = 8
_SIGNATURE = b"DMAR"
_SCOPE_TYPES: dict[int, str] = {ScopeType.ENDPOINT: "endpoint", ScopeType.BRIDGE: "bridge", ScopeType.IOAPIC: "IOAPIC",
                                ScopeType.HPET: "HPET", ScopeType.NAMESPACE: "namespace device"}
_ENUMERATED = (ScopeType.IOAPIC, ScopeType.HPET, ScopeType.NAMESPACE)
_NAMES: dict[type, str] = {Drhd: "DRHD", Rmrr: "RMRR", Atsr: "ATSR", Rhsa: "RHSA", Andd: "ANDD", Satc: "SATC", Sidp: "SIDP"}
_FLAGS: dict[type, str] = {Drhd: "INCLUDE_PCI_ALL", Atsr: "ALL_PORTS", Satc: "ATC_REQUIRED"}
"""Bit 0 of the flags of structures that have some."""

Requester = Callable[[int, int], int]


class ConfigSpace(Protocol):
    """Configuration space that can be read without side effects; all ones where there is no function."""

    def config_read(self, segment: int, source: int, offset: int, width: int, /) -> int:
        """`width` bytes at `offset` of function `source`."""
        ...


@dataclass(frozen=True, slots=True, repr=False)
class DmarScope(Record):
    """One device scope of a structure.

    `source` is the requester id that its path leads to, None where it leads nowhere or nothing is known of the bridges on the way;
    `device` what is there: identity and class of a function, the ACPI path of a namespace device.
    """

    structure: str
    scope: Scope
    source: int | None
    device: str | None
    oddities: tuple[str, ...] = ()

    title = "Device scopes"
    legend = "path: start bus, then device.function from bridge to bridge; source: the requester id at its end"
    columns = (
        Column("structure", lambda s: s.structure), Column("type", lambda s: s.type), Column("number", lambda s: s.number, right=True),
        Column("path", lambda s: s.path), Column("source", lambda s: s.source, show.source), Column("device", lambda s: s.device),
        Column("oddities", lambda s: "; ".join(s.oddities)),
    )

    @property
    def type(self) -> str:
        """The scope's type in words."""
        return _SCOPE_TYPES.get(self.scope.type) or f"type {self.scope.type:#x}"

    @property
    def number(self) -> int | None:
        """IOAPIC id, HPET number or ANDD number; None for functions."""
        return self.scope.enumeration_id if self.scope.type in _ENUMERATED else None

    @property
    def path(self) -> str:
        """`00:1c.0/00.0`: start bus and steps, as the table has them."""
        return f"{self.scope.start_bus:02x}:" + "/".join(f"{device:02x}.{function:x}" for device, function in self.scope.path)

    @property
    def short(self) -> str:
        """All in a few words: `endpoint 00:02.0`, `IOAPIC 2 f0:1f.0`, `endpoint 00:1c.0/00.0 -> 01:00.0`."""
        what = self.type if self.number is None else f"{self.type} {self.number}"
        steps = f" -> {format_bdf(self.source)}" if self.source is not None and len(self.scope.path) > 1 else ""
        return f"{what} {self.path}{steps}{' leads nowhere' if 'leads nowhere' in self.oddities else ''}"


@dataclass(frozen=True, slots=True, repr=False)
class DmarStructure(Record):
    """One structure of the table: `raw` is its record, `scopes` its device scopes.

    `firmware` says whether firmware's table has it, `guest` whether a guest that looks for the table finds it; None for bytes alone.
    """

    raw: Structure
    scopes: tuple[DmarScope, ...]
    firmware: bool | None = None
    guest: bool | None = None
    oddities: tuple[str, ...] = ()

    title = "DMAR"
    legend = "ranges half-open, host-physical: a unit's registers, an RMRR's memory; scopes: path -> requester id"
    columns = (
        Column("structure", lambda s: s.structure), Column("segment", lambda s: s.segment, right=True),
        Column("start", lambda s: s.start, show.address, True), Column("end", lambda s: s.end, show.address, True),
        Column("flags", lambda s: s.flags), Column("scopes", lambda s: tuple(x.short for x in s.scopes), lambda v: _listed(v)),
        Column("firmware", lambda s: s.firmware, show.yes_no), Column("guest", lambda s: s.guest, show.yes_no),
        Column("oddities", lambda s: s.all_oddities, lambda v: "; ".join(v) if isinstance(v, tuple) else ""),
    )

    @property
    def structure(self) -> str:
        """`DRHD`, `RMRR`, ..."""
        return _NAMES.get(type(self.raw)) or (f"type {self.raw.type:#x}" if isinstance(self.raw, Unknown) else "")

    @property
    def segment(self) -> int | None:
        """PCI segment; None for what has none."""
        return getattr(self.raw, "segment", None)

    @property
    def start(self) -> int | None:
        """First byte: of the unit's registers, of the reserved memory."""
        return getattr(self.raw, "base", None)

    @property
    def end(self) -> int | None:
        """The byte after the last; None where the structure gives no extent."""
        match self.raw:
            case Drhd(base=base):
                return base + self.raw.register_bytes
            case Rmrr():
                return self.raw.end
        return None

    @property
    def flags(self) -> str:
        """Flags in words, and what else the structure says."""
        match self.raw:
            case Rhsa(proximity_domain=domain):
                return f"proximity domain {domain}"
            case Andd(number=number, path=path):
                return f"device {number}: {path}"
            case Unknown(body=body):
                return f"{len(body)} bytes"
        return _flag_words(getattr(self.raw, "flags", 0), _FLAGS.get(type(self.raw), ""))

    @property
    def all_oddities(self) -> tuple[str, ...]:
        """Its own oddities and its scopes'."""
        return (*self.oddities, *(f"{s.type} {s.path}: {o}" for s in self.scopes for o in s.oddities))

    def to_json(self) -> dict[str, Any]:
        """Addresses as integers; scopes one by one."""
        scopes = [{"type": s.type, "number": s.number, "path": s.path, "device": s.device, "oddities": list(s.oddities),
                   "source": None if s.source is None else format_bdf(s.source)} for s in self.scopes]
        return {"structure": self.structure, "segment": self.segment, "start": self.start, "end": self.end, "flags": self.flags,
                "scopes": scopes, "firmware": self.firmware, "guest": self.guest, "oddities": list(self.oddities)}


class DmarTable(Records[DmarStructure]):
    """The structures in the table's order.

    `table` is the table's record, None where there is none; `address` where it lies (host-physical), None where it was given as bytes;
    `hidden` says whether its signature was cleared, so that a guest does not find it.
    """

    def __init__(self, rows: Iterable[DmarStructure] = (), table: Dmar | None = None, address: int | None = None, hidden: bool = False,
                 note: str = ""):
        self.table, self.address, self.hidden = table, address, hidden
        super().__init__(DmarStructure, rows, note=note)

    @property
    def scopes(self) -> Records[DmarScope]:
        """Every device scope."""
        return Records(DmarScope, [s for row in self for s in row.scopes])


def read_dmar(source: acpi.Reader | bytes, config: ConfigSpace | None = None, e820: Iterable[E820Entry] = (),
              requester: Requester | None = None, firmware: bytes | None = None, told: Iterable[E820Entry] = ()) -> DmarTable:
    """The table given as bytes, or the one that the RSDP in memory leads to, also where its signature was cleared.

    `config` follows scopes through bridges, `e820` is the firmware's map that reserved regions are held against, `requester(segment,
    source)` the id under which a function's DMA reaches a unit, `firmware` the table as firmware laid it; what that has not is held
    against `told`, the map that the guest got, where there is one.  Bytes that are no DMAR raise `BadTable`; of memory the note says
    what is wrong.
    """
    view = _View(config, tuple(e820), requester)
    if isinstance(source, bytes):
        table = parse(source)
        return DmarTable(_rows(view, table, [(i, None, None) for i in range(len(table.structures))]), table, note=_header(table))
    try:
        return _in_memory(view, source, firmware, tuple(told) or view.e820)
    except (BadTable, Unreadable) as e:
        return DmarTable(note=f"The table in memory cannot be read: {e}")


@dataclass(frozen=True, slots=True)
class _View:
    """What the table is looked at with."""

    config: ConfigSpace | None
    e820: tuple[E820Entry, ...]
    requester: Requester | None


def _in_memory(view: _View, reader: acpi.Reader, laid: bytes | None, told: tuple[E820Entry, ...]) -> DmarTable:
    ref = next((r for r in acpi.tables(reader) if r.length is not None and _is_dmar(r.signature)), None)
    if ref is None or ref.length is None:
        return DmarTable(note="There is no DMAR table in memory.")
    hidden = ref.signature != _SIGNATURE.decode()
    table = parse(_SIGNATURE + reader.read(ref.address, ref.length)[4:])
    firmware = _firmware(laid) or table
    shared = Counter(firmware.structures) & Counter(table.structures)
    rows = _rows(view, firmware, [(i, True, there and not hidden) for i, there in _among(firmware, shared)])
    rows += _rows(replace(view, e820=told), table, [(i, False, not hidden) for i, there in _among(table, shared) if not there])
    changed = [] if table == firmware else ["It is not as firmware laid it any more."]
    cleared = ["Its signature is cleared: a guest that looks for it finds none."] if hidden else []
    return DmarTable(rows, table, ref.address, hidden, " ".join([f"At {ref.address:#x}: {_header(table)}", *cleared, *changed]))


def _is_dmar(signature: str | None) -> bool:
    """Whether a signature is `DMAR`, or what is left of it when bytes were cleared."""
    return bool(signature) and all(found in ("\0", letter) for found, letter in zip(signature or "", "DMAR", strict=True))


def _firmware(laid: bytes | None) -> Dmar | None:
    try:
        return parse(laid) if laid else None
    except BadTable:
        return None


def _among(table: Dmar, shared: Counter[Structure]) -> Iterator[tuple[int, bool]]:
    """Each structure's index, and whether it is one of those that both tables have, each counted as often as in both."""
    left = Counter(shared)
    for i, structure in enumerate(table.structures):
        there = left[structure] > 0
        left[structure] -= there
        yield i, there


def _header(table: Dmar) -> str:
    flags = _flag_words(table.flags, *(f.name for f in DmarFlag))
    return f"{table.header}; host address width {table.host_address_width}{f'; {flags}' if flags else ''}."


def _flag_words(flags: int, *names: str) -> str:
    """Flags by the names of their bits from bit 0 on; others in hex."""
    known = [name for bit, name in enumerate(names) if name and flags >> bit & 1]
    rest = flags & ~sum(1 << bit for bit, name in enumerate(names) if name)
    return " ".join([*known, *([f"{rest:#x}"] if rest else [])])


def _listed(values: object) -> str:
    names = list(values) if isinstance(values, Sequence) else []
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _rows(view: _View, table: Dmar, wanted: Iterable[tuple[int, bool | None, bool | None]]) -> list[DmarStructure]:
    """The rows of structures by (index, whether firmware has it, whether a guest finds it)."""
    checks = Checks(table, view.e820, lambda segment, scope: resolve(view.config, segment, scope))
    rows = []
    for index, firmware, guest in wanted:
        structure = table.structures[index]
        scopes = tuple(_scope(view, checks, structure, s) for s in getattr(structure, "scopes", ()))
        rows.append(DmarStructure(structure, scopes, firmware, guest, checks.structure(index)))
    return rows


def _scope(view: _View, checks: Checks, structure: Structure, scope: Scope) -> DmarScope:
    segment = getattr(structure, "segment", 0)
    source = resolve(view.config, segment, scope)
    header = _header_type(view.config, segment, source)
    oddities = tuple(checks.scope(structure, scope, source, header, view.config is not None))
    seen = view.requester(segment, source) if view.requester and source is not None and scope.type == ScopeType.ENDPOINT else source
    if seen is not None and seen != source:
        oddities = (*oddities, f"its DMA arrives as {format_bdf(seen)}")
    base = getattr(structure, "base", None)
    name = _NAMES[type(structure)] + (f" {base:#x}" if base is not None else "")
    return DmarScope(name, scope, source, _device(view.config, checks.table, segment, scope, source), oddities)


def resolve(config: ConfigSpace | None, segment: int, scope: Scope) -> int | None:
    """The requester id at the end of a scope's path, bridge by bridge by the secondary bus numbers in configuration space (section 8.3.1).

    None where a step is no function, or one on the way no bridge, or its buses are not known.
    """
    bus: int | None = scope.start_bus
    source = None
    for device, function in scope.path:
        if bus is None or device > 31 or function > 7:
            return None
        source = bdf(bus, device, function)
        bridge = config is not None and _header_type(config, segment, source) == 1
        bus = config.config_read(segment, source, SECONDARY_BUS, 1) or None if config is not None and bridge else None
    return source


def _header_type(config: ConfigSpace | None, segment: int, source: int | None) -> int | None:
    """A function's header type, 1 for a bridge; None where nothing answers or nothing is known."""
    if config is None or source is None or config.config_read(segment, source, VENDOR_ID, 2) == 0xFFFF:
        return None
    return config.config_read(segment, source, HEADER_TYPE, 1) & 0x7F


def _device(config: ConfigSpace | None, table: Dmar, segment: int, scope: Scope, source: int | None) -> str | None:
    """What a scope names, in words; None where that is not known."""
    if scope.type == ScopeType.NAMESPACE:
        return next((a.path for a in table.andds if a.number == scope.enumeration_id), None)
    if config is None or source is None or _header_type(config, segment, source) is None:
        return None
    vendor, device = (config.config_read(segment, source, offset, 2) for offset in (VENDOR_ID, DEVICE_ID))
    return f"{vendor:04x}:{device:04x} {class_name(config.config_read(segment, source, CLASS - 1, 4) >> 8)}"
