"""The views: figures and widgets on hvcore's records, one a file.

    from widgets import Workbench
    Workbench("q35-6g")
"""

from .views import domains_view, e820_view, permissions_view, views
from .workbench import Workbench

__all__ = ["Workbench", "domains_view", "e820_view", "permissions_view", "views"]
