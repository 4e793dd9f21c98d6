"""The remapping unit as hostile software and devices meet it: registers, queue, DMA and messages in any order, tables that change under it.

After every step the register page must be one that hardware could show, and looking at the unit must not have changed it.
"""

from collections.abc import Callable
from random import Random

from hvcore.inspect.cached import read_cached
from hvcore.inspect.interrupts import read_interrupts
from hvcore.machine.dma import MSI, DmaFabric
from hvcore.machine.vtd import RemappingUnit
from hvcore.spec.bits import Register, bit
from hvcore.spec.dma import Direction, DmaRequest, RemapFault
from hvcore.spec.vtd import (
    CAP,
    CCMD,
    CONDITION,
    ECAP,
    FECTL,
    FRCD_HIGH,
    FRCD_LOW,
    FSTS,
    GSTS,
    IOTLB,
    PMEN,
    QUEUE_POINTER,
    FaultReason,
    frcd_count,
    iotlb_offset,
)

from .mutate import number, often
from .noise import Noise, random_unit

__all__ = ["TARGETS"]

STEPS = 60
QUEUE, IRTES = 0x8000, 0x1_8000
_HARDWARE = {"CCMD": CCMD["CAIG"].mask, "IOTLB": IOTLB["IAIG"].mask, "PMEN": PMEN["PRS"].mask, "IQH": QUEUE_POINTER["Q"].mask,
             "FECTL": FECTL["IP"].mask, "IECTL": FECTL["IP"].mask, "FSTS": 0x7F | FSTS["FRI"].mask, "ICS": 1}
"""Bits that the unit itself sets, besides those that software may write."""
_STATUS = (("TES", None), ("RTPS", None), ("FLS", (CAP, "AFL")), ("AFLS", (CAP, "AFL")), ("QIES", (ECAP, "QI")), ("IRES", (ECAP, "IR")),
           ("IRTPS", (ECAP, "IR")), ("CFIS", (ECAP, "IR")))
"""Bits of GSTS and the capability that each needs; WBFS is never seen."""
_COMMANDS = (31, 30, 29, 28, 27, 26, 25, 24, 23)


def _allowed(unit: RemappingUnit) -> dict[str, int]:
    """The bits that each register may show."""
    cap, ecap = unit.description.cap, unit.description.ecap
    allowed = {r.name: r.write_mask | r.reset | _HARDWARE.get(r.name, 0) for r in unit.registers}
    has = {None: True} | {need: bool(need[0].get(cap if need[0] is CAP else ecap, need[1])) for _, need in _STATUS if need}
    allowed["GCMD"] = 0
    allowed["GSTS"] = sum(GSTS[name].mask for name, need in _STATUS if has[need])
    for i in range(frcd_count(cap)):
        allowed[f"FRCD{i}_LOW"] = FRCD_LOW["FI"].mask
        allowed[f"FRCD{i}_HIGH"] = sum(FRCD_HIGH[name].mask for name in ("F", "T", "FR", "SID"))
    return allowed


