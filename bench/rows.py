"""Rows of the bench: a figure of hvlab's beside what it is held against."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["REPEATS", "Row", "compare", "limit", "median"]

REPEATS = 5


@dataclass(frozen=True)
class Row:
    """One line of the result: what, hvlab's figure, what it is held against, and the most it may be."""

    what: str
    ours: str
    theirs: str
    ratio: float | None
    good: bool


def compare(what: str, ours: float, name: str, theirs: float) -> Row:
    """Seconds against seconds; ours must not be more."""
    return Row(what, f"{ours:.3f} s", f"{name}: {theirs:.3f} s", ours / theirs, ours <= theirs)


def limit(what: str, ours: float, most: float, unit: str = "s") -> Row:
    """A figure against a fixed limit."""
    return Row(what, f"{ours:.3f} {unit}", f"limit: {most:g} {unit}", ours / most, ours <= most)


def median(action: Callable[[], object], repeats: int = REPEATS, before: Callable[[], object] = lambda: None) -> float:
    """Median seconds of `action`; `before` runs each time and is not counted."""
    times = []
    for _ in range(repeats):
        before()
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
