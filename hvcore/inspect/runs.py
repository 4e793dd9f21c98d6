"""Permission runs: the whole of an address space as half-open ranges in which rights and offset stay the same."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import format as show
from .records import Column, Record, Records

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "Runs"]

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, repr=False)
class Run(Record):
    """[start, end) of the walked address space, its rights (`rw`, `r`, `w`, `-`) and `offset` = host-physical - address, both in bytes."""

    start: int
    end: int
    perm: str
    offset: int

    title = "Permission runs"
    legend = "half-open; offset = host-physical - address; `-` holds an address but grants nothing"
    columns = (
        Column("start", lambda r: r.start, show.address, True), Column("end", lambda r: r.end, show.address, True),
        Column("size", lambda r: r.end - r.start, show.size, True), Column("perm", lambda r: r.perm),
        Column("offset", lambda r: r.offset, lambda v: f"{v:+#x}" if v else "0", True),
    )

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    def to_json(self) -> dict[str, Any]:
        """`start`, `end`, `perm`, `offset`."""
        return {"start": self.start, "end": self.end, "perm": self.perm, "offset": self.offset}


class _Items(Sequence[Run]):
    """Runs made from the arrays when they are asked for."""

    def __init__(self, runs: "Runs"):
        self.runs = runs

    def __len__(self) -> int:
        return len(self.runs.start)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        r = self.runs
        return Run(int(r.start[index]), int(r.end[index]), r.letters[int(r.rights[index])], int(r.offset[index]))


class Runs(Records[Run]):
    """Runs in ascending order, kept as arrays: `start` and `end` u64, `rights` u8 (an index into `letters`), `offset` i64."""

    def __init__(self, start: U64, end: U64, rights: U8, offset: I64, letters: tuple[str, ...], note: str = ""):
        self.start, self.end, self.rights, self.offset, self.letters = start, end, rights, offset, letters
        super().__init__(Run, _Items(self), note=note)

    @classmethod
    def of(cls, runs: Iterable[tuple[int, int, str, int]]) -> "Runs":
        """From (start, end, perm, offset) tuples in ascending order."""
        rows = list(runs)
        letters = tuple(sorted({perm for _, _, perm, _ in rows}))
        return cls(np.array([r[0] for r in rows], np.uint64), np.array([r[1] for r in rows], np.uint64),
                   np.array([letters.index(r[2]) for r in rows], np.uint8), np.array([r[3] for r in rows], np.int64), letters)

    def __iter__(self) -> Iterator[Run]:
        columns = (a.tolist() for a in (self.start, self.end, self.rights, self.offset))
        for start, end, rights, offset in zip(*columns, strict=True):
            yield Run(start, end, self.letters[rights], offset)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Records) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None

    def at(self, address: int) -> Run | None:
        """The run that holds `address`."""
        i = int(np.searchsorted(self.start, np.uint64(address), "right")) - 1
        return self[i] if i >= 0 and address < int(self.end[i]) else None

    def rights_at(self, addresses: ArrayLike) -> NDArray[np.str_]:
        """The rights at many addresses of the walked space, as the runs have them (`rw`, `r`, ...); `-` where there is no run."""
        wanted = np.asarray(addresses, np.uint64)
        i = np.searchsorted(self.start, wanted, "right").astype(np.int64)
        number = np.append(np.uint8(len(self.letters)), self.rights)[i]
        beyond = wanted >= np.append(np.uint64(0), self.end)[i]
        return np.array([*self.letters, "-"])[np.where(beyond, len(self.letters), number)]

    def below(self, end: int) -> "Runs":
        """What of the runs lies below address `end`."""
        if not len(self) or end >= int(self.end[-1]):
            return self
        count = int(np.searchsorted(self.start, np.uint64(end)))
        ends = np.minimum(self.end[:count], np.uint64(end))
        return Runs(self.start[:count], ends, self.rights[:count], self.offset[:count], self.letters, self.note)

    def reaching(self, host: int) -> Iterator[tuple[int, Run]]:
        """Each address that is mapped to host-physical `host`, with its run; `-` runs are not mappings."""
        base = self.start.astype(np.int64) + self.offset
        hit = (base <= host) & (host < base + (self.end - self.start).astype(np.int64)) & self.granting
        for i in np.flatnonzero(hit).tolist():
            yield host - int(self.offset[i]), self[i]

    @property
    def granting(self) -> NDArray[np.bool_]:
        """Which runs grant anything."""
        return np.array([letters != "-" for letters in self.letters], np.bool_)[self.rights] if len(self) else np.zeros(0, np.bool_)

    @property
    def frame(self) -> "pd.DataFrame":
        """A pandas frame: start, end, size, perm, offset."""
        import pandas as pd
        perm = pd.Categorical.from_codes(self.rights.astype(np.int16), categories=list(self.letters)) if len(self) else []
        return pd.DataFrame({"start": self.start, "end": self.end, "size": self.end - self.start, "perm": perm, "offset": self.offset},
                            index=pd.RangeIndex(len(self), name="run"))
