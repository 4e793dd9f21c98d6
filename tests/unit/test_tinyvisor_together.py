"""Two guests on one machine: they take turns, and where one dies the other lives on."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
from tiny_bench import PAGE, lspci, split

from hvcore import Config, Machine
from hvcore.errors import HvlabError
from hvcore.session import lab_guest
from hvcore.sources import load
from hvcore.spec.linuxboot import Elf, Segment

# --- one dies, the other lives

@pytest.mark.parametrize(("command", "why"), [("crash", "halted for good"), ("reboot", "asked for a reset")])
@pytest.mark.parametrize("number", [1, 2])
def test_the_other_lives_on(number: int, command: str, why: str) -> None:
    with split(GUEST2_DEVICES="00:02.0") as (machine, run, *guests):
        dead, alive = guests[number - 1], guests[2 - number]
        dead.command(command)
        assert (machine.state, run.outcome, run.live) == ("waiting", "guest-crash", True)
        fates = {g.number: g for g in run.guests}
        assert fates[number].outcome == "guest-crash" and why in fates[number].why and fates[3 - number].outcome == "up"
        assert "0000:" not in alive.command("help") and lspci(alive)
        if number == 1:
            assert "block 3: checked" in alive.command("nvme read 3")
        else:
            assert alive.command("dma r 0x3000000 16").startswith("0000000003000000 ")
        with pytest.raises(HvlabError, match=f"no guest to send to: .*{why}"):
            dead.command("lspci")
        alive.command("crash")
        assert (machine.state, run.outcome) == ("ended", "guest-crash") and machine.ended is not None
        assert "guest 1: " in machine.ended.why and "guest 2: " in machine.ended.why
        assert machine.reboot().outcome == "up"


def test_a_frozen_run_keeps_its_guests() -> None:
    with split() as (machine, run, _, second):
        second.command("crash")
        machine.reboot()
        assert [g.outcome for g in run.guests] == ["up", "guest-crash"] and "#UD" in run.guests[1].console
        assert run.guests[1].ram == second.ram and run.guests[1].cpu == second.cpu


# --- both run at once

SEES = "b8{address}8066baf80cef66bafc0ced83f8ff74{skip}"
"""mov eax, 0x80..., out 0xcf8; in 0xcfc; je +skip where nothing is there"""

def only_guest_2(source: int, code: str, other: str) -> bytes:
    """Code for the guest that sees function `source`, and other code for the one that does not."""
    skip = len(bytes.fromhex(code))
    return bytes.fromhex(SEES.format(address=(source << 8).to_bytes(3, "little").hex(), skip=f"{skip:02x}") + code + other)


def spinner(source: int, code: str = "ebfe") -> Elf:
    """The lab guest, but guest 2, which sees function `source`, spins instead, or does what `code` says."""
    lab, at = lab_guest(), 0x2000000
    thunk = only_guest_2(source, code, "48c7c0" + lab.entry.to_bytes(4, "little").hex() + "ffe0")
    return Elf(at, (*lab.segments, Segment(at, thunk, PAGE)))


def until_ready(machine: Machine) -> Callable[[str | None], None]:
    def watch(phase: str | None) -> None:
        if phase is None and machine.run is not None and "lab: ready" in machine.run.console.guest:
            machine.stop()
    return watch


def test_a_guest_that_spins_does_not_hide_the_other() -> None:
    """Guest 1 boots, answers and sleeps while guest 2 does nothing but compute."""
    options = Config(PROFILE="mended", TINYVISOR=True, GUEST2_DEVICES="00:02.0")
    with Machine.load("q35-6g") as machine:
        run = machine.boot(options, guest=spinner(0x10), watch=until_ready(machine), limit=30)
        assert (machine.state, run.outcome) == ("stopped", "stopped")
        first, second = run.guests
        assert first.command("dma r 0x3000000 16").startswith("0000000003000000 ")
        assert [g.outcome for g in run.guests] == ["up", "running"]
        rip = machine.pc.partition.cpu.rip if machine.pc.partition else 0
        assert rip in range(0x2000000, 0x2000000 + 64) and machine.pc.partition and machine.pc.partition.cpu.in_guest()
        assert machine.resume(0.05) is run and machine.state == "stopped"
        run = machine.boot(options, guest=spinner(0x10), limit=3)
        assert [g.outcome for g in run.guests] == ["up", "guest-crash"] and "still running after 3 s" in run.guests[1].why
        assert lspci(run.guests[0]) and machine.state == "waiting"
        assert second.ram == run.guests[1].ram


@pytest.mark.parametrize("end", ["0f0b", "48b80000000000010000ff20", "48c7c00000ff7f0f22d8ebfe"], ids=["ud2", "far jump", "bad tables"])
def test_a_guest_that_dies_takes_its_timer_with_it(end: str) -> None:
    """Guest 2 starts a periodic timer (8254, mode 2), then faults with no descriptor table for it; guest 1 comes to wait for input."""
    with Machine.load("q35-6g") as machine:
        options = Config(PROFILE="mended", TINYVISOR=True, GUEST2_DEVICES="00:03.0")
        run = machine.boot(options, guest=spinner(0x18, "b034e643b000e640b010e640" + end), limit=20)
        assert (machine.state, [g.outcome for g in run.guests]) == ("waiting", ["up", "guest-crash"])
        assert "triple fault" in run.guests[1].why and "0x2000" in run.guests[1].why
        assert lspci(run.guests[0]) and machine.pc.clock.next() is None


def test_looking_at_a_boot_of_two_takes_no_time() -> None:
    """The machine is held and read over and over while both boot; they print the same at the same virtual times."""
    options = Config(PROFILE="mended", TINYVISOR=True)
    with Machine.load("q35-6g") as machine:
        want = machine.boot(options).console
        time, looked, over = machine.pc.clock.now, [0], threading.Event()

        def look() -> None:
            while not over.is_set():
                if machine.phase == "guest runs" and machine.run is not None:
                    assert len(machine.run.guests) == 2
                    looked[0] += 1
                over.wait(0.002)

        thread = threading.Thread(target=look)
        thread.start()
        run = machine.boot(options)
        over.set()
        thread.join()
        assert looked[0] > 3 and (run.console, machine.pc.clock.now) == (want, time)


def test_two_guests_that_never_wait_share_the_machine() -> None:
    """Each polls a port for ever: after every slice of virtual time it is the other's turn."""
    code = only_guest_2(0x18, "48ffc3e4e0ebf9", "48ffc3e4e0ebf9")
    with Machine.load("q35-2g") as machine:
        def stop(now: str | None) -> None:
            if now is None and machine.phase == "guest runs":
                machine.stop()

        machine.boot(Config(PROFILE="mended", TINYVISOR=True), guest=Elf(0x2000000, (Segment(0x2000000, code, PAGE),)), watch=stop)
        counts = []
        for _ in range(12):
            assert machine.resume(0.05).outcome == "stopped"
            schedule = machine.pc.schedule
            assert schedule is not None
            counts.append([rbx(machine, seat) for seat in schedule.seats])
        rises = np.diff(np.array(counts), axis=0)
        assert (rises >= 0).all() and (rises.sum(axis=0) > 10_000).all()


