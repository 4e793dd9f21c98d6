"""What the fields mean that a unit looks at when it decides about a request, in words; fields that are not here do not count for it."""

from collections.abc import Callable, Mapping

from ..spec import vtd
from ..spec.interrupts import DeliveryMode, SourceCheck
from ..spec.pci import format_bdf

__all__ = ["meaning"]

_Words = Callable[[int], str]


def meaning(layout: str, field: str, value: int) -> str | None:
    """What `value` means in a field of a layout of `spec`, both by name; None where the field does not count."""
    words = _MEANINGS.get(layout, {}).get(field)
    return words(value) if words else None


def _flag(clear: str, set_: str) -> _Words:
    return lambda value: set_ if value else clear


def _page(what: str) -> _Words:
    return lambda value: f"{what} {value << 12:#x}"


def _choice(*words: str) -> _Words:
    return lambda value: words[value] if value < len(words) else "reserved"


def _levels(sagaw: int) -> str:
    return "tables of " + (" or ".join(str(vtd.aw_levels(aw)) for aw in range(5) if sagaw >> aw & 1) or "no") + " levels"


def _depth(aw: int) -> str:
    return f"{vtd.aw_levels(aw)} levels, {vtd.aw_bits(aw)} bits of address" if aw < 5 else "reserved"


def _delivery(value: int) -> str:
    return {mode.value: mode.name.lower().replace("_", " ") for mode in DeliveryMode}.get(value, "reserved")


def _who(value: int) -> str:
    return {SourceCheck.NONE: "anybody may use the entry", SourceCheck.REQUESTER: "the requester of SID may use the entry",
            SourceCheck.BUS_RANGE: "the buses SID[15:8] to SID[7:0] may use the entry"}.get(SourceCheck(value), "reserved")


_PRESENT = _flag("not present", "present")
_NO_RECORDS = _flag("faults are recorded", "faults are not recorded")

_MEANINGS: Mapping[str, Mapping[str, _Words]] = {
    "GSTS": {"TES": _flag("translation is off", "translation is on"), "RTPS": _flag("no root table was set", "the root table is set"),
             "IRES": _flag("interrupt remapping is off", "interrupt remapping is on"),
             "CFIS": _flag("compatibility format is blocked", "compatibility format passes")},
    "CAP": {"MGAW": lambda v: f"addresses of up to {v + 1} bits", "SAGAW": _levels},
    "RTADDR": {"RTA": _page("root table at"), "TTM": _choice("legacy mode", "scalable mode", "reserved", "abort mode")},
    "PMEN": {"EPM": _flag("protected regions are off", "protected regions are on")},
    "ROOT_ENTRY": {"CTP": _page("context table at"), "P": _PRESENT},
    "CONTEXT_LOW": {"SLPTPTR": _page("top table at"), "TT": _choice("translate", "translate, ATS allowed", "pass through", "reserved"),
                    "FPD": _NO_RECORDS, "P": _PRESENT},
    "CONTEXT_HIGH": {"DID": lambda v: f"domain {v}", "AW": _depth},
    "SECOND_LEVEL": {"ADDR": _page("address"), "SP": _flag("names a table, except at level 1", "maps a large page, except at level 1"),
                     "SNP": _flag("no snooping asked for", "snoop"), "TM": _flag("not transient", "transient"),
                     "W": _flag("no writing", "writing allowed"), "R": _flag("no reading", "reading allowed")},
    "IRTA": {"IRTA": _page("table at"), "EIME": _flag("8-bit destinations", "32-bit destinations"),
             "S": lambda v: f"{2 << v} entries"},
    "REMAPPABLE_ADDRESS": {"HEAD": lambda v: "an interrupt message" if v == 0xFEE else "no interrupt message",
                           "HANDLE": lambda v: f"handle, bits 14:0: {v}", "HANDLE15": lambda v: f"handle, bit 15: {v}",
                           "FORMAT": _flag("compatibility format", "remappable format"),
                           "SHV": _flag("the data does not count", "the data's subhandle is added")},
    "REMAPPABLE_DATA": {"SUBHANDLE": lambda v: f"subhandle {v}", "RSVD": _flag("zero", "must be zero with SHV")},
    "IRTE_LOW": {"DST": lambda v: f"destination {v:#x}, with 8 bits {v >> 8 & 0xFF:#x}", "V": lambda v: f"vector {v:#x}",
                 "IM": _flag("remapped", "posted"), "DLM": _delivery, "TM": _flag("edge", "level"),
                 "RH": _flag("to that destination", "to any of the destinations"), "DM": _flag("physical", "logical"),
                 "FPD": _NO_RECORDS, "P": _PRESENT},
    "IRTE_HIGH": {"SVT": _who, "SID": lambda v: f"{v:#06x}: {format_bdf(v)}",
                  "SQ": _choice("every bit of SID counts", "function bit 2 does not count", "function bits 2:1 do not count",
                                "the function does not count")},
}
