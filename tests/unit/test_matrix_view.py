"""The grid of attacks, one attack on the live guest, and what choosing their evidence chooses."""

import threading
import time
from collections.abc import Iterator

import pytest

from hvcore import Config, Machine
from hvcore.attack import ATTACKS
from hvcore.errors import HvlabError
from hvcore.inspect.matrix import MARKS, Cell, Matrix, matrix
from hvcore.vmm.config import POLICIES
from hvcore.worker import Listener, Worker
from widgets import AttackView, MatrixView, Selection, Workbench
from widgets.attacks import RESTING
from widgets.evidence import VERDICT_FILLS, brief, choice_of, policy_words

SOME = ("off", "bitvisor", "article"), ("steal-key", "overwrite-stub", "forge-interrupt")
KEY = 0x77C09000


@pytest.fixture(scope="module")
def grid() -> Iterator[Matrix]:
    """Nine cells: some blocked, some not, some without a guest."""
    with Machine.load("q35-6g") as machine:
        yield matrix(machine, *SOME)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine.load("q35-6g") as m:
        yield m


@pytest.fixture
def bench(machine: Machine) -> Iterator[Workbench]:
    bench = Workbench(machine)
    yield bench
    bench.close()


def press(view, kind: str, **more: str) -> None:
    """As the browser tells of a button."""
    view._received(view, {"kind": kind} | more, [])


# --- the grid

def test_every_cell_says_its_verdict_in_a_word_with_a_sign_and_has_its_evidence(grid: Matrix) -> None:
    view = MatrixView(grid)
    assert set(view.cells) == {f"{policy}/{attack}" for policy in SOME[0] for attack in SOME[1]}
    for cell in grid:
        shown = view.cells[f"{cell.policy}/{cell.attack}"]
        assert (shown["verdict"], shown["mark"]) == (cell.verdict, MARKS[cell.verdict])
        assert shown["why"] == cell.result.why
        assert shown["console"] == list(cell.result.console)
        assert shown["changed"] == [str(c) for c in cell.result.changed]
    stolen = view.cells["off/steal-key"]
    assert ["the core's key, as the attacker has it", grid.cell("off", "steal-key").result.proof["key"]] in stolen["proof"]
    assert "reason 0x6" in view.cells["bitvisor/steal-key"]["fault"]
    assert view.label == "Attacks on q35-6g under each policy"
    assert view.summary.startswith("9 attacks: 2 blocked, 4 succeeded, 3 boot failed")
    assert not view.running


def test_what_a_cell_chooses_is_what_its_evidence_is_about(grid: Matrix) -> None:
    chosen = {(c.policy, c.attack): choice_of(c.result)[0] for c in grid}
    assert chosen["bitvisor", "steal-key"] == {"address": KEY, "space": "iova", "device": 0x18}
    assert chosen["off", "steal-key"] == {"address": KEY, "device": 0x18}
    changed = grid.cell("off", "overwrite-stub").result.changed
    assert chosen["off", "overwrite-stub"] == {"address": changed[0].start, "device": 0x18}
    assert chosen["off", "forge-interrupt"] == {"address": 0xFEE00000, "space": "iova", "device": 0x18}
    assert chosen["article", "steal-key"] is None
    for choice in chosen.values():
        Selection().choose(**choice or {})
    assert MatrixView(grid).cells["bitvisor/steal-key"]["choice"]["address"] == hex(KEY)


def test_the_figure_has_each_verdict_in_words_and_in_a_fill_of_its_own(grid: Matrix) -> None:
    figure = MatrixView(grid).figure
    for verdict in ("! succeeded", "# blocked", "- boot failed"):
        assert figure.svg.count(f">{verdict}</text>") == sum(f"{MARKS[c.verdict]} {c.verdict}" == verdict for c in grid)
    assert "bitvisor: blocked steal-key overwrite-stub, succeeded forge-interrupt" in figure.alt
    assert figure.table.count("<details>") == len(grid)
    assert grid.cell("off", "steal-key").result.proof["key"] in figure.table
    assert set(VERDICT_FILLS) == set(MARKS)
    assert len({fill.hatch for fill in VERDICT_FILLS.values()}) == len(VERDICT_FILLS)
    assert figure.png[:4] == b"\x89PNG"
    assert MatrixView().figure.svg == ""


