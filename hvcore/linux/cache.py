"""The folder in which kernels that were fetched lie unpacked: one folder a package and version, whole or not there at all."""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadMachine

__all__ = ["Entry", "add", "damaged", "entries", "find", "folder", "lookup", "matches", "release_key", "remove", "writing"]

_FORMAT = 1
_MANIFEST = "entry.json"
_NEW = ".new-"
_STALE = 3600
"""Seconds after which what an interrupted fetch left is taken away."""


@dataclass(frozen=True)
class Entry:
    """A kernel in the cache.  `files` are sizes in bytes and SHA-256 by name; `modules` the names of modules, in load order."""

    folder: Path
    package: str
    version: str
    release: str
    busybox: str
    modules: tuple[str, ...]
    files: Mapping[str, tuple[int, str]]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(size for size, _ in self.files.values())

    def read(self, name: str) -> bytes:
        """A file's bytes, checked.  Raises BadMachine where they are not what was written."""
        try:
            data = (self.folder / name).read_bytes()
        except OSError as e:
            raise _damaged(self.folder, f"{name} cannot be read: {e.strerror or e}") from e
        size, digest = self.files.get(name, (-1, ""))
        if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
            raise _damaged(self.folder, f"{name} is not what was fetched")
        return data

    def to_json(self) -> dict[str, Any]:
        """Its fields for `hvlab linux list --json`; sizes in bytes."""
        return {"release": self.release, "package": self.package, "version": self.version, "busybox": self.busybox,
                "modules": list(self.modules), "folder": str(self.folder), "size": self.size,
                "files": {name: size for name, (size, _) in self.files.items()}}


def folder() -> Path:
    """Where kernels lie: `linux` in $HVLAB_CACHE, or in hvlab's folder of the user's cache ($XDG_CACHE_HOME, ~/.cache)."""
    if own := os.environ.get("HVLAB_CACHE"):
        return Path(own).expanduser() / "linux"
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "hvlab" / "linux"


def entries() -> list[Entry]:
    """What is in the cache and whole, the newest kernel first.  Raises BadMachine where the cache cannot be read."""
    found = [entry for entry in _all().values() if isinstance(entry, Entry)]
    return sorted(found, key=lambda entry: (release_key(entry.release), release_key(entry.version)), reverse=True)


def damaged() -> dict[Path, str]:
    """Folders of the cache that hold no kernel that can be read, and why.  Files inside are checked when they are read."""
    return {path: found for path, found in _all().items() if isinstance(found, str)}


def find(release: str | None = None) -> Entry:
    """The newest kernel in the cache whose release begins with `release` (`6.1`, `6.12.117`), or the newest of all.

    Raises BadMachine where there is none.
    """
    there = entries()
    for entry in there:
        if release is None or matches(entry.release, release):
            return entry
    for path, why in damaged().items():
        raise _damaged(path, why)
    if not there:
        raise BadMachine("no Linux kernel here: run `hvlab linux fetch`")
    others = ", ".join(entry.release for entry in there)
    raise BadMachine(f"no Linux kernel {release} here, only {others}: run `hvlab linux fetch --release {release}`")


def lookup(package: str, version: str) -> Entry | None:
    """The kernel of just that package and version, with every byte checked; None where it is not there or not whole."""
    found = _entry(_place(package, version))
    if isinstance(found, str):
        return None
    try:
        for name in found.files:
            found.read(name)
    except BadMachine:
        return None
    return found


def matches(release: str, wanted: str) -> bool:
    """Whether a kernel's release is the one wanted: `6.1` is wanted by 6.1.0-56-cloud-amd64, and not by 6.12.117."""
    return bool(wanted) and re.match(re.escape(wanted) + r"(?![0-9])", release) is not None


def release_key(text: str) -> tuple[int, ...]:
    """Sorts releases and versions by the numbers in them."""
    return tuple(map(int, re.findall(r"\d+", text)))


def remove(path: Path) -> None:
    """Takes a kernel's folder out of the cache.  Raises BadMachine where that is not allowed."""
    try:
        shutil.rmtree(path)
    except OSError as e:
        raise BadMachine(f"{path} cannot be removed: {e.strerror or e}") from e


def add(package: str, version: str, release: str, busybox: str, modules: Mapping[str, bytes], files: Mapping[str, bytes]) -> Entry:
    """Writes a kernel into the cache: first beside its place, then put there at once.  An earlier one of that version is replaced."""
    whole = {**files, **{f"modules/{name}.ko": data for name, data in modules.items()}}
    manifest = {"format": _FORMAT, "package": package, "version": version, "release": release, "busybox": busybox, "modules": list(modules),
                "files": {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in whole.items()}}
    place = _place(package, version)
    with writing() as new:
        made = new / "entry"
        (made / "modules").mkdir(parents=True)
        for name, data in whole.items():
            (made / name).write_bytes(data)
        (made / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        _put(made, place, new / "old")
    found = _entry(place)
    if isinstance(found, str):
        raise _damaged(place, found)
    return found


@contextmanager
def writing() -> Iterator[Path]:
    """A folder in the cache for what is not yet whole; it is gone afterwards.  Raises BadMachine where nothing can be written."""
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        new = Path(tempfile.mkdtemp(prefix=_NEW, dir=place))
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as e:
        raise BadMachine(f"nothing can be written to the cache {place} ({e.strerror or e}): "
                         "make room there, or name another folder in HVLAB_CACHE") from e


def _put(made: Path, place: Path, old: Path) -> None:
    """Puts a finished folder in its place; of two that do so at once the last one wins."""
    for _ in range(10):
        with suppress(FileNotFoundError):
            place.rename(old)
        try:
            made.rename(place)
            return
        except OSError:
            shutil.rmtree(old, ignore_errors=True)
    made.rename(place)


def _sweep(place: Path) -> None:
    for left in place.glob(_NEW + "*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left, ignore_errors=True)


def _place(package: str, version: str) -> Path:
    return folder() / f"{package}_{version}".replace(":", "%3a").replace("/", "_")


def _all() -> dict[Path, Entry | str]:
    place = folder()
    try:
        return {path: _entry(path) for path in sorted(place.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise BadMachine(f"the cache {place} cannot be read ({e.strerror or e}): name another folder in HVLAB_CACHE") from e


def _entry(path: Path) -> Entry | str:
    """The kernel in a folder, or why there is none."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        if manifest["format"] != _FORMAT:
            return f"it is of format {manifest['format']}, which another version of hvlab wrote"
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in manifest["files"].items()}
        modules = tuple(str(name) for name in manifest["modules"])
        package, version, release, busybox = (str(manifest[name]) for name in ("package", "version", "release", "busybox"))
        found = Entry(path, package, version, release, busybox, modules, files)
        missing = [name for name, (size, _) in files.items() if (path / name).stat().st_size != size]
        return f"{missing[0]} is not what was fetched" if missing else found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        return f"its files cannot be read: {e.strerror if isinstance(e, OSError) else e}"


def _damaged(path: Path, what: str) -> BadMachine:
    return BadMachine(f"the kernel in {path} is damaged ({what}): run `hvlab linux remove {path.name}`, then fetch it again")
