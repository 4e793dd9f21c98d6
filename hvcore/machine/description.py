"""What a machine is, as data: what firmware reports, which devices there are, what was assumed.  From TOML, logs or tables."""

from dataclasses import dataclass, field

from ..spec.e820 import E820Entry
from ..spec.pci import PortType

__all__ = ["BarDescription", "DiskDescription", "EcamDescription", "MachineDescription", "PciDescription", "UnitDescription"]


@dataclass(frozen=True, slots=True)
class UnitDescription:
    """One VT-d unit: register base (host-physical), PCI segment, INCLUDE_PCI_ALL, and its capability registers."""

    base: int
    cap: int
    ecap: int
    segment: int = 0
    include_all: bool = False
    version: int = 0x10


@dataclass(frozen=True, slots=True)
class BarDescription:
    """One base address register: `kind` is `mem32`, `mem64` or `io`, `size` a power of two.  Where `address` is None firmware places it."""

    index: int
    kind: str
    size: int
    address: int | None = None
    prefetchable: bool = False


@dataclass(frozen=True, slots=True)
class PciDescription:
    """One PCI function.  `source` is its requester id.

    `model` says what answers it: `nvme`, `edu`, `bridge` or `stub` (configuration space only).  `class_code` has 24 bits (class, subclass,
    interface).  For a bridge, `secondary` and `subordinate` are bus numbers.  `pcie` says whether it has a PCI Express capability and
    `port_type` which kind it names there; None: not known, and the machine takes what the function's place suggests.
    """

    source: int
    vendor: int
    device_id: int
    class_code: int
    model: str = "stub"
    segment: int = 0
    revision: int = 0
    subsystem: tuple[int, int] = (0, 0)
    bars: tuple[BarDescription, ...] = ()
    secondary: int = 0
    subordinate: int = 0
    pcie: bool = True
    port_type: PortType | None = None


@dataclass(frozen=True, slots=True)
class EcamDescription:
    """PCI Express configuration window (MCFG): `base` host-physical, buses `first`..`last`, both included; 1 MiB a bus."""

    base: int
    first: int = 0
    last: int = 255
    segment: int = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return (self.last - self.first + 1) << 20


@dataclass(frozen=True, slots=True)
class DiskDescription:
    """The NVMe controllers' disk: `size` bytes of reproducible content from `seed`, or the bytes of the file `image`."""

    size: int = 64 << 20
    seed: int = 1
    image: str | None = None


@dataclass(frozen=True, slots=True)
class MachineDescription:
    """Everything needed to build the PC.

    `e820` is the firmware's map in the order it was given; `ram_runs` are the half-open host-physical ranges that are DRAM and `ram_bytes`
    their size; `dmar` is the firmware's table byte for byte (None: the machine has none) and `units` the registers behind its DRHDs, in the
    table's order; `acpi_address` is where firmware keeps its tables.  `ecam` is the configuration window of segment 0, `other_ecams` are
    those of other segments.  `assumptions` says in a sentence each what was not known and chosen.
    """

    name: str
    e820: tuple[E820Entry, ...]
    ram_runs: tuple[tuple[int, int], ...]
    acpi_address: int
    dmar: bytes | None = None
    units: tuple[UnitDescription, ...] = ()
    pci: tuple[PciDescription, ...] = ()
    ecam: EcamDescription | None = None
    disk: DiskDescription = field(default_factory=DiskDescription)
    host_address_width: int = 39
    source: str = ""
    assumptions: tuple[str, ...] = ()
    other_ecams: tuple[EcamDescription, ...] = ()

    @property
    def ecams(self) -> tuple[EcamDescription, ...]:
        """Every configuration window, segment 0's first."""
        return (*((self.ecam,) if self.ecam else ()), *self.other_ecams)

    @property
    def ram_bytes(self) -> int:
        """Bytes of DRAM."""
        return sum(b - a for a, b in self.ram_runs)
