"""The phases of a boot: how long each took, and what the machine does in it."""

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["DOING", "Phases", "doing"]

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
