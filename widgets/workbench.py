"""The workbench: choose a machine and options, boot, stop and step it, and follow an address, a device or a fault from view to view."""

import html
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ipywidgets as ipw

from hvcore import Machine, Run
from hvcore.attack import ATTACKS, Attack
from hvcore.errors import HvlabError
from hvcore.inspect.records import Records
from hvcore.inspect.steps import ExitStep, Step
from hvcore.worker import Listener, Worker

from .attacks import Attacks
from .changes import Changes
from .console import Console
from .controls import Controls
from .lens import LensView
from .pagemap import PageMap
from .proof import ProofView
from .registers import Registers
from .reporting import ReportLink, can_report, report_path
from .selection import Selection
from .table import DmaTable, FaultTable, RunTable, Table, fault_choices
from .verdict import Verdict
from .views import E820View, GraphView, TimelineView
from .walk import WalkExplainer

__all__ = ["DEFAULT_MACHINE", "Workbench"]

DEFAULT_MACHINE = "nvme-desktop-16g"
SIDE_BY_SIDE = "repeat(auto-fit, minmax(min(100%, 430px), 1fr))"
"""Grid columns: two where there is room, one where there is not."""


class _Ear(Listener):
    """Passes on what the worker tells, as long as the workbench is there."""

    def __init__(self, bench: "Workbench"):
        self._bench = weakref.ref(bench)

    def progress(self, machine: Machine, phase: str | None, seconds: float) -> None:
        if bench := self._bench():
            bench.hear_progress(machine, phase, seconds)

    def console(self, machine: Machine, which: str, text: str) -> None:
        if bench := self._bench():
            bench.show_consoles()

    def finished(self, machine: Machine | None, result: Any) -> None:
        if bench := self._bench():
            bench.hear_finished(machine, result)

    def failed(self, machine: Machine | None, error: BaseException) -> None:
        if bench := self._bench():
            bench.hear_failed(error)


