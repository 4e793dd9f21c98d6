"""The workbench without a browser: which guest, moments of the past, machines in files."""

import html
import re
import threading

import pytest

from hvcore import Config, Machine
from hvcore.errors import BadMachine
from hvcore.guestimage import lab_guest
from hvcore.inspect.steps import ExitStep
from hvcore.linux import cache
from hvcore.snapshot import info
from hvcore.spec.linuxboot import Elf, Kernel, Segment
from widgets import Workbench
from widgets.files import snapshot_name
from widgets.guests import FETCH, GuestChoice, guest_key, guest_words
from widgets.workbench import UNKEPT

ENDLESS = Elf(0x1000000, (Segment(0x1000000, bytes.fromhex("48 ff c0 eb fb"), 4096),))
"""A guest that counts for ever (inc rax; jmp)."""
A_LINUX = Kernel(Elf(0x1000000, (Segment(0x1000000, b"\xf4" * 8 + b"Linux version 6.1.0-9 (gcc)", 4096),)), b"header")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Machine.load("q35-6g") as machine:
        bench = Workbench(machine)
        yield bench
        bench.close()


def press(bench, name):
    bench.controls.buttons[name].click()
    bench.wait()


def send(bench, widget, **content):
    widget._received(widget, content, [])
    bench.wait()


def status(bench):
    return html.unescape(re.sub("<[^>]*>", "", bench.verdict.status.value))


def an_entry(tmp_path, release):
    return cache.Entry(tmp_path, "linux-image", "1", release, "1.35", (), {})


# --- which guest

def test_a_guest_has_a_key_and_a_name():
    assert guest_key(None) == guest_key(lab_guest()) == "lab"
    assert guest_key(A_LINUX) == "linux-6.1.0-9"
    assert guest_key(ENDLESS) == guest_key(Kernel(lab_guest(), command_line="quiet")) == "own"
    assert [guest_words(key) for key in ("lab", "linux-6.1.0-9", "own")] == ["lab guest", "Linux 6.1.0-9", "guest of your own"]


def test_every_linux_of_the_cache_can_be_chosen_and_none_is_said(monkeypatch, tmp_path):
    there = []
    monkeypatch.setattr(cache, "entries", lambda: there)
    changes = []
    choice = GuestChoice("lab", lambda: changes.append(choice.value))
    assert [option[2] for option in choice.options] == [False, True]
    assert choice.note == FETCH and "`hvlab linux fetch`" in FETCH
    choice._received(choice, {"kind": "choose", "key": ""}, [])
    choice._received(choice, {"kind": "choose", "key": "linux-6.1"}, [])
    assert changes == []
    there += [an_entry(tmp_path, "6.12.7"), an_entry(tmp_path, "6.12.7"), an_entry(tmp_path, "6.1.0-9")]
    choice._received(choice, {"kind": "look"}, [])
    linux = [[f"linux-{release}", f"Linux {release}", False] for release in ("6.12.7", "6.1.0-9")]
    assert choice.options == [["lab", "lab guest", False], *linux]
    assert choice.note == ""
    choice._received(choice, {"kind": "choose", "key": "linux-6.1.0-9"}, [])
    assert changes == ["linux-6.1.0-9"]
    del there[2]
    choice.look("own")
    assert [option[0] for option in choice.options] == ["lab", "linux-6.12.7", "own", "linux-6.1.0-9"]


def test_a_cache_that_cannot_be_read_is_said_in_a_sentence(monkeypatch):
    def refuse():
        raise BadMachine("the cache <x> cannot be read")

    monkeypatch.setattr(cache, "entries", refuse)
    assert GuestChoice("lab", list).note == "the cache <x> cannot be read"


def test_another_guest_is_pending_until_reboot_and_refused_with_tinyvisor(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "entries", lambda: [an_entry(tmp_path, "6.1.0-9")])
    monkeypatch.setattr("hvcore.session.choose_guest", lambda guest, *_more: A_LINUX if guest == "linux-6.1.0-9" else lab_guest())
    run = bench.run
    assert "lab guest" in status(bench)
    send(bench, bench.controls.guest, kind="look")
    send(bench, bench.controls.guest, kind="choose", key="linux-6.1.0-9")
    assert "guest Linux 6.1.0-9" in bench.verdict.pending.value
    assert bench.run is run
    bench.controls.options.switches["TINYVISOR"].value = True
    bench.controls.machine.value = "q35-2g"
    press(bench, "reboot")
    assert "TINYVISOR=y takes two lab guests, no Linux: set TINYVISOR=n" in status(bench)
    assert (bench.run, bench.machine.name, bench.guest) == (run, "q35-6g", "lab")
    assert not bench.controls.buttons["reboot"].disabled
    bench.controls.options.switches["TINYVISOR"].value = False
    bench.controls.machine.value = "q35-6g"
    press(bench, "reboot")
    assert bench.guest == "linux-6.1.0-9"
    assert "guest-crash Linux 6.1.0-9" in status(bench)
    assert "guest Linux" not in bench.verdict.pending.value
    assert bench.guest_console.label == "Guest's console (Linux 6.1.0-9)"
    assert bench.guest_console.shell_keys == ["Ctrl-C", "Ctrl-D"]
    send(bench, bench.controls.guest, kind="choose", key="lab")
    press(bench, "reboot")
    assert (bench.guest, bench.guest_console.shell_keys, bench.guest_console.label) == ("lab", [], "Guest's console (lab guest)")


