"""Tables as the browser gets them: cells, sort keys, what a row chooses, limits."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore import Config, Machine
from hvcore.inspect.faults import Fault
from hvcore.inspect.format import address
from hvcore.inspect.records import Column, Record, Records
from widgets import table as table_module
from widgets.selection import Selection
from widgets.table import ChangeTable, DmaTable, FaultTable, RunTable, Table, fault_choices


@dataclass(frozen=True, slots=True, repr=False)
class Row(Record):
    name: str
    at: int | None
    flag: bool = False

    title = "Rows"
    legend = "at: host-physical"
    columns = (Column("name", lambda r: r.name), Column("at_byte", lambda r: r.at, address, True), Column("flag", lambda r: r.flag))


ROWS = Records(Row, [Row("b", 0x10), Row("<i>", None, True), Row("a", 2)], note="Three.")


@pytest.fixture(scope="module")
def run():
    with Machine.load("q35-6g") as machine:
        yield machine.boot(Config(VTD_TRANS=True))


def test_cells_are_words_and_keys_are_numbers():
    table = Table(ROWS)
    assert table.columns == [{"name": "name", "right": False}, {"name": "at byte", "right": True}, {"name": "flag", "right": False}]
    assert table.cells == [["b", "<i>", "a"], ["0x10", "", "0x2"], ["False", "True", "False"]]
    assert table.sort_keys == [[], [16.0, None, 2.0], [0.0, 1.0, 0.0]]
    assert (table.label, table.note, table.choices) == ("Rows: 3", "at: host-physical. Three.", [])


@given(st.lists(st.integers(0, (1 << 64) - 1) | st.none(), max_size=30))
def test_keys_order_rows_as_their_values_do(values):
    keys = Table(Records(Row, [Row("", v) for v in values])).sort_keys[1]
    known = [(k, v) for k, v in zip(keys, values, strict=True) if v is not None]
    assert [k is None for k in keys] == [v is None for v in values]
    assert all(k == pytest.approx(v, rel=2**-52) for k, v in known)
    in_order = [k for k, _ in sorted(known, key=lambda pair: pair[1])]
    assert in_order == sorted(in_order)


def test_choices_go_out_in_hex_for_rows_that_have_one():
    table = Table(ROWS, choice=lambda i, row: None if row.at is None else {"address": row.at, "fault": i})
    assert table.choices == [{"address": "0x10", "fault": 0}, None, {"address": "0x2", "fault": 2}]


def test_other_records_take_the_place_and_the_filter_stays():
    table = Table(ROWS, filter="a")
    table.show(Records(Row, title="Other"))
    assert (table.label, table.cells, table.filter) == ("Other: none", [[], [], []], "a")
    assert table.figure.svg == "" and table.figure.title == "Other: none"


def test_rows_beyond_the_limit_are_counted(monkeypatch):
    monkeypatch.setattr(table_module, "LIMIT", 2)
    table = Table(ROWS)
    assert table.cells[0] == ["b", "<i>"]
    assert table.label == "Rows: 3" and "Of 3 rows the first 2 are here." in table.note


def test_the_picture_is_a_table_of_the_first_rows():
    many = Records(Row, [Row(f"n{i}", i) for i in range(table_module.STILL + 5)])
    figure = Table(many).figure
    assert figure.table.count("<tr") == 1 + table_module.STILL and "and 5 more rows" in figure.alt
    html = Table(ROWS)._repr_mimebundle_()[0]["text/html"]
    assert "&lt;i&gt;" in html and "<i>" not in html


# --- of a run

def test_a_fault_chooses_its_device_domain_and_iova(run):
    fault, domain = run.faults[0], run.domains[0]
    table = FaultTable(run)
    assert table.choices == [{"fault": 0, "device": 0x10, "address": hex(fault.address), "space": "iova",
                              "domain": f"{domain.unit:#x}/{domain.did:#x}"}]
    chosen = Selection()
    chosen.choose(**fault_choices(run, run.faults)[0])
    assert (chosen.fault, chosen.address, chosen.device) == (0, fault.address, fault.source)


def test_an_interrupt_fault_has_no_iova_and_a_stranger_no_domain(run):
    faults = [Fault(0xFED90000, 0x18, 5, "write", 0x22, ""), Fault(0x1234, 0x10, 0x5000, "read", 6, "")]
    assert fault_choices(run, faults) == [{"fault": 0, "device": 0x18},
                                          {"fault": 1, "device": 0x10, "address": 0x5000, "space": "iova", "domain": ""}]


def test_dma_and_runs_choose_addresses_of_devices_and_domains(run):
    dma, runs = DmaTable(run), RunTable(run)
    assert len(dma.choices) == len(run.dma) and dma.choices[-1] == {
        "address": hex(run.dma[-1].iova), "space": "iova", "device": run.dma[-1].source}
    first = run.permissions[0]
    assert runs.choices[0] == {"address": hex(first.run.start), "space": "iova", "domain": f"{first.unit:#x}/{first.did:#x}"}


def test_tables_show_another_run_and_what_changed():
    with Machine.load("q35-2g") as machine:
        before = machine.boot(Config(VTD_TRANS=True))
        table = RunTable(before)
        assert table.cells[0]
        after = machine.reboot(VTD_TRANS=False)
        table.show_run(after)
        assert table.cells[0] == []
        changes = ChangeTable(before, after)
        assert "VTD_TRANS" in changes.cells[1] and changes.choices == []
