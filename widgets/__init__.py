"""The views: figures and widgets on hvcore's records, one a file.

    from widgets import Workbench
    Workbench("q35-6g")
"""

from .attacks import AttackView
from .console import Console
from .lens import LensView
from .matrix import MatrixView
from .pagemap import PageMap
from .picture import Picture
from .proof import ProofView
from .registers import Registers
from .selection import Selection
from .table import ChangeTable, DmaTable, FaultTable, RunTable, Table
from .views import E820View, GraphView, PermissionsView, TimelineView, domains_view, e820_view, permissions_view, timeline_view, views
from .walk import WalkExplainer
from .workbench import Workbench

__all__ = ["AttackView", "ChangeTable", "Console", "DmaTable", "E820View", "FaultTable", "GraphView", "LensView", "MatrixView", "PageMap",
           "PermissionsView", "Picture", "ProofView", "Registers", "RunTable", "Selection", "Table", "TimelineView", "WalkExplainer",
           "Workbench", "domains_view", "e820_view", "permissions_view", "timeline_view", "views"]
