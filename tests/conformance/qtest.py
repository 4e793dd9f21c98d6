"""QEMU driven through its qtest socket: a machine whose processor executes `cli; hlt`, and whose buses the test reads and writes."""

import base64
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

__all__ = ["Qtest"]

_Self = TypeVar("_Self", bound="Qtest")
_ROM = b"\xf4" * 0xFFF0 + b"\xfa\xf4\xeb\xfd" + bytes(12)
_DEADLINE = 60
"""Seconds of wall time after which an answer is given up."""


class Qtest:
    """One QEMU.  With `-icount sleep=off` its virtual time passes as soon as nothing else is to be done."""

    def __init__(self, arguments: Sequence[str], memory: int = 256 << 20, machine: str = "q35,hpet=off,pit=off"):
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        (self.folder / "rom").write_bytes(_ROM)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.folder / "qtest"))
            listener.listen(1)
            listener.settimeout(_DEADLINE)
            self._process = subprocess.Popen(
                ["qemu-system-x86_64", "-machine", machine, "-accel", "tcg", "-icount", "shift=0,sleep=off", "-m", f"{memory >> 20}M",
                 "-nodefaults", "-display", "none", "-bios", str(self.folder / "rom"), "-qtest", f"unix:{self.folder / 'qtest'}",
                 "-qtest-log", "/dev/null", *arguments],
                stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder)
            self._socket, _ = listener.accept()
        self._socket.settimeout(_DEADLINE)
        self._replies = self._socket.makefile("rb")

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._replies.close()
        self._socket.close()
        self._folder.cleanup()

    def exchange(self, *commands: str) -> list[int]:
        """What each command answered, 0 where it was plain OK."""
        self._socket.sendall("".join(f"{c}\n" for c in commands).encode())
        return [self._answer(c) for c in commands]

    def _answer(self, command: str) -> int:
        words = self._replies.readline().split()
        if not words or words[0] != b"OK":
            raise RuntimeError(f"QEMU answered {words} to {command}")
        return int(words[1], 16) if len(words) > 1 else 0

    def write_memory(self, address: int, data: bytes) -> None:
        """Stores bytes at a host-physical address."""
        self.exchange(f"b64write {address:#x} {len(data):#x} {base64.b64encode(data).decode()}")

    def configure(self, source: int, offset: int, *words: int) -> None:
        """Writes 32-bit words of a function's configuration space, from `offset` up."""
        for i, word in enumerate(words):
            self.exchange(f"outl 0xcf8 {0x8000_0000 | source << 8 | offset + 4 * i:#x}", f"outl 0xcfc {word:#x}")
