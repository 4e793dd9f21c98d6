"""What a report says of a Linux that was the guest: which it is, what it was told, its console in short, how to boot it again."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ..guestimage import LINUX_COMMAND_LINE, PROMPT, command_line, is_linux
from ..shell import STATUS
from ..spec.linuxboot import Kernel

if TYPE_CHECKING:
    from ..session import Machine

__all__ = ["LinuxGuest", "in_short", "linux_of"]

SHOWN = 120
"""Lines of a console in short."""
_LAST = 5
"""Lines at its end that are always there."""
_WIDE = 240
"""Characters of a line there."""
_BANNER = re.compile(rb"Linux version (\d\S{0,99}) \(")
_CONTENTS = re.compile(rb"hvlab-initramfs \d+\nlinux (\S{1,200}) ?(\([^\n()]{1,300}\))?\nbusybox ([^\n]{1,200})\n")
"""What hvlab's initramfs says of itself in /etc/hvlab; the package is named where the kernel is the cache's."""
_QUESTION = re.compile(rf"^{re.escape(PROMPT.decode() + STATUS)}\n\d+\n", re.MULTILINE)
"""How hvlab itself asks for a command's exit status, and the answer."""
_TELLING = re.compile(r"Linux version |\] Command line: |nvme|DMAR|IOMMU|iommu|AMD-Vi|Kernel panic|\bBUG\b|\bOops\b|Call Trace|RIP: "
                      r"|WARNING: |remapping|timed? ?out|[Ff]ailed|[Uu]nable|segfault|reset|^lab: ")


@dataclass(frozen=True)
class LinuxGuest:
    """A Linux that was loaded: `release` as `uname -r` has it, `package` in brackets where it is of the cache of `hvlab linux`, `busybox`
    where the initramfs is hvlab's, `told` its whole command line, `words` what the user added to that."""

    release: str
    package: str
    busybox: str
    told: str
    words: str

    @property
    def name(self) -> str:
        """In a line."""
        inside = f", busybox {self.busybox}" if self.busybox else ", with an initramfs of its user's"
        return f"Linux {self.release}{' ' + self.package if self.package else ''}{inside}"

    @property
    def choice(self) -> list[str]:
        """The words of `hvlab boot` that choose it; a kernel of the user's own is `vmlinuz`, an initramfs `initrd.img`."""
        kernel = ["--guest", f"linux-{self.release}"] if self.package else ["--kernel", "vmlinuz"]
        initrd = [] if self.busybox else ["--initrd", "initrd.img"]
        return [*kernel, *initrd, *(["--append", self.words] if self.words else [])]

    @property
    def needs(self) -> str:
        """What must be there to boot it, in a sentence."""
        if self.package:
            return f"The guest is Debian's kernel: `hvlab linux fetch --release {self.release}` brings it."
        if self.busybox:
            return "The guest's kernel is not in this report: put vmlinuz where the command is run."
        return "The guest's kernel and initramfs are not in this report: put vmlinuz and initrd.img where the command is run."


def linux_of(machine: "Machine") -> LinuxGuest | None:
    """The Linux that was loaded as the machine's guest, by the bytes of its kernel and its initramfs; None where there is none."""
    guest = machine.guest
    if not isinstance(guest, Kernel) or not is_linux(guest):
        return None
    banner = next(filter(None, (_BANNER.search(segment.data) for segment in guest.elf.segments)), None)
    contents = _CONTENTS.search(guest.initrd)
    release = _text(banner[1]) if banner else "of unknown version"
    package = _text(contents[2] or b"") if contents and _text(contents[1]) == release else ""
    words = guest.command_line.removeprefix(LINUX_COMMAND_LINE).strip()
    told = f"{command_line(machine.description)} {guest.command_line}".strip()
    return LinuxGuest(release, package, _text(contents[3]) if contents else "", told, words)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# --- its console

def in_short(text: str) -> str:
    """Of a Linux's console what it begins with, what tells of disks, units and failures, and what was said at its shell.

    Left out lines are counted; what is still too long is cut in the middle.
    """
    lines = _QUESTION.sub("", text).splitlines()
    wanted = sorted({*_telling(lines), *range(max(0, len(lines) - _LAST), len(lines))})
    if len(wanted) > SHOWN:
        wanted = wanted[:SHOWN // 2] + wanted[-SHOWN // 2:]
    return "\n".join(_with_gaps(lines, set(wanted)))


def _telling(lines: list[str]) -> Iterator[int]:
    """The numbers of lines that tell something: all of them once a shell is there."""
    ready = False
    for number, line in enumerate(lines):
        ready = ready or line.startswith("lab: ready")
        if (ready and line.strip()) or _TELLING.search(line):
            yield number


def _with_gaps(lines: list[str], chosen: set[int]) -> Iterator[str]:
    for shown, group in groupby(range(len(lines)), key=chosen.__contains__):
        numbers = list(group)
        if shown:
            yield from (lines[n] if len(lines[n]) <= _WIDE else f"{lines[n][:_WIDE]} [...]" for n in numbers)
        elif any(lines[n].strip() for n in numbers):
            yield f"[{len(numbers):,} line{'s' if len(numbers) > 1 else ''} left out]"
