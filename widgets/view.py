"""What all views are built on: an ES module and a style sheet of static/, a shared selection, and a picture for where no script runs.

A view's module is static/NAME.js after static/common.js, as one text: there is no bundler, and a page that was exported needs no server.
"""

import base64
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as ipw
import traitlets

from .drawing import Figure
from .selection import Selection

__all__ = ["View", "module", "style"]

_STATIC = Path(__file__).parent / "static"


@cache
def module(*names: str) -> str:
    """The text of a view's module, of one or more files, with what all share before it."""
    return "".join((_STATIC / f"{name}.js").read_text() for name in ("common", *names))


@cache
def style(name: str) -> str:
    """The same for its style sheet."""
    own = _STATIC / f"{name}.css"
    return (_STATIC / "common.css").read_text() + (own.read_text() if own.exists() else "")


class View(anywidget.AnyWidget):
    """A view with a `label` that names it, on a `selection` that it shares with others (its own, if none is given).

    `figure` is the same as a picture with its words, which a saved notebook and a page without scripts show.
    """

    selection = traitlets.Instance(Selection).tag(sync=True, **ipw.widget_serialization)
    label = traitlets.Unicode("").tag(sync=True)

    def __init__(self, selection: Selection | None = None, **values: Any):
        super().__init__(selection=selection or Selection(), **values)

    @property
    def figure(self) -> Figure:
        """What it shows, as a picture."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **options: Any) -> Any:
        data, metadata = super()._repr_mimebundle_(**options) or ({}, {})
        still = self.figure
        picture = {"image/png": base64.b64encode(still.png).decode()} if still.svg else {}
        return data | picture | {"text/html": still.html, "text/plain": repr(still)}, metadata
