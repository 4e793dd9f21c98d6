"""One run of a machine, as its memory, registers and consoles have it.

While it is the machine's current run everything is read anew at each look; when the machine reboots it is read once more and kept.
"""

import html
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from . import outcome
from .errors import BadTable, HvlabError, quoted
from .fates import by_console, of_resident, text_of
from .figures import attach, attach_differences
from .guests import GuestView, Tenure, look_at, reached_by
from .inspect.cached import CachedDomain, read_cached
from .inspect.counterfactual import Counterfactual, blocked_request, read_counterfactual
from .inspect.diff import Change, diff_runs
from .inspect.dmar import DmarTable, read_dmar
from .inspect.domains import Domain, read_domains
from .inspect.dump import save_dump
from .inspect.e820 import E820Map
from .inspect.explain import Explanation, explain, explain_fault
from .inspect.faults import Fault, read_faults
from .inspect.functions import Function, read_functions
from .inspect.history import Event, read_history
from .inspect.interrupts import InterruptEntry, InterruptMessage, read_interrupts, read_messages
from .inspect.lens import Lens, look
from .inspect.permissions import Permissions
from .inspect.proof import Proof
from .inspect.prove import Subject, read_proof
from .inspect.provenance import Provenance, read_provenance
from .inspect.records import Records
from .inspect.runs import Runs
from .inspect.scan import scan
from .inspect.trace import Dma, read_trace
from .inspect.units import RegisterValue, Unit, read_registers, read_units
from .inspect.window import Opening, read_window
from .machine.firmware import read_e820
from .machine.memory import Memory
from .proving import subject_of
from .runparts import Bench, Console, Guest, VmmMemory
from .spec.e820 import E820Entry
from .spec.linuxboot import BOOT_PARAMS_SIZE, told_e820
from .spec.paging import NESTED
from .spec.pci import format_bdf
from .twoguests import Resident
from .vmm.config import Config
from .vmm.core import Core
from .vmm.layout import HEAP, named_ranges
from .writers import follow, untold, what_lies

__all__ = ["Console", "Guest", "Run", "VmmMemory"]

T = TypeVar("T")


