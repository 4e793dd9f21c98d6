"""A machine is stopped wherever it is, goes on as if nothing had been, and is stepped instruction by instruction."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator

import capstone
import pytest

from hvcore import Config, Machine, Run, session
from hvcore.errors import HvlabError
from hvcore.machine.longmode import translate_nested
from hvcore.phases import DOING
from hvcore.sources import load
from hvcore.spec.linuxboot import Elf, Segment
from hvcore.spec.svm import ControlArea
from hvcore.vmm.vmcb import Vmcb

ENTRY = 0x1000000
LOOPS = {"jmp": "eb fe", "inc": "48 ff c0 eb fb", "in": "e4 e0 eb fc", "cpuid": "0f a2 eb fc", "exit": "31 c0 0f 01 d9 eb f9"}
"""Code that never ends: by itself, with a counter, with device accesses, with exits to the core."""


def elf(code: str) -> Elf:
    """A guest of one page of code."""
    return Elf(ENTRY, (Segment(ENTRY, bytes.fromhex(code), 8192),))


@pytest.fixture(params=[False, True], ids=["exported", "public"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine(load("q35-2g"), request.param) as m:
        yield m


@pytest.fixture
def exact() -> Iterator[Machine]:
    with Machine.load("q35-2g") as m:
        yield m


def stop_at(machine: Machine, phase: str) -> Callable[[str], None]:
    """For a boot that is to stop where a phase begins."""
    def progress(now: str) -> None:
        if now == phase:
            machine.stop()
    return progress


def spin(machine: Machine, code: str) -> Run:
    """Boots a guest that never ends and stops it."""
    def stop_in_guest(now: str | None) -> None:
        if now is None and machine.phase == "guest runs":
            machine.stop()

    return machine.boot(Config(VTD_TRANS=False), guest=elf(code), watch=stop_in_guest)


def test_states() -> None:
    m = Machine.load("q35-2g")
    assert m.state == "off"
    seen: list[str] = []
    run = m.boot(Config(VTD_TRANS=False), lambda _phase: seen.append(m.state))
    assert (set(seen), m.state) == ({"running"}, "waiting")
    m.key_in("help\n")
    assert m.state == "stopped"
    m.resume()
    assert m.state == "waiting" and "lspci" in run.console.guest
    m.send("crash\n")
    assert m.state == "ended"
    m.close()
    assert m.state == "off"


@pytest.mark.parametrize("code", LOOPS.values(), ids=LOOPS)
def test_a_guest_that_spins_is_stopped_and_goes_on(machine: Machine, code: str) -> None:
    run = spin(machine, code)
    assert (machine.state, run.outcome) == ("stopped", "stopped")
    assert run.why == "stopped by you while the guest ran; it can go on"
    for _ in range(5):
        assert machine.resume(0.01) is run
        assert (machine.state, run.outcome) == ("stopped", "stopped")
        assert ENTRY <= machine.registers["rip"] < ENTRY + 16
    assert machine.boot(Config(VTD_TRANS=False)).outcome == "up"
    assert run.why == "stopped by you while the guest ran, and not resumed"


def test_registers_go_on_counting_through_stops(exact: Machine) -> None:
    """The loop adds one to RAX and jumps back: where it stands, and that RAX never falls, is told by the registers."""
    spin(exact, LOOPS["inc"])
    values = [exact.registers["rax"]]
    for _ in range(20):
        exact.resume(0.002)
        values.append(exact.registers["rax"])
    assert values == sorted(values) and values[-1] > values[0]
    assert exact.registers["rip"] in (ENTRY, ENTRY + 3)


@pytest.mark.parametrize("phase", DOING)
def test_a_boot_is_stopped_in_each_phase_and_comes_to_its_end(exact: Machine, phase: str) -> None:
    told: list[str] = []

    def stop(now: str) -> None:
        told.append(now)
        if now == phase:
            exact.stop()

    run = exact.boot(Config(PROFILE="mended"), stop)
    assert (exact.state, exact.phase, told[-1]) == ("stopped", phase, phase)
    assert (run.outcome, run.why) == ("stopped", f"stopped by you while {DOING[phase]}; it can go on")
    assert exact.resume() is run
    assert (run.outcome, exact.state) == ("up", "waiting")
    assert sorted(told) == sorted(DOING) and set(run.timings) == {*DOING, "total"}


def test_a_run_given_up_while_stopped_says_so(exact: Machine) -> None:
    run = exact.boot(Config(PROFILE="mended"), stop_at(exact, "pci"))
    again = exact.reboot()
    assert (run.outcome, run.why) == ("stopped", "stopped by you while the core scanned PCI, and not resumed")
    assert (again.outcome, again.number) == ("up", 2)


def test_two_hundred_stops_change_nothing(exact: Machine) -> None:
    """A boot that reads and checks its disk, by interrupts, and then commands: in slices, with the same console at the end."""
    whole = exact.boot(Config(VTD_TRANS=False))
    expected = whole.console.guest + whole.guest.command("nvme probe") + whole.guest.command("lspci")
    chance = random.Random(7)
    stops = 0

    def to_the_end() -> None:
        nonlocal stops
        while exact.state == "stopped":
            exact.resume(chance.uniform(0, 0.001))
            stops += exact.state == "stopped"

    while stops < 200:
        run = exact.boot(Config(VTD_TRANS=False), stop_at(exact, "guest runs"))
        to_the_end()
        said = run.console.guest
        for command in ("nvme probe", "lspci"):
            exact.key_in(command + "\n")
            before = len(run.console.guest)
            to_the_end()
            said += run.console.guest[before:].partition("\n")[2].removesuffix("lab> ").strip("\n")
        assert run.outcome == "up" and "blocks read, checked" in said
        assert said == expected


def test_ctrl_c_stops_and_the_cell_ends(exact: Machine) -> None:
    interrupt = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        exact.boot(Config(VTD_TRANS=False), guest=elf(LOOPS["inc"]))
    assert exact.run and (exact.state, exact.run.outcome) == ("stopped", "stopped")
    interrupt = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        exact.step(1 << 40)
    assert exact.state == "stopped"
    assert exact.boot(Config(VTD_TRANS=False)).outcome == "up"


def test_what_progress_raises_stops_the_boot(exact: Machine) -> None:
    def fail(now: str) -> None:
        if now == "acpi":
            raise LookupError

    with pytest.raises(LookupError):
        exact.boot(Config(VTD_TRANS=False), fail)
    assert (exact.state, exact.phase) == ("stopped", "acpi")
    assert exact.resume().outcome == "up"


def test_a_guest_is_given_up_only_where_there_is_a_limit(exact: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "WALL_LIMIT", 0.2)
    run = exact.boot(Config(VTD_TRANS=False), guest=elf(LOOPS["jmp"]))
    assert (run.outcome, run.why) == ("guest-crash", "still running after 0.2 s of wall time")
    spent = []

    def enough(_now: str | None) -> None:
        spent.append(1)
        if len(spent) > 20:
            exact.stop()

    run = exact.boot(Config(VTD_TRANS=False), guest=elf(LOOPS["jmp"]), limit=float("inf"), watch=enough)
    assert run.outcome == "stopped"


def test_send_resumes_a_machine_that_was_stopped(exact: Machine) -> None:
    run = exact.boot(Config(VTD_TRANS=False), stop_at(exact, "pci"))
    assert "q35-2g" in exact.name and "e820 -" in run.guest.command("help")
    exact.key_in("lsp")
    exact.step(50)
    assert "00:1f.0" in exact.send("ci\n")
    assert run.outcome == "up"


def test_readers_see_the_machine_stand_still(exact: Machine) -> None:
    """A loop that stores one counter at two places, the second after the first: held still by a reader, it does not move."""
    spin(exact, "48 ff c0 48 89 05 f6 0f 00 00 48 89 05 f7 0f 00 00 eb ed")
    memory, seen = exact.pc.memory, []

    def read(now: str | None) -> None:
        if now is None:
            with exact.still():
                seen.append([memory.read(ENTRY + 0x1000, 16) for _ in range(50)])
        if len(seen) == 5:
            exact.stop()

    exact.resume(watch=read)
    assert all(len(set(looks)) == 1 for looks in seen)
    counters = [int.from_bytes(looks[0][:8], "little") for looks in seen]
    assert counters == sorted(set(counters))


def test_nothing_is_started_on_a_machine_held_still(exact: Machine) -> None:
    run = exact.boot(Config(VTD_TRANS=False), stop_at(exact, "guest"))
    with exact.still(), exact.still():
        with pytest.raises(HvlabError, match="held still for reading here"):
            exact.resume()
        assert run.e820.firmware
    assert exact.resume().outcome == "up"


def test_a_machine_that_runs_is_not_booted_twice(exact: Machine) -> None:
    def boot_again(now: str) -> None:
        with pytest.raises(HvlabError, match="the machine is running"):
            exact.boot()
        with pytest.raises(HvlabError, match="running"):
            exact.step()

    assert exact.boot(Config(VTD_TRANS=False), boot_again).outcome == "up"


# --- steps

def _expected(machine: Machine, rip: int) -> tuple[int, str]:
    """The instruction at a guest-virtual address: through the guest's tables, by capstone."""
    memory = machine.pc.memory
    assert machine.run and machine.run.vmm.base is not None
    n_cr3 = Vmcb(memory, machine.run.vmm.base).get(ControlArea.N_CR3)
    physical = translate_nested(memory, machine.registers["cr3"], n_cr3, rip)
    assert physical is not None
    code = next(capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(memory.read(physical, 15), rip))
    return code.size, f"{code.mnemonic} {code.op_str}".rstrip()


