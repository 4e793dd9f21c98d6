"""The timeline of the protection window: what was reachable when, from plain lists of events, and of a machine that was booted."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import accumulate, groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore import Config, Machine
from hvcore.inspect.history import Event
from hvcore.inspect.window import read_window
from widgets.timeline import AXES, FILLS, Now, Stretch, duration, exposure, stretches, timeline_figure

SVG = "{http://www.w3.org/2000/svg}"
UNIT, OTHER = 0xFED90000, 0xFED91000
GIB = 1 << 30
VMM = (0x77C00000, 0x7FC00000)


def history(*happened: str | tuple[str, int] | tuple[str, int, tuple]) -> list[Event]:
    """Events a millisecond apart: a phase's name after "phase ", else what happened, to which unit, with which ranges."""
    events = []
    for i, event in enumerate(happened):
        what, unit, ranges = (*((event,) if isinstance(event, str) else event), None, ())[:3]
        name, _, phase = what.partition("phase ")
        events.append(Event(i, i * 1_000_000, True, name or "phase", unit, None, ranges or (), phase))
    return events


BOOT = history("power-on", "phase firmware", "phase vmm laid", ("SRTP", UNIT), ("TE on", UNIT), "phase guest")


def told(events: list[Event]) -> str:
    return exposure({UNIT: stretches(events, UNIT, GIB, VMM)}, events)[0]


def states(events: list[Event], unit: int = UNIT, vmm=VMM, now: Now | None = None) -> list[tuple[int, int | None, str]]:
    return [(s.first, s.last, s.state) for s in stretches(events, unit, 16 * GIB, vmm, now)]


def test_everything_is_reachable_until_translation_is_on():
    found = stretches(BOOT, UNIT, 16 * GIB, VMM, Now("4 GiB", "4 GiB by tables"))
    assert found == [Stretch(0, 2, "early", "everything (16 GiB)", "16 GiB"),
                     Stretch(2, 4, "open", "everything (16 GiB), the VMM's memory among it", "16 GiB"),
                     Stretch(4, None, "tables", "4 GiB by tables", "4 GiB")]


def test_a_unit_that_is_never_switched_on_stays_open():
    assert states(BOOT, OTHER) == [(0, 2, "early"), (2, None, "open")]


def test_without_a_vmm_there_is_nothing_of_it_to_reach():
    assert states(BOOT, OTHER, vmm=None) == [(0, None, "early")]


def test_translation_that_is_switched_off_again_opens_the_window_again():
    events = [*BOOT, *(Event(6 + i, 0, False, what, UNIT) for i, what in enumerate(("TE off", "TE on")))]
    assert states(events) == [(0, 2, "early"), (2, 4, "open"), (4, 6, "tables"), (6, 7, "open"), (7, None, "tables")]


def test_tables_that_grant_the_vmm_are_no_protection():
    assert states(BOOT, now=Now("1 GiB", "1 GiB", exposed=True))[-1] == (4, None, "open")


def test_what_the_tables_grant_now_is_told_of_the_last_stretch_alone():
    events = [*BOOT, *(Event(6 + i, 0, False, what, UNIT) for i, what in enumerate(("TE off", "TE on")))]
    found = stretches(events, UNIT, GIB, VMM, Now("n", "now"))
    assert [s.words for s in found if s.state == "tables"] == ["what the domains' tables grant", "now"]


@pytest.mark.parametrize(("ranges", "state"), [(((0x70000000, 0x80000000),), "partly"), (((0x70000000, 0x78000000),), "open")])
def test_protected_memory_counts_where_the_vmm_is_in_it(ranges, state):
    events = history("power-on", "phase vmm laid", ("PMEN on", UNIT, ranges), ("PMEN off", UNIT))
    assert states(events) == ([(0, 1, "early"), (1, 2, "open"), (2, 3, state), (3, None, "open")])


HAPPENED = st.one_of(
    st.sampled_from(["phase firmware", "phase vmm laid", "phase guest"]),
    st.tuples(st.sampled_from(["TE on", "TE off", "SRTP", "PMEN off"]), st.sampled_from([UNIT, OTHER])),
    st.tuples(st.just("PMEN on"), st.sampled_from([UNIT, OTHER]),
              st.sampled_from([(), ((0, GIB),), (VMM,), ((0, GIB), (0x70000000, 0x80000000)), ((0, 0x78000000), (0x78000000, GIB * 4))])))