class _Attack:
    """One unit with what surrounds it, and the steps against it."""

    def __init__(self, seed: int):
        self.r = Random(seed)
        self.noise = Noise(self.r)
        self.memory = self.noise.memory
        self.messages = 0
        self.unit = random_unit(self.r, self.memory, self._message, ideal=often(self.r, 0.15))
        self.fabric = DmaFabric(self.memory, lambda segment, source: self.unit if segment == 0 else None, lambda *_: None)
        self.noise.suit(self.unit.description.cap)
        self.power_on = bytes(self.unit.file.bytes)
        self.allowed = _allowed(self.unit)
        self.owned = {at for r in self.unit.registers for at in range(r.offset, r.offset + r.size)}
        self.met: set[str] = set()

    def _message(self, address: int, data: int) -> None:
        self.messages += 1
        assert 0 <= address < bit(64) and 0 <= data < bit(32)

    def write(self, offset: int, width: int, value: int) -> None:
        """A store; what it returns is nothing, and it comes back."""
        self.unit.mmio_write(offset, width, value)

    def command(self, which: int) -> None:
        """One command, the others as they stand; or, now and then, all at once."""
        standing = self.unit.peek(0x1C, 4) & 0x96800000
        value = number(self.r, 32) if often(self.r, 0.1) else standing ^ bit(which)
        self.write(0x18, 4, value)

    # --- steps

    def a_register(self) -> None:
        """A write of a register, mostly of its whole width, mostly of bits that it takes."""
        r = self.r
        register: Register = r.choice(self.unit.registers)
        width = r.choice((register.size, register.size, 4, 8, 1, 2))
        value = number(r, 64) & (register.write_mask | register.w1c_mask) if often(r, 0.6) else number(r, 64)
        self.write(register.offset + r.choice((0, 0, 0, 0, 4, -4, 1, 2)) % self.unit.size, width, value)

    def anywhere(self) -> None:
        """A write and a read of any width at any place."""
        at, width = self.r.randrange(self.unit.size), self.r.choice((1, 2, 4, 8))
        self.write(at, width, number(self.r, 64))
        assert 0 <= self.unit.mmio_read(at, width) < bit(8 * width)

    def set_up(self) -> None:
        """The way to translation."""
        self.write(0x20, 8, self.noise.root | (number(self.r, 12) if often(self.r, 0.1) else 0))
        self.command(30)
        if not self.unit.peek(0x1C, 4) & bit(31) or often(self.r, 0.1):
            self.command(31)

    def set_up_interrupts(self) -> None:
        """A table of interrupt entries, and the way to interrupt remapping."""
        for i in range(8):
            low = self.r.choice((0x0000_0100_0021_0001, 0x0000_0100_0021_0003, 0x8001, 0, number(self.r, 64)))
            high = self.r.choice((0, 0x4_0010, 0x8_FF00, 0xC_0000, number(self.r, 64)))
            self.noise.pair(IRTES + 16 * i, low, high)
        self.write(0xB8, 8, self.r.choice((IRTES | 2, IRTES | 15, IRTES | bit(11) | 7, number(self.r, 64))))
        self.command(24)
        self.command(self.r.choice((25, 25, 23)))

    def a_command(self) -> None:
        """Any command."""
        self.command(self.r.choice(_COMMANDS))

    def invalidate(self) -> None:
        """By register."""
        r, iro = self.r, iotlb_offset(self.unit.description.ecap)
        if often(r, 0.5):
            self.write(0x28, 8, bit(63) | r.randrange(4) << 61 | number(r, 34))
        else:
            self.write(iro, 8, self.noise.iova() & ~0xFFF | number(r, 7))
            self.write(iro + 8, 8, bit(63) | r.randrange(4) << 60 | r.choice((0, 1, 2, 0xFFFF)) << 32)

    def queue(self) -> None:
        """A queue of descriptors, right and wrong ones, then its tail."""
        r = self.r
        for i in range(r.choice((0, 3, 3, 40))):
            kind = r.choice((1, 2, 5, 5, 4, 3, 0, r.randrange(16)))
            low = kind | (r.choice((0x10, 0x20, 0x30, 0x30, number(r, 48) << 4)) if often(r, 0.9) else number(r, 60) << 4)
            high = r.choice((0, 0, self.noise.iova() & ~0xFFF, QUEUE, number(r, 64)))
            self.noise.pair(QUEUE + 16 * (i % 256), low, high)
        if often(r, 0.6):
            self.write(0x90, 8, r.choice((QUEUE, QUEUE, QUEUE | 1, QUEUE | 7, number(r, 64))))
        if not self.unit.peek(0x1C, 4) & bit(26):
            self.command(26)
        self.write(0x88, 8, r.choice((0, 16, 48, 640, 0xFF0, 0x7FFF0, number(r, 19))))
        if often(r, 0.5):
            self.write(0x34, 4, 0x7F)

    def events(self) -> None:
        """Unmasks, masks, clears what is pending."""
        r = self.r
        for base in (0x38, 0xA0):
            self.write(base + 4, 4, number(r, 32))
            self.write(base + 8, 4, r.choice((0xFEE0_0000, 0, number(r, 32))))
            self.write(base, 4, r.choice((0, bit(31))))
        self.write(0x34, 4, 0x7F)
        self.write(0x9C, 4, 1)
        cap = self.unit.description.cap
        self.write(16 * (CAP.get(cap, "FRO") + r.randrange(frcd_count(cap))) + 12, 4, bit(31))

    def protect(self) -> None:
        """Protected memory on or off, anywhere."""
        for at, width in ((0x68, 4), (0x6C, 4), (0x70, 8), (0x78, 8)):
            self.write(at, width, number(self.r, 8 * width))
        self.write(0x64, 4, number(self.r, 32))

    def dma(self) -> None:
        """Requests within a page, of which the arrays must say the same beforehand."""
        for request in (self.noise.request() for _ in range(4)):
            told = self.unit.translate(request.source, request.iova, request.access.value, request.length)
            result = self.unit.remap(request)
            if isinstance(result, RemapFault):
                assert not told.ok.item() and told.reason.item() == result.reason, f"{request}: {told}, {result}"
                assert result.reason in CONDITION and result.address == request.iova & ~0xFFF
                self.met.add("fault")
            else:
                assert told.ok.item() and told.address.item() == result, f"{request}: {told}, {result:#x}"
                self.met.add("passed")

    def long_dma(self) -> None:
        """Requests over page borders and around the end of the address space, down to memory."""
        iova, length = self.noise.iova(), self.r.choice((1, 4, 4096, 5000, 20_000))
        if often(self.r, 0.2):
            iova = bit(64) - self.r.randrange(8192)
        data = self.r.randbytes(length) if often(self.r, 0.5) else None
        source, segment = self.r.choice(self.noise.sources), int(often(self.r, 0.02))
        request = DmaRequest(source, iova, length, Direction.READ if data is None else Direction.WRITE, segment)
        result = self.fabric.issue(request, data or b"")
        assert result.data is None or len(result.data) == (length if data is None else 0)

    def message(self) -> None:
        """A message-signalled interrupt of a device."""
        r = self.r
        address = MSI.start + r.choice((0x10, 0x18, 0x30, 0x38, 0x1C, 0, 0xFF0)) + r.choice((0, 0, number(r, 20))) & 0xFEEF_FFFC
        result = self.unit.interrupt(r.choice(self.noise.sources), address, r.choice((0, 1, 7, number(r, 32))))
        if isinstance(result, RemapFault):
            assert FaultReason.IR_REQUEST_RESERVED <= result.reason <= FaultReason.IR_SOURCE_REFUSED and 0 <= result.address < bit(17)
        else:
            sent, data = result.message
            assert sent in MSI or sent >> 32 and sent & 0xFFFF_FFFF in MSI, f"{result}"
            assert 0 <= data < bit(32) and str(result)
        self.met.add("blocked" if isinstance(result, RemapFault) else "delivered")

    def tables(self) -> None:
        """Tables change; nobody tells the unit."""
        for _ in range(4):
            self.noise.poke()
        if often(self.r, 0.5):
            self.noise.context(self.r.choice(self.noise.sources))

    def look(self) -> None:
        """Whatever is looked at, nothing has happened."""
        before = bytes(self.unit.file.bytes), self.unit.cached, len(self.unit.notes)
        for register in self.unit.registers:
            assert self.unit.peek(register.offset, register.size) == self.unit.mmio_read(register.offset, register.size)
        self.unit.peek(self.r.randrange(2 * self.unit.size), self.r.choice((1, 2, 4, 8)))
        self.unit.walk(self.r.choice(self.noise.sources), self.noise.iova())
        assert str(read_cached([self.unit])) and str(read_interrupts(self.memory, self.unit, self.unit.walker.haw))
        assert before == (bytes(self.unit.file.bytes), self.unit.cached, len(self.unit.notes))

    def power_off(self) -> None:
        """Reset: byte for byte as at power-on, nothing remembered."""
        if often(self.r, 0.2):
            self.unit.reset()
            assert bytes(self.unit.file.bytes) == self.power_on and not any(vars_of(self.unit)) and not self.unit.notes

    # --- after each step

    def check(self) -> None:
        """What no register page may show."""
        file, unit = self.unit.file, self.unit
        for name, allowed in self.allowed.items():
            assert not file[name] & ~allowed, f"{name} is {file[name]:#x}, which has bits beyond {allowed:#x}"
        assert all(not byte for at, byte in enumerate(file.bytes) if byte and at not in self.owned)
        assert (file["CAP"], file["ECAP"]) == (unit.description.cap, unit.description.ecap)
        assert not file["CCMD"] >> 63 and not file["IOTLB"] >> 63, "an invalidation is not over"
        count = frcd_count(file["CAP"])
        pending = any(file[f"FRCD{i}_HIGH"] >> 63 for i in range(count))
        assert FSTS.get(file["FSTS"], "PPF") == pending and FSTS.get(file["FSTS"], "FRI") < count
        assert file["PMEN"] & 1 == file["PMEN"] >> 31
        assert len(unit.cached.mappings) <= 3 * 4096 and len(unit.notes) <= 256


