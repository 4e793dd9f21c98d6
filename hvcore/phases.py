"""The phases of a boot: how long each took, and what the machine does in it; and how far it has come."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["DOING", "Phases", "Progress", "doing", "stage_of"]

DOING = {
    "firmware": "the firmware laid its tables",
    "vmm memory": "the core chose its memory",
    "vmm laid": "the core laid its code and its key",
    "acpi": "the core read the ACPI tables",
    "pci": "the core scanned PCI",
    "iommu tables": "the core built the tables of domain 0",
    "iommu on": "the core switched translation on",
    "guest": "the core loaded the guest",
    "guest runs": "the guest ran",
}
"""What happens in each phase, in the order of a boot."""


def doing(phase: str) -> str:
    """What the machine does in a phase, in words."""
    return DOING.get(phase, f"in the phase {phase!r}")


@dataclass
class Phases:
    """Seconds that each phase took by `clock`."""

    clock: Callable[[], float]
    seconds: dict[str, float] = field(default_factory=dict)
    _name: str = ""
    _since: float = 0.0

    def enter(self, name: str) -> None:
        """The phase `name` begins; "" where none does."""
        now = self.clock()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now


_STAGES = (("kernel", re.compile(r"Linux version ")),
           ("drivers", re.compile(r"\] (?:PCI: Probing|pci_bus|Serial: 8250|clocksource: Switched)")), ("disk", re.compile(r"\] nvme ")),
           ("init", re.compile(r"\] Run \S+ as init process")), ("shell", re.compile(r"^lab: ready")))
"""What a Linux does, by the first line that shows it, in this order."""
INSTRUCTIONS = 7.7
"""Instructions in a block of code, about: counted one by one over the boots of Debian's 6.1 and 6.12 it was 7.67 and 7.64."""


def stage_of(line: str, stage: str) -> str:
    """What a Linux does once it has printed `line`, which was in `stage` before."""
    names = [name for name, _ in _STAGES]
    return next((name for name, shows in reversed(_STAGES) if names.index(name) > names.index(stage) and shows.search(line)), stage)


@dataclass(frozen=True)
class Progress:
    """How far a machine has come: its phase (None where nothing is under way), virtual nanoseconds and seconds of work since power-on,
    blocks of code executed, and the last line on the guest's console."""

    phase: str | None
    virtual_ns: int
    seconds: float
    blocks: int
    line: str

    @property
    def instructions(self) -> int:
        """Instructions executed, about: blocks are counted."""
        return round(self.blocks * INSTRUCTIONS)

    def __str__(self) -> str:
        times = f"{self.virtual_ns / 1e9:.1f} s of its time in {self.seconds:.1f} s"
        counted = f", about {self.instructions / 1e6:,.0f} million instructions" if self.blocks else ""
        return f"{self.phase or 'at rest'}: {times}{counted}{f': {self.line}' if self.line else ''}"