def rbx(machine: Machine, seat: object) -> int:
    """RBX of a seat's guest, from its processor or its data page."""
    from unicorn import x86_const
    assert machine.residents is not None
    resident = next(r for r in machine.residents if r.seat is seat)
    if resident.seat.cpu.in_guest():
        return int(resident.seat.cpu.uc.reg_read(x86_const.UC_X86_REG_RBX))
    return machine.pc.memory.read64(resident.base + 0x1000 + 0x100 + 8 * 3)


@pytest.mark.parametrize("pause", [0.0005, 0.003])
def test_a_boot_of_two_is_stopped_anywhere_and_comes_to_its_end(pause: float) -> None:
    """Again and again, whichever guest is at work; both print what they print unstopped, at the same virtual times."""
    with Machine.load("q35-6g") as machine:
        want = machine.boot(Config(PROFILE="mended", TINYVISOR=True)).console
        stops: list[str] = []

        def watch(phase: str | None) -> None:
            if phase == "guest runs":
                stops.append(machine.stop())

        run = machine.boot(Config(PROFILE="mended", TINYVISOR=True), watch=watch)
        while machine.state == "stopped" and len(stops) < 1000:
            machine.resume(pause)
            stops.append(machine.state)
        assert len(stops) > 5 and machine.state == "waiting"
        assert (run.outcome, run.console.guest, run.console.guest2) == ("up", want.guest, want.guest2)


def test_a_dead_guest_is_not_stepped() -> None:
    with split() as (machine, _, first, second):
        first.command("crash")
        with pytest.raises(HvlabError, match="guest 1, which is the one that is stepped, has ended"):
            machine.step()
        assert lspci(second) == {"00:03.0"}


def test_stepping_is_guest_1s() -> None:
    with split() as (machine, _, _, second):
        machine.key_in("help\n")
        steps = machine.step(50)
        assert len(steps) == 50 and machine.state == "stopped"
        assert lspci(second) == {"00:03.0"}
        machine.resume()
        assert machine.state == "waiting" and "vmmcall N" in machine.run.console.guest  # type: ignore[union-attr]


def test_public_interface_alone_runs_two_guests() -> None:
    with Machine(load("q35-2g"), True) as machine:
        run = machine.boot(Config(PROFILE="mended", TINYVISOR=True))
        assert [g.outcome for g in run.guests] == ["up", "up"]
        run.guests[1].command("crash")
        assert lspci(run.guests[0]) and [g.outcome for g in run.guests] == ["up", "guest-crash"]
