"""Two guests on one machine, as the session runs them: each can die alone, and the other goes on."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from . import outcome
from .errors import Unreadable
from .machine.cpu import StopKind
from .machine.partition import Partition
from .machine.pc import Pc
from .vmm.exits import Exits, GuestDead
from .vmm.heap import Panic
from .vmm.tiny.exits import TinyExits

__all__ = ["Resident", "Residents"]


@dataclass
class Resident:
    """A guest on its processor: `seat` is the machine itself for guest 1, `ended` how the guest died, None while it lives."""

    number: int
    seat: Pc | Partition
    exits: Exits
    ended: outcome.Ending | None = None

    @property
    def base(self) -> int:
        """Its block of the core's memory (host-physical)."""
        return self.exits.base

    def die(self, why: str) -> None:
        """It cannot go on; its processor stops."""
        self.ended = self.ended or outcome.Ending("guest-crash", why)
        self.seat.cpu.stop(StopKind.REQUEST, why)

    def park(self) -> None:
        """Its processor never runs again, and its timer, which could wake nobody, stops."""
        self.seat.parked = True
        self.seat.pit.reset()


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """The policy's turn for one of two guests."""

    residents: "Residents"
    resident: Resident
    do: Callable[[], None]

    def __call__(self) -> None:
        self.residents.guarded(self.resident, self.do)


class Residents(Iterable[Resident]):
    """Both guests.  `panic` is told what the core cannot bear at an exit of either, `over` says whether the machine as a whole stops."""

    def __init__(self, pc: Pc, exits: tuple[Exits, Exits], panic: Callable[[str], None], over: Callable[[], bool]):
        self._pc, self._panic, self._over = pc, panic, over
        self._all = (Resident(1, pc, exits[0]), Resident(2, pc.second(), exits[1]))
        second = self._all[1]
        second.seat.cpu.on_door = _Turn(self, second, second.exits.on_door)
        for resident in self._all:
            if isinstance(resident.exits, TinyExits):
                self._wire_ports(resident, resident.exits)

    def _wire_ports(self, resident: Resident, exits: TinyExits) -> None:
        resident.seat.cpu.on_io = _Turn(self, resident, exits.on_io)

    def guarded(self, resident: Resident, do: Callable[[], None]) -> None:
        """The policy's turn; what a guest cannot survive ends it, what the core cannot bear ends the run."""
        try:
            do()
        except GuestDead as death:
            resident.die(str(death))
        except (Panic, Unreadable) as panic:
            self._panic(str(panic))

    def __iter__(self) -> Iterator[Resident]:
        return iter(self._all)

    def of(self, number: int) -> Resident:
        """Guest 1 or 2."""
        return self._all[number - 1]

    def go(self, gate: Callable[[], None], awaited: Callable[[], int | None]) -> outcome.Ending | None:
        """Lets both run until all that live wait, or the guest that is `awaited` does; how the whole run ended, None where a guest could
        go on."""
        schedule = self._pc.schedule
        assert schedule is not None

        def wanted() -> Resident | None:
            number = awaited()
            return None if number is None else self.of(number)

        def seat() -> Pc | Partition | None:
            resident = wanted()
            return resident.seat if resident else None

        while not self._over() and not ((resident := wanted()) and resident.ended):
            stopped = schedule.run(gate, seat)
            if stopped is None:
                break
            resident = next(r for r in self._all if r.seat is stopped[0])
            ending = resident.ended or outcome.of_stop(stopped[1])
            if self._over():
                break
            if ending.outcome == "vmm-panic":
                return ending
            resident.ended = ending
            resident.park()
        return self.ending if all(r.ended for r in self._all) else None

    @property
    def ending(self) -> outcome.Ending:
        """What the deaths of those that died come to."""
        return outcome.of_guests([(r.number, r.ended) for r in self._all if r.ended])
