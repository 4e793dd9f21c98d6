"""`hvlab report` and `hvlab dump`: what is left in files of a machine that was booted, or restored from a snapshot."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadConfig
from .machines import add_source, brought, check_source, restored, using
from .progress import end_progress, progress

if TYPE_CHECKING:
    from ..inspect.matrix import Matrix
    from ..session import Machine

__all__ = ["add_dump", "add_report"]


def add_dump(command: argparse.ArgumentParser) -> None:
    """The options of `hvlab dump`."""
    add_source(command)
    command.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="folder for tables.npz and registers.json")
    command.set_defaults(run=_dump)


def add_report(command: argparse.ArgumentParser) -> None:
    """The options of `hvlab report`."""
    add_source(command)
    command.add_argument("-o", "--output", required=True, type=Path, metavar="FILE",
                         help="a name that ends in .html or .pdf; or in .ipynb: an executed notebook")
    command.add_argument("--attacks", action="store_true", help="also runs every attack under every policy")
    command.add_argument("--compare", action="store_true", help="two runs: A with --set or --from, B with --set2 besides")
    command.add_argument("--set2", action="append", default=[], metavar="NAME=VALUE", dest="others", help="an option of run B")
    command.set_defaults(run=_report)


def _dump(options: argparse.Namespace) -> None:
    machine, run = brought(options)
    with using(machine):
        for path in run.dump(options.output):
            print(path)


def _report(options: argparse.Namespace) -> None:
    from ..report import check_name, compare_report, write_report
    from ..vmm.config import parse_settings
    if Path(options.output).suffix.lower() == ".ipynb":
        return _report_notebook(options)
    path, others = check_name(options.output), parse_settings(options.others)
    check_source(options)
    if bool(others) != options.compare:
        raise BadConfig("--compare needs at least one --set2 NAME=VALUE, and --set2 needs --compare")
    machine, _run = brought(options)
    try:
        with using(machine):
            grid = _grid(machine) if options.attacks else None
            if others:
                compare_report(machine, path, grid, progress(), **others)
            else:
                write_report(machine, path, grid, progress())
    finally:
        end_progress()
    print(path)


def _grid(machine: "Machine") -> "Matrix":
    """Every attack under every policy, on another machine of the kind."""
    from ..inspect.matrix import matrix
    from ..session import Machine
    with Machine(machine.description) as other:
        return matrix(other, progress=progress())


def _report_notebook(options: argparse.Namespace) -> None:
    from ..guestimage import choose_guest
    from ..report.notebook import Origin, write_notebook
    from ..session import Machine
    from ..vmm.config import Config, parse_settings
    if options.others or options.compare or options.attacks:
        raise BadConfig("a report as a notebook is of one run: without --compare, --set2 and --attacks")
    check_source(options)
    if options.snapshot is not None:
        restored(options.snapshot, options.image)[0].close()
        image = None if options.image is None else str(options.image)
        print(write_notebook(Origin.snapshot(str(options.snapshot), image), options.output))
        return
    settings = parse_settings(options.settings)
    Config(**settings)  # type: ignore[arg-type]
    Machine.load(options.machine).close()
    choose_guest(options.guest, options.kernel, options.initrd, options.append)
    print(write_notebook(Origin.boot(options.machine, settings, _guest(options)), options.output))


def _guest(options: argparse.Namespace) -> dict[str, str]:
    """The arguments of `Machine.boot` that choose the guest as the options do."""
    given = (("guest", options.guest), ("kernel", options.kernel), ("initrd", options.initrd), ("command_line", options.append))
    return {name: str(value) for name, value in given if value is not None}
