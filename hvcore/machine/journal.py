"""What happened to translation since power-on, and the phases of the boot, in the order in which they came.

Virtual time stands still while firmware and the core run: what they do has a nominal time only, `EVENT_NS` after what was before it, and
a phase `PHASE_NS`.  From the guest's first instruction on, time is the clock's behind these.
"""

from collections import deque
from collections.abc import Callable

from ..spec.happening import Happening
from ..spec.vtd import ADDRESS, GSTS, PMEN
from .clock import Clock
from .vtd.unit import RemappingUnit

__all__ = ["PHASE_NS", "Journal"]

EVENT_NS, PHASE_NS = 1_000, 1_000_000
_SWITCHES = {"TE": "TES", "IRE": "IRES"}
"""Commands that switch something on or off, with their bit in GSTS."""


class Journal:
    """The newest happenings of a machine, `happenings`, oldest first, `count` of them in all; `begun` is told each phase."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self._spent = 0
        self._nominal = True
        self._protected: dict[int, tuple[tuple[int, int], ...] | None] = {}
        self.count = 0
        self.happenings: deque[Happening] = deque(maxlen=4096)
        self.begun: Callable[[str], None] = _unheard
        self._note("power-on")

    def _note(self, what: str, unit: int | None = None, address: int | None = None, ranges: tuple[tuple[int, int], ...] = (),
              phase: str = "", empty: bool = False) -> None:
        if self._nominal and self.count:
            self._spent += PHASE_NS if phase else EVENT_NS
        self.happenings.append(Happening(self._clock.now + self._spent, self._nominal, what, unit, address, ranges, phase, empty))
        self.count += 1

    @property
    def ahead(self) -> int:
        """Nanoseconds by which times here are ahead of the clock's."""
        return self._spent

    def phase(self, name: str, in_guest: bool = False) -> None:
        """A phase begins; with `in_guest` the clock counts from here on."""
        self._note("phase", phase=name)
        self.begun(name)
        self._nominal = self._nominal and not in_guest

    def guest_ready(self) -> None:
        """The guest's monitor says that it is ready."""
        self._note("guest ready")

    def unit_changed(self, unit: RemappingUnit, command: str) -> None:
        """A unit has carried out a command of GCMD, or PMEN or one of its bounds was written."""
        if command == "PMEN":
            self._protection(unit)
        elif command == "SRTP":
            self._note(command, unit.base, unit.root, empty=_empty(unit))
        elif command == "SIRTP":
            self._note(command, unit.base, unit.interrupt_table)
        elif bit := _SWITCHES.get(command):
            on = GSTS.get(unit.register("GSTS"), bit)
            self._note(f"{command} {'on' if on else 'off'}", unit.base, empty=bool(on) and command == "TE" and _empty(unit))

    def _protection(self, unit: RemappingUnit) -> None:
        """Notes what is protected where that is not what it was; None stands for off."""
        now = unit.protected if PMEN.get(unit.register("PMEN"), "EPM") else None
        if now != self._protected.get(unit.base):
            self._note("PMEN off" if now is None else "PMEN on", unit.base, ranges=now or ())
        self._protected[unit.base] = now


def _empty(unit: RemappingUnit) -> bool:
    """Whether no entry of the root table that the unit has latched is present; each has 16 bytes, P is bit 0."""
    table = unit.root & ADDRESS
    return not unit.memory.backed(table, 4096) or not any(byte & 1 for byte in unit.memory.read(table, 4096)[::16])


def _unheard(phase: str) -> None:
    """Where nobody asks for phases."""
