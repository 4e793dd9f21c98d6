"""What a run consists of besides records: the machine it happens on, both consoles, the core's memory, the guest to type to."""

import html
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from . import outcome
from .machine.description import MachineDescription
from .machine.pc import Pc
from .twoguests import Residents

if TYPE_CHECKING:
    import pandas as pd

    from .shell import Answer

__all__ = ["Console", "Guest", "VmmMemory"]


class Bench(Protocol):
    """The machine that a run happens on."""

    @property
    def name(self) -> str: ...
    @property
    def assumptions(self) -> tuple[str, ...]: ...
    @property
    def description(self) -> MachineDescription: ...
    @property
    def pc(self) -> Pc: ...
    @property
    def ended(self) -> outcome.Ending | None: ...
    @property
    def unfinished(self) -> outcome.Ending | None: ...
    @property
    def residents(self) -> Residents | None: ...

    def send(self, text: str, guest: int = 1) -> str:
        """Input for a guest; what it printed meanwhile."""
        ...

    def shell(self, line: str, limit: float = 60) -> "Answer":
        """What a Linux guest's shell says to a command."""
        ...

    def wait(self, seconds: float) -> None:
        """Virtual time passes."""
        ...

    @property
    def linux(self) -> bool: ...

    def still(self) -> AbstractContextManager[None]:
        """The machine stands still inside."""
        ...


@dataclass(frozen=True)
class Console:
    """What was printed: by the core on the debug port, by the guest on its serial line, and by the second guest where there is one."""

    vmm: str
    guest: str
    guest2: str | None = None

    @property
    def frame(self) -> "pd.DataFrame":
        """One row a line: which console, and the text."""
        import pandas as pd
        parts = (("vmm", self.vmm), ("guest", self.guest), ("guest2", self.guest2 or ""))
        rows = [(name, line) for name, text in parts for line in text.splitlines()]
        return pd.DataFrame(rows, columns=["console", "text"])

    def __str__(self) -> str:
        second = f"\n--- guest 2\n{self.guest2.rstrip()}" if self.guest2 is not None else ""
        return f"--- core\n{self.vmm.rstrip()}\n--- guest\n{self.guest.rstrip()}{second}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        style = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:var(--jp-code-font-family,monospace)"
        parts = [("Core", self.vmm), ("Guest", self.guest), *([("Guest 2", self.guest2)] if self.guest2 is not None else [])]
        return "".join(f'<h4>{name}</h4><pre style="{style}">{html.escape(text)}</pre>' for name, text in parts)


@dataclass(frozen=True)
class VmmMemory:
    """The core's region (host-physical; None before it chose one) and its page heap."""

    base: int | None
    size: int
    heap_pages_used: int
    heap_pages_total: int


class Guest:
    """The guest's end of its serial line; the second one's with `number` 2."""

    def __init__(self, machine: Bench, number: int = 1):
        self._machine, self._number = machine, number

    def command(self, line: str) -> str:
        """Types a line to the guest's monitor, or to a Linux's shell; returns its answer without echo and prompt.

        Raises HvlabError where no guest listens.
        """
        if self._machine.linux:
            return self.shell(line)
        text = self._machine.send(line + "\n", self._number).replace("\r", "")
        return text.partition("\n")[2].removesuffix("lab> ").strip("\n")

    def shell(self, line: str, limit: float = 60) -> "Answer":
        """Lets a Linux guest's shell carry out a command: what it printed, with its exit status as `.status`.

        After `limit` seconds of virtual time (or 60 of wall time) it is ended by Ctrl-C: Overdue, which says what was printed until then.
        Raises HvlabError where there is no shell that takes a command.
        """
        return self._machine.shell(line, limit)

    def wait(self, seconds: float) -> None:
        """Lets so many seconds of virtual time pass."""
        self._machine.wait(seconds)
