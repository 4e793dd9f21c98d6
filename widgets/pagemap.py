"""The page map: every page of an address space, in bands or as a grid, drawn, searched and zoomed in the browser.

What is sent is the pieces of all lanes, one after another, once: `start` and `offset` float64, `kind` one byte (`widgets.pieces`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from hvcore.inspect.format import size
from hvcore.spec.e820 import E820Entry, type_name

from .differences import differences_figure
from .drawing import Figure, Fill, hatch_path
from .e820 import fill_of
from .lanes import MapLane, aligned, lanes_of
from .permissions import Lane, permissions_figure
from .pieces import MAP_FILLS, Kinds, Pieces, change, compared, pieces_of, staleness
from .scale import edges_of, make_scale
from .selection import Selection
from .view import View, module, style

if TYPE_CHECKING:
    from hvcore import Run

__all__ = ["ARRANGEMENTS", "AXES", "PageMap"]

ARRANGEMENTS = ("bands", "grid")
"""Lanes over one axis, or one lane as rows of pages."""
AXES = ("compressed", "linear")
PAGE = 4096
PLACES = 1 << 20
"""Length of the compressed axis in its own units."""
OUTLINED = 64
"""Pieces up to which a lane shapes the compressed axis."""
LETTERS = {"-": "\N{EN DASH}", "one page": "1 page", "untranslated": "all", "gained": "+", "lost": "\N{MINUS SIGN}",
           "changed": "\N{NOT EQUAL TO}", "same": "="}


class PageMap(View):
    """The page map of a run, `PageMap(run)`; `PageMap.compare(before, after)` is one of what differs between two.

    `arrangement` and `axis` choose how it is laid out, `lane` is the number of the lane in use.
    """

    _esm = module("pages", "surface", "bands", "grid", "pagemap")
    _css = style("pagemap")
    start = traitlets.Bytes().tag(sync=True)
    kind = traitlets.Bytes().tag(sync=True)
    offset = traitlets.Bytes().tag(sync=True)
    lanes = traitlets.List(trait=traitlets.Dict()).tag(sync=True)
    kinds = traitlets.List(trait=traitlets.Dict()).tag(sync=True)
    fills = traitlets.List(trait=traitlets.Dict()).tag(sync=True)
    places = traitlets.Dict().tag(sync=True)
    e820 = traitlets.List(trait=traitlets.Dict()).tag(sync=True)
    vmm = traitlets.List(trait=traitlets.Unicode()).tag(sync=True)
    words = traitlets.Unicode("").tag(sync=True)
    arrangement = traitlets.Enum(ARRANGEMENTS, "bands").tag(sync=True)
    axis = traitlets.Enum(AXES, "compressed").tag(sync=True)
    lane = traitlets.Int(0, min=0).tag(sync=True)

    def __init__(self, run: "Run | None" = None, selection: Selection | None = None, **values: Any):
        super().__init__(selection, **values)
        self._still: Callable[[], Figure] = lambda: Figure("Page map", "nothing is shown yet", "")
        if run is not None:
            self.show(run)

    @classmethod
    def compare(cls, before: "Run", after: "Run", selection: Selection | None = None, **values: Any) -> "PageMap":
        """The map of the pages that differ between two runs."""
        new = cls(None, selection, **values)
        new.show_changes(before, after)
        return new

    def show(self, run: "Run") -> None:
        """Shows a run as it is now."""
        self.show_lanes(lanes_of(run), _orientation(run), _vmm(run))

    def show_lanes(self, lanes: Sequence[MapLane], e820: Sequence[E820Entry] = (), vmm: tuple[int, int] | None = None) -> None:
        """Shows lanes, with a memory map above them and a half-open host-physical range outlined."""
        kinds = Kinds()
        pieces = [_pieces(lane, kinds) for lane in lanes]
        self._still = lambda: permissions_figure([Lane(lane.name, lane.runs) for lane in lanes], e820, vmm)
        self._tell("Page map: who may reach which pages", lanes, pieces, kinds, e820, vmm)

    def show_changes(self, before: "Run", after: "Run") -> None:
        """Shows what pages were gained, lost or changed from one run to another, lane by lane by name."""
        lanes = list(aligned(before, after))
        kinds = Kinds()
        pieces = [compared(old, new, kinds, change) for _, old, new in lanes]
        self._still = lambda: differences_figure(before, after)
        label = f"Page map: what changed from run {before.number} to run {after.number}"
        self._tell(label, [lane for lane, _, _ in lanes], pieces, kinds, _orientation(after), _vmm(after))

    def _tell(self, label: str, lanes: Sequence[MapLane], pieces: Sequence[Pieces], kinds: Kinds, e820: Sequence[E820Entry],
              vmm: tuple[int, int] | None) -> None:
        fills = _fills()
        numbers = {fill["key"]: n for n, fill in enumerate(fills)}
        told = [_told(lane, part, kinds) for lane, part in zip(lanes, pieces, strict=True)]
        for i in range(len(told)):
            told[i]["first"] = sum(len(part.start) for part in pieces[:i])
        offset = _joined([part.offset for part in pieces])
        with self.hold_sync():
            self.start, self.offset = _joined([p.start for p in pieces]).tobytes(), offset.tobytes() if offset.any() else b""
            self.kind = b"".join(part.kind.tobytes() for part in pieces)
            self.lanes, self.fills = told, fills
            self.kinds = [{"fill": numbers[kind.fill], "words": kind.words} for kind in kinds.known]
            self.places = _places(pieces, e820, vmm)
            self.e820 = [_entry(e) for e in e820]
            self.vmm = [hex(address) for address in vmm] if vmm else []
            self.lane = min(self.lane, max(len(lanes) - 1, 0))
            self.label, self.words = label, "; ".join(f"{lane['name']}: {lane['words']}" for lane in told) or "there is no lane"

    @property
    def figure(self) -> Figure:
        """The lanes as a picture."""
        return self._still()


def _orientation(run: "Run") -> Sequence[E820Entry]:
    return run.e820.guest or run.e820.firmware


def _vmm(run: "Run") -> tuple[int, int] | None:
    base = run.vmm.base
    return None if base is None else (base, base + run.vmm.size)


def _pieces(lane: MapLane, kinds: Kinds) -> Pieces:
    return pieces_of(lane.runs, kinds) if lane.tables is None else compared(lane.runs, lane.tables, kinds, staleness, offsets=True)


def _told(lane: MapLane, pieces: Pieces, kinds: Kinds) -> dict[str, Any]:
    """What the browser is told of a lane: name, where to find its pieces, what it sums up to in words."""
    sums: dict[str, int] = {}
    known = list(kinds.known)
    for number, pages in pieces.pages().items():
        if known[number].fill:
            sums[known[number].fill] = sums.get(known[number].fill, 0) + pages
    words = ", ".join(f"{pages:,} page{'s' * (pages != 1)} ({size(pages * PAGE)}) {MAP_FILLS[fill].name}" for fill, pages in sums.items())
    return {"name": lane.name, "count": len(pieces.start), "space": lane.space, "keys": list(lane.keys), "words": words or "nothing"}


def _fills() -> list[dict[str, str]]:
    """The fills by number: nothing, several in one pixel, then all others."""
    names = ["mixed", *(name for name in MAP_FILLS if name != "mixed")]
    return [{"key": "", "name": "not mapped", "letters": "", "colour": "", "hatch": ""}, *(_fill(n, MAP_FILLS[n]) for n in names)]


def _fill(key: str, fill: Fill) -> dict[str, str]:
    return {"key": key, "name": fill.name, "letters": LETTERS.get(key, key), "colour": fill.colour, "hatch": hatch_path(fill)}


def _entry(e: E820Entry) -> dict[str, str]:
    fill = fill_of(e.type)
    return {"start": hex(e.start), "end": hex(e.end), "words": type_name(e.type), "colour": fill.colour, "hatch": hatch_path(fill)}


def _joined(parts: Sequence[Any]) -> Any:
    return np.concatenate(parts) if parts else np.zeros(0)


def _places(pieces: Sequence[Pieces], e820: Sequence[E820Entry], vmm: tuple[int, int] | None) -> dict[str, list[float]]:
    """The compressed axis: `places` at `pages`, in proportion between them.  It reaches to the end of all there is."""
    exact = [(e.start, e.end) for e in e820] + ([vmm] if vmm else []) + [r for part in pieces for r in _outline(part)]
    ranges = [(start // PAGE * PAGE, -(-end // PAGE) * PAGE) for start, end in exact or [(0, PAGE)]]
    place = make_scale("compressed", ranges, 0, PLACES)
    return {"pages": [edge / PAGE for edge in edges_of(ranges)], "places": [place(edge) for edge in edges_of(ranges)]}


def _outline(pieces: Pieces) -> Iterable[tuple[int, int]]:
    """Byte ranges that shape the axis: each piece, or only the whole where there are many."""
    few = len(pieces.start) <= OUTLINED
    edges = [int(page) * PAGE for page in (pieces.start if few else pieces.start[[0, -1]])]
    return [(a, b) for a, b, kind in zip(edges, edges[1:], pieces.kind, strict=False) if kind or not few]