def test_steps_are_the_instructions_in_memory_one_after_another(machine: Machine) -> None:
    """From the handler of the interrupt that ends the guest's HLT on; straight code goes on where it ends."""
    run = machine.boot(Config(VTD_TRANS=False))
    halted = machine.registers["rip"]
    machine.key_in("help\n")
    assert machine.step()[0].rip != halted
    after: int | None = None
    texts: set[str] = set()
    for _ in range(600):
        rip = machine.registers["rip"]
        step, = machine.step()
        size, text = _expected(machine, step.rip)
        assert (step.instruction, len(step.code)) == (text, size)
        assert step.rip == rip and after in (None, rip)
        texts.add(text.split()[0])
        after = None if text.startswith(("j", "call", "ret", "iretq", "hlt", "rep")) else step.rip + size
    assert texts >= {"push", "call", "ret", "in", "out"}
    machine.resume()
    assert machine.state == "waiting" and "reboot - resets the machine" in run.console.guest
    assert run.guest.command("cpuid 0").startswith("cpuid: eax")


def test_a_step_says_which_registers_changed(exact: Machine) -> None:
    """mov eax, 5; add eax, 3; push rax; jmp back."""
    spin(exact, "b8 05 00 00 00 83 c0 03 50 58 eb f4")
    while exact.registers["rip"] != ENTRY:
        exact.step()
    steps = exact.step(5)
    assert [s.instruction for s in steps] == ["mov eax, 5", "add eax, 3", "push rax", "pop rax", f"jmp {ENTRY:#x}"]
    assert [{name: after for name, _, after in s.changed}.get("rax") for s in steps] == [5, 8, None, None, None]
    assert exact.registers["rip"] == ENTRY and "mov eax, 5" in str(steps)
    assert len(steps.frame) == 5


