"""What can be booted as the guest: the lab guest that hvlab ships, or a Linux; and what its loader tells it."""

import os
import re
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadConfig, BadMachine, HvlabError, quoted
from .machine.description import MachineDescription
from .machine.pc import Pc
from .sources import images_dir
from .spec.linuxboot import Elf, Kernel, load_elf
from .vmm.config import Config
from .vmm.guest import line_bytes

if TYPE_CHECKING:
    from .linux import LinuxImage

__all__ = ["INIT", "PROMPT", "Contents", "check_words", "choose_guest", "command_line", "contents", "guest_name", "has_init", "is_linux",
           "lab_guest", "linux_guest", "refuse_linux"]

COMMAND_LINE = "console=ttyS0,115200"
LINUX_COMMAND_LINE = "earlyprintk=serial,ttyS0,115200 mitigations=off tsc_early_khz=2000000 rdinit=/init"
"""What every Linux is told besides.  Its clock is the TSC, which is virtual time at 2 GHz; the processor has no leaks to mitigate."""
RAM_PER_RECORDS, GIB = 64, 1 << 30
"""A kernel keeps a record of 64 bytes for each page of 4 KiB of RAM: a 64th."""
PROMPT = b"lab# "
"""What the shell of hvlab's initramfs prints when it takes a command."""
INIT = "/init"
"""The first process of hvlab's initramfs."""


def lab_guest() -> Elf:
    """The lab guest that hvlab ships."""
    path = images_dir() / "guests" / "lab.elf"
    if not path.exists():
        raise BadMachine(f"{path} is missing: build it with `make images`")
    return load_elf(path.read_bytes())


def linux_guest(image: "LinuxImage", words: str = "") -> Kernel:
    """A Linux as the loader takes it; `words` come last on its command line, where they count most."""
    return Kernel(image.elf, image.setup_header, image.initrd, f"{LINUX_COMMAND_LINE} {words}".strip())


def is_linux(guest: Elf | Kernel | None) -> bool:
    """Whether a guest is a Linux: its kernel's file had a setup header, which the lab guest's has not."""
    return isinstance(guest, Kernel) and bool(guest.setup_header)


def refuse_linux(pc: Pc, config: Config, words: str) -> None:
    """Raises HvlabError, a sentence for each reason, where a Linux with `words` on its command line would not run here."""
    if pc.cpu.state is None:
        raise HvlabError("a Linux needs parts of the emulator that lie elsewhere in this version of it: install unicorn 2.1.4 "
                         "for x86-64, or boot the lab guest")
    if config.TINYVISOR:
        raise BadConfig("TINYVISOR=y takes two lab guests, no Linux: set TINYVISOR=n")
    records, free = pc.machine.ram_bytes // RAM_PER_RECORDS, _free_memory()
    if free is not None and records > free // 2 and "mem=" not in words:
        raise BadMachine(f"a Linux keeps {records / GIB:.3g} GiB of records for the RAM of {pc.machine.name}, and this computer has only "
                         f"{free / GIB:.3g} GiB free for everything: let it use less, as in command_line='mem=64G'")


def _free_memory() -> int | None:
    """Bytes of memory that this computer could give; None where it does not say."""
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) << 10 if found else None


def choose_guest(guest: Any = None, kernel: Any = None, initrd: Any = None, words: str | None = None) -> Elf | Kernel:
    """The guest that `Machine.boot` was asked for: by name, as an image, or as files.  Raises BadConfig, or BadMachine for the files.

    `words` are added to the kernel's command line.
    """
    if words is not None and not isinstance(words, str):
        raise BadConfig(f"command_line takes text for the kernel, as in command_line='nvme_core.admin_timeout=5', not {quoted(words)}")
    by_name = _linux_by_name(guest, kernel, initrd)
    if by_name is not None:
        return linux_guest(by_name, words or "")
    if kernel is not None or initrd is not None:
        raise BadConfig("kernel and initrd are files of a Linux: give them with guest='linux'")
    chosen = _as_given(guest)
    if not words:
        return chosen
    loaded = chosen if isinstance(chosen, Kernel) else Kernel(chosen)
    return replace(loaded, command_line=f"{loaded.command_line} {words}".strip())


