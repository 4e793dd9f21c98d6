"""A report as a notebook, executed: for who wants to go on from it, or to make many by papermill or nbconvert.

Its second cell has the tag `parameters`, as papermill wants it: the machine's source, and the options of the core.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import HvlabError

__all__ = ["cells", "write_notebook"]

_SECONDS = 600
"""Seconds of wall time that a cell may take."""

_SECTIONS = (
    ("", "import hvcore\nfrom hvcore import Config, Machine, inspect\nfrom hvcore.doctor import examine\n"
         "from hvcore.inspect.advice import advise\n\nm = Machine.load(SOURCE)\nrun = m.boot(Config(**OPTIONS))\nm"),
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
    ("## About this report", "print(\"hvlab\", hvcore.__version__)\n"
                             "print(\"hvlab boot\", SOURCE, *(f\"--set {k}={v}\" for k, v in OPTIONS.items()))\nm.close()"),
)


def cells(source: str, options: Mapping[str, Any]) -> list[tuple[str, str, tuple[str, ...]]]:
    """The cells as (kind, text, tags): kind is `markdown` or `code`."""
    found = [("markdown", "# Report of a machine, by hvlab", ()),
             ("code", f"SOURCE = {source!r}\nOPTIONS = {dict(options)!r}", ("parameters",))]
    for title, code in _SECTIONS:
        found += [("markdown", title, ())] if title else []
        found.append(("code", code, ()))
    return found


def write_notebook(source: str, options: Mapping[str, Any], path: str | Path) -> Path:
    """Executes the notebook for a machine's source and options and writes it.

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
    for kind, text, tags in cells(source, options):
        make = nbformat.v4.new_markdown_cell if kind == "markdown" else nbformat.v4.new_code_cell
        notebook.cells.append(make(text, metadata={"tags": list(tags)} if tags else {}))
    try:
        client.NotebookClient(notebook, timeout=_SECONDS, kernel_name="python3").execute()
        path.write_text(nbformat.writes(notebook), "utf-8")
    except failure.CellExecutionError as e:
        raise HvlabError(f"the notebook stopped: {e.evalue or e.ename}") from e
    except OSError as e:
        raise HvlabError(f"{path.name} cannot be written: {e.strerror or e}") from e
    return path
