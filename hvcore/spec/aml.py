"""ACPI machine language: the byte encodings of definition blocks, as far as firmware's tables need them (ACPI 6.5, section 20), and of
resource descriptors (section 6.4).

Every function returns bytes, to be put together: `scope("_SB", device("PCI0", name("_HID", eisa_id("PNP0A08"))))`.  Ranges are half-open.
What cannot be encoded raises `ValueError`.
"""

import re
import struct

__all__ = ["NOWHERE", "and_", "arg", "buffer", "create_dword_field", "device", "dword_memory", "eisa_id", "integer", "io", "irq", "local",
           "memory32_fixed", "method", "name", "name_string", "not_equal", "or_", "package", "package_length", "qword_memory", "resources",
           "return_", "scope", "store", "string", "uuid", "word_bus", "word_io"]

_ONES = (1 << 64) - 1
_SEGMENT = re.compile("[A-Z_][A-Z0-9_]{0,3}")
_DUAL_NAME, _MULTI_NAME = b"\x2e", b"\x2f"
NOWHERE = b"\0"
"""The target of an operation whose result is not stored."""


def package_length(size: int) -> bytes:
    """The length of a package whose content has `size` bytes: it counts its own 1 to 4 bytes, too (section 20.2.4)."""
    if size + 1 < 1 << 6:
        return bytes([size + 1])
    for more in (1, 2, 3):
        total = size + 1 + more
        if total < 1 << 4 + 8 * more:
            return bytes([more << 6 | total & 0xF]) + (total >> 4).to_bytes(more, "little")
    raise ValueError(f"a package of {size:#x} bytes is longer than AML can say")


def _packed(opcode: bytes, content: bytes) -> bytes:
    return opcode + package_length(len(content)) + content


# Names and data (sections 20.2.2 and 20.2.3)


def name_string(path: str) -> bytes:
    """A name or path as `COM1`, `\\_SB.PCI0`, `^PCI0`; segments are padded to four characters."""
    relative = path.lstrip("\\^")
    prefix, segments = path[:len(path) - len(relative)], relative.split(".") if relative else []
    wrong = next((s for s in segments if not _SEGMENT.fullmatch(s)), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} in {path!r} is no ACPI name: 1 to 4 of A-Z, 0-9 and _, no digit first")
    heads = {0: b"\0", 1: b"", 2: _DUAL_NAME}
    head = heads[len(segments)] if len(segments) in heads else _MULTI_NAME + bytes([len(segments)])
    return prefix.encode() + head + "".join(s.ljust(4, "_") for s in segments).encode()


def integer(value: int) -> bytes:
    """A number of up to 64 bits in its shortest form."""
    if not 0 <= value <= _ONES:
        raise ValueError(f"{value:#x} is no number of 64 bits")
    if value in (0, 1, _ONES):
        return bytes([value & 0xFF])
    opcode, width = next((o, w) for o, w in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)) if value < 1 << 8 * w)
    return bytes([opcode]) + value.to_bytes(width, "little")


def string(text: str) -> bytes:
    """ASCII without NUL."""
    if not text.isascii() or "\0" in text:
        raise ValueError(f"{text!r} is no string of AML: ASCII without NUL")
    return b"\x0d" + text.encode("ascii") + b"\0"


def buffer(data: bytes) -> bytes:
    """Bytes, with their number."""
    return _packed(b"\x11", integer(len(data)) + data)


def package(*elements: bytes) -> bytes:
    """A list of encoded objects; of more than 255 with its length as an integer."""
    if len(elements) > 0xFF:
        return _packed(b"\x13", integer(len(elements)) + b"".join(elements))
    return _packed(b"\x12", bytes([len(elements)]) + b"".join(elements))


def eisa_id(text: str) -> bytes:
    """A compressed id such as `PNP0A08`: three letters of 5 bits, four hexadecimal digits, big-endian (section 19.6.37)."""
    if not re.fullmatch("[A-Z]{3}[0-9A-F]{4}", text):
        raise ValueError(f"{text!r} is no EISA id: three letters and four hexadecimal digits")
    number = int(text[3:], 16)
    for letter, shift in zip(text[:3], (26, 21, 16), strict=True):
        number |= ord(letter) - ord("@") << shift
    return integer(int.from_bytes(number.to_bytes(4, "big"), "little"))