def _linux_by_name(guest: Any, kernel: Any, initrd: Any) -> "LinuxImage | None":
    """`linux`, the newest of the cache, or `linux-6.1`; None where it is not asked for by name."""
    name = "linux" if guest is None and kernel is not None else guest
    if not isinstance(name, str) or name.partition("-")[0] != "linux":
        return None
    from .linux import linux_image
    return linux_image(name.partition("-")[2] or None, _path(kernel, "kernel"), _path(initrd, "initrd"))


def _path(given: Any, what: str) -> Path | None:
    if given is not None and not isinstance(given, str | PathLike):
        raise BadConfig(f"{what} is the path of a file, not {quoted(given)}")
    if given is not None and "\0" in os.fspath(given):
        raise BadConfig(f"{what} is the path of a file, which has no zero byte as {quoted(given)} has")
    return None if given is None else Path(given)


def _as_given(guest: Any) -> Elf | Kernel:
    if guest is None or guest == "lab":
        return lab_guest()
    if isinstance(guest, Elf | Kernel):
        return guest
    if isinstance(guest, str):
        raise BadConfig(f"there is no guest {quoted(guest)}: give 'lab', 'linux', or 'linux-6.1' for a release of the cache")
    from .linux import LinuxImage
    if isinstance(guest, LinuxImage):
        return linux_guest(guest)
    raise BadConfig(f"{quoted(guest)} is no guest: give 'lab', 'linux', a LinuxImage, a Kernel or an Elf")


def check_words(machine: MachineDescription, guest: Elf | Kernel) -> None:
    """Raises BadMachine, before anything is switched on, where `guest` would get a command line that no loader can hand over."""
    if isinstance(guest, Kernel):
        line_bytes(f"{command_line(machine)} {guest.command_line}")


def command_line(machine: MachineDescription) -> str:
    """What the loader tells every guest; `pci=lastbus=` where there are buses to which no bridge leads, as on machines of two sockets."""
    first = [f for f in machine.pci if not f.segment]
    behind = {bus for f in first if f.subordinate for bus in range(f.secondary, f.subordinate + 1)}
    roots = {f.source >> 8 for f in first} - behind - {0}
    return COMMAND_LINE + (f" pci=lastbus={max(f.source >> 8 for f in first):d}" if roots else "")


# --- what a guest's bytes say it is

_BANNER = re.compile(rb"Linux version (\d\S{0,99}) \(")
_CONTENTS = re.compile(rb"hvlab-initramfs \d+\nlinux (\S{1,200}) ?(\([^\n()]{1,300}\))?\nbusybox ([^\n]{1,200})\n")
"""What hvlab's initramfs says of itself in /etc/hvlab; the package is named where the kernel is the cache's."""


@dataclass(frozen=True)
class Contents:
    """What a Linux is made of: `release` as `uname -r` has it, `package` in brackets where the kernel is of the cache of `hvlab linux`,
    `busybox` where the initramfs is hvlab's; empty where not."""

    release: str
    package: str
    busybox: str

    def __str__(self) -> str:
        inside = f", busybox {self.busybox}" if self.busybox else ", with an initramfs of its user's"
        return f"Linux {self.release}{' ' + self.package if self.package else ''}{inside}"


def contents(linux: Kernel) -> Contents:
    """What a Linux is made of, by the bytes of its kernel and its initramfs."""
    banner = next(filter(None, (_BANNER.search(segment.data) for segment in linux.elf.segments)), None)
    told = _CONTENTS.search(linux.initrd)
    release = _text(banner[1]) if banner else "of unknown version"
    package = _text(told[2] or b"") if told and _text(told[1]) == release else ""
    return Contents(release, package, _text(told[3]) if told else "")


def has_init(guest: Elf | Kernel | None) -> bool:
    """Whether a guest's initramfs is hvlab's, whose init says when its shell is ready."""
    return isinstance(guest, Kernel) and _CONTENTS.search(guest.initrd) is not None


def guest_name(guest: Elf | Kernel) -> str:
    """Which guest this is, in a line."""
    if isinstance(guest, Kernel) and is_linux(guest):
        return str(contents(guest))
    elf = guest.elf if isinstance(guest, Kernel) else guest
    return "lab" if elf == lab_guest() else "neither a Linux nor the lab guest of this version"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