class Run:
    """What one boot came to.  Every part displays itself and has `.frame`."""

    def __init__(self, machine: Bench, config: Config, number: int):
        self._machine, self.config, self.number = machine, config, number
        self.core: Core | None = None
        self.timings: dict[str, float] = {}
        self._kept: dict[str, Any] | None = None
        follow(machine.pc.writes, self._core_now)

    def _core_now(self) -> Core | None:
        return self.core

    def put_back(self, core: Core | None) -> None:
        """The machine is what it was at an earlier moment of this run; `core` is that moment's."""
        self.core = core
        follow(self._machine.pc.writes, self._core_now)

    # --- reading

    def _read(self, name: str, read: Callable[[], T]) -> T:
        """A part as it is now, with the machine held still for it; as it was kept, once it was."""
        if self._kept is None:
            with self._machine.still():
                if self._kept is None:
                    part = read()
                    attach(name, part, self)
                    return part
        kept: T = self._kept[name]
        return kept

    @property
    def live(self) -> bool:
        """Whether the machine still stands where this run left it."""
        return self._kept is None

    def freeze(self) -> None:
        """Reads everything once more and keeps it; the machine is about to change."""
        if self._kept is None:
            kept: dict[str, Any] = {}
            known: dict[str, Callable[[Records[Domain]], Any]] = {"permissions": self._permissions, "proof": self._proof}
            for name in _PARTS:
                kept[name] = known[name](kept["domains"]) if name in known else getattr(self, name)
            self._kept = kept

    @property
    def ending(self) -> outcome.Ending:
        """Outcome and reason."""
        return self._read("ending", self._ending)

    def _ending(self) -> outcome.Ending:
        told = self._machine.ended or self._machine.unfinished
        if told or self._machine.residents is None:
            return told or by_console(self._machine.linux, self.console.guest, self.faults)
        return outcome.of_guests([(r.number, self._fate(r)) for r in self._machine.residents])

    def _fate(self, resident: Resident) -> outcome.Ending:
        return of_resident(resident, self.core, self._machine.linux, self.faults)

    @property
    def outcome(self) -> str:
        """`up`, `disk-lost`, `off`, `guest-crash`, `vmm-panic` or `vmm-taken-over`; `running` or `stopped` before it has come to that."""
        return self.ending.outcome

    @property
    def why(self) -> str:
        """The reason, in a sentence."""
        return self.ending.why

    @property
    def e820(self) -> E820Map:
        """The firmware's memory map beside the one the guest was given."""
        return self._read("e820", lambda: E820Map(*self._maps()))

    def _maps(self) -> tuple[tuple[E820Entry, ...], tuple[E820Entry, ...]]:
        memory = self._machine.pc.memory
        at = self.core.boot_params if self.core else None
        return _firmware_map(memory), told_e820(memory.read(at, BOOT_PARAMS_SIZE)) if at is not None else ()

    @property
    def units(self) -> Records[Unit]:
        """The remapping units' registers and the devices they cover."""
        pc = self._machine.pc
        covered = {u.base: pc.topology.requesters(i) for i, u in enumerate(pc.units)}
        return self._read("units", lambda: read_units(pc.units, lambda base: covered[base], self._machine.description.host_address_width))

    @property
    def functions(self) -> Records[Function]:
        """The PCI functions by their configuration space, with the unit that sees each."""
        return self._read("functions", self._functions)

    def _functions(self) -> Records[Function]:
        pc = self._machine.pc

        def unit_of(segment: int, requester: int) -> int | None:
            index = pc.topology.unit_index(segment, requester)
            return None if index is None else pc.units[index].base

        return read_functions(pc.root.functions, unit_of)

    @property
    def registers(self) -> dict[int, Records[RegisterValue]]:
        """Every register of every unit, decoded, by the unit's register base."""
        return self._read("registers", lambda: {u.base: read_registers(u) for u in self._machine.pc.units})

    @property
    def dmar(self) -> DmarTable:
        """The DMAR table as it lies in memory: structures, scopes, what is odd; and whether the guest finds it."""
        return self._read("dmar", self._dmar)

    def _dmar(self) -> DmarTable:
        pc = self._machine.pc
        return read_dmar(pc.memory, pc.root, self.e820.firmware, pc.topology.requester, self._machine.description.dmar, self.e820.guest)

    @property
    def domains(self) -> Records[Domain]:
        """The domains in the units' tables."""
        pc = self._machine.pc
        return self._read("domains", lambda: read_domains(pc.memory, pc.units, self._machine.description.host_address_width))

    @property
    def permissions(self) -> Permissions:
        """What each domain may reach."""
        return self._permissions(None)

    def _permissions(self, domains: Records[Domain] | None) -> Permissions:
        """Of domains that were just read, where they were: it takes as long as all the rest."""
        return self._read("permissions", lambda: Permissions(self.domains if domains is None else domains))

    @property
    def proof(self) -> Proof:
        """Whether the core is out of reach of devices and of the guest: claims with counterexamples, by memory and registers."""
        return self._proof(None)

    def _proof(self, domains: Records[Domain] | None) -> Proof:
        """With domains that were just read, where they were: scanning them is most of the work."""
        return self._read("proof", lambda: read_proof(self._subject(self.domains if domains is None else domains)))

    def _subject(self, domains: Records[Domain]) -> Subject:
        return subject_of(self._machine.pc, self.core, self._named_parts(), self.window, domains)

    def _named_parts(self) -> list[tuple[str, int, int]]:
        """The parts of the core's memory, host-physical; none before it has one."""
        base = self.core.base if self.core else None
        second = self.core.tiny.guest if self.core and self.core.tiny else None
        block = named_ranges(second.base, HEAP)[:-1] if second else []
        own = [] if base is None else named_ranges(base, self.config.VMM_SIZE_MIB << 20)
        return [*((f"{name} of guest 2", start, end) for name, start, end in block), *own]

    @property
    def cpu(self) -> Runs:
        """What the guest's CPU reaches: guest-physical runs of the nested tables."""
        return self._read("cpu", self._cpu)

    def _cpu(self) -> Runs:
        root = self._nested_root()
        return Runs.of([]) if root is None else scan(self._machine.pc.memory, NESTED, root, 4).runs

    def _nested_root(self) -> int | None:
        return self.core.nested_root() if self.core else None

    @property
    def cached(self) -> Records[CachedDomain]:
        """What the units' IOTLBs let devices do; the tables may say otherwise by now."""
        return self._read("cached", lambda: read_cached(self._machine.pc.units))

    @property
    def faults(self) -> Records[Fault]:
        """The fault records of the units."""
        return self._read("faults", lambda: read_faults(self._machine.pc.units))

    @property
    def interrupts(self) -> Records[InterruptEntry]:
        """The present entries of the units' interrupt remapping tables."""
        return self._read("interrupts", self._interrupts)

    def _interrupts(self) -> Records[InterruptEntry]:
        pc, width = self._machine.pc, self._machine.description.host_address_width
        tables = [read_interrupts(pc.memory, unit, width) for unit in pc.units]
        return Records(InterruptEntry, [e for t in tables for e in t], note="\n".join(t.note for t in tables if t.note))

    @property
    def messages(self) -> Records[InterruptMessage]:
        """The newest interrupt messages of devices that got through, as they were sent and as they arrived."""
        return self._read("messages", lambda: read_messages(self._machine.pc.fabric.interrupts))

    @property
    def history(self) -> Records[Event]:
        """What happened to translation since power-on, and the phases of the boot, in order."""
        return self._read("history", lambda: read_history(self._machine.pc.journal.happenings, self._machine.pc.journal.count))

    @property
    def window(self) -> Records[Opening]:
        """When the core's memory was open to devices since it laid its code and key: the protection window."""
        return self._read("window", self._window)

    def _window(self) -> Records[Opening]:
        vmm = self.vmm
        region = None if vmm.base is None else (vmm.base, vmm.base + vmm.size)
        return read_window(self.history, [u.base for u in self._machine.pc.units], region)

    @property
    def dma(self) -> Records[Dma]:
        """The newest DMA requests and what became of each."""
        return self._read("dma", lambda: read_trace(self._machine.pc.fabric.trace, self._machine.pc.fabric.issued))

    @property
    def console(self) -> Console:
        """All consoles."""
        pc = self._machine.pc
        return self._read("console", lambda: Console(pc.debug.decode("latin-1"), text_of(pc.serial),
                                                     text_of(pc.partition.serial) if pc.partition else None))

    @property
    def vmm(self) -> VmmMemory:
        """The core's memory."""
        return self._read("vmm", self._vmm)

    def _vmm(self) -> VmmMemory:
        size = self.config.VMM_SIZE_MIB << 20
        heap = self.core.heap if self.core else None
        return VmmMemory(self.core.base if self.core else None, size, heap.used if heap else 0, heap.total if heap else 0)

    @property
    def guests(self) -> Records[GuestView]:
        """The guests, each with its RAM, devices and console: one, or two with TINYVISOR; none before one was loaded."""
        return self._read("guests", self._guests)

    def _guests(self) -> Records[GuestView]:
        core, residents, pc = self.core, self._machine.residents, self._machine.pc
        if core is None or core.base is None or core.boot_params is None:
            return Records(GuestView)
        tenures = [Tenure(1, core.base, core.boot_params)]
        second = core.tiny.guest if core.tiny else None
        tenures += [Tenure(2, second.base, second.boot_params)] if second and residents else []
        sources = sorted(f.source for f in pc.topology.functions if not f.segment)
        endings = [self._fate(r) for r in residents] if residents else [self.ending]
        texts = [text_of(r.seat.serial) for r in residents] if residents else [text_of(pc.serial)]
        return Records(GuestView, [look_at(pc.memory, t, sources, residents is not None, ending, text, self._sender(t.number))
                                   for t, ending, text in zip(tenures, endings, texts, strict=True)])

    def _sender(self, number: int) -> Callable[[str], str]:
        def send(line: str) -> str:
            self._must_live("its guest is gone")
            return Guest(self._machine, number).command(line)
        return send

    # --- using

    @property
    def guest(self) -> Guest:
        """The guest, to type to.  Raises HvlabError where another run has taken its place."""
        self._must_live("its guest is gone")
        return Guest(self._machine)

    def lens(self, address: int) -> Lens:
        """Everything known of one host-physical address.  Raises HvlabError for what is none."""
        self._must_live("its memory is gone")
        if not isinstance(address, int) or not 0 <= address < 1 << 64:
            raise HvlabError(f"{address!r} is no physical address: give a number from 0 to {(1 << 64) - 1:#x}")
        parts = self._named_parts()
        lens = look(self._machine.pc.memory, address, self.e820, self.domains, parts, self._nested_root(), self.units, self.dmar)
        return replace(lens, facts=(*lens.facts, *(fact for guest in self.guests[1:] for fact in reached_by(guest, address))))

    def explain(self, fault: Fault) -> Explanation:
        """The way of a DMA or an interrupt message that faulted, step by step through the tables as they are now.

        Raises HvlabError for what is no fault record of this machine's units.
        """
        self._must_live("its tables are gone")
        pc = self._machine.pc
        if not isinstance(fault, Fault) or fault.unit not in {u.base for u in pc.units}:
            raise HvlabError(f"{quoted(fault)} is no fault of this machine: give one of run.faults, or ask what_if(source, iova)")
        return explain_fault(pc.memory, {u.base: u for u in pc.units}, fault, self._machine.description.host_address_width)

    def what_if(self, source: int, iova: int, access: str = "read", segment: int = 0) -> Explanation:
        """What would become of a DMA of requester `source` at `iova`, step by step; nothing is sent.

        `source` is the requester id that the unit sees.  Raises HvlabError for what is no request, and where no unit covers the requester.
        """
        self._must_live("its tables are gone")
        if access not in ("read", "write") or not 0 <= iova < 1 << 64 or not 0 <= source < 1 << 16:
            raise HvlabError(f"{access!r} by {source:#x} at {iova:#x} is no request: give a requester id of 16 bits, an address of 64 "
                             f"bits, and `read` or `write`")
        pc = self._machine.pc
        unit = pc.topology.unit_index(segment, source)
        if unit is None:
            raise HvlabError(f"no remapping unit covers {format_bdf(source)}: its requests go through as they are")
        return explain(pc.memory, pc.units[unit], source, iova, access, self._machine.description.host_address_width)

    def who_wrote(self, address: int, length: int = 8) -> Records[Provenance]:
        """The newest writer of each word in `length` bytes at a host-physical address, and the bytes there now.

        DMA is always seen; stores of the processors are where they are watched: in the core's region since somebody else than the core
        wrote to what keeps the guest out of it, and where `watch` said so.  What the core wrote is told from the log, or from its heap.
        Raises HvlabError for what is no range of up to 1 MiB.
        """
        self._must_live("its memory is gone")
        if not 0 <= address < 1 << 52 or not 1 <= length <= 1 << 20:
            raise HvlabError(f"{quoted(length)} bytes at {quoted(address)} are no range to ask for: give up to 1 MiB of physical memory")
        with self._machine.still():
            pc = self._machine.pc
            return read_provenance(pc.writes, pc.memory, address, length, lambda word: untold(pc, self.core, word), self._guest_physical)

    def _guest_physical(self, host: int) -> int | None:
        return next((address for address, _ in self._cpu().reaching(host)), None)

    def would_have(self, what: Dma | Fault) -> Counterfactual:
        """What a blocked request (of `run.dma`, or the newest that met a fault of `run.faults`) would have done with no unit on its way.

        Nothing is sent and nothing changed.  Raises HvlabError for one that was not blocked, or is not kept any more.
        """
        self._must_live("its memory is gone")
        with self._machine.still():
            memory = self._machine.pc.memory
            lies = what_lies(memory, self.domains, self._nested_root(), self._named_parts(), self.e820)
            return read_counterfactual(memory, blocked_request(self.dma, what), lies)

    def watch(self, start: int, end: int) -> None:
        """From now on `who_wrote` sees stores of the processors' code to host-physical [start, end); every store anywhere takes 27 ns more.

        Raises HvlabError for what is no range.
        """
        self._must_live("its memory is gone")
        if not 0 <= start < end <= 1 << 52:
            raise HvlabError(f"{quoted(start)} to {quoted(end)} is no range to watch: give the first address and the one behind the last")
        with self._machine.still():
            self._machine.pc.writes.watch(start, end)

    def _must_live(self, what: str) -> None:
        if self._kept is not None:
            raise HvlabError(f"run {self.number} is over and {what}: the machine was rebooted or closed; use its current run")

    def diff(self, other: "Run") -> Records[Change]:
        """What is different in `other`, aligned."""
        changes = diff_runs(self, other)
        attach_differences(changes, self, other)
        return changes

    def dump(self, folder: str | Path) -> list[Path]:
        """Writes tables.npz and registers.json; returns their paths."""
        self._must_live("its tables are gone")
        return save_dump(self._machine.pc.memory, self._machine.pc.units, Path(folder), self._machine.description.host_address_width)

    # --- showing

    def to_json(self) -> dict[str, Any]:
        """The whole run as plain values: addresses as integers, ranges half-open."""
        return {
            "machine": {"name": self._machine.name, "ram_bytes": self._machine.description.ram_bytes,
                        "assumptions": list(self._machine.assumptions)},
            "config": self.config.to_dict(), "outcome": self.outcome, "why": self.why, "e820": self.e820.to_json(),
            "vmm": {"base": self.vmm.base, "size": self.vmm.size, "heap_pages_used": self.vmm.heap_pages_used,
                    "heap_pages_total": self.vmm.heap_pages_total},
            "units": self.units.to_json(), "domains": self.domains.to_json(), "faults": self.faults.to_json(),
            "console": {"vmm": self.console.vmm.splitlines(), "guest": self.console.guest.splitlines()}, "timings": self.timings,
            **({"guests": self.guests.to_json()} if self.config.TINYVISOR else {}),
        }

    def __str__(self) -> str:
        return "\n\n".join([self._headline(), *(str(part) for part in self._shown() if len(part))])

    def _shown(self) -> list[Records[Any]]:
        """The parts of the summary; the guests only where there are several."""
        guests = self.guests
        return [*([guests] if len(guests) > 1 else []), self.e820, self.units, self.domains, self.faults]

    __repr__ = __str__

    def _headline(self) -> str:
        base = f"{self.vmm.base:#x}-{self.vmm.base + self.vmm.size:#x}" if self.vmm.base is not None else "none"
        total = self.timings.get("total")
        took = f", {total:.2f} s" if total is not None else ""
        return (f"Run {self.number} of {self._machine.name}: {self.outcome} - {self.why}\n{self.config}\n"
                f"core at {base}, heap {self.vmm.heap_pages_used} of {self.vmm.heap_pages_total} pages{took}")

    def _repr_html_(self) -> str:
        head = "<br>".join(html.escape(line) for line in self._headline().splitlines())
        return f"<p>{head}</p>" + "".join(part._repr_html_() for part in self._shown() if len(part))


_PARTS = ("ending", "e820", "units", "registers", "dmar", "domains", "permissions", "cpu", "cached", "faults", "interrupts", "messages",
          "console", "vmm", "history", "window", "dma", "functions", "proof", "guests")


def _firmware_map(memory: Memory) -> tuple[E820Entry, ...]:
    """The map that firmware left; no entries where something has overwritten it."""
    try:
        return read_e820(memory)
    except BadTable:
        return ()
