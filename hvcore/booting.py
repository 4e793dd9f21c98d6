"""Power-on, core and guest, and how a run ends: what happens on the machine's own thread."""

from collections.abc import Callable
from typing import Any, Protocol

from . import outcome, stepping
from .engine import Abandoned, Engine
from .errors import Unreadable
from .guestimage import INIT, PROMPT, command_line, has_init, is_linux
from .inspect.steps import ExitStep
from .machine.cpu import Stop, StopKind
from .machine.journal import PHASE_NS
from .machine.partition import Partition
from .machine.pc import Pc
from .phases import Phases, Progress, stage_of
from .run import Run
from .spec.linuxboot import Elf, Kernel
from .twoguests import Residents
from .vmm.config import Config
from .vmm.core import Core
from .vmm.exits import Exits, GuestDead
from .vmm.heap import Panic

__all__ = ["Booting"]

Early = Callable[[Pc], None]
"""Software that has the machine before the core."""
BOOT_LIMIT = 600
"""Seconds of virtual time in which a Linux must come to its shell: a controller's 60 s time-out may come several times, and hvlab's init
waits 200 s for controllers to settle.  Idle time costs next to nothing."""
LAST_WORDS = 5
"""Seconds of virtual time that a kernel which panics gets to say why."""
SECOND = 1_000_000_000
"""Nanoseconds."""
_KEPT = ("core", "exits", "residents", "ended", "awaited", "up", "late", "_stage", "_panicked")
"""What of `Booting` a snapshot keeps."""
_LINE = 500
"""Bytes at the end of a console in which its last line lies."""


class Past(Protocol):
    """Who keeps what the machine was."""

    def visit(self) -> None:
        """The machine stands where it can be held, on its own thread."""
        ...


