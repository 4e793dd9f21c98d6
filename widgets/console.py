"""A serial console in the notebook: what was printed, as a terminal would show it, and a line of input."""

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from .screen import tail

__all__ = ["KEYS", "Console"]

_STATIC = Path(__file__).parent / "static"
LIMIT = 1 << 16
"""Bytes that are kept; older ones go."""
KEYS = {"Ctrl-C": "\x03", "Ctrl-D": "\x04"}
"""Keys that a shell acts upon at once."""


class Console(anywidget.AnyWidget):
    """The log `text` under a `label`; with `on_command` also a line of input, whose lines go to that function one by one.

    With `shell_keys` there are buttons for the keys that a shell acts upon, which go to `on_key` as the character that they send, and
    lines may be empty.
    """

    _esm = _STATIC / "console.js"
    _css = _STATIC / "console.css"
    text = traitlets.Unicode("").tag(sync=True)
    label = traitlets.Unicode("").tag(sync=True)
    hint = traitlets.Unicode("").tag(sync=True)
    takes_input = traitlets.Bool(False).tag(sync=True)
    shell_keys: traitlets.List[Any] = traitlets.List().tag(sync=True)

    def __init__(self, label: str, on_command: Callable[[str], None] | None = None, hint: str = "",
                 on_key: Callable[[str], None] | None = None, **options: Any):
        super().__init__(label=label, hint=hint, takes_input=on_command is not None, **options)
        self._on_command, self._on_key = on_command, on_key
        self.on_msg(self._received)

    def show(self, printed: bytes | bytearray | str) -> None:
        """Replaces the log; of a long one the end is kept."""
        self.text = tail(printed.encode() if isinstance(printed, str) else printed, LIMIT)

    def describe(self, label: str, hint: str, shell: bool) -> None:
        """What it is called, what may be typed, and whether it is that of a shell."""
        with self.hold_sync():
            self.label, self.hint, self.shell_keys = label, hint, list(KEYS) if shell else []

    def _received(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        kind = content.get("kind")
        if kind == "command" and self._on_command:
            self._on_command(str(content.get("line", "")))
        elif kind == "key" and self._on_key and content.get("key") in KEYS:
            self._on_key(KEYS[str(content["key"])])

    @property
    def html(self) -> str:
        """The same without a kernel."""
        return f"<p><strong>{html.escape(self.label)}</strong></p><pre>{html.escape(self.text)}</pre>"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        data, metadata = super()._repr_mimebundle_(**options) or ({}, {})
        return data | {"text/html": self.html, "text/plain": self.text}, metadata
