"""The core's options as controls, by BitVisor's names.  What is chosen is what the next boot will use, not what runs now."""

import html
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets as ipw

from hvcore.errors import BadConfig
from hvcore.vmm.config import MAP_ENDS, POLICIES, PROFILES, Config

__all__ = ["OWN", "Options", "choice"]

SWITCHES = {
    "VTD_TRANS": "The core drives the remapping units itself: devices reach only what its domain 0 maps",
    "EARLY_PROTECTION": "The core's memory is closed to devices before anything lies in it",
    "INTERRUPT_REMAPPING": "No interrupt of a device gets through that the core has not allowed",
    "HIDE_VTD_REGS": "The units' registers are withheld from the guest's CPU",
}
MORE = {
    "IOMMU_SUPERPAGES": "2 MiB pages above 4 GiB, where the units have them",
    "DMAR_PASS_THROUGH": "The guest drives the units, under the core's eyes; needs VTD_TRANS=n",
    "NVME_DRIVER": "The core's own driver is between the guest and the first NVMe controller, and encrypts a part of the disk",
    "TINYVISOR": "The machine is split between two guests",
}
"""Switches that are shown when more is wanted."""
EXCLUDED = {
    "DMAR_PASS_THROUGH": {"VTD_TRANS": False, "TINYVISOR": False, "DISABLE_VTD": True},
    "VTD_TRANS": {"DMAR_PASS_THROUGH": False},
    "TINYVISOR": {"DMAR_PASS_THROUGH": False},
}
"""What a switch that is pressed releases or presses with it."""
OWN = "your own"
"""What the policy is called when the options are nobody's."""


class Options:
    """Switches and choices; `config` is what they say, `on_change` is called after each change.

    `more` is the button that shows the switches in `hidden`.
    """

    def __init__(self, config: Config, on_change: Callable[[], None]):
        self._on_change = on_change
        self.config = config
        self._quiet = False
        self._policies = {name: Config(**options) for name, options in POLICIES.items()}
        self.switches = {name: ipw.ToggleButton(tooltip=tip, layout=ipw.Layout(width="auto")) for name, tip in (SWITCHES | MORE).items()}
        self.policy = choice("Policy", [OWN, *POLICIES], OWN, "sets all options at once, as the rows of the attacks' grid have them")
        self.profile = choice("PROFILE", PROFILES, config.PROFILE, "bitvisor: as measured, bugs included; mended: as it should be")
        ends = "; ".join(f"{name}: {words}" for name, words in MAP_ENDS.items())
        self.map_end = choice("IOMMU_MAP_END", MAP_ENDS, config.IOMMU_MAP_END, ends)
        self.more = ipw.ToggleButton(tooltip="Shows or hides the other options", layout=ipw.Layout(width="auto"))
        self.hidden = ipw.HBox([self.switches[name] for name in MORE], layout=ipw.Layout(flex_flow="row wrap", grid_gap="4px 12px"))
        self._fill(config)
        self.profile.observe(self._new_profile, "value")
        self.policy.observe(self._new_policy, "value")
        self.more.observe(lambda _change: self._describe(), "value")
        self.map_end.observe(lambda change: self._changed("IOMMU_MAP_END", change.new), "value")
        for name, control in self.switches.items():
            control.observe(lambda change, name=name: self._changed(name, change.new), "value")

    @property
    def choices(self) -> list[ipw.Dropdown]:
        """What is chosen out of several."""
        return [self.policy, self.profile, self.map_end]

    @property
    def shown(self) -> list[ipw.ToggleButton]:
        """The switches that are always there, and the button for more."""
        return [*(self.switches[name] for name in SWITCHES), self.more]

    def pending(self, running: Config) -> dict[str, Any]:
        """The options that differ from those of the running core."""
        return {name: value for name, value in self.config.to_dict().items() if value != running.to_dict()[name]}

    def pending_words(self, running: Config) -> str:
        """The same as HTML; empty where nothing is pending."""
        words = ", ".join(f"{name}={_letter(value)}" for name, value in self.pending(running).items())
        return f"<strong>Pending:</strong> {html.escape(words)} &ndash; reboot to apply" if words else ""

    def choose(self, config: Config) -> None:
        """Chooses everything at once."""
        self.config = config
        self._fill(config)
        self._on_change()

    def _fill(self, config: Config) -> None:
        """Sets every control without telling anybody."""
        self._quiet = True
        self.profile.value, self.map_end.value = config.PROFILE, config.IOMMU_MAP_END
        self.policy.value = next((name for name, known in self._policies.items() if known == config), OWN)
        for name, control in self.switches.items():
            control.value = getattr(config, name)
        self._quiet = False
        self._describe()

    def _new_profile(self, change: Any) -> None:
        """Another profile brings its own values; VTD_TRANS, which no profile sets, stays."""
        self._changed("PROFILE", change.new)

    def _new_policy(self, change: Any) -> None:
        """A policy sets everything; choosing `OWN` leaves everything as it is."""
        if not self._quiet:
            self.choose(self._policies.get(change.new, self.config))

    def _changed(self, name: str, value: Any) -> None:
        """One control was used: what excludes it goes; what cannot be goes back to what it was."""
        if self._quiet:
            return
        with_it = EXCLUDED.get(name, {}) if value is True else {}
        try:
            self.config = self.config.change(**{name: value} | with_it)
        except BadConfig:
            self._fill(self.config)
            return
        self._fill(self.config)
        self._on_change()

    def _describe(self) -> None:
        """The switches say their state in words, not by their colour alone; what is set among the hidden ones is told, too."""
        for name, control in self.switches.items():
            control.description = f"{name}={_letter(control.value)}"
        there = [f"{name}=y" for name in MORE if self.switches[name].value]
        self.hidden.layout.display = "flex" if self.more.value else "none"
        closed = f"More options ({', '.join(there)})" if there else "More options"
        self.more.description = "Fewer options" if self.more.value else closed


def _letter(value: Any) -> str:
    if isinstance(value, bool):
        return "y" if value else "n"
    return ",".join(value) or "none" if isinstance(value, list) else str(value)


def choice(name: str, options: Iterable[str], value: str, tip: str) -> ipw.Dropdown:
    """One out of several, with its name before it."""
    wide = {"description_width": "initial"}
    return ipw.Dropdown(options=list(options), value=value, description=name, tooltip=tip, style=wide, layout=ipw.Layout(width="auto"))
