"""One line on a terminal's stderr: what is being done, and how far it is.  Where stderr is no terminal there is none."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..session import Machine

__all__ = ["end_progress", "progress", "showing", "watch"]


def progress(what: str = "") -> Callable[[str], None]:
    """Shows what it is told, behind `what`."""
    if not sys.stderr.isatty():
        return lambda _phase: None
    return lambda phase: _show(f"{what}{phase} ...")


def watch(machine: "Machine") -> Callable[[str | None], None] | None:
    """Shows how far a machine has come, whenever it is called."""
    return (lambda _phase: _show(str(machine.progress))) if sys.stderr.isatty() else None


def end_progress() -> None:
    """The line is gone."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


@contextmanager
def showing(what: str) -> Iterator[Callable[[str], None]]:
    """The line says `what`, and what it is told behind it, and is gone at the end."""
    progress()(what)
    try:
        yield progress(f"{what}: ")
    finally:
        end_progress()


def _show(text: str) -> None:
    """Cut to the terminal's width."""
    plain = "".join(filter(str.isprintable, text))
    print(f"\r\033[K{plain[:shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)
