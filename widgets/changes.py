"""What changed from one run of a machine to the next: outcomes, a picture, the page map of differences, a table."""

import html
from typing import TYPE_CHECKING

import ipywidgets as ipw

from .pagemap import PageMap
from .selection import Selection
from .table import ChangeTable
from .views import differences_of

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["Changes"]


class Changes(ipw.VBox):
    """Says how to get something to compare until `show(before, after)` is called; its views are made once and then show others."""

    def __init__(self, selection: Selection | None = None):
        self._selection = selection or Selection()
        self.words = ipw.HTML("Reboot with other options: then this shows what changed.")
        self.picture = ipw.HTML()
        self.pages: PageMap | None = None
        self.table: ChangeTable | None = None
        super().__init__([self.words])

    def show(self, before: "Run", after: "Run") -> None:
        """Shows what changed between two runs."""
        self.words.value = f"<p>{_row('Before', before)}<br>{_row('After', after)}</p>"
        self.picture.value = differences_of(before, after).html
        if self.pages is None or self.table is None:
            self.pages, self.table = PageMap.compare(before, after, self._selection), ChangeTable(before, after, self._selection)
            self.children = [self.words, self.picture, self.pages, self.table]
        else:
            self.pages.show_changes(before, after)
            self.table.show(before.diff(after))


def _row(name: str, run: "Run") -> str:
    return f"{name}: <code>{html.escape(str(run.config))}</code>: {html.escape(run.outcome)}"
