"""Views as a page without a kernel has them: a module's text, a style sheet, a state, and the same as pictures.

A view of `widgets` is made without a browser at its other end, asked for its state, and let go.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from widgets.drawing import Figure
    from widgets.view import View

__all__ = ["ROWS", "Alive", "alive", "quiet"]

T = TypeVar("T")
ROWS = 2000
"""Rows of a table that go into a report."""
PIECES = 400_000
"""Pieces of a page map that go into a report."""
_MARK = re.compile(r"\bhv[0-9a-f]{8}(?=-)")
"""What the names within a drawing begin with."""
_NOT_STATE = frozenset({"layout", "selection", "tabbable", "tooltip"})


@dataclass(frozen=True)
class Alive:
    """One view: `key` names it in its page, `selection` which views it shares its selection with.

    `stills` are shown where no script runs, and in print, `printed` is more HTML that only print has.  Without a `module` the view is
    its stills.
    """

    key: str
    module: str
    style: str
    state: dict[str, Any]
    selection: str
    stills: tuple["Figure", ...]
    printed: str = ""
    in_print: bool = True


@cache
def quiet(kind: type[T]) -> type[T]:
    """The same widget, but one that tells no browser of itself."""
    return type(kind.__name__, (kind,), {"open": _nothing, "__module__": kind.__module__, "__doc__": kind.__doc__})


def _nothing(_widget: Any) -> None:
    pass


def alive(key: str, view: "View", selection: str, stills: "Sequence[Figure]" = (), printed: str = "",
          in_print: bool = True) -> Alive:
    """A quiet view as it is now; its own figure, unless others are given as `stills`."""
    drawn = tuple(replace(figure, svg=_own(figure.svg, key)) for figure in stills or (view.figure,))
    keys = [name for name in view.keys if not name.startswith("_") and name not in _NOT_STATE]
    state = {name: _wire(value, key) for name, value in _cut(view.get_state(keys)).items()}
    if len(getattr(view, "start", b"")) > 8 * PIECES:
        return Alive(key, "", "", {}, selection, drawn, printed, in_print)
    return Alive(key, str(view._esm), str(view._css), state, selection, drawn, printed, in_print)


def _cut(state: dict[str, Any]) -> dict[str, Any]:
    """A long table's first rows, and how many there are."""
    count = len(state["cells"][0]) if state.get("columns") and state.get("cells") else 0
    if count <= ROWS:
        return state
    note = f"{state['note']} Of {count:,} rows the first {ROWS:,} are in this report.".strip()
    columns = {name: [column[:ROWS] for column in state[name]] for name in ("cells", "sort_keys")}
    return state | columns | {"choices": state["choices"][:ROWS], "note": note}


def _own(svg: str, key: str) -> str:
    """A drawing whose names are this view's: two of the same content on one page have none in common."""
    return _MARK.sub(lambda mark: mark[0] + key, svg)


def _wire(value: Any, key: str) -> Any:
    """Bytes as text that says so, and pictures of this view."""
    if isinstance(value, dict) and value and all(isinstance(text, str) and text.startswith("<svg") for text in value.values()):
        return {name: _own(svg, key) for name, svg in value.items()}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$bytes": base64.b64encode(value).decode()}
    return value
