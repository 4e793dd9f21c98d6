"""`hvlab boot`, `hvlab resume`, `hvlab snapshot`: a machine from power-on or out of a file, lines for its guest, and into a file again."""

import argparse
import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HvlabError, Overdue
from .machines import add_guest, add_machine, booted, restored, using
from .progress import end_progress, showing, watch

if TYPE_CHECKING:
    from ..run import Run
    from ..session import Machine
    from ..snapshot import Told

__all__ = ["add_boot", "add_resume", "add_snapshot"]

PATIENCE = 60.0
"""Seconds of wall time that a machine which is resumed gets to come to rest."""


# --- boot and resume

def add_boot(command: argparse.ArgumentParser) -> None:
    """The options of `hvlab boot`."""
    add_machine(command)
    add_guest(command)
    _add_use(command)
    command.set_defaults(run=_boot)


def add_resume(command: argparse.ArgumentParser) -> None:
    """The options of `hvlab resume`."""
    command.add_argument("file", type=Path, metavar="FILE", help="a machine saved by --save, or by Machine.save")
    command.add_argument("--image", type=Path, metavar="FILE", help="the disk image beneath its disk, where it has one")
    _add_use(command)
    command.set_defaults(run=_resume)


def _add_use(command: argparse.ArgumentParser) -> None:
    """What is done with a machine that is up."""
    command.add_argument("--command", action="append", default=[], metavar="LINE", help="then types a line into the guest's monitor, or a "
                         "Linux's shell")
    command.add_argument("--save", type=Path, metavar="FILE", help="at the end saves the machine as it stands, for `hvlab resume`")
    command.add_argument("--json", action="store_true", help="one JSON object; addresses are integers, ranges half-open")


def _boot(options: argparse.Namespace) -> None:
    _must_take_a_file(options.save)
    _use(*booted(options), options)


def _resume(options: argparse.Namespace) -> None:
    _must_take_a_file(options.save)
    machine, run = restored(options.file, options.image)
    if machine.state == "stopped":
        try:
            run = machine.resume(PATIENCE, watch=watch(machine))
        except BaseException:
            machine.close()
            raise
        finally:
            end_progress()
    _use(machine, run, options)


def _use(machine: "Machine", run: "Run", options: argparse.Namespace) -> None:
    """Lines for the guest, how it went, and a file for it."""
    with using(machine):
        for line in options.command:
            if ended := machine.ended_for(1):
                print(f"hvlab: no guest was left for {line!r}: {ended.why}", file=sys.stderr)
                break
            answer = _answer(machine, run, line)
            run = machine.run or run
            if not options.json:
                print(_shown(answer if _foreign(machine) else f"{'lab#' if machine.linux else 'lab>'} {line}\n{answer}"))
        try:
            _save(machine, options.save)
        finally:
            print(json.dumps(run.to_json()) if options.json else run)


def _save(machine: "Machine", path: Path | None) -> None:
    if path is not None:
        with showing(f"saving {path.name}") as tell:
            machine.save(path, tell)


def _answer(machine: "Machine", run: "Run", line: str) -> str:
    """What the guest says to a line.  A command that does not end, or ends its Linux, is told of on stderr, and the run goes on."""
    if not machine.linux:
        return run.guest.command(line)
    try:
        if _foreign(machine):
            return machine.send(line + "\n", watch=watch(machine)).replace("\r", "")
        return str(machine.shell(line, watch=watch(machine)))
    except HvlabError as e:
        end_progress()
        sentence = str(e).partition("; it had printed")[0] if isinstance(e, Overdue) else str(e)
        print("hvlab:", " ".join(sentence.splitlines()), file=sys.stderr)
        return e.output if isinstance(e, Overdue) else ""
    finally:
        end_progress()


def _foreign(machine: "Machine") -> bool:
    """Whether the guest is a Linux with an init that is not hvlab's: what is typed is echoed, and no prompt is known."""
    return machine.linux and not machine.booting.has_shell


def _shown(text: str) -> str:
    """What a guest has printed: nothing that a terminal would act upon."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _must_take_a_file(path: Path | None) -> None:
    """Raises HvlabError at once where a snapshot could not be written at the end."""
    if path is None:
        return
    from tempfile import TemporaryFile
    folder = path.absolute().parent
    if os.path.exists(path) and not os.path.isfile(path):
        raise HvlabError(f"{path} cannot be written (it is there, and no file): name a file")
    if not os.path.isdir(folder):
        raise HvlabError(f"{path} cannot be written (there is no folder {folder}): make it first")
    try:
        with suppress(FileNotFoundError):
            os.lstat(path)
        with TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
            pass
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise HvlabError(f"{path} cannot be written ({why}): name a file in a folder that you may write to") from e


# --- what a file says of itself

def add_snapshot(command: argparse.ArgumentParser) -> None:
    """The subcommands of `hvlab snapshot`."""
    commands: argparse._SubParsersAction[Any] = command.add_subparsers(required=True, metavar="WHAT", parser_class=type(command))
    text = "Says which machine a snapshot is of and how it stood; nothing is restored."
    info = commands.add_parser("info", help=text, description=text)
    info.add_argument("file", type=Path, metavar="FILE")
    info.add_argument("--json", action="store_true", help="one JSON object; virtual time in nanoseconds, sizes in bytes")
    info.set_defaults(run=_info)


def _info(options: argparse.Namespace) -> None:
    from ..snapshot import info
    told = info(options.file)
    print(json.dumps(asdict(told)) if options.json else "\n".join(f"{name:12}  {_plain(value)}" for name, value in _facts(told)))


def _facts(told: "Told") -> list[tuple[str, str]]:
    from ..inspect.format import size
    options = " ".join(f"{name}={_option(value)}" for name, value in told.config.items())
    return [("machine", told.machine), ("state", told.state), ("outcome", f"{told.outcome}: {told.why}"),
            ("virtual time", f"{told.time / 1e9:.6f} s"), ("guest", told.guest), ("options", options), ("made by", f"hvlab {told.hvlab}"),
            ("file", size(told.size)), ("memory in it", size(told.memory))]


def _option(value: object) -> str:
    if isinstance(value, bool):
        return "y" if value else "n"
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _plain(text: str) -> str:
    """Words of a file of anybody's: nothing that a terminal would act upon."""
    return "".join(c if c.isprintable() else "?" for c in text)
