"""Random writes to registers from power-on, with descriptors in the invalidation queue and a few DMA requests; looks at the whole page."""

import random
from collections.abc import Callable

from vtd_scene import ABSENT, APIC, CCMD, DATA, FSTS, GCMD, PAGE, QIE, RTADDR, SRTP, TE, Ask, Look, Poke, Scene, Variant, Write
from vtd_scenes import QUEUE, ROOT, Builder, Operations

__all__ = ["both_flags", "random_register_scene"]

FECTL, FEDATA, FEADDR, FEUADDR = 0x38, 0x3C, 0x40, 0x44
IQT, IQA, ICS, IECTL, IEDATA, IEADDR, IEUADDR, IRTA = 0x88, 0x90, 0x9C, 0xA0, 0xA4, 0xA8, 0xAC, 0xB8
PMEN, IVA, IOTLB, FRCD = 0x64, 0xF0, 0xF8, 0x220
SIRTP, CFI, IRE, WBF, EAFL, SFL = 1 << 24, 1 << 23, 1 << 25, 1 << 27, 1 << 28, 1 << 29
DID, MAPPED = 7, 0x5000
SOUND = (
    (1 | 1 << 4, 0), (1 | 2 << 4 | DID << 16, 0), (1 | 3 << 4 | DID << 16 | 0x18 << 32 | 3 << 48, 0), (2 | 1 << 4, 0),
    (2 | 2 << 4 | DID << 16, 0), (2 | 3 << 4 | DID << 16, MAPPED | 1), (5 | 1 << 4, 0), (5 | 1 << 4, 0), (5 | 1 << 4 | 1 << 6, 0),
    (5 | 1 << 5 | 0x1234 << 32, DATA), (5 | 1 << 5 | 1 << 6 | 0x1234 << 32, QUEUE + PAGE - 4))
WRONG = (
    (1, 0), (2, 0), (2 | 3 << 4 | DID << 16, MAPPED | 19), (3 | 0x18 << 32, MAPPED), (4, 0), (4 | 1 << 4 | 1 << 27, 0), (5, 0),
    (5 | 1 << 6, 0), (5 | 1 << 5 | 0x77 << 32, ABSENT), (6 | 2 << 4, 0), (7 | 1 << 4, 0), (0, 0), (8, 0), (15, 0))
"""Descriptors (low and high word), and some that are errors, for one of the two machines at least."""
_RESERVED_BITS = (4, 5, 6, 7, 8, 11, 15, 20, 27, 31, 40, 49, 50, 52, 63)
_WITHOUT_EFFECT = (0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x1C, 0x30, *range(0x48, 0x80, 4), 0x80, 0x84, 0x98, 0xB0, 0xB4, 0xB8, 0xBC,
                   *range(0xC0, 0xF0, 4), *range(0x100, FRCD, 4))
"""Words that are read-only, missing or without meaning here."""
_WAIT, _WAIT_BOTH = 5, 3 << 4


def both_flags(low: int) -> bool:
    """Whether a descriptor is a wait with SW and IF, at which QEMU aborts."""
    return low & 0xF == _WAIT and low & _WAIT_BOTH == _WAIT_BOTH


def random_register_scene(seed: int, variant: Variant, writes: int = 40) -> Scene:
    """The scene of a seed."""
    return _Random(seed, variant).scene(writes)


