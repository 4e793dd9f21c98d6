"""Objects that refer to each other, in circles too, as plain values and back.

A stored graph is a list of nodes.  A value in a node is None, a bool, a number or a text as it is, or `[n]`, the node of that number; in a
list `[count, value]` is a value several times over.  The nodes of what never changes (tuples, frozen records, bytes, enum members) come
behind those that they are made of, so they can be built in order; all other objects are made empty first and filled last.  So nothing
recurses, and nothing of what a file says is looked up anywhere but in `registry`.
"""

import gc
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import FunctionType, MethodType
from typing import Any

from ..errors import BadSnapshot, HvlabError, quoted
from . import registry

__all__ = ["Graph", "Special", "decode", "encode"]

_SCALARS = frozenset({type(None), bool, int, float, str})
_LONGEST_TEXT = 1 << 20
_NO_VALUE: Any = object()


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


# --- to values

def encode(root: object, outside: Mapping[str, object], special: Mapping[type, Special] | None = None, share: bool = False) -> Graph:
    """The graph of everything that `root` leads to; `outside` are objects that it ends at, by their names.

    With `share` it stays in this process and takes no copies of bytes.  Raises HvlabError for what no snapshot can hold.
    """
    encoder = _Encoder(outside, special or {}, [] if share else None)
    with _no_collection():
        value = encoder.value(root)
        encoder.drain()
    shared = None if encoder.shared is None else tuple(encoder.shared)
    return Graph(value, encoder.nodes, encoder.shape_list, bytes(encoder.blob), shared)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Many thousand objects are about to come, none of them garbage."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Encoder:
    def __init__(self, outside: Mapping[str, object], special: Mapping[type, Special], shared: list[bytes] | None):
        self.shared = shared
        self.nodes: list[list[Any]] = []
        self.shape_list: list[list[Any]] = []
        self.blob = bytearray()
        self._outside = {id(thing): name for name, thing in outside.items()}
        self._special = special
        self._numbers: dict[int, list[int]] = {}
        self._shapes: dict[tuple[type, tuple[str, ...]], int] = {}
        self._kept: list[Any] = []
        self._todo: deque[tuple[list[Any], Any]] = deque()
        self._methods: dict[tuple[int, str], list[int]] = {}
        self._bytes: dict[bytes, list[int]] = {}

    def value(self, thing: Any) -> Any:
        """A value as nodes have it."""
        kind = type(thing)
        if kind in _SCALARS:
            return thing
        known = self._numbers.get(id(thing))
        if known is not None:
            return known
        if kind is bytes:
            return self._of_bytes(thing)
        if kind is MethodType:
            return self._of_method(thing)
        self._kept.append(thing)
        return self._frozen(thing, kind) or self._changing(thing, kind)

    def _add(self, node: list[Any], thing: Any = _NO_VALUE) -> list[int]:
        number = [len(self.nodes)]
        self.nodes.append(node)
        if thing is not _NO_VALUE:
            self._numbers[id(thing)] = number
        return number

    def _of_bytes(self, data: bytes) -> list[int]:
        known = self._bytes.get(data)
        if known is None:
            known = self._bytes[data] = self._add(["b", *self._store(data)])
        return known

    def _store(self, data: bytes | bytearray) -> tuple[int, int]:
        if self.shared is not None:
            self.shared.append(bytes(data))
            return len(self.shared) - 1, len(data)
        at = len(self.blob)
        self.blob += data
        return at, len(data)

    def _of_method(self, method: MethodType) -> list[int]:
        owner, name = method.__self__, method.__func__.__name__
        key = id(owner), name
        if key not in self._methods:
            if registry.method_of(type(owner), name) is not method.__func__:
                raise HvlabError(f"{type(owner).__qualname__}.{name} is kept for later by a machine, which no snapshot can hold: "
                                 "name it in hvcore/snapshot/registry.py")
            self._methods[key] = self._add(["m", self.value(owner), name])
        return self._methods[key]

    def _frozen(self, thing: Any, kind: type) -> list[int] | None:
        """What never changes: its parts come first."""
        if id(thing) in self._outside:
            return self._add(["x", self._outside[id(thing)]], thing)
        if (constant := registry.name_of_constant(thing)) is not None:
            return self._add(["c", constant], thing)
        if kind is tuple:
            return self._add(["t", *self._items(thing)], thing)
        if isinstance(thing, Enum):
            return self._add(["e", self._named(kind), thing.name], thing)
        if kind is frozenset:
            return self._add(["s", *self._items(thing)], thing)
        if kind is FunctionType:
            return self._add(["f", registry.name_of_function(thing) or self._refuse(f"the function {thing.__qualname__}")], thing)
        if issubclass(kind, tuple) or registry.is_frozen(kind):
            names = self._names(thing, kind)
            shape = self._shape(kind, names)
            return self._add(["r", shape, *(self.value(getattr(thing, name)) for name in names)], thing)
        if kind is range:
            return self._add(["i", thing.start, thing.stop, thing.step], thing)
        return None

    def _changing(self, thing: Any, kind: type) -> list[int]:
        """What changes: its number now, its parts later."""
        if kind is bytearray or isinstance(thing, bytearray):
            name = None if kind is bytearray else self._named(kind)
            return self._add(["B", name, *self._store(thing)], thing)
        node: list[Any] = []
        number = self._add(node, thing)
        self._todo.append((node, thing))
        return number

    def drain(self) -> None:
        """Fills what was only numbered."""
        while self._todo:
            node, thing = self._todo.popleft()
            node += self._filled(thing, type(thing))

    def _filled(self, thing: Any, kind: type) -> list[Any]:
        if kind is list:
            return ["l", *self._list(thing)]
        if kind is dict or kind is OrderedDict:
            pairs = (part for key, value in thing.items() for part in (self.value(key), self.value(value)))
            return ["d" if kind is dict else "D", *pairs]
        if kind is set:
            return ["S", *self._items(thing)]
        if kind is deque:
            return ["q", thing.maxlen, *self._items(thing)]
        if (special := self._special.get(kind)) is not None:
            return ["p", self._named(kind), self.value(special.save(thing))]
        names = self._names(thing, kind)
        return ["o", self._shape(kind, names), *(self.value(getattr(thing, name)) for name in names)]

    def _list(self, things: list[Any]) -> list[Any]:
        """The same for a list; one that is a record over and over, as pages of the log of writes are, is seen at once."""
        first = things[0] if len(things) > 2 else _NO_VALUE
        if (first is None or type(first) is tuple) and things.count(first) == len(things):
            return [[len(things), self.value(first)]]
        return self._items(things)

    def _items(self, things: Iterable[Any]) -> list[Any]:
        """Values one after another; the same one several times over only once."""
        items: list[Any] = []
        last, count = _NO_VALUE, 0
        for thing in things:
            if thing is last:
                count += 1
                continue
            _put(items, last, count, self.value)
            last, count = thing, 1
        _put(items, last, count, self.value)
        return items

    def _names(self, thing: Any, kind: type) -> tuple[str, ...]:
        """The fields that an object has, of those that its class can have."""
        known = registry.field_names(kind)
        if issubclass(kind, tuple):
            return known
        own = vars(thing) if hasattr(thing, "__dict__") else {}
        strange = own.keys() - set(known) - registry.TRANSIENT.get(self._named(kind), frozenset())
        if strange:
            self._refuse(f"{kind.__qualname__}.{min(strange)}, which no method of the class sets,")
        return tuple(name for name in known if name in own or name not in own and _has_slot(thing, name))

    def _named(self, kind: type) -> str:
        return registry.name_of(kind) or self._refuse(f"an object of {kind.__module__}.{kind.__qualname__}")

    def _shape(self, kind: type, names: tuple[str, ...]) -> int:
        key = kind, names
        if key not in self._shapes:
            self._shapes[key] = len(self.shape_list)
            self.shape_list.append([self._named(kind), list(registry.field_names(kind)), list(names)])
        return self._shapes[key]

    def _refuse(self, what: str) -> Any:
        raise HvlabError(f"{what} is part of this machine, and no snapshot can hold it: look at hvcore/snapshot/registry.py")


