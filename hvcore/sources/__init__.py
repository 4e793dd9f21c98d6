"""Machines from outside: TOML descriptions, folders of logs and tables, archives, single kernel logs, and those that hvlab ships."""

import difflib
from pathlib import Path

from ..errors import BadMachine
from ..machine.description import MachineDescription
from .archive import is_archive
from .folder import load_archive, load_folder, load_log
from .toml import load_toml

__all__ = ["images_dir", "load", "shipped"]

_SNAPSHOT = b"\x89HVLAB\r\n"


def images_dir() -> Path:
    """The folder of guests and machines; it lies beside the package `hvcore`, in a checkout as in an installation."""
    return Path(__file__).resolve().parents[2] / "images"


def shipped() -> dict[str, Path]:
    """The machines that come with hvlab: name and TOML file or folder."""
    machines = images_dir() / "machines"
    found = {p.stem: p for p in sorted(machines.glob("*.toml"))}
    return found | {p.name: p for p in sorted((machines / "real").glob("*/"))}


def load(what: str | Path) -> MachineDescription:
    """The machine of a TOML file, a folder, an archive, a kernel log, or a shipped machine's name.  A path that exists comes before a name.

    Raises `BadMachine`, one sentence: what is wrong, where, and what to do.
    """
    path = Path(what)
    try:
        here = path.exists()
    except (OSError, ValueError):
        here = False
    if not here:
        path = _shipped(str(what))
    if path.is_dir():
        return load_folder(path)
    if path.suffix == ".toml":
        return load_toml(path)
    if path.suffix in (".dat", ".aml", ".bin"):
        raise BadMachine(f"{path}: a table alone is no machine: put it as DMAR.dat into a folder with a log that has the E820 lines")
    if is_archive(path):
        return load_archive(path)
    if _is_snapshot(path):
        raise BadMachine(f"{path} is a snapshot of a machine: `hvlab resume`, or Machine.restore, goes on from it")
    return load_log(path)


def _is_snapshot(path: Path) -> bool:
    """Whether a file begins as docs/snapshots.md says."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_SNAPSHOT)) == _SNAPSHOT
    except OSError:
        return False


def _shipped(name: str) -> Path:
    machines = shipped()
    if name in machines:
        return machines[name]
    near = difflib.get_close_matches(name, machines, n=3, cutoff=0.4)
    hint = f"closest are {', '.join(near)}" if near else "`hvlab machines` lists those"
    raise BadMachine(f"{name!r} is neither a file or folder nor a shipped machine; {hint}")
