"""A write to memory, as an instrument of the machine noted it."""

from dataclasses import dataclass
from enum import Enum

__all__ = ["Write", "Writer"]


class Writer(Enum):
    """What kind of thing wrote."""

    DMA = "dma"
    GUEST = "guest"
    HOST = "host"
    CORE = "core"
    FIRMWARE = "firmware"
    HARDWARE = "hardware"


@dataclass(frozen=True, slots=True)
class Write:
    """`data` went to host-physical `address` at virtual `time` (ns since power-on) in `phase` of the boot.

    A device's has `source`, `segment` and the `iova` that it asked for; a store of code on a processor the `rip` of its instruction (linear
    address); hardware its `name`.
    """

    writer: Writer
    address: int
    data: bytes
    time: int
    phase: str
    source: int | None = None
    segment: int = 0
    iova: int | None = None
    rip: int | None = None
    name: str = ""
