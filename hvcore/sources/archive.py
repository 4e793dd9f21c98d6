"""Archives as machines: the files of a .tar, .tar.gz or .zip, taken into memory without trusting it.

An archive holds what a folder holds (see `folder`), at its top or in a folder of its own; `hvlab collect` writes such a one.  Nothing is
ever unpacked to disk.
"""

import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeAlias

from ..errors import BadMachine, quoted

__all__ = ["ENDINGS", "MOST_BYTES", "MOST_FILES", "MOST_IN_ALL", "archive_name", "is_archive", "read_archive"]

ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")
"""How an archive's name ends."""
MOST_BYTES, MOST_IN_ALL, MOST_FILES = 32 << 20, 64 << 20, 2048
"""What one file may have, all of them, and how many there may be."""
_MOST_ZIP = 8 << 20
"""Bytes of a whole .zip: its directory is read at once."""
_OVERHEAD = 8 << 20
"""Bytes of a .tar besides its files' content."""
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_MOST_EXTENSION, _MOST_EXTENSIONS = 2048, 256
"""Bytes of a header that extends the next one, and how many such there may be."""
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, OverflowError, ValueError,
           struct.error)
"""What the standard library raises for broken archives; RuntimeError has encryption, unknown compression and endless nesting."""


@dataclass(frozen=True, slots=True)
class _Member:
    """One entry: its name as it stands there, whether it is a folder, what else it is if it is no file, and its size as told."""

    name: str
    folder: bool
    odd: str
    size: int


_Entries: TypeAlias = Iterator[tuple[_Member, Callable[[], bytes]]]


def is_archive(path: Path) -> bool:
    """Whether a file's name is one of an archive."""
    return path.name.lower().endswith(ENDINGS)


def archive_name(path: Path) -> str:
    """An archive's name without its ending."""
    ending = next((e for e in ENDINGS if path.name.lower().endswith(e)), "")
    return path.name[:len(path.name) - len(ending)] or path.name


def read_archive(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The content of an archive's files by their names without folders, of those only that are `wanted`.

    Raises `BadMachine`, one sentence, for whatever is no plain set of files: a path that leads out of the archive, a link, a device, too
    much in it, the same name twice, bytes that cannot be read.
    """
    if not path.is_file():
        raise BadMachine(f"{path}: not a file")
    try:
        with path.open("rb") as file:
            return _files(path, _zip(path, file) if path.name.lower().endswith(".zip") else _tar(path, file), wanted)
    except RecursionError as e:
        raise BadMachine(f"{path}: the archive's entries are nested without end: it is no machine") from e
    except _BROKEN as e:
        if isinstance(e, OSError) and e.errno:
            raise BadMachine(f"{path} cannot be read ({e.strerror})") from e
        raise BadMachine(f"{path}: the archive cannot be read, it is cut short, damaged or encrypted ({_reason(e)})") from e


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _files(path: Path, entries: _Entries, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    places: dict[str, str] = {}
    count = total = 0
    for member, read in entries:
        count, total = count + 1, total + member.size
        _refuse(path, member, count, total)
        name = PurePosixPath(member.name).name
        if member.folder or not wanted(name):
            continue
        if name in places:
            raise BadMachine(f"{path}: {quoted(name)} is in it twice, as {quoted(places[name])} and as {quoted(member.name)}: "
                             "put the files of one machine into an archive")
        data = read()
        if len(data) != member.size:
            raise BadMachine(f"{path}: {quoted(member.name)} has {len(data)} bytes where {member.size} are told: the archive is damaged")
        found[name], places[name] = data, member.name
    return found


def _refuse(path: Path, member: _Member, count: int, total: int) -> None:
    """Raises for an entry that no honest archive has."""
    name = quoted(member.name)
    parts = member.name.replace("\\", "/").split("/")
    if parts[0] == "" or ":" in parts[0] or "\0" in member.name:
        raise BadMachine(f"{path}: {name} is no relative path: nothing of this archive is used")
    if ".." in parts:
        raise BadMachine(f"{path}: {name} climbs out of the archive: nothing of it is used")
    if member.odd:
        raise BadMachine(f"{path}: {name} is {member.odd}, and only files and folders may be in a machine's archive")
    if member.size > MOST_BYTES:
        raise BadMachine(f"{path}: {name} has {member.size >> 20} MiB unpacked, {MOST_BYTES >> 20} MiB are the most: "
                         "give the log of one boot")
    if count > MOST_FILES or total > MOST_IN_ALL:
        raise BadMachine(f"{path}: more than {MOST_FILES} entries or {MOST_IN_ALL >> 20} MiB unpacked: this is no machine's archive")


class _Limited(io.RawIOBase):
    """A stream that ends in BadMachine where it grows beyond what any machine's archive has, so that a small file cannot fill memory."""

    def __init__(self, path: Path, source: BinaryIO):
        self.path, self.source, self.left = path, source, MOST_IN_ALL + _OVERHEAD

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        data = self.source.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(data)
        if self.left < 0:
            raise BadMachine(f"{self.path}: more than {MOST_IN_ALL >> 20} MiB unpacked: this is no machine's archive")
        return data


def _tar(path: Path, file: BinaryIO) -> _Entries:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    source: BinaryIO = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
    with tarfile.open(fileobj=_Limited(path, source), mode="r|", tarinfo=_careful(path)) as tar:
        for info in tar:
            yield _tar_member(info), partial(_extracted, tar, info)


def _careful(path: Path) -> type[tarfile.TarInfo]:
    """What reads headers, with a limit on those that extend others: the library reads them whole and searches them slowly."""
    seen = [0]

    class Info(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Info":
            info = super().frombuf(buf, encoding, errors)
            if info.type in _EXTENSIONS:
                seen[0] += 1
                if info.size > _MOST_EXTENSION or seen[0] > _MOST_EXTENSIONS:
                    raise BadMachine(f"{path}: names or attributes in it take more than any machine's files need: pack it anew")
            return info

    return Info


def _tar_member(info: tarfile.TarInfo) -> _Member:
    odd = ("a link" if info.issym() or info.islnk() else "a device" if info.isdev() else "a sparse file" if info.issparse()
           else "" if info.isfile() or info.isdir() else "no plain file")
    return _Member(info.name, info.isdir(), odd, info.size)


def _extracted(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(info)
    return stream.read() if stream else b""


def _zip(path: Path, file: BinaryIO) -> _Entries:
    if path.stat().st_size > _MOST_ZIP:
        raise BadMachine(f"{path}: a .zip of more than {_MOST_ZIP >> 20} MiB: take .tar.gz, or leave out what is not the machine's")
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            yield _zip_member(info), partial(_unzipped, archive, info)


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    odd = "a link" if kind == stat.S_IFLNK else "a device" if kind not in (0, stat.S_IFREG, stat.S_IFDIR) else ""
    return _Member(info.filename, info.filename.endswith("/"), odd, info.file_size)


def _unzipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as stream:
        return stream.read(MOST_BYTES + 1)
