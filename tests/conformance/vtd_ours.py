"""Our remapping unit, playing a scene."""

from collections.abc import Callable

from vtd_scene import (
    ABSENT,
    APIC,
    BASE,
    FSTS,
    OWN,
    PAGE_END,
    RAM,
    REQUESTERS,
    Ask,
    F,
    Log,
    Look,
    Moved,
    Poke,
    Registers,
    Result,
    Scene,
    Variant,
    Write,
    changes,
    landings,
    pages_of,
    palette,
    strays,
    switch_on,
)

from hvcore.machine.description import UnitDescription
from hvcore.machine.dma import pages
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.spec.dma import Direction, DmaRequest, RemapFault
from hvcore.spec.vtd import frcd_offset

__all__ = ["MakeUnit", "run_ours"]

MakeUnit = Callable[[UnitDescription, Memory, int, Callable[[int, int], None]], RemappingUnit]
_MEMORY = Memory([(0, RAM)])


class _Player:
    """A unit, memory, the buffers of the devices, and the interrupts that arrived."""

    def __init__(self, scene: Scene, variant: Variant, cap: int, ecap: int, make: MakeUnit):
        self.memory, self.log = _MEMORY, Log(scene)
        self.memory.reset()
        for address, data in pages_of(scene).items():
            self.memory.write(address, data)
        self.buffers = [bytearray(palette(device)) for device in range(len(REQUESTERS))]
        self.vectors = set[int]()
        self.unit = make(UnitDescription(BASE, cap, ecap), self.memory, variant.aw_bits, self.message)
        self.record = frcd_offset(cap)
        self.asks = iter(enumerate(scene.places))

    def message(self, address: int, data: int) -> None:
        """A 4-byte write by a device or by the unit itself: an interrupt of fixed delivery for the processor, or a word in memory."""
        if address >> 20 != APIC >> 20:
            if self.memory.backed(address, 4):
                self.memory.write32(address, data)
        elif not address & 0xFF004 and not data >> 8 & 6:
            self.vectors.add(data & 0xFF)

    def ask(self, ask: Ask) -> None:
        """One request, and what is in the record after it."""
        number, place = next(self.asks)
        if ask.write and not ask.word:
            self.log.moved[number] = self._watched(ask, place)
        else:
            self._carry(ask, place)
        unit = self.unit
        high = unit.mmio_read(self.record + 8, 8)
        status = unit.mmio_read(FSTS, 4)
        self.log.seen.append((unit.mmio_read(self.record, 8), high, status))
        if ask.sweep and (high & F or status & 1):
            unit.mmio_write(self.record + 8, 8, F)
            unit.mmio_write(FSTS, 4, 1)

    def _watched(self, ask: Ask, place: int) -> Moved | None:
        """A request, and what it changed in memory."""
        regions = [*((r.start, len(r)) for r in OWN), *strays([ask])]
        before = [self.memory.read(*region) for region in regions]
        self._carry(ask, place)
        return changes((start, old, self.memory.read(start, length)) for (start, length), old in zip(regions, before, strict=True))

    def _carry(self, ask: Ask, place: int) -> None:
        """A request page by page: parts that are refused read as zero, the others go on, for a device posts its writes."""
        direction = Direction.WRITE if ask.write else Direction.READ
        for part, offset in pages(DmaRequest(REQUESTERS[ask.device], ask.iova, ask.length, direction)):
            self._part(part, self.buffers[ask.device], place + offset)

    def _part(self, part: DmaRequest, buffer: bytearray, at: int) -> None:
        remapped, end = self.unit.remap(part), at + part.length
        address = ABSENT if isinstance(remapped, RemapFault) else remapped
        backed = self.memory.backed(address, part.length)
        if part.access is Direction.READ:
            buffer[at:end] = self.memory.read(address, part.length) if backed else bytes(part.length)
        elif backed:
            self.memory.write(address, bytes(buffer[at:end]))
        elif part.length == 4 and not address % 4:
            self.message(address, int.from_bytes(buffer[at:end], "little"))

    def look(self, look: Look) -> None:
        """All registers."""
        read, width = self.unit.mmio_read, look.width
        values = [read(at, width) for at in range(0, PAGE_END, width)]
        words = tuple(values if width == 8 else [low | high << 32 for low, high in zip(values[::2], values[1::2], strict=True)])
        self.log.seen.append(Registers(words, frozenset(self.vectors) if look.apic else None))

    def results(self) -> list[Result]:
        """What came of everything."""
        words = strays(a for a in self.log.scene.requests if a.word)
        landed = landings((start, self.memory.read(start, length)) for start, length in (*((r.start, len(r)) for r in OWN), *words))
        return self.log.results([bytes(b) for b in self.buffers], landed)


def run_ours(scene: Scene, variant: Variant, cap: int, ecap: int, make: MakeUnit = RemappingUnit) -> list[Result]:
    """Plays a scene on a unit of ours, new from `make`, with QEMU's capability registers."""
    player = _Player(scene, variant, cap, ecap, make)
    beginning = () if scene.root is None else switch_on(scene.root)
    for operation in (*beginning, *scene.operations):
        if isinstance(operation, Ask):
            player.ask(operation)
        elif isinstance(operation, Poke):
            player.memory.write64(operation.address, operation.value)
        elif isinstance(operation, Write):
            player.unit.mmio_write(operation.offset, operation.width, operation.value)
        else:
            player.look(operation)
    return player.results()
