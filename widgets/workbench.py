"""The workbench: choose a machine and options, reboot, look at memory map, domains, permissions and faults, talk to the guest."""

import html
import threading
import time
from pathlib import Path
from typing import Any

import ipywidgets as ipw

from hvcore import Machine, Run
from hvcore.errors import HvlabError
from hvcore.outcome import OUTCOMES
from hvcore.sources import shipped

from .console import Console
from .options import Options, choice
from .scale import SCALES
from .views import views

__all__ = ["DEFAULT_MACHINE", "Workbench"]

DEFAULT_MACHINE = "nvme-desktop-16g"
COLOURS = {"up": "#009E73", "booting": "#E69F00"}
BAD = "#D55E00"
"""The edge of the status line; its words say the same."""


class Workbench(ipw.VBox):
    """Controls and views of one machine: a `Machine`, or what `Machine.load` takes.  One that has not run yet is booted.

    The machine stays usable from code; after a boot there, `refresh()` shows what is.
    """

    def __init__(self, machine: Machine | str | Path = DEFAULT_MACHINE, scale: str = "compressed"):
        self.machine = machine if isinstance(machine, Machine) else Machine.load(machine)
        self._given = self.machine
        self._lock = threading.Lock()
        run = self.machine.run or self.machine.boot()
        self.chooser = choice("Machine", dict.fromkeys([self.machine.name, *shipped()]), self.machine.name, "takes effect at the next boot")
        self.options = Options(run.config, self._show_pending)
        self.reboot = ipw.Button(description="Reboot", button_style="primary", tooltip="Power off, and boot with the options chosen above")
        self.scale = choice("Scale", SCALES, scale, "how addresses are laid out in the figures")
        self.pending, self.status, self.faults, self.found = (ipw.HTML() for _ in range(4))
        self.figures = [ipw.HTML() for _ in range(3)]
        self.address = ipw.Text(description="Address", placeholder="0x7a3e1000: what is known of it?", continuous_update=False)
        self.vmm_console = Console("Core's console")
        self.guest_console = Console("Guest's console", self._command, "help")
        self._connect()
        super().__init__([*self._controls(), self.status, *self.figures, self.faults, self.address, self.found, self.guest_console,
                          self.vmm_console])
        self.refresh()

    def _controls(self) -> list[ipw.HBox]:
        rows = ([self.chooser, *self.options.choices, self.scale], [*self.options.switches.values(), self.reboot, self.pending])
        return [ipw.HBox(row, layout=ipw.Layout(flex_flow="row wrap", align_items="center", grid_gap="4px 12px")) for row in rows]

    def _connect(self) -> None:
        self.chooser.observe(lambda _change: self._show_pending(), "value")
        self.reboot.on_click(lambda _button: self._guarded(self._boot))
        self.scale.observe(lambda _change: self._show_figures(), "value")
        self.address.observe(lambda _change: self._guarded(self._look), "value")

    @property
    def run(self) -> Run:
        """The machine's current run."""
        run = self.machine.run
        assert run is not None
        return run

    # --- doing

    def _guarded(self, action: Any, *arguments: Any) -> None:
        """One action at a time; a mistake of the user's becomes a sentence in the status line."""
        with self._lock:
            self.reboot.disabled = True
            try:
                action(*arguments)
            except HvlabError as e:
                self._say("error", str(e))
            except Exception as e:
                self._say("error", f"this is a fault of hvlab itself: {type(e).__name__}: {e}")
                raise
            finally:
                self.reboot.disabled = False

    def _boot(self) -> None:
        """Boots the chosen machine with the chosen options; where that machine cannot be had, the old one stays."""
        started = time.perf_counter()
        self._say("booting", self.chooser.value)
        machine = self._chosen()
        machine.boot(self.options.config, lambda phase: self._say("booting", f"{phase}, {time.perf_counter() - started:.1f} s"))
        if machine is not self.machine:
            if self.machine is not self._given:
                self.machine.close()
            self.machine = machine
        self.refresh()

    def _chosen(self) -> Machine:
        if self.chooser.value == self.machine.name:
            return self.machine
        return self._given if self.chooser.value == self._given.name else Machine.load(self.chooser.value)

    def _command(self, line: str) -> None:
        def type_it() -> None:
            self.run.guest.command(line)
            self.refresh()
        self._guarded(type_it)

    def _look(self) -> None:
        words = self.address.value.strip()
        try:
            address = int(words, 0)
        except ValueError:
            raise HvlabError(f"{words!r} is no address: write it like 0x7a3e1000") from None
        self.found.value = _div("hvlab-lens", self.run.lens(address)._repr_html_())

    # --- showing

    def refresh(self) -> None:
        """Shows the machine's current run as it is now."""
        run = self.run
        self._say(run.outcome, run.why)
        self._show_figures()
        self._show_pending()
        self.faults.value = _div("hvlab-faults", run.faults._repr_html_())
        self.vmm_console.show(run.console.vmm)
        self.guest_console.show(run.console.guest)

    def _show_figures(self) -> None:
        for box, figure in zip(self.figures, views(self.run, self.scale.value), strict=True):
            box.value = figure.html

    def _show_pending(self) -> None:
        words = self.options.pending_words(self.run.config)
        if self.chooser.value != self.machine.name:
            words = f"<strong>Pending:</strong> machine {html.escape(self.chooser.value)} &ndash; reboot to apply<br>{words}"
        self.pending.value = _div("hvlab-pending", words, ' role="status"')

    def _say(self, outcome: str, words: str) -> None:
        self.status.value = _status(outcome, words)

    @property
    def html(self) -> str:
        """Everything that is shown, without a kernel."""
        parts = [f"<h3>{html.escape(self.machine.name)}</h3><p><code>{html.escape(str(self.run.config))}</code></p>", self.status.value]
        parts += [box.value for box in (*self.figures, self.faults)]
        return "".join([*parts, self.guest_console.html, self.vmm_console.html])

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return (super()._repr_mimebundle_(**options) or {}) | {"text/html": self.html, "text/plain": repr(self.run)}


def _div(name: str, inside: str, more: str = "") -> str:
    return f'<div class="{name}" style="line-height:1.4"{more}>{inside}</div>'


def _status(outcome: str, words: str) -> str:
    meaning = OUTCOMES.get(outcome, "")
    said = f"{meaning}. {words}" if meaning else words
    inside = f'<strong class="hvlab-outcome">{html.escape(outcome)}</strong> <span class="hvlab-why">{html.escape(said)}</span>'
    edge = f"border-left:6px solid {COLOURS.get(outcome, BAD)};padding:4px 10px"
    return _div("hvlab-status", f'<div style="{edge}">{inside}</div>', ' role="status" aria-live="polite"')
