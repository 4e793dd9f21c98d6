"""What is different between two runs of a machine, as a chapter of its own."""

import html
from dataclasses import replace
from typing import TYPE_CHECKING

from ..doctor import Diagnosis
from .alive import alive, quiet
from .chapter import Chapter, Part, Section, paragraph, table
from .sections import findings, outcome_of

if TYPE_CHECKING:
    from ..run import Run

__all__ = ["differences_of"]


def differences_of(before: "Run", after: "Run", diagnosis: Diagnosis) -> Chapter:
    """Outcomes and options side by side, the picture of both, the map of the pages that changed, and every difference."""
    sections = (Section("both", "Outcomes and options", _outcomes(before, after)),
                Section("changed", "What changed", _changed(before, after)),
                Section("beside", "Side by side", _beside(before, after)),
                Section("doctor", "What the doctor finds", tuple(findings(diagnosis))))
    return Chapter("A and B", sections)


def _outcomes(before: "Run", after: "Run") -> tuple[Part, ...]:
    parts = [f"<h3>{name}: {html.escape(run.outcome)}</h3>{outcome_of(run)}" for name, run in (("A", before), ("B", after))]
    pairs = zip(str(before.config).split(), str(after.config).split(), strict=True)
    options = [(a.partition("=")[0], a.partition("=")[2], b.partition("=")[2]) for a, b in pairs if a != b]
    same = "<p>Both have the same options.</p>"
    return (*parts, f"<h3>Options</h3>{table(('option', 'A', 'B'), options, 'Options that differ') if options else same}")


def _changed(before: "Run", after: "Run") -> tuple[Part, ...]:
    from widgets.pagemap import PageMap
    from widgets.picture import Picture
    from widgets.selection import Selection
    from widgets.table import Table
    from widgets.views import differences_of as figure_of
    selection = quiet(Selection)()
    picture = quiet(Picture)(figure_of(before, after), selection)
    pages = quiet(PageMap)(None, selection)
    pages.show_changes(before, after)
    changes = quiet(Table)(before.diff(after), selection)
    names = paragraph("A is before and left, B is after and right.")
    return (names, alive("differences", picture, "both"), alive("changed-pages", pages, "both", in_print=False),
            alive("changes", changes, "both"))


def _beside(before: "Run", after: "Run") -> tuple[Part, ...]:
    from widgets.compare import compare_figures
    from widgets.picture import Picture
    from widgets.selection import Selection
    selection = quiet(Selection)()
    pairs = [(name, figure) for pair in compare_figures(before, after).pairs for name, figure in (("A", pair.before), ("B", pair.after))]
    return tuple(alive(f"beside-{n}", quiet(Picture)(replace(figure, title=f"{name}, {figure.title}"), selection), "beside")
                 for n, (name, figure) in enumerate(pairs))
