"""What can happen to a machine's translation, as a value."""

from dataclasses import dataclass

__all__ = ["Happening"]


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened at `time` (nanoseconds since power-on, nominal or by the virtual clock).

    `what`: `power-on`, `SRTP`, `SIRTP`, `TE on`, `TE off`, `IRE on`, `IRE off`, `PMEN on`, `PMEN off`, `phase` or `guest ready`.  `unit` is
    the register base of the unit it happened to.  `address` is the root table register for SRTP, the interrupt table register for SIRTP;
    `ranges` are the protected regions that PMEN enforces, half-open, host-physical; `phase` the name of the phase that began.  `empty`
    says of SRTP and of TE on that no entry of the latched root table was present then: whoever asks is refused.
    """

    time: int
    nominal: bool
    what: str
    unit: int | None = None
    address: int | None = None
    ranges: tuple[tuple[int, int], ...] = ()
    phase: str = ""
    empty: bool = False