def _put(items: list[Any], thing: Any, count: int, value: Callable[[Any], Any]) -> None:
    if count > 2:
        items.append([count, value(thing)])
    elif count:
        items += [value(thing)] * count


def _has_slot(thing: Any, name: str) -> bool:
    """Whether a slot of an object holds something."""
    try:
        object.__getattribute__(thing, name)
    except AttributeError:
        return False
    return True


# --- and back

def decode(graph: Graph, outside: Mapping[str, object], special: Mapping[type, Special] | None = None,
           shells: Mapping[type, object] | None = None) -> tuple[Any, Callable[[], None]]:
    """What a graph stands for, and a function that fills it: until that is called nothing outside the graph has changed.

    `outside` are the objects that it ends at, by their names; `shells` are objects that take the place of the stored ones of their class,
    of which there may be one each.  Raises BadSnapshot for what is none, also when it is filled.
    """
    decoder = _Decoder(graph, outside, special or {}, shells or {})
    with _no_collection():
        decoder.build()
    return decoder.known(graph.root), decoder.fill


class _Decoder:
    def __init__(self, graph: Graph, outside: Mapping[str, object], special: Mapping[type, Special], shells: Mapping[type, object]):
        self._nodes, self._blob, self._shared = graph.nodes, graph.blob, graph.shared
        self._outside, self._special, self._shells = outside, special, dict(shells)
        self._shapes = [_checked_shape(shape) for shape in graph.shapes]
        self._things: list[Any] = [_NO_VALUE] * len(self._nodes)
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
            _must(thing is not _NO_VALUE, "a node comes before its parts")
            return thing
        _must(type(value) in _SCALARS, "a value is of no kind")
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
        with _no_collection():
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
