"""The pictures of a run's parts, drawn by the package `widgets`, which is loaded when the first is wanted."""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import HvlabError
from .inspect.records import Records

if TYPE_CHECKING:
    from widgets.drawing import Figure

    from .run import Run

__all__ = ["DRAWN", "attach", "attach_differences"]

DRAWN = frozenset({"e820", "units", "domains", "permissions", "history"})
"""Parts of a run that have a picture."""


def attach(name: str, part: object, run: "Run") -> None:
    """Gives the part `name` of `run` its `figure()`: of these records, with what else the run has."""
    if name in DRAWN and isinstance(part, Records):
        part.drawn_by(lambda records, **options: _draw(f"{name}_of", run, records, options))


def attach_differences(changes: Records[Any], left: "Run", right: "Run") -> None:
    """Gives the differences of two runs their `figure()`."""
    changes.drawn_by(lambda records, **options: _draw("differences_of", left, right, options))


def _draw(name: str, run: "Run", what: object, options: dict[str, Any]) -> "Figure":
    try:
        views = importlib.import_module("widgets.views")
    except ImportError as e:
        raise HvlabError(f"figures need the package {e.name}, which is not installed: install hvlab with its notebook packages, "
                         f"`pip install hvlab[ui]`") from None
    figure: Figure = getattr(views, name)(run, what, **options)
    return figure
