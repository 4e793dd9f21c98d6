"""The exercises of the lesson on machines of one's own: a change that cannot be made smaller, and what a diagnosis points at."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from hvcore import Config, Machine
from hvcore.errors import HvlabError
from hvcore.run import Run
from hvcore.spec import dmar
from hvcore.spec.pci import bdf, format_bdf

from .finding import RIGHT, Finding, booted, found, requester

__all__ = ["MACHINE_EXERCISES"]

_COLLEAGUE = "gigabyte-b150m-16g"
_BEHIND_A_PORT = "q35-2g-rootport"


# --- 10: your own machine

def _change(answer: Any) -> Finding:
    if not isinstance(answer, Config):
        return found("no config")
    if not answer.VTD_TRANS:
        return found("off")
    with Machine.load(_COLLEAGUE) as m:
        try:
            run = m.boot(answer)
        except HvlabError as e:
            return found("refused", error=e)
        if not _works(run):
            return found("not up", outcome=run.outcome, why=run.why)
        spare = next((change for change, less in _one_less(answer) if _works(m.boot(less))), None)
    return found("too much", change=spare) if spare else found(RIGHT, count=str(len(list(_one_less(answer)))))


def _works(run: Run) -> bool:
    """Whether the guest has its disk and every unit translates."""
    return run.outcome == "up" and all(unit.translating for unit in run.units)


def _one_less(config: Config) -> Iterator[tuple[str, Config]]:
    """What a configuration changes of the usual one, each with the configuration that leaves just this as it was."""
    usual = Config()
    for name in (f.name for f in fields(Config)):
        mine, was = getattr(config, name), getattr(usual, name)
        if name == "QUIRKS":
            for quirk in sorted((mine ^ was) - {"VISIBLE_VTD_REGS"}):
                yield f"QUIRKS ({quirk})", config.change(QUIRKS=mine ^ {quirk}, HIDE_VTD_REGS=config.HIDE_VTD_REGS)
        elif mine != was and name != "PROFILE":
            yield name, config.change(**{name: was})


def _blame(answer: Any) -> Finding:
    if not isinstance(answer, tuple) or len(answer) != 2 or not all(isinstance(name, str) for name in answer):
        return found("no pair")
    function, bridge = map(requester, answer)
    if function is None or bridge is None:
        return found("no pair")
    with booted(_BEHIND_A_PORT) as (m, run):
        if f"no unit covers {format_bdf(function)}" not in run.why:
            swapped = f"no unit covers {format_bdf(bridge)}" in run.why
            return found("swapped" if swapped else "other function", function=format_bdf(function))
        key = RIGHT if bridge in _bridge_scopes(m) & _above(run, function) else "no bridge"
        return found(key, function=format_bdf(function), bridge=format_bdf(bridge))


def _bridge_scopes(m: Machine) -> set[int]:
    """The bridges on bus 0 that a unit's scope names (requester ids)."""
    scopes = [s for d in dmar.parse(m.description.dmar or b"").drhds for s in d.scopes if s.type == dmar.ScopeType.BRIDGE]
    return {bdf(s.start_bus, *s.path[0]) for s in scopes if len(s.path) == 1}


def _above(run: Run, function: int) -> set[int]:
    """The bridges that lead to a function's bus (requester ids)."""
    return {f.source for f in run.functions
            if f.secondary is not None and f.subordinate is not None and f.secondary <= function >> 8 <= f.subordinate}


MACHINE_EXERCISES: dict[str, tuple[bool, Callable[..., Finding]]] = {
    "10-change": (False, _change),
    "10-blame": (False, _blame),
}
"""By name, as `EXERCISES` has them."""
