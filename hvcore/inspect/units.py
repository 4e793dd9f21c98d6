"""Remapping units: their registers decoded, and the devices they cover."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..spec import vtd
from ..spec.bits import Register
from ..spec.pci import format_bdf
from . import format as show
from .reader import UnitReader
from .records import Column, Record, Records

__all__ = ["RegisterValue", "Unit", "UnitDetail", "read_register", "read_registers", "read_unit", "read_units"]


@dataclass(frozen=True, slots=True, repr=False)
class RegisterValue(Record):
    """One register: its name, offset in the unit's page, raw value, and the fields that are not zero in words."""

    name: str
    offset: int
    width: int
    value: int
    fields: str
    section: str

    title = "Registers"
    legend = "offsets and values in hex; fields that are 0 are left out; section of the VT-d specification"
    columns = (
        Column("name", lambda r: r.name), Column("offset", lambda r: r.offset, show.address, True),
        Column("value", lambda r: r.value, show.address, True), Column("fields", lambda r: r.fields),
        Column("section", lambda r: r.section),
    )


@dataclass(frozen=True, slots=True, repr=False)
class UnitDetail(Record):
    """One thing a unit can do or does, and the register field that says so."""

    what: str
    value: str
    field: str

    title = "Unit"
    legend = "field: where it stands"
    columns = (Column("what", lambda d: d.what), Column("value", lambda d: d.value), Column("field", lambda d: d.field))


@dataclass(frozen=True, slots=True, repr=False)
class Unit(Record):
    """One remapping unit as its registers are.

    `base` is the host-physical register base; `devices` the requester ids that it covers by the DMAR table's scopes, those included that a
    bridge puts in place of the devices' own; `ver` the version register, `haw` the table's host address width in bits, `latched` what SRTP
    took from RTADDR, each None where not known.
    """

    base: int
    segment: int
    include_all: bool
    cap: int
    ecap: int
    gsts: int
    rtaddr: int
    devices: tuple[int, ...]
    ver: int | None = None
    haw: int | None = None
    latched: int | None = None

    title = "Remapping units"
    legend = "register base and root table host-physical; widths in bits"
    columns = (
        Column("base", lambda u: u.base, show.address, True), Column("segment", lambda u: u.segment, right=True),
        Column("include_all", lambda u: u.include_all, show.yes_no), Column("translation", lambda u: "on" if u.translating else "off"),
        Column("root_table", lambda u: u.root_table, show.address, True), Column("interrupts", lambda u: u.interrupts),
        Column("mgaw", lambda u: u.mgaw, right=True), Column("haw", lambda u: u.haw, right=True),
        Column("levels", lambda u: " ".join(map(str, u.levels))), Column("superpages", lambda u: " ".join(u.superpages)),
        Column("gsts", lambda u: u.gsts, show.address, True), Column("cap", lambda u: u.cap, show.address, True),
        Column("ecap", lambda u: u.ecap, show.address, True),
        Column("devices", lambda u: tuple(map(format_bdf, u.devices)), show.devices),
    )

    @property
    def translating(self) -> bool:
        """GSTS.TES: whether requests are translated at all."""
        return bool(vtd.GSTS.get(self.gsts, "TES"))

    @property
    def root_table(self) -> int | None:
        """Host-physical root table that walks start from; None where none was set (GSTS.RTPS clear) and none is used."""
        if vtd.GSTS.get(self.gsts, "RTPS"):
            return self.root & vtd.RTADDR["RTA"].mask
        return 0 if self.translating else None

    @property
    def root(self) -> int:
        """The root-table register as walks use it: what was latched, where that is known, whatever software wrote to RTADDR since."""
        return self.rtaddr if self.latched is None else self.latched

    @property
    def legacy(self) -> bool:
        """Whether the root-table register's TTM says legacy mode, the only one that is decoded."""
        return not vtd.RTADDR.get(self.root, "TTM")

    @property
    def mgaw(self) -> int:
        """Bits of the widest input address."""
        return vtd.mgaw(self.cap)

    @property
    def levels(self) -> tuple[int, ...]:
        """Depths of table that the unit walks."""
        return vtd.sagaw_levels(self.cap)

    @property
    def superpages(self) -> tuple[str, ...]:
        """Leaf sizes above 4 KiB that the unit takes: `2M`, `1G`."""
        return tuple(vtd.PAGE_SIZE_NAMES[level] for level in vtd.leaf_levels(self.cap)[1:])

    @property
    def interrupts(self) -> str:
        """What becomes of devices' messages: `remapped` or `not remapped` (GSTS.IRES); `-` where ECAP.IR says that the unit cannot."""
        return _on_off(self, "IR", "IRES", "remapped", "not remapped")

    @property
    def queue(self) -> str:
        """Queued invalidation: `on` or `off` (GSTS.QIES); `-` where ECAP.QI says that the unit has none."""
        return _on_off(self, "QI", "QIES", "on", "off")

    @property
    def caching_mode(self) -> bool:
        """CAP.CM: whether the unit may cache what is not present."""
        return bool(vtd.CAP.get(self.cap, "CM"))

    @property
    def version(self) -> str | None:
        """`1.0`; None where not known."""
        return None if self.ver is None else f"{vtd.VER.get(self.ver, 'MAJOR')}.{vtd.VER.get(self.ver, 'MINOR')}"

    @property
    def details(self) -> Records[UnitDetail]:
        """All of it in words, with the fields that say so."""
        rows = [UnitDetail(what, show.plain(value(self)), field) for what, field, value in _DETAILS]
        return Records(UnitDetail, rows, title=f"Unit at {self.base:#x}")

    def to_json(self) -> dict[str, Any]:
        """Raw registers as integers, devices as strings."""
        return {"base": self.base, "segment": self.segment, "include_all": self.include_all, "cap": self.cap, "ecap": self.ecap,
                "gsts": self.gsts, "rtaddr": self.rtaddr, "devices": [format_bdf(d) for d in self.devices]}


