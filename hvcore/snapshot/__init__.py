"""Snapshots: a whole machine in a file, and back; and the past of a machine that runs, to step back into.

    m.save("shell.snap")
    m = Machine.restore("shell.snap")       # in another process, too: it goes on the same
    m.load_snapshot("shell.snap")           # in place of what the machine is now
    m.keep_history(every_ms=1)
    m.rewind(to=m.run.faults[0])            # the last moment before the fault
"""

from .history import Moment
from .past import keep_history, moments, remember, rewind
from .saving import Told, info, load, restore, save

__all__ = ["Moment", "Told", "info", "keep_history", "load", "moments", "remember", "restore", "rewind", "save"]
