"""Linux's debugfs texts in the forms of three generations of kernels, and what becomes of damaged ones."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.errors import BadSource, HvlabError
from hvcore.inspect.domains import read_contexts
from hvcore.inspect.dump import PageStore
from hvcore.linuxtables import compare, contexts_of, domains_of
from hvcore.sources.debugfs import LoggedTables, parse_regset, parse_tables, read_text
from hvcore.sources.outsideunit import load_registers
from hvcore.spec.pci import format_bdf
from hvcore.spec.vtd import CAP, ECAP

OLD = """IOMMU dmar2: Root Table Address:4362cc000
Root Table Entries:
 Bus: 0 H: 0 L: 4362f0001
 Context Table Entries for Bus: 0
  Entry\tB:D.F\tHigh\tLow
  160  \t00:14.0\t102   \t4362ef001
  184  \t00:17.0\t302   \t435ec4001
  248  \t00:1f.0\t202   \t436300001

"""
MIDDLE = """IOMMU dmar2: Root Table Address: 0x4362cc000
B.D.F\tRoot_entry\t\t\t\tContext_entry
00:14.0\t0x0000000000000000:0x00000004362f0001\t0x0000000000000102:0x00000004362ef001
00:17.0\t0x0000000000000000:0x00000004362f0001\t0x0000000000000302:0x0000000435ec4001
00:1f.0\t0x0000000000000000:0x00000004362f0001\t0x0000000000000202:0x0000000436300001

"""
_NONE = "\t-1    \t0x0000000000000000:0x0000000000000000:0x0000000000000000"
NEW = "\n".join(line + _NONE if line[:3] == "00:" else line + "\t\t\t\tPASID\tPASID_table_entry" * line.startswith("B.D.F")
                for line in MIDDLE.split("\n"))
_OF_02_0 = "00:02.0\t0x0000000103028001:0x0000000103028001\t0x0000000000000000:0x0000000103029805"
_PASID_ENTRY = "0x0000000000000000:0x0000000000000001:0x0000000103141089"
SCALABLE = f"""IOMMU dmar1: Root Table Address: 0x103027000
B.D.F\tRoot_entry\t\t\t\tContext_entry\t\t\t\tPASID\tPASID_table_entry
{_OF_02_0}\t0     \t{_PASID_ENTRY}
{_OF_02_0}\t1     \t{_PASID_ENTRY}

DMA Remapping is not enabled on dmar0
"""
REGSET = """IOMMU: dmar0 Register Base Address: fed90000
Name\t\t\tOffset\t\tContents
VER             \t0x00\t\t0x0000000000000010
GSTS            \t0x1c\t\t0x12345678c0000000
CAP             \t0x08\t\t0x00d2008c22260206
ECAP            \t0x10\t\t0x0000000000f00f4a
RTADDR          \t0x20\t\t0x00000004362cc000

