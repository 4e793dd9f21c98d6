"""Records that display themselves: plain text, HTML, a pandas frame and JSON from the same declared columns."""

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from ..errors import HvlabError
from .format import plain

if TYPE_CHECKING:
    import pandas as pd

    from widgets.drawing import Figure

__all__ = ["Column", "Record", "Records", "html_table", "text_table"]

T = TypeVar("T", bound="Record")
HEAD, TAIL = 60, 20
"""Rows shown of a long table: the first and the last ones."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name (in frames), how to get the raw value of a record, how to show it, whether it lines up on the right."""

    name: str
    value: Callable[[Any], Any]
    show: Callable[[object], str] = plain
    right: bool = False

    @property
    def label(self) -> str:
        """The heading."""
        return self.name.replace("_", " ")


class Record:
    """What every record of an inspector can do.  Subclasses are frozen dataclasses and declare `title`, `legend` and `columns`."""

    __slots__ = ()
    title: ClassVar[str] = ""
    legend: ClassVar[str] = ""
    columns: ClassVar[tuple[Column, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values: addresses as integers, ranges half-open."""
        return {c.name: c.value(self) for c in self.columns}

    @property
    def frame(self) -> "pd.DataFrame":
        """A pandas frame: of the record's parts where it has a `table` of them, else of itself, one row."""
        table = getattr(self, "table", None)
        return (table if isinstance(table, Records) else Records(type(self), [self])).frame

    def __str__(self) -> str:
        width = max(len(c.label) for c in self.columns)
        lines = [f"{c.label:<{width}}  {c.show(c.value(self))}".rstrip() for c in self.columns]
        return "\n".join([_heading(self.title, self.legend), *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [[c.label, c.show(c.value(self))] for c in self.columns]
        return html_table(_heading(self.title, self.legend), ("field", "value"), rows, (False, False), row_heads=True)


class Records(Sequence[T]):
    """An immutable sequence of records of one kind."""

    def __init__(self, kind: type[T], items: Iterable[T] = (), *, title: str | None = None, note: str = ""):
        self.kind = kind
        self.items: Sequence[T] = items if isinstance(items, Sequence) else tuple(items)
        self.title = kind.title if title is None else title
        self.note = note
        self._draw: Callable[..., Figure] | None = None

    def drawn_by(self, draw: "Callable[..., Figure]") -> None:
        """Makes `figure()` what `draw` makes of these records and of options."""
        self._draw = draw

    def figure(self, **options: Any) -> "Figure":
        """The records as a picture with its words: it displays itself and has `.html`, `.png` and `.save(path)`.

        Maps take `scale`: `compressed`, `linear` or `log`.  Raises HvlabError for records that have no picture.
        """
        if self._draw is None:
            raise HvlabError(f"{self.title}: there is no figure of these records; see e820, units, domains, permissions, history and diff "
                             f"of a run")
        return self._draw(self, **options)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The declared columns."""
        return self.kind.columns

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "Records[T]": ...

    def __getitem__(self, index: int | slice) -> "T | Records[T]":
        if isinstance(index, slice):
            return Records(self.kind, self.items[index], title=self.title, note=self.note)
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Records) and self.kind is other.kind and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> list[dict[str, Any]]:
        """Each record's plain values, in order."""
        return [item.to_json() for item in self]

    @property
    def frame(self) -> "pd.DataFrame":
        """A pandas frame of the raw values, one row a record; numbers stay whole numbers where a value is missing, too."""
        import pandas as pd
        series = {c.name: _series([c.value(item) for item in self]) for c in self.columns}
        return pd.DataFrame(series, index=pd.RangeIndex(len(self), name=self.kind.__name__.lower()))

    def _shown(self) -> tuple[list[list[str]], int]:
        """The rows to show, and how many are left out after the first `HEAD`."""
        count = len(self)
        numbers: Iterable[int] = range(count) if count <= HEAD + TAIL else [*range(HEAD), *range(count - TAIL, count)]
        rows = [[c.show(c.value(self[i])) for c in self.columns] for i in numbers]
        return rows, count - len(rows)

    @property
    def heading(self) -> str:
        """Title, legend and units, number of records, and the note."""
        count = f"{len(self):,}" if self else "none"
        return _heading(f"{self.title}: {count}", self.kind.legend) + (f"\n{self.note}" if self.note else "")

    def __str__(self) -> str:
        rows, left_out = self._shown()
        return text_table(self.heading, [c.label for c in self.columns], rows, [c.right for c in self.columns], left_out)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows, left_out = self._shown()
        return html_table(self.heading, [c.label for c in self.columns], rows, [c.right for c in self.columns], left_out)


def _heading(title: str, legend: str) -> str:
    return f"{title}  ({legend})" if legend else title


def _series(values: list[Any]) -> "pd.Series[Any]":
    import pandas as pd
    whole = all(v is None or isinstance(v, int) and not isinstance(v, bool) for v in values)
    if whole and values and None in values and any(v is not None for v in values):
        return pd.Series(values, dtype="Int64" if all(v is None or v < 1 << 63 for v in values) else "UInt64")
    if any(isinstance(v, (tuple, list, dict)) for v in values):
        return pd.Series([", ".join(map(str, v)) if isinstance(v, (tuple, list)) else v for v in values], dtype=object)
    return pd.Series(values) if values else pd.Series(values, dtype=object)


def _left_out(count: int) -> str:
    return f"... {count:,} rows not shown here; .frame has them all"


def text_table(heading: str, labels: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], left_out: int = 0) -> str:
    """A table in plain text: heading, labels, rows.  Where rows are left out, a line says so after the first `HEAD`."""
    if not rows:
        return heading
    widths = [max(len(cells[i]) for cells in (labels, *rows)) for i in range(len(labels))]
    lines = ["  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)).rstrip()
             for cells in (labels, *rows)]
    if left_out:
        lines.insert(HEAD + 1, _left_out(left_out))
    return "\n".join([heading, *lines])


_STYLE = ("border-collapse:collapse;color:var(--jp-ui-font-color1,inherit);"
          "font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:var(--jp-code-font-size,13px)")
_CAPTION = "text-align:left;caption-side:top;padding:2px 0;font-weight:600;white-space:pre-line;color:inherit"
_CELL = "padding:1px 8px;border-bottom:1px solid var(--jp-border-color2,#8888);background:none;white-space:pre-wrap;text-align:"


def html_table(heading: str, labels: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], left_out: int = 0,
               row_heads: bool = False) -> str:
    """A semantic HTML table that takes its colours from JupyterLab's theme.  Every cell is escaped."""
    aligns = ["right" if r else "left" for r in right]
    head = "".join(f'<th scope="col" style="{_CELL}{a}">{html.escape(label)}</th>' for label, a in zip(labels, aligns, strict=True))
    body = [_html_row(cells, aligns, row_heads) for cells in rows]
    if left_out:
        body.insert(HEAD, f'<tr><td colspan="{len(labels)}" style="{_CELL}left">{_left_out(left_out)}</td></tr>')
    return (f'<table class="hvlab-records" style="{_STYLE}"><caption style="{_CAPTION}">{html.escape(heading)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>")


def _html_row(cells: Sequence[str], aligns: Sequence[str], row_heads: bool) -> str:
    first, *rest = (html.escape(c) for c in cells)
    tag = 'th scope="row"' if row_heads else "td"
    out = [f'<{tag} style="{_CELL}{aligns[0]}">{first}</{tag[:2]}>']
    out += [f'<td style="{_CELL}{a}">{c}</td>' for c, a in zip(rest, aligns[1:], strict=True)]
    return f"<tr>{''.join(out)}</tr>"
