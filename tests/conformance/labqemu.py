"""The lab guest on QEMU, as an oracle: its console, and what QEMU itself says of the machine."""

import json
import os
import re
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["EDU", "LAB_ELF", "PROMPT", "Qemu", "answers", "nvme", "qemu_console", "without_stamps"]

LAB_ELF = Path(__file__).resolve().parents[2] / "images" / "guests" / "lab.elf"
PROMPT = "lab> "
STOPPED = re.compile(r"^lab: (unexpected exception .*|.*, stopped)\n\Z", re.MULTILINE)
EDU = "edu,addr=3,dma_mask=0xffffffffffffffff"


def nvme(image: Path, address: str = "2") -> list[str]:
    """QEMU's arguments for an NVMe controller with the raw file `image` behind it."""
    drive = f"file={image},format=raw,if=none,id=disk{address}"
    return ["-drive", drive, "-device", f"nvme,addr={address},drive=disk{address},serial=hvlab"]


class Qemu:
    """One run of the lab guest on a q35 machine.  `deadline` is a guard against hanging, in seconds of wall time for each answer."""

    def __init__(self, arguments: Sequence[str] = (), memory: str = "6G", command_line: str = "", deadline: float = 120):
        self._folder = tempfile.TemporaryDirectory()
        self._qmp_path = Path(self._folder.name, "qmp")
        self._errors = Path(self._folder.name, "stderr").open("w+")  # noqa: SIM115 -- closed by __exit__
        self._deadline = deadline
        self._process = subprocess.Popen(
            ["qemu-system-x86_64", "-machine", "q35", "-cpu", "EPYC", "-accel", "tcg", "-m", memory, "-nodefaults", "-display", "none",
             "-no-reboot", "-serial", "stdio", "-monitor", "none", "-qmp", f"unix:{self._qmp_path},server,nowait", "-kernel", str(LAB_ELF),
             "-append", command_line, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
        self.console = ""

    def __enter__(self) -> "Qemu":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
        self._folder.cleanup()

    def boot(self) -> str:
        """The console up to the first prompt."""
        return self._until_prompt(0)

    def command(self, text: str) -> str:
        """Types a line into the monitor; returns what it answers, without the echo and the next prompt."""
        before = len(self.console)
        assert self._process.stdin
        self._process.stdin.write(text.encode() + b"\r")
        self._process.stdin.flush()
        return _answer(self._until_prompt(before))

    def qmp(self, name: str) -> Any:
        """What QEMU returns to the command `name` of its machine protocol."""
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(self._qmp_path))
            with s.makefile("rw") as stream:
                stream.readline()
                for execute in ("qmp_capabilities", name):
                    stream.write(json.dumps({"execute": execute}) + "\n")
                    stream.flush()
                    while "event" in (reply := json.loads(stream.readline())):
                        pass
        return reply["return"]

    def _until_prompt(self, start: int) -> str:
        """The console from `start` on, when it ends in a prompt, the guest has stopped, or QEMU has ended."""
        assert self._process.stdout
        end = time.monotonic() + self._deadline
        while not (self.console.endswith(PROMPT) and len(self.console) > start) and not STOPPED.search(self.console[start:]):
            if not select.select([self._process.stdout], [], [], max(end - time.monotonic(), 0))[0]:
                raise TimeoutError(f"no prompt after {self._deadline} s; the console so far:\n{self.console}\n{self._stderr()}")
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                self._process.wait()
                break
            self.console += data.decode("latin-1").replace("\r", "")
        if self._process.poll():
            raise RuntimeError(f"QEMU ended with status {self._process.returncode}: {self._stderr()}")
        return self.console[start:]

    def _stderr(self) -> str:
        self._errors.seek(0)
        return self._errors.read()


def _answer(text: str) -> str:
    """Without the echoed line and the prompt."""
    return text.partition("\n")[2].removesuffix(PROMPT)


def qemu_console(commands: Sequence[str], memory: str = "6G", devices: Sequence[str] = (EDU,), arguments: Sequence[str] = (),
                 command_line: str = "", deadline: float = 120) -> str:
    """Boots the lab guest with `devices` (each an argument of -device), types `commands`, and returns the whole console."""
    devices_arguments = [word for device in devices for word in ("-device", device)]
    with Qemu([*devices_arguments, *arguments], memory, command_line, deadline) as q:
        q.boot()
        for command in commands:
            q.command(command)
        return q.console


def answers(console: str) -> list[tuple[str, str]]:
    """A console taken apart: each command of the monitor with its answer."""
    parts = [part.partition("\n") for part in console.split("\n" + PROMPT)[1:]]
    return [(command, answer.rstrip("\n") + "\n" if answer else "") for command, _, answer in parts if command]


def without_stamps(text: str) -> list[str]:
    """The lines without `[    0.123456] ` before them."""
    return [line.partition("] ")[2] if line.startswith("[") else line for line in text.splitlines()]
