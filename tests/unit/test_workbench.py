"""The workbench and its parts as Python objects, without a browser."""

import threading

import ipywidgets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore import Config, Machine
from hvcore.errors import BadMachine
from widgets import Workbench
from widgets.console import LIMIT, Console
from widgets.options import MORE, OWN, SWITCHES, Options


@pytest.fixture
def machine():
    with Machine.load("q35-6g") as machine:
        yield machine


@pytest.fixture
def bench(machine):
    bench = Workbench(machine)
    yield bench
    bench.close()


def press(bench, name):
    bench.controls.buttons[name].click()
    bench.wait()


def figures(bench):
    return bench.e820.figure.svg + bench.graph.figure.svg


def test_what_is_clicked_twice_or_while_the_machine_is_at_work_boots_once(bench):
    gate = threading.Event()
    advice = bench.verdict.advice.children[1]
    assert advice.description == "Set IOMMU_MAP_END=ram and reboot"
    bench.worker.call(gate.wait, 60)
    bench.controls.buttons["reboot"].click()
    bench.controls.buttons["reboot"].click()
    assert advice.disabled and bench.verdict.advice.children[1] is advice
    advice.click()
    gate.set()
    bench.wait()
    assert (bench.run.number, bench.run.config.IOMMU_MAP_END) == (2, "4gib")
    assert not advice.disabled
    assert "IOMMU_MAP_END=ram" in bench.verdict.pending.value


def test_a_fault_that_was_gone_for_a_run_is_chosen_again_unless_something_else_was(bench):
    switch = bench.controls.options.switches["VTD_TRANS"]
    address = bench.selection.address
    assert bench.selection.fault == 0
    for wanted in (False, True):
        switch.value = wanted
        press(bench, "reboot")
        assert (bench.selection.fault, bench.selection.address) == (0 if wanted else None, address)
    switch.value = False
    press(bench, "reboot")
    bench.selection.choose(address=0x1000)
    switch.value = True
    press(bench, "reboot")
    assert (bench.selection.fault, bench.selection.address) == (None, 0x1000)


# --- options

def test_options_say_their_state_in_words_and_what_is_pending():
    changes = []
    options = Options(Config(), lambda: changes.append(options.config))
    running = Config()
    assert options.pending(running) == {}
    options.switches["VTD_TRANS"].value = False
    options.map_end.value = "ram"
    assert options.switches["VTD_TRANS"].description == "VTD_TRANS=n"
    assert options.pending(running) == {"VTD_TRANS": False, "IOMMU_MAP_END": "ram"}
    assert "VTD_TRANS=n, IOMMU_MAP_END=ram" in options.pending_words(running)
    assert changes == [Config(VTD_TRANS=False), Config(VTD_TRANS=False, IOMMU_MAP_END="ram")]


def test_a_profile_brings_its_values_and_leaves_what_it_does_not_set():
    options = Options(Config(VTD_TRANS=False), lambda: None)
    options.profile.value = "mended"
    assert options.config == Config(PROFILE="mended", VTD_TRANS=False)
    assert options.map_end.value == "ram"
    assert options.switches["HIDE_VTD_REGS"].description == "HIDE_VTD_REGS=y"
    options.switches["HIDE_VTD_REGS"].value = False
    assert options.config == Config(PROFILE="mended", VTD_TRANS=False, HIDE_VTD_REGS=False)


def test_a_policy_sets_everything_and_is_named_when_everything_is_as_it_has_it():
    changes = []
    options = Options(Config(), lambda: changes.append(options.config))
    assert options.policy.value == "bitvisor"
    options.policy.value = "mended"
    assert options.config == Config(PROFILE="mended")
    assert (options.profile.value, options.switches["EARLY_PROTECTION"].value) == ("mended", True)
    options.switches["EARLY_PROTECTION"].value = False
    assert options.policy.value == OWN
    options.switches["EARLY_PROTECTION"].value = True
    assert options.policy.value == "mended"
    options.policy.value = OWN
    assert options.config == Config(PROFILE="mended")
    assert [c.EARLY_PROTECTION for c in changes] == [True, False, True, True]


def test_what_excludes_one_another_is_released_not_raised():
    options = Options(Config(), lambda: None)
    options.switches["DMAR_PASS_THROUGH"].value = True
    assert options.config == Config(DMAR_PASS_THROUGH=True, VTD_TRANS=False)
    assert options.switches["VTD_TRANS"].description == "VTD_TRANS=n"
    options.switches["VTD_TRANS"].value = True
    assert options.config == Config()
    options.switches["TINYVISOR"].value = True
    options.switches["DMAR_PASS_THROUGH"].value = True
    assert (options.config.TINYVISOR, options.config.DMAR_PASS_THROUGH) == (False, True)