def test_cells_come_one_by_one_and_the_end_says_how_many(grid: Matrix) -> None:
    view = MatrixView()
    view.begin("q35-6g", *SOME)
    assert view.running
    view.tell("off, steal-key")
    assert view.said == "1 of 9: off, steal-key"
    view.add(grid[0])
    view.end("Stopped.")
    assert (list(view.cells), view.running) == (["off/steal-key"], False)
    assert view.said == "Stopped. 1 of 9 attacks: 1 succeeded"
    view.begin("q35-6g", *SOME)
    assert view.cells == {}


def test_buttons_do_what_they_say_and_nothing_else(grid: Matrix) -> None:
    pressed: list[tuple[str, str]] = []
    view = MatrixView(grid, on_press=lambda what, policy: pressed.append((what, policy)))
    assert view.buttons and not MatrixView(grid).buttons
    for kind, policy in (("run", ""), ("boot", "off"), ("boot", "<none>"), ("rm", "off"), ("stop", "")):
        press(view, kind, policy=policy)
    assert pressed == [("run", ""), ("boot", "off"), ("stop", "")]
    press(MatrixView(grid), "run")


def test_options_in_few_words() -> None:
    assert [brief(Config(**options)) for options in POLICIES.values()] == [f"policy {name}" for name in POLICIES]
    assert brief(Config(PROFILE="mended", VMM_SIZE_MIB=256)) == "PROFILE=mended, VMM_SIZE_MIB=256"
    assert policy_words({"VTD_TRANS": False, "IOMMU_MAP_END": "ram"}) == "VTD_TRANS=n, IOMMU_MAP_END=ram"


# --- the worker

def test_the_worker_runs_the_matrix_cell_by_cell(machine: Machine, grid: Matrix) -> None:
    done: list[Cell] = []
    told: list[str] = []
    with Worker() as worker:
        result = worker.matrix(machine, done.append, told.append, ["bitvisor"], ["steal-key", "clear-te"]).result(60)
    assert [(c.attack, c.verdict) for c in result] == [("steal-key", "blocked"), ("clear-te", "succeeded")]
    assert list(result) == done
    assert told == ["bitvisor, steal-key", "bitvisor, clear-te"]


def test_stop_ends_the_matrix_with_what_was_done(machine: Machine) -> None:
    begun = threading.Event()
    with Worker() as worker:
        future = worker.matrix(machine, lambda _cell: begun.set(), lambda _words: None)
        assert begun.wait(30)
        worker.stop()
        stopped = time.monotonic()
        result = future.result(30)
        assert time.monotonic() - stopped < 5
        assert 0 < len(result) < len(POLICIES) * len(ATTACKS)
        assert all(c.verdict == "succeeded" for c in result if c.policy == "off")
        assert worker.attack(machine, "steal-key", Config()).result(60).verdict == "blocked"


def test_an_attack_that_is_stopped_has_no_verdict(machine: Machine) -> None:
    class Stopper(Listener):
        def progress(self, machine: Machine, phase: str | None, seconds: float) -> None:
            if phase == "acpi":
                worker.stop()

    with Worker(Stopper()) as worker:
        stopped = worker.attack(machine, "before-te", Config())
        with pytest.raises(HvlabError, match="before-te was stopped before it was over"):
            stopped.result(30)
        assert machine.state == "stopped"


def test_an_attack_that_does_not_exist_is_told(machine: Machine) -> None:
    with Worker() as worker, pytest.raises(HvlabError, match="there is no attack"):
        worker.attack(machine, "ask-nicely").result(30)


# --- in the workbench

def test_the_grid_runs_on_a_machine_of_its_own_and_disturbs_nothing(bench: Workbench, machine: Machine) -> None:
    run, console, faults = machine.run, machine.run.console.guest, len(machine.run.faults)
    grid = bench.attacks.grid
    bench.attacks.run(["off", "bitvisor"], ["steal-key", "clear-te"])
    press(grid, "run")
    bench.attacks.wait()
    assert (len(grid.cells), grid.said) == (4, "4 attacks: 1 blocked, 3 succeeded")
    assert grid.cells["bitvisor/steal-key"]["verdict"] == "blocked"
    assert machine.run is run and run.live
    assert (run.console.guest, len(run.faults)) == (console, faults)
    assert bench.selection.fault == 0
    assert machine.run.guest.command("peek 0x100000 4")