def _on_off(unit: Unit, can: str, does: str, on: str, off: str) -> str:
    if not vtd.ECAP.get(unit.ecap, can):
        return "-"
    return on if vtd.GSTS.get(unit.gsts, does) else off


def _cap(name: str) -> Callable[[Unit], str]:
    return lambda u: show.yes_no(vtd.CAP.get(u.cap, name))


def _ecap(name: str) -> Callable[[Unit], str]:
    return lambda u: show.yes_no(vtd.ECAP.get(u.ecap, name))


_DETAILS: tuple[tuple[str, str, Callable[[Unit], object]], ...] = (
    ("version", "VER", lambda u: u.version),
    ("host address width", "DMAR", lambda u: u.haw and f"{u.haw} bits"),
    ("input address width", "CAP.MGAW", lambda u: f"{u.mgaw} bits"),
    ("levels of tables", "CAP.SAGAW", lambda u: " or ".join(map(str, u.levels))),
    ("superpages", "CAP.SLLPS", lambda u: " ".join(u.superpages) or "none"),
    ("domain ids", "CAP.ND", lambda u: vtd.ndoms(u.cap)),
    ("fault records", "CAP.NFR", lambda u: vtd.frcd_count(u.cap)),
    ("caching mode", "CAP.CM", lambda u: show.yes_no(u.caching_mode)),
    ("write buffer to be flushed", "CAP.RWBF", _cap("RWBF")),
    ("page invalidation", "CAP.PSI", _cap("PSI")),
    ("zero-length reads", "CAP.ZLR", _cap("ZLR")),
    ("protected low memory", "CAP.PLMR", _cap("PLMR")),
    ("protected high memory", "CAP.PHMR", _cap("PHMR")),
    ("walks snoop caches", "ECAP.C", _ecap("C")),
    ("pass-through", "ECAP.PT", _ecap("PT")),
    ("snoop control", "ECAP.SC", _ecap("SC")),
    ("device-TLBs", "ECAP.DT", _ecap("DT")),
    ("scalable mode", "ECAP.SMTS", _ecap("SMTS")),
    ("x2APIC interrupts", "ECAP.EIM", _ecap("EIM")),
    ("translation", "GSTS.TES", lambda u: "on" if u.translating else "off"),
    ("root table", "RTADDR.RTA", lambda u: show.address(u.root_table) or "none"),
    ("written since, not latched", "RTADDR", lambda u: "" if u.root == u.rtaddr else show.address(u.rtaddr)),
    ("table mode", "RTADDR.TTM", lambda u: "legacy" if u.legacy else "not legacy"),
    ("queued invalidation", "GSTS.QIES", lambda u: u.queue),
    ("messages", "GSTS.IRES", lambda u: u.interrupts),
    ("compatibility interrupts", "GSTS.CFIS", lambda u: show.yes_no(vtd.GSTS.get(u.gsts, "CFIS"))),
)
"""What is told of a unit, the field that says so, how it is read."""


def _declared(unit: UnitReader) -> tuple[Register, ...]:
    return vtd.registers(unit.description.cap, unit.description.ecap)


def read_register(unit: UnitReader, name: str) -> int:
    """A register by its name in the specification, without side effects."""
    register = next(r for r in _declared(unit) if r.name == name)
    return unit.peek(register.offset, register.size)


def read_registers(unit: UnitReader) -> Records[RegisterValue]:
    """Every register of a unit, by offset."""
    values = [(r, unit.peek(r.offset, r.size)) for r in _declared(unit)]
    rows = (RegisterValue(r.name, r.offset, r.width, value, _fields(r, value), r.section) for r, value in values)
    return Records(RegisterValue, rows, title=f"Registers of the unit at {unit.description.base:#x}")


def _fields(register: Register, value: int) -> str:
    if register.layout is None:
        return ""
    return " ".join(f"{name}={v:#x}" if v > 9 else f"{name}={v}" for name, v in register.layout.decode(value).items() if v)


def read_unit(unit: UnitReader, devices: Iterable[int] = (), haw: int | None = None) -> Unit:
    """One unit's record; `devices` are the requester ids that its scopes cover, `haw` the platform's host address width in bits.

    No register tells what SRTP latched; a unit that can be asked has it as `root`.
    """
    d = unit.description
    return Unit(d.base, d.segment, d.include_all, read_register(unit, "CAP"), read_register(unit, "ECAP"), read_register(unit, "GSTS"),
                read_register(unit, "RTADDR"), tuple(devices), read_register(unit, "VER"), haw, getattr(unit, "root", None))


def read_units(units: Iterable[UnitReader], devices_of: Callable[[int], Iterable[int]] | None = None, haw: int | None = None) -> Records[
        Unit]:
    """All units in the order given; `devices_of(base)` are the requester ids that the unit with that register base covers."""
    return Records(Unit, [read_unit(u, devices_of(u.description.base) if devices_of else (), haw) for u in units])
