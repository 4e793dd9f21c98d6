"""E820 side by side, lens, diff, dumps."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inspecttables import identity

from hvcore.errors import BadTable
from hvcore.inspect.diff import diff_domains, diff_e820, diff_faults, diff_runs, diff_units, range_changes
from hvcore.inspect.domains import Domain, decode, read_domains
from hvcore.inspect.dump import collect, load_npz, save_dump, save_npz
from hvcore.inspect.e820 import E820Map, type_at
from hvcore.inspect.faults import Fault
from hvcore.inspect.lens import look
from hvcore.inspect.records import Records
from hvcore.inspect.runs import Runs
from hvcore.inspect.units import Unit, read_unit
from hvcore.machine.description import UnitDescription
from hvcore.machine.memory import Memory
from hvcore.machine.vtd import RemappingUnit
from hvcore.spec import vtd
from hvcore.spec.e820 import E820Entry

BASE, ROOT, CONTEXTS = 0xFED90000, 0x1000, 0x2000
FIRMWARE = [E820Entry(0, 0x9FC00, 1), E820Entry(0xF0000, 0x100000, 2), E820Entry(0x100000, 0x7FFDA000, 1),
            E820Entry(0x100000000, 0x180000000, 1)]
GUEST = [*FIRMWARE[:2], E820Entry(0x100000, 0x77C00000, 1), FIRMWARE[3]]


# --- E820

def test_maps_side_by_side() -> None:
    rows = E820Map(FIRMWARE, GUEST)
    assert [(r.start, r.end, r.firmware, r.guest) for r in rows] == [
        (0, 0x9FC00, 1, 1), (0xF0000, 0x100000, 2, 2), (0x100000, 0x77C00000, 1, 1), (0x77C00000, 0x7FFDA000, 1, None),
        (0x100000000, 0x180000000, 1, 1)]
    assert [r.changed for r in rows] == [False, False, False, True, False]
    line = str(rows).splitlines()[5]
    assert line.split() == ["0x77c00000", "0x7ffda000", "131.85", "MiB", "usable", "not", "reported", "changed"]
    assert rows.to_json()["guest"][2] == {"start": 0x100000, "end": 0x77C00000, "type": 1}
    assert len(rows.to_json()["firmware"]) == 4
    assert rows.frame["guest"].isna().sum() == 1


@given(st.lists(st.builds(lambda a, n, t: E820Entry(a, a + n, t), st.integers(0, 60), st.integers(0, 20), st.integers(1, 5)), max_size=6),
       st.lists(st.builds(lambda a, n, t: E820Entry(a, a + n, t), st.integers(0, 60), st.integers(0, 20), st.integers(1, 5)), max_size=6))
def test_rows_say_of_every_address_what_the_maps_say(firmware: list[E820Entry], guest: list[E820Entry]) -> None:
    rows = E820Map(firmware, guest)
    for address in range(90):
        row = next((r for r in rows if r.start <= address < r.end), None)
        found = (row.firmware, row.guest) if row else (None, None)
        assert found == (type_at(firmware, address), type_at(guest, address))


# --- a unit with one domain

@dataclass
class Small:
    """16 MiB of RAM; 00:02.0 may reach [0, 4 MiB) but for the page at 2 MiB, which is withheld."""

    memory: Memory
    unit: RemappingUnit
    top: int

    @property
    def domains(self) -> Records[Domain]:
        return read_domains(self.memory, [self.unit], 39)


@pytest.fixture
def small() -> Small:
    memory = Memory([(0, 16 << 20)])
    unit = RemappingUnit(UnitDescription(BASE, 0x00D2008C22260206, 0xF42), memory, 39)
    top = identity(memory, 0x10000, 1024)
    memory.write64(0x10000 + 8 * 512, 512 << 12)
    low, high = vtd.context_entry(top, 1, 0)
    memory.write64(ROOT, vtd.root_entry(CONTEXTS))
    memory.write64(CONTEXTS + 0x100, low)
    memory.write64(CONTEXTS + 0x108, high)
    unit.mmio_write(0x20, 8, ROOT)
    for command in ("SRTP", "TE"):
        unit.mmio_write(0x18, 4, vtd.GCMD[command].mask)
    return Small(memory, unit, top)


# --- lens

def test_lens_goes_from_the_specific_to_the_general(small: Small) -> None:
    parts = [("text", 0x200000, 0x201000), ("heap", 0x201000, 0x300000)]
    e820 = E820Map([E820Entry(0, 16 << 20, 1)], [E820Entry(0, 2 << 20, 1)])
    facts = [(f.about, f.says, f.start, f.end) for f in look(small.memory, 0x200008, e820, small.domains, parts).facts]
    assert facts == [
        ("memory", "the 8 bytes at 0x200008 are 0x0000000000000000", 0x200008, 0x200010),
        ("core", "its text", 0x200000, 0x201000),
        ("domain 0 of unit 0xfed90000", "not reachable for 00:02.0: the entry holds an address but grants nothing", 0x200000, 0x201000),
        ("guest's E820", "in no entry", None, None),
        ("firmware's E820", "usable", 0, 16 << 20)]


def test_lens_on_a_table_page_and_on_what_devices_reach(small: Small) -> None:
    text = str(look(small.memory, small.top, E820Map([]), small.domains))
    assert "the top page of its second-level tables" in text
    assert f"rw at IOVA {small.top:#x} for 00:02.0" in text
    assert "nothing is mapped there" in str(look(small.memory, 8 << 20, E820Map([]), small.domains))
    assert "unreadable" in str(look(small.memory, 1 << 40, E820Map([]), small.domains))


def test_lens_tells_the_guests_cpu_and_units_that_are_off(small: Small) -> None:
    for table, word in ((0x5000, 0x6007), (0x6000, 0x7007), (0x7000, 0x8007)):
        small.memory.write64(table, word)
    small.memory.write64(0x8000 + 8 * 3, 0x9005)
    small.unit.mmio_write(0x18, 4, 0)
    says = [f.says for f in look(small.memory, 0x3010, E820Map([]), nested_root=0x5000, units=[read_unit(small.unit)]).facts]
    assert "guest-physical 0x3010: rx, but it is host-physical 0x9010" in says
    assert "translation is off: its devices reach every address" in says
    lost = look(small.memory, 0x4000, E820Map([]), nested_root=0x5000)
    assert "guest-physical 0x4000 is not mapped: absent" in str(lost)
    assert lost.to_json()["facts"][1]["about"] == "guest's CPU"


# --- diff

Piece = tuple[int, int, str, int]
RUN = st.tuples(st.integers(1, 5), st.integers(0, 3), st.sampled_from(["rw", "r", "-"]), st.sampled_from([0, 0, 0x1000]))


def laid(pieces: list[Piece]) -> Runs:
    """Runs one after another: (length, gap before, rights, offset), in pages."""
    out, at = [], 0
    for length, gap, perm, offset in pieces:
        at += gap
        out.append((at << 12, at + length << 12, perm, offset))
        at += length
    return Runs.of(out)


@given(st.lists(RUN, max_size=6), st.lists(RUN, max_size=6))
def test_range_changes_are_exactly_where_the_runs_disagree(left: list[Piece], right: list[Piece]) -> None:
    a, b = laid(left), laid(right)
    changes = list(range_changes("permissions", "x", a, b))
    for page in range(60):
        one, two = a.at(page << 12), b.at(page << 12)
        change = next((c for c in changes if c.start is not None and c.end is not None and c.start <= page << 12 < c.end), None)
        same = (one and (one.perm, one.offset)) == (two and (two.perm, two.offset))
        assert (change is None) == same
        if change:
            assert (change.left is None, change.right is None) == (one is None, two is None)
            assert change.left is None or one is None or change.left.split()[0] == one.perm


def test_e820_changes() -> None:
    (change,) = diff_e820(E820Map(FIRMWARE, FIRMWARE), E820Map(FIRMWARE, GUEST))
    assert (change.item, change.start, change.end, change.left, change.right, change.status) == (
        "guest", 0x77C00000, 0x7FFDA000, "usable", None, "only left")


def test_a_domain_that_changed(small: Small) -> None:
    before = small.domains
    small.memory.write64(0x10000 + 8 * 512, 512 << 12 | 1)
    changes = diff_domains(before, small.domains)
    assert [(c.part, c.item, c.left, c.right, c.start) for c in changes] == [
        ("domains", "domain 0 of unit 0xfed90000: mapped", "4.00 MiB", "4 MiB", None),
        ("permissions", "domain 0 of unit 0xfed90000", "-", "r", 2 << 20)]
    assert len(diff_domains(before, before)) == 0


def test_domains_faults_and_units_of_one_side(small: Small) -> None:
    (gone,) = diff_domains(small.domains, [])
    assert (gone.status, gone.left) == ("only left", "translate, 3 levels, 4 table pages, 4.00 MiB mapped for 00:02.0")
    fault = Fault(BASE, 0x10, 0x5000, "read", 6, "PTE Read access is not set")
    (new,) = diff_faults([fault], [fault, fault])
    assert (new.status, new.item) == ("only right", "00:02.0 read at 0x5000, reason 0x6, unit 0xfed90000 (number 2)")
    before = read_unit(small.unit)
    small.unit.mmio_write(0x18, 4, 0)
    assert [(c.item, c.left, c.right) for c in diff_units([before], [read_unit(small.unit)])] == [
        ("unit 0xfed90000: translation", "on", "off"), ("unit 0xfed90000: gsts", "0xc0000000", "0x40000000")]
    assert diff_units([], [before])[0].right == "there"


def test_two_runs(small: Small) -> None:
    def run(on: bool, domains: Records[Domain]) -> SimpleNamespace:
        return SimpleNamespace(config=SimpleNamespace(to_dict=lambda: {"VTD_TRANS": on}), outcome="up" if not on else "disk-lost",
                               e820=E820Map(FIRMWARE), units=Records(Unit), domains=domains, faults=Records(Fault))

    changes = diff_runs(run(True, small.domains), run(False, Records(Domain)))
    assert [(c.part, c.item, c.left, c.right) for c in changes[:2]] == [
        ("option", "VTD_TRANS", "True", "False"), ("outcome", "", "disk-lost", "up")]
    assert [c.part for c in changes[2:]] == ["domains"]
    assert list(changes.frame["status"]) == ["changed", "changed", "only left"]


# --- dumps

def test_collect_finds_every_table_page(small: Small) -> None:
    address, page = collect(small.memory, [small.unit])
    assert address.tolist() == [ROOT, CONTEXTS, 0x10000, 0x11000, 0x12000, 0x13000]
    assert page.shape == (6, 512)
    assert page[2].tolist() == small.memory.u64(0x10000, 512).tolist()


def test_a_dump_decodes_to_the_same_domains(small: Small, tmp_path: Path) -> None:
    tables, registers = save_dump(small.memory, [small.unit], tmp_path / "new" / "folder")
    (domain,) = decode(load_npz(tables), ROOT)
    (original,) = small.domains
    assert domain.to_json() == original.to_json() | {"unit": None}
    (unit,) = json.loads(registers.read_text())["units"]
    assert (unit["base"], unit["registers"]["RTADDR"], unit["registers"]["GSTS"]) == (BASE, ROOT, 0xC0000000)


def test_a_dump_without_tables_is_empty(tmp_path: Path) -> None:
    unit = RemappingUnit(UnitDescription(BASE, 0x00D2008C22260206, 0xF42), Memory([(0, 1 << 20)]), 39)
    tables, _ = save_dump(unit.memory, [unit], tmp_path)
    assert len(load_npz(tables)) == 0
    with pytest.raises(BadTable, match="no page"):
        decode(load_npz(tables), 0x1000)


def test_a_folder_that_cannot_be_made(small: Small, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadTable, match="cannot be written"):
        save_dump(small.memory, [small.unit], tmp_path / "file" / "folder")


WORDS = np.zeros((2, 512), np.uint64)


@pytest.mark.parametrize(("arrays", "message"), [
    ({"page": WORDS}, "does not hold the arrays"),
    ({"address": np.array([0, 4096], np.float64), "page": WORDS}, "`address` is float64"),
    ({"address": np.array([0, 4096], np.uint64), "page": WORDS[:, :100]}, r"should be \[2, 512\]"),
    ({"address": np.array([0], np.uint64), "page": WORDS}, r"should be \[1, 512\]"),
    ({"address": np.array([[0, 4096]], np.uint64), "page": WORDS}, "1 dimension"),
    ({"address": np.array([0, 8], np.uint64), "page": WORDS}, "multiple of 0x1000"),
    ({"address": np.array([4096, 4096], np.uint64), "page": WORDS}, "there twice"),
    ({"address": np.array([0, object()]), "page": WORDS}, "not a readable"),
])
def test_files_that_are_not_tables(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "t.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(BadTable, match=message):
        load_npz(tmp_path / "t.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"no archive at all", b"\x93NUMPY\x01\x00"])
def test_files_that_are_not_even_archives(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.npz").write_bytes(content)
    with pytest.raises(BadTable, match="not a readable"):
        load_npz(tmp_path / "t.npz")


def test_files_that_are_cut_or_missing(tmp_path: Path) -> None:
    save_npz(tmp_path / "t.npz", np.array([0, 4096], np.uint64), WORDS)
    whole = (tmp_path / "t.npz").read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(BadTable):
            load_npz(tmp_path / "cut.npz")
    for at in range(0, len(whole), 3):
        (tmp_path / "bent.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1:])
        with contextlib.suppress(BadTable):
            assert load_npz(tmp_path / "bent.npz").address.tolist() == [0, 4096]
    with pytest.raises(BadTable, match="does not exist"):
        load_npz(tmp_path / "none.npz")
    with pytest.raises(BadTable, match="not a readable"):
        load_npz(tmp_path)
    np.save(tmp_path / "one.npy", WORDS)
    with pytest.raises(BadTable, match="does not hold the arrays"):
        load_npz(tmp_path / "one.npy")