@given(st.lists(HAPPENED, max_size=12))
def test_the_window_and_the_timeline_tell_the_same_openings(happened):
    """What `run.window` lists as open is drawn as open, from the same event to the same event, whatever happened."""
    events = history("power-on", *happened)
    merged = [list(group) for state, group in groupby(stretches(events, UNIT, GIB, VMM), lambda s: s.state) if state == "open"]
    assert [(group[0].first, group[-1].last) for group in merged] == [(o.since, o.until) for o in read_window(events, [UNIT], VMM)]


@given(st.lists(st.sampled_from([("TE on", UNIT), ("TE off", UNIT), ("TE on", OTHER), ("SRTP", UNIT), "phase vmm laid", "phase guest"]),
                min_size=1, max_size=40))
def test_stretches_follow_one_another_and_agree_with_a_plain_reading(happened):
    events = history(*happened)
    found = stretches(events, UNIT, GIB, VMM)
    assert found[0].first == 0
    assert found[-1].last is None
    assert all(a.last == b.first and a.state != b.state for a, b in pairwise(found))
    on = list(accumulate(happened, lambda before, e: {"TE on": True, "TE off": False}.get(e[0], before) if e[1] == UNIT else before,
                         initial=False))[1:]
    for i, translating in enumerate(on):
        held = next(s for s in found if s.first <= i and (s.last is None or i < s.last))
        there = "phase vmm laid" in happened[:i + 1]
        assert held.state == ("tables" if translating else "open" if there else "early")


def test_an_empty_root_table_lets_nothing_through_until_another_is_latched():
    """As a core closes a unit that has no protected memory, and opens it by the tables of its domain."""
    early = [*history("power-on", "phase acpi", ("SRTP", UNIT)), Event(3, 3, True, "TE on", UNIT, empty=True),
             *(replace(e, order=e.order + 4) for e in history("phase vmm laid", ("SRTP", UNIT), "phase guest"))]
    found = stretches(early, UNIT, GIB, VMM, Now("4 GiB", "4 GiB by tables"))
    assert [(s.first, s.last, s.state) for s in found] == [(0, 3, "early"), (3, 5, "nothing"), (5, None, "tables")]
    assert found[1].words.startswith("nothing: the root table was empty")
    assert exposure({UNIT: found}, early)[0].endswith("was never open to devices once its code and key lay in it.")


def test_tables_that_grant_nothing_now_are_told_as_nothing():
    assert states(BOOT, now=Now("nothing", "nothing: there is no context entry"))[-1] == (4, None, "nothing")


# --- in words

def test_the_window_in_words_names_phases_and_where_time_is_real_how_long():
    assert told(BOOT) == f"Behind unit {UNIT:#x} the core's memory was open to devices in the phase vmm laid, until TE on."
    again = [*BOOT, Event(6, 7_000_000, False, "TE off", UNIT), Event(7, 7_095_000, False, "TE on", UNIT)]
    assert told(again).endswith("; and again for 95 µs of virtual time, from TE off (event 6) to TE on (event 7).")
    assert told(BOOT[:4]).endswith("open to devices from the phase vmm laid on, and is open now.")
    long = history("power-on", "phase vmm laid", "phase acpi", "phase iommu on", ("TE on", UNIT))
    assert told(long).endswith("in 3 phases of the boot: vmm laid, acpi, iommu on, until TE on.")


def test_units_that_were_alike_share_a_sentence():
    both = history("power-on", "phase vmm laid", ("TE on", UNIT), ("TE on", OTHER))
    assert exposure({u: stretches(both, u, GIB, VMM) for u in (UNIT, OTHER)}, both) == [
        f"Behind units {UNIT:#x}, {OTHER:#x} the core's memory was open to devices in the phase vmm laid, until TE on."]


# --- the figure

