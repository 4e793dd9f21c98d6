"""The file that a snapshot lies in: a preamble, sections one after another, and a header in JSON at the end that says where they are.

    0    8 bytes   magic: 89 48 56 4C 41 42 0D 0A
    8    u32       version of the format
    12   u32       CRC-32 of the header
    16   u64       where the header lies
    24   u64       its bytes
    32   u32       CRC-32 of what precedes
    36   28 bytes  zeros
    64             sections, then the header, which ends the file

All numbers are little-endian.  docs/snapshots.md says what the sections hold.  A file comes to its name whole or not at all.
"""

import json
import os
import struct
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..errors import BadSnapshot, HvlabError
from .pages import best_codec, check, pack, unpack

__all__ = ["VERSION", "Reader", "Section", "Writer"]

MAGIC, VERSION = b"\x89HVLAB\r\n", 1
_PREAMBLE = struct.Struct("<8sIIQQI28x")
_BEFORE_SUM = 32
_LARGEST_HEADER, _LARGEST_SECTION = 64 << 20, 1 << 30


@dataclass(frozen=True)
class Section:
    """Bytes in the file: where they begin, how many there are and what they are packed by, how many they stand for, their CRC-32."""

    offset: int
    size: int
    codec: str
    raw: int
    crc: int

    @classmethod
    def of(cls, value: Any, end: int) -> "Section":
        """What a header says of one, in a file whose sections end at `end`.  Raises BadSnapshot."""
        sound = isinstance(value, list) and len(value) == 5 and all(type(n) is int and n >= 0 for n in (*value[:2], *value[3:]))
        if not sound or value[0] < _PREAMBLE.size or value[0] + value[1] > end or value[3] > _LARGEST_SECTION:
            raise BadSnapshot("its header tells of a section that cannot be")
        return cls(*value)

    def told(self) -> list[Any]:
        """As a header has it."""
        return [self.offset, self.size, self.codec, self.raw, self.crc]


@dataclass
class Writer:
    """A new file for `path`, which it becomes at the end of a `with` that nothing breaks off.

    Raises HvlabError where it cannot be written.
    """

    path: Path
    sections: dict[str, Section] = field(default_factory=dict)
    codec: str = field(default_factory=best_codec)

    def __enter__(self) -> "Writer":
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise HvlabError(f"{self.path} cannot be written (it is there, and no file): name a file")
        try:
            number, name = tempfile.mkstemp(prefix=f".{self.path.name[:100]}-", dir=self.path.parent)
        except OSError as e:
            raise HvlabError(f"{self.path} cannot be written ({e.strerror}): name a file in a folder that you may write to") from e
        self._name, self._file = Path(name), os.fdopen(number, "wb")
        self._file.write(bytes(_PREAMBLE.size))
        self._at = _PREAMBLE.size
        return self

    def add(self, packed: bytes, codec: str, raw: int) -> Section:
        """Packed bytes, which stand for `raw` bytes."""
        section = Section(self._at, len(packed), codec, raw, check(packed))
        self._file.write(packed)
        self._at += len(packed)
        return section

    def put(self, name: str, data: bytes) -> None:
        """A section of the header's."""
        self.sections[name] = self.add(pack(self.codec, data), self.codec, len(data))

    def finish(self, header: dict[str, Any]) -> int:
        """Header and preamble; the bytes of the file."""
        told = json.dumps(header | {"sections": {name: s.told() for name, s in self.sections.items()}}, allow_nan=False).encode()
        start = _PREAMBLE.pack(MAGIC, VERSION, check(told), self._at, len(told), 0)
        self._file.write(told)
        self._file.seek(0)
        self._file.write(_PREAMBLE.pack(MAGIC, VERSION, check(told), self._at, len(told), check(start[:_BEFORE_SUM])))
        return self._at + len(told)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        try:
            self._file.close()
            if error is None:
                os.chmod(self._name, 0o666 & ~_umask())
                os.replace(self._name, self.path)
        except OSError as e:
            raise HvlabError(f"{self.path} cannot be written ({e.strerror}): is there room?") from e
        finally:
            self._name.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise HvlabError(f"{self.path} cannot be written ({error.strerror}): is there room?") from error


def _umask() -> int:
    """The process's mask for new files; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


class Reader:
    """A file that is open for reading; its header has been checked.  Raises BadSnapshot for what is no snapshot, or a damaged one."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        start = file.read(_PREAMBLE.size)
        if len(start) < _PREAMBLE.size or start[:len(MAGIC)] != MAGIC:
            raise BadSnapshot("it is no snapshot of a machine")
        _, version, crc, at, size, start_crc = _PREAMBLE.unpack(start)
        if check(start[:_BEFORE_SUM]) != start_crc or any(start[_BEFORE_SUM + 4:]):
            raise BadSnapshot("its beginning is damaged")
        if version != VERSION:
            raise BadSnapshot(f"it has format {version}, and this version reads format {VERSION}")
        self.size = os.fstat(file.fileno()).st_size
        if size > _LARGEST_HEADER or at + size != self.size:
            raise BadSnapshot("it is cut off, or something was added to it")
        self._end = at
        told = self._bytes(at, size, crc)
        self.header: dict[str, Any] = values(told)
        if not isinstance(self.header, dict) or not isinstance(self.header.get("sections"), dict):
            raise BadSnapshot("its header is none")

    def _bytes(self, at: int, size: int, crc: int) -> bytes:
        data = _read(self._file.fileno(), at, size)
        if len(data) != size or check(data) != crc:
            raise BadSnapshot("a part of it is damaged")
        return data

    def section(self, told: Any) -> Section:
        """What the header says of a section."""
        return Section.of(told, self._end)

    def packed(self, section: Section) -> bytes:
        """The bytes of a section as they lie there, checked."""
        return self._bytes(section.offset, section.size, section.crc)

    def get(self, name: str) -> bytes:
        """A section of the header's by its name."""
        section = self.section(self.header["sections"].get(name))
        return unpack(section.codec, self.packed(section), section.raw)


def _read(descriptor: int, at: int, size: int) -> bytes:
    """Bytes of a file from any thread; fewer where it ends."""
    parts = []
    while size and (part := os.pread(descriptor, size, at)):
        parts.append(part)
        at, size = at + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def values(data: bytes) -> Any:
    """JSON as plain values.  Raises BadSnapshot for what is none."""
    try:
        return json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as e:
        raise BadSnapshot("what it says of itself cannot be read") from e


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")


def joined(parts: Iterable[bytes]) -> bytes:
    """Bytes one after another."""
    return b"".join(parts)
