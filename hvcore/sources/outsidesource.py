"""What `Outside` looks at: a dump in a file with what is known of its registers, or a running QEMU."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ..machine.description import PciDescription
from ..spec import pci
from ..spec.dmar import Drhd
from .outsideunit import OutsideUnit, load_registers
from .physical import FileMemory, PhysicalMemory
from .qemu import QemuMachine

__all__ = ["DumpSource", "ListedConfig", "LiveSource", "Source"]


class Source(Protocol):
    """Where memory comes from: its reader, what else is known of the machine, and a way to look at all of it at one time."""

    @property
    def live(self) -> bool:
        """Whether it is a running machine."""
        ...

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def memory(self) -> PhysicalMemory:
        """Its memory."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed or is missing, in a sentence each."""
        ...

    @property
    def functions(self) -> tuple[PciDescription, ...]:
        """The PCI functions; none where they are not told."""
        ...

    def look(self) -> AbstractContextManager[int]:
        """What is read inside belongs together; gives a number that is another one when something may have changed."""
        ...

    def units(self, drhds: Sequence[Drhd]) -> list[OutsideUnit]:
        """The units whose registers are known."""
        ...

    def close(self) -> None:
        """Lets go of it."""
        ...


class DumpSource:
    """A file: nothing in it changes."""

    live = False
    functions: tuple[PciDescription, ...] = ()

    def __init__(self, memory: FileMemory, registers: Path | str | None):
        self.name, self.memory, self.notes = str(memory.path), memory, memory.notes
        self._units = () if registers is None else load_registers(registers)

    def look(self) -> AbstractContextManager[int]:
        """Always the same."""
        return contextlib.nullcontext(0)

    def units(self, drhds: Sequence[Drhd]) -> list[OutsideUnit]:
        """Those of the registers that came with it."""
        return [_placed(u, drhds) for u in self._units]

    def close(self) -> None:
        """Nothing is held but the file's map."""


class LiveSource:
    """A running QEMU."""

    live = True
    notes: tuple[str, ...] = ()

    def __init__(self, machine: QemuMachine):
        self.name, self.memory = f"QEMU at {machine.socket}", machine

    @property
    def functions(self) -> tuple[PciDescription, ...]:
        """As the monitor lists them."""
        return self.memory.functions

    def look(self) -> AbstractContextManager[int]:
        """One look of the machine's."""
        return self.memory.look()

    def units(self, drhds: Sequence[Drhd]) -> list[OutsideUnit]:
        """Where the monitor shows a unit."""
        found = (OutsideUnit(base, _page_of(self.memory, base)) for base in self.memory.unit_bases)
        return [_placed(u, drhds) for u in found]

    def close(self) -> None:
        """Hangs up; QEMU goes on."""
        self.memory.close()


def _page_of(machine: QemuMachine, base: int) -> Callable[[], bytes]:
    return lambda: machine.registers(base)


def _placed(unit: OutsideUnit, drhds: Sequence[Drhd]) -> OutsideUnit:
    """A unit with what its DRHD says of it; one that no DRHD names counts as the unit of all devices of segment 0."""
    drhd = next((d for d in drhds if d.base == unit.description.base), None)
    return unit.placed(drhd.segment, drhd.include_all) if drhd else unit.placed(0, True)


class ListedConfig:
    """Configuration space as far as a list of functions tells it; all ones where there is no function."""

    def __init__(self, functions: Iterable[PciDescription]):
        self._functions = {(f.segment, f.source): f for f in functions}

    def config_read(self, segment: int, source: int, offset: int, width: int, /) -> int:
        """`width` bytes at `offset` of function `source`."""
        f = self._functions.get((segment, source))
        if f is None:
            return (1 << 8 * width) - 1
        space = bytearray(64)
        fields = ((pci.VENDOR_ID, 2, f.vendor), (pci.DEVICE_ID, 2, f.device_id), (pci.CLASS, 3, f.class_code),
                  (pci.HEADER_TYPE, 1, f.model == "bridge"), (pci.SECONDARY_BUS, 1, f.secondary if f.model == "bridge" else 0))
        for at, size, value in fields:
            space[at:at + size] = int(value).to_bytes(size, "little")
        return int.from_bytes(space[offset:offset + width], "little")
