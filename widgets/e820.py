"""The memory map before and after the hypervisor: the firmware's E820 above the guest's."""

from collections.abc import Iterable, Sequence

from hvcore.inspect.format import address, size, yes_no
from hvcore.inspect.records import html_table
from hvcore.spec.e820 import E820Entry, type_name

from .drawing import MUTED, Drawing, Figure, Fill, range_part
from .scale import Scale, anchors, edges_of, make_scale, ticks

__all__ = ["DIFFERENT", "FILLS", "e820_figure", "axis", "fill_of", "legend_fills", "mark_ranges"]

FILLS = {
    1: Fill("usable", "#009E73"),
    2: Fill("reserved", "#999999", "/"),
    3: Fill("ACPI data", "#56B4E9", "\\"),
    4: Fill("ACPI NVS", "#0072B2", "x"),
    5: Fill("unusable", "#D55E00", "+"),
    7: Fill("persistent", "#F0E442", "."),
    12: Fill("persistent", "#F0E442", "."),
}
OTHER = Fill("other type", "#CC79A7", "-")

DIFFERENT = Fill("not the same in the other run", "#FFFFFF", "x")

WIDTH, LEFT, RIGHT, BAR = 980.0, 126.0, 968.0, 40.0


def fill_of(kind: int) -> Fill:
    """How an E820 type is filled."""
    return FILLS.get(kind, OTHER)


def legend_fills(entries: Iterable[E820Entry]) -> list[Fill]:
    """The fills of the types that occur, each once."""
    return list(dict.fromkeys(fill_of(e.type) for e in entries))


def e820_figure(firmware: Sequence[E820Entry], guest: Sequence[E820Entry], vmm: tuple[int, int] | None = None, *,
                scale: str = "compressed", axis_of: Sequence[tuple[int, int]] = (), marks: Sequence[tuple[int, int]] = ()) -> Figure:
    """Both maps as bars over one axis of host-physical addresses, and as a table.

    `vmm` is the half-open range of the hypervisor's own memory, drawn over the guest's bar.  `scale` is one of `widgets.scale.SCALES`.
    `axis_of` are more half-open ranges for which the axis has room, `marks` those that are marked as different.
    """
    ranges = [(e.start, e.end) for e in (*firmware, *guest)] + ([vmm] if vmm else []) + list(axis_of)
    place = make_scale(scale, ranges, LEFT, RIGHT)
    drawing = Drawing(WIDTH)
    top = drawing.legend(18, [("E820:", [*legend_fills((*firmware, *guest)), *([DIFFERENT] if marks else [])])])
    _bar(drawing, place, "firmware", firmware, top)
    _bar(drawing, place, "guest", guest, top + 60)
    if vmm:
        x = place(vmm[0])
        tip = f"VMM {address(vmm[0])}-{address(vmm[1])}, {size(vmm[1] - vmm[0])}"
        drawing.rect(x, top + 56, place(vmm[1]) - x, BAR + 8, None, tip, dashed=True, part=range_part(*vmm))
        drawing.badge((x + place(vmm[1])) / 2, top + 64 + BAR / 2, "VMM")
    mark_ranges(drawing, place, marks, top + 104)
    axis(drawing, place, edges_of(ranges), top + 112)
    drawing.height = top + 158
    drawing.text(LEFT, top + 154, f"host-physical address, {scale} scale", size=11, colour=MUTED)
    title = "E820: what the firmware reports and what the guest is told"
    alt = _words(firmware, guest, vmm)
    return Figure(title, alt, drawing.svg(title, alt, anchors(place, edges_of(ranges))), _table(firmware, guest))


def _bar(drawing: Drawing, place: Scale, name: str, entries: Sequence[E820Entry], top: float) -> None:
    drawing.text(LEFT - 8, top + BAR / 2 + 4, name, anchor="end", bold=True)
    drawing.line(LEFT, top + BAR / 2, RIGHT, top + BAR / 2, dashed=True)
    for entry in entries:
        x, end = place(entry.start), place(entry.end)
        words = f"{size(entry.size)} {type_name(entry.type)}"
        tip = f"{name}: {address(entry.start)}-{address(entry.end)}, {words}"
        drawing.rect(x, top, end - x, BAR, fill_of(entry.type), tip, part=range_part(entry.start, entry.end))
        if end - x > 7 * len(words) + 12:
            drawing.badge((x + end) / 2, top + BAR / 2 + 4, words)


def axis(drawing: Drawing, place: Scale, edges: Sequence[int], y: float) -> None:
    """A line at `y` with the addresses of the edges below it, as many as fit."""
    drawing.line(LEFT, y, RIGHT, y)
    for row, (edge, x) in enumerate(ticks(place, edges, 46)):
        below = y + 15 + 13 * (row % 2)
        drawing.line(x, y, x, below - 9)
        drawing.text(x, below, address(edge), size=10, anchor="end" if x > RIGHT - 40 else "middle")


def mark_ranges(drawing: Drawing, place: Scale, ranges: Sequence[tuple[int, int]], y: float) -> None:
    """A strip at height `y` under what is different."""
    if ranges:
        drawing.text(LEFT - 8, y + 8, "≠", anchor="end", bold=True)
    for start, end in ranges:
        drawing.rect(place(start), y, place(end) - place(start), 7, DIFFERENT, f"different: {address(start)}-{address(end)}")


def _words(firmware: Sequence[E820Entry], guest: Sequence[E820Entry], vmm: tuple[int, int] | None) -> str:
    def usable(entries: Sequence[E820Entry]) -> str:
        return size(sum(e.size for e in entries if e.usable))
    words = f"{len(firmware)} entries with {usable(firmware)} usable from the firmware, "
    words += f"{len(guest)} with {usable(guest)} usable for the guest"
    return words + (f"; the VMM keeps {size(vmm[1] - vmm[0])} at {address(vmm[0])}, which the guest's map does not show" if vmm else "")


def _table(firmware: Sequence[E820Entry], guest: Sequence[E820Entry]) -> str:
    given, told = set(firmware), set(guest)
    rows = [[address(e.start), address(e.end), size(e.size), type_name(e.type), yes_no(e in given), yes_no(e in told)]
            for e in sorted(given | told)]
    labels = ["start", "end", "size", "type", "firmware", "guest"]
    return html_table("E820  (half-open, host-physical)", labels, rows, [True, True, True, False, False, False])
