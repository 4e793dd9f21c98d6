"""The workbench's controls: which machine with which options, and what it shall do: boot, stop, go on, step."""

from collections.abc import Callable
from typing import Any

import ipywidgets as ipw

from hvcore.sources import shipped
from hvcore.vmm.config import Config

from .guests import GuestChoice
from .options import Options, choice

__all__ = ["Controls"]

BUTTONS = {
    "reboot": ("Reboot", "Power off, and boot with the options chosen here", "primary"),
    "stop": ("Stop", "Stop the machine where it is; it can go on", ""),
    "resume": ("Go on", "Go on from where it was stopped", ""),
    "step": ("Step", "Execute one instruction of the guest", ""),
    "step_exit": ("Next exit", "Let the guest run to its next exit to the core", ""),
    "report": ("Report", "Write a report of this run beside the notebook: one HTML file that works without a network", ""),
}
"""Name: label, what it does, style."""

USABLE = {
    "running": {"stop"},
    "stopped": {"reboot", "resume", "step", "step_exit", "report"},
    "waiting": {"reboot", "step", "step_exit", "report"},
    "ended": {"reboot", "report"},
    "off": {"reboot"},
}
"""Which buttons do something in which state of the machine."""
FILES = {
    "save": ("Save", "Put the whole machine as it stands into this file", ""),
    "restore": ("Restore", "Make the machine what the one in this file was", ""),
}
STORABLE = ("stopped", "waiting", "ended")
"""States in which a machine can be saved."""


class Controls(ipw.VBox):
    """Chooser, options, buttons and a file; `on_button(name)` is called for each click, `on_change()` when another machine, guest or
    option is chosen.  `guest` is the key of the one that runs."""

    def __init__(self, machine: str, guest: str, config: Config, on_button: Callable[[str], None], on_change: Callable[[], None]):
        self.machine = choice("Machine", dict.fromkeys([machine, *shipped()]), machine, "takes effect at the next boot")
        self.options, self.guest = Options(config, on_change), GuestChoice(guest, on_change)
        self.file = ipw.Combobox(description="Snapshot", continuous_update=False, tooltip="A file in this notebook's folder",
                                 style={"description_width": "initial"}, layout=ipw.Layout(width="min(100%, 430px)"))
        self.buttons = {name: _button(*how) for name, how in (BUTTONS | FILES).items()}
        for name, button in self.buttons.items():
            button.on_click(lambda _button, name=name: on_button(name))
        self.machine.observe(lambda _change: on_change(), "value")
        self.files = _row([self.file, *(self.buttons[name] for name in FILES)])
        rows = ([self.machine, *self.options.choices], [self.guest, *self.options.shown], [self.options.hidden],
                [self.buttons[name] for name in BUTTONS])
        super().__init__([*map(_row, rows), self.files])
        self.add_class("hvlab-controls")

    def allow(self, state: str) -> None:
        """Buttons that would do nothing in a state of the machine are off."""
        for name, button in self.buttons.items():
            button.disabled = name not in USABLE[state] | _files(state)


def _files(state: str) -> set[str]:
    """What can be done with a file."""
    return ({"save"} if state in STORABLE else set()) | ({"restore"} if state != "running" else set())


def _button(label: str, tip: str, kind: str) -> ipw.Button:
    return ipw.Button(description=label, tooltip=tip, button_style=kind, layout=ipw.Layout(width="auto"))


def _row(children: list[Any]) -> ipw.HBox:
    return ipw.HBox(children, layout=ipw.Layout(flex_flow="row wrap", align_items="center", grid_gap="4px 12px"))