def test_a_step_over_an_exit_has_its_name(exact: Machine) -> None:
    """xor eax, eax; vmmcall; jmp back: the core answers 1."""
    spin(exact, LOOPS["exit"])
    while exact.registers["rip"] != ENTRY + 2:
        exact.step()
    step, = exact.step()
    assert (step.instruction, step.note) == ("vmmcall", "VMEXIT_VMMCALL")
    assert ("rax", 0, 1) in step.changed and exact.registers["rip"] == ENTRY + 5


def test_step_exit_tells_the_exit(machine: Machine) -> None:
    run = machine.boot(Config(VTD_TRANS=False))
    machine.key_in("vmmcall 0\n")
    names = []
    while seen := machine.step_exit():
        assert machine.state == "stopped"
        names.append(seen.name)
        if seen.name == "VMEXIT_VMMCALL":
            assert _expected(machine, seen.rip)[1] == "vmmcall" and machine.registers["rip"] == seen.rip + 3
    assert "VMEXIT_VMMCALL" in names and names[-1] == "VMEXIT_HLT"
    assert machine.state == "waiting" and run.outcome == "up"


def test_why_there_are_no_steps(exact: Machine) -> None:
    with pytest.raises(HvlabError, match="no guest yet"):
        exact.step()
    exact.boot(Config(VTD_TRANS=False), stop_at(exact, "acpi"))
    for use in (exact.step, exact.step_exit, lambda: exact.registers):
        with pytest.raises(HvlabError, match="no guest yet"):
            use()
    exact.resume()
    steps = exact.step(3)
    assert len(steps) == 0 and "waits for input" in str(steps)
    assert exact.step_exit() is None


def test_a_step_into_a_crash_ends_the_run(exact: Machine) -> None:
    """cli; hlt: the core gives the guest up."""
    run = exact.boot(Config(VTD_TRANS=False), stop_at(exact, "guest runs"), guest=elf("fa f4"))
    steps = exact.step(10)
    assert [s.instruction for s in steps] == ["cli", "hlt"]
    assert exact.state == "ended" and run.outcome == "guest-crash" and "HLT with interrupts off" in run.why


def test_a_stop_while_the_last_run_is_kept(exact: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine stands still meanwhile: it is stopped at once, still has its last run, and boots when it goes on."""
    first = exact.boot(Config(VTD_TRANS=False))
    reads, goes_on = threading.Event(), threading.Event()
    freeze = Run.freeze

    def slowly(run: Run) -> None:
        reads.set()
        goes_on.wait(60)
        freeze(run)

    def stop() -> None:
        reads.wait(60)
        states.append(exact.stop())

    states: list[str] = []
    monkeypatch.setattr(Run, "freeze", slowly)
    stopper = threading.Thread(target=stop)
    stopper.start()
    assert exact.reboot() is first
    stopper.join()
    assert (states, exact.state, first.outcome, first.live) == (["stopped"], "stopped", "up", True)
    for use in (exact.step, lambda: exact.send("help\n")):
        with pytest.raises(HvlabError, match="stopped just before power-on"):
            use()
    goes_on.set()
    again = exact.resume()
    assert (again.outcome, again.number, first.live) == ("up", 2, False)