class _Random:
    def __init__(self, seed: int, variant: Variant):
        self.random, self.builder = random.Random(seed), Builder(variant)
        top = self.builder.table()
        self.builder.map(top, 3, MAPPED, DATA | MAPPED | 3)
        self.builder.context(0, top | 1, DID << 8 | 1)
        for slot in range(24):
            low, high = self._descriptor()
            self.builder.words[QUEUE + 16 * slot], self.builder.words[QUEUE + 16 * slot + 8] = low, high
        self.kinds: tuple[Callable[[], Operations], ...] = (
            self._command, self._command, self._command, self._root, self._context_command, self._iotlb_command, self._queue_base,
            self._queue_tail, self._queue_tail, self._queue_tail, self._put, self._status, self._status, self._event, self._event,
            self._record, self._any, self._ask, self._ask)

    def scene(self, writes: int) -> Scene:
        operations: Operations = [Look()]
        if self.random.random() < .5:
            operations += [Write(IQA, 8, QUEUE | self.random.choice((0, 0, 1, 3))), Write(GCMD, 4, QIE)]
        if self.random.random() < .5:
            operations += [Write(FEADDR, 4, APIC), Write(FEDATA, 4, 0x50), Write(FECTL, 4, 0),
                           Write(IEADDR, 4, APIC), Write(IEDATA, 4, 0x60), Write(IECTL, 4, 0)]
        for _ in range(writes):
            operations += self.random.choice(self.kinds)()
            if self.random.random() < .7:
                operations.append(Look(self.random.choice((4, 8))))
        return self.builder.scene([*operations, Look(apic=True), Write(GCMD, 4, 0), Ask(0, DATA), Ask(0, QUEUE + PAGE - 8)], root=None)

    def _halves(self, offset: int, value: int) -> Operations:
        """A 64-bit register: whole, in two halves in either order, or one of them."""
        low, high = Write(offset, 4, value & 0xFFFF_FFFF), Write(offset + 4, 4, value >> 32)
        whole = [Write(offset, 8, value)]
        return list(self.random.choice((whole, whole, whole, [low, high], [high, low], [low], [high])))

    def _noise(self, bits: int) -> int:
        return self.random.getrandbits(bits) if self.random.random() < .2 else 0

    def _command(self) -> Operations:
        r, value = self.random, 0
        for bit in (TE, QIE):
            value |= bit * (r.random() < .6)
        for bit in (SRTP, SRTP, SIRTP, CFI, IRE, WBF, EAFL, SFL):
            value |= bit * (r.random() < .15)
        return [Write(GCMD, 4, value | self._noise(23))]

    def _root(self) -> Operations:
        r = self.random
        return self._halves(RTADDR, r.choice((ROOT, ROOT, ABSENT)) | r.choice((0, 0, 0xC00, 0x800, 0x3FF, 1 << 45, 1 << 63)))

    def _context_command(self) -> Operations:
        r = self.random
        return self._halves(CCMD, r.getrandbits(1) << 63 | r.randrange(4) << 61 | self._noise(61) | r.choice((DID, 0)) | 0x18 << 16)

    def _iotlb_command(self) -> Operations:
        r = self.random
        command = (r.random() < .8) << 63 | r.randrange(4) << 60 | self._noise(63) & ~(3 << 60) | DID << 32
        return [*self._halves(IVA, MAPPED | r.choice((0, 1, 9, 18, 19, 63)) | self._noise(64)), *self._halves(IOTLB, command)]

    def _queue_base(self) -> Operations:
        r = self.random
        base = r.choice((QUEUE, QUEUE, QUEUE, QUEUE, ABSENT, QUEUE | 1 << 45))
        return self._halves(IQA, base | r.choice((0, 0, 0, 1, 2, 7, 0x800, 0x7F8)))

    def _queue_tail(self) -> Operations:
        r = self.random
        tail = r.choice((0, 16 * r.randrange(26), 16 * r.randrange(26), 4096, 0x7FFF0))
        return self._halves(IQT, tail | self._noise(4) | self._noise(4) << 19)

    def _put(self) -> Operations:
        low, high = self._descriptor()
        at = QUEUE + 16 * self.random.randrange(26)
        return [Poke(at, low), Poke(at + 8, high)]

    def _descriptor(self) -> tuple[int, int]:
        """Mostly a sound one; none at which QEMU aborts."""
        r = self.random
        low, high = r.choice(SOUND if r.random() < .88 else WRONG)
        if r.random() < .06:
            low ^= 1 << r.choice(_RESERVED_BITS)
        elif r.random() < .05:
            high ^= 1 << r.choice((0, 1, 5, 6, 7, 11))
        return (low ^ 1 << 4, high) if both_flags(low) else (low, high)

    def _status(self) -> Operations:
        r = self.random
        return [Write(r.choice((FSTS, ICS)), 4, r.choice((1, 0x10, 0x7F, 0, r.getrandbits(32))))]

    def _event(self) -> Operations:
        """No data asks for anything but fixed delivery."""
        r = self.random
        control = r.choice((0, 1 << 31)) | self._noise(31)
        data = r.randrange(32, 256) | (r.getrandbits(16) << 16 | 0xC000 if r.random() < .3 else 0)
        address = r.choice((APIC, APIC, APIC | 8, APIC | 0x5000, DATA + 0x40)) | self._noise(2)
        return [r.choice((
            Write(r.choice((FECTL, IECTL)), 4, control), Write(r.choice((FEDATA, IEDATA)), 4, data),
            Write(r.choice((FEADDR, IEADDR)), 4, address), Write(r.choice((FEUADDR, IEUADDR)), 4, r.getrandbits(32)),
            Write(FEADDR, 8, address | self._noise(32) << 32)))]

    def _record(self) -> Operations:
        r = self.random
        return self._halves(r.choice((FRCD, FRCD + 8, FRCD + 8, FRCD + 8)), r.choice((1 << 63, r.getrandbits(64))))

    def _any(self) -> Operations:
        r = self.random
        return [Write(r.choice((PMEN, r.choice(_WITHOUT_EFFECT), r.choice(_WITHOUT_EFFECT))), 4, r.getrandbits(32))]

    def _ask(self) -> Operations:
        r = self.random
        return [Ask(r.randrange(3), r.choice((MAPPED, 0x8000, DATA)) + 8 * r.randrange(256), r.random() < .5, r.random() < .2)]
