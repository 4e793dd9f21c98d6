"""What the checks of the exercises share: what they find, and machines of their own to try an answer on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hvcore import Config, Machine
from hvcore.run import Run
from hvcore.spec.pci import parse_bdf

__all__ = ["EDU", "NOT_ANSWERED", "RIGHT", "Finding", "are_commands", "booted", "found", "is_number", "requester", "vmm_range"]

RIGHT, NOT_ANSWERED = "right", "not answered"
EDU = 0x0018
"""Requester id (00:03.0) of the DMA test device on the q35 machines."""
_MOST_COMMANDS = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: the `key` of what to say, and the `values` for that sentence."""

    key: str
    values: Mapping[str, str] = field(default_factory=dict)


def found(key: str, **values: Any) -> Finding:
    """A finding whose numbers are addresses: they are said in hex."""
    return Finding(key, {name: f"{v:#x}" if isinstance(v, int) else str(v) for name, v in values.items()})


@contextmanager
def booted(name: str, config: Config | None = None) -> Iterator[tuple[Machine, Run]]:
    """A machine of the check's own, which has booted."""
    with Machine.load(name) as machine:
        yield machine, machine.boot(config)


def is_number(answer: Any) -> bool:
    """Whether it is an int, and no bool."""
    return isinstance(answer, int) and not isinstance(answer, bool)


def are_commands(answer: Any) -> bool:
    """Whether it is a list of few enough commands for the guest."""
    return isinstance(answer, (list, tuple)) and all(isinstance(c, str) for c in answer) and len(answer) <= _MOST_COMMANDS


def requester(answer: Any) -> int | None:
    """A requester id from a number or from `00:02.0`; None for what is neither."""
    if not isinstance(answer, str):
        return answer if is_number(answer) else None
    try:
        return parse_bdf(answer)[1]
    except ValueError:
        return None


def vmm_range(run: Run) -> range:
    """The core's region (host-physical)."""
    base = run.vmm.base or 0
    return range(base, base + run.vmm.size)
