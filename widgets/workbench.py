"""The workbench: choose a machine and options, boot, stop and step it, and follow an address, a device or a fault from view to view."""

import html
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import ipywidgets as ipw

from hvcore import Machine, Run
from hvcore.attack import ATTACKS, Attack
from hvcore.errors import HvlabError
from hvcore.inspect import format as show
from hvcore.inspect.records import Records
from hvcore.inspect.steps import ExitStep, Step
from hvcore.snapshot import Moment
from hvcore.spec.linuxboot import Elf, Kernel
from hvcore.worker import Listener, Worker

from .attacks import Attacks
from .changes import Changes
from .console import Console
from .controls import Controls
from .faults import ChosenFault
from .files import may_replace, snapshot_name, snapshots_here, taken
from .guests import guest_key, guest_words
from .lens import LensView
from .moments import Moments, when
from .pagemap import PageMap
from .proof import ProofView
from .registers import Registers
from .reporting import ReportLink, can_report, report_path
from .selection import Selection
from .table import DmaTable, FaultTable, RunTable, Table
from .verdict import Verdict
from .views import E820View, GraphView, TimelineView
from .walk import WalkExplainer

__all__ = ["DEFAULT_MACHINE", "Workbench"]

T = TypeVar("T")
DEFAULT_MACHINE = "nvme-desktop-16g"
SIDE_BY_SIDE = "repeat(auto-fit, minmax(min(100%, 430px), 1fr))"
"""Grid columns: two where there is room, one where there is not."""
BEFORE = "Go back before this"
UNKEPT = ("nothing of the machine's past is kept: tick 'keep moments' in the tab History and reboot; then the machine can go back to "
          "before this")
