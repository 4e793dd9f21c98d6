"""The permission runs of a domain, and those of all domains in one table."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from . import format as show
from .domains import Domain
from .records import Column, Record, Records
from .runs import Run, Runs

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Permission", "Permissions", "permissions"]


def permissions(domain: Domain) -> Runs:
    """What the domain's devices may reach, by IOVA, over its whole address space [0, 2**input_bits).

    Runs of the tables that lie beyond that width are left out, since no request gets there.  What is in no run grants nothing; the note
    says what is not known.  In `vtd.INTERRUPT_RANGE` nothing is translated, whatever the tables hold.  For many addresses at once:
    `permissions(domain).rights_at(addresses)`.
    """
    runs = domain.runs.below(1 << domain.input_bits)
    return Runs(runs.start, runs.end, runs.rights, runs.offset, runs.letters, note=domain.remark or "")


def _of_run(value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda permission: value(permission.run)


@dataclass(frozen=True, slots=True, repr=False)
class Permission(Record):
    """One permission run of one domain; `unit` is the register base (None: a table from a file)."""

    unit: int | None
    did: int
    run: Run

    title = "Permissions"
    legend = Run.legend
    columns = (
        Column("unit", lambda p: p.unit, show.address, True), Column("did", lambda p: p.did, right=True),
        *(Column(c.name, _of_run(c.value), c.show, c.right) for c in Run.columns),
    )

    def to_json(self) -> dict[str, Any]:
        """The run's values with `unit` and `did`."""
        return {"unit": self.unit, "did": self.did, **self.run.to_json()}


class _Items(Sequence[Permission]):
    """The runs of several domains one after another, made when they are asked for."""

    def __init__(self, domains: Sequence[Domain]):
        self.domains = domains
        self.firsts = [0, *accumulate(len(d.runs) for d in domains)]

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        n = bisect_right(self.firsts, i) - 1
        domain = self.domains[n]
        return Permission(domain.unit, domain.did, domain.runs[i - self.firsts[n]])


class Permissions(Records[Permission]):
    """The runs of `domains`, domain by domain."""

    def __init__(self, domains: Iterable[Domain]):
        self.domains = tuple(domains)
        super().__init__(Permission, _Items(self.domains))

    @property
    def frame(self) -> "pd.DataFrame":
        """A pandas frame: unit, did, start, end, size, perm, offset."""
        import pandas as pd
        frames = [d.runs.frame.assign(perm=lambda f: f["perm"].astype(str)) for d in self.domains if len(d.runs)]
        keys = [(d.unit, d.did) for d in self.domains if len(d.runs)]
        if not frames:
            return super().frame
        for frame, (unit, did) in zip(frames, keys, strict=True):
            frame.insert(0, "unit", pd.Series([unit] * len(frame), dtype="object" if unit is None else "uint64", index=frame.index))
            frame.insert(1, "did", did)
        return pd.concat(frames, ignore_index=True).rename_axis("permission")
