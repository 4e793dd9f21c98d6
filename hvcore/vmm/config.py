"""The core's build options, by BitVisor's names and a few of ours, and the two profiles."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import BadConfig, quoted
from ..spec.pci import format_bdf, parse_bdf

__all__ = ["MAP_ENDS", "POLICIES", "PROFILES", "QUIRKS", "SWITCHES", "Config", "parse_settings"]

QUIRKS = {
    "AGAW_FROM_LAST_UNIT":
        "every domain takes the address width of the last DRHD's MGAW; if its SAGAW lacks that width there is no domain, and its use is a "
        "null pointer",
    "SCOPE_BY_EXACT_FUNCTION":
        "a device is looked up by its own bus:device.function; what lies behind a bridge named by a DRHD is missed, and a "
        "function that no unit covers is a null pointer; a bridge's requester id, which stands for what is behind some, is not looked up",
    "ZAPPED_SIGNATURE_ASSERT":
        "the parse zaps the DMAR's signature, so the second look-up trips an assertion (the public source of 2026-05 does not start with "
        "VTD_TRANS for this; the measured one had the line mended)",
    "VISIBLE_VTD_REGS":
        "the units' registers are not withheld from the guest, which can clear TE by one store (HIDE_VTD_REGS=y is the mend)",
    "DRIVER_IN_ITS_OWN_HOLE":
        "the NVMe driver registers no memory for its device, so its shadow queues lie in domain 0's hole: reason 6, then a panic",
    "IGNORED_OUT_OF_MEMORY":
        "dmar_map_page's -ENOMEM is ignored: where the heap ends the rest stays unmapped, in silence (the measured one panics in the "
        "allocator before that)",
}
"""Bugs of the real one, each with its story.  A profile has some; QUIRKS=A,B names them one by one."""

MAP_ENDS = {
    "4gib": "the first 4 GiB, as BitVisor does",
    "e820": "highest base + length of all E820 entries, as the article's patch does",
    "ram": "end of the highest usable E820 entry",
}

PROFILES: dict[str, dict[str, Any]] = {
    "bitvisor": {"IOMMU_MAP_END": "4gib", "IOMMU_SUPERPAGES": False, "INTERRUPT_REMAPPING": False, "EARLY_PROTECTION": False,
                 "QUIRKS": frozenset({"AGAW_FROM_LAST_UNIT", "DRIVER_IN_ITS_OWN_HOLE", "SCOPE_BY_EXACT_FUNCTION", "VISIBLE_VTD_REGS"})},
    "mended": {"IOMMU_MAP_END": "ram", "IOMMU_SUPERPAGES": True, "INTERRUPT_REMAPPING": True, "EARLY_PROTECTION": True,
               "QUIRKS": frozenset()},
}
"""What a profile sets; an option given by name comes before it."""

_BY_PAGES: dict[str, Any] = {"IOMMU_MAP_END": "ram", "IOMMU_SUPERPAGES": True}
POLICIES: dict[str, dict[str, Any]] = {
    "off": {"VTD_TRANS": False},
    "bitvisor": {},
    "article": {"IOMMU_MAP_END": "e820"},
    "ram": {"IOMMU_MAP_END": "ram"},
    "superpages": _BY_PAGES,
    "hidden-registers": _BY_PAGES | {"HIDE_VTD_REGS": True},
    "pass-through": {"DMAR_PASS_THROUGH": True, "VTD_TRANS": False},
    "mended": {"PROFILE": "mended"},
}
"""What can be done with the units, from nothing to everything: options by the policy's name, from the bitvisor profile on."""