def bars(svg: str) -> list[ET.Element]:
    """The stretches of the first unit."""
    rects = ET.fromstring(svg).iter(f"{SVG}rect")
    return [r for r in rects if (tip := r.find(f"{SVG}title")) is not None and tip.text.startswith(f"unit {UNIT:#x}: ")]


def test_a_stretch_stands_for_what_it_is_about():
    """The core's memory where that was open, the root table where one decides, the unit where neither is."""
    events = [replace(e, address=0x78415000) if e.what == "SRTP" else e for e in BOOT]
    assert [r.get("data-start") for r in bars(timeline_figure(events, [UNIT], GIB, VMM).svg)] == [hex(UNIT), hex(VMM[0]), "0x78415000"]


@pytest.mark.parametrize("axis", AXES)
def test_the_figure_draws_each_stretch_where_its_events_are(axis):
    figure = timeline_figure(BOOT, [UNIT, OTHER], 16 * GIB, VMM, {UNIT: Now("4 GiB", "4 GiB by tables")}, axis=axis)
    rects = bars(figure.svg)
    edges = [(float(r.get("x")), float(r.get("x")) + float(r.get("width"))) for r in rects]
    assert edges[0][0] == 126.0
    assert edges[-1][1] == pytest.approx(968.0, abs=0.2)
    assert all(a[1] == pytest.approx(b[0], abs=0.2) for a, b in pairwise(edges))
    assert [r.find(f"{SVG}title").text for r in rects][-1] == f"unit {UNIT:#x}: 4 GiB by tables"


def test_the_even_axis_gives_each_event_the_same_room():
    figure = timeline_figure(BOOT, [UNIT], GIB, VMM)
    widths = [float(r.get("width")) for r in bars(figure.svg)]
    assert widths == pytest.approx([2 * 842 / 6] * 3, abs=0.2)


def test_an_unknown_axis_and_no_events_and_no_units():
    with pytest.raises(ValueError, match="choose one of even, time"):
        timeline_figure([], [], 0, axis="sideways")
    assert timeline_figure([], [UNIT], 0).svg
    assert timeline_figure(BOOT, [], GIB).alt == "there is no remapping unit"


def test_every_state_has_a_hatching_of_its_own():
    assert len({fill.hatch for fill in FILLS.values()}) == len(FILLS)


@pytest.mark.parametrize(("ns", "words"), [(0, "0 ns"), (999, "999 ns"), (6_003_000, "6.003 ms"), (60_019_994_205, "60.02 s")])
def test_durations(ns, words):
    assert duration(ns) == words


# --- a machine

def test_a_booted_machine_tells_its_window():
    with Machine.load("nvme-desktop-16g") as machine:
        run = machine.boot(Config(VTD_TRANS=True))
        figure = run.history.figure(axis="time")
        assert {o.ended for o in run.window} == {"TE on"}
        opened = machine.boot(Config(VTD_TRANS=False)).history.figure()
        kept = run.history.figure(axis="time")
    for unit in figure.alt.split("; "):
        assert "from phase vmm laid to TE on: everything (15.91 GiB), the VMM's memory among it" in unit
        assert unit.endswith("since TE on: tables of domain 0: 3.88 GiB, nothing of the VMM's memory")
    assert "TE on" not in opened.alt
    assert opened.alt.endswith("since phase vmm laid: everything (15.91 GiB), the VMM's memory among it")
    assert kept == figure


def test_early_protection_closes_the_window_before_there_is_a_core():
    with Machine.load("q35-6g") as machine:
        run = machine.boot(Config(PROFILE="mended"))
        figure = run.history.figure()
        seen = len(run.history)
        run.guest.command(f"poke {UNIT + 0x18:#x} 0")
        hidden = run.history[seen:]
    assert figure.alt.startswith(f"Behind unit {UNIT:#x} the core's memory was never open to devices once its code and key lay in it.")
    assert "from TE on to SRTP: nothing: the root table was empty" in figure.alt
    assert "since SRTP: tables of domain 0: 7.88 GiB, nothing of the VMM's memory" in figure.alt
    assert not hidden
    assert len(run.window) == 0
    with Machine.load("nvme-desktop-16g") as machine:
        assert "never open to devices once its code and key lay in it. unit" in machine.boot(Config(PROFILE="mended")).history.figure().alt
