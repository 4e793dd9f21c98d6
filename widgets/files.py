"""Snapshots in the notebook's folder: what they are called, which there are, and whether a file may be written over."""

import re
from pathlib import Path

from hvcore.errors import BadSnapshot, HvlabError
from hvcore.snapshot import info

__all__ = ["SUFFIX", "may_replace", "snapshot_name", "snapshots_here", "taken"]

SUFFIX = ".snap"


def snapshot_name(machine: str, guest: str) -> str:
    """The file for a machine with the guest of that key, in the notebook's folder."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", f"{machine}-{guest}").strip("-.") + SUFFIX


def snapshots_here() -> list[str]:
    """The snapshots in the notebook's folder, by name."""
    return sorted(path.name for path in Path().glob(f"*{SUFFIX}"))


def taken(name: str) -> Path:
    """The file that a person has named.  Raises HvlabError for none."""
    if not name.strip():
        raise HvlabError("no file is named: type a name such as machine.snap into the field before the buttons")
    return Path(name.strip()).expanduser()


def may_replace(path: Path) -> None:
    """Raises HvlabError where a file is there already that is no snapshot: it would be lost."""
    if path.is_dir():
        raise HvlabError(f"{path} is a folder: name a file")
    if path.exists():
        try:
            info(path)
        except BadSnapshot as e:
            raise HvlabError(f"{path} is there already and is no snapshot: name another file, so that it is not lost") from e