SHELL_HINT = "a command for its shell"


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
        self._chosen_fault = ChosenFault(self.selection)
        self.worker = Worker(_Ear(self))
        self._ready = False
        self.machine = machine if isinstance(machine, Machine) else self.worker.load(machine).result()
        self._given = self.machine
        self.before: Run | None = None
        self._shown: Run | None = None
        self._left: Machine | None = None
        self._named: tuple[Elf | Kernel | None, str] = (None, "")
        self._state = ""
        self._keeping: tuple[Machine, float | None] | None = None
        run = self.machine.run or self.worker.boot(self.machine).result()
        self.controls = Controls(self.machine.name, self.guest, run.config, self._pressed, self._show_pending)
        self.controls.buttons["report"].layout.display = self.controls.files.layout.display = None if can_report() else "none"
        self.controls.file.value = self._file = snapshot_name(self.machine.name, self.guest)
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
        for table in (self.faults, self.dma):
            table.act, table.on_act = BEFORE, self._go_before
        self.moments = Moments(self._keep, self._remember, self._go_back)
        self.steps = Table(Records(Step), s)
        self.changes = Changes(s)
        self.attacks = Attacks(lambda: self.machine, s, self._attack, self._boot_policy)
        self.proof = ProofView(run, s, guard=lambda: self.machine.still(), clock=lambda: self.machine.pc.clock.now, at_once=False)
        self.vmm_console = Console("Core's console")
        self.guest_console = Console("Guest's console", self._command, "help", lambda key: self._type(key))
        self.second_console = Console("Second guest's console", lambda line: self._command(line, 2), "help")

    def _lay_out(self) -> None:
        tabs = {"Walk, step by step": self.walk, "History": self.moments, "Attacks": self.attacks, "Proof": self.proof,
                "DMA requests": self.dma, "Protection window": self.timeline, "Registers": self.registers,
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

    @property
    def guest(self) -> str:
        """The key of the guest that runs, as `widgets.guests` has it."""
        guest = self.machine.guest
        if not self._named[1] or self._named[0] is not guest:
            self._named = guest, guest_key(guest)
        return self._named[1]

    # --- doing

    def _pressed(self, name: str) -> None:
        """A button was clicked.  Only what takes no time is done here; the rest is the worker's.  A second click may come too late."""
        if self.controls.buttons[name].disabled:
            return
        actions: dict[str, Callable[[], object]] = {
            "reboot": self._boot, "stop": self._stop, "resume": lambda: self.worker.resume(self.machine),
            "step": lambda: self.worker.step(self.machine), "step_exit": lambda: self.worker.step_exit(self.machine),
            "report": self._report, "save": self._save, "restore": self._restore}
        actions[name]()

    def _boot(self) -> None:
        """Boots the chosen machine with the chosen guest and options, once; one that cannot be had leaves the old one in its place."""
        if self._state == "running":
            return
        name, wanted, config = self.controls.machine.value, self.controls.guest.value, self.controls.options.config
        self._allow("running")
        self.verdict.say("running", f"booting {name}, {guest_words(wanted)}")
        self.verdict.say_pending("")

        def boot() -> None:
            guest = self.machine.guest if wanted == self.guest else wanted
            machine = self._chosen(name)
            self.before = self.machine.run if machine is self.machine else None
            if machine is not self.machine:
                self._left = self.machine
            self.machine = machine
            if (wish := (machine, self.moments.every_ms(wanted.startswith("linux")))) != self._keeping and (wish[1] != 0 or self._keeping):
                machine.keep_history(wish[1])
                self._keeping = wish
            self.worker.boot(machine, config, guest=guest)
        self.worker.call(boot)

    def _settle(self, booted: bool) -> None:
        """A machine that has begun to run is the one that counts; one that could not begin gives way to the one before."""
        left, self._left = self._left, None
        if left is None:
            return
        gone = left if booted else self.machine
        self.machine = self.machine if booted else left
        if gone not in (self.machine, self._given):
            gone.close()

    def _stop(self) -> None:
        """Stops what is at work; where that had not yet begun nobody else says so."""
        def rest() -> None:
            if self._state == "running":
                self._settle(self.machine.run is not None)
                self.refresh()
        self.worker.stop()
        self.worker.call(rest)

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
            config = self.run.config if self.machine.linux else None
            if config or ATTACKS[name].early or self.machine.state != "waiting":
                self.before = self.machine.run
            self.worker.attack(self.machine, name, config, device)
        self.worker.call(attack)

    def _report(self) -> None:
        """Writes the report of the current run beside the notebook, and links it."""
        def report() -> None:
            from hvcore.report import write_report
            path = report_path(self.machine.name, self.run.number)
            write_report(self.machine, path, progress=lambda words: self.verdict.say("running", words))
            self.link.show(path)
            self.verdict.show_run(self.run, guest_words(self.guest))
            self._allow(self.machine.state)
        self._allow("running")
        self.controls.buttons["stop"].disabled = True
        self.verdict.say("running", "report")
        self.worker.call(report)

    def _command(self, line: str, guest: int = 1) -> None:
        self._type("\x03" if self.machine.linux and line == "^C" else line + "\n", guest)

    def _type(self, text: str, guest: int = 1) -> None:
        """Input for a guest, which takes it at once if it is at work."""
        try:
            if self.machine.ended:
                raise HvlabError(f"there is no guest to type to: {self.machine.ended.why}")
            self.worker.type(self.machine, text, guest)
        except HvlabError as e:
            self.verdict.say("error", str(e))

    # --- the past, and files

    def _keep(self) -> None:
        """The box was used: moments are kept from now on, or none."""
        self._keeping = self.machine, self.moments.every_ms(self.machine.linux)
        self.worker.keep_history(*self._keeping)

    def _remember(self) -> None:
        def told(moment: Moment) -> None:
            self.moments.tell(f"Moment {moment.number} is kept, {when(moment.time)} after power-on.")
        self._busy("remembering", lambda: self.worker.remember(self.machine), told)

    def _go_back(self, number: int) -> None:
        """To a moment of the table."""
        if found := next((m for m in self.machine.snapshots if m.number == number), None):
            self._rewind(found)

    def _go_before(self, record: object) -> None:
        """To the last moment before a fault or a request."""
        if self.machine.snapshots:
            self._rewind(record)
        else:
            self.verdict.say("error", UNKEPT)

    def _rewind(self, to: object) -> None:
        def told(moment: Moment) -> None:
            words = f"gone back to moment {moment.number}, {when(moment.time)} after power-on"
            self.moments.tell(f"{words.capitalize()}. The views show the machine as it was; Step, Next exit and Go on go from there.")
            self.verdict.say_progress(words)
        self._busy("going back", lambda: self.worker.rewind(self.machine, to), told)

    def _save(self) -> None:
        """Puts the machine into the file that is named."""
        def save() -> "Future[int]":
            may_replace(path := taken(self.controls.file.value))
            return self.worker.save(self.machine, path, lambda words: self.verdict.say_progress(f"saving {path}: {words}"))
        self._busy("saving", save, lambda size: self.verdict.say_progress(f"saved: {self.controls.file.value}, {show.size(size)}"))

    def _restore(self) -> None:
        """Makes the machine what the one in the file was."""
        def restore() -> "Future[Machine]":
            path = taken(self.controls.file.value)
            self.verdict.say_progress(f"restoring {path}")
            return self.worker.load_snapshot(self.machine, path)
        self._busy("restoring", restore, lambda _machine: self.verdict.say_progress(f"restored: {self.controls.file.value}"))

    def _busy(self, doing: str, begin: "Callable[[], Future[T]]", told: Callable[[T], None]) -> None:
        """Begins what cannot be stopped; `told` is called with what came of it, when that is shown."""
        def over(done: "Future[T]") -> None:
            if not done.cancelled() and done.exception() is None:
                told(done.result())
        self._allow("running")
        self.controls.buttons["stop"].disabled = True
        self.verdict.say("running", f"{doing}: {self.machine.name}")
        try:
            begin().add_done_callback(over)
        except HvlabError as e:
            self.hear_failed(e)

    def _take(self, machine: Machine) -> None:
        """The machine is the one that was restored: what is chosen is what it has."""
        if machine is self.machine:
            self.before = self._shown
        else:
            self._left, self.machine, self.before = self.machine, machine, None
        chosen = self.controls
        chosen.machine.options = list(dict.fromkeys([*chosen.machine.options, machine.name]))
        chosen.machine.value = machine.name
        chosen.guest.look(self.guest)
        chosen.guest.value = self.guest
        chosen.options.choose(self.run.config)

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
            self.verdict.show_progress(machine.name, guest_words(self.guest), machine.progress)

    def hear_finished(self, machine: Machine | None, result: Any) -> None:
        """A machine has done something: what is shown is shown anew."""
        if machine is None or not self._ready or self.machine.run is None:
            return
        if isinstance(result, Records):
            self.steps.show(result)
        elif isinstance(result, ExitStep):
            exits = [*self.steps.records, result] if self.steps.records.kind is ExitStep else [result]
            self.steps.show(Records(ExitStep, exits))
        elif isinstance(result, Machine):
            self._take(result)
        self._settle(True)
        self.refresh()
        if isinstance(result, Attack):
            self.attacks.one.show(result, self.run)

    def hear_failed(self, error: BaseException) -> None:
        """Something could not be done: a mistake of the user's in a sentence, one of ours as such."""
        if not self._ready:
            return
        if self.machine.run is None:
            self._settle(False)
        if self.machine.run is not None and self.machine.run is not self._shown:
            self.refresh()
        self._allow(self.machine.state)
        self._show_pending()
        mine = f"this is a fault of hvlab itself: {type(error).__name__}: {error}"
        self.verdict.say_progress("")
        self.verdict.say("error", str(error) if isinstance(error, HvlabError) else mine)

    # --- showing

    def refresh(self) -> None:
        """Shows the machine's current run as it is now."""
        with self.machine.still():
            run = self.run
            self.verdict.show_run(run, guest_words(self.guest))
            for view in (self.faults, self.dma, self.runs, self.registers, self.lens, self.walk):
                view.show_run(run)
            for picture in (self.e820, self.graph, self.timeline, self.pages):
                picture.show(run)
            self.proof.show_run(run, prove=self.tabs.selected_index == self._proof_tab)
            self._chosen_fault.show(run, new=run is not self._shown)
            self._shown = run
            self.moments.show(self.machine.snapshots)
        self._show_changes()
        self._show_chosen()
        self.show_consoles()
        self._show_pending()
        self._allow(self.machine.state)

    def _allow(self, state: str) -> None:
        """What can be done in a state of the machine can be pressed."""
        self._state = state
        self.controls.allow(state)
        self.attacks.one.allow(state, self.machine.linux)
        self.moments.enabled = self.faults.can_act = self.dma.can_act = self.verdict.can_apply = state != "running"

    def _show_changes(self) -> None:
        """The tab with what changed since the run before, where it is open."""
        before = self.before
        if self.tabs.selected_index == self._changes_tab and before is not None and before is not self.run and not before.live:
            with self.machine.still():
                self.changes.show(before, self.run)

    def show_consoles(self) -> None:
        """The consoles as they are now; that of a second guest where there is one."""
        if not self._ready or self.machine.run is None:
            return
        pc, residents = self.machine.pc, self.machine.residents
        self.vmm_console.show(pc.debug)
        self.guest_console.show(pc.serial)
        if residents:
            self.second_console.show(residents.of(2).seat.serial)
        there = (self.guest_console, *([self.second_console] if residents else []), self.vmm_console)
        if self._consoles.children != there:
            self._consoles.children = there

    def _show_chosen(self) -> None:
        """The guest's names, and what its files are called; a name that a person typed stays."""
        linux, guest = self.machine.linux, self.guest
        self.controls.guest.look(guest)
        self.guest_console.describe(f"Guest's console ({guest_words(guest)})", SHELL_HINT if linux else "help", linux)
        name = snapshot_name(self.machine.name, guest)
        if self.controls.file.value == self._file:
            self.controls.file.value = name
        self._file = name
        self.controls.file.options = snapshots_here()

    def _show_pending(self) -> None:
        if self.machine.run is None:
            return
        words = [self.controls.options.pending_words(self.run.config)]
        machine, guest = self.controls.machine.value, self.controls.guest.value
        others = [f"guest {guest_words(guest)}"] if guest != self.guest else []
        others += [f"machine {machine}"] if machine != self.machine.name else []
        words += [f"<strong>Pending:</strong> {html.escape(other)} &ndash; reboot to apply" for other in others]
        self.verdict.say_pending("<br>".join(filter(None, reversed(words))))

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
