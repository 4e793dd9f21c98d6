"""What `Machine` has of its own past: keeping it, looking at it, stepping back into it."""

from typing import TYPE_CHECKING

from ..errors import HvlabError, quoted
from ..inspect.records import Records
from .history import History, Moment
from .state import RUNNING

if TYPE_CHECKING:
    from ..session import Machine

__all__ = ["keep_history", "moments", "remember", "rewind"]

_MS = 1_000_000
_LEAST_BYTES = 1 << 20


def keep_history(machine: "Machine", every_ms: float | None, most: int) -> None:
    """From now on keeps a moment every `every_ms` milliseconds of virtual time, None: when asked, 0: no more; `most` bytes of them.

    A guest that is there already is kept as it is now.
    """
    if every_ms is not None and (isinstance(every_ms, bool) or not isinstance(every_ms, int | float) or not 0 <= every_ms < 1e9):
        raise HvlabError(f"{quoted(every_ms)} is no time between two moments: give milliseconds of virtual time, None, or 0 for no more")
    if isinstance(most, bool) or not isinstance(most, int) or most < _LEAST_BYTES:
        raise HvlabError(f"{quoted(most)} bytes hold no moment: give at least {_LEAST_BYTES}")
    with machine.still():
        booting = machine.booting
        booting.pc.clock.alarm_at = None
        booting.history = None if every_ms == 0 else History(booting, None if every_ms is None else round(every_ms * _MS), most)
        if isinstance(booting.history, History) and booting.exits is not None and booting.phase in (None, RUNNING):
            booting.history.visit()


def _history(machine: "Machine") -> History:
    if not isinstance(machine.booting.history, History):
        raise HvlabError("the machine keeps nothing of its past: keep_history() first")
    return machine.booting.history


def remember(machine: "Machine", what: str) -> Moment:
    """Keeps the moment that is now; the machine stands still meanwhile."""
    if not isinstance(what, str):
        raise HvlabError(f"{quoted(what)} is no text: say why the moment is kept")
    with machine.still():
        if machine.booting.history is None:
            machine.booting.history = History(machine.booting, None, 1 << 30)
        history = _history(machine)
        history.renew()
        return history.keep(what[:200])


def moments(machine: "Machine") -> Records[Moment]:
    """The moments of the current run that are kept; none where nothing is."""
    with machine.still():
        history = machine.booting.history
        return history.moments if isinstance(history, History) else Records(Moment, note="Nothing is kept: keep_history() keeps it.")


def rewind(machine: "Machine", to: object) -> Moment:
    """Stops the machine and makes it what it was at a moment."""
    history = _history(machine)
    machine.stop()
    run = machine.run
    if run is None or not run.live:
        raise HvlabError("there is no run to go back in: boot the machine first")
    moment = history.choose(to, run.dma)
    machine.settle(freeze=False)
    history.back(moment)
    machine.stop()
    return moment
