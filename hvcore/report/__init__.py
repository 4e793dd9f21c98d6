"""A report of a run, or of two: one HTML file that works without a network and without a kernel, or a tagged PDF.

    with Machine.load("q35-6g") as m:
        m.boot()
        write_report(m, "q35-6g.html")
        compare_report(m, "both.html", VTD_TRANS=False)        # A: the run that is there; B: a boot with this changed

It is built from the run's records and from the views of `widgets`, each with its state; there is no notebook and no kernel in between.
`notebook.py` makes one where a notebook is wanted.
"""

import platform
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..doctor import examine
from ..errors import HvlabError
from ..inspect.matrix import Matrix
from .chapter import Chapter, Section, paragraph, table
from .page import page, still_page
from .printing import print_pdf
from .sections import Progress, chapter_of

if TYPE_CHECKING:
    from ..session import Machine

__all__ = ["Chapter", "chapter_of", "check_name", "compare_report", "write", "write_report"]

PACKAGES = ("numpy", "unicorn", "capstone", "cryptography", "ipywidgets", "anywidget")
"""What a report depends on."""


def _silent(_name: str) -> None:
    pass


def check_name(path: str | Path) -> Path:
    """A report's path.  Raises HvlabError for one that ends neither in .html nor in .pdf, or whose folder is not there."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".pdf"):
        raise HvlabError(f"{path.name}: a report is an .html or a .pdf: give it such a name")
    if not path.absolute().parent.is_dir():
        raise HvlabError(f"{path.name}: there is no folder {path.absolute().parent}: make it first")
    return path


def write_report(machine: "Machine", path: str | Path, grid: Matrix | None = None, progress: Progress = _silent) -> Path:
    """Writes the report of a machine's current run, with a matrix of attacks if one is given; `progress` is told each section.

    For the doctor's findings a second machine of the kind is booted under each policy; this one stays as it is.
    Raises HvlabError where there is no run, or the file cannot be made.
    """
    path = check_name(path)
    chapter = chapter_of(machine, grid, examine(machine.description, progress), progress)
    return write(path, f"Report: {machine.name}", [chapter], progress)


def compare_report(machine: "Machine", path: str | Path, grid: Matrix | None = None, progress: Progress = _silent, **options: Any) -> Path:
    """Writes the report of two runs: the current one, and a boot with `options` changed, which is the machine's run from then on.

    Raises HvlabError as `write_report` does.
    """
    from .comparing import differences_of
    path = check_name(path)
    diagnosis = examine(machine.description, progress)
    first = chapter_of(machine, None, None, progress, "a-")
    before = machine.run
    assert before is not None
    after = machine.reboot(progress, **options)
    second = chapter_of(machine, grid, None, progress, "b-")
    progress("report: what changed")
    with machine.still():
        both = differences_of(before, after, diagnosis)
    named = [Chapter("A", first.sections), Chapter("B", second.sections)]
    return write(path, f"Report: {machine.name}, two runs", [both, *named], progress)


def write(path: str | Path, title: str, chapters: Sequence[Chapter], progress: Callable[[str], None] = _silent) -> Path:
    """Writes chapters as a page, or prints them, as the name's ending asks.  The last chapter says what made them."""
    path = check_name(path)
    made = datetime.now().astimezone().isoformat(" ", "seconds")
    words = paragraph(f"Made by hvlab {__version__} on {made}.", "quiet")
    chapters = [*chapters[:-1], Chapter(chapters[-1].title, (*chapters[-1].sections, _about(made)))]
    progress(f"report: {path.suffix[1:]}")
    try:
        if path.suffix.lower() == ".pdf":
            print_pdf(still_page(title, words, chapters), path)
        else:
            path.write_bytes(page(title, words, chapters).encode("utf-8", "replace"))
    except OSError as e:
        raise HvlabError(f"{path.name} cannot be written: {e.strerror or e}") from e
    return path


def _about(made: str) -> Section:
    """What made the report."""
    rows = [("hvlab", __version__), ("Python", platform.python_version()), *((name, _version(name)) for name in PACKAGES), ("date", made)]
    what = "The figures and tables are a snapshot: no kernel is behind them, and nothing is asked from anywhere."
    return Section("about", "About this report", (paragraph(what), table(("what", "version"), rows, "Versions")))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
