"""Remapping units of a real machine: registers behind the DRHDs of its table, or a table rebuilt from the DMAR lines of its log."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..errors import BadMachine
from ..machine.description import PciDescription, UnitDescription
from ..machine.memory import PAGE
from ..spec.dmar import Andd, Atsr, Dmar, DmarFlag, Drhd, Rhsa, Rmrr, Scope, ScopeType, Structure, build
from ..spec.pci import format_bdf, split_bdf
from .kernel_log import KernelLog, LoggedUnit
from .memory_map import ONE_MIB

__all__ = ["CLIENT", "QEMU", "QEMU_48", "REGISTERS", "SERVER", "check_units", "rebuild", "units_of"]

CLIENT, SERVER, QEMU, QEMU_48 = ((0xD2008C40660462, 0xF050DA), (0x8D2078C106F0466, 0xF020DF), (0xD2008C22260206, 0xF42),
                                 (0xD2008C222F0606, 0xF42))
"""Capability registers (cap, ecap) of units whose log does not print them: Intel's client chipsets since 2015, its Xeon E5 and Scalable,
QEMU's unit with 39 and with 48 address bits."""
REGISTERS = "The registers of the unit at"
"""How the sentence begins that says that they are not known."""
_VERSION = 0x10
_DEFAULT_BASE = 0xFED90000
_ISOCHRONOUS = 1 << 23
_GRAPHICS, _AUDIO, _USB, _MANAGEMENT = (0x03, 16), (0x0403, 8), (0x0C03, 8), (0x0780, 8)
"""Classes of functions, and by how many bits the class code is shifted to compare."""


def units_of(table: Dmar, logged: dict[int, LoggedUnit]) -> tuple[tuple[UnitDescription, ...], tuple[str, ...]]:
    """The units behind the table's DRHDs, in its order, with the registers that the log prints for their bases."""
    units, unknown = [], []
    default = _default(table)
    for d in table.drhds:
        known = logged.get(d.base)
        if known is not None and known.cap is not None and known.ecap is not None:
            units.append(UnitDescription(d.base, known.cap, known.ecap, d.segment, d.include_all, known.version or _VERSION))
        else:
            units.append(UnitDescription(d.base, *default, d.segment, d.include_all, _VERSION))
            unknown.append(f"{d.base:#x}")
    note = f"{REGISTERS} {' and '.join(unknown)} were not logged: cap {default[0]:#x}, ecap {default[1]:#x}."
    return tuple(units), (note,) if unknown else ()


def _default(table: Dmar) -> tuple[int, int]:
    """Capability registers that fit the table's maker and width."""
    wide = table.host_address_width > 39
    if table.oem_id == b"BOCHS ":
        return QEMU_48 if wide else QEMU
    return SERVER if wide else CLIENT


def check_units(units: Sequence[UnitDescription], usable: Iterable[tuple[int, int]]) -> None:
    """Raises `BadMachine` for a unit whose registers are at address 0, on no page border, twice, or in RAM."""
    usable = tuple(usable)
    for i, u in enumerate(units):
        if not u.base or u.base % PAGE:
            raise BadMachine(f"the DMAR names a unit with registers at {u.base:#x}, which is no page: correct the base")
        if any(u.base == other.base for other in units[:i]):
            raise BadMachine(f"the DMAR names two units with registers at {u.base:#x}: correct one")
        if any(start <= u.base < end for start, end in usable):
            raise BadMachine(f"the DMAR names a unit with registers at {u.base:#x}, which is usable RAM in the E820 map: "
                             "table and map are of different machines")


def rebuild(log: KernelLog, functions: Sequence[PciDescription]) -> tuple[Dmar | None, tuple[str, ...]]:
    """The DMAR table that the log's lines tell of, or None.  What they do not say is assumed, in a sentence each."""
    length = log.tables["DMAR"][1] if "DMAR" in log.tables else None
    if not log.units:
        return _one_unit(log, length) if length is not None else (None, ())
    root = [f for f in functions if f.segment == 0 and f.source < 0x100]
    drhds, notes = _drhds(log, root)
    rmrrs, rmrr_notes = _rmrrs(log, root)
    rest: list[Structure] = [Atsr(f & 0xFF, 0) for f in log.atsrs]
    rest += [Rhsa(base, domain & 0xFFFFFFFF) for base, domain in log.rhsas]
    rest += [Andd(number, path) for number, path in log.andds]
    flags = DmarFlag.INTR_REMAP if any(u.ioapics for u in log.units.values()) else 0
    flags |= DmarFlag.X2APIC_OPT_OUT if log.x2apic_opt_out else 0
    table = Dmar(_width(log), flags, (*drhds, *rmrrs, *rest))
    real = f" (it has {len(build(table))} bytes, the real one {length})" if length is not None else ""
    return table, (f"The DMAR table was rebuilt from the log's lines, which leave out device scopes{real}.", *notes, *rmrr_notes)


