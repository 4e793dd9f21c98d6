"""The walk explainer as a Python object: the ways of faults, requests that are asked about, the picture."""

from contextlib import contextmanager
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from test_inspect_interrupts import EDU, SID, Remapping, at, low
from test_vtd_interrupts import OTHER
from vtd_bench import QEMU_CAP

from hvcore import Config, Machine
from hvcore.inspect.counterfactual import blocked_request
from hvcore.inspect.explain import explain_fault
from hvcore.inspect.faults import read_faults
from hvcore.inspect.trace import read_trace
from hvcore.inspect.units import read_units
from hvcore.spec import vtd
from widgets import walk as walk_module
from widgets.selection import Selection
from widgets.walk import NOTHING, WalkExplainer
from widgets.walkfigure import walk_figure

MANY_RECORDS = QEMU_CAP | vtd.CAP.make(NFR=7)


@pytest.fixture(scope="module")
def machine():
    with Machine.load("q35-6g") as machine:
        machine.boot(Config(VTD_TRANS=True))
        yield machine


@pytest.fixture
def view(machine):
    return WalkExplainer(machine.run)


def ask(view, **request):
    view._received(view, {"kind": "ask", "source": 0x10, "segment": 0, "address": "0x100123", "access": "read"} | request, [])


def test_a_fault_goes_out_with_every_word_and_place(view, machine):
    run = machine.run
    why = run.explain(run.faults[0])
    way, = view.walks
    assert (way["heading"], way["verdict"], way["through"], way["note"]) == (why.heading, why.verdict, False, "")
    assert way["choice"]["fault"] == 0 and way["choice"]["address"] == hex(run.faults[0].address)
    assert [(s["what"], s["text"], s["ok"]) for s in way["steps"]] == [(s.what, s.text, s.ok) for s in why.steps]
    context, level = way["steps"][2], way["steps"][-1]
    table = int(way["steps"][1]["words"][0]["value"], 16) & ~0xFFF
    assert context["sum"] == f"table {table:#x} + 16 \N{MULTIPLICATION SIGN} index 0x10 = entry {table + 0x100:#x}"
    assert context["address"] == hex(table + 0x100)
    assert int(context["words"][0]["value"], 16) == machine.pc.memory.read64(table + 0x100)
    assert ["DID", 23, 8, "0x0", "domain 0", True] in context["words"][1]["fields"]
    assert level["words"][0] | {"fields": []} == {"name": "entry", "layout": "SECOND_LEVEL", "value": "0x0", "width": 64, "offends": "0x0",
                                                  "lacks": "0x1", "fields": []}
    assert level["cut"]["used"] == ["level 3"] and level["section"] == "9.8"
    assert ["level 3", 38, 30, "0x7"] in [f[:4] for f in level["cut"]["fields"]]


def test_devices_to_ask_about_are_those_of_the_units(view, machine):
    assert [d[0] for d in view.devices] == [d for u in machine.run.units for d in u.devices]
    assert [0x10, 0, "00:02.0"] in view.devices


def test_a_chosen_fault_tells_what_its_request_would_have_done_without_the_unit():
    with Machine.load("q35-6g") as machine:
        run, chosen = machine.boot(Config(VTD_TRANS=True)), Selection()
        view = WalkExplainer(run, chosen)
        assert view.without == {}
        chosen.choose(fault=0, address=run.faults[0].address, space="iova", device=run.faults[0].source)
        assert view.without == {"fault": 0, "words": run.would_have(run.faults[0]).sentence}
        assert f"Without the unit: {run.faults[0].address:#x}" in view.without["words"]
        chosen.fault = 7
        assert view.without == {}


def test_a_request_is_asked_about(view, machine):
    ask(view)
    assert view.asked["through"] and view.asked["steps"][-1]["text"] == "page 0x100000 + offset 0x123 = 0x100123"
    assert view.asked["choice"] == {"address": "0x100123", "space": "iova", "device": 0x10}
    number = view.asked["number"]
    ask(view, address="0x1ffffe000", access="write")
    assert (view.asked["through"], view.asked["number"]) == (False, number + 1)
    assert view.figure.title == machine.run.what_if(0x10, 0x1FFFFE000, "write").heading
    view._received(view, {"kind": "something else"}, [])
    assert view.asked["number"] == number + 1


@pytest.mark.parametrize(("request_", "words"), [
    ({"address": "nowhere"}, "write an address like"), ({"source": None}, "choose a device"), ({"access": "jump"}, "is no request"),
    ({"address": hex(1 << 64)}, "is no request"), ({"segment": 9}, "no remapping unit covers")])