def test_the_grid_is_stopped_and_run_again(bench: Workbench) -> None:
    grid = bench.attacks.grid
    press(grid, "run")
    press(grid, "stop")
    bench.attacks.wait()
    assert not grid.running
    assert grid.said.startswith("Stopped.") or grid.said.startswith("Nothing")
    assert len(grid.cells) < 64


def test_a_policy_is_booted_from_its_row(bench: Workbench, machine: Machine, grid: Matrix) -> None:
    bench.attacks.grid.show(grid)
    press(bench.attacks.grid, "boot", policy="off")
    bench.wait()
    assert machine.run.config == Config(VTD_TRANS=False)
    assert bench.controls.options.policy.value == "off"
    assert bench.controls.options.switches["VTD_TRANS"].description == "VTD_TRANS=n"
    assert ">up<" in bench.verdict.status.value


def test_the_guest_attacks_and_every_view_shows_what_came_of_it(bench: Workbench, machine: Machine) -> None:
    one, run = bench.attacks.one, machine.run
    press(one, "attack", name="clear-te", device="edu")
    bench.wait()
    assert machine.run is run
    assert (one.result["verdict"], one.of) == ("succeeded", "policy bitvisor")
    assert not run.units[0].translating
    assert "translation is off" in bench.graph.figure.svg
    assert (bench.selection.address, bench.selection.device) == (KEY, 0x18)
    assert bench.lens.address == hex(KEY)
    assert "attack: clear-te is over" in bench.guest_console.text
    assert "clear-te: succeeded" in one.figure.alt
    assert run.dma[-1].source == 0x18


def test_a_blocked_attack_tells_what_its_request_would_have_done(bench: Workbench, machine: Machine) -> None:
    press(bench.attacks.one, "attack", name="steal-key", device="edu")
    bench.wait()
    result = bench.attacks.one.result
    assert result["verdict"] == "blocked"
    assert result["without"] == f"Without the unit: {KEY:#x}, the core's secret; 32 bytes of it would have been read."
    assert result["without"].replace("'", "&#x27;") in bench.attacks.one.figure.table


def test_an_early_attack_boots_and_says_so(bench: Workbench, machine: Machine) -> None:
    press(bench.attacks.one, "attack", name="before-te", device="")
    bench.wait()
    assert machine.run.number == 2
    assert bench.before is not None and bench.before.number == 1
    assert bench.attacks.one.result["attack"] == "before-te"
    assert next(a for a in bench.attacks.one.attacks if a["name"] == "before-te")["early"] == "yes"


def test_where_no_guest_waits_the_machine_is_booted_for_the_attack_and_the_view_says_so(bench: Workbench, machine: Machine) -> None:
    one = bench.attacks.one
    assert (one.enabled, one.boots) == (True, "")
    bench.controls.options.policy.value = "article"
    bench.controls.buttons["reboot"].click()
    bench.wait()
    assert machine.run.outcome == "vmm-panic"
    assert (one.enabled, one.boots) == (True, RESTING)
    press(one, "attack", name="steal-key", device="")
    bench.wait()
    assert (machine.run.number, one.result["verdict"], one.result["choice"]) == (3, "boot failed", None)
    bench.hear_progress(machine, "guest runs", 0.1)
    assert (one.enabled, one.boots) == (False, "")


def test_nonsense_from_the_browser_attacks_nobody(bench: Workbench, machine: Machine) -> None:
    for name, device in (("<b>", ""), ("steal-key", "toaster"), (None, None)):
        bench.attacks.one._received(bench.attacks.one, {"kind": "attack", "name": name, "device": device}, [])
    bench.wait()
    assert bench.attacks.one.result == {}
    assert machine.run.number == 1


def test_a_result_alone(grid: Matrix) -> None:
    chosen = Selection()
    view = AttackView(grid.cell("bitvisor", "steal-key").result, chosen)
    assert (chosen.address, chosen.device, view.takes) == (KEY, 0x18, False)
    assert "blocked" in view.figure.html
