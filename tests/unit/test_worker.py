"""The worker: commands in their order, a stop that does not wait, listeners, and nothing left behind."""

import gc
import re
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from hvcore import Config, Machine
from hvcore.errors import BadMachine, HvlabError
from hvcore.phases import DOING
from hvcore.spec.linuxboot import Elf, Segment
from hvcore.worker import Listener, Worker

OFF = Config(VTD_TRANS=False)
SPIN = Elf(0x1000000, (Segment(0x1000000, bytes.fromhex("ebfe"), 4096),))
PRINTS = Elf(0x1000000, (Segment(0x1000000, bytes.fromhex("66baf803 b041 ee e480 ebfb"), 4096),))
"""Writes letters to COM1 for ever: mov dx, 0x3f8; mov al, 'A'; out dx, al; in al, 0x80; jmp to the OUT with what was read."""
PATIENCE = 60


class Log(Listener):
    """Remembers what it hears, and can be waited for."""

    def __init__(self) -> None:
        self.phases: list[str | None] = []
        self.text = {"vmm": "", "guest": ""}
        self.ends: list[object] = []
        self.calls: list[str] = []
        self.ticked = threading.Event()

    def progress(self, machine: Machine, phase: str | None, seconds: float) -> None:
        assert seconds >= 0
        if not self.phases or self.phases[-1] != phase:
            self.phases.append(phase)
        if phase == "guest runs":
            self.ticked.set()

    def console(self, machine: Machine, which: str, text: str) -> None:
        self.text[which] += text
        self.calls.append(which)

    def finished(self, machine: Machine | None, result: Any) -> None:
        self.ends.append(result)

    def failed(self, machine: Machine | None, error: BaseException) -> None:
        self.ends.append(error)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def worker(log: Log) -> Iterator[Worker]:
    with Worker(log) as w:
        yield w


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine.load("q35-2g") as m:
        yield m


def test_commands_are_done_in_their_order(worker: Worker, machine: Machine, log: Log) -> None:
    boot = worker.boot(machine, Config(PROFILE="mended", EARLY_PROTECTION=False))
    text = worker.send(machine, "help\n")
    where = worker.call(threading.current_thread)
    steps = worker.step(machine)
    again = worker.boot(machine, OFF)
    assert again.result(PATIENCE).number == 2
    assert boot.result().outcome == "up" and "lspci" in text.result()
    assert where.result().name == "hvlab worker" and len(steps.result()) == 0
    assert log.ends == [boot.result(), text.result(), where.result(), steps.result(), again.result()]
    assert [p for p in log.phases if p in DOING][:len(DOING)] == list(DOING)


def test_a_stop_does_not_wait_and_cancels_what_does(worker: Worker, machine: Machine, log: Log) -> None:
    boot = worker.boot(machine, OFF, guest=SPIN)
    waiting: list[Future[Any]] = [worker.send(machine, "help\n"), worker.step(machine)]
    assert log.ticked.wait(PATIENCE)
    assert worker.machine is machine
    worker.stop()
    run = boot.result(PATIENCE)
    assert (run.outcome, machine.state) == ("stopped", "stopped")
    assert all(f.cancelled() for f in waiting)
    assert len(worker.step(machine, 3).result(PATIENCE)) == 3
    assert worker.resume(machine, 0.02).result(PATIENCE).outcome == "stopped"
    assert worker.boot(machine, OFF).result(PATIENCE).outcome == "up"
    assert worker.machine is None


def test_a_stop_before_the_machine_runs_stops_it(worker: Worker, machine: Machine) -> None:
    gate = threading.Event()
    worker.call(gate.wait, PATIENCE)
    boot = worker.boot(machine, OFF, guest=SPIN)
    gate.set()
    while not boot.done():
        worker.stop()
    assert boot.cancelled() or boot.result().outcome == "stopped"


def test_lines_are_taken_in_the_order_in_which_they_were_typed(worker: Worker, machine: Machine) -> None:
    worker.boot(machine, OFF).result(PATIENCE)
    gate = threading.Event()
    worker.call(gate.wait, PATIENCE)
    for number in range(3):
        worker.type(machine, f"cpuid {number}\n")
    with machine.still():
        gate.set()
        while worker.machine is None:
            pass
        for number in range(3, 6):
            worker.type(machine, f"cpuid {number}\n")
    worker.send(machine, "time\n").result(PATIENCE)
    assert re.findall(r"lab> (\S+ ?\d?)\n", machine.run.console.guest) == [*(f"cpuid {number}" for number in range(6)), "time"]


def test_what_was_typed_and_waits_is_forgotten_at_a_stop(worker: Worker, machine: Machine) -> None:
    worker.boot(machine, OFF).result(PATIENCE)
    gate = threading.Event()
    worker.call(gate.wait, PATIENCE)
    worker.type(machine, "cpuid 0\n")
    worker.stop()
    gate.set()
    worker.type(machine, "time\n")
    worker.call(int).result(PATIENCE)
    assert re.findall(r"lab> (\S+)", machine.run.console.guest) == ["time"]


