"""What it takes to run a machine again: its description as TOML with its DMAR table beside it, and the commands."""

import base64
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..machine.description import BarDescription, EcamDescription, MachineDescription, PciDescription, UnitDescription
from ..spec.e820 import E820Entry, E820Type, type_name
from ..spec.pci import PortType, format_bdf
from ..vmm.config import Config

__all__ = ["DMAR", "TOML", "commands", "files_of", "settings", "toml_of"]

TOML, DMAR = "machine.toml", "dmar.dat"
"""The files' names."""
_BRIDGES = range(PortType.ROOT_PORT, PortType.PCI_TO_PCIE_BRIDGE + 1)
"""Port types of bridges; one whose buses a log did not tell has no port type in TOML."""
_WIDTH = 76
"""Characters to a line of base64."""


def settings(config: Config) -> list[str]:
    """The options that the profile does not say by itself, each as `NAME=VALUE`."""
    usual = str(Config(PROFILE=config.PROFILE)).split()
    profile = [] if config.PROFILE == Config().PROFILE else [f"PROFILE={config.PROFILE}"]
    return profile + [word for word in str(config).split() if word not in usual]


def files_of(description: MachineDescription) -> dict[str, bytes]:
    """The machine as files: `machine.toml`, and `dmar.dat` where it has a DMAR table."""
    table = {} if description.dmar is None else {DMAR: description.dmar}
    return {TOML: toml_of(description).encode("utf-8", "replace")} | table


def commands(description: MachineDescription, config: Config, name: str = "", guest: Sequence[str] = ()) -> str:
    """A shell script that boots the machine: by its `name`, where hvlab ships it; else it writes the files first.

    `guest` are more words of `hvlab boot`, which choose the guest.
    """
    made = [] if name else ["mkdir -p machine && cd machine", *(_file(file, data) for file, data in files_of(description).items())]
    words = ["hvlab", "boot", name or TOML, *(word for setting in settings(config) for word in ("--set", setting)), *guest]
    return "\n".join([*made, shlex.join(words)])


def _file(name: str, data: bytes) -> str:
    """A file as a here-document; no line of it is the word that ends it."""
    if name == TOML:
        return f"cat > {name} <<'END_OF_FILE'\n{data.decode()}END_OF_FILE"
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[i:i + _WIDTH] for i in range(0, len(text), _WIDTH))
    return f"base64 -d > {name} <<'END_OF_FILE'\n{lines}\nEND_OF_FILE"


# --- TOML

def toml_of(d: MachineDescription) -> str:
    """The description as `hvcore.sources.toml` reads it; what was assumed is in it as if it had been known.

    A disk image is named without its folder: it has to be put beside the file.
    """
    disk = {"image": Path(d.disk.image).name} if d.disk.image else {"size": d.disk.size, "seed": d.disk.seed}
    tables = ([_table("ecam", _window(d.ecam))] if d.ecam else []) + [_table("disk", disk)]
    return "\n".join(["\n".join(_head(d)), *tables]) + "\n"


def _head(d: MachineDescription) -> Iterator[str]:
    yield from _pairs({"name": d.name, "source": d.source})
    yield "ram_runs = [" + ", ".join(f"[{start:#x}, {end:#x}]" for start, end in d.ram_runs) + "]"
    yield f"acpi_address = {d.acpi_address:#x}"
    yield _lines("e820", map(_entry, d.e820))
    if d.dmar is not None:
        yield f'dmar = "{DMAR}"'
    if d.units:
        yield _lines("unit", (_value("", _unit(unit)) for unit in d.units))
    if d.other_ecams:
        yield _lines("segment", (_value("", {"number": window.segment} | _window(window)) for window in d.other_ecams))
    yield _lines("pci", (_value("", _function(function)) for function in d.pci))


def _lines(key: str, values: Iterable[str]) -> str:
    """An array with a value a line."""
    return "\n".join([f"{key} = [", *(f"    {value}," for value in values), "]"])


def _entry(e: E820Entry) -> str:
    kind = _text(type_name(e.type)) if e.type in list(E820Type) else str(e.type)
    return f"[{e.start:#x}, {e.end:#x}, {kind}]"


def _table(name: str, values: Mapping[str, Any]) -> str:
    return "\n".join(["", f"[{name}]", *_pairs(values)])


def _pairs(values: Mapping[str, Any]) -> Iterable[str]:
    return (f"{key} = {_value(key, value)}" for key, value in values.items())


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if key in ("number", "first", "last", "index", "seed") else f"{value:#x}"
    if isinstance(value, dict):
        return "{ " + ", ".join(_pairs(value)) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value("index", item) for item in value) + "]"
    return _text(str(value))


def _text(words: str) -> str:
    """A string of TOML: JSON's, but for DEL and for halves of characters, which TOML has not."""
    whole = words.encode("utf-8", "replace").decode()
    return json.dumps(whole, ensure_ascii=False).replace("\x7f", "\\u007f")


def _window(window: EcamDescription) -> dict[str, Any]:
    return {"base": window.base, "first": window.first, "last": window.last}


def _unit(unit: UnitDescription) -> dict[str, Any]:
    return {"base": unit.base, "cap": unit.cap, "ecap": unit.ecap, "version": unit.version}


def _function(f: PciDescription) -> dict[str, Any]:
    place = f"{f.segment:04x}:{format_bdf(f.source)}" if f.segment else format_bdf(f.source)
    told: dict[str, Any] = {"at": place, "id": f"{f.vendor:04x}:{f.device_id:04x}", "class": f.class_code}
    if f.revision:
        told["revision"] = f.revision
    if any(f.subsystem):
        told["subsystem"] = f"{f.subsystem[0]:04x}:{f.subsystem[1]:04x}"
    if not f.pcie:
        told["pcie"] = False
    if f.port_type is not None and (f.port_type in _BRIDGES) == bool(f.secondary):
        told["port_type"] = f.port_type.name.lower().replace("_", " ")
    if f.secondary:
        told["buses"] = [f.secondary, f.subordinate]
    if f.bars:
        told["bars"] = [_bar(bar) for bar in f.bars]
    return told


def _bar(bar: BarDescription) -> dict[str, Any]:
    more = ({} if bar.address is None else {"address": bar.address}) | ({"prefetchable": True} if bar.prefetchable else {})
    return {"index": bar.index, "kind": bar.kind, "size": bar.size} | more
