"""What a report says of a Linux that was the guest: which it is, what it was told, its console in short, how to boot it again."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ..guestimage import LINUX_COMMAND_LINE, PROMPT, Contents, command_line, contents, is_linux
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
_QUESTION = re.compile(rf"^{re.escape(PROMPT.decode() + STATUS)}\n\d+\n", re.MULTILINE)
"""How hvlab itself asks for a command's exit status, and the answer."""
_TELLING = re.compile(r"Linux version |\] Command line: |nvme|DMAR|IOMMU|iommu|AMD-Vi|Kernel panic|\bBUG\b|\bOops\b|Call Trace|RIP: "
                      r"|WARNING: |remapping|timed? ?out|[Ff]ailed|[Uu]nable|segfault|reset|^lab: ")


@dataclass(frozen=True)
class LinuxGuest:
    """A Linux that was loaded: `made` says of what, `told` is its whole command line, `words` what the user added to that."""

    made: Contents
    told: str
    words: str

    @property
    def name(self) -> str:
        """In a line."""
        return str(self.made)

    @property
    def choice(self) -> list[str]:
        """The words of `hvlab boot` that choose it; a kernel of the user's own is `vmlinuz`, an initramfs `initrd.img`."""
        kernel = ["--guest", f"linux-{self.made.release}"] if self.made.package else ["--kernel", "vmlinuz"]
        initrd = [] if self.made.busybox else ["--initrd", "initrd.img"]
        return [*kernel, *initrd, *(["--append", self.words] if self.words else [])]

    @property
    def needs(self) -> str:
        """What must be there to boot it, in a sentence."""
        if self.made.package:
            return f"The guest is Debian's kernel: `hvlab linux fetch --release {self.made.release}` brings it."
        if self.made.busybox:
            return "The guest's kernel is not in this report: put vmlinuz where the command is run."
        return "The guest's kernel and initramfs are not in this report: put vmlinuz and initrd.img where the command is run."


def linux_of(machine: "Machine") -> LinuxGuest | None:
    """The Linux that was loaded as the machine's guest, by the bytes of its kernel and its initramfs; None where there is none."""
    guest = machine.guest
    if not isinstance(guest, Kernel) or not is_linux(guest):
        return None
    words = guest.command_line.removeprefix(LINUX_COMMAND_LINE).strip()
    told = f"{command_line(machine.description)} {guest.command_line}".strip()
    return LinuxGuest(contents(guest), told, words)


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
