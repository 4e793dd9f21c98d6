"""What every figure is drawn with: shapes that become SVG, fills that differ in hatching and not only in colour, and the figure itself.

Text and lines take JupyterLab's colours where the page has them (light or dark) and fall back to dark on nothing.
"""

import base64
import html
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LINE", "MUTED", "ROW", "TEXT", "Drawing", "Figure", "Fill", "Part", "box_height", "device_part", "domain_part", "hatch_path",
           "path_part", "range_part"]

TEXT = "var(--jp-ui-font-color1, #222)"
MUTED = "var(--jp-ui-font-color2, #555)"
LINE = "var(--jp-border-color1, #999)"
READABLE = 0.8
"""The least part of its size to which a figure shrinks; in less room it scrolls, for its text would be too small."""
FONT = "var(--jp-ui-font-family, system-ui, sans-serif)"

Part = Mapping[str, str]
"""What a shape stands for: the data-* attributes by which a view that is alive lets it be chosen."""
NO_PART: Part = {}
_VARIABLE = re.compile(r"var\(--[\w-]+, ([^()]*)\)")
ROW = 17.0
"""Height of a node that is one row of a list."""
PNG_ZOOM = 2.0
"""Pixels of a PNG to a unit of a drawing."""

_HATCHES = {
    "/": "M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4",
    "\\": "M-2,6 l4,4 M0,0 l8,8 M6,-2 l4,4",
    "x": "M0,8 l8,-8 M0,0 l8,8",
    "-": "M0,4 h8",
    "|": "M4,0 v8",
    "+": "M0,4 h8 M4,0 v8",
    ".": "M2,2 h1.5 M6,6 h1.5",
}


@dataclass(frozen=True, slots=True)
class Fill:
    """How one kind of thing is filled: its name in the legend, a colour of the Okabe-Ito palette, and a hatching ("" for none)."""

    name: str
    colour: str
    hatch: str = ""


class Drawing:
    """Shapes in a box of `width` by `height` units (the height may be set last); `svg()` gives them out as one SVG element."""

    def __init__(self, width: float, height: float = 0.0):
        self.width, self.height = width, height
        self._shapes: list[str] = []
        self._fills: list[Fill] = []

    def rect(self, x: float, y: float, width: float, height: float, fill: Fill | None, tip: str = "", dashed: bool = False,
             part: Part = NO_PART) -> None:
        """A rectangle; without `fill` only its outline.  `tip` is what a pointer over it shows, `part` what it stands for."""
        paint = self._paint(fill) if fill else "none"
        dash = ' stroke-dasharray="5 3" stroke-width="2"' if dashed else ' stroke-width="0.6"'
        stroke = TEXT if dashed else LINE
        self._shapes.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.8):.1f}" height="{height:.1f}" fill="{paint}" '
                            f'stroke="{stroke}"{dash}{_data(part)}>{_tip(tip)}</rect>')

    def text(self, x: float, y: float, words: str, *, size: float = 12, anchor: str = "start", colour: str = TEXT,
             bold: bool = False) -> None:
        """One line of text; `y` is its baseline."""
        weight = ' font-weight="600"' if bold else ""
        self._shapes.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{colour}"{weight}>'
                            f"{html.escape(words)}</text>")

    def badge(self, x: float, y: float, words: str) -> None:
        """A short word on a filled shape, readable on any hatching; `x` is its middle.  A click on it goes to the shape."""
        width = 7 * len(words) + 8
        self._shapes.append(f'<rect x="{x - width / 2:.1f}" y="{y - 11:.1f}" width="{width}" height="15" rx="3" fill="#fff" '
                            f'opacity="0.88" pointer-events="none"/><text x="{x:.1f}" y="{y:.1f}" font-size="11" text-anchor="middle" '
                            f'fill="#111" pointer-events="none">{html.escape(words)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, *, colour: str = LINE, dashed: bool = False) -> None:
        """A straight line."""
        dash = ' stroke-dasharray="3 3"' if dashed else ""
        self._shapes.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>')

    def link(self, x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False, tip: str = "", part: Part = NO_PART) -> None:
        """A curve that leaves and arrives level, for edges of a graph."""
        middle = (x1 + x2) / 2
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self._shapes.append(f'<path d="M{x1:.1f},{y1:.1f} C{middle:.1f},{y1:.1f} {middle:.1f},{y2:.1f} {x2:.1f},{y2:.1f}" fill="none" '
                            f'stroke="{MUTED}" stroke-width="1.6"{dash}{_data(part)}>{_tip(tip)}</path>')

    def box(self, x: float, y: float, width: float, lines: list[str], tip: str = "", part: Part = NO_PART) -> None:
        """A node of a graph: a frame with lines of text, the first of them bold.  It is `box_height(lines)` high."""
        said = tip or "; ".join(lines)
        self._shapes.append(f'<g{_data(part)}>{_tip(said)}<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
                            f'height="{box_height(lines):.1f}" rx="5" fill="transparent" stroke="{TEXT}" stroke-width="1.2"/>')
        for i, words in enumerate(lines):
            self.text(x + 8, y + 16 + 15 * i, words, size=11, bold=i == 0)
        self._shapes.append("</g>")

    def row(self, x: float, y: float, width: float, words: str, tip: str = "", part: Part = NO_PART) -> None:
        """A low node of a graph, `ROW` high, with one line of text."""
        self._shapes.append(f'<g{_data(part)}>{_tip(tip or words)}<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROW:g}" '
                            f'rx="3" fill="transparent" stroke="{LINE}" stroke-width="1"/>')
        self.text(x + 6, y + ROW - 5, words, size=11)
        self._shapes.append("</g>")

    def legend(self, y: float, groups: list[tuple[str, list[Fill]]]) -> float:
        """Samples with their names, a group to a line or more, from baseline `y`.  Returns the baseline after the last line."""
        for name, fills in groups:
            x = 8.0
            self.text(x, y, name, colour=MUTED)
            x += 7.0 * len(name) + 12
            for fill in fills:
                room = 27 + 7.0 * len(fill.name)
                if x + room > self.width:
                    x, y = 20.0, y + 20
                self.rect(x, y - 10, 22, 13, fill)
                self.text(x + 27, y, fill.name)
                x += room + 14
            y += 20
        return y

    def svg(self, title: str, alt: str, scale: Sequence[tuple[int, float]] = (), space: str = "physical") -> str:
        """The SVG element.  `alt` says in words what the picture shows.

        `scale` are places (address, x) on a horizontal axis of `space`, between which addresses lie in proportion.
        """
        body = "".join(self._shapes)
        mark = f"hv{zlib.crc32((title + body).encode()):08x}"
        patterns = "".join(_pattern(f"{mark}-{i}", fill) for i, fill in enumerate(self._fills) if fill.hatch)
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
                f'aria-labelledby="{mark}-t {mark}-d" font-family="{FONT}"{_scale(scale, space)} '
                f'style="width:100%;min-width:{READABLE * self.width:.0f}px;max-width:{self.width:g}px;height:auto;display:block">'
                f'<title id="{mark}-t">{html.escape(title)}</title><desc id="{mark}-d">{html.escape(alt)}</desc>'
                f"<defs>{patterns}</defs>{body.replace('url(#MARK-', f'url(#{mark}-')}</svg>")

    def _paint(self, fill: Fill) -> str:
        if not fill.hatch:
            return fill.colour
        if fill not in self._fills:
            self._fills.append(fill)
        return f"url(#MARK-{self._fills.index(fill)})"


