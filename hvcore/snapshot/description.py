"""A machine's description out of a file, which may say anything: it is taken only where it could be a machine's."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import BadSnapshot
from ..machine.description import DiskDescription, MachineDescription
from .pages import check

__all__ = ["checked", "image_facts", "with_image"]

_MOST = 1 << 16
"""Entries of a list: functions, ranges, units."""
_SAMPLE = 1 << 20


def checked(value: Any) -> MachineDescription:
    """A description whose parts are of the right kinds and sizes.  Raises BadSnapshot."""
    if not isinstance(value, MachineDescription) or not _fits(value, MachineDescription):
        raise BadSnapshot("what it says of the machine cannot be")
    numbers = [n for f in value.pci for n in (f.secondary, f.subordinate)] + [n for e in value.ecams for n in (e.first, e.last)]
    sources = [f.source for f in value.pci] + [f.segment for f in value.pci] + [e.segment for e in value.ecams]
    if any(n > 255 for n in numbers) or any(n >= 1 << 16 for n in sources) or value.host_address_width > 64 or value.disk.size >= 1 << 50:
        raise BadSnapshot("what it says of the machine cannot be")
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type as dataclasses of descriptions name it; numbers are those of registers and addresses."""
    if hint is Any:
        return True
    if isinstance(hint, UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    if get_origin(hint) is tuple:
        return _fits_tuple(value, get_args(hint))
    if hint is int:
        return isinstance(value, int) and type(value) is not bool and 0 <= value < 1 << 64
    if not isinstance(value, hint):
        return False
    return not is_dataclass(hint) or all(_fits(getattr(value, f.name, None), get_type_hints(hint)[f.name]) for f in fields(hint))


def _fits_tuple(value: Any, hints: tuple[Any, ...]) -> bool:
    if not isinstance(value, tuple) or len(value) > _MOST:
        return False
    if len(hints) == 2 and hints[1] is ...:
        return all(_fits(each, hints[0]) for each in value)
    return len(value) == len(hints) and all(_fits(each, hint) for each, hint in zip(value, hints, strict=True))


# --- disks that are files

def image_facts(image: str) -> list[Any]:
    """What a snapshot keeps of the file beneath a disk: its name, its bytes, a checksum of its first and last MiB."""
    with open(image, "rb") as file:
        first = file.read(_SAMPLE)
        size = file.seek(0, 2)
        file.seek(max(size - _SAMPLE, 0))
        return [Path(image).name, size, check(first + file.read(_SAMPLE))]


def with_image(description: MachineDescription, told: Any, image: str | Path | None) -> MachineDescription:
    """The description over the user's own disk image, which must be the one that the machine had.  A file names no file to be opened."""
    if description.disk.image is None:
        return description
    if image is None:
        name = told[0] if isinstance(told, list) and told and isinstance(told[0], str) else "a file"
        raise BadSnapshot(f"its disk lies over the image {name[:100]}, which is not in the snapshot: give it as image=, or by --image")
    try:
        facts = image_facts(str(image))
    except OSError as e:
        raise BadSnapshot(f"the disk image {image} cannot be read ({e.strerror})") from e
    if not isinstance(told, list) or facts[1:] != told[1:]:
        raise BadSnapshot(f"{image} is not the disk image that the machine had, or it has changed since")
    return replace(description, disk=DiskDescription(description.disk.size, description.disk.seed, str(image)))
