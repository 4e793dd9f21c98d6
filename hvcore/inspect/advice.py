"""What a run's faults and ending mean, and which option of the core would change it: read off the run, not off its outcome's name."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..spec.e820 import E820Entry
from ..spec.pci import format_bdf
from ..spec.vtd import FaultReason
from . import format as show
from .domains import Domain
from .faults import Fault
from .functions import Function
from .records import Column, Record, Records
from .units import Unit

__all__ = ["Advice", "advise"]

GIB = 1 << 30
PAGES_PER_GIB = 513
"""Table pages that 1 GiB takes in 4 KiB pages: 512 of level 1 and one of level 2."""


@dataclass(frozen=True, slots=True, repr=False)
class Advice(Record):
    """One thing to know: `what` happened, `why`, what to `change`, and at what `price`.

    `options` are that change as options of `Config`; none where no option helps.
    """

    what: str
    why: str
    change: str
    price: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    title = "What to make of it"
    columns = (Column("what", lambda a: a.what), Column("why", lambda a: a.why), Column("change", lambda a: a.change),
               Column("price", lambda a: a.price))


class Finished(Protocol):
    """What advice is read from: the parts of a run."""

    @property
    def config(self) -> Any: ...
    @property
    def outcome(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def faults(self) -> Records[Fault]: ...
    @property
    def domains(self) -> Records[Domain]: ...
    @property
    def units(self) -> Records[Unit]: ...
    @property
    def functions(self) -> Records[Function]: ...
    @property
    def e820(self) -> Any: ...
    @property
    def vmm(self) -> Any: ...


def advise(run: Finished) -> Records[Advice]:
    """Advice on each kind of fault and on a core that gave up, the first thing to do first."""
    found = [*_on_panic(run), *_on_faults(run), *_on_no_protection(run)]
    kinds: dict[tuple[str, str], Advice] = {}
    for advice in found:
        kinds.setdefault((advice.why, advice.change), advice)
    return Records(Advice, tuple(kinds.values()))


_OWN_BUGS = ("no unit covers", "no domain, for MGAW", "Assertion failed", "no answer to Identify")
"""What a core says that gives up by a bug of BitVisor's."""


def _on_panic(run: Finished) -> Iterator[Advice]:
    if run.outcome != "vmm-panic":
        return
    what = f"The core gave up: {run.why}"
    if "Out of memory" in run.why:
        yield from _on_full_heap(run, what)
    elif any(words in run.why for words in _OWN_BUGS):
        why = "this is one of BitVisor's own bugs that the profile `bitvisor` keeps"
        yield Advice(what, why, "PROFILE=mended", "", {"PROFILE": "mended"})


