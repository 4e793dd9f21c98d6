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

__all__ = ["RegisterValue", "Unit", "read_register", "read_registers", "read_unit", "read_units"]


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
class Unit(Record):
    """One remapping unit as its registers are.

    `base` is the host-physical register base; `devices` the requester ids that it covers by the DMAR table's scopes.
    """

    base: int
    segment: int
    include_all: bool
    cap: int
    ecap: int
    gsts: int
    rtaddr: int
    devices: tuple[int, ...]

    title = "Remapping units"
    legend = "register base and root table host-physical; widths in bits"
    columns = (
        Column("base", lambda u: u.base, show.address, True), Column("segment", lambda u: u.segment, right=True),
        Column("include_all", lambda u: u.include_all, show.yes_no), Column("translation", lambda u: "on" if u.translating else "off"),
        Column("root_table", lambda u: u.root_table, show.address, True), Column("mgaw", lambda u: u.mgaw, right=True),
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
            return self.rtaddr & vtd.ADDRESS
        return 0 if self.translating else None

    @property
    def legacy(self) -> bool:
        """Whether RTADDR.TTM says legacy mode, the only one that is decoded."""
        return not vtd.RTADDR.get(self.rtaddr, "TTM")

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

    def to_json(self) -> dict[str, Any]:
        """Raw registers as integers, devices as strings."""
        return {"base": self.base, "segment": self.segment, "include_all": self.include_all, "cap": self.cap, "ecap": self.ecap,
                "gsts": self.gsts, "rtaddr": self.rtaddr, "devices": [format_bdf(d) for d in self.devices]}


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


def read_unit(unit: UnitReader, devices: Iterable[int] = ()) -> Unit:
    """One unit's record; `devices` are the requester ids that its scopes cover."""
    d = unit.description
    return Unit(d.base, d.segment, d.include_all, read_register(unit, "CAP"), read_register(unit, "ECAP"), read_register(unit, "GSTS"),
                read_register(unit, "RTADDR"), tuple(devices))


def read_units(units: Iterable[UnitReader], devices_of: Callable[[int], Iterable[int]] | None = None) -> Records[Unit]:
    """All units in the order given; `devices_of(base)` are the requester ids that the unit with that register base covers."""
    return Records(Unit, [read_unit(u, devices_of(u.description.base) if devices_of else ()) for u in units])
