"""From addresses to places on a line: in proportion, by logarithm, or with gaps and long ranges compressed."""

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

__all__ = ["SCALES", "Scale", "anchors", "edges_of", "make_scale", "ticks"]

SCALES = ("compressed", "linear", "log")
"""`compressed` gives every range room by the logarithm of its size and every gap the same little; it is the one to read maps with."""

Scale = Callable[[int], float]
Range = tuple[int, int]

_GAP = 1.6
_KIB64 = 1 << 16


def edges_of(ranges: Iterable[Range]) -> list[int]:
    """The distinct ends of half-open ranges, ascending, with address 0."""
    return sorted({0} | {edge for r in ranges for edge in r})


def make_scale(kind: str, ranges: Sequence[Range], left: float, right: float) -> Scale:
    """A function from an address to its place between `left` and `right`.  `ranges` are the half-open ranges that will be drawn."""
    if kind not in SCALES:
        raise ValueError(f"no scale named {kind!r}: choose one of {', '.join(SCALES)}")
    edges = edges_of(ranges)
    end = max(edges[-1], 1)
    if kind == "linear":
        return lambda address: left + (right - left) * min(address, end) / end
    if kind == "log":
        full = math.log2(1 + end / _KIB64)
        return lambda address: left + (right - left) * math.log2(1 + min(address, end) / _KIB64) / full
    return _compressed(edges, _merged(ranges), left, right)


def _compressed(edges: list[int], covered: list[Range], left: float, right: float) -> Scale:
    starts = [a for a, _ in covered]

    def weight(a: int, b: int) -> float:
        i = bisect_right(starts, a) - 1
        return max(math.log2((b - a) / 4096) if b - a > 4096 else 0, 1.2) if i >= 0 and a < covered[i][1] else _GAP

    places = [0.0]
    for a, b in itertools.pairwise(edges):
        places.append(places[-1] + weight(a, b))
    unit = (right - left) / (places[-1] or 1)

    def place(address: int) -> float:
        i = bisect_right(edges, address) - 1
        if i + 1 >= len(edges):
            return left + places[-1] * unit
        inside = (address - edges[i]) / (edges[i + 1] - edges[i])
        return left + (places[i] + inside * (places[i + 1] - places[i])) * unit

    return place


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """The union of half-open ranges."""
    out: list[Range] = []
    for a, b in sorted(ranges):
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], b))
        else:
            out.append((a, b))
    return out


def anchors(scale: Scale, edges: Sequence[int]) -> list[tuple[int, float]]:
    """Places (address, x) between which the scale is nearly in proportion: at the edges and at powers of two."""
    top = edges[-1] if edges else 0
    points = {*edges, *(1 << i for i in range(12, top.bit_length()))}
    return [(point, scale(point)) for point in sorted(points)]


def ticks(scale: Scale, edges: Sequence[int], width: float) -> list[tuple[int, float]]:
    """The edges that have room for a label `width` wide each: (address, place), from the left, the last one always."""
    if not edges:
        return []
    last = (edges[-1], scale(edges[-1]))
    out: list[tuple[int, float]] = []
    for edge in edges[:-1]:
        x = scale(edge)
        if (not out or x - out[-1][1] >= width) and last[1] - x >= width:
            out.append((edge, x))
    return [*out, last]
