"""The global command register: one bit, one command, one status bit (VT-d, sections 10.4.4 and 10.4.5)."""

from dataclasses import dataclass

from ...spec.bits import Layout
from ...spec.vtd import CAP, ECAP, GCMD, GSTS

__all__ = ["COMMANDS", "Command", "asked"]


@dataclass(frozen=True, slots=True)
class Command:
    """A bit of GCMD and the bit of GSTS that answers it (None: the command is over before anyone can look).

    `sticky` bits stay as software leaves them, the others act once; without `capability` of the capability `register` it does nothing.
    """

    name: str
    status: str | None
    sticky: bool
    register: Layout | None = None
    capability: str = ""

    def supported(self, cap: int, ecap: int) -> bool:
        """Whether a unit with these capability registers carries it out."""
        return self.register is None or bool(self.register.get(cap if self.register is CAP else ecap, self.capability))

    def changes(self, gcmd: int, gsts: int) -> bool:
        """Whether writing `gcmd` asks for it."""
        wanted = bool(GCMD.get(gcmd, self.name))
        return wanted != bool(GSTS.get(gsts, self.status)) if self.sticky and self.status else wanted

    def answer(self, gcmd: int, gsts: int) -> int:
        """GSTS once it is done."""
        return GSTS[self.status].put(gsts, GCMD.get(gcmd, self.name)) if self.status else gsts


COMMANDS = (
    Command("SRTP", "RTPS", False),
    Command("SIRTP", "IRTPS", False, ECAP, "IR"),
    Command("SFL", "FLS", False, CAP, "AFL"),
    Command("WBF", None, False),
    Command("EAFL", "AFLS", True, CAP, "AFL"),
    Command("QIE", "QIES", True, ECAP, "QI"),
    Command("CFI", "CFIS", True, ECAP, "IR"),
    Command("IRE", "IRES", True, ECAP, "IR"),
    Command("TE", "TES", True),
)
"""Every command, in the order in which a write that asks for several is carried out here: pointers, buffers, then what is switched on
or off, translation last.  (The specification wants one a write and leaves more undefined.)"""


def asked(gcmd: int, gsts: int) -> tuple[Command, ...]:
    """The commands that writing `gcmd` asks for while the status is `gsts`."""
    return tuple(c for c in COMMANDS if c.changes(gcmd, gsts))
