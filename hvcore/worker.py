"""Machines on a thread of their own: commands queue, Stop does not wait in the queue, and nobody who asks is kept waiting.

    worker = Worker(on_console=lambda machine, which, text: ...)
    future = worker.boot(machine, Config(VTD_TRANS=True))
    worker.stop()                     # at once, whatever the machine is doing
    worker.resume(machine).result()

**How to read safely.**  A part of a `Run` that is read while the machine runs (`run.domains`) is read with the machine held still, from any
thread.  What must belong together is read inside one `with machine.still():`; keep that short, for the machine stands still as long.
Nothing may be started on the machine from inside it.
"""

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import BadSnapshot, HvlabError
from .inspect.matrix import Cell, Matrix, cells
from .inspect.records import Records
from .inspect.steps import ExitStep, Step
from .run import Run
from .session import Machine
from .shell import Answer
from .vmm.config import Config

if TYPE_CHECKING:
    from .attack import Attack
    from .snapshot import Moment

__all__ = ["Listener", "Worker"]

T = TypeVar("T")
FOREVER = float("inf")
"""No guest is given up here: its owner can stop it."""


class Listener:
    """Who wants to hear of a worker's machines; override what you need.  Called on the worker's thread; what is raised is logged."""

    def progress(self, machine: Machine, phase: str | None, seconds: float) -> None:
        """A phase began, or 50 ms of work have passed since the last call: the phase and the seconds since the command began."""

    def console(self, machine: Machine, which: str, text: str) -> None:
        """New output on the console `vmm`, `guest` or `guest 2`, at most 20 times a second for each; a new boot begins them anew."""

    def finished(self, machine: Machine | None, result: Any) -> None:
        """A command is done, with its result."""

    def failed(self, machine: Machine | None, error: BaseException) -> None:
        """A command has raised."""


@dataclass
class _Job:
    """A command in the queue, or at work."""

    machine: Machine | None
    do: Callable[["_Job"], Any]
    future: "Future[Any]"
    listener: Listener
    began: float = 0.0
    stop: bool = False
    told: dict[str, tuple[int, int]] = field(default_factory=dict)

    def tell(self, call: Callable[..., None], *arguments: Any) -> None:
        """Calls a listener; its faults are its own."""
        try:
            call(*arguments)
        except Exception:
            logging.getLogger("hvlab").exception("a listener of the worker failed")

    def progress(self, phase: str | None) -> None:
        """A phase, or a tick of the clock; a stop that came before the machine ran takes effect here."""
        if self.machine is not None:
            if self.stop:
                self.machine.stop()
            self.tell(self.listener.progress, self.machine, phase or self.machine.phase, time.perf_counter() - self.began)
            self.consoles()

    def consoles(self) -> None:
        """Passes on what was printed since the last call."""
        if self.machine is not None and self.machine.run is not None:
            boot = self.machine.run.number
            for which, output in self._outputs(self.machine):
                number, seen = self.told.get(which, (boot, 0))
                seen = seen if number == boot else 0
                if output[seen:]:
                    self.tell(self.listener.console, self.machine, which, output[seen:].decode("latin-1").replace("\r", ""))
                self.told[which] = boot, len(output)

    @staticmethod
    def _outputs(machine: Machine) -> list[tuple[str, bytes | bytearray]]:
        second: list[tuple[str, bytes | bytearray]] = [("guest 2", machine.residents.of(2).seat.serial)] if machine.residents else []
        return [("vmm", machine.pc.debug), ("guest", machine.pc.serial), *second]


