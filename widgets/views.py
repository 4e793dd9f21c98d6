"""The three views of one run: its memory maps, its domains, its permissions."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hvcore.inspect.format import address
from hvcore.inspect.runs import Runs

from .domains import domains_figure
from .drawing import Figure
from .e820 import e820_figure
from .permissions import UNTRANSLATED, Lane, permissions_figure

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["domains_view", "e820_view", "permissions_view", "views"]


def e820_view(run: "Run", scale: str = "compressed") -> Figure:
    """What firmware reports beside what the guest is told."""
    return e820_figure(run.e820.firmware, run.e820.guest, _vmm(run), scale=scale)


def domains_view(run: "Run") -> Figure:
    """Which device reaches which memory."""
    return domains_figure(run.units, run.domains, run.functions)


def permissions_view(run: "Run", scale: str = "compressed") -> Figure:
    """What the guest's CPU and each domain may read and write."""
    guest = run.e820.guest or run.e820.firmware
    return permissions_figure([*_cpu(run), *_domains(run), *_untranslated(run)], guest, _vmm(run), scale=scale)


def views(run: "Run", scale: str = "compressed") -> list[Figure]:
    """All three."""
    return [e820_view(run, scale), domains_view(run), permissions_view(run, scale)]


def _vmm(run: "Run") -> tuple[int, int] | None:
    """The core's region (host-physical, half-open); None where it has none."""
    base = run.vmm.base
    return None if base is None else (base, base + run.vmm.size)


def _cpu(run: "Run") -> Iterator[Lane]:
    """The guest's CPU, where its nested tables exist."""
    if len(run.cpu):
        yield Lane("guest CPU", run.cpu)


def _domains(run: "Run") -> Iterator[Lane]:
    """A lane for each domain that is enforced; units that share a domain's table share its lane."""
    on = {unit.base for unit in run.units if unit.translating}
    shared = {(d.did, d.root, d.levels): d.runs for d in run.domains if d.unit in on}
    for (did, _, _), runs in shared.items():
        yield Lane(f"domain {did}", runs)


def _untranslated(run: "Run") -> Iterator[Lane]:
    """A lane for the devices that no unit translates for: they reach all there is."""
    end = max((e.end for e in run.e820.firmware), default=0)
    everything = Runs.of([(0, end, UNTRANSLATED, 0)] if end else [])
    if not len(run.units):
        yield Lane("all devices", everything)
    for unit in run.units:
        if not unit.translating:
            yield Lane(f"unit {address(unit.base)}", everything)
