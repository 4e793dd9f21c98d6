"""The tab of attacks: one of them on the live guest, and all of them under every policy on a machine apart."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import ipywidgets as ipw
import traitlets

from hvcore import Machine, Run
from hvcore.attack import ATTACKS, Attack
from hvcore.attack.run import DEVICES
from hvcore.inspect.matrix import Matrix
from hvcore.inspect.records import html_table
from hvcore.vmm.config import POLICIES, Config
from hvcore.worker import Worker

from .drawing import Figure
from .evidence import attack_words, brief, choice_of, evidence_html, wire_attack, without_unit
from .matrix import MatrixView
from .selection import Selection
from .view import View, module, style

__all__ = ["AttackView", "Attacks"]

NOTHING = "The guest has not attacked yet."
RESTING = "no guest waits for a command now: the machine is booted anew for it"
LINUX = "the wicked driver is the lab guest's: the machine is booted anew with that, and this Linux ends"


class AttackView(View):
    """Chooses an attack and shows what came of it; `on_attack(name, device)` is called for the button, device None for the first there is.

    `allow` says whether it can be pressed.  Without `on_attack` the view shows results alone.
    """

    _esm = module("evidence", "attack")
    _css = style("matrix")
    attacks: traitlets.List[Any] = traitlets.List().tag(sync=True)
    devices: traitlets.List[Any] = traitlets.List().tag(sync=True)
    result: "traitlets.Dict[Any, Any]" = traitlets.Dict().tag(sync=True)
    of = traitlets.Unicode("").tag(sync=True)
    said = traitlets.Unicode(NOTHING).tag(sync=True)
    enabled = traitlets.Bool(True).tag(sync=True)
    boots = traitlets.Unicode("").tag(sync=True)
    takes = traitlets.Bool(False).tag(sync=True)

    def __init__(self, result: Attack | None = None, selection: Selection | None = None,
                 on_attack: Callable[[str, str | None], None] | None = None, **values: Any):
        super().__init__(selection, label="One attack by the guest that runs", takes=on_attack is not None, **values)
        self._on_attack = on_attack
        self.attacks, self.devices = attack_words(), list(DEVICES)
        self.on_msg(self._received)
        if result is not None:
            self.show(result)

    def show(self, result: Attack, run: Run | None = None) -> None:
        """Shows a result, and chooses what it is about; of a live `run`, also what a refused request would have done."""
        without = without_unit(run, result.fault) if run is not None and result.fault is not None else ""
        with self.hold_sync():
            after = ". The views show the machine after it." if self.takes else ""
            self.result, self.said = wire_attack(result, without), f"{result.attack}: {result.verdict}{after}"
            self.of = brief(Config(**result.config))
        choice, _ = choice_of(result)
        if choice:
            self.selection.choose(**choice)

    def allow(self, state: str, linux: bool) -> None:
        """A running machine cannot attack; one whose guest does not wait, or is a Linux, is booted for it, and the view says so."""
        self.enabled = state != "running"
        self.boots = LINUX if linux else "" if state in ("running", "waiting") else RESTING

    def _received(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        name, device = content.get("name"), content.get("device") or None
        if content.get("kind") == "attack" and self._on_attack and name in ATTACKS and device in (None, *DEVICES):
            self._on_attack(str(name), device)

    @property
    def figure(self) -> Figure:
        """The result and its evidence, without a picture."""
        if not self.result:
            return Figure(self.label, self.said, "")
        table = html_table("", ("attack", "verdict"), [[self.result["attack"], self.result["verdict"]]], (False, False))
        words = f"{self.result['attack']}: {self.result['verdict']}. {self.result['why']}"
        return Figure(self.label, words, "", table + evidence_html(self.result))


class Attacks(ipw.VBox):
    """One attack on the machine that `machine()` is, and the grid of all, on a machine of its own made from the same description.

    `on_attack(name, device)` and `on_boot(policy)` are called for their buttons.
    """

    def __init__(self, machine: Callable[[], Machine], selection: Selection, on_attack: Callable[[str, str | None], None],
                 on_boot: Callable[[str], None]):
        self._machine, self._on_boot = machine, on_boot
        self.one = AttackView(None, selection, on_attack)
        self.grid = MatrixView(None, selection, self._pressed)
        self._worker: Worker | None = None
        super().__init__([self.one, self.grid], layout=ipw.Layout(grid_gap="8px"))

    def _pressed(self, what: str, policy: str) -> None:
        if what == "boot":
            self._on_boot(policy)
        elif what == "stop" and self._worker:
            self._worker.stop()
        elif what == "run" and not self.grid.running:
            self.run()

    def run(self, policies: Sequence[str] = tuple(POLICIES), attacks: Sequence[str] = tuple(ATTACKS)) -> None:
        """Begins the grid anew, with these policies and attacks."""
        machine = Machine(self._machine().description)
        self.grid.begin(machine.name, policies, attacks)
        self._worker = self._worker or Worker()
        future = self._worker.matrix(machine, self.grid.add, self.grid.tell, policies, attacks)
        future.add_done_callback(lambda done: self._ended(done, machine))

    def _ended(self, done: "Future[Matrix]", machine: Machine) -> None:
        """The grid is done, was stopped, or was stopped before it began."""
        machine.close()
        if done.cancelled():
            self.grid.end("Stopped.")
        elif error := done.exception():
            self.grid.end(f"It came to an end: {error}.")
        else:
            self.grid.end("" if len(done.result()) == self.grid.whole else "Stopped.")

    def wait(self) -> None:
        """Returns when the grid is done."""
        if self._worker:
            self._worker.call(list).result()

    def close(self) -> None:
        """Stops the grid where it is."""
        if self._worker:
            self._worker.close()
        super().close()
