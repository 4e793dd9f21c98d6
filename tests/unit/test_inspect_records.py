"""Records as text, HTML, frames and JSON."""

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest

from hvcore.inspect import format as show
from hvcore.inspect.records import HEAD, TAIL, Column, Record, Records
from hvcore.inspect.runs import Run, Runs


@dataclass(frozen=True, slots=True, repr=False)
class Thing(Record):
    """A record for the tests."""

    name: str
    at: int
    maybe: int | None = None

    title = "Things"
    legend = "addresses in hex"
    columns = (Column("name", lambda t: t.name), Column("at", lambda t: t.at, show.address, True),
               Column("maybe_there", lambda t: t.maybe, show.size, True))


THINGS = Records(Thing, [Thing("<script>alert('x')</script>", 0xFEE00000), Thing("b & c", 0x10, 4096)])


class Table(HTMLParser):
    """The tags and texts of a table."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_text_has_legend_first_and_lines_up() -> None:
    assert str(THINGS) == repr(THINGS) == "\n".join([
        "Things: 2  (addresses in hex)",
        "name                                 at  maybe there",
        "<script>alert('x')</script>  0xfee00000",
        "b & c                              0x10        4 KiB"])


def test_nothing_is_told_as_nothing() -> None:
    assert str(Records(Thing)) == "Things: none  (addresses in hex)"
    assert "none" in Records(Thing)._repr_html_()
    assert list(Records(Thing).frame.columns) == ["name", "at", "maybe_there"]
    assert Records(Thing).to_json() == []


def test_html_is_a_table_with_caption_and_scopes_and_nothing_unescaped() -> None:
    text = THINGS._repr_html_()
    table = Table(text)
    assert [attrs["scope"] for tag, attrs in table.tags if tag == "th"] == ["col", "col", "col"]
    assert next(tag for tag, _ in table.tags[1:]) == "caption"
    assert "script" not in {tag for tag, _ in table.tags}
    assert "<script>alert('x')</script>" in table.texts
    assert {"0xfee00000", "b & c", "4 KiB"} <= set(table.texts)


def test_html_takes_its_colours_from_the_theme() -> None:
    styles = " ".join(str(attrs.get("style", "")) for _, attrs in Table(THINGS._repr_html_()).tags)
    assert "var(--jp-ui-font-color1," in styles
    assert not re.search(r"background(-color)?:(?!none)", styles)
    assert not re.search(r"(?<![-\w])color:(?!var\(|inherit)", styles)


def test_frames_keep_whole_numbers_whole() -> None:
    frame = THINGS.frame
    assert frame.index.name == "thing"
    assert str(frame["at"].dtype) == "int64"
    assert str(frame["maybe_there"].dtype) == "Int64"
    assert frame["maybe_there"].isna().tolist() == [True, False]
    assert int(frame["at"][0]) == 0xFEE00000
    large = Records(Thing, [Thing("a", 1 << 63, 1 << 63), Thing("b", 0)]).frame
    assert int(large["at"][0]) == 1 << 63
    assert int(large["maybe_there"][0]) == 1 << 63


def test_json_is_plain() -> None:
    assert json.loads(json.dumps(THINGS.to_json()))[1] == {"name": "b & c", "at": 16, "maybe_there": 4096}


def test_slices_are_records_and_records_do_not_change() -> None:
    assert THINGS[1:] == Records(Thing, [THINGS[1]])
    assert str(THINGS[1:]).startswith("Things: 1 ")
    assert THINGS[-1].name == "b & c"
    with pytest.raises(AttributeError):
        THINGS[0].at = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        hash(THINGS)
    assert Records(Thing) != THINGS


def test_one_record_shows_its_fields() -> None:
    assert str(THINGS[1]).splitlines() == ["Things  (addresses in hex)", "name         b & c", "at           0x10", "maybe there  4 KiB"]
    assert [a["scope"] for t, a in Table(THINGS[1]._repr_html_()).tags if t == "th"] == ["col", "col", "row", "row", "row"]


def test_a_long_table_shows_its_ends_and_says_what_it_left_out() -> None:
    many = Records(Thing, [Thing(f"n{i}", i) for i in range(HEAD + TAIL + 1000)])
    lines = str(many).splitlines()
    assert len(lines) == 2 + HEAD + 1 + TAIL
    assert lines[2 + HEAD - 1].startswith(f"n{HEAD - 1} ")
    assert lines[2 + HEAD] == "... 1,000 rows not shown here; .frame has them all"
    assert lines[-1].startswith(f"n{HEAD + TAIL + 999} ")
    assert "1,000 rows not shown" in many._repr_html_()
    assert len(many.frame) == HEAD + TAIL + 1000


@pytest.mark.parametrize(("value", "text"), [
    (None, ""), (0, "0 B"), (640, "640 B"), (1 << 20, "1 MiB"), (0x77C00000, "1.87 GiB"), (2 << 40, "2 TiB")])
def test_sizes(value: int | None, text: str) -> None:
    assert show.size(value) == text


def test_device_lists_are_counted_beyond_twelve() -> None:
    assert show.devices((0x10, 0xFB)) == "00:02.0 00:1f.3"
    assert show.devices(range(20)).endswith("and 8 more")


# --- runs

RUNS = Runs.of([(0, 0x1000, "rw", 0), (0x2000, 0x5000, "-", 0), (0x8000, 0x9000, "r", -0x7000), (0xA000, 0xB000, "r", 0x7000)])


def test_runs_are_records() -> None:
    assert len(RUNS) == 4
    assert RUNS[1] == Run(0x2000, 0x5000, "-", 0)
    assert RUNS[-1].size == 0x1000
    assert RUNS[1:3].to_json() == [{"start": 0x2000, "end": 0x5000, "perm": "-", "offset": 0},
                                   {"start": 0x8000, "end": 0x9000, "perm": "r", "offset": -0x7000}]
    assert Runs.of(tuple((r.start, r.end, r.perm, r.offset) for r in RUNS)) == RUNS
    assert str(RUNS).splitlines()[-1].split() == ["0xa000", "0xb000", "4", "KiB", "r", "+0x7000"]
    with pytest.raises(IndexError):
        RUNS[4]


def test_runs_by_address_and_by_target() -> None:
    assert RUNS.at(0xFFF) == RUNS[0]
    assert [RUNS.at(a) for a in (0x1000, 0x1FFF, 0x9000, 1 << 50)] == [None] * 4
    assert RUNS.at(0x2000) == RUNS[1]
    assert list(RUNS.reaching(0x1234)) == [(0x8234, RUNS[2])]
    assert list(RUNS.reaching(0x2345)) == []
    assert list(Runs.of([]).reaching(0)) == []
    assert Runs.of([]).at(0) is None


def test_runs_as_a_frame() -> None:
    frame = RUNS.frame
    assert (frame.index.name, str(frame["start"].dtype), str(frame["offset"].dtype)) == ("run", "uint64", "int64")
    assert frame["perm"].tolist() == ["rw", "-", "r", "r"]
    assert frame["size"].sum() == int((RUNS.end - RUNS.start).sum())
    assert len(Runs.of([]).frame) == 0


def test_many_runs_show_at_once() -> None:
    n = 1_000_000
    start = np.arange(n, dtype=np.uint64) * np.uint64(8192)
    many = Runs(start, start + np.uint64(4096), np.ones(n, np.uint8), np.zeros(n, np.int64), ("-", "rw"))
    assert str(many).splitlines()[0].startswith("Permission runs: 1,000,000 ")
    assert many[n - 1].start == 8192 * (n - 1)