class _Desk:
    """What worker and thread share; it knows nothing of the worker, so that a forgotten worker can go."""

    def __init__(self, listener: Listener):
        self.listener = listener
        self.lock = threading.Lock()
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.job: _Job | None = None
        self.told: weakref.WeakKeyDictionary[Machine, dict[str, tuple[int, int]]] = weakref.WeakKeyDictionary()
        self.owned: list[Machine] = []
        self.typing = threading.Lock()
        self.typed: dict[int, tuple[Machine, int, str]] = {}
        self.keys = count()
        self.closed = False

    def serve(self) -> None:
        """The worker's thread."""
        while (job := self.jobs.get()) is not None:
            with self.lock:
                self.job = job if job.future.set_running_or_notify_cancel() else None
            if self.job is not None:
                self._work(job)
            del job
        for machine in self.owned:
            machine.close()

    def _work(self, job: _Job) -> None:
        job.began = time.perf_counter()
        try:
            result = job.do(job)
        except BaseException as e:  # noqa: BLE001 - whoever waits for the future gets it
            self._done(job)
            job.tell(job.listener.failed, job.machine, e)
            job.future.set_exception(e)
        else:
            self._done(job)
            job.tell(job.listener.finished, job.machine, result)
            job.future.set_result(result)

    def _done(self, job: _Job) -> None:
        job.consoles()
        with self.lock:
            self.job = None

    def stop(self) -> None:
        """Cancels what waits in the queue and stops what is at work."""
        with self.lock:
            self._forget()
            job = self.job
            if job is not None:
                job.stop = True
        if job is not None and job.machine is not None:
            job.machine.stop()

    def hand_over(self, machine: Machine, guest: int, last: float = FOREVER) -> None:
        """Gives a guest what was typed for it, in order, up to number `last`."""
        with self.typing:
            wanted = [n for n, (m, g, _) in self.typed.items() if (m, g) == (machine, guest) and n <= last]
            text = "".join(self.typed.pop(n)[2] for n in wanted)
            if text:
                machine.key_in(text, guest)

    def _forget(self) -> None:
        with self.typing:
            self.typed.clear()
        while True:
            try:
                waiting = self.jobs.get_nowait()
            except queue.Empty:
                return
            if waiting is None:
                self.jobs.put(None)
                return
            waiting.future.cancel()

    def close(self) -> None:
        """Stops everything; the thread ends by itself."""
        with self.lock:
            self.closed = True
        self.stop()
        self.jobs.put(None)