def _one_unit(log: KernelLog, length: int) -> tuple[Dmar, tuple[str, ...]]:
    """For a log that shows that there is a table, not what is in it.  One with memory nodes is of a server, whose units are wider."""
    width = log.host_address_width or (46 if log.numa else 39)
    table = Dmar(width, 0, (Drhd(1, 0, 0, _DEFAULT_BASE),))
    return table, (f"The log shows a DMAR table of {length} bytes but not what is in it: one unit at {_DEFAULT_BASE:#x} with "
                   f"INCLUDE_PCI_ALL, a host address width of {width} bits and no reserved memory were assumed.",)


def _width(log: KernelLog) -> int:
    """The host address width, else the widest unit's MGAW."""
    widths = [(u.cap >> 16 & 0x3F) + 1 for u in log.units.values() if u.cap is not None]
    return log.host_address_width or max(widths, default=39)


def _drhds(log: KernelLog, root: Sequence[PciDescription]) -> tuple[list[Drhd], list[str]]:
    """The units in the log's order, INCLUDE_PCI_ALL last as the specification wants it.  `root` are the functions of bus 0.

    Intel's chipsets have a unit of its own for graphics; those with several have one with isochrony for audio, and one for management.
    """
    units = sorted(log.units.values(), key=lambda u: bool((u.flags or 0) & 1))
    drhds, notes = [], []
    if not (units[-1].flags or 0) & 1:
        notes.append(f"The log has no unit with INCLUDE_PCI_ALL: the last one, {units[-1].base:#x}, was taken for it.")
        units[-1] = replace(units[-1], flags=1)
    left = {"audio": _of_class(root, _AUDIO), "graphics": _graphics(root), "management": _management(root)}
    alone = len([u for u in units if not (u.flags or 0) & 1]) == 1 and bool(left["graphics"])
    for unit in units:
        flags = (unit.flags or 0) & 0xFF
        owned: list[PciDescription] = []
        if not flags & 1:
            isochronous = (unit.cap or 0) & _ISOCHRONOUS and not alone
            kind = "audio" if isochronous else next((k for k in ("graphics", "management") if k in left), "")
            owned = left.pop(kind, [])
            notes.append(f"The unit at {unit.base:#x} was taken to cover {_said(owned) or 'no function'}.")
        drhds.append(Drhd(flags, 0, 0, unit.base, (*map(_endpoint, owned), *_fixed_scopes(log, unit))))
    return drhds, notes


def _fixed_scopes(log: KernelLog, unit: LoggedUnit) -> list[Scope]:
    """The IOAPICs, HPETs and ACPI devices that the log puts below a unit; the first two at the requester ids Intel's chipsets use."""
    scopes = [Scope(ScopeType.IOAPIC, i & 0xFF, 0xF0, ((0x1F, 0),)) for i in unit.ioapics]
    scopes += [Scope(ScopeType.HPET, i & 0xFF, 0, ((0x1F, 0),)) for i in unit.hpets]
    for (number, _), source in zip(log.andds, unit.namespace, strict=False):
        bus, device, function = split_bdf(source)
        scopes.append(Scope(ScopeType.NAMESPACE, number, bus, ((device, function),)))
    return scopes


def _of_class(functions: Iterable[PciDescription], wanted: tuple[int, int]) -> list[PciDescription]:
    return [f for f in functions if f.class_code >> wanted[1] == wanted[0]]


def _graphics(root: Sequence[PciDescription]) -> list[PciDescription]:
    """All functions of the first graphics device."""
    first = _of_class(root, _GRAPHICS)[:1]
    return [f for f in root if first and f.source >> 3 == first[0].source >> 3]


def _management(root: Sequence[PciDescription]) -> list[PciDescription]:
    """The management engine, where it is device 3 as in the chipsets that gave it a unit of its own."""
    engine = [f for f in root if f.source >> 3 == 3]
    return engine if _of_class(engine, _MANAGEMENT) else []


def _endpoint(function: PciDescription) -> Scope:
    bus, device, number = split_bdf(function.source)
    return Scope(ScopeType.ENDPOINT, 0, bus, ((device, number),))


def _said(functions: Iterable[PciDescription]) -> str:
    return ", ".join(format_bdf(f.source) for f in functions)


def _rmrrs(log: KernelLog, root: Sequence[PciDescription]) -> tuple[list[Rmrr], list[str]]:
    """The reserved regions with the devices Linux named for them; else a large one is graphics', small ones are USB's."""
    named = {(start, end): [f for f in root if (start, end, f.source) in log.rmrr_devices] for start, end in log.rmrrs}
    small = [r for r in log.rmrrs if not named[r] and r[1] - r[0] < ONE_MIB]
    usb = _of_class(root, _USB)
    one_each = len(small) == len(usb)
    rmrrs, guessed = [], []
    for start, end in log.rmrrs:
        owners = named[start, end]
        if not owners:
            shared = [usb[small.index((start, end))]] if one_each and (start, end) in small else usb
            owners = shared if (start, end) in small else _graphics(root)
            guessed.append(f"{start:#x} ({_said(owners) or 'no function'})")
        rmrrs.append(Rmrr(0, start, end - 1, tuple(map(_endpoint, owners))))
    return rmrrs, [f"The devices of the reserved memory at {', '.join(guessed)} were guessed."] if guessed else []
