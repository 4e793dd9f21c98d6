"""What kind of thing each field of each class holds, told of one machine by another: a file that says otherwise is refused.

A machine that has just been switched on has every device that the stored one had, with numbers where that one had numbers.  Where it holds
None, as timers that do not run yet, nothing is known.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ..errors import BadSnapshot
from .graph import Graph

__all__ = ["Kinds", "kinds_of", "must_agree"]

Kinds = Mapping[tuple[str, str], frozenset[str]]
"""Kinds by class and field."""

_OF_TAG = {"b": "bytes", "B": "bytearray", "l": "list", "d": "table", "D": "table", "S": "set", "q": "queue", "t": "tuple",
           "s": "frozenset"}


def _kind(graph: Graph, value: Any) -> str:
    if type(value) is list:
        return _OF_TAG.get(graph.nodes[value[0]][0], "object")
    return "int" if type(value) is bool else type(value).__name__


def kinds_of(graph: Graph) -> Kinds:
    """Of every object in a graph that is sound."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for node in graph.nodes:
        if node[0] == "o":
            name, _, fields = graph.shapes[node[1]]
            for field, value in zip(fields, node[2:], strict=True):
                found[name, field].add(_kind(graph, value))
    return {key: frozenset(kinds) for key, kinds in found.items()}


def must_agree(stored: Kinds, known: Kinds) -> None:
    """Raises BadSnapshot where a field holds what it holds nowhere in a machine like it."""
    for (name, field), kinds in stored.items():
        others = known.get((name, field), frozenset())
        strange = kinds - others - {"NoneType"}
        if strange and others - {"NoneType"} and not (strange == {"int"} and "float" in others):
            raise BadSnapshot(f"{name.rpartition('.')[2]}.{field} is not what it must be")
