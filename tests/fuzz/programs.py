"""Guests whose code is drawn by lot: machine code at CPL 0 that means harm, with memory, tables and queues of noise to go with it.

A program is a row of slots.  Whatever happens in a slot, an exception too, the next one follows, for every gate of the guest's IDT leads to
the dispatcher; only what ruins stack, tables or descriptors ends it early.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from hvcore.machine.edu import BUFFER
from hvcore.spec.linuxboot import Elf, Segment
from hvcore.spec.nvme import AdminOpcode, Command, NvmOpcode
from hvcore.spec.paging import PAGE
from hvcore.spec.svm import EFER, VM_CR, VM_HSAVE_PA

from .mutate import number, often

__all__ = ["SYSTEM_FORMS", "Places", "program"]

CODE, TABLES, QUEUES, NOISE, IDT, STACK, COUNTER = 0x100_0000, 0x120_0000, 0x122_0000, 0x123_0000, 0x124_0000, 0x126_0000, 0x126_1000
SLOT = 160
_NOISE_SIZE = 0x1_0000
_START = 14
"""Bytes of code before the dispatcher."""
_PORTS = (0x20, 0x21, 0xA0, 0xA1, 0x40, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0xE0, 0xE9, 0x92, 0x3F8, 0x3F9, 0x3FB, 0x3FC,
          0x4D0, 0x600, 0x604, 0x608, 0xCF8, 0xCF9, 0xCFC, 0xCFD, 0xCFE, 0xFFFF)
_MSRS = (EFER, VM_CR, VM_HSAVE_PA, 0x1B, 0x10, 0xFE, 0x174, 0x175, 0x176, 0x179, 0x277, 0x2FF, 0x200, 0x802, 0x830, 0xC0000081, 0xC0000082,
         0xC0000084, 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103, 0xC0010015, 0xC0011020)


def _forms(words: str) -> tuple[bytes, ...]:
    return tuple(map(bytes.fromhex, words.split()))


# Instructions in hexadecimal; the memory that they reach is at RDI.
_LOADS = _forms("8a07 668b07 8b07 488b07 480fb607 0f1007 660f6f07 0fae0f 0fae2f db2f f30f6f07 480f6e07 0fc707")
_STORES = _forms("8807 668907 8907 488907 c6075a 66c7073412 c70778563412 48c70778563412f1 0f1107 660f7f07 0fae07 d937 dd37 db3f 480fc307 "
                 "668c1f 8c1f 660ff7c1 0f010f 0f0107 0fae27")
_CHANGES = _forms("480107 ff07 80375a f0480fb137 f00fc70f f0480fc70f 488707 8607 f0480fab07 48d327 668e1f 8e2f 480fba2f05 48f71f 66ff0f "
                  "8f07 ff37 48ff27 48ff17 480fa4070c 480fc107 48ff2f")
_SYSTEM = _forms("0f01d9 0f01d8 0f01da 0f01db 0f01dc 0f01dd 0f01de 0f01df 0f31 0f01f9 0f33 0f08 0f09 0f013f 0fa2 f4 fa fb fbf4 0f01f8 "
                 "0f05 480f07 0f07 0f34 0f35 480f35 0f06 0f01f0 0f01e0 cc f1 48cf cf 0f0b 0f01d0 0f01d1 0f01c8 0f01c9 0f01d4 0f01ca "
                 "0f01cb f390 0f77 9b 0f00d8 0f00d0 0f00c8 0f0117 0f011f f30fc7f8 0f0d07 0fae3f f30f01e8 660f388007 48cb cb c8000000 "
                 "c9 9d 9c 0f30 0f32 ea 0fff d6 f30f1efa 0f02c0 0f03c0 0f00e0")
_REPEATED = _forms("f3a4 f348a5 f3aa f348ab f3a6 f348af f36c f36d f36e f36f f3ac 67f3a4 64f3a5")
_ASKED = _forms("0f01d9 0f31 0fa2 0f01f9 0f08")
"""What the core is asked for."""
SYSTEM_FORMS = _SYSTEM


@dataclass(frozen=True)
class Places:
    """What a program aims at: `core` are addresses of the core's parts and pages, `registers` those of devices and units, `edge` others
    that hurt, `edu` and `nvme` where those answer (None: nowhere), all guest-physical, which is as it is virtual at first."""

    core: tuple[int, ...]
    registers: tuple[int, ...]
    edge: tuple[int, ...]
    edu: int | None
    nvme: int | None

    def address(self, r: Random) -> int:
        """An address that hurts."""
        return self._address(r) & (1 << 64) - 1

    def _address(self, r: Random) -> int:
        kind = r.randrange(8)
        if kind < 4:
            return r.choice(self.core) + r.choice((0, 0, 8, 0x60, 0xB0, 0x578, 0xFF8, 0xFFF, 8 * r.randrange(512)))
        if kind == 4:
            return r.choice(self.registers) + r.choice((0, 4, 8, 0x14, 0x18, 0x20, 0x28, 0x64, 0x88, 0x90, 0x98, 0x1000, r.randrange(4096)))
        if kind == 5:
            return r.choice(self.edge) + r.choice((-8, -4, -1, 0, 1, 8))
        return r.choice((TABLES, QUEUES, NOISE, STACK, IDT)) + r.randrange(4096) if kind == 6 else number(r, r.choice((32, 40, 41, 64)))


def _load(register: int, value: int) -> bytes:
    """MOV of a 64-bit number into a register by its number."""
    return bytes((0x48 | register >> 3, 0xB8 | register & 7)) + (value & (1 << 64) - 1).to_bytes(8, "little")


_RAX, _RCX, _RDX, _RSI, _RDI = 0, 1, 2, 6, 7


def _store4(address: int, value: int) -> bytes:
    """A store of 4 bytes, by RDI."""
    return _load(_RDI, address) + b"\xc7\x07" + (value & 0xFFFFFFFF).to_bytes(4, "little")


def _wait(address: int, turns: int) -> bytes:
    """Reads a register again and again, which lets time pass."""
    return _load(_RDI, address) + b"\xb9" + turns.to_bytes(4, "little") + bytes.fromhex("8b07e2fc")


class _Writer:
    """Writes slots."""

    def __init__(self, r: Random, places: Places):
        self.r, self.places = r, places

    def slot(self) -> bytes:
        """One slot."""
        write = self.r.choices(*zip(*_KINDS, strict=True))[0]
        code: bytes = write(self)
        return code

    def access(self) -> bytes:
        """A load, a store, or both, of any width."""
        code = self.r.choice(self.r.choice((_LOADS, _STORES, _STORES, _CHANGES)))
        return _load(_RDI, self.places.address(self.r)) + _load(_RAX, number(self.r, 64)) + code

    def ports(self) -> bytes:
        """IN or OUT of any width."""
        port = self.r.choice(_PORTS) if often(self.r, 0.85) else self.r.getrandbits(16)
        opcode = self.r.choice(("ee", "ef", "66ef", "ec", "ed", "66ed"))
        value = self.r.choice((0x80000000 | self.r.getrandbits(16) << 2, 6, 0xFE, number(self.r, 32)))
        return _load(_RDX, port) + _load(_RAX, value) + bytes.fromhex(opcode)

    def system(self) -> bytes:
        """An instruction of the system's, with registers that hurt."""
        at = self.places.address(self.r)
        return (_load(_RAX, self.r.choice((at, 0, number(self.r, 32)))) + _load(_RCX, number(self.r, 32)) + _load(_RDX, number(self.r, 32))
                + _load(_RDI, self.places.address(self.r)) + self.r.choice(_SYSTEM))

    def common(self) -> bytes:
        """An instruction at which the core is asked."""
        return _load(_RAX, number(self.r, 3)) + self.r.choice(_ASKED)

    def msr(self) -> bytes:
        """RDMSR or WRMSR."""
        which = self.r.choice(_MSRS) if often(self.r, 0.85) else number(self.r, 32)
        return (_load(_RCX, which) + _load(_RAX, self.r.choice((number(self.r, 32), self.places.address(self.r))))
                + _load(_RDX, self.r.choice((0, number(self.r, 32)))) + self.r.choice((b"\x0f\x32", b"\x0f\x30")))

    def control(self) -> bytes:
        """MOV to or from a control or debug register."""
        r = self.r
        usual = r.choice((0x80010011, 0x80050033, 0x11, 0x620, 0x6F0, 0x406A0, TABLES, TABLES | 0x18, 0x400, 0xFFFF0FF0))
        value = usual ^ (1 << r.randrange(32) if often(r, 0.5) else 0) if often(r, 0.7) else number(r, 64)
        return (_load(_RAX, value) + r.choice((b"", b"", b"\x44")) + b"\x0f" + bytes((r.choice((0x20, 0x21, 0x22, 0x22, 0x23)),))
                + bytes((0xC0 | r.choice((0, 2, 3, 4, 8, 1, 5, 6, 7)) << 3 & 0x38,)))

    def descriptors(self) -> bytes:
        """LIDT, LGDT, LLDT or LTR with noise, then what uses it."""
        r = self.r
        at = r.choice((NOISE + r.randrange(_NOISE_SIZE), IDT, self.places.address(r)))
        load = bytes.fromhex(r.choice(("0f011f", "0f0117", "0f00d0", "0f00d8", "668ed8", "668ee8")))
        far = b"\x6a" + r.randbytes(1) + b"\x68" + r.randbytes(4) + b"\x48\xcb"
        use = r.choice((b"", b"\xcd" + r.randbytes(1), b"\x0f\x0b", b"\xcc", far))
        return _load(_RDI, at) + _load(_RAX, number(r, 16)) + load + use

    def interrupt(self) -> bytes:
        """INT n, or a return to a frame of noise."""
        r = self.r
        if often(r, 0.5):
            return b"\xcd" + bytes((r.choice((0, 1, 3, 4, 8, 13, 14, 32, 36, 0x80, 255, r.randrange(256))),))
        frame = (r.choice((0x18, 0x1B, 0, number(r, 16))), r.choice((STACK, number(r, 64))), r.choice((2, 0x202, 0x3302, number(r, 32))),
                 r.choice((0x10, 0x13, 0x18, number(r, 16))), r.choice((CODE + r.randrange(4096), NOISE, number(r, 64))))
        return b"".join(_load(_RAX, word) + b"\x50" for word in frame) + b"\x48\xcf"

    def long_move(self) -> bytes:
        """A repeated string instruction over a range that is short, or reaches far."""
        r = self.r
        count = r.choice((1, 64, 4096, 4096, 0x10000, number(r, 20)))
        ends = _load(_RDI, self.places.address(r)) + _load(_RSI, self.places.address(r))
        return (ends + _load(_RCX, count) + _load(_RDX, r.choice(_PORTS)) + _load(_RAX, number(r, 64)) + r.choice((b"", b"", b"\xfd"))
                + r.choice(_REPEATED))

    def jump(self) -> bytes:
        """Into noise, or anywhere."""
        at = self.r.choice((NOISE + self.r.randrange(_NOISE_SIZE), self.places.address(self.r), STACK))
        return _load(_RAX, at) + self.r.choice((b"\xff\xe0", b"\xff\xd0"))

    def noise(self) -> bytes:
        """Bytes."""
        return self.r.randbytes(self.r.randint(1, SLOT // 2))

    def edu(self) -> bytes:
        """A transfer of the edu device, or nonsense in its registers."""
        r, base = self.r, self.places.edu
        if base is None:
            return self.access()
        if often(r, 0.2):
            return _store4(base + r.choice((0x04, 0x08, 0x20, 0x60, 0x64, 0x80, 0x88, 0x90, 0x98, r.randrange(256))), number(r, 32))
        to_ram, inside = often(r, 0.7), BUFFER + r.choice((0, 0, 0, r.randrange(4096), number(r, 13)))
        target = self.places.address(r)
        ends = (inside, target) if to_ram else (target, inside)
        registers = [(0x80, ends[0]), (0x84, ends[0] >> 32), (0x88, ends[1]), (0x8C, ends[1] >> 32),
                     (0x90, r.choice((4, 8, 64, 512, 4096, number(r, 13)))), (0x98, 1 | to_ram << 1 | r.choice((0, 0, 4)))]
        code = _load(_RDI, base) + b"".join(b"\xc7\x87" + struct.pack("<II", at, value & 0xFFFFFFFF) for at, value in registers)
        return code + _wait(base + 0x98, 120)

    def nvme_start(self) -> bytes:
        """The controller off, other admin queues, on again."""
        r, base = self.r, self.places.nvme
        if base is None:
            return self.access()
        asq = r.choice((QUEUES, QUEUES, QUEUES, self.places.address(r)))
        acq = r.choice((QUEUES + 0x8000, QUEUES + 0x8000, self.places.address(r)))
        writes = [(0x14, 0), (0x24, r.choice((0x003F003F, 0x003F003F, number(r, 32)))), (0x28, asq), (0x2C, asq >> 32), (0x30, acq),
                  (0x34, acq >> 32), (0x14, r.choice((0x460001, 0x460001, 0x460001, number(r, 32))))]
        return (_load(_RDI, base) + b"".join(b"\xc7\x87" + struct.pack("<II", at, value & 0xFFFFFFFF) for at, value in writes)
                + _wait(base + 0x1C, 40))

    def doorbell(self) -> bytes:
        """A doorbell, or another register."""
        r, base = self.r, self.places.nvme
        if base is None:
            return self.access()
        at = 0x1000 + 4 * r.choice((0, 0, 0, 0, 1, 2, 3, r.randrange(1024))) if often(r, 0.85) else r.randrange(0x4000)
        return _store4(base + at, r.choice((1, 2, 8, 16, 40, 63, number(r, 16)))) + _wait(base + 0x1C, 100)

    def queue_entry(self) -> bytes:
        """A word of a queue, or of the guest's own tables, changes."""
        at = self.r.choice((QUEUES, TABLES)) + 8 * self.r.randrange(512)
        return _load(_RDI, at) + _load(_RAX, self.r.choice((self.places.address(self.r), number(self.r, 64)))) + b"\x48\x89\x07"

    def own_tables(self) -> bytes:
        """CR3 takes tables of noise."""
        root = TABLES + PAGE * self.r.choice((0, 0, 0, self.r.randrange(16)))
        return _load(_RAX, root) + b"\x0f\x22\xd8" + _load(_RDI, self.places.address(self.r)) + b"\x48\x8b\x07\x48\x89\x07"


_KINDS: tuple[tuple[Callable[[_Writer], bytes], float], ...] = (
    (_Writer.access, 10), (_Writer.ports, 4), (_Writer.system, 5), (_Writer.common, 3), (_Writer.msr, 3), (_Writer.control, 0.7),
    (_Writer.descriptors, 0.5), (_Writer.interrupt, 0.5), (_Writer.long_move, 2), (_Writer.jump, 0.5), (_Writer.noise, 1), (_Writer.edu, 5),
    (_Writer.nvme_start, 1.5), (_Writer.doorbell, 2.5), (_Writer.queue_entry, 1), (_Writer.own_tables, 0.3))

_END = bytes.fromhex("fbf4fbf4ebfa")                                  # STI, HLT, for ever
_SAY = b"".join(b"\x66\xba\xf8\x03\xb0" + bytes((c,)) + b"\xee" for c in b"lab: ready\n")


def _code(r: Random, places: Places, slots: int) -> bytes:
    """Entry, dispatcher and slots, in this order, at CODE: the dispatcher goes to the slot that the counter names, which it moves on."""
    writer = _Writer(r, places)
    rows = [writer.slot() for _ in range(slots)]
    last = (_SAY if often(r, 0.5) else b"") + r.choice((_END, _END, b"\xfa\xf4", b"\xeb\xfe" if often(r, 0.1) else _END))
    start = _load(_RDI, IDT + 0x1010) + b"\x0f\x01\x1f" + r.choice((b"\x90", b"\x90", b"\xfb"))
    dispatch = bytes.fromhex("fc") + _load(_RDI, COUNTER) + _load(4, STACK) + bytes.fromhex("488b07 488107") + struct.pack("<I", SLOT)
    head = (start + dispatch + b"\xff\xe0").ljust(SLOT, b"\x90")
    return head + b"".join(_closed(row, SLOT * (i + 2) - _START) for i, row in enumerate(rows)) + last


def _closed(row: bytes, back: int) -> bytes:
    """A slot of its full size, from whose end it is `back` bytes to the dispatcher: no slot falls into the next one."""
    return row[:SLOT - 5].ljust(SLOT - 5, b"\x90") + b"\xe9" + struct.pack("<i", -back)


def _gates() -> bytes:
    """An IDT in which every vector leads to the dispatcher, then at +0x1010 its pseudo-descriptor."""
    at = CODE + _START
    gate = struct.pack("<HHHHII", at & 0xFFFF, 0x10, 0x8E00, at >> 16 & 0xFFFF, at >> 32, 0)
    return (gate * 256).ljust(0x1010, b"\0") + struct.pack("<HQ", 0xFFF, IDT)


def _tables(r: Random, places: Places) -> bytes:
    """Sixteen page tables of the guest's own: entries to one another, large ones, noise."""
    kinds = (lambda: TABLES + PAGE * r.randrange(16) | 7, lambda: places.address(r) & (1 << 52) - PAGE | r.choice((3, 7, 0x83, 0xE7)),
             lambda: r.randrange(1024) << 30 | 0x83, lambda: 0, lambda: number(r, 64))
    words = [make() for make in r.choices(kinds, (4, 2, 1, 1, 2), k=16 * 512)]
    if often(r, 0.7):
        words[0] = TABLES + PAGE | 7
        words[512:1024] = [i << 30 | 0x87 for i in range(512)]
    return struct.pack(f"<{len(words)}Q", *words)


def _queues(r: Random, places: Places) -> bytes:
    """Submission entries that a controller carries out, with addresses that hurt, some of them with noise; the rest noise."""
    entries = []
    for i in range(128):
        a, b = places.address(r), places.address(r)
        admin = r.choice(tuple(AdminOpcode)) if often(r, 0.7) else r.choice(tuple(NvmOpcode))
        entry = bytearray(Command(admin, 0, i, r.choice((0, 1, 1, 0xFFFFFFFF)), 0, 0, a, b, r.choice((0, 1, 2, 0x1F0001, number(r, 32))),
                                  r.choice((0, 1, 3, 0x10001, number(r, 32))), r.choice((0, 1, 7, 0xFFFF, number(r, 32)))).pack())
        if often(r, 0.2):
            entry[r.randrange(64)] = r.randrange(256)
        entries.append(bytes(entry))
    return b"".join(entries)


def program(r: Random, places: Places, slots: int) -> Elf:
    """A guest of so many slots."""
    code = _code(r, places, slots)
    segments = ((CODE, code, len(code)), (TABLES, _tables(r, places), 0x1_0000), (QUEUES, _queues(r, places), 0x1_0000),
                (NOISE, r.randbytes(_NOISE_SIZE), _NOISE_SIZE), (IDT, _gates(), 0x2000), (STACK - 0x1000, b"", 0x1000),
                (COUNTER, struct.pack("<Q", CODE + SLOT), 0x1000))
    return Elf(CODE, tuple(Segment(address, data, size) for address, data, size in segments))
