"""What a proof needs to know of a machine and its core: where the core is, which devices are known, what it shares."""

from collections.abc import Iterable, Sequence

from .errors import Unreadable
from .inspect.domains import Domain
from .inspect.prove import Shared, Subject
from .inspect.window import Opening
from .machine.pc import Pc
from .machine.topology import Topology
from .spec.pci import format_bdf
from .spec.svm import ControlArea
from .vmm.core import Core
from .vmm.layout import Data, Part

__all__ = ["subject_of"]


def subject_of(pc: Pc, core: Core | None, parts: Sequence[tuple[str, int, int]], openings: Sequence[Opening],
               domains: Iterable[Domain]) -> Subject:
    """The machine as it is now; `parts` are named ranges of the core's memory, `domains` were just read."""
    base = core.base if core else None
    if core is None or base is None:
        return Subject(pc.memory, pc.units, None)
    behind = {u.base: pc.topology.requesters(i) for i, u in enumerate(pc.units)}
    uncovered, note = _uncovered(pc.topology)
    region, width = (base, base + core.size), pc.machine.host_address_width
    return Subject(pc.memory, pc.units, region, base + Part.BLANK, parts, core.nested_root(), width, lambda unit: behind[unit],
                   uncovered, note, openings, _second_guest(pc, core), _shared(pc, core), domains)


def _shared(pc: Pc, core: Core) -> Shared | None:
    """What of the core's memory the controller of its own driver must reach."""
    held = core.storage
    if held is None:
        return None
    return Shared(*held.shadow, tuple(dict.fromkeys((held.source, pc.topology.requester(0, held.source)))))


def _second_guest(pc: Pc, core: Core) -> list[tuple[int, int | None]]:
    """Nested root and blank page of the second guest (host-physical), where there is one whose VMCB can be read."""
    second = core.tiny.guest if core.tiny else None
    if second is None:
        return []
    try:
        root = pc.memory.read64(pc.memory.read64(second.base + Part.DATA + Data.VMCB) + ControlArea.N_CR3)
    except Unreadable:
        return []
    return [(root, second.base + Part.BLANK)]


def _uncovered(topology: Topology) -> tuple[list[tuple[int, int]], str]:
    """(segment, requester id) of the known functions that no unit sees; and in words, what else no unit would see."""
    seen = dict.fromkeys((f.segment, topology.requester(f.segment, f.source)) for f in topology.functions)
    segments = dict.fromkeys(segment for segment, _ in seen)
    first = {g: topology.first_uncovered(g, {source for segment, source in seen if segment == g}) for g in segments}
    named = [f"{format_bdf(s)} of segment {g}" for g, s in first.items() if s is not None]
    note = f"Not proved: a device that is plugged in at {', '.join(named)} or the like would be behind no unit." if named else ""
    return [known for known in seen if topology.unit_index(*known) is None], note