def _on_full_heap(run: Finished, what: str) -> Iterator[Advice]:
    """Domain 0's tables did not fit the core's memory."""
    end = max((e.end for e in run.e820.firmware), default=0) if run.config.IOMMU_MAP_END == "e820" else _ram_end(run.e820.firmware)
    needed = -(-end // GIB) * PAGES_PER_GIB
    why = f"4 KiB pages up to {end:#x} take about {needed:,} table pages, and its heap has {run.vmm.heap_pages_total:,}"
    if any(unit.superpages for unit in run.units) and not run.config.IOMMU_SUPERPAGES:
        yield Advice(what, why, "IOMMU_SUPERPAGES=y", "", {"IOMMU_SUPERPAGES": True})
    if run.config.IOMMU_MAP_END == "e820" and _ram_end(run.e820.firmware) < end:
        yield Advice(what, f"{why}; RAM ends at {_ram_end(run.e820.firmware):#x}, the rest is reserved ranges", "IOMMU_MAP_END=ram", "",
                     {"IOMMU_MAP_END": "ram"})


def _ram_end(e820: Iterable[E820Entry]) -> int:
    return max((e.end for e in e820 if e.usable), default=0)


def _on_faults(run: Finished) -> Iterator[Advice]:
    for fault in run.faults:
        what = f"{_device(run, fault)} was stopped: its DMA {fault.access} at {fault.address:#x} was blocked"
        domain = next((d for d in run.domains if d.unit == fault.unit and fault.source in d.devices), None)
        yield _on_fault(run, fault, what, domain)


def _device(run: Finished, fault: Fault) -> str:
    """The requester of a fault, and what it is where a function has that address."""
    kind = next((f.kind for f in run.functions if f.source == fault.source and f.unit == fault.unit), "")
    return f"{format_bdf(fault.source)} ({kind})" if kind else format_bdf(fault.source)


def _on_fault(run: Finished, fault: Fault, what: str, domain: Domain | None) -> Advice:
    base = run.vmm.base
    if base is not None and base <= fault.address < base + run.vmm.size:
        return Advice(what, "that is the core's own memory: this is what the protection is for", "nothing: the driver must not ask for it")
    if fault.reason in (FaultReason.ROOT_NOT_PRESENT, FaultReason.CONTEXT_NOT_PRESENT):
        return _on_no_context(run, fault, what)
    if fault.reason in (FaultReason.READ_DENIED, FaultReason.WRITE_DENIED) and domain is not None:
        return _on_denied(run, fault, what, domain)
    return Advice(what, f"{fault.text} (reason {fault.reason:#x})", "see the walk, step by step, for the entry that says so")


def _on_no_context(run: Finished, fault: Fault, what: str) -> Advice:
    why = f"no context entry is there for {format_bdf(fault.source)} (reason {fault.reason:#x})"
    if run.config.PROFILE == "bitvisor" and run.config.VTD_TRANS:
        return Advice(what, f"{why}: the core gives entries only to functions it finds at their own address", "PROFILE=mended", "",
                      {"PROFILE": "mended"})
    return Advice(what, why, "whoever drives the unit has to give the device a context entry")


def _on_denied(run: Finished, fault: Fault, what: str, domain: Domain) -> Advice:
    """The tables do not map it: beyond their end, or in a hole of them."""
    mapped = domain.runs.end[domain.runs.granting]
    end = int(mapped.max()) if len(mapped) else 0
    ram = [e for e in run.e820.guest or run.e820.firmware if e.usable and e.start <= fault.address < e.end]
    if fault.address < end or not ram:
        where = "usable RAM" if ram else "no RAM that the guest was told of"
        return Advice(what, f"domain {domain.did} does not map it, and it lies in {where}", "see the walk for the entry that says so")
    why = (f"it lies in the guest's usable RAM, but domain {domain.did}'s tables end at {end:#x} ({show.size(end)}): "
           f"the guest may use memory that its devices may not reach")
    return _map_more(run, what, why)


def _map_more(run: Finished, what: str, why: str) -> Advice:
    """Mapping all of RAM, with superpages where 4 KiB pages would not fit the core's heap."""
    options: dict[str, Any] = {"IOMMU_MAP_END": "ram"}
    end = _ram_end(run.e820.firmware)
    needed = -(-end // GIB) * PAGES_PER_GIB
    price = f"about {needed:,} table pages of the core's {run.vmm.heap_pages_total:,}"
    if needed > run.vmm.heap_pages_total - 64 and any(unit.superpages for unit in run.units):
        options["IOMMU_SUPERPAGES"] = True
        price = "2 MiB pages above 4 GiB, for 4 KiB pages would not fit the core's heap"
    change = " and ".join(f"{name}={'y' if value is True else value}" for name, value in options.items())
    return Advice(what, why, change, price, options)


def _on_no_protection(run: Finished) -> Iterator[Advice]:
    """Units that do not translate leave the core's memory open to devices."""
    off = [unit for unit in run.units if not unit.translating]
    if run.outcome != "up" or not off or run.vmm.base is None:
        return
    what = f"Nothing is enforced: {'no unit translates' if len(off) == len(run.units) else f'{len(off)} units do not translate'}"
    why = f"devices reach all memory, the core's own at {run.vmm.base:#x}-{run.vmm.base + run.vmm.size:#x} among it"
    if not run.config.VTD_TRANS:
        yield Advice(what, why, "VTD_TRANS=y", "", {"VTD_TRANS": True})
    else:
        yield Advice(what, why, "see the history for who switched translation off")
