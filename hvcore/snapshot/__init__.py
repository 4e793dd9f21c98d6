"""Snapshots: a whole machine in a file, and back; and the past of a machine that runs, to step back into.

    m.save("shell.snap")
    m = Machine.restore("shell.snap")       # in another process, too: it goes on the same
    m.load_snapshot("shell.snap")           # in place of what the machine is now
"""

from .saving import Told, info, load, restore, save

__all__ = ["Told", "info", "load", "restore", "save"]
