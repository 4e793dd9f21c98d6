"""What kind of thing each field of each class holds, told of one machine by another: a file that says otherwise is refused.

A machine that has just been switched on has every device that the stored one had, with numbers where that one had numbers.  Where it holds
None, as timers that do not run yet, nothing is known.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ..errors import BadSnapshot
from .graph import Graph

__all__ = ["Kinds", "kinds_of", "must_agree", "must_be_alike"]

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


def must_be_alike(graph: Graph) -> None:
    """Raises BadSnapshot where a list, a queue or a table by numbers or tuples holds things of several kinds, as no machine's does."""
    for node in graph.nodes:
        if node[0] in "lqS":
            _alike(graph, node[2 if node[0] == "q" else 1:])
        elif node[0] in "dD" and not all(isinstance(key, str) for key in node[1::2]):
            _alike(graph, node[2::2])
            if len({_deep_kind(graph, key) for key in node[1::2]}) > 1:
                raise BadSnapshot("a table has a key that it cannot have")


def _alike(graph: Graph, values: list[Any]) -> None:
    parts = (value[1] if type(value) is list and len(value) == 2 else value for value in values)
    if len({_kind(graph, part) for part in parts} - {"NoneType"}) > 1:
        raise BadSnapshot("a list holds what it cannot hold")


def _deep_kind(graph: Graph, value: Any) -> str:
    """The kind of a key: of a tuple also those of what it is made of."""
    kind = _kind(graph, value)
    return kind if kind != "tuple" else f"tuple of {', '.join(_kind(graph, part) for part in graph.nodes[value[0]][1:] if not _run(part))}"


def _run(value: Any) -> bool:
    return type(value) is list and len(value) == 2


def must_agree(stored: Kinds, known: Kinds) -> None:
    """Raises BadSnapshot where a field holds what it holds nowhere in a machine like it."""
    for (name, field), kinds in stored.items():
        others = known.get((name, field), frozenset())
        strange = kinds - others - {"NoneType"}
        if strange and others - {"NoneType"} and not (strange == {"int"} and "float" in others):
            raise BadSnapshot(f"{name.rpartition('.')[2]}.{field} is not what it must be")