class Booting:
    """A PC from boot to boot, at work on the engine's thread; `new_run(config, number)` makes the `Run` of each.

    `run`, `core`, `exits`, `residents` are of the current boot, the `boots`-th.  `phase` is what is under way, None where nothing is;
    `up` whether its guest has once come to rest; `ended` how it ended, None while a guest could go on; `late` whether it last came to rest
    because its time was over.  `guest` is what was loaded.  `awaited` is the one of two guests that somebody waits for.  With `to_exit` the
    machine stops behind the guest's next exit, which is `exit` then.
    """

    def __init__(self, pc: Pc, engine: Engine, new_run: Callable[[Config, int], Run]):
        self.pc, self.engine, self.new_run = pc, engine, new_run
        self.run: Run | None = None
        self.core: Core | None = None
        self.exits: Exits | None = None
        self.residents: Residents | None = None
        self.ended: outcome.Ending | None = None
        self.awaited: int | None = None
        self.boots = 0
        self.phase: str | None = None
        self.up = self.to_exit = self.late = False
        self.exit: ExitStep | None = None
        self.guest: Elf | Kernel | None = None
        self._stage: str | None = None
        self._panicked = False
        self._worked = 0.0
        self._since: float | None = None
        self.history: Past | None = None
        pc.on_line = self._on_line

    def start(self, config: Config, guest: Elf | Kernel, early: Early | None = None) -> None:
        """Begins a boot on the engine's thread."""
        def begin() -> None:
            self._worked = 0.0
            self._boot(config, guest, early)

        self.engine.start(lambda: self._work(begin))

    def go_on(self, stopped: bool = False) -> None:
        """Lets a machine that is at rest run on; with `stopped` it stands at its first gate."""
        self.engine.start(lambda: self._work(self._go), stopped)

    def _work(self, begin: Callable[[], None]) -> None:
        """What the engine's thread does: `begin`, and a boot where a guest that was up resets the machine."""
        self._since = self.engine.clock()
        try:
            begin()
            while self.pc.reset_requested and self.up and self.run is not None and self.guest is not None:
                self.phase, self._worked, self._since = None, 0.0, self.engine.clock()
                self._boot(self.run.config, self.guest)
            if self.pc.reset_requested:
                self.ended = outcome.Ending("guest-crash", self._reset_early())
            self.up = self.ended is None
        finally:
            self.phase, self._worked, self._since = None, self._seconds(), None

    def _reset_early(self) -> str:
        """Why a guest that never waited for input has reset the machine."""
        what = "the guest reset the machine before it waited for input"
        return f"{outcome.death_words(self._console())}; {what}" if self._panicked else what

    def _seconds(self) -> float:
        """Seconds of work since power-on."""
        since = self._since
        return self._worked + (self.engine.clock() - since if since is not None else 0.0)

    def _boot(self, config: Config, guest: Elf | Kernel, early: Early | None = None) -> None:
        phases = Phases(self.engine.clock)
        phases.enter("firmware")
        run = self._start_over(config)
        if early is not None:
            early(self.pc)
        run.timings, self.guest = phases.seconds, guest

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
            self._expect()
            enter("guest runs")
            self._go()
        phases.enter("")
        phases.seconds["total"] = sum(phases.seconds.values())

    def _start_over(self, config: Config) -> Run:
        if self.run is not None:
            with self.engine.reading():
                self.run.freeze()
            self.pc.power_on()
        self.ended = self.exits = self.core = self.residents = self.awaited = self._stage = None
        self.up = self.late = self._panicked = False
        self.boots += 1
        self.run = self.new_run(config, self.boots)
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

    def _expect(self) -> None:
        """A Linux never waits as the lab guest does: its shell has a prompt, and there is an end to its patience."""
        if is_linux(self.guest):
            self.pc.rest.prompt, self._stage = PROMPT, "kernel"
            self.pc.rest.allow(BOOT_LIMIT * SECOND)

    def _gate(self) -> None:
        """The machine can be held here; where its past is kept, it may be that of now."""
        self.engine.gate()
        if self.history is not None:
            self.history.visit()

    def _go(self) -> None:
        """Lets the processor run until there is nothing more to do."""
        self.phase = "guest runs"
        stop = None
        if self.residents is not None:
            self.ended = self.residents.go(self._gate, lambda: self.awaited) or self.ended
        else:
            stop = self.pc.run(self._gate) or self._rested()
        if self.ended is None and stop is not None and not self.pc.reset_requested:
            self.ended = outcome.of_stop(stop)
            if self.linux and stop.kind is StopKind.TIMEOUT:
                self.ended = outcome.Ending(self.ended.outcome, self.ended.why + outcome.said_last(self._console()))
        if self.core and not self.core.text_intact():
            self.ended = outcome.of_foreign_text(stop)

    def _rested(self) -> Stop | None:
        """The processor came to rest; one that let time pass at its prompt goes back to it.  Of a Linux, rest may be the end."""
        rest = self.pc.rest
        self.late = rest.late
        back = rest.through_prompt and rest.at_prompt
        rest.allow(None)
        if back:
            return self.pc.run(self._gate)
        if is_linux(self.guest) and self.ended is None and not rest.at_prompt:
            self._end_of_linux()
        return None

    def _console(self) -> str:
        """What the guest has printed."""
        return bytes(self.pc.serial).decode("latin-1").replace("\r", "")

    def _end_of_linux(self) -> None:
        """It has come to rest, and no shell waits."""
        said = self._console()
        if self._panicked:
            self.ended = outcome.Ending("guest-crash", outcome.death_words(said))
        elif self.up:
            return
        elif not self.late:
            self.ended = outcome.Ending("guest-crash", f"the kernel waits for an interrupt that will not come{outcome.said_last(said)}")
        elif not self._foreign(outcome.began_init(said)):
            self.ended = outcome.Ending("guest-crash", f"no shell within {BOOT_LIMIT} s of virtual time{outcome.said_last(said)}")

    def _foreign(self, init: str | None) -> bool:
        """Whether the first process that a Linux began, None for none, is another one than hvlab's, whose end nothing tells."""
        return init is not None and (init != INIT or not has_init(self.guest))

    def save(self) -> dict[str, Any]:
        """What is kept of it, but for the machine, the run and the guest: for `take` of another, or of itself later."""
        return {name: getattr(self, name) for name in _KEPT}

    def take(self, kept: dict[str, Any]) -> None:
        """Becomes what `save` gave.  The machine must be what it was, too."""
        for name in _KEPT:
            setattr(self, name, kept[name])

    def forget(self) -> None:
        """The machine is as it was before its first boot, and its last run gone."""
        self.pc.power_on()
        self.run = self.core = self.exits = self.residents = self.ended = self.awaited = self.guest = None
        self.up = False

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
        text = line.decode("latin-1")
        if outcome.is_ready(text):
            self.pc.journal.guest_ready()
        if self._stage is not None:
            self._stage = stage_of(text, self._stage)
            self._hear_panic(text)

    def _hear_panic(self, line: str) -> None:
        """A kernel that panics has said all with the line that says so, or is given up soon."""
        if outcome.panic_in(line) and not self._panicked:
            self._panicked = True
            self.pc.rest.allow(LAST_WORDS * SECOND)
        elif self._panicked and "end Kernel panic" in line:
            self._end("guest-crash", outcome.death_words(self._console()))

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

    @property
    def linux(self) -> bool:
        """Whether the guest is a Linux."""
        return is_linux(self.guest)

    @property
    def has_shell(self) -> bool:
        """Whether the guest has said that a shell is ready: hvlab's init does, another one does not."""
        return outcome.is_ready(self._console())

    @property
    def progress(self) -> Progress:
        """How far the current boot has come; from any thread, while it runs, too."""
        phase = f"guest: {self._stage}" if self.phase == "guest runs" and self._stage else self.phase
        line = bytes(self.pc.serial[-_LINE:]).decode("latin-1").replace("\r", "").rstrip("\n").rpartition("\n")[2]
        return Progress(phase, self.pc.clock.now, self._seconds(), self.pc.cpu.meter.total, line)

    def ended_for(self, guest: int) -> outcome.Ending | None:
        """How the run ended for guest 1 or 2; None while that one could go on."""
        return self.ended or (self.residents.of(guest).ended if self.residents else None)

    def seat(self, guest: int) -> Pc | Partition:
        """The processor and ports of a guest."""
        return self.residents.of(guest).seat if self.residents else self.pc
