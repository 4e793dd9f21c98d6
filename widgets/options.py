"""The core's options as controls, by BitVisor's names.  What is chosen is what the next boot will use, not what runs now."""

import html
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets as ipw

from hvcore.vmm.config import MAP_ENDS, PROFILES, Config

__all__ = ["Options", "choice"]

SWITCHES = {
    "VTD_TRANS": "The core drives the remapping units itself: devices reach only what its domain 0 maps",
    "IOMMU_SUPERPAGES": "2 MiB pages above 4 GiB, where the units have them",
    "HIDE_VTD_REGS": "The units' registers are withheld from the guest's CPU",
}


class Options:
    """Switches and choices; `config` is what they say, `on_change` is called after each change."""

    def __init__(self, config: Config, on_change: Callable[[], None]):
        self._on_change = on_change
        self.config = config
        self._quiet = False
        self.switches = {name: ipw.ToggleButton(tooltip=tip, layout=ipw.Layout(width="auto")) for name, tip in SWITCHES.items()}
        self.profile = choice("PROFILE", PROFILES, config.PROFILE, "bitvisor: as measured, bugs included; mended: as it should be")
        ends = "; ".join(f"{name}: {words}" for name, words in MAP_ENDS.items())
        self.map_end = choice("IOMMU_MAP_END", MAP_ENDS, config.IOMMU_MAP_END, ends)
        self._fill(config)
        self.profile.observe(self._new_profile, "value")
        for control in (self.map_end, *self.switches.values()):
            control.observe(self._changed, "value")

    @property
    def choices(self) -> list[ipw.Dropdown]:
        """What is chosen out of several."""
        return [self.profile, self.map_end]

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
        for name, control in self.switches.items():
            control.value = getattr(config, name)
        self._quiet = False
        self._describe()

    def _new_profile(self, _change: Any) -> None:
        """Another profile brings its own values; VTD_TRANS, which no profile sets, stays."""
        if not self._quiet:
            self.config = self.config.change(PROFILE=self.profile.value)
            self._fill(self.config)
            self._on_change()

    def _changed(self, _change: Any) -> None:
        if not self._quiet:
            switches = {name: control.value for name, control in self.switches.items()}
            self.config = self.config.change(IOMMU_MAP_END=self.map_end.value, **switches)
            self._describe()
            self._on_change()

    def _describe(self) -> None:
        """The switches say their state in words, not by their colour alone."""
        for name, control in self.switches.items():
            control.description = f"{name}={_letter(control.value)}"


def _letter(value: Any) -> str:
    if isinstance(value, bool):
        return "y" if value else "n"
    return ",".join(value) or "none" if isinstance(value, list) else str(value)


def choice(name: str, options: Iterable[str], value: str, tip: str) -> ipw.Dropdown:
    """One out of several, with its name before it."""
    wide = {"description_width": "initial"}
    return ipw.Dropdown(options=list(options), value=value, description=name, tooltip=tip, style=wide, layout=ipw.Layout(width="auto"))
