"""Debian's package archive, by the apt of the machine that hvlab runs on; none of it needs root."""

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadMachine
from .cache import matches, release_key

__all__ = ["BUSYBOX", "Package", "choose", "download", "show"]

BUSYBOX = "busybox-static"
_META = "linux-image-cloud-amd64"
_CLOUD, _ANY = "-cloud-amd64", "-amd64"
"""How the releases of kernels end that are offered at first, and those of all."""
_ARCHITECTURE = "amd64"
_EVERY = 0.2
"""Seconds between two looks at how far a download is."""
_OTHERWISE = "download linux-image-VERSION-cloud-amd64 and busybox-static for amd64 yourself, and run `hvlab linux fetch --deb FILE FILE`"
_STALE = "run `sudo apt-get update`, then fetch again"


@dataclass(frozen=True)
class Package:
    """A package as the archive's lists have it: size of its file in bytes, and SHA-256."""

    name: str
    version: str
    size: int
    digest: str
    depends: str


def choose(release: str | None, count: int) -> list[str]:
    """Names of kernel packages: the `count` newest whose release begins with `release` (`6.1`, `6.12.117`), newest first.

    With neither, the one that Debian's linux-image-cloud-amd64 stands for.  Kernels that are no `cloud` ones are taken where no other fits:
    `6.1.0-56-amd64`, `6.1.0-56-rt`.  Raises BadMachine where there is none.
    """
    if release is None and not count:
        return [_default()]
    offered = _offered(_CLOUD)
    fitting = [name for name in offered if release is None or matches(_release(name), release)]
    if not fitting:
        fitting = [name for name in _offered(_ANY) if matches(_release(name), release or "")]
    if not fitting:
        newest = ", ".join(map(_release, offered[:4])) or "none"
        raise BadMachine(f"the archive offers no kernel {release} (the newest are {newest}): choose one of those, or {_STALE}")
    return fitting[:max(1, count)]


def show(*names: str) -> list[Package]:
    """What the archive's lists say of packages, in the order of the names.  Raises BadMachine where they have none of a name."""
    said = _run(["apt-cache", "show", "--no-all-versions", *(f"{name}:{_ARCHITECTURE}" for name in names)])
    stanzas = [dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and not line.startswith(" "))
               for stanza in said.stdout.split("\n\n")]
    known = {fields.get("Package"): fields for fields in stanzas}
    return [_package(name, known.get(name, {})) for name in names]


def _package(name: str, fields: dict[str, str]) -> Package:
    try:
        return Package(name, fields["Version"], int(fields["Size"]), fields["SHA256"].lower(), fields.get("Depends", ""))
    except (KeyError, ValueError):
        raise BadMachine(f"apt knows no package {name} for {_ARCHITECTURE}: {_STALE}; or {_OTHERWISE}") from None


def download(package: Package, folder: Path, progress: Callable[[str], None]) -> Path:
    """Downloads a package's file into `folder` and checks its size and SHA-256.  Raises BadMachine."""
    command = ["apt-get", "-q", "download", f"{package.name}:{_ARCHITECTURE}={package.version}"]
    place = folder / package.name
    place.mkdir()
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(command, cwd=place, env=_environment(), stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            while process.poll() is None:
                progress(f"downloading {package.name}: {_percent(place, package.size)} of {package.size / 1e6:.1f} MB")
                time.sleep(_EVERY)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        if process.returncode:
            raise BadMachine(_failed(package, said.read(), place))
    return _checked(package, place)


def _default() -> str:
    found = re.search(r"linux-image-\d[^\s,]*", show(_META)[0].depends)
    if not found:
        raise BadMachine(f"apt's {_META} names no kernel: name one with --release, as 6.1; or {_OTHERWISE}")
    return found[0]


def _offered(ending: str) -> list[str]:
    """Kernel packages of the archive whose release ends so, newest first."""
    said = _run(["apt-cache", "search", "--names-only", f"^linux-image-[0-9].*{ending}$"])
    names = {line.split()[0].partition(":")[0] for line in said.stdout.splitlines() if line.strip()}
    kernels = [name for name in names if re.fullmatch(rf"linux-image-\d+\.\d+\.\d+\S*{ending}", name)]
    if not kernels:
        raise BadMachine(f"apt offers no linux-image-...-cloud-amd64: where this is Debian, {_STALE}; elsewhere {_OTHERWISE}")
    return sorted(kernels, key=lambda name: release_key(_release(name)), reverse=True)


def _release(package: str) -> str:
    return package.removeprefix("linux-image-")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    if not all(map(shutil.which, ("apt-cache", "apt-get"))):
        raise BadMachine(f"there is no apt on this machine: {_OTHERWISE}")
    try:
        return subprocess.run(command, env=_environment(), capture_output=True, text=True, errors="replace", check=False)
    except OSError as e:
        raise BadMachine(f"{command[0]} cannot be run ({e.strerror or e}): {_OTHERWISE}") from e


def _environment() -> dict[str, str]:
    return os.environ | {"LC_ALL": "C"}


def _percent(place: Path, size: int) -> str:
    there = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return f"{min(100, 100 * there // max(1, size))} %"


def _failed(package: Package, said: str, place: Path) -> str:
    errors = [line.removeprefix("E: ") for line in said.splitlines() if line.startswith("E: ")]
    why = " ".join((errors or ["apt-get did not say why"])[0].split())
    if "No space left" in said or "enough free space" in said:
        return f"the disk of {place.parents[1]} is full: make room there, or name another folder in HVLAB_CACHE"
    if "404" in said or "was not found" in said:
        return f"{package.name} {package.version} is no more in the archive: {_STALE}"
    return f"{package.name} could not be downloaded ({why}): check the network, then fetch again; or {_OTHERWISE}"


def _checked(package: Package, place: Path) -> Path:
    files = list(place.glob("*.deb"))
    if len(files) != 1:
        raise BadMachine(f"apt-get left {len(files)} files of {package.name}: fetch again")
    data = files[0].read_bytes()
    if len(data) != package.size or hashlib.sha256(data).hexdigest() != package.digest:
        raise BadMachine(f"{package.name} {package.version} came with {len(data)} bytes and another SHA-256 than the archive's list says: "
                         f"{_STALE}")
    return files[0]
