"""The registers of a unit as a view: decoded values, what changed since the last look, one unit or another."""

import pytest

from hvcore import Config, Machine
from widgets.registers import Registers


def column(view, name):
    names = [c["name"] for c in view.table.columns]
    return dict(zip(view.table.cells[0], view.table.cells[names.index(name)], strict=True))


@pytest.fixture
def machine():
    with Machine.load("nvme-desktop-16g") as machine:
        machine.boot(Config(VTD_TRANS=True))
        yield machine


def test_values_fields_and_sections_of_the_first_unit(machine):
    view, unit = Registers(machine.run), machine.pc.units[0]
    assert view.unit.options == tuple((f"{u.base:#x}", u.base) for u in machine.run.units)
    assert column(view, "value")["GSTS"] == f"{unit.peek(0x1C, 4):#x}" and column(view, "fields")["GSTS"] == "TES=1 RTPS=1"
    assert column(view, "value")["RTADDR"] == f"{unit.peek(0x20, 8):#x}" and column(view, "section")["RTADDR"] == "10.4.6"
    assert set(column(view, "changed").values()) == {""}


def test_another_unit_is_chosen(machine):
    view = Registers(machine.run)
    view.unit.value = machine.pc.units[1].base
    assert view.table.label.startswith(f"Registers of the unit at {view.unit.value:#x}")
    fault = next(value for name, value in column(view, "fields").items() if name == "FRCD0_HIGH")
    assert "F=1" in fault and "FR=6" in fault


def test_what_changed_since_the_last_look_is_marked_once(machine):
    view, unit = Registers(machine.run), machine.pc.units[0]
    unit.mmio_write(0x40, 4, 0xFEE01000)
    view.show_run(machine.run)
    assert {name: was for name, was in column(view, "changed").items() if was} == {"FEADDR": "was 0x0"}
    view.show_run(machine.run)
    assert set(column(view, "changed").values()) == {""}


def test_choosing_a_unit_keeps_what_changed(machine):
    view, (first, second) = Registers(machine.run), machine.pc.units
    second.mmio_write(0x40, 4, 0xFEE01000)
    view.show_run(machine.run)
    view.unit.value = second.base
    assert column(view, "changed")["FEADDR"] == "was 0x0"
    view.unit.value = first.base
    assert set(column(view, "changed").values()) == {""}


def test_a_run_after_a_reboot_and_the_picture(machine):
    view = Registers(machine.run)
    machine.reboot(VTD_TRANS=False)
    view.show_run(machine.run)
    assert column(view, "changed")["GSTS"] == "was 0xc0000000"
    html = view._repr_mimebundle_()["text/html"]
    assert "GSTS" in html and "10.4.5" in html and view.figure.svg == ""
