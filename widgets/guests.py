"""Which guest runs and which shall run: hvlab's lab guest, or a Linux of the cache."""

import re
from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from hvcore.errors import HvlabError
from hvcore.guestimage import is_linux, lab_guest
from hvcore.linux import cache
from hvcore.spec.linuxboot import Elf, Kernel

from .view import module, style

__all__ = ["GuestChoice", "guest_key", "guest_words"]

LAB, OWN = "lab", "own"
"""The keys of hvlab's own guest, and of one that somebody else made; a Linux's is `linux-` and its release, as `boot` takes it."""
FETCH = "No Linux is here: run `hvlab linux fetch` in a terminal, and it can be chosen."
_RELEASE = re.compile(rb"Linux version (\S{1,100}) ")


def guest_key(guest: Elf | Kernel | None) -> str:
    """What a guest is: `lab` (also None, as for `boot`), `linux-` with its kernel's release, or `own` for what is neither."""
    if not is_linux(guest) or not isinstance(guest, Kernel):
        return LAB if guest is None or guest == lab_guest() else OWN
    found = (_RELEASE.search(segment.data) for segment in guest.elf.segments)
    release = next((match[1].decode("latin-1") for match in found if match), "")
    return f"linux-{release}" if release else OWN


def guest_words(key: str) -> str:
    """The guest of a key as a person would say it."""
    return {LAB: "lab guest", OWN: "guest of your own"}.get(key) or f"Linux {key.partition('-')[2]}"


class GuestChoice(anywidget.AnyWidget):
    """A select with the lab guest and every Linux of the cache, which is looked at anew when the select is used; `on_change` is called
    when another is chosen.

    `value` is the key of what is chosen.  What `runs` has a line, too, where it is neither.
    """

    _esm = module("guest")
    _css = style("guest")
    options: traitlets.List[Any] = traitlets.List().tag(sync=True)
    value = traitlets.Unicode(LAB).tag(sync=True)
    note = traitlets.Unicode("").tag(sync=True)

    def __init__(self, runs: str, on_change: Callable[[], None]):
        super().__init__(value=runs)
        self._runs = runs
        self.look(runs)
        self.on_msg(self._received)
        self.observe(lambda _change: on_change(), "value")

    def look(self, runs: str | None = None) -> None:
        """Looks at the cache anew; `runs` is the key of the guest that runs, None for the same as before."""
        self._runs = runs or self._runs
        try:
            releases, trouble = list(dict.fromkeys(entry.release for entry in cache.entries())), ""
        except HvlabError as e:
            releases, trouble = [], str(e)
        keys = [LAB, *(f"linux-{release}" for release in releases)]
        keys += [key for key in dict.fromkeys((self._runs, self.value)) if key not in keys]
        linux = any(key.startswith("linux-") for key in keys)
        none = [] if linux else [["", "Linux: none is here", True]]
        with self.hold_sync():
            self.options = [[key, guest_words(key), False] for key in keys] + none
            self.note = trouble or ("" if linux else FETCH)

    def _received(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        kind, key = content.get("kind"), content.get("key")
        if kind == "look":
            self.look()
        elif kind == "choose" and key in [option[0] for option in self.options if not option[2]]:
            self.value = str(key)
