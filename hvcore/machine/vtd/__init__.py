"""The VT-d remapping unit as silicon: register page, walk, caches, fault records, invalidation queue."""

from .unit import RemappingUnit

__all__ = ["RemappingUnit"]
