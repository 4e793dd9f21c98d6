"""The guest that hvlab ships, and what its loader tells it."""

from .errors import BadMachine
from .machine.description import MachineDescription
from .sources import images_dir
from .spec.linuxboot import Elf, load_elf

__all__ = ["command_line", "lab_guest"]

COMMAND_LINE = "console=ttyS0,115200"


def lab_guest() -> Elf:
    """The lab guest that hvlab ships."""
    path = images_dir() / "guests" / "lab.elf"
    if not path.exists():
        raise BadMachine(f"{path} is missing: build it with `make images`")
    return load_elf(path.read_bytes())


def command_line(machine: MachineDescription) -> str:
    """What the loader tells the guest; `pci=lastbus=` where there are buses to which no bridge leads, as on machines of two sockets."""
    first = [f for f in machine.pci if not f.segment]
    behind = {bus for f in first if f.subordinate for bus in range(f.secondary, f.subordinate + 1)}
    roots = {f.source >> 8 for f in first} - behind - {0}
    return COMMAND_LINE + (f" pci=lastbus={max(f.source >> 8 for f in first):d}" if roots else "")
