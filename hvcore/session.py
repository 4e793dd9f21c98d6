"""A machine that boots: `Machine.load`, `boot`, `reboot`, and the `Run` each gives; `stop`, `resume` and `step` while one runs.

    m = Machine.load("q35-6g")
    run = m.boot(Config(VTD_TRANS=True))
    run.outcome, run.domains, run.faults
    run2 = m.reboot(VTD_TRANS=False)
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import outcome
from .booting import Booting
from .control import Control, Watch
from .engine import Engine
from .errors import BadConfig
from .guestimage import check_words, choose_guest, command_line, is_linux, lab_guest, refuse_linux
from .inspect.records import Records, html_table
from .inspect.steps import ExitStep, Registers, Step
from .machine.description import MachineDescription
from .machine.pc import Pc
from .phases import Progress
from .run import Run
from .shell import Answer, Shell
from .sources import load
from .spec.linuxboot import Elf, Kernel
from .spec.pci import format_bdf
from .twoguests import Residents
from .vmm.config import POLICIES, Config
from .vmm.core import Core
from .vmm.exits import Exits

if TYPE_CHECKING:
    from os import PathLike

    from .attack import Attack, Scenario
    from .linux import LinuxImage
    from .snapshot import Moment

__all__ = ["Machine", "command_line", "lab_guest"]

WALL_LIMIT = 60.0
"""Seconds of wall time after which a guest that never waits is given up, where nobody says otherwise."""


class Machine:
    """A PC from its description.  It is an owned object: `close()` it, or use it in `with`; several may live side by side.

    `assumptions` says in a sentence each what the description did not tell and was chosen.  With `ideal_caches` the remapping units
    remember nothing: every request sees the tables as they are, as no real unit would have it.
    """

    def __init__(self, description: MachineDescription, public_only: bool = False, ideal_caches: bool = False):
        self._description = description
        self._pc = Pc(description, public_only, ideal_caches)
        self._engine = Engine(self._hurry)
        self._booting = Booting(self._pc, self._engine, lambda config, number: Run(self, config, number))
        self._control = Control(self._booting)

    @classmethod
    def load(cls, what: str | Path, ideal_caches: bool = False) -> "Machine":
        """A TOML file, a folder of logs and tables, a single kernel log, or the name of a shipped machine.  Raises BadMachine."""
        return cls(load(what), ideal_caches=ideal_caches)

    @classmethod
    def restore(cls, path: "str | PathLike[str]", image: "str | PathLike[str] | None" = None) -> "Machine":
        """A new machine that is what the one saved in a file was, with its run; a machine that ran is stopped, and goes on by `resume`.

        `image` is the disk image beneath the machine's disk, where it had one.  Raises BadSnapshot for what is no snapshot, a damaged one,
        or one of another version.
        """
        from . import snapshot
        return snapshot.restore(cls, path, image)

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

    @property
    def run(self) -> Run | None:
        """The current run; None before the first boot."""
        return self._booting.run

    @property
    def core(self) -> Core | None:
        """The core of the current run; None before it began."""
        return self._booting.core

    @property
    def exits(self) -> Exits | None:
        """What the core does at its guest's exits; None before there is a guest."""
        return self._booting.exits

    @property
    def residents(self) -> Residents | None:
        """Both guests of a machine that is split; None where it is whole."""
        return self._booting.residents

    # --- booting

    def boot(self, config: Config | None = None, progress: Callable[[str], None] | None = None,
             guest: "str | Elf | Kernel | LinuxImage | None" = None, *, limit: float | None = None, watch: Watch | None = None,
             early: Callable[[Pc], None] | None = None, kernel: str | Path | None = None, initrd: str | Path | None = None,
             command_line: str | None = None) -> Run:
        """Power on, core, guest, until the guest waits for input or something ends or stops it.  The run before is kept as it stood.

        `guest` is `lab` (also None), `linux` for the newest that `hvlab linux fetch` brought, `linux-6.1` for one of them, or an image.
        `kernel` and `initrd` are files of a Linux of one's own; `command_line` is added to what the kernel is told.
        `progress` is told each phase, `watch` each phase and None every 50 ms, both on this thread.  After `limit` seconds of wall time (60
        if None, `math.inf` for never) the guest is given up.  `early` is software that has the machine before the core.  Ctrl-C, or what
        these raise, stops the machine, and it can go on.
        Stopped before power-on it still has its last run, which is returned.
        Raises BadMachine where the machine cannot hold the guest at all, BadConfig for what is no Config or no guest.
        """
        config = Config() if config is None else config
        if not isinstance(config, Config):
            raise BadConfig(f"boot takes a Config, as in boot(Config(VTD_TRANS=False)), not {config!r}")
        chosen = choose_guest(guest, kernel, initrd, command_line)
        check_words(self.description, chosen)
        if is_linux(chosen):
            refuse_linux(self._pc, config, command_line or "")
        return self._control.boot(config, chosen, progress, WALL_LIMIT if limit is None else limit, watch, early)

    def reboot(self, progress: Callable[[str], None] | None = None, **options: Any) -> Run:
        """The same machine from power-on with the same guest, with options changed: `m.reboot(VTD_TRANS=False)`."""
        config = self.run.config if self.run else Config()
        return self.boot(config.change(**options), progress, self.guest)

    @property
    def policies(self) -> Mapping[str, Config]:
        """What can be done with the units, by name: the rows of `inspect.matrix(m)`."""
        return {name: Config(**options) for name, options in POLICIES.items()}

    @property
    def attacks(self) -> "Mapping[str, Scenario]":
        """The attacks by name: what each wants, how it goes about it, what stands against it."""
        from .attack import ATTACKS
        return ATTACKS

    def attack(self, name: str, config: Config | None = None, device: str | None = None,
               progress: Callable[[str], None] | None = None) -> "Attack":
        """Lets the guest attack the core, and reads off the machine what came of it: `m.attack("steal-key")`.

        With a `config` it boots first; without, the guest that waits attacks.  `device` is `edu` or `nvme`, None for the first there is.
        Raises HvlabError for an attack that does not exist; `hvcore.attack.ATTACKS` has them.
        """
        from .attack import run_attack
        return run_attack(self, name, config, device, progress)

    # --- how it stands

    @property
    def ended(self) -> outcome.Ending | None:
        """How the current run ended; None while a guest could go on."""
        return self._booting.ended

    def ended_for(self, guest: int) -> outcome.Ending | None:
        """How the run ended for guest 1 or 2; None while that one could go on."""
        return self._booting.ended_for(guest)

    @property
    def state(self) -> str:
        """`off`, `running`, `waiting` (the guest waits for input), `stopped` (by the user; it can go on) or `ended`."""
        return self._control.state

    @property
    def unfinished(self) -> outcome.Ending | None:
        """What the current run is doing, or was doing when it was stopped; None where it is at rest or has ended."""
        return self._control.unfinished

    @property
    def phase(self) -> str | None:
        """The phase of the boot that is under way; None where nothing is."""
        return self._booting.phase

    @property
    def progress(self) -> Progress:
        """How far the machine has come: phase, virtual and wall time, instructions, last line; from any thread, while it runs, too."""
        return self._booting.progress

    @property
    def guest(self) -> Elf | Kernel | None:
        """What was loaded as the guest of the current run; None before the first boot."""
        return self._booting.guest

    @property
    def linux(self) -> bool:
        """Whether the guest of the current run is a Linux."""
        return self._booting.linux

    # --- control

    def still(self) -> AbstractContextManager[None]:
        """The machine stands still inside `with m.still():`, so that all that is read there belongs together.

        From any thread; several may read at a time.  A running machine is held between two instructions, or between two steps of the core,
        and goes on afterwards.  A part of a live run is read like that by itself.
        """
        return self._engine.held()

    def stop(self) -> str:
        """Stops the machine where it is, from any thread; returns its state when it stands.  `resume` goes on from there.

        Inside a `progress` callback it stops at that phase.  A machine that does not run is left as it is.
        """
        return self._control.stop()

    def _hurry(self, at_once: bool) -> None:
        self._pc.pause(at_once)

    def resume(self, seconds: float | None = None, *, watch: Watch | None = None) -> Run:
        """Goes on from a stop, as long as it takes or for at most `seconds` of wall time, after which the machine is stopped again."""
        return self._control.resume(seconds, watch)

    def step(self, n: int = 1) -> Records[Step]:
        """Executes `n` instructions of the guest, fewer where it cannot go on: the note of the result says why.

        What the core does at an exit belongs to the instruction that exited.  The machine must be stopped, or wait; raises HvlabError.
        """
        return self._control.step(n)

    def step_exit(self, *, watch: Watch | None = None) -> ExitStep | None:
        """Lets the guest run to its next exit to the core and stops behind the core's answer to it; the exit, or None where none came.

        `state` says then whether the guest waits, has ended or was stopped.  Raises HvlabError where there is no guest that could run.
        """
        return self._control.step_exit(watch)

    @property
    def registers(self) -> Registers:
        """The guest's registers now, from the processor where guest code is on it, else from its VMCB.

        Raises HvlabError for no guest, and where the core has lost its VMCB.
        """
        return self._control.registers()

    # --- using a running guest

    def key_in(self, text: str, guest: int = 1) -> None:
        """Input on the guest's console, which it takes when the machine goes on: `step`, `step_exit` or `resume` from there."""
        self._control.key_in(text, guest)

    def send(self, text: str, guest: int = 1, *, limit: float | None = None, watch: Watch | None = None) -> str:
        """Sends input to the guest's console and lets it run until it waits again; returns what it printed meanwhile.

        A machine that was stopped goes on; where its boot was, that comes to its end first.  A guest that resets the machine is booted
        again with the same options.  `limit` and `watch` as `boot` has them.
        """
        return self._control.send(text, guest, WALL_LIMIT if limit is None else limit, watch)

    def shell(self, line: str, limit: float = 60, *, wall: float | None = None, watch: Watch | None = None) -> Answer:
        """Lets the shell of a Linux guest carry out a command: `m.shell("dmesg | grep nvme")`, as `run.guest.shell`.

        `limit` is seconds of virtual time, `wall` of wall time (60 if None).
        """
        return Shell(self._control).run(line, limit, WALL_LIMIT if wall is None else wall, watch)

    def wait(self, seconds: float, *, wall: float | None = None, watch: Watch | None = None) -> None:
        """Lets `seconds` of virtual time pass for the guest, as `run.guest.wait`."""
        self._control.wait(seconds, WALL_LIMIT if wall is None else wall, watch)

    # --- looking

    def lens(self, address: int) -> Any:
        """Everything known of one host-physical address."""
        return self._control.current.lens(address)

    def explain(self, fault: Any) -> Any:
        """One DMA step by step: a fault record of a run."""
        return self._control.current.explain(fault)

    # --- snapshots

    def save(self, path: "str | PathLike[str]", progress: Callable[[str], None] | None = None) -> int:
        """Puts the whole machine as it stands into a file, for `restore` and `load_snapshot`; returns its bytes.

        It stands still meanwhile, whether it runs, is stopped or waits.  `progress` is told in words how far it is.  Raises HvlabError
        where there is no guest yet.
        """
        from . import snapshot
        return snapshot.save(self, path, progress)

    def load_snapshot(self, path: "str | PathLike[str]") -> Run:
        """Makes this machine what the saved one was, of the same description: its run is a new one, and the run before is kept as it stood.

        A machine that runs is stopped.  Raises BadSnapshot; then the machine is left as it is.
        """
        from . import snapshot
        snapshot.load(self, path)
        return self._control.current

    def keep_history(self, every_ms: float | None = 10, most: int = 1 << 30) -> None:
        """From now on keeps light snapshots in memory, to `rewind` to: one every `every_ms` milliseconds of virtual time while the guest
        runs; None for those only that `remember` keeps.  All together take about `most` bytes; then the oldest go.  0 forgets them all.

        Raises HvlabError for what is no duration.
        """
        from . import snapshot
        snapshot.keep_history(self, every_ms, most)

    def remember(self, what: str = "asked for") -> "Moment":
        """Keeps the moment that is now, for `rewind`.  Raises HvlabError where there is no guest yet."""
        from . import snapshot
        return snapshot.remember(self, what)

    @property
    def snapshots(self) -> "Records[Moment]":
        """The moments of the current run that `rewind` can go back to."""
        from . import snapshot
        return snapshot.moments(self)

    def rewind(self, to: object = None) -> "Moment":
        """Goes back to a moment of `snapshots`; with a virtual time in nanoseconds, or a record of `run.faults`, `run.dma` or
        `run.history`, to the last one before that; with None to the last one before now.  The moments after it are gone.

        The machine is stopped there (or waits, where it did) and can go on, be stepped or changed; nothing else done to it, going on
        repeats what was.  Raises HvlabError where no such moment is kept.
        """
        from . import snapshot
        return snapshot.rewind(self, to)

    # --- lifetime

    @property
    def booting(self) -> Booting:
        """What happens on the machine's own thread."""
        return self._booting

    def settle(self, freeze: bool = True) -> None:
        """The machine comes to rest for good, and with `freeze` its last run is kept as it stands: its memory is about to be another's."""
        self._engine.stop()
        self._control.give_up()
        if freeze and self.run is not None:
            self.run.freeze()

    def close(self) -> None:
        """Freezes the last run and gives the memory back.  A machine that runs is stopped."""
        self.settle()
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