@dataclass(frozen=True)
class Config:
    """Options of the core.  What is not given comes from the profile.

    PROFILE `bitvisor` behaves as the measured one, bugs included; `mended` as it should be.  VTD_TRANS drives the remapping units (on by
    default here; BitVisor's own default is off).  DISABLE_VTD switches the units off where VTD_TRANS does not use them, and with
    DMAR_PASS_THROUGH, which excludes VTD_TRANS, the guest drives them under the core's eyes.  IOMMU_MAP_END says how far domain 0 reaches,
    IOMMU_SUPERPAGES maps 2 MiB pages above 4 GiB, HIDE_VTD_REGS withholds the units' registers from the guest's CPU.  EARLY_PROTECTION
    closes the core's memory to devices before anything lies in it, INTERRUPT_REMAPPING lets no interrupt of a device through that the core
    has not allowed.  NVME_DRIVER puts the core's own driver between the guest and the first NVMe controller; it encrypts a part of the
    disk.  TINYVISOR splits the machine between two guests; the second gets GUEST2_DEVICES: PCI functions like `00:03.0,00:04.0`, `none`, or
    `auto` for the edu devices, where there are none the NVMe.  VMM_SIZE_MIB is the core's own memory (a multiple of 4), QUIRKS are bugs
    by name.
    """

    PROFILE: str = "bitvisor"
    VTD_TRANS: bool = True
    DISABLE_VTD: bool = True
    DMAR_PASS_THROUGH: bool = False
    IOMMU_MAP_END: str = None            # type: ignore[assignment]
    IOMMU_SUPERPAGES: bool = None        # type: ignore[assignment]
    HIDE_VTD_REGS: bool = None           # type: ignore[assignment]
    EARLY_PROTECTION: bool = None        # type: ignore[assignment]
    INTERRUPT_REMAPPING: bool = None     # type: ignore[assignment]
    NVME_DRIVER: bool = False
    TINYVISOR: bool = False
    GUEST2_DEVICES: str = "auto"
    VMM_SIZE_MIB: int = 128
    QUIRKS: frozenset[str] = None        # type: ignore[assignment]

    def __post_init__(self) -> None:
        _one_of("PROFILE", self.PROFILE, PROFILES)
        for name, value in PROFILES[self.PROFILE].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for f in fields(self):
            if f.name != "HIDE_VTD_REGS" or self.HIDE_VTD_REGS is not None:
                object.__setattr__(self, f.name, _checked(f.name, getattr(self, f.name)))
        self._settle_registers()
        if self.DMAR_PASS_THROUGH and (self.VTD_TRANS or not self.DISABLE_VTD):
            raise BadConfig("DMAR_PASS_THROUGH=y gives the units to the guest: it needs VTD_TRANS=n and DISABLE_VTD=y")
        if self.TINYVISOR and self.NVME_DRIVER:
            raise BadConfig("NVME_DRIVER=y drives the controller for one guest: it needs TINYVISOR=n")
        if self.TINYVISOR and self.DMAR_PASS_THROUGH:
            raise BadConfig("DMAR_PASS_THROUGH=y gives the units to one guest, which would rule the other's devices: it needs TINYVISOR=n")

    def _settle_registers(self) -> None:
        """HIDE_VTD_REGS and its quirk are two names of one thing: the option, where it is given, decides."""
        visible = "VISIBLE_VTD_REGS" in self.QUIRKS if self.HIDE_VTD_REGS is None else not self.HIDE_VTD_REGS
        object.__setattr__(self, "HIDE_VTD_REGS", not visible)
        quirks = self.QUIRKS - {"VISIBLE_VTD_REGS"}
        object.__setattr__(self, "QUIRKS", quirks | {"VISIBLE_VTD_REGS"} if visible else quirks)

    def change(self, **options: Any) -> "Config":
        """A copy with other values; a new PROFILE brings its own for all that is not named."""
        _known(options)
        if "PROFILE" in options and options["PROFILE"] != self.PROFILE:
            options = dict.fromkeys([*PROFILES["bitvisor"], "HIDE_VTD_REGS"]) | options
        elif "QUIRKS" in options:
            options = {"HIDE_VTD_REGS": None} | options
        for name, other in (("DMAR_PASS_THROUGH", "VTD_TRANS"), ("VTD_TRANS", "DMAR_PASS_THROUGH")):
            if other not in options and name in options and _checked(name, options[name]):
                options[other] = False
        return replace(self, **options)

    def to_dict(self) -> dict[str, Any]:
        """Every option with its value, fit for JSON."""
        return {f.name: sorted(v) if isinstance(v := getattr(self, f.name), frozenset) else v for f in fields(self)}

    def __str__(self) -> str:
        return " ".join(f"{name}={_text(value)}" for name, value in self.to_dict().items())


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "y" if value else "n"
    return ",".join(value) or "none" if isinstance(value, list) else str(value)


