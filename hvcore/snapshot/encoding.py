"""Objects as a graph of plain values."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import FunctionType, MethodType
from typing import Any

from ..errors import HvlabError
from . import registry
from .graph import NO_VALUE, SCALARS, Graph, Special, no_collection

__all__ = ["encode"]


def encode(root: object, outside: Mapping[str, object], special: Mapping[type, Special] | None = None, share: bool = False) -> Graph:
    """The graph of everything that `root` leads to; `outside` are objects that it ends at, by their names.

    With `share` it stays in this process and takes no copies of bytes.  Raises HvlabError for what no snapshot can hold.
    """
    encoder = _Encoder(outside, special or {}, [] if share else None)
    with no_collection():
        value = encoder.value(root)
        encoder.drain()
    shared = None if encoder.shared is None else tuple(encoder.shared)
    return Graph(value, encoder.nodes, encoder.shape_list, bytes(encoder.blob), shared)


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
        if kind in SCALARS:
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

    def _add(self, node: list[Any], thing: Any = NO_VALUE) -> list[int]:
        number = [len(self.nodes)]
        self.nodes.append(node)
        if thing is not NO_VALUE:
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
        first = things[0] if len(things) > 2 else NO_VALUE
        if (first is None or type(first) is tuple) and things.count(first) == len(things):
            return [[len(things), self.value(first)]]
        return self._items(things)

    def _items(self, things: Iterable[Any]) -> list[Any]:
        """Values one after another; the same one several times over only once."""
        items: list[Any] = []
        last, count = NO_VALUE, 0
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