@given(st.lists(st.tuples(st.sampled_from([*SWITCHES, *MORE, "policy", "profile", "map_end"]), st.integers(0, 7)), max_size=12))
def test_whatever_is_pressed_controls_and_config_agree(pressed):
    options = Options(Config(), lambda: None)
    for name, number in pressed:
        control = options.switches.get(name) or getattr(options, name)
        control.value = bool(number & 1) if name in options.switches else control.options[number % len(control.options)]
        for switch, button in options.switches.items():
            assert (button.value, button.description[-1]) == (getattr(options.config, switch), "y" if button.value else "n")
        assert (options.profile.value, options.map_end.value) == (options.config.PROFILE, options.config.IOMMU_MAP_END)


def test_more_options_are_shown_when_wanted_and_what_is_set_there_is_told():
    options = Options(Config(), lambda: None)
    assert (options.more.description, options.hidden.layout.display) == ("More options", "none")
    options.more.value = True
    assert (options.more.description, options.hidden.layout.display) == ("Fewer options", "flex")
    options.switches["NVME_DRIVER"].value = True
    options.more.value = False
    assert options.more.description == "More options (NVME_DRIVER=y)"


# --- console

def test_a_console_keeps_the_end_and_hands_lines_on():
    lines = []
    console = Console("Guest's console", lines.append)
    console.show("x" * LIMIT + "end\r\n")
    assert LIMIT * 3 // 4 <= len(console.text) <= LIMIT
    assert console.text.endswith("xend\n")
    console._received(console, {"kind": "command", "line": "e820"}, [])
    console._received(console, {"kind": "something else"}, [])
    assert lines == ["e820"]
    console.show("<b>&")
    assert "&lt;b&gt;&amp;" in console._repr_mimebundle_()[0]["text/html"]


# --- workbench

def test_it_boots_and_shows_what_is(bench, machine):
    run = machine.run
    assert run.outcome == "disk-lost"
    assert run.outcome in bench.verdict.status.value
    assert bench.faults.cells[3] == [f"{run.faults[0].address:#x}"]
    assert "domain 0" in figures(bench)
    assert bench.guest_console.text == run.console.guest
    assert bench.vmm_console.text == run.console.vmm
    static = bench._repr_mimebundle_()["text/html"]
    assert static.count("<svg") == 3
    assert "disk-lost" in static


def test_reboot_takes_the_options_and_only_then(bench, machine):
    first = machine.run
    bench.controls.options.switches["VTD_TRANS"].value = False
    assert machine.run is first
    assert "VTD_TRANS=n" in bench.verdict.pending.value
    press(bench, "reboot")
    assert machine.run is not first
    assert machine.run.config == Config(VTD_TRANS=False)
    assert ">up<" in bench.verdict.status.value
    assert "VTD_TRANS=n" not in bench.verdict.pending.value
    assert "not translated" in bench.pages.words


def test_before_and_after_is_shown_when_it_is_looked_at(bench, machine):
    bench.controls.options.switches["VTD_TRANS"].value = False
    press(bench, "reboot")
    assert bench.changes.table is None
    bench.tabs.selected_index = bench.tabs.titles.index("Before and after")
    bench.wait()
    assert "VTD_TRANS" in bench.changes.words.value
    pages, table = bench.changes.pages, bench.changes.table
    assert any("VTD_TRANS" in cell for cell in table.cells[1])
    bench.controls.options.map_end.value = "ram"
    press(bench, "reboot")
    assert (bench.changes.pages, bench.changes.table) == (pages, table)
    assert any("IOMMU_MAP_END" in cell for cell in table.cells[1])
    assert not any("VTD_TRANS" in cell for cell in table.cells[1])


def test_advice_is_followed_by_a_button(bench, machine):
    (button,) = [c for c in bench.verdict.advice.children if isinstance(c, ipywidgets.Button)]
    assert "IOMMU_MAP_END=ram" in button.description
    button.click()
    bench.wait()
    assert machine.run.config.IOMMU_MAP_END == "ram"
    assert bench.controls.options.map_end.value == "ram"
    assert ">up<" in bench.verdict.status.value
    assert not bench.verdict.advice.children


def test_the_first_fault_is_chosen_until_something_else_is(bench, machine):
    fault = machine.run.faults[0]
    assert (bench.selection.fault, bench.selection.address, bench.selection.device) == (0, fault.address, fault.source)
    assert bench.lens.address == hex(fault.address)
    bench.selection.choose(address=machine.run.vmm.base)
    press(bench, "reboot")
    assert (bench.selection.fault, bench.selection.address) == (None, machine.run.vmm.base)