def box_height(lines: list[str]) -> float:
    """How high a node with these lines is."""
    return 15.0 * len(lines) + 9


def hatch_path(fill: Fill) -> str:
    """The hatching of a fill as an SVG path in a tile of 8 by 8 units; "" for none."""
    return _HATCHES.get(fill.hatch, "")


def _pattern(name: str, fill: Fill) -> str:
    return (f'<pattern id="{name}" width="8" height="8" patternUnits="userSpaceOnUse"><rect width="8" height="8" fill="{fill.colour}"/>'
            f'<path d="{_HATCHES[fill.hatch]}" stroke="#000" stroke-opacity="0.55" stroke-width="1.2" fill="none"/></pattern>')


def range_part(start: int, end: int) -> Part:
    """A half-open range of addresses."""
    return {"start": hex(start), "end": hex(end)}


def device_part(sources: Sequence[int]) -> Part:
    """Functions, by their requester ids."""
    return {"device": " ".join(map(str, sources))}


def domain_part(key: str) -> Part:
    """A domain, by the key that a selection has for it."""
    return {"domain": key}


def path_part(members: Iterable[int | str]) -> Part:
    """Something on the way of these: requester ids and keys of domains.  It is marked when one of them is chosen."""
    words = " ".join(dict.fromkeys(map(str, members)))
    return {"path": words} if words else NO_PART


def _data(part: Part) -> str:
    return "".join(f' data-{name}="{html.escape(value)}"' for name, value in part.items())


def _scale(scale: Sequence[tuple[int, float]], space: str) -> str:
    if not scale:
        return ""
    places = json.dumps([[hex(address), round(x, 1)] for address, x in scale])
    return f" data-scale='{places}' data-space=\"{space}\""


def _tip(words: str) -> str:
    return f"<title>{html.escape(words)}</title>" if words else ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its title, the same in words (`alt`) and the same as a table in HTML."""

    title: str
    alt: str
    svg: str
    table: str = ""

    def __repr__(self) -> str:
        return f"{self.title}: {self.alt}"

    @property
    def html(self) -> str:
        """Title, picture, and the table behind a disclosure that the keyboard opens."""
        table = f'<details><summary style="cursor:pointer">The same as a table</summary>{self.table}</details>' if self.table else ""
        return (f'<figure class="hvlab-figure" style="margin:0 0 12px;line-height:1.4;color:{TEXT};font-family:{FONT}">'
                f'<figcaption style="font-weight:600;padding:4px 0">{html.escape(self.title)}</figcaption>'
                f'<div style="overflow-x:auto" tabindex="0" role="group" aria-label="{html.escape(self.title)}">{self.svg}</div>{table}'
                f"</figure>")

    @property
    def png(self) -> bytes:
        """The picture in light colours on white, for where neither HTML nor SVG is shown."""
        import matplotlib
        import resvg_py
        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        plain = _VARIABLE.sub(r"\1", self.svg)
        return resvg_py.svg_to_bytes(svg_string=plain, background="white", zoom=PNG_ZOOM, skip_system_fonts=True,
                                     font_files=[str(fonts / "DejaVuSans.ttf"), str(fonts / "DejaVuSans-Bold.ttf")],
                                     font_family="DejaVu Sans", sans_serif_family="DejaVu Sans")

    def save(self, path: str | Path) -> Path:
        """Writes the picture: `.svg` or `.png`, by the name's ending.  Raises ValueError for another."""
        path = Path(path)
        if path.suffix not in (".svg", ".png"):
            raise ValueError(f"{path.name}: the name of a picture ends in .svg or .png")
        path.write_bytes(self.png if path.suffix == ".png" else _VARIABLE.sub(r"\1", self.svg).encode())
        return path

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        png = {"image/png": base64.b64encode(self.png).decode()} if self.svg else {}
        return {"text/plain": repr(self), "text/html": self.html, "image/svg+xml": self.svg, **png}