def test_what_was_typed_for_a_guest_that_died_is_not_told_to_the_next(worker: Worker, machine: Machine, log: Log) -> None:
    worker.boot(machine, OFF).result(PATIENCE)
    worker.type(machine, "crash\n")
    worker.call(int).result(PATIENCE)
    worker.type(machine, "cpuid 0\n")
    worker.boot(machine, OFF)
    worker.type(machine, "time\n")
    worker.call(int).result(PATIENCE)
    assert re.findall(r"lab> (\S+)", machine.run.console.guest) == ["time"]
    assert next(str(e) for e in log.ends if isinstance(e, HvlabError)).startswith("there is no guest to send to")


def test_what_is_typed_while_the_machine_is_saved_is_taken_afterwards(worker: Worker, machine: Machine, tmp_path: Path) -> None:
    worker.boot(machine, OFF).result(PATIENCE)
    words: list[str] = []

    def told(said: str) -> None:
        if not words:
            worker.type(machine, "time\n")
        words.append(said)
    worker.save(machine, tmp_path / "one.snap", told).result(PATIENCE)
    worker.call(int).result(PATIENCE)
    assert words and "lab> time\n" in machine.run.console.guest


def test_the_console_comes_in_portions_and_whole(worker: Worker, machine: Machine, log: Log) -> None:
    run = worker.boot(machine, OFF).result(PATIENCE)
    worker.send(machine, "help\n").result(PATIENCE)
    assert (log.text["guest"], log.text["vmm"]) == (run.console.guest, run.console.vmm)
    assert log.calls.count("guest") < 20 < len(run.console.guest)
    again = worker.boot(machine, OFF).result(PATIENCE)
    assert log.text["vmm"] == run.console.vmm + again.console.vmm


def test_output_of_a_guest_that_never_waits_is_seen_while_it_runs(machine: Machine) -> None:
    seen = threading.Event()

    class Once(Listener):
        def console(self, machine: Machine, which: str, text: str) -> None:
            if which == "guest" and text.startswith("A"):
                seen.set()

    with Worker(Once()) as worker:
        boot = worker.boot(machine, OFF, guest=PRINTS)
        assert seen.wait(PATIENCE)
        worker.stop()
        run = boot.result(PATIENCE)
    assert run.outcome == "stopped" and run.console.guest.startswith("A")


def test_a_run_is_read_while_the_machine_runs(worker: Worker, machine: Machine, log: Log) -> None:
    boot = worker.boot(machine, Config(PROFILE="mended"), guest=SPIN)
    assert log.ticked.wait(PATIENCE)
    run = machine.run
    assert run is not None
    for _ in range(5):
        with machine.still():
            first, second = run.domains[0].runs, run.domains[0].runs
            assert str(first) == str(second)
    assert run.outcome == "running" and machine.state == "running"
    worker.stop()
    assert boot.result(PATIENCE) is run


def test_what_a_command_raises_goes_to_its_future_and_the_thread_goes_on(worker: Worker, machine: Machine, log: Log) -> None:
    wrong = worker.load("no such machine")
    none = worker.send(machine, "help\n")
    exits = worker.call(exit, 3)
    with pytest.raises(BadMachine):
        wrong.result(PATIENCE)
    with pytest.raises(HvlabError, match="no guest to send to"):
        none.result(PATIENCE)
    assert isinstance(exits.exception(PATIENCE), SystemExit)
    assert worker.boot(machine, OFF).result(PATIENCE).outcome == "up"
    assert [type(e).__name__ for e in log.ends[:3]] == ["BadMachine", "HvlabError", "SystemExit"]


def test_a_listener_that_fails_harms_nobody(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    class Bad(Listener):
        def progress(self, machine: Machine, phase: str | None, seconds: float) -> None:
            raise ZeroDivisionError

    with Worker(Bad()) as worker:
        assert worker.boot(machine, OFF).result(PATIENCE).outcome == "up"
    assert "a listener of the worker failed" in caplog.text


def _threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("hvlab")}


def test_a_closed_worker_leaves_no_thread_and_closes_its_own_machines(machine: Machine, log: Log) -> None:
    worker = Worker(log)
    own = worker.load("q35-2g").result(PATIENCE)
    assert worker.boot(own, OFF).result(PATIENCE).outcome == "up"
    boot = worker.boot(machine, OFF, guest=SPIN)
    log.ticked.clear()
    assert log.ticked.wait(PATIENCE)
    worker.close()
    worker.close()
    assert boot.result().outcome == "stopped" and own.state == "off" and machine.state == "stopped"
    with pytest.raises(HvlabError, match="the worker is closed"):
        worker.resume(machine)
    machine.close()
    assert not _threads()


def test_a_forgotten_worker_ends_its_thread(log: Log) -> None:
    worker = Worker(log)
    assert worker.call(lambda: 5).result(PATIENCE) == 5
    thread, gone = worker._thread, weakref.ref(worker)
    del worker
    gc.collect()
    thread.join(PATIENCE)
    assert gone() is None and not thread.is_alive()
