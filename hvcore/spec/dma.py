"""A DMA request and what becomes of it, as values that go through the machine whole."""

from dataclasses import dataclass, field
from enum import Enum, IntEnum

from .pci import format_bdf

__all__ = ["AddressType", "Direction", "DmaRequest", "DmaResult", "RemapFault"]


class Direction(Enum):
    """Which way the data goes, seen from the device."""

    READ = "read"
    WRITE = "write"


class AddressType(IntEnum):
    """AT of a request (PCI Express Base 4.0, section 10.2.1): all but the first are for devices with Address Translation Services."""

    UNTRANSLATED = 0
    TRANSLATION = 1
    """Asks where an IOVA lies, and moves no data."""
    TRANSLATED = 2
    """Claims that its address is host-physical already."""


@dataclass(frozen=True, slots=True)
class DmaRequest:
    """One memory request of a device: `source` is the requester id (bus 15:8, devfn 7:0), `iova` the address it puts on the bus,
    `length` bytes.  `segment` is the PCI segment; an `address_type` other than UNTRANSLATED needs a context that allows ATS."""

    source: int
    iova: int
    length: int
    access: Direction
    segment: int = 0
    address_type: AddressType = AddressType.UNTRANSLATED

    def __str__(self) -> str:
        return f"{format_bdf(self.source)} {self.access.value} {self.length} bytes at {self.iova:#x}"


@dataclass(frozen=True, slots=True)
class RemapFault:
    """A request that a remapping unit refused: VT-d fault `reason`, IOVA of the 4 KiB page `address`, register base `unit` of the unit.

    For an interrupt (reasons 0x20 to 0x26) `address` is the index into the interrupt remapping table, 0 where there is none.
    `recorded` is False where the unit wrote no fault record (FPD, overflow)."""

    request: DmaRequest
    unit: int
    reason: int
    address: int
    recorded: bool = True


@dataclass(frozen=True, slots=True)
class DmaResult:
    """What a device gets: the bytes of a read (or b"" of a write) and `fault` None; or `data` None and why.

    `fault` is None and `data` None where the request was translated but no memory answers there (master abort).  `landing` is the
    host-physical address at which its first page was sought, None where it had none; `time` in virtual nanoseconds since power-on.
    Of a request that did not complete, `carried` bytes went through before, and `refused` are the next up to 4096 of a write."""

    request: DmaRequest
    data: bytes | None
    fault: RemapFault | None = None
    landing: int | None = field(default=None, compare=False)
    time: int = field(default=0, compare=False)
    carried: int = field(default=0, compare=False)
    refused: bytes = field(default=b"", compare=False)

    @property
    def ok(self) -> bool:
        """Whether the request completed."""
        return self.data is not None
