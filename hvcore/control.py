"""How a machine that works on its own thread is stopped, goes on, is stepped and typed to: from any other thread."""

import threading
import time
from collections.abc import Callable

from . import outcome, stepping
from .booting import SECOND, Booting, Early
from .errors import HvlabError, Unreadable, quoted
from .inspect.records import Records
from .inspect.steps import ExitStep, Registers, Step
from .machine.cpu import StopKind
from .phases import doing
from .run import Run
from .spec.linuxboot import Elf, Kernel
from .vmm.config import Config

__all__ = ["Control", "Watch", "check_virtual", "check_wall"]

Watch = Callable[[str | None], None]
"""Called with each phase as it begins, and with None every 50 ms."""
TICK = 0.05
"""Seconds between two looks at a machine that works."""
SETTLE = 0.5
"""Seconds that a machine with two guests gets to see that the one that was stepped has died: the other may compute for ever."""
SEND_LIMIT = 60.0
"""Seconds of virtual time after which a Linux that was typed to comes to rest, whatever it does: its timers never end.  One whose shell
hvlab does not know gets as much whenever it goes on."""

_LONGEST = 1e9
"""Seconds of virtual time that can be asked for at once: 30 years."""


def check_virtual(name: str, seconds: object) -> None:
    """Raises HvlabError where `seconds` are none that a machine's clock could go on by."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= _LONGEST:
        raise HvlabError(f"{name} a number of seconds of virtual time, {_LONGEST:.0e} at most, not {quoted(seconds)}")


def check_wall(name: str, seconds: object) -> None:
    """Raises HvlabError where `seconds` are none that somebody could wait; `math.inf` is for ever."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise HvlabError(f"{name} a number of seconds of wall time, or math.inf, not {quoted(seconds)}")


