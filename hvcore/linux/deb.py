"""Debian packages, read by hvlab itself: an `ar` archive with two tar archives inside (deb(5)).  Nothing is written to disk."""

import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadMachine
from .unpack import unpack_zstd

__all__ = ["Deb", "read_deb", "take"]

_MAGIC = b"!<arch>\n"
_HEADER = 60
_LARGEST = 512 << 20
"""Bytes of one file of a package that hvlab takes."""
_MOST = 4 << 30
"""Bytes of a package, unpacked."""
_FIELDS = 1 << 20


@dataclass(frozen=True)
class Deb:
    """A package's file, and what it says of itself."""

    path: Path
    package: str
    version: str
    architecture: str


def read_deb(path: Path) -> Deb:
    """What the package in a file is.  Raises BadMachine where the file is no Debian package, or a damaged one."""
    with _tar(path, "control") as tar:
        for member in tar:
            if member.isfile() and _plain(member.name) == "control" and member.size <= _FIELDS:
                text = _content(tar, member).decode("utf-8", "replace")
                fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and not line.startswith(" "))
                return Deb(path, fields.get("Package", ""), fields.get("Version", ""), fields.get("Architecture", ""))
    raise BadMachine(f"{path} is a Debian package that does not say what it is: download it again")


def take(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The plain files of a package whose names (`boot/vmlinuz-6.1`, without a slash or ./ before them) are wanted.  Raises BadMachine."""
    taken, seen = {}, 0
    with _tar(path, "data") as tar:
        for member in tar:
            seen += member.size
            if seen > _MOST:
                raise BadMachine(f"{path} unpacks to more than {_MOST >> 30} GiB: that is no package that hvlab knows")
            name = _plain(member.name)
            if not member.isfile() or not wanted(name):
                continue
            if member.size > _LARGEST:
                raise BadMachine(f"{path}: {name} is larger than {_LARGEST >> 20} MiB: that is no package that hvlab knows")
            taken[name] = _content(tar, member)
    return taken


def _plain(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return stream.read() if stream else b""


@contextmanager
def _tar(path: Path, part: str) -> Iterator[tarfile.TarFile]:
    """The tar archive `control` or `data` of a package, read once from front to back."""
    try:
        name, data = _member(path, f"{part}.tar")
        packing = name.rpartition(".")[2]
        if packing == "zst":
            data, packing = unpack_zstd(data, _MOST), "tar"
        with tarfile.open(fileobj=io.BytesIO(data), mode="r|" if packing == "tar" else "r|*") as tar:
            yield tar
    except OSError as e:
        raise BadMachine(f"{path} cannot be read: {e.strerror or e}") from e
    except (tarfile.TarError, lzma.LZMAError, zlib.error, ValueError, EOFError) as e:
        raise BadMachine(f"{path} is a damaged Debian package ({e}): download it again") from e


def _member(path: Path, prefix: str) -> tuple[str, bytes]:
    """Name and bytes of the member of an `ar` archive whose name begins with `prefix`."""
    if path.exists() and not path.is_file():
        raise BadMachine(f"{path} cannot be read: it is no file")
    with path.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise BadMachine(f"{path} is no Debian package (.deb): give the files of linux-image-...-cloud-amd64 and busybox-static")
        while len(header := stream.read(_HEADER)) == _HEADER:
            name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
            if not name.startswith(prefix):
                stream.seek(size + size % 2, io.SEEK_CUR)
                continue
            data = stream.read(max(0, size))
            if len(data) != size or size < 0:
                raise ValueError(f"its part {name} is cut off")
            return name, data
    raise ValueError(f"it has no part {prefix}")
