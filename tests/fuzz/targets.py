"""Every target by its name, with what it may use."""

from collections.abc import Callable
from dataclasses import dataclass

from . import acpi, devices, inspect, sources, unit, whole

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """`run` is given a seed and says what happened.

    `limit` is the most seconds that a case may take, `space` the most MiB of address space (RLIMIT_AS, which counts a machine's sparse RAM
    whole), `resident` the most MiB of real memory.  `smoke` is how many cases the tests run.
    """

    run: Callable[[int], str]
    limit: int = 20
    space: int = 12 << 10
    resident: int = 4 << 10
    smoke: int = 40


TARGETS: dict[str, Target] = {
    **{name: Target(run) for module in (acpi, sources, inspect, unit, devices) for name, run in module.TARGETS.items()},
    **{name: Target(run, limit=60, space=3 << 20, smoke=8) for name, run in whole.TARGETS.items()},
}