def test_mistakes_are_told(view, request_, words):
    ask(view, **request_)
    assert words in view.said and view.asked == {}
    ask(view)
    assert view.said == ""


def test_what_was_asked_is_asked_again_of_another_run():
    with Machine.load("q35-2g") as machine:
        chosen = Selection()
        view = WalkExplainer(machine.boot(Config(VTD_TRANS=True)), chosen)
        assert view.walks == [] and view.said == NOTHING and view.figure.svg == ""
        view.ask(0x10, 0x100000)
        before = view.asked
        assert len(before["steps"]) > 2
        view.show_run(machine.reboot(VTD_TRANS=False))
        assert view.asked["number"] == before["number"]
        assert [s["what"] for s in view.asked["steps"]] == ["translation"] and "off" in view.asked["steps"][0]["text"]


def test_a_run_that_is_over_is_told():
    with Machine.load("q35-6g") as machine:
        old = machine.boot(Config(VTD_TRANS=True))
        machine.reboot(VTD_TRANS=False)
        view = WalkExplainer(old)
        assert view.walks == [] and "is over" in view.said


def test_the_guard_is_held_while_the_run_is_read(machine):
    held = []

    @contextmanager
    def guard():
        held.append(True)
        yield
        held.append(False)

    view = WalkExplainer(machine.run, guard=guard)
    assert held == [True, False]
    ask(view)
    assert held == [True, False] * 2


# --- interrupts, many faults

def of_bench(bench):
    """A run of nothing but one unit, which keeps no request."""
    faults = read_faults([bench.unit])
    return SimpleNamespace(faults=faults, domains=[], units=read_units([bench.unit]),
                           would_have=lambda fault: blocked_request(read_trace([], 0), fault),
                           explain=lambda fault: explain_fault(bench.memory, {bench.unit.description.base: bench.unit}, fault, 39))


def test_interrupt_faults_show_their_entries():
    bench = Remapping(cap=MANY_RECORDS)
    bench.put(4, low(flags=1 << 12))
    bench.put(5, low(), SID | OTHER)
    for index in (4, 5):
        bench.send(at(index), 0)
    first, second = WalkExplainer(of_bench(bench)).walks
    assert first["choice"] == {"fault": 0, "device": EDU}
    assert [w["offends"] for w in first["steps"][-1]["words"]] == ["0x1000", "0x0"]
    assert ["V", 23, 16, "0x66", "vector 0x66", True] in first["steps"][-1]["words"][0]["fields"]
    assert "interrupt message" in second["heading"] and second["steps"][-1]["cut"]["name"] == "requester id"


def test_a_fault_beyond_those_in_the_browser_is_explained_when_it_is_chosen(monkeypatch):
    monkeypatch.setattr(walk_module, "AT_ONCE", 1)
    bench, chosen = Remapping(cap=MANY_RECORDS), Selection()
    for index in (2, 99):
        bench.send(at(index), 0)
    run = of_bench(bench)
    view = WalkExplainer(run, chosen)
    assert len(view.walks) == 1
    chosen.fault = 1
    assert view.asked["heading"] == run.explain(run.faults[1]).heading and view.asked["choice"]["fault"] == 1
    assert view.figure.title == view.asked["heading"]
    chosen.fault = 0
    assert view.figure.title == view.walks[0]["heading"]


def test_a_fault_that_the_tables_no_longer_tell_of_is_said_so():
    bench = Remapping()
    bench.send(at(2), 0)
    bench.put(2, low())
    way, = WalkExplainer(of_bench(bench)).walks
    assert way["note"] == ("The fault was recorded with reason 0x22 (Present field in the IRTE entry is clear). "
                           "What is in tables and registers now lets it through.")


# --- the picture

def test_the_picture_has_a_box_for_each_step_and_says_it_in_words(view, machine):
    why = machine.run.explain(machine.run.faults[0])
    figure = walk_figure(why)
    svg = ElementTree.fromstring(figure.svg)
    words = [t.text for t in svg.iter("{http://www.w3.org/2000/svg}text")]
    for number, step in enumerate(why.steps, 1):
        assert f"{number}. {step.what}" in words
        assert all(any(f"{w.value:0{w.width // 4}x}" in line for line in words) for w in step.seen.words)
        assert step.text in figure.alt
    assert "blocked" in words and why.verdict in figure.alt
    assert max(map(len, words)) <= 100
    bundle = view._repr_mimebundle_()[0]
    assert figure.svg in bundle["text/html"] and "image/png" in bundle
