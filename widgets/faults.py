"""Which fault is chosen when the machine has run again."""

from typing import TYPE_CHECKING, Any

from .selection import Selection
from .table import fault_choices

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["ChosenFault"]


class ChosenFault:
    """Where nothing is chosen, a new run's first fault is; a chosen fault is looked for in the new run.

    One that is not there is no longer chosen, its address still is; until something else is, the next run with a fault has it chosen.
    """

    def __init__(self, selection: Selection):
        self._selection = selection
        self._number = 0
        self._left: tuple[Any, ...] | None = None

    def show(self, run: "Run", new: bool) -> None:
        """Chooses what is to be chosen of a run; `new` says whether another was shown before."""
        chosen, faults = self._selection, run.faults
        lost = self._left is not None and self._left == self._values
        number = (0 if new else None) if chosen.nothing else self._number if lost else chosen.fault
        if number is None:
            return
        if lost and faults:
            number = min(number, len(faults) - 1)
        if number >= len(faults):
            chosen.fault, self._number = None, number
            self._left = self._values
        elif new or lost:
            chosen.choose(**fault_choices(run, faults)[number])

    @property
    def _values(self) -> tuple[Any, ...]:
        s = self._selection
        return s.address, s.space, s.device, s.domain, s.fault
