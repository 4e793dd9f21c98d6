"""Objects that refer to each other, in circles too, as plain values: what such a graph is made of.

A stored graph is a list of nodes.  A value in a node is None, a bool, a number or a text as it is, or `[n]`, the node of that number; in a
list `[count, value]` is a value several times over.  The nodes of what never changes (tuples, frozen records, bytes, enum members) come
behind those that they are made of, so they can be built in order; all other objects are made empty first and filled last.  So nothing
recurses, and nothing of what a file says is looked up anywhere but in `registry`.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["NO_VALUE", "SCALARS", "Graph", "Special", "no_collection"]

SCALARS = frozenset({type(None), bool, int, float, str})
"""Types whose values stand in a node as they are."""
NO_VALUE: Any = object()
"""What no value of a graph is."""


@dataclass(frozen=True)
class Special:
    """A class whose objects are made in a way of their own.

    `save(object)` gives a dict of values that stand for one; `fill(object, values)`, called once everything else is there, makes an empty
    one whole.
    """

    save: Callable[[Any], dict[str, Any]]
    fill: Callable[[Any, dict[str, Any]], None]


@dataclass(frozen=True)
class Graph:
    """`nodes` and `shapes` are plain values, `root` the one that all hangs on, `blob` the bytes that nodes refer to.

    A shape is a class by its name, the fields that its objects can have, and those that the objects of this shape do have.  In a graph that
    stays in this process `shared` are the bytes, as the objects themselves have them, and nodes refer to them by number.
    """

    root: Any
    nodes: list[list[Any]]
    shapes: list[list[Any]]
    blob: bytes
    shared: tuple[bytes, ...] | None = None


@contextmanager
def no_collection() -> Iterator[None]:
    """Many thousand objects are about to come, none of them garbage."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
