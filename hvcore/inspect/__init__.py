"""Pure readers: everything shown of a machine is read from its memory and registers, and comes as records that display themselves."""

from .matrix import matrix
from .permissions import permissions
from .prove import prove

__all__ = ["matrix", "permissions", "prove"]
