"""Firmware's memory map: every spelling of its lines, what is put right, what is refused, what follows from it."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.errors import BadMachine
from hvcore.sources.e820_lines import read_maps
from hvcore.sources.memory_map import (
    acpi_place,
    check_bootable,
    check_e820,
    dram_runs,
    fill_low_memory,
    find_window,
    free_ecam,
    guess_ecam,
)
from hvcore.spec.e820 import E820Entry

LOGS = Path(__file__).parents[1] / "data" / "logs"
SPELLINGS = {
    "[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009efff] usable": (0, 0x9F000, 1),
    "Jun 12 10:49:44 localhost kernel: BIOS-e820: [mem 0x000000008ad01000-0x000000008ad48fff] ACPI NVS": (0x8AD01000, 0x8AD49000, 4),
    "kern  :info  : [Fri Apr  7 00:04:12 2023] BIOS-e820: [mem 0x00000000ff000000-0x00000000ffffffff] reserved": (0xFF000000, 1 << 32, 2),
    "[  14.368] [    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009faf9] usable": (0, 0x9FAFA, 1),
    "[    0.000000] BIOS-e820: [mem 0x00000000bcf77000-0x00000000bcffefff] type 20": (0xBCF77000, 0xBCFFF000, 20),
    " BIOS-e820: 0000000000000000 - 000000000009e000 (usable)": (0, 0x9E000, 1),
    " BIOS-e820: 000000007f338000 - 000000007f34e000 (ACPI data)": (0x7F338000, 0x7F34E000, 3),
    " BIOS-e820: 00000000fe000000 - 0000000100000000 (reserved)": (0xFE000000, 1 << 32, 2),
    "<6>[    0.000000]  BIOS-e820: 00000000dfea0000 - 00000000dfeb2000 type 9": (0xDFEA0000, 0xDFEB2000, 9),
    "[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000003efff]  System RAM": (0, 0x3F000, 1),
    "[    0.000000] BIOS-e820: [mem 0x000000000003f000-0x000000000003ffff]  device reserved": (0x3F000, 0x40000, 2),
    "[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x000000007ffdbfff]    1.9 GB kernel usable RAM": (0x100000, 0x7FFDC000, 1),
    "BIOS-e820: [mem 0x0000000880000000-0x0000001080000000-1]": None,
    "BIOS-e820: [mem 0x0000000880000000-0x000000107fffffff] persistent (type 12)": (0x880000000, 0x1080000000, 12),
    "BIOS-e820: [mem 0x0000000880000000-0x000000107fffffff] soft reserved": (0x880000000, 0x1080000000, 0xEFFFFFFF),
    "  8: 000000fd00000000 - 0000010000000000 = 2 RESERVED": (0xFD00000000, 1 << 40, 2),
    "[    0.000000] BIOS-e820: [gap 0x00000000000a0000-0x00000000000fffff]": None,
    "[    0.000000] e820: update [mem 0x00000000-0x00000fff] usable ==> reserved": None,
    "[    0.000000] e820: remove [mem 0x000a0000-0x000fffff] usable": None,
    "[    0.000000] reserve setup_data: [mem 0x0000000000100000-0x0000000009deffff] usable": None,
    "[    2.288524] e820: reserve RAM buffer [mem 0x0009fafa-0x0009ffff]": None,
    " modified: 0000000000000000 - 0000000000010000 (usable)": None,
    "(XEN)  0000000000000000 - 000000000009c800 (usable)": None,
    "[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009e": None,
    "[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009efff] usab": None,
}


@pytest.mark.parametrize(("line", "entry"), SPELLINGS.items())
def test_a_line(line: str, entry: tuple[int, int, int] | None) -> None:
    maps = read_maps([line])
    assert [e for m in maps for e in m.entries] == ([E820Entry(*entry)] if entry else [])


def test_all_spellings_that_were_collected() -> None:
    maps = read_maps((LOGS / "e820-line-forms.txt").read_text().splitlines())
    assert [(m.spelling, len(m.entries)) for m in maps] == [("linux", 3), ("linux-2.6", 9), ("linux", 3), ("xen", 2), ("seabios", 2)]
    assert maps[1].entries[-1] == E820Entry(0x100000000, 0x1080000000, 1)
    assert maps[3].entries == (E820Entry(0, 0x9C800, 1), E820Entry(0xB97FC000, 0xB9803000, 4))


def test_xen_of_both_ages_only_below_its_header() -> None:
    old = ["(XEN) Xen-e820 RAM map:", "(XEN)  0000000000100000 - 000000007fe6d800 (usable)", "(XEN) ACPI: RSDP",
           "Xen: 0000000000000000 - 00000000000a0000 (usable)"]
    new = ["(XEN) [0000001b48040516] EFI RAM map:", "(XEN) [0000001b4a3297f3]  [0000000000000000, 00000000000963ff] (usable)"]
    assert [m.entries for m in read_maps(old)] == [(E820Entry(0x100000, 0x7FE6D800, 1),)]
    assert [m.entries for m in read_maps(new)] == [(E820Entry(0, 0x96400, 1),)]


def test_two_boots_are_two_maps_and_a_repeated_first_entry_starts_another() -> None:
    boot = ["BIOS-provided physical RAM map:", "BIOS-e820: [mem 0x0-0x9ffff] usable", "BIOS-e820: [mem 0x100000-0x7fffffff] usable"]
    assert [len(m.entries) for m in read_maps([*boot, "other", *boot])] == [2, 2]
    assert [len(m.entries) for m in read_maps([*boot, *boot[1:]])] == [2, 2]


def test_a_map_at_the_end_of_a_log_is_not_whole() -> None:
    lines = ["BIOS-e820: [mem 0x0-0x9ffff] usable", "BIOS-e820: [mem 0x100000-0x7fffffff] usable"]
    assert not read_maps(lines)[0].whole
    assert not read_maps([*lines, "BIOS-e820: [mem 0x800000"])[0].whole
    assert read_maps([*lines, "NX protection: active"])[0].whole
    assert not read_maps([lines[0], "other"])[0].whole and not read_maps([lines[1], "other"])[0].whole


def test_a_torn_line_is_named_and_left_out() -> None:
    found = read_maps(["BIOS-e820: [mem 0x0-0x9ffff] usable", "BIOS-e820: [mem 0x1OOOOO-0x7fffffff] usable", "x"])[0]
    assert found.torn == (2,) and len(found.entries) == 1


def test_sysfs_memmap() -> None:
    lines = ["/sys/firmware/memmap/1/type:Reserved", "/sys/firmware/memmap/0/start:0x0", "/sys/firmware/memmap/0/end:0x9fbff",
             "/sys/firmware/memmap/0/type:System RAM", "/sys/firmware/memmap/1/start:0x9fc00", "/sys/firmware/memmap/1/end:0x9ffff",
             "/sys/firmware/memmap/2/start:0xf0000"]
    assert read_maps(lines)[0].entries == (E820Entry(0, 0x9FC00, 1), E820Entry(0x9FC00, 0xA0000, 2))


def test_descending_entries_are_sorted_and_it_is_said() -> None:
    entries = [E820Entry(0x100000, 0x8000000, 1), E820Entry(0, 0x9F000, 1)]
    flat, notes = check_e820(entries)
    assert flat == (entries[1], entries[0])
    assert len(notes) == 1 and "ascending" in notes[0]


def test_of_overlapping_entries_the_stricter_wins() -> None:
    flat, notes = check_e820([E820Entry(0, 0x10000, 1), E820Entry(0x4000, 0x5000, 2), E820Entry(0x8000, 0x12000, 3)])
    assert flat == (E820Entry(0, 0x4000, 1), E820Entry(0x4000, 0x5000, 2), E820Entry(0x5000, 0x8000, 1), E820Entry(0x8000, 0x12000, 3))
    assert len(notes) == 1 and "overlap" in notes[0]


ENTRIES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12), st.sampled_from([1, 2, 3, 4, 5, 20])), min_size=1, max_size=8)
STRICT = {1: 0, 3: 1, 20: 2, 4: 3, 5: 4, 2: 5}


@given(ENTRIES)
def test_every_byte_keeps_its_strictest_type(spans: list[tuple[int, int, int]]) -> None:
    entries = [E820Entry(start, start + length, kind) for start, length, kind in spans]
    flat, _ = check_e820(entries)
    for at in range(60):
        said = [e.type for e in entries if e.start <= at < e.end]
        kept = [e.type for e in flat if e.start <= at < e.end]
        assert kept == ([max(said, key=lambda t: STRICT[t])] if said else [])
    assert all(a.end <= b.start for a, b in pairwise(flat))


@pytest.mark.parametrize(("entry", "words"), [
    (E820Entry(0x100000, 0x100000, 1), "line 7: .* no bytes"),
    (E820Entry(0x100000, 0x1000, 1), "line 7: .* its end before its start"),
    (E820Entry(0x100000000, 0x30000000000, 1), "2 TiB"),
])
def test_entries_that_cannot_be(entry: E820Entry, words: str) -> None:
    with pytest.raises(BadMachine, match=words):
        check_e820([entry], ["line 7"])


def test_ram_may_reach_the_limit() -> None:
    entry = E820Entry(0x100000000, 2 << 40, 1)
    assert check_e820([entry]) == ((entry,), ())


def test_a_map_needs_entries_and_not_thousands() -> None:
    with pytest.raises(BadMachine, match="this one 0"):
        check_e820([])
    with pytest.raises(BadMachine, match="this one 5000"):
        check_e820([E820Entry(n, n + 1, 1) for n in range(5000)])


def test_low_memory_is_filled_around_what_is_there() -> None:
    entries = (E820Entry(0xE0000, 0x100000, 2), E820Entry(0x100000, 0x8000000, 1))
    filled, notes = fill_low_memory(entries)
    assert filled == (E820Entry(0, 0x9FC00, 1), E820Entry(0x9FC00, 0xA0000, 2), *entries)
    assert "0x000000000009fbff] usable" in notes[0]
    assert fill_low_memory(filled) == (filled, ())


@pytest.mark.parametrize(("entry", "words"), [
    (E820Entry(0x1000000, 0x80000000, 1), "0 KiB of usable RAM at 1 MiB"),
    (E820Entry(0x100000, 0x200000, 1), "1024 KiB of usable RAM at 1 MiB"),
    (E820Entry(0x100000, 0x180000000, 1), "IOAPIC"),
])
def test_maps_that_hold_no_guest(entry: E820Entry, words: str) -> None:
    with pytest.raises(BadMachine, match=words):
        check_bootable([E820Entry(0, 0x9F000, 1), entry])


def test_dram_reaches_over_touching_reserved_entries_but_not_into_windows() -> None:
    entries = [E820Entry(0, 0x9F000, 1), E820Entry(0x100000, 0x6EECA000, 1), E820Entry(0x6EECA000, 0x90000000, 2),
               E820Entry(0x100000000, 0x83E300000, 1), E820Entry(0x83E300000, 0x840000000, 2), E820Entry(0xFD00000000, 1 << 40, 2)]
    assert dram_runs(entries, [(0x80000000, 0x90000000)]) == ((0, 0x80000000), (0x100000000, 0x840000000))
    assert dram_runs(entries, [])[0] == (0, 0x90000000)
    assert dram_runs(entries, [(0x7F000000, 0x7F001000)])[0] == (0, 0x7F000000)


def test_dram_is_in_whole_pages_and_not_where_the_map_has_holes() -> None:
    entries = [E820Entry(0, 0x9F7FF, 1), E820Entry(0x100000, 0xDD7A1640, 1), E820Entry(0xDD7A36A0, 0xE0000000, 2),
               E820Entry(0x100000000, 0x147FFFF000 - 0x800, 1)]
    assert dram_runs(entries, []) == ((0, 0xDD7A2000), (0x100000000, 0x147FFFF000))


def test_small_reserved_tails_between_nodes_are_dram() -> None:
    entries = [E820Entry(0x100000, 0x80000000, 1), E820Entry(0x100000000, 0x87F380000, 1), E820Entry(0x87F380000, 0x880000000, 2),
               E820Entry(0x880000000, 0x107FF80000, 1)]
    assert dram_runs(entries, [])[1:] == ((0x100000000, 0x107FF80000),)


def test_dram_beyond_the_limit_is_refused() -> None:
    with pytest.raises(BadMachine, match="2 TiB"):
        dram_runs([E820Entry(0x100000, 0x80000000, 1), E820Entry(0x1FFF0000000, 0x1FFFFFFF000, 1),
                   E820Entry(0x1FFFFFFF000, 0x20010000000, 2)], [])


@pytest.mark.parametrize(("end", "base", "buses"), [
    (0x90000000, 0x80000000, 256), (0xF8000000, 0xF0000000, 128), (0xFC000000, 0xF8000000, 64), (0x95400000, None, 0),
])
def test_the_configuration_window_by_its_shape(end: int, base: int | None, buses: int) -> None:
    start = {0x90000000: 0x6EECA000, 0xF8000000: 0xF0000000}.get(end, 0xF8000000 if end > 0x95400000 else 0x7C000000)
    found = guess_ecam([E820Entry(start, end, 2)])
    assert (found.base, found.last + 1) == (base, buses) if found else base is None


def test_a_free_place_for_the_configuration_window() -> None:
    found = free_ecam([(0xE0000000, 0xF0000000)], 0x80000000)
    assert found and (found.base, found.size) == (0xD0000000, 256 << 20)
    tight = free_ecam([(0xC0000000, 0xF0000000)], 0xC0000000)
    assert tight and (tight.base, tight.size) == (0xF0000000, 128 << 20)
    assert free_ecam([(0x80000000, 0xFEC00000)], 0x80000000) is None


def test_a_window_avoids_what_it_must() -> None:
    assert find_window((0x1234, 0x100000), [(0x8000, 0x9000), (0x2000, 0x2800)]) == 0x9000
    assert find_window((0x1000, 0x10000), []) is None


def test_tables_go_where_the_real_one_lay_else_to_acpi_data_else_to_reserved() -> None:
    runs = ((0, 0x80000000),)
    low = E820Entry(0x100000, 0x70000000, 1)
    nvs, data, kept = E820Entry(0x70000000, 0x71000000, 4), E820Entry(0x71000000, 0x71080000, 3), E820Entry(0x71080000, 0x80000000, 2)
    assert acpi_place([low, nvs, data, kept], runs, [], 0x70123456) == (0x70000000, None)
    assert acpi_place([low, nvs, data, kept], runs, [], None) == (0x71000000, None)
    assert acpi_place([low, nvs, kept], runs, [(0x71080000, 0x71100000)], None) == (0x71100000, None)
    address, note = acpi_place([E820Entry(0, 0x100000, 1), low], runs, [], None)
    assert address == 0xE0000 and note and "may overwrite" in note
