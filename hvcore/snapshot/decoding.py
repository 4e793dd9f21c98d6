"""A graph of plain values as the objects that it stands for."""

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from enum import Enum
from types import MethodType
from typing import Any

from ..errors import BadSnapshot, quoted
from . import registry
from .graph import NO_VALUE, SCALARS, Graph, Special, no_collection

__all__ = ["decode"]


def decode(graph: Graph, outside: Mapping[str, object], special: Mapping[type, Special] | None = None,
           shells: Mapping[type, object] | None = None) -> tuple[Any, Callable[[], None]]:
    """What a graph stands for, and a function that fills it: until that is called nothing outside the graph has changed.

    `outside` are the objects that it ends at, by their names; `shells` are objects that take the place of the stored ones of their class,
    of which there may be one each.  Raises BadSnapshot for what is none, also when it is filled.
    """
    decoder = _Decoder(graph, outside, special or {}, shells or {})
    with no_collection():
        decoder.build()
    return decoder.known(graph.root), decoder.fill


class _Decoder:
    def __init__(self, graph: Graph, outside: Mapping[str, object], special: Mapping[type, Special], shells: Mapping[type, object]):
        self._nodes, self._blob, self._shared = graph.nodes, graph.blob, graph.shared
        self._outside, self._special, self._shells = outside, special, dict(shells)
        self._shapes = [_checked_shape(shape) for shape in graph.shapes]
        self._things: list[Any] = [NO_VALUE] * len(self._nodes)
        self._left = 64 << 20
        self._frozen: dict[str, Callable[[list[Any]], Any]] = {
            "b": self._bytes, "m": self._method, "x": self._external, "c": self._constant, "t": self._tuple, "e": self._member,
            "s": self._frozenset, "f": self._function, "r": self._record, "i": self._range}
        self._empty: dict[str, Callable[[list[Any]], Any]] = {
            "l": lambda _: [], "d": lambda _: {}, "D": lambda _: OrderedDict(), "S": lambda _: set(), "q": self._deque,
            "B": self._bytearray, "o": self._object, "p": self._special_object}

    def build(self) -> None:
        """Makes everything: what changes is still empty."""
        for number, node in enumerate(self._nodes):
            _must(isinstance(node, list) and node and isinstance(node[0], str) and (node[0] in self._empty or node[0] in self._frozen),
                  "a node is of no kind")
            if node[0] in self._empty:
                self._things[number] = self._empty[node[0]](node)
        for number, node in enumerate(self._nodes):
            if node[0] in self._frozen:
                self._things[number] = self._frozen[node[0]](node)

    def known(self, value: Any) -> Any:
        """What a value of a node stands for."""
        if type(value) is list:
            _must(len(value) == 1 and type(value[0]) is int and 0 <= value[0] < len(self._things), "a number of a node leads nowhere")
            thing = self._things[value[0]]
            _must(thing is not NO_VALUE, "a node comes before its parts")
            return thing
        _must(type(value) in SCALARS, "a value is of no kind")
        return value

    # --- what never changes

    def _part(self, at: Any, length: Any) -> bytes:
        if self._shared is not None:
            whole: bytes = self._shared[at]
            return whole
        _must(type(at) is int and type(length) is int and 0 <= at <= at + length <= len(self._blob), "bytes lie beyond the end")
        return self._blob[at:at + length]

    def _bytes(self, node: list[Any]) -> bytes:
        _, at, length = node
        return self._part(at, length)

    def _method(self, node: list[Any]) -> Any:
        _, owner, name = node
        thing = self.known(owner)
        function = registry.method_of(type(thing), name)
        _must(function is not None, f"no machine keeps a method {quoted(name)}")
        return MethodType(function, thing)          # type: ignore[arg-type]

    def _external(self, node: list[Any]) -> Any:
        _, name = node
        _must(isinstance(name, str) and name in self._outside, "it ends at something that is not there")
        return self._outside[name]

    def _constant(self, node: list[Any]) -> Any:
        _, name = node
        found = registry.constant_of(name)
        _must(found is not None, "a declaration is not there")
        return found

    def _function(self, node: list[Any]) -> Any:
        _, name = node
        found = registry.function_of(name)
        _must(found is not None, "a function is not there")
        return found

    def _tuple(self, node: list[Any]) -> tuple[Any, ...]:
        return tuple(self._items(node, 1))

    def _frozenset(self, node: list[Any]) -> frozenset[Any]:
        return frozenset(self._items(node, 1))

    def _range(self, node: list[Any]) -> range:
        _, start, stop, step = node
        _must(type(start) is int and type(stop) is int and type(step) is int and step != 0, "a range is none")
        return range(start, stop, step)

    def _member(self, node: list[Any]) -> Any:
        _, name, member = node
        cls = registry.class_of(name)
        _must(isinstance(cls, type) and issubclass(cls, Enum) and isinstance(member, str) and member in cls.__members__, "a name is none")
        return cls[member]          # type: ignore[index]

    def _record(self, node: list[Any]) -> Any:
        cls, names = self._shape(node)
        values = [self.known(value) for value in node[2:]]
        _must(len(values) == len(names), "a record has too few or too many fields")
        _must_fit(cls, names, values)
        if issubclass(cls, tuple):
            _must(len(names) == len(registry.field_names(cls)), "a record has too few fields")
            return tuple.__new__(cls, values)
        _must(registry.is_frozen(cls), "a record is none")
        thing = object.__new__(cls)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(thing, name, value)
        return thing

    def _shape(self, node: list[Any]) -> tuple[type, tuple[str, ...]]:
        _must(len(node) > 1 and type(node[1]) is int and 0 <= node[1] < len(self._shapes), "an object has no class")
        found: tuple[type, tuple[str, ...]] = self._shapes[node[1]]
        return found

    # --- what changes

    def _deque(self, node: list[Any]) -> deque[Any]:
        _must(len(node) > 1 and (node[1] is None or type(node[1]) is int and 0 <= node[1] <= 1 << 20), "a queue has no length")
        return deque(maxlen=node[1])

    def _bytearray(self, node: list[Any]) -> bytearray:
        _, name, at, length = node
        cls = bytearray if name is None else registry.class_of(name)
        _must(isinstance(cls, type) and issubclass(cls, bytearray), "bytes have no class")
        made: bytearray = cls(self._part(at, length))       # type: ignore[misc]
        return made

    def _object(self, node: list[Any]) -> Any:
        cls, _ = self._shape(node)
        _must(not issubclass(cls, (tuple, Enum, bytearray)) and not registry.is_frozen(cls) and cls not in self._special,
              "an object has a class that is made otherwise")
        return self._shells.pop(cls, None) or object.__new__(cls)

    def _special_object(self, node: list[Any]) -> Any:
        _, name, _values = node
        cls = registry.class_of(name)
        _must(isinstance(cls, type) and cls in self._special, "an object is made in a way that is none")
        return object.__new__(cls)          # type: ignore[arg-type]

    def fill(self) -> None:
        """Fills what changes.  Keys of tables are looked at last, for they must be whole; special objects after all others."""
        with no_collection():
            for kinds, fill in (("loq", self._fill), ("dDS", self._fill_table), ("p", self._fill_special)):
                for node, thing in zip(self._nodes, self._things, strict=True):
                    if node[0] in kinds:
                        fill(node, thing)

    def _fill(self, node: list[Any], thing: Any) -> None:
        if node[0] == "o":
            cls, names = self._shape(node)
            _must(len(node) == len(names) + 2, "an object has too few or too many fields")
            values = [self.known(value) for value in node[2:]]
            _must_fit(cls, names, values)
            for name, value in zip(names, values, strict=True):
                object.__setattr__(thing, name, value)
        else:
            thing.extend(self._items(node, 2 if node[0] == "q" else 1))

    def _fill_table(self, node: list[Any], thing: Any) -> None:
        items = self._items(node, 1) if node[0] == "S" else [self.known(value) for value in node[1:]]
        if node[0] == "S":
            thing.update(items)
        else:
            _must(len(items) % 2 == 0, "a table has a key without a value")
            thing.update(zip(items[::2], items[1::2], strict=True))

    def _fill_special(self, node: list[Any], thing: Any) -> None:
        values = self.known(node[2])
        _must(type(values) is dict and all(isinstance(key, str) for key in values), "an object has no values")
        self._special[type(thing)].fill(thing, values)

    def _items(self, node: list[Any], start: int) -> list[Any]:
        items: list[Any] = []
        for value in node[start:]:
            if type(value) is list and len(value) == 2:
                count, one = value
                _must(type(count) is int and 0 <= count <= self._left, "a list is longer than any")
                self._left -= count
                items += [self.known(one)] * count
            else:
                items.append(self.known(value))
        return items


def _checked_shape(shape: Any) -> tuple[type, tuple[str, ...]]:
    """A class and the fields that its objects have, where this version's are laid out alike."""
    _must(isinstance(shape, list) and len(shape) == 3 and all(isinstance(part, list) for part in shape[1:]), "a class is none")
    cls = registry.class_of(shape[0])
    _must(cls is not None, f"this version has no {quoted(shape[0])}")
    assert cls is not None
    _must(tuple(shape[1]) == registry.field_names(cls), f"it was made by a version that lays out {cls.__qualname__} otherwise")
    names = tuple(shape[2])
    _must(len(set(names)) == len(names) and set(names) <= set(shape[1]), "an object has fields that its class has not")
    return cls, names


def _must_fit(cls: type, names: tuple[str, ...], values: list[Any]) -> None:
    """Each field holds what it is declared to hold."""
    kinds = registry.field_kinds(cls)
    for name, value in zip(names, values, strict=True) if kinds else ():
        _must(name not in kinds or isinstance(value, kinds[name]), f"{cls.__qualname__}.{name} is not what it must be")


def _must(holds: object, why: str) -> None:
    if not holds:
        raise BadSnapshot(why)