def vars_of(unit: RemappingUnit) -> tuple[object, ...]:
    """Everything that a unit remembers besides its registers."""
    cached = unit.cached
    return (cached.contexts, cached.mappings, cached.interrupts, unit.root, unit.interrupt_table)


_ATTACKS: tuple[tuple[Callable[[_Attack], None], int], ...] = (
    (_Attack.a_register, 8), (_Attack.anywhere, 4), (_Attack.set_up, 4), (_Attack.set_up_interrupts, 2), (_Attack.a_command, 3),
    (_Attack.invalidate, 4), (_Attack.queue, 4), (_Attack.events, 3), (_Attack.protect, 1), (_Attack.dma, 8), (_Attack.long_dma, 3),
    (_Attack.message, 4), (_Attack.tables, 4), (_Attack.look, 2), (_Attack.power_off, 1))


def attack(seed: int) -> str:
    """A sequence of steps against one unit."""
    a = _Attack(seed)
    a.set_up()
    for step in a.r.choices(*zip(*_ATTACKS, strict=True), k=STEPS):
        step(a)
        a.check()
    return " ".join(sorted(a.met)) or "nothing got through"


def many(seed: int) -> str:
    """Arrays of requests against one unit after another, with caches that are stale by now."""
    r = Random(seed)
    a = _Attack(seed)
    a.set_up()
    for step in (_Attack.dma, _Attack.dma, _Attack.tables, _Attack.invalidate if often(r, 0.3) else _Attack.look):
        step(a)
    requests = [a.noise.request() for _ in range(60)]
    before = bytes(a.unit.file.bytes), a.unit.cached
    told = a.unit.translate([q.source for q in requests], [q.iova for q in requests], [q.access.value for q in requests],
                            [q.length for q in requests])
    assert before == (bytes(a.unit.file.bytes), a.unit.cached), "looking has an effect"
    for i, q in enumerate(requests):
        alone = a.unit.translate(q.source, q.iova, q.access.value, q.length)
        assert (alone.ok.item(), alone.reason.item(), alone.how.item()) == (told.ok[i], told.reason[i], told.how[i]), f"{q}"
        assert not alone.ok.item() or alone.address.item() == told.address[i]
    assert str(told)
    return "some pass" if told.ok.any() else "none passes"


TARGETS: dict[str, Callable[[int], str]] = {"unit": attack, "arrays": many}
