"""Bit fields and registers as declarations: what a register is, from which decoding, write rules and displays derive."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Access", "Field", "Layout", "Register", "align_down", "align_up", "bit", "mask", "parse_number"]


def bit(n: int) -> int:
    """The value with only bit `n` set."""
    return 1 << n


def mask(high: int, low: int = 0) -> int:
    """The value with bits `high`..`low` set, both included."""
    return (1 << (high - low + 1)) - 1 << low


def align_down(value: int, unit: int) -> int:
    """`value` lowered to a multiple of `unit`."""
    return value - value % unit


def align_up(value: int, unit: int) -> int:
    """`value` raised to a multiple of `unit`."""
    return -(-value // unit) * unit


def parse_number(text: str) -> int:
    """A whole number from text as people write it: `4096`, `0x1000`.

    Raises ValueError for all else, underscores and digits of other scripts among it.
    """
    if "_" in text or not text.isascii():
        raise ValueError(f"{text!r} is no number")
    return int(text, 0)


class Access(Enum):
    """How software may use a register or field."""

    RO = "read-only"
    RW = "read-write"
    WO = "write-only"
    W1C = "write 1 to clear"
    W1S = "write 1 to set"


@dataclass(frozen=True, slots=True)
class Field:
    """Bits `high`..`low` (both included) of a word, by the specification's name."""

    name: str
    high: int
    low: int
    note: str = ""

    @property
    def mask(self) -> int:
        """The field's bits, in place."""
        return mask(self.high, self.low)

    def get(self, word: int) -> int:
        """The field's value in `word`."""
        return (word & self.mask) >> self.low

    def put(self, word: int, value: int) -> int:
        """`word` with the field set to `value` (which must fit)."""
        if value >> (self.high - self.low + 1):
            raise ValueError(f"{value:#x} does not fit the field {self.name} ({self.high}:{self.low})")
        return word & ~self.mask | value << self.low


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields of one word."""

    name: str
    fields: tuple[Field, ...]

    def __getitem__(self, name: str) -> Field:
        for f in self.fields:
            if f.name == name:
                return f
        raise KeyError(f"{self.name} has no field {name}")

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def get(self, word: int, name: str) -> int:
        """The value of field `name` in `word`."""
        return self[name].get(word)

    def decode(self, word: int) -> dict[str, int]:
        """Every field by name; bits of no field come as `unknown` where any is set."""
        known = {f.name: f.get(word) for f in self.fields}
        rest = word & ~sum(f.mask for f in self.fields)
        return known | ({"unknown": rest} if rest else {})

    def make(self, **values: int) -> int:
        """The word with the given fields, the rest zero."""
        word = 0
        for name, value in values.items():
            word = self[name].put(word, value)
        return word


@dataclass(frozen=True, slots=True)
class Register:
    """One register: where it lies, how wide it is (bits), what may be written, what it is after reset.

    `write_mask` are the bits that take what is written, `w1c_mask` those that a written 1 clears, `hidden` those that read as 0 whatever
    they hold, because they are write-only.
    """

    name: str
    offset: int
    width: int
    access: Access
    section: str
    layout: Layout | None = None
    write_mask: int = 0
    w1c_mask: int = 0
    reset: int = 0
    note: str = field(default="", compare=False)
    hidden: int = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return self.width // 8

    def written(self, old: int, value: int) -> int:
        """What the register holds after `value` is written over `old`, by its masks alone."""
        return (old & ~self.write_mask | value & self.write_mask) & ~(value & self.w1c_mask)
