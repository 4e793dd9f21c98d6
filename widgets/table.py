"""Records as a table that is sorted, filtered and chosen from in the browser: faults, DMA requests, registers, permission runs, changes."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import traitlets

from hvcore.inspect.faults import Fault
from hvcore.inspect.records import Column, Record, Records, html_table
from hvcore.spec.interrupts import INTERRUPT_REASONS

from .drawing import Figure
from .selection import Selection, domain_key
from .view import View, module, style

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["ChangeTable", "DmaTable", "FaultTable", "RunTable", "Table", "fault_choices", "wire_choice"]

LIMIT = 100_000
"""Rows that go to the browser; what is beyond them is counted."""
STILL = 64
"""Rows of the picture."""

Choice = Callable[[int, Any], dict[str, Any] | None]
"""What choosing a row chooses: from its number and its record the arguments of `Selection.choose`."""


def _nothing(_number: int, _record: Any) -> None:
    return None


def _key(value: object) -> float | str | None:
    """What a cell is sorted and compared by: numbers as numbers (near enough beyond 2**53), the rest as its words."""
    if value is None:
        return None
    return float(value) if isinstance(value, (int, float)) else str(value)


class Table(View):
    """`records` with a heading button for each column, a filter, and pages.  A row that `choice` knows what to choose for can be chosen.

    Where `act` has a word there is a button with it, and `on_act` is called with the record of the row that is chosen.
    """

    _esm = module("table")
    _css = style("table")
    columns: traitlets.List[Any] = traitlets.List().tag(sync=True)
    cells: traitlets.List[Any] = traitlets.List().tag(sync=True)
    sort_keys: traitlets.List[Any] = traitlets.List().tag(sync=True)
    choices: traitlets.List[Any] = traitlets.List().tag(sync=True)
    note = traitlets.Unicode("").tag(sync=True)
    filter = traitlets.Unicode("").tag(sync=True)
    act = traitlets.Unicode("").tag(sync=True)
    can_act = traitlets.Bool(True).tag(sync=True)
    on_act: Callable[[Any], None] | None = None

    def __init__(self, records: Records[Any], selection: Selection | None = None, choice: Choice = _nothing, **values: Any):
        super().__init__(selection, **values)
        self._choice = choice
        self.on_msg(self._received)
        self.show(records)

    def _received(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        row = content.get("row")
        if content.get("kind") == "act" and self.on_act and self.can_act and type(row) is int and 0 <= row < len(self.records):
            self.on_act(self.records[row])

    def show(self, records: Records[Any]) -> None:
        """Shows other records; sorting and filter stay."""
        self.records = records
        rows: Sequence[Record] = records[:LIMIT]
        values = [[c.value(row) for row in rows] for c in records.columns]
        chosen = [wire_choice(self._choice(i, row)) for i, row in enumerate(rows)]
        more = f"Of {len(records):,} rows the first {LIMIT:,} are here." if len(records) > LIMIT else ""
        with self.hold_sync():
            self.columns = [{"name": c.label, "right": c.right} for c in records.columns]
            self.cells = [[c.show(v) for v in column] for c, column in zip(records.columns, values, strict=True)]
            self.sort_keys = [_keys(c, column) for c, column in zip(records.columns, values, strict=True)]
            self.choices = chosen if any(chosen) else []
            self.label = f"{records.title}: {len(records):,}" if len(records) else f"{records.title}: none"
            self.note = " ".join(filter(None, (records.kind.legend and f"{records.kind.legend}.", records.note, more)))

    @property
    def figure(self) -> Figure:
        """The first rows, without a picture."""
        rows = [[cells[i] for cells in self.cells] for i in range(min(len(self.cells[0]) if self.cells else 0, STILL))]
        left_out = len(self.records) - len(rows)
        table = html_table(self.note, [c["name"] for c in self.columns], rows, [c["right"] for c in self.columns])
        words = self.note + (f" and {left_out:,} more rows" if left_out else "")
        return Figure(self.label, words, "", table)


def _keys(column: Column, values: list[Any]) -> list[float | str | None]:
    """Sort keys; none at all where the words sort as well."""
    keys = [_key(v) for v in values]
    return keys if column.right or any(isinstance(k, float) for k in keys) else []


def wire_choice(choice: dict[str, Any] | None) -> dict[str, Any] | None:
    """A choice as the browser has it: addresses in hex."""
    if choice and choice.get("address") is not None:
        return choice | {"address": hex(choice["address"])}
    return choice


class _OfRun(Table):
    """A table of one part of a run."""

    def __init__(self, run: "Run", selection: Selection | None = None, **values: Any):
        self._run = run
        super().__init__(self._records(run), selection, self._chosen, **values)

    def show_run(self, run: "Run") -> None:
        """The same part of another run, or of this one as it is now."""
        self._run = run
        self.show(self._records(run))

    def _records(self, run: "Run") -> Records[Any]:
        raise NotImplementedError

    def _chosen(self, number: int, record: Any) -> dict[str, Any] | None:
        raise NotImplementedError


def fault_choices(run: "Run", faults: Iterable[Fault]) -> list[dict[str, Any]]:
    """What choosing each of a run's faults chooses: the fault, its device, and but for an interrupt its domain and IOVA."""
    keys = {(d.unit, source): domain_key(d.unit, d.did) for d in run.domains for source in d.devices}
    return [{"fault": i, "device": f.source} | ({} if f.reason in INTERRUPT_REASONS else {
        "address": f.address, "space": "iova", "domain": keys.get((f.unit, f.source), "")}) for i, f in enumerate(faults)]


class FaultTable(_OfRun):
    """The recorded faults; choosing one chooses its device, domain and address."""

    def _records(self, run: "Run") -> Records[Any]:
        faults = run.faults
        self._choices = fault_choices(run, faults)
        return faults

    def _chosen(self, number: int, record: Any) -> dict[str, Any]:
        return self._choices[number]


class DmaTable(_OfRun):
    """The newest DMA requests, also those that went through; choosing one chooses its device and address."""

    def _records(self, run: "Run") -> Records[Any]:
        return run.dma

    def _chosen(self, number: int, record: Any) -> dict[str, Any]:
        return {"address": record.iova, "space": "iova", "device": record.source}


class RunTable(_OfRun):
    """The permission runs of all domains."""

    def _records(self, run: "Run") -> Records[Any]:
        return run.permissions

    def _chosen(self, number: int, record: Any) -> dict[str, Any]:
        return {"address": record.run.start, "space": "iova", "domain": domain_key(record.unit, record.did)}


class ChangeTable(Table):
    """What differs between two runs."""

    def __init__(self, before: "Run", after: "Run", selection: Selection | None = None, **values: Any):
        super().__init__(before.diff(after), selection, **values)
