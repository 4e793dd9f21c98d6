"""What a report says, before it is a page: sections of HTML and of views, of one run or of two."""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..inspect.records import Record, Records
from .alive import Alive

__all__ = ["Chapter", "Part", "Section", "coded", "facts", "folded", "listed", "log", "paragraph", "shown", "table",
           "unprinted"]

KEPT = 1 << 17
"""Characters at each end of a console that go into a report."""
_CODE = re.compile("`([^`]+)`")
Part = str | Alive
"""HTML, or a view."""


@dataclass(frozen=True)
class Section:
    """A section: `key` is its anchor."""

    key: str
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Chapter:
    """Sections that belong together; `title` is of the whole page, or of one of two runs."""

    title: str
    sections: tuple[Section, ...]


# --- HTML of the plain parts; all words are escaped here

def paragraph(words: str, kind: str = "") -> str:
    """A paragraph; what is between `backquotes` is code."""
    named = f' class="{kind}"' if kind else ""
    inside = _CODE.sub(r"<code>\1</code>", html.escape(words))
    return f"<p{named}>{inside}</p>"


def listed(lines: Iterable[str]) -> str:
    """Lines as a list."""
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values; those without a value are left out."""
    return "<dl>" + "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in pairs if value) + "</dl>"


def table(labels: Sequence[str], rows: Iterable[Sequence[str]], name: str) -> str:
    """A table of words; the first cell of a row is its heading."""
    head = "".join(f'<th scope="col">{html.escape(label)}</th>' for label in labels)
    body = "".join(f'<tr><th scope="row">{html.escape(first)}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in rest)}</tr>'
                   for first, *rest in rows)
    return _wide(f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>', name)


def shown(records: Records[Any] | Record) -> str:
    """Records as they show themselves."""
    return _wide(records._repr_html_(), records.title)


def _wide(inside: str, name: str) -> str:
    """What may be wider than the page scrolls, by keyboard too."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(name)}">{inside}</div>'


def folded(words: str, inside: str) -> str:
    """HTML that is folded away on a screen; in print it is not."""
    return f"<details><summary>{html.escape(words)}</summary>{inside}</details>"


def unprinted(inside: str) -> str:
    """HTML that is for screens only: in print it would be many pages that nobody reads."""
    return f'<div class="unprinted">{inside}</div>'


def log(text: str, name: str) -> str:
    """A console's text, of a long one beginning and end.  Its control characters are shown as pictures of them."""
    if len(text) > 2 * KEPT:
        text = f"{text[:KEPT]}\n[{len(text) - 2 * KEPT:,} characters are left out here]\n{text[-KEPT:]}"
    return f'<pre tabindex="0" role="region" aria-label="{html.escape(name)}">{html.escape(_visible(text))}</pre>'


def coded(text: str, name: str) -> str:
    """Text to be copied; `name` says what it is."""
    return (f'<pre tabindex="0" role="region" aria-label="{html.escape(name)}" data-copy="{html.escape(name)}">'
            f"{html.escape(text)}</pre>")


def _visible(text: str) -> str:
    pictures = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)} | {0x7F: "\u2421"}
    return text.translate(pictures)
