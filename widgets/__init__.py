"""The views: figures and widgets on hvcore's records, one a file.

    from widgets import Workbench
    Workbench("q35-6g")
"""

from .console import Console
from .lens import LensView
from .pagemap import PageMap
from .picture import Picture
from .registers import Registers
from .selection import Selection
from .table import ChangeTable, DmaTable, FaultTable, RunTable, Table
from .views import E820View, GraphView, PermissionsView, TimelineView, domains_view, e820_view, permissions_view, timeline_view, views
from .walk import WalkExplainer
from .workbench import Workbench

__all__ = ["ChangeTable", "Console", "DmaTable", "E820View", "FaultTable", "GraphView", "LensView", "PageMap", "PermissionsView", "Picture",
           "Registers", "RunTable", "Selection", "Table", "TimelineView", "WalkExplainer", "Workbench", "domains_view", "e820_view",
           "permissions_view", "timeline_view", "views"]
