"""A report as a notebook, executed: for who wants to go on from it, or to make many by papermill or nbconvert.

Its second cell has the tag `parameters`, as papermill wants it: the machine's source, the options of the core, and the guest where it is
another than the lab guest; or the snapshot.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import HvlabError

__all__ = ["Origin", "cells", "write_notebook"]

_SECONDS = 600
"""Seconds of wall time that a cell may take."""

_SECTIONS = (
    ("## Outcome and advice", "run"),
    ("", "advise(run)"),
    ("## What the doctor finds", "examine(m.description)"),
    ("## The machine", "run.e820.figure()"),
    ("", "run.dmar"),
    ("## Who is translated by what", "run.units.figure()"),
    ("## Who may reach which memory", "run.permissions.figure()"),
    ("## Faults, step by step", "for fault in run.faults:\n    display(fault, run.explain(fault))\nrun.dma"),
    ("## The protection window", "run.history.figure()"),
    ("## Proof", "inspect.prove(run)"),
    ("## Consoles", "run.console"),
)
_IMPORTS = ("import hvcore\nfrom hvcore import Config, Machine, inspect\nfrom hvcore.doctor import examine\n"
            "from hvcore.inspect.advice import advise\n\n")


@dataclass(frozen=True)
class Origin:
    """Where a notebook's machine comes from: what its cell of parameters says, the lines that make `m` and `run` of that, and those that
    say how to do it again without the notebook."""

    parameters: str
    made: str
    again: str

    @classmethod
    def boot(cls, source: str, options: Mapping[str, Any], guest: Mapping[str, str] | None = None) -> "Origin":
        """A boot of a machine's source; `guest` are more arguments of `Machine.boot`, which choose the guest."""
        parameters = f"SOURCE = {source!r}\nOPTIONS = {dict(options)!r}"
        made = "m = Machine.load(SOURCE)\nrun = m.boot(Config(**OPTIONS)%s)\nm"
        again = 'print("hvlab boot", SOURCE, *(f"--set {k}={v}" for k, v in OPTIONS.items())%s)'
        if not guest:
            return cls(parameters, made % "", again % "")
        words = """, *(f"--{k.replace('command_line', 'append')} {shlex.quote(v)}" for k, v in GUEST.items())"""
        return cls(f"{parameters}\nGUEST = {dict(guest)!r}", made % f", limit={_SECONDS}, **GUEST", f"import shlex\n{again % words}")

    @classmethod
    def snapshot(cls, path: str, image: str | None = None) -> "Origin":
        """A machine as it stands in a snapshot; `image` is the disk image beneath its disk."""
        return cls(f"SNAPSHOT = {path!r}\nIMAGE = {image!r}", "m = Machine.restore(SNAPSHOT, IMAGE)\nrun = m.run\nm",
                   'import shlex\nprint(shlex.join(["hvlab", "resume", SNAPSHOT, *(["--image", IMAGE] if IMAGE else [])]))')


def cells(origin: Origin) -> list[tuple[str, str, tuple[str, ...]]]:
    """The cells as (kind, text, tags): kind is `markdown` or `code`."""
    found = [("markdown", "# Report of a machine, by hvlab", ()), ("code", origin.parameters, ("parameters",)),
             ("code", _IMPORTS + origin.made, ())]
    about = ("## About this report", f'print("hvlab", hvcore.__version__)\n{origin.again}\nm.close()')
    for title, code in (*_SECTIONS, about):
        found += [("markdown", title, ())] if title else []
        found.append(("code", code, ()))
    return found


def write_notebook(origin: Origin, path: str | Path) -> Path:
    """Executes the notebook for a machine and writes it.

    Raises HvlabError where the packages of notebooks are missing, a cell fails, or the file cannot be written.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise HvlabError(f"{path.name}: there is no folder {path.absolute().parent}: make it first")
    try:
        nbformat, client, failure = (import_module(name) for name in ("nbformat", "nbclient", "nbclient.exceptions"))
    except ImportError as e:
        raise HvlabError(f"a report as a notebook needs the package {e.name}: install hvlab with its notebook packages, "
                         f"`pip install hvlab[ui]`") from None
    notebook: Any = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    for kind, text, tags in cells(origin):
        make = nbformat.v4.new_markdown_cell if kind == "markdown" else nbformat.v4.new_code_cell
        notebook.cells.append(make(text, metadata=_metadata(text, tags)))
    try:
        client.NotebookClient(notebook, timeout=_SECONDS, kernel_name="python3").execute()
        path.write_text(nbformat.writes(notebook), "utf-8")
    except failure.CellExecutionError as e:
        raise HvlabError(f"the notebook stopped: {e.evalue or e.ename}") from e
    except OSError as e:
        raise HvlabError(f"{path.name} cannot be written: {e.strerror or e}") from e
    return path


def _metadata(text: str, tags: tuple[str, ...]) -> dict[str, Any]:
    """A console's output scrolls: a Linux prints hundreds of lines."""
    return ({"tags": list(tags)} if tags else {}) | ({"scrolled": True} if text == "run.console" else {})
