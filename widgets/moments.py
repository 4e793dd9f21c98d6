"""The past of the machine: whether moments of it are kept, which there are, and going back to one of them."""

from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from hvcore.inspect import format as show
from hvcore.inspect.records import Records
from hvcore.snapshot import Moment

from .view import module, style

__all__ = ["EVERY", "Moments", "when"]

EVERY = {"as the guest needs: 1 ms, with a Linux 50 ms": 0.0, "1 ms": 1.0, "10 ms": 10.0, "100 ms": 100.0, "never, only Remember now": None}
"""How often a moment is kept, in milliseconds of virtual time; 0 leaves it to the guest."""
SHOWN = 500
"""Moments that have a row: the newest."""
OFF = "No moments are kept. Tick the box and reboot: then the machine can go back to any of them, also to before a fault."
NONE = "Moments are kept from now on, while the guest runs; those of a boot from the next Reboot on."


class Moments(anywidget.AnyWidget):
    """A box that keeps moments, the table of those there are, and buttons: `on_keep()`, `on_remember()`, `on_back(number)`.

    `keep` says whether they are kept, `every` is a key of `EVERY`; `enabled` whether anything can be done now.
    """

    _esm = module("moments")
    _css = style("moments")
    keep = traitlets.Bool(False).tag(sync=True)
    every = traitlets.Unicode(next(iter(EVERY))).tag(sync=True)
    choices: traitlets.List[Any] = traitlets.List(list(EVERY)).tag(sync=True)
    rows: traitlets.List[Any] = traitlets.List().tag(sync=True)
    note = traitlets.Unicode(OFF).tag(sync=True)
    said = traitlets.Unicode("").tag(sync=True)
    enabled = traitlets.Bool(True).tag(sync=True)

    def __init__(self, on_keep: Callable[[], None], on_remember: Callable[[], None], on_back: Callable[[int], None]):
        super().__init__()
        self._on_keep, self._on_remember, self._on_back = on_keep, on_remember, on_back
        self.on_msg(self._received)

    def every_ms(self, linux: bool) -> float | None:
        """What `keep_history` is to be told for a guest; 0 where nothing is kept."""
        if not self.keep:
            return 0
        chosen = EVERY[self.every]
        return (50 if linux else 1) if chosen == 0 else chosen

    def show(self, moments: Records[Moment]) -> None:
        """Shows which moments there are; the newest, where they are many."""
        newest = moments[-SHOWN:]
        more = f" Of {len(moments):,} the newest {SHOWN} have a row; from a fault or a request the others are found, too."
        with self.hold_sync():
            self.rows = [[m.number, when(m.time), m.what, show.size(m.size)] for m in newest]
            self.note = moments.note + (more if len(moments) > SHOWN else "") if len(moments) else NONE if self.keep else OFF

    def tell(self, words: str) -> None:
        """A sentence about what was done."""
        self.said = words

    def _received(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        if not self.enabled:
            return
        kind = content.get("kind")
        if kind == "keep" and content.get("every") in EVERY:
            self.keep, self.every = content.get("keep") is True, str(content["every"])
            self.note = self.note if self.rows else NONE if self.keep else OFF
            self._on_keep()
        elif kind == "remember":
            self._on_remember()
        elif kind == "back" and content.get("number") in [row[0] for row in self.rows]:
            self._on_back(int(content["number"]))


def when(time: int) -> str:
    """Virtual nanoseconds since power-on, as a person reads them."""
    return f"{time / 1e9:,.6f} s" if time >= 1_000_000_000 else f"{time / 1e6:.3f} ms"