def test_an_attack_while_a_linux_is_there_boots_the_lab_guest(bench, monkeypatch):
    bench.machine.boot(Config(VTD_TRANS=False), guest=A_LINUX)
    bench.refresh()
    assert "this Linux ends" in bench.attacks.one.boots
    bench._attack("steal-key", None)
    bench.wait()
    assert bench.guest == "lab" and bench.attacks.one.boots == ""
    assert bench.attacks.one.result["verdict"] == "succeeded"


def test_what_is_typed_reaches_a_guest_at_work_at_once(bench, monkeypatch):
    """Not behind what the worker does, which may never end: ^C would not reach it."""
    typed = []
    bench.machine.key_in = lambda text, guest: typed.append((text, guest, threading.current_thread()))
    bench.worker._desk.job = type("Job", (), {"machine": bench.machine})()
    monkeypatch.setattr(Machine, "state", "running")
    send_line = {"kind": "command", "line": "help"}
    bench.guest_console._received(bench.guest_console, send_line, [])
    bench.worker._desk.job = None
    monkeypatch.undo()
    assert typed == [("help\n", 1, threading.main_thread())]


# --- the past

def test_moments_are_kept_and_the_machine_goes_back_before_a_fault(bench):
    assert bench.moments.rows == []
    bench.faults._received(bench.faults, {"kind": "act", "row": 0}, [])
    assert UNKEPT in status(bench)
    send(bench, bench.moments, kind="keep", keep=True, every="1 ms")
    assert len(bench.moments.rows) == 1
    press(bench, "reboot")
    assert len(bench.moments.rows) > 3
    fault, end = bench.run.dma[0].time, bench.machine.pc.clock.now
    assert bench.selection.fault == 0
    send(bench, bench.faults, kind="act", row=0)
    assert bench.machine.pc.clock.now < fault
    assert (list(bench.run.faults), bench.selection.fault, bench.faults.cells[3]) == ([], None, [])
    assert ">stopped<" in bench.verdict.status.value
    assert "gone back to moment 3" in bench.verdict.progress.value
    assert [row[0] for row in bench.moments.rows] == [1, 2, 3]
    press(bench, "resume")
    assert ">disk-lost<" in bench.verdict.status.value
    assert (bench.machine.pc.clock.now, len(bench.run.faults)) == (end, 1)
    send(bench, bench.moments, kind="back", number=2)
    press(bench, "step")
    assert bench.steps.label == "Instructions executed: 1"
    press(bench, "step_exit")
    assert bench.steps.records.kind is ExitStep
    press(bench, "resume")
    assert len(bench.run.faults) == 1


def test_a_moment_of_the_table_is_gone_back_to_and_a_request_before_it(bench):
    send(bench, bench.moments, kind="remember")
    bench._command("dma r 0x1000 64")
    bench.wait()
    send(bench, bench.moments, kind="remember")
    assert [(row[0], row[2]) for row in bench.moments.rows] == [(1, "asked for"), (2, "asked for")]
    assert "Moment 2 is kept" in bench.moments.said
    said, requests = bench.guest_console.text, len(bench.run.dma)
    bench._command("dma r 0x2000 64")
    bench.wait()
    send(bench, bench.moments, kind="back", number=99)
    assert bench.guest_console.text != said
    send(bench, bench.dma, kind="act", row=len(bench.run.dma) - 1)
    assert bench.guest_console.text == said
    assert len(bench.run.dma) == requests
    assert "Gone back to moment 2" in bench.moments.said
    send(bench, bench.moments, kind="back", number=1)
    assert "dma r" not in bench.guest_console.text
    assert ">disk-lost<" in bench.verdict.status.value
    send(bench, bench.dma, kind="act", row=0)
    assert "no moment before" in status(bench)


