"""Claims with their verdicts as a view, its counterexamples, and the views that follow them."""

from collections.abc import Iterator

import pytest

from hvcore import Config, Machine
from hvcore.inspect.proof import Counterexample
from widgets import ProofView, Selection, WalkExplainer, Workbench
from widgets.proof import counter_choice


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine.load("q35-6g") as m:
        m.boot(Config())
        yield m


@pytest.fixture
def bench() -> Iterator[Workbench]:
    with Machine.load("q35-6g") as m:
        bench = Workbench(m)
        yield bench
        bench.close()


def open_tab(bench: Workbench, name: str) -> None:
    bench.tabs.selected_index = bench.tabs.titles.index(name)
    bench.wait()


def test_each_claim_with_its_verdict_reason_and_counterexample(machine: Machine) -> None:
    view, proof = ProofView(machine.run), machine.run.proof
    assert [(c["claim"], c["holds"], c["why"]) for c in view.claims] == [(c.claim, c.holds, c.why) for c in proof.claims]
    assert [c["example"] is not None for c in view.claims] == [c.counterexample is not None for c in proof.claims]
    assert (view.verdict, view.holds, view.note) == (proof.verdict, False, proof.note)
    assert view.of == "run 1, policy bitvisor"
    cpu = next(c["example"] for c in view.claims if c["claim"].startswith("The guest's processor cannot reach the registers"))
    assert ["reaches", "the page at 0xfed90000"] in cpu["facts"]
    assert cpu["choice"] == {"address": "0xfed90000", "space": "physical"}
    assert [step[0] for step in cpu["steps"]] == ["level 4", "level 3"]


def test_the_figure_says_what_does_not_hold_in_words(machine: Machine) -> None:
    figure = ProofView(machine.run).figure
    assert figure.table.count("✗ does not hold") == sum(not c.holds for c in machine.run.proof.claims)
    assert figure.table.count("✓ holds") == sum(c.holds for c in machine.run.proof.claims)
    assert "policy bitvisor" in figure.alt
    empty = ProofView(machine.run, at_once=False)
    assert empty.claims == [] and "Prove looks" in empty.figure.alt


@pytest.mark.parametrize(("source", "host", "choice"), [
    (0x18, 0x77C00000, {"address": 0x1000, "space": "iova", "device": 0x18}),
    (None, 0x77C00000, {"address": 0x77C00000, "space": "physical"}),
    (None, None, {"address": 0x1000, "space": "physical"})])
def test_what_a_counterexample_chooses(source: int | None, host: int | None, choice: dict) -> None:
    assert counter_choice(Counterexample("who", "how", None, source, 0x1000, host, "rw", "the core's text")) == choice


def test_a_chosen_request_is_walked_by_the_access_that_gets_through(machine: Machine) -> None:
    chosen = Selection()
    walk = WalkExplainer(machine.run, chosen)
    chosen.choose(address=0x77C00000, space="iova", device=0x18)
    assert "00:03.0 read at IOVA 0x77c00000" in walk.asked["heading"]
    assert walk.asked["verdict"].startswith("blocked")
    chosen.choose(address=0x100000, space="iova", device=0x18)
    assert (walk.asked["through"], walk.asked["choice"]["address"]) == (True, "0x100000")
    number = walk.asked["number"]
    chosen.choose(address=0x100000, space="physical", device=0x18)
    chosen.choose(address=0x200000, space="iova")
    assert walk.asked["number"] == number


# --- in the workbench

def test_prove_is_of_one_moment_and_says_when_that_has_passed(bench: Workbench) -> None:
    assert bench.proof.claims == []
    bench.proof._received(bench.proof, {"kind": "prove"}, [])
    assert bench.proof.claims and not bench.proof.stale
    bench.refresh()
    assert not bench.proof.stale
    bench.guest_console._received(bench.guest_console, {"kind": "command", "line": "poke 0xfed90018 0"}, [])
    bench.wait()
    assert "went on since" in bench.proof.stale
    before = bench.proof.verdict
    bench.proof._received(bench.proof, {"kind": "prove"}, [])
    assert not bench.proof.stale
    assert bench.proof.verdict != before
    example = next(c["example"] for c in bench.proof.claims if c["claim"] == "No device can write the core's memory.")
    assert example["steps"][0][0] == "translation"


def test_a_boot_brings_a_new_proof_where_the_tab_is_open_and_else_says_that_it_is_old(bench: Workbench) -> None:
    open_tab(bench, "Proof")
    assert bench.proof.claims == []
    bench.controls.options.policy.value = "mended"
    bench.controls.buttons["reboot"].click()
    bench.wait()
    assert bench.proof.of == "run 2, policy mended"
    open_tab(bench, "Registers")
    bench.controls.options.policy.value = "off"
    bench.controls.buttons["reboot"].click()
    bench.wait()
    assert bench.proof.of == "run 2, policy mended"
    assert "was booted since" in bench.proof.stale


def test_a_saved_workbench_has_the_proof_once_there_is_one(bench: Workbench) -> None:
    assert "does not hold" not in bench.html
    bench.proof.prove()
    assert bench.html.count("✗ does not hold") == sum(not c["holds"] for c in bench.proof.claims)


def test_a_counterexample_is_followed_by_lens_and_walk(bench: Workbench) -> None:
    bench.controls.options.policy.value = "off"
    bench.controls.buttons["reboot"].click()
    bench.wait()
    bench.proof.prove()
    example = next(c["example"] for c in bench.proof.claims if c["claim"] == "No device can read the core's memory.")
    address = int(example["choice"]["address"], 16)
    bench.selection.choose(address=address, space="iova", device=example["choice"]["device"])
    assert bench.lens.address == example["choice"]["address"]
    assert f"reaches host-physical {address:#x}" in bench.walk.asked["verdict"]
