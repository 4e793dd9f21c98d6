"""The doctor over thousands of archives and logs: every item examined once, on this machine or on a cluster, and summed up.

    from hvcore.fleet import run_fleet
    report = run_fleet("archives", "archives.fleet")
    report.outcomes; report.problems        # pandas frames
"""

from .items import Item, find_items
from .report import Report
from .result import FAILURES, Done, Failure, Work
from .run import run_fleet

__all__ = ["FAILURES", "Done", "Failure", "Item", "Report", "Work", "find_items", "run_fleet"]
