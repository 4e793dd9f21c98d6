"""The registers of one remapping unit, decoded; what changed since the last look is marked."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets as ipw

from hvcore.inspect.format import address
from hvcore.inspect.records import Column, Record, Records
from hvcore.inspect.units import RegisterValue

from .drawing import Figure
from .table import Table

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["Registers"]


@dataclass(frozen=True, slots=True, repr=False)
class Row(Record):
    """A register and the value that it had at the last look (None: the same)."""

    now: RegisterValue
    before: int | None

    title = "Registers"
    legend = RegisterValue.legend + "; changed: the value at the look before"
    columns = (
        Column("name", lambda r: r.now.name), Column("offset", lambda r: r.now.offset, address, True),
        Column("value", lambda r: r.now.value, address, True),
        Column("changed", lambda r: r.before, lambda v: "" if v is None else f"was {address(v)}"),
        Column("fields", lambda r: r.now.fields), Column("section", lambda r: r.now.section),
    )


class Registers(ipw.VBox):
    """A chooser of the unit and the table of its registers."""

    def __init__(self, run: "Run"):
        self._last: dict[int, dict[str, int]] = {}
        self.unit = ipw.Dropdown(description="Unit", options=[("none", 0)], layout=ipw.Layout(width="max-content"))
        self.table = Table(Records(Row))
        self.unit.observe(lambda _change: self._draw(), "value")
        super().__init__([self.unit, self.table])
        self.show_run(run)

    def show_run(self, run: "Run") -> None:
        """The registers of another run, or of this one as they are now."""
        registers = run.registers
        self._last = {base: {r.now.name: r.now.value for r in rows} for base, rows in getattr(self, "_rows", {}).items()}
        self._rows = {base: self._compared(base, list(found)) for base, found in registers.items()}
        options = [(address(base), base) for base in registers] or [("none", 0)]
        if tuple(options) != self.unit.options:
            self.unit.options = options
        self._draw()

    def _compared(self, base: int, found: list[RegisterValue]) -> list[Row]:
        last = self._last.get(base, {})
        return [Row(r, last[r.name] if last.get(r.name, r.value) != r.value else None) for r in found]

    def _draw(self) -> None:
        base = self.unit.value
        title = f"Registers of the unit at {base:#x}" if base else "Registers: the machine has no remapping unit"
        self.table.show(Records(Row, self._rows.get(base, ()), title=title))

    @property
    def figure(self) -> Figure:
        """The shown unit's registers, without a picture."""
        return self.table.figure

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        still = self.figure
        return (super()._repr_mimebundle_(**options) or {}) | {"text/html": still.html, "text/plain": repr(still)}
