"""A machine that boots: `Machine.load`, `boot`, `reboot`, and the `Run` each gives.

    m = Machine.load("q35-6g")
    run = m.boot(Config(VTD_TRANS=True))
    run.outcome, run.domains, run.faults
    run2 = m.reboot(VTD_TRANS=False)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from . import outcome
from .errors import BadConfig, BadMachine, HvlabError, Unreadable
from .inspect.records import html_table
from .machine.cpu import StopKind
from .machine.description import MachineDescription
from .machine.pc import Pc
from .run import Run
from .sources import images_dir, load
from .spec.linuxboot import Elf, load_elf
from .spec.pci import format_bdf
from .vmm.config import Config
from .vmm.core import Core
from .vmm.exits import Exits, GuestDead
from .vmm.heap import Panic

__all__ = ["Machine", "command_line", "lab_guest"]

COMMAND_LINE = "console=ttyS0,115200"
WALL_LIMIT = 60.0
"""Seconds of wall time after which a guest that never waits is given up."""


@dataclass
class _Phases:
    """Times what happens between calls, in seconds, and passes each phase on."""

    tell: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)
    _name: str = ""
    _since: float = 0.0

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now
        if name:
            self.tell(name)


class Machine:
    """A PC from its description.  It is an owned object: `close()` it, or use it in `with`; several may live side by side.

    `assumptions` says in a sentence each what the description did not tell and was chosen.
    """

    def __init__(self, description: MachineDescription, public_only: bool = False):
        self._description = description
        self.run: Run | None = None
        self.core: Core | None = None
        self.exits: Exits | None = None
        self._ended: outcome.Ending | None = None
        self._boots = 0
        self._pc = Pc(description, public_only)

    @classmethod
    def load(cls, what: str | Path) -> "Machine":
        """A TOML file, a folder of logs and tables, a single kernel log, or the name of a shipped machine.  Raises BadMachine."""
        return cls(load(what))

    @property
    def description(self) -> MachineDescription:
        """What the machine was made from."""
        return self._description

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.description.name

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What was not known and chosen, with what of the PCI description could not be had."""
        return (*self.description.assumptions, *self._pc.root.notes)

    @property
    def pc(self) -> Pc:
        """The hardware."""
        return self._pc

    # --- booting

    def boot(self, config: Config | None = None, progress: Callable[[str], None] | None = None, guest: Elf | None = None) -> Run:
        """Power on, core, guest, until the guest waits for input or something ends.  The run before is frozen as it stood.

        `progress` is told each phase.  Raises BadMachine where the machine cannot hold the guest at all, BadConfig for what is no Config.
        """
        config = Config() if config is None else config
        if not isinstance(config, Config):
            raise BadConfig(f"boot takes a Config, as in boot(Config(VTD_TRANS=False)), not {config!r}")
        phases = _Phases(progress or _silent)
        phases("firmware")
        self._start_over(config)
        assert self.run is not None
        core = self.core = Core(self._pc, config, phases)
        self.run.core = core
        try:
            self.exits = core.boot(guest or lab_guest(), command_line(self.description))
        except Panic as panic:
            self._ended = outcome.Ending("vmm-panic", str(panic))
        except BaseException:
            self._ended = outcome.Ending("guest-crash", "the boot was broken off before the guest began")
            raise
        else:
            self._pc.cpu.on_door = self._on_door
            phases("guest runs")
            self._go()
            if self._pc.reset_requested:
                self._ended = outcome.Ending("guest-crash", "the guest reset the machine before it waited for input")
        phases("")
        self.run.timings = phases.seconds | {"total": sum(phases.seconds.values())}
        return self.run

    def _start_over(self, config: Config) -> None:
        if self.run is not None:
            self.run.freeze()
            self._pc.power_on()
        self._ended = self.exits = None
        self._boots += 1
        self.run = Run(self, config, self._boots)

    def reboot(self, progress: Callable[[str], None] | None = None, **options: Any) -> Run:
        """The same machine from power-on, with options changed: `m.reboot(VTD_TRANS=False)`."""
        config = self.run.config if self.run else Config()
        return self.boot(config.change(**options), progress)

    def _go(self) -> None:
        """Lets the processor run until there is nothing more to do."""
        stop = self._pc.run(WALL_LIMIT)
        if self._ended is None and stop is not None and not self._pc.reset_requested:
            self._ended = outcome.of_stop(stop)
        if self.core and not self.core.text_intact():
            self._ended = outcome.of_foreign_text(stop)

    def _on_door(self) -> None:
        """The policy's turn; what it cannot bear ends the run."""
        assert self.exits is not None
        try:
            self.exits.on_door()
        except GuestDead as death:
            self._end("guest-crash", str(death))
        except (Panic, Unreadable) as panic:
            assert self.core is not None
            self.core.console.print(f"panic: {panic}")
            self._end("vmm-panic", str(panic))

    def _end(self, kind: str, why: str) -> None:
        self._ended = outcome.Ending(kind, why)
        self._pc.cpu.stop(StopKind.REQUEST, why)

    @property
    def ended(self) -> outcome.Ending | None:
        """How the current run ended; None while the guest could go on."""
        return self._ended

    # --- using a running guest

    def send(self, text: str) -> str:
        """Sends input to the guest's console and lets it run until it waits again; returns what it printed meanwhile.

        A guest that resets the machine is booted again with the same options.
        """
        if self.run is None or self._ended is not None or not self.run.live:
            raise HvlabError(f"there is no guest to send to: {self._ended.why if self._ended else 'boot the machine first'}")
        before = len(self._pc.serial)
        self._pc.type(text.encode("latin-1", "replace"))
        self._go()
        if self._pc.reset_requested:
            self.boot(self.run.config)
            before = 0
        return bytes(self._pc.serial[before:]).decode("latin-1")

    # --- looking

    def lens(self, address: int) -> Any:
        """Everything known of one host-physical address."""
        return self._current().lens(address)

    def explain(self, fault: Any) -> Any:
        """One DMA step by step: a fault record of a run."""
        return self._current().explain(fault)

    def _current(self) -> Run:
        if self.run is None:
            raise HvlabError("nothing has run yet: call boot() first")
        return self.run

    # --- lifetime

    def close(self) -> None:
        """Freezes the last run and gives the memory back."""
        if self.run is not None:
            self.run.freeze()
        self._pc.close()

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.close()

    def _facts(self) -> list[tuple[str, str]]:
        """What to show of it, as (what, how it is)."""
        d = self.description
        functions = f"{len(d.pci)}, NVMe at {', '.join(format_bdf(f.source) for f in d.pci if f.model == 'nvme') or 'none'}"
        units = ", ".join(f"{u.base:#x} (CAP {u.cap:#x}, ECAP {u.ecap:#x})" for u in d.units) or "none"
        state = f"{self.run.outcome}: {self.run.why}" if self.run else "not booted"
        facts = [("RAM", f"{d.ram_bytes / (1 << 30):.6g} GiB"), ("remapping units", units), ("PCI functions", functions)]
        return [*facts, ("source", d.source), ("state", state), *(("assumed", text) for text in self.assumptions)]

    def __repr__(self) -> str:
        return "\n".join([f"Machine {self.name}", *(f"  {what:15}  {how}" for what, how in self._facts() if how)])

    def _repr_html_(self) -> str:
        rows = [row for row in self._facts() if row[1]]
        return html_table(f"Machine {self.name}", ("what", "how it is"), rows, (False, False), row_heads=True)


def lab_guest() -> Elf:
    """The lab guest that hvlab ships."""
    path = images_dir() / "guests" / "lab.elf"
    if not path.exists():
        raise BadMachine(f"{path} is missing: build it with `make images`")
    return load_elf(path.read_bytes())


def command_line(machine: MachineDescription) -> str:
    """What the loader tells the guest; `pci=lastbus=` where there are buses to which no bridge leads, as on machines of two sockets."""
    first = [f for f in machine.pci if not f.segment]
    behind = {bus for f in first if f.subordinate for bus in range(f.secondary, f.subordinate + 1)}
    roots = {f.source >> 8 for f in first} - behind - {0}
    return COMMAND_LINE + (f" pci=lastbus={max(f.source >> 8 for f in first):d}" if roots else "")


def _silent(_phase: str) -> None:
    pass