def uuid(text: str) -> bytes:
    """The 16 bytes of a UUID in the mixed order of section 19.6.142 (its first three fields are little-endian), as a buffer."""
    fields = text.split("-")
    if not re.fullmatch("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        raise ValueError(f"{text!r} is no UUID")
    return buffer(b"".join(bytes.fromhex(f)[::-1 if i < 3 else 1] for i, f in enumerate(fields)))


# Objects (section 20.2.5)


def name(path: str, value: bytes) -> bytes:
    """A name for an encoded object."""
    return b"\x08" + name_string(path) + value


def scope(path: str, *content: bytes) -> bytes:
    """Objects in a scope that exists."""
    return _packed(b"\x10", name_string(path) + b"".join(content))


def device(path: str, *content: bytes) -> bytes:
    """A device with its objects."""
    return _packed(b"\x5b\x82", name_string(path) + b"".join(content))


def method(path: str, arguments: int, *terms: bytes, serialized: bool = False) -> bytes:
    """A method of 0 to 7 arguments; `serialized`: one caller at a time."""
    if not 0 <= arguments <= 7:
        raise ValueError(f"a method has 0 to 7 arguments, not {arguments}")
    return _packed(b"\x14", name_string(path) + bytes([arguments | serialized << 3]) + b"".join(terms))


# Terms of methods: no control flow


def arg(number: int) -> bytes:
    """An argument, from 0 on."""
    return bytes([0x68 + range(7)[number]])


def local(number: int) -> bytes:
    """A local variable, from 0 on."""
    return bytes([0x60 + range(8)[number]])


def store(value: bytes, target: bytes) -> bytes:
    """Puts a value into `target`."""
    return b"\x70" + value + target


def and_(left: bytes, right: bytes, target: bytes = NOWHERE) -> bytes:
    """Bitwise and, also into `target`."""
    return b"\x7b" + left + right + target


def or_(left: bytes, right: bytes, target: bytes = NOWHERE) -> bytes:
    """Bitwise or, also into `target`."""
    return b"\x7d" + left + right + target


def not_equal(left: bytes, right: bytes) -> bytes:
    """All ones where two objects differ, else 0."""
    return b"\x92\x93" + left + right


def create_dword_field(data: bytes, offset: int, path: str) -> bytes:
    """Names four bytes of a buffer, from `offset` on."""
    return b"\x8a" + data + integer(offset) + name_string(path)


def return_(value: bytes) -> bytes:
    """Ends the method."""
    return b"\xa4" + value


# Resource descriptors

_MEMORY, _IO, _BUS = range(3)
_FIXED = 1 << 2 | 1 << 3
"""General flags: both ends are where they are."""
_CONSUMER = 1 << 0
_WRITABLE, _ENTIRE_RANGE = 1 << 0, 3


def resources(*descriptors: bytes) -> bytes:
    """A resource template: the buffer of the descriptors and the end tag."""
    return buffer(b"".join(descriptors) + b"\x79\0")


def irq(*numbers: int) -> bytes:
    """ISA interrupts: edge-triggered, active high, not shared (section 6.4.2.1)."""
    return struct.pack("<BH", 0x22, sum({1 << range(16)[n] for n in numbers}))


def io(start: int, count: int) -> bytes:
    """`count` I/O ports at `start`, decoded by 16 bits (section 6.4.2.5)."""
    _inside(start, start + count, 16)
    return struct.pack("<BBHHBB", 0x47, 1, start, start, 1, count)


def memory32_fixed(start: int, end: int) -> bytes:
    """Memory below 4 GiB that a device takes, writable (section 6.4.3.4)."""
    _inside(start, end, 32)
    return struct.pack("<BHBII", 0x86, 9, _WRITABLE, start, end - start)


def word_bus(first: int, last: int) -> bytes:
    """PCI bus numbers behind a host bridge, both included (section 6.4.3.5.3)."""
    return _address_space("H", 0x88, _BUS, _FIXED, 0, first, last + 1)


def word_io(start: int, end: int) -> bytes:
    """I/O ports that a host bridge forwards."""
    return _address_space("H", 0x88, _IO, _FIXED, _ENTIRE_RANGE, start, end)


def dword_memory(start: int, end: int) -> bytes:
    """Memory below 4 GiB that a host bridge forwards, writable and not cached (section 6.4.3.5.2)."""
    return _address_space("I", 0x87, _MEMORY, _FIXED, _WRITABLE, start, end)


def qword_memory(start: int, end: int, consumed: bool = False) -> bytes:
    """The same with 64 bits (section 6.4.3.5.1); `consumed`: a device takes it for itself."""
    return _address_space("Q", 0x8A, _MEMORY, _FIXED | (_CONSUMER if consumed else 0), _WRITABLE, start, end)


def _address_space(code: str, tag: int, kind: int, general: int, specific: int, start: int, end: int) -> bytes:
    """A descriptor of minimum, maximum and length with no granularity and no translation."""
    _inside(start, end, 8 * struct.calcsize(code))
    body = struct.pack(f"<BBB5{code}", kind, general, specific, 0, start, end - 1, 0, end - start)
    return struct.pack("<BH", tag, len(body)) + body


def _inside(start: int, end: int, bits: int) -> None:
    """Raises ValueError for a range that a descriptor of so many bits cannot hold: empty, too high, or all of it."""
    if not 0 <= start < end <= 1 << bits or end - start == 1 << bits:
        raise ValueError(f"[{start:#x}, {end:#x}) does not fit a descriptor of {bits} bits")
