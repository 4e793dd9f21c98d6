"""The PCI functions of a machine as rows of a tree: buses, functions, and what lies behind bridges; of a large machine folded."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from hvcore.inspect.format import source
from hvcore.inspect.functions import Function

__all__ = ["LIMIT", "Row", "tree_rows"]

LIMIT = 36
"""Rows beyond which neighbours that are alike become one row."""
_DULL = frozenset({0x05, 0x06, 0x08, 0x0B, 0x11})
"""Base classes of what a chipset has many of and nobody looks for: memory, bridges, system, processor, signal processing."""
_NAMED = 2

FateOf = Callable[[Function], Hashable]


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a bus (without `functions`), a function, or several neighbours; `depth` is how many bridges lie above."""

    depth: int
    words: str
    functions: tuple[Function, ...] = ()

    @property
    def tip(self) -> str:
        """Everything of the row in words."""
        return "; ".join(_told(f) for f in self.functions) or self.words


def tree_rows(functions: Iterable[Function], fate_of: FateOf) -> list[Row]:
    """The tree from top to bottom.  Only leaves of the same bus and the same fate are folded: of one kind, then what is dull, then all."""
    buses: dict[tuple[int, int], list[Function]] = {}
    for f in sorted(functions, key=lambda f: (f.segment, f.source)):
        buses.setdefault((f.segment, f.source >> 8), []).append(f)
    rows: list[Row] = []
    for alike in (_one, _kind, _dull, _any):
        rows = list(_rows(dict(buses), lambda f, alike=alike: (alike(f), fate_of(f))))  # type: ignore[misc]
        if len(rows) <= LIMIT:
            break
    return rows


def _one(f: Function) -> Hashable:
    return f.source


def _kind(f: Function) -> Hashable:
    return f.source if f.secondary else f.kind


def _dull(f: Function) -> Hashable:
    return _DULL if f.class_code >> 16 in _DULL and not f.secondary else _kind(f)


def _any(f: Function) -> Hashable:
    return f.source if f.secondary else None


def _rows(buses: dict[tuple[int, int], list[Function]], alike: FateOf) -> Iterator[Row]:
    """The buses that no bridge leads to, each with what lies on it and behind."""
    behind = {(f.segment, f.secondary) for bus in buses.values() for f in bus if f.secondary}
    several = len({segment for segment, _ in buses}) > 1
    for segment, bus in list(buses):
        if (segment, bus) not in behind:
            yield Row(0, f"segment {segment:04x}, bus {bus:02x}" if several else f"bus {bus:02x}")
            yield from _bus(buses, (segment, bus), alike, 1)


def _bus(buses: dict[tuple[int, int], list[Function]], which: tuple[int, int], alike: FateOf, depth: int) -> Iterator[Row]:
    """What lies on a bus, which is taken out of `buses`: where two bridges lead to it, only the first has it."""
    for _, group in groupby(buses.pop(which, []), key=alike):
        same = tuple(group)
        yield Row(depth, _words(same), same)
        if same[0].secondary:
            yield from _bus(buses, (which[0], same[0].secondary), alike, depth + 1)


def _words(same: Sequence[Function]) -> str:
    first = same[0]
    if len(same) == 1:
        return f"{source(first.source)} {first.kind}" + (f" to bus {first.secondary:02x}" if first.secondary else "")
    kinds = list(dict.fromkeys(f.kind for f in same))
    named = ", ".join(kinds[:_NAMED]) + (" ..." if len(kinds) > _NAMED else "")
    return f"{source(first.source)} to {source(same[-1].source)[3:]}: {len(same)} × {named}"


def _told(f: Function) -> str:
    alias = f", seen as {source(f.requester)}" if f.requester != f.source else ""
    return f"{source(f.source)} {f.kind} [{f.vendor:04x}:{f.device:04x}]{alias}"
