"""Guests that execute any bytes at all, in ring 0 and ring 3, as 64-bit and 32-bit code, with an operating system's tables around them:
descriptor tables, a TSS with its stacks, SYSCALL, an IDT in which every gate leads to the next piece of code."""

import struct
from random import Random

from hvcore.spec.linuxboot import Elf, Segment

from .mutate import number, often
from .programs import SYSTEM_FORMS, Places

__all__ = ["any_code", "piece"]

_CODE, _PIECES, _DATA, _TABLES, _STACK, _COUNTER = 0x100_0000, 0x110_0000, 0x120_0000, 0x130_0000, 0x131_0000, 0x132_0000
_GDT, _IDT, _TSS, _GDTR, _IDTR = _DATA, _DATA + 0x1000, _DATA + 0x2000, _DATA + 0x3000, _DATA + 0x3010
_PIECE = 64
_USER_CS, _USER_CS_32, _USER_DS, _CS, _CS_32, _DS, _TR = 0x33, 0x23, 0x2B, 0x10, 0x48, 0x18, 0x38
_PREFIXES = (0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x2E, 0x36, 0x64, 0x65, *range(0x40, 0x50))
_MAPS = (b"\x0f", b"\x0f", b"\x0f\x38", b"\x0f\x3a", b"\xc4", b"\xc5", b"\x62", b"\x8f")
_RARE = tuple(map(bytes.fromhex, ("31c00f00d8", "31c00f00d0", "f00fabc0", "f0480fbae805", "66f00fb3c1", "0fc7f0", "0fc7f8", "9a0000000010",
                                  "ff1f", "ff2f", "48cb", "cb", "0f23f8", "0f01d1", "0faa")))
"""A task register, a table and bits that are not there, randomness, far calls."""
_SAY = b"".join(b"\x66\xba\xf8\x03\xb0" + bytes((c,)) + b"\xee" for c in b"lab: ready\n")


def piece(r: Random) -> bytes:
    """Bytes that may be instructions."""
    code = b""
    while len(code) < _PIECE:
        kind = r.randrange(5)
        if kind == 0:
            code += r.randbytes(r.randint(1, 24))
        elif kind == 1:
            code += r.choice(SYSTEM_FORMS if often(r, 0.7) else _RARE)
        else:
            prefixes = bytes(r.choice(_PREFIXES) for _ in range(r.choice((0, 0, 1, 1, 2))))
            code += prefixes + (b"" if kind == 2 else r.choice(_MAPS)) + r.randbytes(r.choice((2, 3, 6)))
    return code[:_PIECE]


def _mov(register: int, value: int) -> bytes:
    """MOV of 32 bits, extended by zeros."""
    return bytes((0xB8 | register,)) + struct.pack("<I", value & 0xFFFFFFFF)


def _wrmsr(msr: int, value: int) -> bytes:
    return _mov(1, msr) + _mov(0, value) + _mov(2, value >> 32) + b"\x0f\x30"


def _handler(r: Random, places: Places, end: int, user: bool) -> bytes:
    """Takes a stack, the next piece and some addresses in registers, and goes there by IRETQ; after the last, it waits or halts."""
    flags = 2 | r.choice((0, 0, 1 << 8, 1 << 9, 1 << 9, 1 << 18, 3 << 12, r.getrandbits(19) & ~(1 << 17)))
    segment = r.choice((_USER_CS, _USER_CS, _USER_CS_32) if user else (_CS, _CS, _CS_32))
    words = (_USER_DS if user else _DS, _STACK + 0x800, flags, segment)
    frame = b"".join(b"\x68" + struct.pack("<I", word) for word in words)
    registers = b"".join(b"\x48" + bytes((0xB8 | n,)) + struct.pack("<Q", places.address(r)) for n in (3, 6, 7))
    go = frame + b"\x50" + registers + b"\x48\xcf"
    last = (_SAY if often(r, 0.5) else b"") + r.choice((b"\xfb\xf4\xeb\xfc", b"\xfa\xf4"))
    take = _mov(4, _STACK + 0x3000) + _mov(7, _COUNTER) + b"\x48\x8b\x07\x48\x81\x07" + struct.pack("<I", _PIECE)
    return take + b"\x48\x3d" + struct.pack("<I", end) + b"\x0f\x83" + struct.pack("<I", len(go)) + go + last


def _start(handler: int) -> bytes:
    load = b"\x0f\x01\x14\x25" + struct.pack("<I", _GDTR) + b"\x0f\x01\x1c\x25" + struct.pack("<I", _IDTR)
    return (_mov(0, _TABLES) + b"\x0f\x22\xd8" + load + _mov(0, _TR) + b"\x0f\x00\xd8"
            + _wrmsr(0xC0000081, _CS << 32 | 0x20 << 48) + _wrmsr(0xC0000082, handler)
            + _wrmsr(0xC0000084, 0x700) + b"\xcd\x20")


def _descriptors(r: Random, handler: int) -> bytes:
    """GDT, IDT, TSS and the two pseudo-descriptors; some of it spoilt."""
    data = bytearray(0x4000)
    descriptors = [0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF,
                   0x67 | (_TSS & 0xFFFFFF) << 16 | 0x89 << 40 | (_TSS >> 24) << 56, 0, 0x00CF9B000000FFFF]
    struct.pack_into(f"<{len(descriptors)}Q", data, 0, *descriptors)
    for vector in range(256):
        kind = r.choice((0xEE, 0xEE, 0xEE, 0xEF, 0x8E, number(r, 8) if often(r, 0.1) else 0xEE))
        words = (handler & 0xFFFF, _CS, kind << 8 | r.choice((0, 0, 1, 2)), handler >> 16, 0, 0)
        struct.pack_into("<HHHHII", data, 0x1000 + 16 * vector, *words)
    for slot, stack in ((4, _STACK + 0x2000), (0x24, _STACK + 0x2800), (0x2C, r.choice((_STACK + 0x2408, number(r, 64))))):
        struct.pack_into("<Q", data, 0x2000 + slot, stack)
    struct.pack_into("<H", data, 0x2066, 0x68)
    struct.pack_into("<HQ", data, 0x3000, 8 * len(descriptors) - 1, _GDT)
    struct.pack_into("<HQ", data, 0x3010, r.choice((0xFFF, 0xFFF, 0x1FF)), _IDT)
    return bytes(data)


def _tables(user: bool) -> bytes:
    """The first GiB belongs to every ring, or to none but the kernel's; the others are the kernel's."""
    rights = 7 if user else 3
    words = [_TABLES + 0x1000 | 7, *[0] * 511, *(i << 30 | 0x80 | (rights if not i else 3) for i in range(512))]
    return struct.pack(f"<{len(words)}Q", *words)


def any_code(r: Random, places: Places, slots: int) -> Elf:
    """A guest of so many pieces of code, all in ring 0 or all in ring 3."""
    user = often(r, 0.6)
    pieces = b"".join(piece(r) for _ in range(slots))
    handler = _CODE + 0x800
    code = _start(handler).ljust(0x800, b"\x90") + _handler(r, places, _PIECES + len(pieces), user)
    segments = ((_CODE, code, len(code)), (_PIECES, pieces, len(pieces) + 0x1000), (_DATA, _descriptors(r, handler), 0x4000),
                (_TABLES, _tables(user), 0x2000), (_STACK, r.randbytes(0x1000), 0x4000), (_COUNTER, struct.pack("<Q", _PIECES), 0x1000))
    return Elf(_CODE, tuple(Segment(address, data, size) for address, data, size in segments))