SWITCHES = ("VTD_TRANS", "DISABLE_VTD", "DMAR_PASS_THROUGH", "IOMMU_SUPERPAGES", "HIDE_VTD_REGS", "EARLY_PROTECTION",
            "INTERRUPT_REMAPPING", "NVME_DRIVER", "TINYVISOR")
"""Options that take y or n."""

_BOOLEANS = {"y": True, "yes": True, "true": True, "on": True, "1": True, "n": False, "no": False, "false": False, "off": False, "0": False}


def _checked(name: str, value: Any) -> Any:
    """The value as the option holds it, from a Python value or its spelling on a command line."""
    if name in SWITCHES:
        if isinstance(value, str) and value.lower() in _BOOLEANS:
            return _BOOLEANS[value.lower()]
        if not isinstance(value, bool):
            raise BadConfig(f"{name} takes y or n, not {quoted(value)}")
    elif name == "IOMMU_MAP_END":
        _one_of(name, value, MAP_ENDS)
    elif name == "VMM_SIZE_MIB":
        return _size(value)
    elif name == "GUEST2_DEVICES":
        return _functions(value)
    elif name == "QUIRKS":
        return _quirks(value)
    return value


def _size(value: Any) -> int:
    text = value if isinstance(value, str) else quoted(value)
    if isinstance(value, bool) or not text.isdecimal() or len(text) > 4 or not 8 <= int(text) <= 3072 or int(text) % 4:
        raise BadConfig(f"VMM_SIZE_MIB takes a multiple of 4 from 8 to 3072, not {quoted(value)}")
    return int(text)


def _functions(value: Any) -> str:
    """`auto`, `none`, or PCI functions of segment 0 in one spelling."""
    words = value.split(",") if isinstance(value, str) else []
    try:
        named = [parse_bdf(word) for word in words if word not in ("auto", "none") or len(words) > 1]
    except ValueError:
        named, words = [], []
    if not words or any(segment for segment, _ in named):
        raise BadConfig(f"GUEST2_DEVICES takes auto, none or PCI functions like 00:03.0,00:04.0, not {quoted(value)}")
    return ",".join(format_bdf(source) for _, source in named) or words[0]


def _quirks(value: Any) -> frozenset[str]:
    if not isinstance(value, Iterable):
        raise BadConfig(f"QUIRKS takes names, as in \"A,B\" or a set, not {quoted(value)}")
    names = [n for n in value.split(",") if n and n != "none"] if isinstance(value, str) else list(value)
    for name in names:
        _one_of("QUIRKS", name, QUIRKS)
    return frozenset(names)


def _one_of(option: str, value: Any, choices: Iterable[str]) -> None:
    if value not in list(choices):
        raise BadConfig(f"{option} takes {', '.join(choices)}, not {quoted(value)}")


def _known(names: Iterable[str]) -> None:
    options = [f.name for f in fields(Config)]
    for name in names:
        if name not in options:
            close = difflib.get_close_matches(name.upper(), options, 1)
            hint = f"did you mean {close[0]}?" if close else f"the options are {', '.join(options)}"
            raise BadConfig(f"there is no option {name[:80]}: {hint}")


def parse_settings(settings: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` words of a command line."""
    options: dict[str, str] = {}
    for word in settings:
        name, equals, value = word.partition("=")
        if not equals:
            raise BadConfig(f"--set takes NAME=VALUE, not {quoted(word)}")
        _known([name])
        options[name] = value
    return options
