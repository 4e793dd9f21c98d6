"""Snapshots: a whole machine in a file, and back; and the past of a machine that runs, to step back into.

    m.save("shell.snap")
    m = Machine.restore("shell.snap")       # in another process, too: it goes on the same
    m.load_snapshot("shell.snap")           # in place of what the machine is now
    m.keep_history(every_ms=1)
    m.rewind(to=m.run.faults[0])            # the last moment before the fault
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .history import Moment as Moment
    from .past import keep_history as keep_history
    from .past import moments as moments
    from .past import remember as remember
    from .past import rewind as rewind
    from .saving import Told as Told
    from .saving import info as info
    from .saving import load as load
    from .saving import restore as restore
    from .saving import save as save

_HOMES = {"Moment": "history", "keep_history": "past", "moments": "past", "remember": "past", "rewind": "past", "Told": "saving",
          "info": "saving", "load": "saving", "restore": "saving", "save": "saving"}
__all__ = ["Moment", "Told", "info", "keep_history", "load", "moments", "remember", "restore", "rewind", "save"]


def __getattr__(name: str) -> Any:
    """What there is, imported when it is first asked for: who restores a machine does not wait for what looks back."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hvcore.snapshot' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