class Control:
    """Waits for what `booting` does, and tells it what to do next.  `Machine` has the words for each of these.

    `limit` is seconds of wall time after which a guest that never waits is given up, `math.inf` for never.
    """

    def __init__(self, booting: Booting):
        self.booting, self.engine, self._pc = booting, booting.engine, booting.pc
        self._halt_steps = threading.Event()
        self._progress: Callable[[str], None] = _silent

    # --- how it stands

    @property
    def state(self) -> str:
        """`off`, `running`, `waiting`, `stopped` or `ended`."""
        if self.engine.busy:
            return "stopped" if self.engine.stopped else "running"
        if self.booting.run is None or not self.booting.run.live:
            return "off"
        if self.booting.ended is not None:
            return "ended"
        return "waiting" if self._pc.waiting else "stopped"

    @property
    def unfinished(self) -> outcome.Ending | None:
        """What the current run is doing, or was doing when it was stopped; None where it is at rest or has ended."""
        phase = self.booting.phase
        if phase is None:
            return None
        if self.engine.stopped:
            return outcome.Ending("stopped", f"stopped by you while {doing(phase)}; it can go on")
        return outcome.Ending("running", doing(phase))

    @property
    def current(self) -> Run:
        """The current run.  Raises HvlabError before there is one."""
        if self.booting.run is None:
            raise HvlabError("nothing has run yet: call boot() first")
        return self.booting.run

    # --- booting, stopping, going on

    def boot(self, config: Config, guest: Elf | Kernel, progress: Callable[[str], None] | None, limit: float, watch: Watch | None,
             early: Early | None) -> Run:
        """Boots and waits until the machine is at rest."""
        check_wall("limit is", limit)
        self.give_up()
        self._progress = progress or _silent
        self.booting.start(config, guest, early)
        self._drive(watch, limit=limit)
        return self.current

    def give_up(self) -> None:
        """A machine that was stopped will not go on: what it had come to is its last word."""
        if self.engine.stopped:
            if self.booting.phase is not None:
                self.booting.ended = outcome.Ending("stopped", f"stopped by you while {doing(self.booting.phase)}, and not resumed")
            self.engine.abandon()

    def stop(self) -> str:
        """Stops the machine where it is; returns its state when it stands."""
        self._halt_steps.set()
        self.engine.stop()
        return self.state

    def resume(self, seconds: float | None = None, watch: Watch | None = None) -> Run:
        """Goes on from a stop, as long as it takes or for at most `seconds` of wall time, after which the machine is stopped again."""
        if seconds is not None:
            check_wall("resume takes", seconds)
        self.booting.awaited = None
        if self.booting.up:
            endless = self.booting.linux and not self.booting.has_shell
            with self.engine.held():
                self._pc.rest.allow(round(SEND_LIMIT * SECOND) if endless else None)
        self._let_go()
        self._drive(watch, stop_after=seconds)
        return self.current

    def go(self, seconds: float, wall: float, watch: Watch | None = None, through_prompt: bool = False) -> bool:
        """Lets the machine go on until its guest is at rest, for at most `seconds` of virtual time; with `through_prompt` for just so long.

        After `wall` seconds of wall time it is stopped, and the answer is False.
        """
        with self.engine.held():
            self._pc.rest.allow(round(seconds * SECOND), through_prompt)
        self._let_go()
        return self._drive(watch, stop_after=wall)

    def wait(self, seconds: float, wall: float, watch: Watch | None) -> None:
        """Lets virtual time pass.  Raises HvlabError where no guest is at rest, or where the wall's time is over first."""
        check_virtual("wait takes", seconds)
        check_wall("wall is", wall)
        self._must_have_guest(1)
        if self.state == "running" or not self.booting.up:
            raise HvlabError("the guest is at work: resume() it until it waits, or let it come to its end")
        if self.booting.residents:
            raise HvlabError("a machine with two guests cannot be told to wait: their time passes while they run")
        if not self.go(seconds, wall, watch, through_prompt=True):
            raise HvlabError(f"{seconds:g} s of virtual time had not passed after {wall:g} s of wall time, and the machine was stopped: "
                             "resume() it")

    def _let_go(self) -> None:
        """The machine goes on from where it is; one that has ended or waits is left as it is."""
        if self.engine.busy:
            self.engine.go_on()
        elif self.state in ("stopped", "waiting"):
            self.booting.go_on()

    def _drive(self, watch: Watch | None, limit: float | None = None, stop_after: float | None = None) -> bool:
        """Waits until the machine is at rest; whatever is raised meanwhile, a Ctrl-C too, stops it.  False where `stop_after` did."""
        watch, since, in_time = watch or _silent, time.monotonic(), True

        def heard(phase: str) -> None:
            self._progress(phase)
            watch(phase)

        try:
            while not self.engine.wait(TICK if stop_after is None else min(TICK, stop_after), heard):
                spent = time.monotonic() - since
                self._pc.tick()
                if limit is not None and spent >= limit:
                    self._pc.stop(StopKind.TIMEOUT, f"still running after {limit:g} s of wall time")
                    since = time.monotonic()
                if stop_after is not None and spent >= stop_after:
                    in_time = False
                    self.engine.stop()
                watch(None)
        except BaseException:
            self.engine.stop()
            raise
        return in_time

    # --- stepping

    def step(self, n: int) -> Records[Step]:
        """Executes up to `n` instructions of the guest."""
        self._halt_steps.clear()
        with self.engine.held():
            steps = stepping.run_steps(self._pc, self._stepping_base(), n, self._halt_steps)
        if self._pc.cpu.stopping:
            self.resume(SETTLE if self.booting.residents else None)
        return steps

    def step_exit(self, watch: Watch | None) -> ExitStep | None:
        """Lets the guest run to its next exit to the core and stops behind the core's answer to it."""
        self._stepping_base()
        self.booting.exit, self.booting.to_exit = None, True
        try:
            self.resume(watch=watch)
        finally:
            self.booting.to_exit = False
        return self.booting.exit

    def registers(self) -> Registers:
        """The guest's registers now."""
        with self.engine.held():
            try:
                return stepping.read_registers(self._pc, self._stepping_base())
            except Unreadable as fault:
                raise HvlabError(f"the guest's registers cannot be told: {fault.why}, to {fault.address:#x}") from fault

    def _stepping_base(self) -> int:
        """The core's base (host-physical), where there is a guest that can be looked at."""
        if self.state == "running":
            raise HvlabError("the machine is running: stop() it first")
        self._must_not_be_booting()
        exits, residents = self.booting.exits, self.booting.residents
        if self.state == "off" or exits is None:
            raise HvlabError("there is no guest yet: boot the machine, or resume() the boot")
        if residents and (ended := residents.of(1).ended):
            raise HvlabError(f"guest 1, which is the one that is stepped, has ended: {ended.why}")
        return exits.base

    # --- typing

    def key_in(self, text: str, guest: int = 1) -> None:
        """Input on the guest's console, which it takes when the machine goes on."""
        _must_be_text(text)
        self._must_have_guest(guest)
        with self.engine.held():
            self.booting.seat(guest).type(text.encode("utf-8" if self.booting.linux else "latin-1", "replace"))

    def send(self, text: str, guest: int, limit: float, watch: Watch | None) -> str:
        """Sends input to the guest's console and lets it run until it waits again; returns what it printed meanwhile."""
        booting = self.booting
        check_wall("limit is", limit)
        _must_be_text(text)
        self._must_have_guest(guest)
        booting.awaited = guest if booting.residents else None
        if not booting.up:
            self._let_go()
            self._drive(watch, limit=limit)
            self._must_have_guest(guest)
            if self.engine.stopped:
                raise HvlabError("the machine was stopped before its guest was ready, and nothing was sent: resume() it first")
        booting.awaited = guest if booting.residents else None
        before, number = len(booting.seat(guest).serial), booting.boots
        self.key_in(text, guest)
        if booting.linux:
            self.go(SEND_LIMIT, limit, watch)
        else:
            self._let_go()
            self._drive(watch, limit=limit)
        return bytes(booting.seat(guest).serial[before if booting.boots == number else 0:]).decode("latin-1")

    def _must_not_be_booting(self) -> None:
        if self.engine.stopped and self.booting.phase is None:
            raise HvlabError("the machine was stopped just before power-on: resume() it first")

    def _must_have_guest(self, guest: int) -> None:
        self._must_not_be_booting()
        run, ended = self.booting.run, self.booting.ended_for(guest)
        if run is None or ended is not None or not run.live:
            raise HvlabError(f"there is no guest to send to: {ended.why if ended else 'boot the machine first'}")


def _must_be_text(text: object) -> None:
    if not isinstance(text, str):
        raise HvlabError(f"a guest's console takes text, as in send('help\\n'), not {quoted(text)}")


def _silent(_phase: str | None) -> None:
    pass
