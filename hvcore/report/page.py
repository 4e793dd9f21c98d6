"""Chapters as one HTML file that asks for nothing: style sheets, modules and states are in it, and a policy lets only these run.

The policy names every script by its hash.  So a machine's words could not become a script even where they had not been escaped.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .alive import Alive
from .chapter import Chapter, Part, Section

if TYPE_CHECKING:
    from widgets.drawing import Figure

__all__ = ["page", "still_page"]

_STATIC = Path(__file__).parent / "static"
_EXPORT = re.compile(r"^export default \{ render \};$", re.MULTILINE)


@cache
def _text(name: str) -> str:
    return (_STATIC / name).read_text()


def page(title: str, words: str, chapters: Sequence[Chapter]) -> str:
    """The page whose views are alive; `words` is HTML under its heading."""
    views = [part for chapter in chapters for section in chapter.sections for part in section.parts
             if isinstance(part, Alive) and part.module]
    modules = list(dict.fromkeys(view.module for view in views))
    scripts = ["const hvlabModules = {};", *(_module(f"m{n}", text) for n, text in enumerate(modules)), _text("report.js")]
    states = {view.key: {"module": f"m{modules.index(view.module)}", "selection": view.selection, "state": view.state} for view in views}
    styles = [_text("report.css"), *dict.fromkeys(view.style for view in views)]
    tail = f'<script type="application/json" id="hvlab-state">{_data(states)}</script>' + "".join(f"<script>{s}</script>" for s in scripts)
    return _page(title, words, chapters, _Look(styles, [_hash(s) for s in scripts], False), tail)


def still_page(title: str, words: str, chapters: Sequence[Chapter]) -> str:
    """The same for print, without scripts: every view is its pictures, and nothing is folded away."""
    return _page(title, words, chapters, _Look([_text("report.css"), _text("print.css")], [], True), "")


@dataclass(frozen=True)
class _Look:
    """Style sheets, the hashes of the scripts, and whether it is for print."""

    styles: list[str]
    hashes: list[str]
    printed: bool


def _page(title: str, words: str, chapters: Sequence[Chapter], look: _Look, tail: str) -> str:
    script = " ".join(f"'sha256-{value}'" for value in look.hashes) or "'none'"
    policy = f"default-src 'none'; script-src {script}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    body = "".join(_chapter(chapter, look, alone=len(chapters) == 1) for chapter in chapters)
    if look.printed:
        body = _unfolded(body)
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">'
            f"<title>{html.escape(title)}</title><style>{_style(look.styles)}</style></head><body>"
            f'<a class="skip" href="#main">To the report</a><header><h1>{html.escape(title)}</h1>{words}</header>'
            f'<nav aria-label="Contents"><h2>Contents</h2>{_contents(chapters)}</nav><main id="main">{body}</main>{tail}</body></html>\n')


def _unfolded(body: str) -> str:
    """In print what is folded away on a screen has a heading instead."""
    for folded, plain in (("<details><summary>", "<div><h3>"), ("</summary>", "</h3>"), ("</details>", "</div>")):
        body = body.replace(folded, plain)
    return body


def _contents(chapters: Sequence[Chapter]) -> str:
    if len(chapters) == 1:
        return _links(chapters[0].sections)
    return "".join(f"<p>{html.escape(chapter.title)}</p>{_links(chapter.sections)}" for chapter in chapters)


def _links(sections: Iterable[Section]) -> str:
    return "<ol>" + "".join(f'<li><a href="#{s.key}">{html.escape(s.title)}</a></li>' for s in sections) + "</ol>"


def _chapter(chapter: Chapter, look: _Look, alone: bool) -> str:
    """Its sections; where there are several chapters, the title of each section says whose it is."""
    whose = "" if alone else f"{chapter.title}: "
    sections = [_section(s, whose + s.title, "" if alone or n else ' class="chapter"', look) for n, s in enumerate(chapter.sections)]
    return "".join(sections)


def _section(s: Section, title: str, kind: str, look: _Look) -> str:
    return (f'<section id="{s.key}" aria-labelledby="{s.key}-title"{kind}><h2 id="{s.key}-title">{html.escape(title)}</h2>'
            f"{''.join(_part(part, look) for part in s.parts)}</section>")


def _part(part: Part, look: _Look) -> str:
    if isinstance(part, str):
        return part
    stills = "".join(_still(figure, look.printed) for figure in part.stills)
    if look.printed:
        return (stills if part.in_print else "") + part.printed
    place = f' data-view="{part.key}"' if part.module else ""
    return f'<div class="hv-view"{place}>{stills}</div>'


def _still(figure: "Figure", printed: bool) -> str:
    """A picture with its words; what has no picture is its table."""
    head = f"<h3>{html.escape(figure.title)}</h3>"
    if not figure.svg:
        words = f"<p>{html.escape(figure.alt)}</p>" if figure.alt and not figure.table else ""
        return f"<div>{head}{words}{_scrolled(figure.title, figure.table) if figure.table else ''}</div>"
    more = "" if printed or not figure.table else f"<details><summary>The same as a table</summary>{figure.table}</details>"
    return f'<div class="drawn">{head}{_scrolled(figure.title, figure.svg)}{more}</div>'


def _scrolled(name: str, inside: str) -> str:
    return f'<div class="wide" tabindex="0" role="group" aria-label="{html.escape(name)}">{inside}</div>'


# --- what is put into elements whose text is no HTML

def _module(name: str, text: str) -> str:
    """An ES module as a script that the page holds: it can be named by its hash, and needs no address."""
    body, count = _EXPORT.subn("return { render };", text)
    if count != 1:
        raise ValueError("a view's module ends in one `export default { render };`")
    return _closed(f'hvlabModules.{name} = (() => {{ "use strict";\n{body}\n}})();')


def _closed(script: str) -> str:
    """A script in which nothing ends its element."""
    if re.search(r"</script|<!--", script, re.IGNORECASE):
        raise ValueError("a script in a page holds no </script and no <!--")
    return script


def _style(texts: Iterable[str]) -> str:
    style = "\n".join(texts)
    if "</" in style:
        raise ValueError("a style sheet in a page holds no </")
    return style


def _data(values: Any) -> str:
    """JSON in which nothing is markup."""
    text = json.dumps(values, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
