"""Where a command's machine comes from: a description that is booted, with a guest, or a snapshot that is restored."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadConfig
from .progress import end_progress, showing, watch

if TYPE_CHECKING:
    from ..run import Run
    from ..session import Machine

__all__ = ["MACHINE_HELP", "add_guest", "add_machine", "add_settings", "add_source", "booted", "brought", "check_source", "restored",
           "using"]

LINUX_LIMIT = 600.0
"""Seconds of wall time after which a Linux that has no shell yet is given up; its patience in virtual time is over long before."""
MACHINE_HELP = "a .toml file, a folder of logs, an archive of one, a kernel log, or a shipped machine's name"


# --- options

def add_machine(command: argparse.ArgumentParser) -> None:
    """The machine, and options of the core."""
    command.add_argument("machine", metavar="MACHINE", help=MACHINE_HELP)
    add_settings(command)


def add_settings(command: argparse.ArgumentParser) -> None:
    """Options of the core."""
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                         help="an option of the core: PROFILE, VTD_TRANS, IOMMU_MAP_END, ...")


def add_guest(command: argparse.ArgumentParser) -> None:
    """Which guest is booted."""
    command.add_argument("--guest", metavar="NAME", help="lab (which comes with hvlab), linux (see `hvlab linux fetch`), or linux-6.1 for "
                         "one of several")
    command.add_argument("--kernel", type=Path, metavar="FILE", help="a Linux of your own: a bzImage (vmlinuz) or vmlinux")
    command.add_argument("--initrd", type=Path, metavar="FILE", help="its initramfs (default: hvlab's own, with the shell that --command "
                         "needs)")
    command.add_argument("--append", metavar="TEXT", help="is added to the kernel's command line")


def add_source(command: argparse.ArgumentParser) -> None:
    """A machine to boot, with its guest; or, instead, a snapshot."""
    command.add_argument("machine", metavar="MACHINE", nargs="?", help=MACHINE_HELP)
    add_settings(command)
    add_guest(command)
    command.add_argument("--from", type=Path, metavar="FILE", dest="snapshot", help="instead of a boot: a machine saved by --save, as it "
                         "stands")
    command.add_argument("--image", type=Path, metavar="FILE", help="with --from: the disk image beneath its disk")


def check_source(options: argparse.Namespace) -> None:
    """Raises BadConfig where a machine is to be both booted and restored, or neither."""
    given = [name for name in ("machine", "settings", "guest", "kernel", "initrd", "append") if getattr(options, name)]
    if options.snapshot is None and options.machine is None:
        raise BadConfig("name a machine to boot, or a snapshot by --from FILE")
    if options.snapshot is not None and given:
        raise BadConfig("--from FILE is a machine that has been booted: leave out MACHINE, --set, --guest, --kernel, --initrd and --append")
    if options.image is not None and options.snapshot is None:
        raise BadConfig("--image is the disk image of a machine that --from restores; a machine that is booted names its own")


# --- machines

def booted(options: argparse.Namespace) -> "tuple[Machine, Run]":
    """The machine that the options name, booted as they say."""
    from ..session import Machine
    from ..vmm.config import Config, parse_settings
    config = Config(**parse_settings(options.settings))  # type: ignore[arg-type]
    machine = Machine.load(options.machine)
    limit = None if options.kernel is None and options.guest in (None, "lab") else LINUX_LIMIT
    try:
        return machine, machine.boot(config, watch=watch(machine), guest=options.guest, kernel=options.kernel, initrd=options.initrd,
                                     command_line=options.append, limit=limit)
    except BaseException:
        machine.close()
        raise
    finally:
        end_progress()


def restored(path: Path, image: Path | None) -> "tuple[Machine, Run]":
    """The machine in a snapshot, as it stood."""
    from ..session import Machine
    with showing(f"restoring {path.name}"):
        machine = Machine.restore(path, image)
    if image is not None and machine.description.disk.image is None:
        machine.close()
        raise BadConfig(f"the disk of {path} lies over no image: leave out --image")
    assert machine.run is not None
    return machine, machine.run


def brought(options: argparse.Namespace) -> "tuple[Machine, Run]":
    """Booted or restored, as the options say.  Raises BadConfig where they say both."""
    check_source(options)
    return booted(options) if options.snapshot is None else restored(options.snapshot, options.image)


@contextmanager
def using(machine: "Machine") -> Iterator[None]:
    """The machine's memory is given back at the end.  Nobody looks at its run then, which `close` would read once more and keep."""
    try:
        yield
    finally:
        machine.settle(freeze=False)
        machine.pc.close()