def test_a_chosen_fault_that_is_gone_is_chosen_no_more_but_its_address_is(bench, machine):
    fault = machine.run.faults[0]
    bench.controls.options.map_end.value = "ram"
    press(bench, "reboot")
    assert (bench.selection.fault, bench.selection.address) == (None, fault.address)


def test_a_fault_that_is_chosen_is_what_the_lens_looks_at(bench, machine):
    fault = machine.run.faults[0]
    bench.selection.choose(**bench.faults._chosen(0, fault))
    assert bench.lens.address == hex(fault.address)
    assert "nothing mapped" in bench.lens.said
    bench.selection.choose(address=machine.run.vmm.base)
    assert any("core" in fact[0] for fact in bench.lens.facts)


def test_a_command_shows_at_once_what_it_changed(bench, machine):
    """The guest clears GCMD of the unit, which BitVisor does not hide from it: translation goes off, and the figures say so."""
    bench.guest_console._received(bench.guest_console, {"kind": "command", "line": "poke 0xfed90018 0"}, [])
    bench.wait()
    assert "poke 0xfed90018 0" in bench.guest_console.text
    assert not machine.run.units[0].translating
    assert "translation is off" in figures(bench)
    changed = dict(zip(bench.registers.table.cells[0], bench.registers.table.cells[3], strict=True))
    assert changed["GSTS"] == "was 0xc0000000"


def test_a_machine_that_cannot_be_had_leaves_the_old_one(bench, machine, monkeypatch):
    def refuse(_what):
        raise BadMachine("<no> such machine")

    monkeypatch.setattr(Machine, "load", refuse)
    bench.controls.machine.value = "q35-2g"
    press(bench, "reboot")
    assert "&lt;no&gt; such machine" in bench.verdict.status.value
    assert bench.machine is machine
    assert "machine q35-2g" in bench.verdict.pending.value
    assert not bench.controls.buttons["reboot"].disabled


def test_another_machine_and_back(bench, machine):
    bench.controls.machine.value = "q35-2g"
    press(bench, "reboot")
    other = bench.machine
    assert other.name == "q35-2g"
    assert ">up<" in bench.verdict.status.value
    bench.controls.machine.value = "q35-6g"
    press(bench, "reboot")
    assert bench.machine is machine
    assert ">disk-lost<" in bench.verdict.status.value


def test_buttons_are_what_the_machine_can_do(bench, machine):
    usable = {name for name, button in bench.controls.buttons.items() if not button.disabled}
    assert usable == {"reboot", "step", "step_exit", "report", "save", "restore"}
    press(bench, "step")
    assert bench.steps.label == "Instructions executed: none"
    assert "waits for input" in bench.steps.note
    assert machine.state == "waiting"
    bench.hear_progress(machine, "guest runs", 0.5)
    assert {name for name, button in bench.controls.buttons.items() if not button.disabled} == {"stop"}


def test_what_code_does_to_the_machine_is_shown_after_refresh(bench, machine):
    machine.reboot(PROFILE="mended")
    bench.refresh()
    assert ">up<" in bench.verdict.status.value
    assert "PROFILE" in bench.verdict.pending.value


def test_a_core_that_panics_is_shown_as_far_as_it_came():
    with Machine.load("server-64g") as server:
        server.boot(Config(IOMMU_MAP_END="ram"))
        bench = Workbench(server)
        assert ">vmm-panic<" in bench.verdict.status.value
        assert "IOMMU_SUPERPAGES=y" in bench.verdict.html
        assert "Out of memory" in bench.vmm_console.text
        assert figures(bench).count("<svg") >= 2
        bench.guest_console._received(bench.guest_console, {"kind": "command", "line": "help"}, [])
        assert "there is no guest" in bench.verdict.status.value
        bench.close()


def test_a_second_guest_has_a_console_of_its_own(bench, machine):
    assert bench.second_console not in bench._consoles.children
    bench.controls.options.switches["TINYVISOR"].value = True
    press(bench, "reboot")
    assert bench._consoles.children == (bench.guest_console, bench.second_console, bench.vmm_console)
    assert "lab: ready" in bench.second_console.text
    bench.second_console._received(bench.second_console, {"kind": "command", "line": "peek 0x100000 4"}, [])
    bench.wait()
    assert "peek 0x100000 4" in bench.second_console.text
    assert "peek 0x100000 4" not in bench.guest_console.text
    bench.controls.options.switches["TINYVISOR"].value = False
    press(bench, "reboot")
    assert bench._consoles.children == (bench.guest_console, bench.vmm_console)
