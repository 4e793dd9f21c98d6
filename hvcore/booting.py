"""Power-on, core and guest, and how a run ends: what happens on the machine's own thread."""

from collections.abc import Callable

from . import outcome, stepping
from .engine import Abandoned, Engine
from .errors import Unreadable
from .guestimage import command_line
from .inspect.steps import ExitStep
from .machine.cpu import StopKind
from .machine.journal import PHASE_NS
from .machine.partition import Partition
from .machine.pc import Pc
from .phases import Phases
from .run import Run
from .spec.linuxboot import Elf
from .twoguests import Residents
from .vmm.config import Config
from .vmm.core import Core
from .vmm.exits import Exits, GuestDead
from .vmm.heap import Panic

__all__ = ["Booting"]

Early = Callable[[Pc], None]
"""Software that has the machine before the core."""


class Booting:
    """A PC from boot to boot, at work on the engine's thread; `new_run(config, number)` makes the `Run` of each.

    `run`, `core`, `exits`, `residents` are of the current boot, the `boots`-th.  `phase` is what is under way, None where nothing is;
    `up` whether its guest has once come to rest; `ended` how it ended, None while a guest could go on.  `awaited` is the one of two
    guests that somebody waits for.  With `to_exit` the machine stops behind the guest's next exit, which is `exit` then.
    """

    def __init__(self, pc: Pc, engine: Engine, new_run: Callable[[Config, int], Run]):
        self.pc, self.engine, self._new_run = pc, engine, new_run
        self.run: Run | None = None
        self.core: Core | None = None
        self.exits: Exits | None = None
        self.residents: Residents | None = None
        self.ended: outcome.Ending | None = None
        self.awaited: int | None = None
        self.boots = 0
        self.phase: str | None = None
        self.up = self.to_exit = False
        self.exit: ExitStep | None = None
        self._guest: Elf | None = None
        pc.on_line = self._on_line

    def start(self, config: Config, guest: Elf, early: Early | None = None) -> None:
        """Begins a boot on the engine's thread."""
        self.engine.start(lambda: self._work(lambda: self._boot(config, guest, early)))

    def go_on(self) -> None:
        """Lets a machine that is at rest run on."""
        self.engine.start(lambda: self._work(self._go))

    def _work(self, begin: Callable[[], None]) -> None:
        """What the engine's thread does: `begin`, and a boot where a guest that was up resets the machine."""
        try:
            begin()
            while self.pc.reset_requested and self.up and self.run is not None and self._guest is not None:
                self.phase = None
                self._boot(self.run.config, self._guest)
            if self.pc.reset_requested:
                self.ended = outcome.Ending("guest-crash", "the guest reset the machine before it waited for input")
            self.up = self.ended is None
        finally:
            self.phase = None

    def _boot(self, config: Config, guest: Elf, early: Early | None = None) -> None:
        phases = Phases(self.engine.clock)
        phases.enter("firmware")
        run = self._start_over(config)
        if early is not None:
            early(self.pc)
        run.timings, self._guest = phases.seconds, guest

        def enter(phase: str) -> None:
            phases.enter(phase)
            self._enter(phase)

        self._enter("firmware")
        core = self.core = run.core = Core(self.pc, config, enter, self.engine.gate)
        try:
            self.exits = core.boot(guest, command_line(self.pc.machine))
        except Panic as panic:
            self.ended = outcome.Ending("vmm-panic", str(panic))
        except Abandoned:
            raise
        except BaseException:
            self.ended = outcome.Ending("guest-crash", "the boot was broken off before the guest began")
            raise
        else:
            self.pc.cpu.on_door = self._on_door
            if core.tiny and core.tiny.guest:
                self.residents = Residents(self.pc, (self.exits, core.tiny.guest.exits), self._panic, self._over)
            enter("guest runs")
            self._go()
        phases.enter("")
        phases.seconds["total"] = sum(phases.seconds.values())

    def _start_over(self, config: Config) -> Run:
        if self.run is not None:
            with self.engine.reading():
                self.run.freeze()
            self.pc.power_on()
        self.ended = self.exits = self.core = self.residents = self.awaited = None
        self.up = False
        self.boots += 1
        self.run = self._new_run(config, self.boots)
        return self.run

    def _enter(self, phase: str) -> None:
        """A phase begins: whoever waits for the machine is told, and it may be stopped there.

        Where a device is at work already, time passes for it in each phase; else virtual time stands still until the guest runs.
        """
        self.phase = phase
        if self.pc.clock.next() is not None:
            self.pc.clock.advance(PHASE_NS)
        self.pc.journal.phase(phase, in_guest=phase == "guest runs")
        self.engine.gate(phase)

    def _go(self) -> None:
        """Lets the processor run until there is nothing more to do."""
        self.phase = "guest runs"
        stop = None
        if self.residents is not None:
            self.ended = self.residents.go(self.engine.gate, lambda: self.awaited) or self.ended
        else:
            stop = self.pc.run(self.engine.gate)
        if self.ended is None and stop is not None and not self.pc.reset_requested:
            self.ended = outcome.of_stop(stop)
        if self.core and not self.core.text_intact():
            self.ended = outcome.of_foreign_text(stop)

    # --- at an exit

    def _on_door(self) -> None:
        """The policy's turn; what it cannot bear ends the run."""
        assert self.exits is not None
        before = self.exits.count
        seen = stepping.exit_at_door(self.exits) if self.to_exit else None
        try:
            self.exits.on_door()
        except GuestDead as death:
            self._die(str(death))
        except (Panic, Unreadable) as panic:
            self._panic(str(panic))
        if seen and self.exits.count > before:
            self.exit, self.to_exit = seen, False
            self.engine.ask()

    def _on_line(self, line: bytes) -> None:
        """The guest has printed a line."""
        if outcome.is_ready(line.decode("latin-1")):
            self.pc.journal.guest_ready()

    def _die(self, why: str) -> None:
        """Guest 1 cannot go on: the end of the run, unless there is another guest."""
        if self.residents is not None:
            self.residents.of(1).die(why)
        else:
            self._end("guest-crash", why)

    def _panic(self, why: str) -> None:
        """The core cannot go on."""
        assert self.core is not None
        self.core.console.print(f"panic: {why}")
        self._end("vmm-panic", why)

    def _end(self, kind: str, why: str) -> None:
        self.ended = outcome.Ending(kind, why)
        self.pc.stop(StopKind.REQUEST, why)

    def _over(self) -> bool:
        """Whether the machine as a whole stops."""
        return self.ended is not None or self.pc.reset_requested

    # --- looking

    def ended_for(self, guest: int) -> outcome.Ending | None:
        """How the run ended for guest 1 or 2; None while that one could go on."""
        return self.ended or (self.residents.of(guest).ended if self.residents else None)

    def seat(self, guest: int) -> Pc | Partition:
        """The processor and ports of a guest."""
        return self.residents.of(guest).seat if self.residents else self.pc
