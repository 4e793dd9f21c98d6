"""The pictures of one run: its memory maps, its domains, its permissions, its history; as figures and as views that are alive."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hvcore.inspect.domains import Domain
from hvcore.inspect.e820 import E820Map
from hvcore.inspect.format import size
from hvcore.inspect.history import Event
from hvcore.inspect.permissions import Permissions
from hvcore.inspect.units import Unit

from .differences import differences_figure
from .domains import domains_figure
from .drawing import Figure
from .e820 import e820_figure
from .lanes import lanes_of
from .permissions import Lane, permissions_figure, reached
from .picture import Picture
from .scale import SCALES
from .selection import Selection
from .timeline import AXES, Now, timeline_figure

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["E820View", "GraphView", "PermissionsView", "TimelineView", "differences_of", "domains_of", "domains_view", "e820_of",
           "e820_view", "history_of", "permissions_of", "permissions_view", "table_lanes", "timeline_view", "units_of", "views",
           "vmm_range"]


def e820_view(run: "Run", scale: str = "compressed") -> Figure:
    """What firmware reports beside what the guest is told."""
    return e820_of(run, run.e820, scale=scale)


def domains_view(run: "Run") -> Figure:
    """Which device reaches which memory."""
    return domains_figure(run.units, run.domains, run.functions)


def permissions_view(run: "Run", scale: str = "compressed") -> Figure:
    """What the guest's CPU and each domain may read and write."""
    return permissions_of(run, run.permissions, scale=scale)


def timeline_view(run: "Run", axis: str = "even") -> Figure:
    """What devices could reach from power-on to now."""
    return history_of(run, run.history, axis=axis)


def views(run: "Run", scale: str = "compressed") -> list[Figure]:
    """Memory maps, domains and permissions."""
    return [e820_view(run, scale), domains_view(run), permissions_view(run, scale)]


# --- figures of records of a run: what else the figure shows is the run's

def e820_of(run: "Run", e820: E820Map, *, scale: str = "compressed") -> Figure:
    """The figure of `run.e820`."""
    return e820_figure(e820.firmware, e820.guest, vmm_range(run), scale=scale)


def units_of(run: "Run", units: Sequence[Unit]) -> Figure:
    """The figure of `run.units`: the graph from PCI functions to memory."""
    return domains_figure(units, run.domains, run.functions)


def domains_of(run: "Run", domains: Sequence[Domain]) -> Figure:
    """The figure of `run.domains`: the same graph."""
    return domains_figure(run.units, domains, run.functions)


def permissions_of(run: "Run", permissions: Permissions, *, scale: str = "compressed") -> Figure:
    """The figure of `run.permissions`."""
    guest = run.e820.guest or run.e820.firmware
    return permissions_figure(table_lanes(run, permissions.domains), guest, vmm_range(run), scale=scale)


def history_of(run: "Run", history: Sequence[Event], *, axis: str = "even") -> Figure:
    """The figure of `run.history`: the window without protection, and what came after."""
    ram = sum(e.size for e in run.e820.firmware if e.usable)
    now = {unit.base: _now(run, unit) for unit in run.units}
    return timeline_figure(history, list(now), ram, vmm_range(run), now, axis=axis)


def differences_of(left: "Run", right: "Run", *, scale: str = "compressed") -> Figure:
    """The figure of `left.diff(right)`: two runs' memory maps and permissions aligned, what is gained, lost and changed marked."""
    return differences_figure(left, right, scale=scale)


# --- views

class RunView(Picture):
    """Figures of one run that are alive; `show(run)` shows another, or the same as it is now."""

    def __init__(self, run: "Run", selection: Selection | None = None, **values: Any):
        super().__init__(self._figures_of(run), selection, **values)

    def show(self, figures: "Mapping[str, Figure] | Figure | Run") -> None:
        """Shows another run, or other figures, in their place; the name that is shown stays."""
        super().show(figures if isinstance(figures, Mapping | Figure) else self._figures_of(figures))

    def _figures_of(self, run: "Run") -> Mapping[str, Figure] | Figure:
        raise NotImplementedError


class E820View(RunView):
    """What firmware reports beside what the guest is told, on each scale."""

    def _figures_of(self, run: "Run") -> Mapping[str, Figure]:
        return {scale: e820_view(run, scale) for scale in SCALES}


class PermissionsView(RunView):
    """What the guest's CPU and each domain may read and write, on each scale."""

    def _figures_of(self, run: "Run") -> Mapping[str, Figure]:
        return {scale: permissions_view(run, scale) for scale in SCALES}


class GraphView(RunView):
    """The graph from PCI functions to memory."""

    def _figures_of(self, run: "Run") -> Figure:
        return domains_view(run)


class TimelineView(RunView):
    """What devices could reach from power-on to now, by the order of events and by time."""

    def _figures_of(self, run: "Run") -> Mapping[str, Figure]:
        return {axis: timeline_view(run, axis) for axis in AXES}


# --- what they are made of

def _now(run: "Run", unit: Unit) -> Now:
    """What the tables of a unit grant now, and whether the VMM's memory is among it."""
    domains, vmm = [d for d in run.domains if d.unit == unit.base], vmm_range(run)
    if not domains:
        return Now("nothing", "nothing: there is no context entry")
    exposed = max(reached(d.runs, vmm) for d in domains) if vmm else 0
    most = max(int((d.runs.end - d.runs.start)[d.runs.granting].sum()) for d in domains)
    whose = f"domain {domains[0].did}" if len(domains) == 1 else f"{len(domains)} domains, the most of one"
    among = "" if not vmm else f", {size(exposed)} of the VMM's memory among it" if exposed else ", nothing of the VMM's memory"
    return Now(size(most), f"tables of {whose}: {size(most)}{among}", bool(exposed))


def vmm_range(run: "Run") -> tuple[int, int] | None:
    """The core's region (host-physical, half-open); None where it has none."""
    base = run.vmm.base
    return None if base is None else (base, base + run.vmm.size)


def table_lanes(run: "Run", domains: Iterable[Domain]) -> list[Lane]:
    """The lanes of what tables say: the guest's CPU, domains, and devices that are not translated."""
    return [Lane(lane.name, lane.runs, lane.space) for lane in lanes_of(run, domains) if lane.tables is None]
