"""A serial console in the notebook: what was printed, and a line of input."""

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

__all__ = ["Console"]

_STATIC = Path(__file__).parent / "static"
LIMIT = 1 << 16
"""Characters that are kept; older ones go."""


class Console(anywidget.AnyWidget):
    """The log `text` under a `label`; with `on_command` also a line of input, whose lines go to that function one by one."""

    _esm = _STATIC / "console.js"
    _css = _STATIC / "console.css"
    text = traitlets.Unicode("").tag(sync=True)
    label = traitlets.Unicode("").tag(sync=True)
    hint = traitlets.Unicode("").tag(sync=True)
    takes_input = traitlets.Bool(False).tag(sync=True)

    def __init__(self, label: str, on_command: Callable[[str], None] | None = None, hint: str = "", **options: Any):
        super().__init__(label=label, hint=hint, takes_input=on_command is not None, **options)
        self._on_command = on_command
        self.on_msg(self._received)

    def show(self, text: str) -> None:
        """Replaces the log; of a long one the end is kept."""
        self.text = text.replace("\r", "")[-LIMIT:]

    def _received(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        if content.get("kind") == "command" and self._on_command:
            self._on_command(str(content.get("line", "")))

    @property
    def html(self) -> str:
        """The same without a kernel."""
        return f"<p><strong>{html.escape(self.label)}</strong></p><pre>{html.escape(self.text)}</pre>"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        data, metadata = super()._repr_mimebundle_(**options) or ({}, {})
        return data | {"text/html": self.html, "text/plain": self.text}, metadata
