"""A machine that boots: `Machine.load`, `boot`, `reboot`, and the `Run` each gives; `stop`, `resume` and `step` while one runs.

    m = Machine.load("q35-6g")
    run = m.boot(Config(VTD_TRANS=True))
    run.outcome, run.domains, run.faults
    run2 = m.reboot(VTD_TRANS=False)
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import outcome, stepping
from .engine import Abandoned, Engine
from .errors import BadConfig, HvlabError, Unreadable
from .guestimage import command_line, lab_guest
from .inspect.records import Records, html_table
from .inspect.steps import ExitStep, Registers, Step
from .machine.cpu import StopKind
from .machine.description import MachineDescription
from .machine.journal import PHASE_NS
from .machine.partition import Partition
from .machine.pc import Pc
from .phases import Phases, doing
from .run import Run
from .sources import load
from .spec.linuxboot import Elf
from .spec.pci import format_bdf
from .twoguests import Residents
from .vmm.config import POLICIES, Config
from .vmm.core import Core
from .vmm.exits import Exits, GuestDead
from .vmm.heap import Panic

if TYPE_CHECKING:
    from .attack import Attack, Scenario

__all__ = ["Machine", "command_line", "lab_guest"]

WALL_LIMIT = 60.0
"""Seconds of wall time after which a guest that never waits is given up, where nobody says otherwise."""
Watch = Callable[[str | None], None]
"""Called with each phase as it begins, and with None every 50 ms."""
TICK = 0.05
"""Seconds between two looks at a machine that works."""
SETTLE = 0.5
"""Seconds that a machine with two guests gets to see that the one that was stepped has died: the other may compute for ever."""


class Machine:
    """A PC from its description.  It is an owned object: `close()` it, or use it in `with`; several may live side by side.

    `assumptions` says in a sentence each what the description did not tell and was chosen.  With `ideal_caches` the remapping units
    remember nothing: every request sees the tables as they are, as no real unit would have it.
    """

    def __init__(self, description: MachineDescription, public_only: bool = False, ideal_caches: bool = False):
        self._description = description
        self.run: Run | None = None
        self.core: Core | None = None
        self.exits: Exits | None = None
        self._ended: outcome.Ending | None = None
        self._residents: Residents | None = None
        self._awaited: int | None = None
        self._boots = 0
        self._phase: str | None = None
        self._up = self._to_exit = False
        self._exit: ExitStep | None = None
        self._halt_steps = threading.Event()
        self._guest: Elf | None = None
        self._progress: Callable[[str], None] = _silent
        self._pc = Pc(description, public_only, ideal_caches)
        self._pc.on_line = self._on_line
        self._engine = Engine(self._hurry)

    @classmethod
    def load(cls, what: str | Path, ideal_caches: bool = False) -> "Machine":
        """A TOML file, a folder of logs and tables, a single kernel log, or the name of a shipped machine.  Raises BadMachine."""
        return cls(load(what), ideal_caches=ideal_caches)

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

    def boot(self, config: Config | None = None, progress: Callable[[str], None] | None = None, guest: Elf | None = None, *,
             limit: float | None = None, watch: Watch | None = None, early: Callable[[Pc], None] | None = None) -> Run:
        """Power on, core, guest, until the guest waits for input or something ends or stops it.  The run before is kept as it stood.

        `progress` is told each phase, `watch` each phase and None every 50 ms, both on this thread.  After `limit` seconds of wall time (60
        if None, `math.inf` for never) the guest is given up.  `early` is software that has the machine before the core.  Ctrl-C, or what
        these raise, stops the machine, and it can go on.
        Stopped before power-on it still has its last run, which is returned.
        Raises BadMachine where the machine cannot hold the guest at all, BadConfig for what is no Config.
        """
        config = Config() if config is None else config
        if not isinstance(config, Config):
            raise BadConfig(f"boot takes a Config, as in boot(Config(VTD_TRANS=False)), not {config!r}")
        guest = guest or lab_guest()
        self._give_up()
        self._progress = progress or _silent
        self._engine.start(lambda: self._work(lambda: self._boot(config, guest, early)))
        self._drive(watch, limit=WALL_LIMIT if limit is None else limit)
        return self._current()

    def _give_up(self) -> None:
        """A machine that was stopped will not go on: what it had come to is its last word."""
        if self._engine.stopped:
            if self._phase is not None:
                self._ended = outcome.Ending("stopped", f"stopped by you while {doing(self._phase)}, and not resumed")
            self._engine.abandon()

    def _work(self, begin: Callable[[], None]) -> None:
        """What the engine's thread does: `begin`, and a boot where a guest that was up resets the machine."""
        try:
            begin()
            while self._pc.reset_requested and self._up and self.run is not None and self._guest is not None:
                self._phase = None
                self._boot(self.run.config, self._guest)
            if self._pc.reset_requested:
                self._ended = outcome.Ending("guest-crash", "the guest reset the machine before it waited for input")
            self._up = self._ended is None
        finally:
            self._phase = None

    def _boot(self, config: Config, guest: Elf, early: Callable[[Pc], None] | None = None) -> None:
        phases = Phases(self._engine.clock)
        phases.enter("firmware")
        run = self._start_over(config)
        if early is not None:
            early(self._pc)
        run.timings, self._guest = phases.seconds, guest

        def enter(phase: str) -> None:
            phases.enter(phase)
            self._enter(phase)

        self._enter("firmware")
        core = self.core = run.core = Core(self._pc, config, enter, self._engine.gate)
        try:
            self.exits = core.boot(guest, command_line(self.description))
        except Panic as panic:
            self._ended = outcome.Ending("vmm-panic", str(panic))
        except Abandoned:
            raise
        except BaseException:
            self._ended = outcome.Ending("guest-crash", "the boot was broken off before the guest began")
            raise
        else:
            self._pc.cpu.on_door = self._on_door
            if core.tiny and core.tiny.guest:
                self._residents = Residents(self._pc, (self.exits, core.tiny.guest.exits), self._panic, self._over)
            enter("guest runs")
            self._go()
        phases.enter("")
        phases.seconds["total"] = sum(phases.seconds.values())

    def _enter(self, phase: str) -> None:
        """A phase begins: whoever waits for the machine is told, and it may be stopped there.

        Where a device is at work already, time passes for it in each phase; else virtual time stands still until the guest runs.
        """
        self._phase = phase
        if self._pc.clock.next() is not None:
            self._pc.clock.advance(PHASE_NS)
        self._pc.journal.phase(phase, in_guest=phase == "guest runs")
        self._engine.gate(phase)

    def _start_over(self, config: Config) -> Run:
        if self.run is not None:
            with self._engine.reading():
                self.run.freeze()
            self._pc.power_on()
        self._ended = self.exits = self.core = self._residents = self._awaited = None
        self._up = False
        self._boots += 1
        self.run = Run(self, config, self._boots)
        return self.run

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

    def reboot(self, progress: Callable[[str], None] | None = None, **options: Any) -> Run:
        """The same machine from power-on, with options changed: `m.reboot(VTD_TRANS=False)`."""
        config = self.run.config if self.run else Config()
        return self.boot(config.change(**options), progress)

    def _go(self) -> None:
        """Lets the processor run until there is nothing more to do."""
        self._phase = "guest runs"
        stop = None
        if self._residents is not None:
            self._ended = self._residents.go(self._engine.gate, lambda: self._awaited) or self._ended
        else:
            stop = self._pc.run(self._engine.gate)
        if self._ended is None and stop is not None and not self._pc.reset_requested:
            self._ended = outcome.of_stop(stop)
        if self.core and not self.core.text_intact():
            self._ended = outcome.of_foreign_text(stop)

    def _on_door(self) -> None:
        """The policy's turn; what it cannot bear ends the run."""
        assert self.exits is not None
        before = self.exits.count
        seen = stepping.exit_at_door(self.exits) if self._to_exit else None
        try:
            self.exits.on_door()
        except GuestDead as death:
            self._die(str(death))
        except (Panic, Unreadable) as panic:
            self._panic(str(panic))
        if seen and self.exits.count > before:
            self._exit, self._to_exit = seen, False
            self._engine.ask()

    def _on_line(self, line: bytes) -> None:
        """The guest has printed a line."""
        if outcome.is_ready(line.decode("latin-1")):
            self._pc.journal.guest_ready()

    def _die(self, why: str) -> None:
        """Guest 1 cannot go on: the end of the run, unless there is another guest."""
        if self._residents is not None:
            self._residents.of(1).die(why)
        else:
            self._end("guest-crash", why)

    def _panic(self, why: str) -> None:
        """The core cannot go on."""
        assert self.core is not None
        self.core.console.print(f"panic: {why}")
        self._end("vmm-panic", why)

    def _end(self, kind: str, why: str) -> None:
        self._ended = outcome.Ending(kind, why)
        self._pc.stop(StopKind.REQUEST, why)

    def _over(self) -> bool:
        """Whether the machine as a whole stops."""
        return self._ended is not None or self._pc.reset_requested

    @property
    def ended(self) -> outcome.Ending | None:
        """How the current run ended; None while a guest could go on."""
        return self._ended

    def ended_for(self, guest: int) -> outcome.Ending | None:
        """How the run ended for guest 1 or 2; None while that one could go on."""
        return self._ended or (self._residents.of(guest).ended if self._residents else None)

    @property
    def residents(self) -> Residents | None:
        """Both guests of a machine that is split; None where it is whole."""
        return self._residents

    # --- control

    @property
    def state(self) -> str:
        """`off`, `running`, `waiting` (the guest waits for input), `stopped` (by the user; it can go on) or `ended`."""
        if self._engine.busy:
            return "stopped" if self._engine.stopped else "running"
        if self.run is None or not self.run.live:
            return "off"
        if self._ended is not None:
            return "ended"
        return "waiting" if self._pc.waiting else "stopped"

    @property
    def unfinished(self) -> outcome.Ending | None:
        """What the current run is doing, or was doing when it was stopped; None where it is at rest or has ended."""
        if self._phase is None:
            return None
        if self._engine.stopped:
            return outcome.Ending("stopped", f"stopped by you while {doing(self._phase)}; it can go on")
        return outcome.Ending("running", doing(self._phase))

    @property
    def phase(self) -> str | None:
        """The phase of the boot that is under way; None where nothing is."""
        return self._phase

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
        self._halt_steps.set()
        self._engine.stop()
        return self.state

    def _hurry(self, at_once: bool) -> None:
        self._pc.pause(at_once)

    def resume(self, seconds: float | None = None, *, watch: Watch | None = None) -> Run:
        """Goes on from a stop, as long as it takes or for at most `seconds` of wall time, after which the machine is stopped again."""
        self._awaited = None
        self._let_go()
        self._drive(watch, stop_after=seconds)
        return self._current()

    def _let_go(self) -> None:
        """The machine goes on from where it is; one that has ended or waits is left as it is."""
        if self._engine.busy:
            self._engine.go_on()
        elif self.state in ("stopped", "waiting"):
            self._engine.start(lambda: self._work(self._go))

    def _drive(self, watch: Watch | None, limit: float | None = None, stop_after: float | None = None) -> None:
        """Waits until the machine is at rest; whatever is raised meanwhile, a Ctrl-C too, stops it."""
        watch, since = watch or _silent, time.monotonic()

        def heard(phase: str) -> None:
            self._progress(phase)
            watch(phase)

        try:
            while not self._engine.wait(TICK if stop_after is None else min(TICK, stop_after), heard):
                spent = time.monotonic() - since
                self._pc.tick()
                if limit is not None and spent >= limit:
                    self._pc.stop(StopKind.TIMEOUT, f"still running after {limit:g} s of wall time")
                    since = time.monotonic()
                if stop_after is not None and spent >= stop_after:
                    self._engine.stop()
                watch(None)
        except BaseException:
            self._engine.stop()
            raise

    def step(self, n: int = 1) -> Records[Step]:
        """Executes `n` instructions of the guest, fewer where it cannot go on: the note of the result says why.

        What the core does at an exit belongs to the instruction that exited.  The machine must be stopped, or wait; raises HvlabError.
        """
        self._halt_steps.clear()
        with self.still():
            steps = stepping.run_steps(self._pc, self._stepping_base(), n, self._halt_steps)
        if self._pc.cpu.stopping:
            self.resume(SETTLE if self._residents else None)
        return steps

    def step_exit(self, *, watch: Watch | None = None) -> ExitStep | None:
        """Lets the guest run to its next exit to the core and stops behind the core's answer to it; the exit, or None where none came.

        `state` says then whether the guest waits, has ended or was stopped.  Raises HvlabError where there is no guest that could run.
        """
        self._stepping_base()
        self._exit, self._to_exit = None, True
        try:
            self.resume(watch=watch)
        finally:
            self._to_exit = False
        return self._exit

    @property
    def registers(self) -> Registers:
        """The guest's registers now, from the processor where guest code is on it, else from its VMCB.

        Raises HvlabError for no guest, and where the core has lost its VMCB.
        """
        with self.still():
            try:
                return stepping.read_registers(self._pc, self._stepping_base())
            except Unreadable as fault:
                raise HvlabError(f"the guest's registers cannot be told: {fault.why}, to {fault.address:#x}") from fault

    def _stepping_base(self) -> int:
        """The core's base (host-physical), where there is a guest that can be looked at."""
        if self.state == "running":
            raise HvlabError("the machine is running: stop() it first")
        self._must_not_be_booting()
        if self.state == "off" or self.exits is None:
            raise HvlabError("there is no guest yet: boot the machine, or resume() the boot")
        if self._residents and (ended := self._residents.of(1).ended):
            raise HvlabError(f"guest 1, which is the one that is stepped, has ended: {ended.why}")
        return self.exits.base

    # --- using a running guest

    def key_in(self, text: str, guest: int = 1) -> None:
        """Input on the guest's console, which it takes when the machine goes on: `step`, `step_exit` or `resume` from there."""
        self._must_have_guest(guest)
        with self.still():
            self._seat(guest).type(text.encode("latin-1", "replace"))

    def _seat(self, guest: int) -> Pc | Partition:
        """The processor and ports of a guest."""
        return self._residents.of(guest).seat if self._residents else self._pc

    def send(self, text: str, guest: int = 1, *, limit: float | None = None, watch: Watch | None = None) -> str:
        """Sends input to the guest's console and lets it run until it waits again; returns what it printed meanwhile.

        A machine that was stopped goes on; where its boot was, that comes to its end first.  A guest that resets the machine is booted
        again with the same options.  `limit` and `watch` as `boot` has them.
        """
        limit = WALL_LIMIT if limit is None else limit
        self._must_have_guest(guest)
        self._awaited = guest if self._residents else None
        if not self._up:
            self._let_go()
            self._drive(watch, limit=limit)
            self._must_have_guest(guest)
            if self._engine.stopped:
                raise HvlabError("the machine was stopped before its guest was ready, and nothing was sent: resume() it first")
        self._awaited = guest if self._residents else None
        before, number = len(self._seat(guest).serial), self._boots
        self.key_in(text, guest)
        self._let_go()
        self._drive(watch, limit=limit)
        return bytes(self._seat(guest).serial[before if self._boots == number else 0:]).decode("latin-1")

    def _must_not_be_booting(self) -> None:
        if self._engine.stopped and self._phase is None:
            raise HvlabError("the machine was stopped just before power-on: resume() it first")

    def _must_have_guest(self, guest: int = 1) -> None:
        self._must_not_be_booting()
        ended = self.ended_for(guest)
        if self.run is None or ended is not None or not self.run.live:
            raise HvlabError(f"there is no guest to send to: {ended.why if ended else 'boot the machine first'}")

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
        """Freezes the last run and gives the memory back.  A machine that runs is stopped."""
        self._engine.stop()
        self._give_up()
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


def _silent(_phase: str | None) -> None:
    pass

