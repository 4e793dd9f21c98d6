"""What came of an attack, as a record that displays itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..inspect import format as show
from ..inspect.records import Column, Record
from ..spec.dma import RemapFault
from ..spec.interrupts import INTERRUPT_REASONS
from ..spec.pci import format_bdf
from ..spec.vtd import CONDITION, LINUX_TEXT, PROTECTED

__all__ = ["VERDICTS", "Attack", "Blocked", "Changed"]

VERDICTS = {
    "blocked": "the attack got nothing, and the core's memory is as it was",
    "succeeded": "the attacker has what it wanted, and the proof lies in the machine",
    "crashed": "the machine did not survive it",
    "boot failed": "there was no guest that could attack",
    "not tried": "the guest could not try it",
}


@dataclass(frozen=True, slots=True, repr=False)
class Blocked(Record):
    """A request that a unit refused: register base of the `unit`, requester, IOVA of the page (an interrupt's index for reasons from 0x20
    on), the reason (0: protected memory, PMEN), and whether the unit wrote a fault record."""

    unit: int
    source: int
    address: int
    access: str
    reason: int
    text: str
    recorded: bool

    title = "Blocked request"
    columns = (
        Column("unit", lambda b: b.unit, show.address, True), Column("source", lambda b: format_bdf(b.source)),
        Column("access", lambda b: b.access), Column("address", lambda b: b.address, show.address, True),
        Column("reason", lambda b: b.reason, show.address, True), Column("text", lambda b: b.text),
        Column("recorded", lambda b: b.recorded, show.yes_no),
    )

    @classmethod
    def of(cls, fault: RemapFault) -> "Blocked":
        """From what the device was told."""
        text = LINUX_TEXT.get(fault.reason, "Unknown") if fault.reason != PROTECTED else CONDITION[PROTECTED]
        return cls(fault.unit, fault.request.source, fault.address, fault.request.access.value, fault.reason, text, fault.recorded)

    def __str__(self) -> str:
        where = f"interrupt with index {self.address:#x}" if self.reason in INTERRUPT_REASONS else f"DMA {self.access} at {self.address:#x}"
        return f"{format_bdf(self.source)}'s {where} (reason {self.reason:#x}: {self.text})"

    __repr__ = __str__


def _shown(proof: object) -> str:
    """What the attacker got, a line each; addresses in hex."""
    items = proof.items() if isinstance(proof, dict) else ()
    return "\n          ".join(f"{k}: {v:#x}" if isinstance(v, int) and v > 9 else f"{k}: {v}" for k, v in items)


@dataclass(frozen=True, slots=True)
class Changed:
    """Bytes [start, end) of the core's memory, host-physical, that are not what they were before; `part` names what lies there."""

    start: int
    end: int
    part: str

    def __str__(self) -> str:
        return f"{self.part} at {self.start:#x}-{self.end:#x}"


@dataclass(frozen=True, slots=True, repr=False)
class Attack(Record):
    """One attack and its verdict (one of `VERDICTS`), `why` in a sentence.

    `device` is the requester that was used, `fault` the first request that a unit refused meanwhile (None: none was), `proof` what the
    attacker got (empty where nothing), `changed` what is different in the core's memory but for what every exit writes there, `console`
    what the guest said.  `config` are the core's options.
    """

    attack: str
    machine: str
    config: Mapping[str, Any]
    device: str
    verdict: str
    why: str
    fault: Blocked | None = None
    proof: Mapping[str, Any] = field(default_factory=dict)
    changed: tuple[Changed, ...] = ()
    console: tuple[str, ...] = ()

    title = "Attack"
    columns = (
        Column("attack", lambda a: a.attack), Column("machine", lambda a: a.machine), Column("device", lambda a: a.device),
        Column("verdict", lambda a: a.verdict), Column("why", lambda a: a.why),
        Column("fault", lambda a: a.fault, lambda f: "" if f is None else str(f)),
        Column("proof", lambda a: dict(a.proof), _shown),
        Column("changed", lambda a: a.changed, lambda c: ", ".join(map(str, c)) if isinstance(c, tuple) else ""),
        Column("guest", lambda a: a.console, lambda c: "\n          ".join(c) if isinstance(c, tuple) else ""),
    )

    @property
    def evidence(self) -> dict[str, Any]:
        """Why, proof, what changed and what the guest said, as plain values."""
        changed = [{"start": c.start, "end": c.end, "part": c.part} for c in self.changed]
        return {"why": self.why, "proof": dict(self.proof), "changed": changed, "console": list(self.console)}

    def to_json(self) -> dict[str, Any]:
        """Plain values: addresses as integers, bytes as hex."""
        return {"attack": self.attack, "machine": self.machine, "config": dict(self.config), "device": self.device,
                "verdict": self.verdict, "fault": self.fault.to_json() if self.fault else None, **self.evidence}