class Workbench(ipw.VBox):
    """Controls and views of one machine: a `Machine`, or what `Machine.load` takes.  One that has not run yet is booted.

    The machine works on a thread of its own: nothing here waits for it but `wait()`.  It stays usable from code; after a boot there,
    `refresh()` shows what is.  `selection` is what all views share.
    """

    def __init__(self, machine: Machine | str | Path = DEFAULT_MACHINE, scale: str = "compressed"):
        self.selection = Selection()
        self.worker = Worker(_Ear(self))
        self._ready = False
        self.machine = machine if isinstance(machine, Machine) else self.worker.load(machine).result()
        self._given = self.machine
        self.before: Run | None = None
        self._shown: Run | None = None
        run = self.machine.run or self.worker.boot(self.machine).result()
        self.controls = Controls(self.machine.name, run.config, self._pressed, self._show_pending)
        self.controls.buttons["report"].layout.display = None if can_report() else "none"
        self.verdict, self.link = Verdict(self._apply), ReportLink()
        self._make_views(run, scale)
        self._lay_out()
        super().__init__([self.controls, self.verdict, self.link, *self._rows], layout=ipw.Layout(grid_gap="6px"))
        self.add_class("hvlab-workbench")
        self._ready = True
        self.refresh()

    # --- parts

    def _make_views(self, run: Run, scale: str) -> None:
        s = self.selection
        self.e820, self.graph, self.timeline = E820View(run, s, shown=scale), GraphView(run, s), TimelineView(run, s)
        self.pages = PageMap(run, s)
        self.faults = FaultTable(run, s)
        self.lens = LensView(run, s, guard=lambda: self.machine.still())
        self.walk = WalkExplainer(run, s, guard=lambda: self.machine.still())
        self.dma, self.runs, self.registers = DmaTable(run, s), RunTable(run, s), Registers(run)
        self.steps = Table(Records(Step), s)
        self.changes = Changes(s)
        self.attacks = Attacks(lambda: self.machine, s, self._attack, self._boot_policy)
        self.proof = ProofView(run, s, guard=lambda: self.machine.still(), clock=lambda: self.machine.pc.clock.now, at_once=False)
        self.vmm_console = Console("Core's console")
        self.guest_console = Console("Guest's console", self._command, "help")
        self.second_console = Console("Second guest's console", lambda line: self._command(line, 2), "help")

    def _lay_out(self) -> None:
        tabs = {"Walk, step by step": self.walk, "Attacks": self.attacks, "Proof": self.proof, "DMA requests": self.dma,
                "Protection window": self.timeline, "Registers": self.registers,
                "Permission runs": self.runs, "Before and after": self.changes, "Instructions": self.steps}
        self.tabs = ipw.Tab(list(tabs.values()), titles=list(tabs))
        self._changes_tab, self._proof_tab = (list(tabs.values()).index(view) for view in (self.changes, self.proof))
        self.tabs.observe(lambda _change: self.worker.call(self._show_changes), "selected_index")
        self._consoles = _grid(self.guest_console, self.vmm_console)
        self._rows = [_grid(self.faults, self.lens), self.e820, self.graph, self.pages, self.tabs, self._consoles]

    @property
    def run(self) -> Run:
        """The machine's current run."""
        run = self.machine.run
        assert run is not None
        return run

    # --- doing

    def _pressed(self, name: str) -> None:
        """A button was clicked.  Only what takes no time is done here; the rest is the worker's."""
        actions: dict[str, Callable[[], object]] = {
            "reboot": self._boot, "stop": self.worker.stop, "resume": lambda: self.worker.resume(self.machine),
            "step": lambda: self.worker.step(self.machine), "step_exit": lambda: self.worker.step_exit(self.machine),
            "report": self._report}
        actions[name]()

    def _boot(self) -> None:
        """Boots the chosen machine with the chosen options; one that cannot be loaded leaves the old one in its place."""
        name, config = self.controls.machine.value, self.controls.options.config
        self._allow("running")
        self.verdict.say("running", f"booting {name}")

        def boot() -> None:
            machine = self._chosen(name)
            self.before = self.machine.run if machine is self.machine else None
            if self.machine not in (machine, self._given):
                self.machine.close()
            self.machine = machine
            self.worker.boot(machine, config, guest=machine.guest)
        self.worker.call(boot)

    def _chosen(self, name: str) -> Machine:
        same = next((m for m in (self.machine, self._given) if m.name == name), None)
        return same or Machine.load(name)

    def _apply(self, options: Mapping[str, Any]) -> None:
        """Sets options and boots with them."""
        self.controls.options.choose(self.controls.options.config.change(**options))
        self._boot()

    def _boot_policy(self, name: str) -> None:
        """Boots with a policy's options."""
        self.controls.options.choose(self.machine.policies[name])
        self._boot()

    def _attack(self, name: str, device: str | None) -> None:
        """The guest attacks; where none waits, or the attack begins before the core, the machine is booted for it."""
        self._allow("running")
        self.verdict.say("running", f"attack {name}")

        def attack() -> None:
            if ATTACKS[name].early or self.machine.state != "waiting":
                self.before = self.machine.run
            self.worker.attack(self.machine, name, None, device)
        self.worker.call(attack)

    def _report(self) -> None:
        """Writes the report of the current run beside the notebook, and links it."""
        def report() -> None:
            from hvcore.report import write_report
            path = report_path(self.machine.name, self.run.number)
            write_report(self.machine, path, progress=lambda words: self.verdict.say("running", words))
            self.link.show(path)
            self.verdict.show_run(self.run)
            self._allow(self.machine.state)
        self._allow("running")
        self.controls.buttons["stop"].disabled = True
        self.verdict.say("running", "report")
        self.worker.call(report)

    def _command(self, line: str, guest: int = 1) -> None:
        if self.machine.ended:
            self.verdict.say("error", f"there is no guest to type to: {self.machine.ended.why}")
        else:
            self.worker.send(self.machine, "\x03" if self.machine.linux and line == "^C" else line + "\n", guest)

    def wait(self) -> None:
        """Returns when everything that was asked for is done."""
        for _ in range(2):
            self.worker.call(_nothing).result()

    def close(self) -> None:
        """Stops the machine and lets go of it; the last figures stay."""
        self.attacks.close()
        self.worker.close()
        if self.machine is not self._given:
            self.machine.close()
        super().close()

    # --- what the worker tells, on its thread

    def hear_progress(self, machine: Machine, phase: str | None, seconds: float) -> None:
        """The machine is at work."""
        if self._ready:
            self._allow("running")
            far = str(machine.progress) if machine.linux else f"{phase or 'at work'}, {seconds:.1f} s"
            self.verdict.say("running", f"{machine.name}: {far}")

    def hear_finished(self, machine: Machine | None, result: Any) -> None:
        """A machine has done something: what is shown is shown anew."""
        if machine is None or not self._ready:
            return
        if isinstance(result, Records):
            self.steps.show(result)
        elif isinstance(result, ExitStep):
            exits = [*self.steps.records, result] if self.steps.records.kind is ExitStep else [result]
            self.steps.show(Records(ExitStep, exits))
        self.refresh()
        if isinstance(result, Attack):
            self.attacks.one.show(result, self.run)

    def hear_failed(self, error: BaseException) -> None:
        """Something could not be done: a mistake of the user's in a sentence, one of ours as such."""
        if self._ready:
            self._allow(self.machine.state)
            mine = f"this is a fault of hvlab itself: {type(error).__name__}: {error}"
            self.verdict.say("error", str(error) if isinstance(error, HvlabError) else mine)

    # --- showing

    def refresh(self) -> None:
        """Shows the machine's current run as it is now."""
        with self.machine.still():
            run = self.run
            self.verdict.show_run(run)
            for view in (self.faults, self.dma, self.runs, self.registers, self.lens, self.walk):
                view.show_run(run)
            for picture in (self.e820, self.graph, self.timeline, self.pages):
                picture.show(run)
            self.proof.show_run(run, prove=self.tabs.selected_index == self._proof_tab)
            self._choose_fault(run)
            self._shown = run
        self._show_changes()
        self.show_consoles()
        self._show_pending()
        self._allow(self.machine.state)

    def _allow(self, state: str) -> None:
        """What can be done in a state of the machine can be pressed."""
        self.controls.allow(state)
        self.attacks.one.allow(state)

    def _choose_fault(self, run: Run) -> None:
        """Where nothing is chosen, a new run's first fault is; a chosen fault is looked for in the new run."""
        chosen = self.selection
        number = 0 if chosen.nothing else chosen.fault
        if run is self._shown or number is None:
            return
        if number < len(run.faults):
            chosen.choose(**fault_choices(run, run.faults)[number])
        else:
            chosen.fault = None

    def _show_changes(self) -> None:
        """The tab with what changed since the run before, where it is open."""
        before = self.before
        if self.tabs.selected_index == self._changes_tab and before is not None and before is not self.run and not before.live:
            with self.machine.still():
                self.changes.show(before, self.run)

    def show_consoles(self) -> None:
        """The consoles as they are now; that of a second guest where there is one."""
        if not self._ready:
            return
        console, residents = self.run.console, self.machine.residents
        self.vmm_console.show(console.vmm)
        self.guest_console.show(console.guest)
        if residents:
            self.second_console.show(residents.of(2).seat.serial.decode("latin-1"))
        there = (self.guest_console, *([self.second_console] if residents else []), self.vmm_console)
        if self._consoles.children != there:
            self._consoles.children = there

    def _show_pending(self) -> None:
        words = self.controls.options.pending_words(self.run.config)
        chosen = self.controls.machine.value
        if chosen != self.machine.name:
            words = f"<strong>Pending:</strong> machine {html.escape(chosen)} &ndash; reboot to apply<br>{words}"
        self.verdict.say_pending(words)

    @property
    def html(self) -> str:
        """Everything that is shown, without a kernel."""
        head = f"<h3>{html.escape(self.machine.name)}</h3><p><code>{html.escape(str(self.run.config))}</code></p>{self.verdict.html}"
        views = [self.e820, self.graph, self.pages, self.faults, *([self.attacks.grid] if self.attacks.grid.cells else []),
                 *([self.proof] if self.proof.claims else [])]
        return "".join([head, *(view.figure.html for view in views), *(console.html for console in self._consoles.children)])

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return (super()._repr_mimebundle_(**options) or {}) | {"text/html": self.html, "text/plain": repr(self.run)}


def _nothing() -> None:
    pass


def _grid(*children: ipw.Widget) -> ipw.GridBox:
    return ipw.GridBox(list(children), layout=ipw.Layout(grid_template_columns=SIDE_BY_SIDE, grid_gap="8px 20px", align_items="flex-start"))