"""


@pytest.mark.parametrize("text", [OLD, MIDDLE, NEW, NEW.replace("\n", "\r\n")], ids=["to 5.2", "between", "from 5.3", "with returns"])
def test_each_form_tells_the_same(text: str) -> None:
    tables, = parse_tables(text)
    assert (tables.name, tables.root, tables.scalable) == ("dmar2", 0x4362CC000, False)
    found = [(format_bdf(c.source), c.did, c.levels, c.root, c.problem) for c in contexts_of(tables)]
    assert found == [("00:14.0", 1, 4, 0x4362EF000, None), ("00:17.0", 3, 4, 0x435EC4000, None), ("00:1f.0", 2, 4, 0x436300000, None)]
    assert {c.root_entry for c in tables.contexts} == {(0x4362F0001, 0)}
    domains = domains_of(tables)
    assert [(d.did, tuple(map(format_bdf, d.devices))) for d in domains] == [(1, ("00:14.0",)), (2, ("00:1f.0",)), (3, ("00:17.0",))]
    assert all("not printed" in (d.remark or "") for d in domains)


def test_scalable_mode_and_a_unit_that_is_off() -> None:
    on, off = parse_tables(SCALABLE)
    assert on.scalable and [c.pasid for c in on.contexts] == [0, 1] and len(contexts_of(on)) == 1 and not domains_of(on)
    assert (off.name, off.root) == ("dmar0", None)
    nothing = PageStore(np.zeros(0, np.uint64), np.zeros((0, 512), np.uint64))
    assert "scalable mode" in compare(on, nothing).note and "does not translate" in compare(off, nothing).note


def _memory(tables: LoggedTables) -> PageStore:
    """The tables that Linux printed, as they would lie in memory."""
    pages = {tables.root or 0: np.zeros(512, np.uint64)}
    for c in tables.contexts:
        pages[tables.root or 0][2 * (c.source >> 8)] = c.root_entry[0]
        table = pages.setdefault(c.root_entry[0] & -4096, np.zeros(512, np.uint64))
        table[2 * (c.source & 0xFF):][:2] = c.entry
    return PageStore(np.array(list(pages), np.uint64), np.array(list(pages.values())))


def test_the_same_tables_in_memory_agree_and_others_do_not() -> None:
    tables, = parse_tables(NEW)
    memory = _memory(tables)
    assert not compare(tables, memory) and compare(tables, memory).note.startswith("3 context entries of both")
    assert [(c.source, c.low, c.high) for c in read_contexts(memory, tables.root or 0)] == [(c.source, *c.entry) for c in tables.contexts]
    less = LoggedTables(tables.name, tables.root, tables.contexts[1:])
    assert [(format_bdf(d.source), d.remark) for d in compare(less, memory)] == [("00:14.0", "only in memory")]
    moved, = parse_tables(NEW.replace("0x0000000436300001", "0x0000000436301001"))
    difference, = compare(moved, memory)
    assert difference.remark == "differs in bits: low 0x1000, high 0x0" and difference.to_json()["memory"] == (0x436300001, 0x202)
    gone = compare(LoggedTables("dmar2", 0x5000, tables.contexts), memory)
    assert len(gone) == 3 and "cannot be read" in gone.note


@pytest.mark.parametrize(("text", "line"), [
    ("", "names no remapping unit"), (NEW.replace("00:17.0", "00:17.8"), "line 4"), (NEW.replace("00:17.0", "00:37.0"), "line 4"),
    (MIDDLE.split("\n", 1)[1], "line 2"), (NEW + "[  1.0] oops\n", "line 7"),
    (NEW.replace("0x00000004362f0001", "0x4362f0001", 1), "line 3")])
def test_what_is_not_of_it_is_named(text: str, line: str) -> None:
    with pytest.raises(BadSource, match=line):
        parse_tables(text)


def _refused(parse: Callable[[str], object], text: str) -> str | None:
    try:
        parse(text)
    except HvlabError as e:
        return str(e)
    return None


@given(st.sampled_from([OLD, NEW, SCALABLE, REGSET]), st.integers(0, 600), st.integers(0, 40), st.text(max_size=12))
def test_damaged_texts_are_one_sentence_or_tables(text: str, at: int, gone: int, new: str) -> None:
    spoilt = text[:at] + new + text[at + gone:]
    for parse in (parse_tables, parse_regset):
        assert len((_refused(parse, spoilt) or "one").splitlines()) == 1


def test_registers_of_linux(tmp_path: Path) -> None:
    (tmp_path / "regset").write_text(REGSET)
    unit, = load_registers(tmp_path / "regset")
    assert (unit.description.base, unit.description.cap, unit.peek(0x20, 8)) == (0xFED90000, 0xD2008C22260206, 0x4362CC000)
    assert unit.peek(0x1C, 4) == 0xC0000000 and not unit.records_faults, "the word behind GSTS is none of its bits"


@pytest.mark.parametrize("text", [
    "", "{}", "{", "[]", '{"units": []}', '{"units": [{}]}', '{"units": 3}', REGSET.replace("RTADDR", "RTADDRS").replace("0x20", "0x28"),
    REGSET.replace("fed90000", "fed90001"), REGSET + REGSET, REGSET.replace("0x0000000000000010", "ten"), "\xff\xfe",
    json.dumps({"units": [{"base": -4096, "segment": 0, "include_all": True, "registers": {"CAP": 0, "ECAP": 0}}]}),
    json.dumps({"units": [{"base": 4096, "segment": 0, "include_all": True, "registers": {"CAP": 1 << 70, "ECAP": 0}}]})])
def test_bad_registers_are_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "registers"
    path.write_text(text, "latin-1")
    with pytest.raises(BadSource) as told:
        load_registers(path)
    assert len(str(told.value).splitlines()) == 1


def test_registers_json_of_a_run(tmp_path: Path) -> None:
    cap, ecap = CAP.make(MGAW=38, SAGAW=2, FRO=0x22), ECAP.make(IRO=0xF)
    held = {"CAP": cap, "ECAP": ecap, "GSTS": 1 << 31, "RTADDR": 0x5000, "FRCD0_LOW": 0x7000, "FRCD0_HIGH": 1 << 63}
    (tmp_path / "r.json").write_text(json.dumps({"units": [{"base": 0x1000, "segment": 1, "include_all": True, "registers": held}]}))
    unit, = load_registers(tmp_path / "r.json")
    assert (unit.description.segment, unit.description.include_all, unit.peek(0x1C, 4)) == (1, True, 1 << 31)
    assert unit.records_faults and unit.peek(0x220, 8) == 0x7000


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(bytes(range(256)))
    with pytest.raises(BadSource, match="debugfs"):
        read_text(tmp_path / "b")
    with pytest.raises(HvlabError, match="not a file"):
        read_text(tmp_path)
