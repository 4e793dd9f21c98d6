"""Every target by its name, with what it may use."""

from collections.abc import Callable
from dataclasses import dataclass

from . import acpi, archives, attacks, devices, inspect, requests, sources, unit, whole

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """`run` is given a seed and says what happened.

    `limit` is the most seconds of processor time that a case may take, `space` the most MiB of address space (RLIMIT_AS, which counts a
    machine's sparse RAM whole), `resident` the most MiB of real memory.  `share` is how much of the time it gets, `smoke` how many cases
    the tests run.
    """

    run: Callable[[int], str]
    limit: int = 20
    space: int = 12 << 10
    resident: int = 4 << 10
    share: float = 1.0
    smoke: int = 24


_SHARES = {"unit": 5.0, "arrays": 2.0, "live": 3.0, "dmar": 2.0, "log": 2.0, "folder": 2.0, "lists": 2.0, "toml": 2.0, "options": 0.3,
           "madt": 0.5, "mcfg": 0.5, "maps": 0.5, "core-dmar": 0.5, "boot": 3.0, "monitor": 3.0,
           "attack-code": 3.0, "attack-program": 3.0, "attack-bytes": 3.0}


TARGETS: dict[str, Target] = {
    **{name: Target(run, share=_SHARES.get(name, 1.0)) for module in (acpi, sources, archives, inspect, requests, unit, devices)
       for name, run in module.TARGETS.items()},
    **{name: Target(run, limit=60, space=3 << 20, share=_SHARES[name], smoke=12 if module is whole else 4)
       for module in (whole, attacks) for name, run in module.TARGETS.items()},
}
