"""The summary as one HTML page: no script, nothing fetched, light and dark."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import __version__

if TYPE_CHECKING:
    from .report import Table

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: CanvasText; background: Canvas; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid color-mix(in srgb, CanvasText 20%, Canvas); }
th:first-child, td:last-child { overflow-wrap: anywhere; min-width: 10rem; }
td.n:last-child { min-width: 0; }
th { font-weight: 600; } .n { text-align: right; font-variant-numeric: tabular-nums; }
footer { margin-top: 3rem; font-size: .85rem; }
"""


def page(heading: str, tables: "Sequence[Table]") -> str:
    """A whole page; every word is escaped."""
    parts = "".join(_table(t) for t in tables)
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(heading)}</title><style>{_STYLE}</style></head>\n<body><main><h1>{html.escape(heading)}</h1>\n"
            f"{parts}</main><footer>hvlab {html.escape(__version__)}</footer></body></html>\n")


def _table(table: "Table") -> str:
    heading = f"<section><h2>{html.escape(table.title)}</h2>"
    if not table.rows:
        return f"{heading}<p>None.</p></section>\n"
    head = "".join(f'<th scope="col"{_class(r)}>{html.escape(c)}</th>' for c, r in zip(table.labels, table.right, strict=True))
    body = "".join(_row(cells, table.right) for cells in table.rows)
    note = f"<p>{html.escape(table.note)}</p>" if table.note else ""
    return f'{heading}<div tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>{note}</section>\n'


def _row(cells: Sequence[str], right: Sequence[bool]) -> str:
    first, *rest = map(html.escape, cells)
    others = "".join(f"<td{_class(r)}>{c}</td>" for c, r in zip(rest, right[1:], strict=True))
    return f'<tr><th scope="row">{first}</th>{others}</tr>\n'


def _class(right: bool) -> str:
    return ' class="n"' if right else ""
