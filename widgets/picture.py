"""Pictures that can be used: their parts are chosen by pointer or keyboard, and what is chosen elsewhere is marked in them."""

from collections.abc import Mapping
from typing import Any

import traitlets

from .drawing import Figure
from .selection import Selection
from .view import View, module, style

__all__ = ["Picture"]


class Picture(View):
    """One figure, or several of the same by name (as by scale), one of which is `shown`."""

    _esm = module("picture")
    _css = style("picture")
    pictures = traitlets.Dict(value_trait=traitlets.Unicode()).tag(sync=True)
    shown = traitlets.Unicode("").tag(sync=True)
    table = traitlets.Unicode("").tag(sync=True)

    def __init__(self, figures: Mapping[str, Figure] | Figure, selection: Selection | None = None, shown: str = "", **values: Any):
        super().__init__(selection, shown=shown, **values)
        self.show(figures)

    def show(self, figures: Mapping[str, Figure] | Figure) -> None:
        """Shows others in their place; the name that is shown stays."""
        self._figures = {"": figures} if isinstance(figures, Figure) else dict(figures)
        if not self._figures:
            raise ValueError("a picture needs at least one figure")
        with self.hold_sync():
            self.pictures = {name: figure.svg for name, figure in self._figures.items()}
            self.label, self.table = self.figure.title, self.figure.table

    @property
    def figure(self) -> Figure:
        """The one that is shown."""
        return self._figures.get(self.shown) or next(iter(self._figures.values()))