def test_nothing_of_the_past_can_be_done_while_the_machine_is_at_work(bench):
    bench.hear_progress(bench.machine, "guest runs", 0.5)
    assert not (bench.moments.enabled or bench.faults.can_act or bench.dma.can_act)
    bench.moments._received(bench.moments, {"kind": "keep", "keep": True, "every": "1 ms"}, [])
    assert not bench.moments.keep
    bench.refresh()
    assert bench.moments.enabled and bench.faults.can_act


def test_moments_are_kept_on_the_next_machine_too(bench):
    send(bench, bench.moments, kind="keep", keep=True, every="1 ms")
    bench.controls.machine.value = "q35-2g"
    press(bench, "reboot")
    assert (bench.machine.name, len(bench.moments.rows) > 1) == ("q35-2g", True)
    send(bench, bench.moments, kind="keep", keep=False, every="1 ms")
    assert bench.moments.rows == []
    press(bench, "reboot")
    assert bench.moments.rows == []


# --- files

def test_a_machine_is_saved_and_restored_in_its_place(bench, tmp_path):
    assert bench.controls.file.value == "q35-6g-lab.snap"
    bench._command("mode count")
    bench.wait()
    said, machine, first = bench.guest_console.text, bench.machine, bench.run
    press(bench, "save")
    assert "saved: q35-6g-lab.snap" in bench.verdict.progress.value
    assert info(tmp_path / "q35-6g-lab.snap").machine == "q35-6g"
    assert bench.controls.file.options == ("q35-6g-lab.snap",)
    bench.controls.options.switches["VTD_TRANS"].value = False
    press(bench, "reboot")
    assert ">up<" in bench.verdict.status.value
    press(bench, "restore")
    assert bench.machine is machine
    assert (bench.guest_console.text, bench.run is first) == (said, False)
    assert ">disk-lost<" in bench.verdict.status.value
    assert "restored: q35-6g-lab.snap" in bench.verdict.progress.value
    assert bench.verdict.pending.value.count("Pending") == 0
    bench._command("help")
    bench.wait()
    assert bench.guest_console.text.startswith(said + "help")


def test_the_snapshot_of_another_machine_takes_its_place(bench, tmp_path):
    with Machine.load("q35-2g") as other:
        other.boot(Config(PROFILE="mended"))
        other.save(tmp_path / "other.snap")
    bench.controls.file.value = "other.snap"
    press(bench, "restore")
    assert (bench.machine.name, bench.run.config.PROFILE) == ("q35-2g", "mended")
    assert (bench.controls.machine.value, bench.controls.options.config.PROFILE) == ("q35-2g", "mended")
    assert bench.verdict.pending.value.count("Pending") == 0
    assert bench.controls.file.value == "other.snap"
    bench.controls.machine.value = "q35-6g"
    press(bench, "reboot")
    assert bench.machine is bench._given


@pytest.mark.parametrize(("button", "name", "words"), [
    ("restore", "none.snap", "none.snap cannot be read (No such file or directory)"),
    ("restore", "notes.txt", "notes.txt cannot be restored"),
    ("save", "notes.txt", "notes.txt is there already and is no snapshot: name another file"),
    ("save", "nowhere/x.snap", "nowhere"),
    ("save", ".", ". is a folder: name a file"),
    ("save", "  ", "no file is named"),
])
def test_what_goes_wrong_with_a_file_is_one_sentence_and_loses_nothing(bench, tmp_path, button, name, words):
    (tmp_path / "notes.txt").write_text("mine")
    run = bench.run
    bench.controls.file.value = name
    press(bench, button)
    assert status(bench).startswith("\u2716 error") and words in status(bench)
    assert (bench.run, bench.verdict.progress.value) == (run, "")
    assert not bench.controls.buttons["save"].disabled
    assert (tmp_path / "notes.txt").read_text() == "mine"
    bench._command("help")
    bench.wait()
    assert ">disk-lost<" in bench.verdict.status.value


def test_files_are_named_after_machine_and_guest():
    assert snapshot_name("q35-6g", "linux-6.1.0-56-cloud-amd64") == "q35-6g-linux-6.1.0-56-cloud-amd64.snap"
    assert snapshot_name("../my <PC>", "lab") == "my-PC-lab.snap"


def test_stopped_before_it_has_begun_the_workbench_is_ready_again(bench):
    run, busy = bench.run, threading.Event()
    bench.worker.call(busy.wait)
    bench.controls.buttons["reboot"].click()
    assert bench.controls.buttons["reboot"].disabled
    bench.controls.buttons["stop"].click()
    busy.set()
    bench.wait()
    assert bench.run is run
    assert not bench.controls.buttons["reboot"].disabled
    assert ">disk-lost<" in bench.verdict.status.value
