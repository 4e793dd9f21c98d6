"""What one step of an explanation rests on: the raw words with their fields, where an entry lies, which bits of a number led to it."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..spec import vtd
from ..spec.bits import Field, Layout
from .meanings import meaning

__all__ = ["Cut", "Evidence", "FieldValue", "Place", "Word", "iova_cut", "requester_cut"]


@dataclass(frozen=True, slots=True)
class FieldValue:
    """A field of a word: its value, and what that means (None: it does not count for the step)."""

    field: Field
    value: int
    meaning: str | None = None


@dataclass(frozen=True, slots=True)
class Word:
    """A raw word of `width` bits and its layout.

    What speaks against the request: `offends` are set bits that must be zero, `lacks` clear bits that had to be set.
    """

    name: str
    layout: Layout
    value: int
    width: int = 64
    offends: int = 0
    lacks: int = 0

    @property
    def fields(self) -> Iterator[FieldValue]:
        """Every field, from the highest bit down."""
        for f in sorted(self.layout, key=lambda f: -f.high):
            value = f.get(self.value)
            yield FieldValue(f, value, meaning(self.layout.name, f.name, value))


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry lies: number `index` of the table at host-physical `table`, whose entries have `size` bytes.

    `level` is the table's level of paging, None where it has none.
    """

    table: int
    index: int
    size: int
    level: int | None = None

    @property
    def address(self) -> int:
        """The entry, host-physical."""
        return self.table + self.size * self.index


@dataclass(frozen=True, slots=True)
class Cut:
    """A number cut into the fields of `layout`, of which a step uses those named in `used`."""

    layout: Layout
    value: int
    used: tuple[str, ...]

    @property
    def fields(self) -> Iterator[FieldValue]:
        """Every field, from the highest bit down."""
        return (FieldValue(f, f.get(self.value)) for f in self.layout)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a step rests on, and the section of the VT-d specification (revision 2.4) that says so."""

    section: str = ""
    words: tuple[Word, ...] = ()
    place: Place | None = None
    cut: Cut | None = None


_REQUESTER = Layout("requester id", (Field("bus", 15, 8), Field("device", 7, 3), Field("function", 2, 0)))


def requester_cut(source: int, *used: str) -> Cut:
    """A requester id as bus, device and function, of which those `used` count."""
    return Cut(_REQUESTER, source, used)


def iova_cut(iova: int, levels: int, *used: str) -> Cut:
    """An IOVA as tables of so many levels cut it: `level N` for the index at each level, `offset` in a 4 KiB page, `beyond` the rest."""
    top = vtd.level_shift(levels + 1)
    indices = [Field(f"level {n}", min(vtd.level_shift(n + 1), 64) - 1, vtd.level_shift(n)) for n in range(levels, 0, -1)]
    beyond = [Field("beyond", 63, top)] if top < 64 else []
    return Cut(Layout("IOVA", (*beyond, *indices, Field("offset", 11, 0))), iova, used)
