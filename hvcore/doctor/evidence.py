"""What a diagnosis rests on: the runs under each policy, read while each was there, and the DMAR table as BitVisor reads it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..guestimage import is_linux
from ..inspect.advice import Advice, advise
from ..inspect.dmar import DmarTable
from ..inspect.e820 import E820Map
from ..inspect.faults import Fault
from ..inspect.functions import Function
from ..inspect.proof import Claim
from ..inspect.records import Records
from ..inspect.units import Unit
from ..machine.description import MachineDescription
from ..machine.memory import Memory
from ..run import Run
from ..runparts import VmmMemory
from ..session import Machine
from ..spec.linuxboot import Elf, Kernel
from ..vmm import dmar
from ..vmm.config import Config
from ..vmm.platform import Console

__all__ = ["FOUR_GIB", "GIB", "Boot", "Evidence", "gather", "pages_for"]

GIB = 1 << 30
FOUR_GIB = 4 << 30
_PAGES_PER_GIB = 513
"""Table pages that 1 GiB takes in 4 KiB pages: 512 of level 1 and one of level 2."""


def pages_for(end: int) -> int:
    """About how many table pages 4 KiB leaves from 0 up to `end` take."""
    return -(-end // GIB) * _PAGES_PER_GIB


@dataclass(frozen=True, slots=True)
class Boot:
    """One run: its options, how it ended, what the units refused, what advice follows, the core's memory.

    `contexts` are pairs of a unit's register base and a requester id that has a context entry there; `open_claims` are those of the proof
    that do not hold.
    """

    policy: str
    config: Config
    outcome: str
    why: str
    faults: tuple[Fault, ...]
    advice: tuple[Advice, ...]
    vmm: VmmMemory
    contexts: frozenset[tuple[int, int]]
    open_claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that problems are judged from.

    `boots` are by the policy's name; units, functions, table and memory map are read off the run without translation.  `seen` are the
    units that BitVisor's reading of the table gives, in its order, and `said` what it printed meanwhile.
    """

    description: MachineDescription
    boots: Mapping[str, Boot]
    units: Records[Unit]
    functions: Records[Function]
    table: DmarTable
    e820: E820Map
    seen: tuple[dmar.Unit, ...]
    said: tuple[str, ...]

    @property
    def ram_end(self) -> int:
        """The end of usable RAM."""
        return max((e.end for e in self.e820.firmware if e.usable), default=0)

    def ending(self, words: str) -> tuple[str, ...]:
        """The policies under which a run ended with these words."""
        return tuple(b.policy for b in self.boots.values() if b.outcome != "up" and words in b.why)

    def up(self, policy: str) -> bool:
        """Whether the guest came up with its disk under a policy that was tried."""
        return policy in self.boots and self.boots[policy].outcome == "up"


class _Listener(Console):
    """A console that keeps what is printed to itself."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, text: str, end: str = "\n") -> None:
        """A line."""
        self.lines.append(text)


LIMIT = 600.0
"""Seconds of wall time after which a guest that never waits is given up."""


def gather(machine: Machine, policies: Mapping[str, Config], guest: Elf | Kernel | None = None) -> Iterator[Boot | Evidence]:
    """Boots the machine with a guest (None: the lab guest) under each policy and gives each run as it ends, at last all of it together.

    The first policy must not translate.
    """
    boots: dict[str, Boot] = {}
    parts = None
    for name, config in policies.items():
        run = machine.boot(config, guest=guest, limit=LIMIT if is_linux(guest) else None)
        boots[name] = boot = _boot(name, run, with_proof=name == list(policies)[-1])
        if parts is None:
            parts = run.units, run.functions, run.dmar, run.e820, *_as_bitvisor_reads(machine.pc.memory, run.dmar)
        yield boot
    assert parts is not None
    yield Evidence(machine.description, boots, *parts)


def _boot(policy: str, run: Run, with_proof: bool) -> Boot:
    contexts = frozenset((d.unit, source) for d in run.domains if d.unit is not None for source in d.devices)
    open_claims = tuple(c for c in run.proof.claims if not c.holds) if with_proof and run.outcome == "up" else ()
    return Boot(policy, run.config, run.outcome, run.why, tuple(run.faults), tuple(advise(run)), run.vmm, contexts, open_claims)


def _as_bitvisor_reads(memory: Memory, table: DmarTable) -> tuple[tuple[dmar.Unit, ...], tuple[str, ...]]:
    """BitVisor's own parse of the table that lies in memory."""
    if table.address is None:
        return (), ()
    console = _Listener()
    units = dmar.parse_dmar_bios_report(memory, table.address, console)
    return tuple(units), tuple(console.lines)