class Worker:
    """One thread that does what machines are asked for, command after command, and tells `listener` of it.  Close it, or use it in `with`.

    Each command returns a Future.  What it raises goes there and to the listener, and the thread goes on.
    """

    def __init__(self, listener: Listener | None = None):
        self._desk = _Desk(listener or Listener())
        self._thread = threading.Thread(target=self._desk.serve, name="hvlab worker", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._desk.close)

    def _put(self, machine: Machine | None, do: Callable[[_Job], T]) -> "Future[T]":
        future: Future[T] = Future()
        with self._desk.lock:
            if self._desk.closed:
                raise HvlabError("the worker is closed: make a new one")
            told = self._desk.told.setdefault(machine, {}) if machine is not None else {}
            self._desk.jobs.put(_Job(machine, do, future, self._desk.listener, told=told))
        return future

    # --- commands

    def load(self, what: Any) -> "Future[Machine]":
        """`Machine.load`; the machine is closed with the worker."""
        def do(_job: _Job) -> Machine:
            machine = Machine.load(what)
            self._desk.owned.append(machine)
            return machine
        return self._put(None, do)

    def boot(self, machine: Machine, config: Config | None = None, **more: Any) -> "Future[Run]":
        """`machine.boot`, with no limit to its time."""
        return self._put(machine, lambda job: machine.boot(config, limit=FOREVER, watch=job.progress, **more))

    def shell(self, machine: Machine, line: str, limit: float = 60) -> "Future[Answer]":
        """`machine.shell`, with no limit to its wall time."""
        return self._put(machine, lambda job: machine.shell(line, limit, wall=FOREVER, watch=job.progress))

    def send(self, machine: Machine, text: str, guest: int = 1) -> "Future[str]":
        """`machine.send`, with no limit to its time."""
        return self._put(machine, lambda job: machine.send(text, guest, limit=FOREVER, watch=job.progress))

    def attack(self, machine: Machine, name: str, config: Config | None = None, device: str | None = None) -> "Future[Attack]":
        """`machine.attack`.  One that is stopped before it is over has no verdict: HvlabError."""
        def do(job: _Job) -> "Attack":
            result = machine.attack(name, config, device, job.progress)
            if job.stop:
                raise HvlabError(f"{name} was stopped before it was over, so there is no verdict: let the machine go on, or attack again")
            return result
        return self._put(machine, do)

    def matrix(self, machine: Machine, on_cell: Callable[[Cell], None], progress: Callable[[str], None],
               policies: Sequence[str] | None = None, attacks: Sequence[str] | None = None) -> "Future[Matrix]":
        """`inspect.matrix`; `progress` is told each cell before it runs, `on_cell` each one that is done.  Stopped, it is what was done."""
        def do(job: _Job) -> Matrix:
            done: list[Cell] = []
            for cell in cells(machine, policies, attacks, progress=progress):
                if job.stop:
                    break
                done.append(cell)
                on_cell(cell)
            return Matrix(machine.name, done)
        return self._put(machine, do)

    def resume(self, machine: Machine, seconds: float | None = None) -> "Future[Run]":
        """`machine.resume`."""
        return self._put(machine, lambda job: machine.resume(seconds, watch=job.progress))

    def step(self, machine: Machine, n: int = 1) -> "Future[Records[Step]]":
        """`machine.step`."""
        return self._put(machine, lambda _job: machine.step(n))

    def step_exit(self, machine: Machine) -> "Future[ExitStep | None]":
        """`machine.step_exit`."""
        return self._put(machine, lambda job: machine.step_exit(watch=job.progress))

    def save(self, machine: Machine, path: str | Path, progress: Callable[[str], None]) -> "Future[int]":
        """`machine.save`; `progress` is told in words how far it is."""
        return self._put(machine, lambda _job: machine.save(path, progress))

    def load_snapshot(self, machine: Machine, path: str | Path) -> "Future[Machine]":
        """`machine.load_snapshot`, or where the file is of another machine `Machine.restore`: the machine that it is in now.

        One that is new is the caller's to close.
        """
        def do(_job: _Job) -> Machine:
            try:
                machine.load_snapshot(path)
            except BadSnapshot:
                return Machine.restore(path, machine.description.disk.image)
            return machine
        return self._put(machine, do)

    def keep_history(self, machine: Machine, every_ms: float | None = 10) -> "Future[None]":
        """`machine.keep_history`."""
        return self._put(machine, lambda _job: machine.keep_history(every_ms))

    def remember(self, machine: Machine, what: str = "asked for") -> "Future[Moment]":
        """`machine.remember`."""
        return self._put(machine, lambda _job: machine.remember(what))

    def rewind(self, machine: Machine, to: object = None) -> "Future[Moment]":
        """`machine.rewind`."""
        return self._put(machine, lambda _job: machine.rewind(to))

    def call(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Anything else, between two commands."""
        return self._put(None, lambda _job: function(*arguments))

    # --- not in the queue

    def type(self, machine: Machine, text: str, guest: int = 1) -> None:
        """Input on a guest's console: a guest that is up and at work takes it at once, any other as with `send`; always in order."""
        desk = self._desk
        with desk.typing:
            number = next(desk.keys)
            desk.typed[number] = machine, guest, text
        if self.machine is machine and machine.booting.up and machine.state == "running":
            desk.hand_over(machine, guest)
            if machine.state == "running":
                return

        def do(job: _Job) -> None:
            try:
                if not machine.booting.up:
                    machine.send("", guest, limit=FOREVER, watch=job.progress)
            finally:
                desk.hand_over(machine, guest, number)
            machine.send("", guest, limit=FOREVER, watch=job.progress)
        self._put(machine, do)

    def stop(self) -> None:
        """Stops the machine that is at work, where it is, and cancels the commands that wait.  What is asked for later is done."""
        self._desk.stop()

    @property
    def machine(self) -> Machine | None:
        """The machine that is at work; None where none is."""
        job = self._desk.job
        return job.machine if job else None

    def close(self) -> None:
        """Stops what is at work, cancels what waits, and waits for the thread to end."""
        self._finalizer()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()
