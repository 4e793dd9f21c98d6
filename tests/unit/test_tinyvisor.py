"""Two guests on one machine: both are there, with the RAM, devices and ports that are theirs."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bench import GIB, MACHINES, MIB, PAGE, block, overlap, region, split

from hvcore import Config, Machine, Run
from hvcore.cli import main
from hvcore.errors import BadConfig, HvlabError
from hvcore.machine.ioexit import intercepted
from hvcore.machine.memory import Memory
from hvcore.spec.e820 import E820Entry
from hvcore.spec.pci import parse_bdf
from hvcore.spec.svm import INTERCEPTS_1, ControlArea, ExitCode, io_access, io_info
from hvcore.vmm.heap import Panic
from hvcore.vmm.tiny.split import choose_ram, guest_2_map, without

# --- both are there

@pytest.mark.parametrize("name", MACHINES)
def test_both_guests_are_up(name: str) -> None:
    with split(name) as (machine, run, first, second):
        assert (run.outcome, first.outcome, second.outcome, machine.state) == ("up", "up", "up", "waiting")
        assert first.why == "the guest's monitor is ready and its disk was read and checked"
        assert second.why == "the guest's monitor is ready; it found no NVMe controller"
        assert run.why == f"guest 1: {first.why}; guest 2: {second.why}"
        assert run.console.guest == first.console and run.console.guest2 == second.console
        assert "nvme0n1: 64 blocks read, checked" in first.console and "nvme: no controller" in second.console
        assert second.command("dma r 0x1000000 16").startswith("0000000001000000  fa fc")


@pytest.mark.parametrize("name", MACHINES)
def test_ram_is_shared_out(name: str) -> None:
    """Each byte of usable RAM below the core belongs to one guest; guest 2 has a quarter of low RAM or 512 MiB."""
    with split(name) as (machine, run, first, second):
        start, end = block(second)
        alone = machine.reboot(TINYVISOR=False).guests[0].ram
        assert not overlap(list(first.ram), [(start, end)]) and not overlap([region(run)], [*first.ram, (start, end)])
        low = sum(min(e.end, 4 * GIB) - e.start for e in guest_map_of(run, machine) if e.start < 4 * GIB)
        assert end - start == min(512 * MIB, low // 4 // (2 * MIB) * 2 * MIB) and start % (2 * MIB) == 0
        assert sum(b - a for a, b in first.ram) + end - start == sum(b - a for a, b in alone)
        assert [(e.start, e.end, e.type) for e in second.e820] == [(0, 0xA0000, 1), (0xA0000, 0x100000, 2), (0x100000, end - start, 1)]


def guest_map_of(run: Run, machine: Machine) -> list[E820Entry]:
    """The usable entries of the map that a single guest is told."""
    assert machine.run is not None and machine.run is not run
    return [e for e in machine.run.e820.guest if e.usable]


def test_the_default_profile_tells_how_both_fare() -> None:
    """Domain 0 of BitVisor ends at 4 GiB, so guest 1 loses its disk there; guest 2's RAM lies below."""
    with split(PROFILE="bitvisor") as (_, run, first, second):
        assert (run.outcome, first.outcome, second.outcome) == ("disk-lost", "disk-lost", "up")
        assert "guest 1: 00:02.0's DMA read at 0x1ffffe000 was blocked" in run.why and "guest 2: the guest's monitor is ready" in run.why
        assert second.command("dma r 0x2000000 16").startswith("0000000002000000 ")


def test_a_run_on_the_command_line_tells_how_both_fare(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "q35-6g", "--set", "TINYVISOR=y", "--set", "PROFILE=mended"]) == 0
    shown = capsys.readouterr().out
    assert "Guests: 2" in shown and "guest 2  up" in shown and "0x59e00000-0x59ea0000 0x59f00000-0x77c00000" in shown
    assert main(["boot", "q35-6g", "--set", "TINYVISOR=y", "--set", "PROFILE=mended", "--command", "crash", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["outcome"] == "guest-crash" and [g["outcome"] for g in result["guests"]] == ["guest-crash", "up"]
    assert result["guests"][1]["ram"] == [[0x59E00000, 0x59EA0000], [0x59F00000, 0x77C00000]]
    assert result["guests"][1]["devices"] == ["00:03.0"] and "lab: ready" in result["guests"][1]["console"]


def test_two_boots_are_the_same() -> None:
    with split() as (machine, run, first, second):
        time = machine.pc.clock.now
        again = machine.reboot()
        assert (again.console.guest, again.console.guest2, machine.pc.clock.now) == (first.console, second.console, time)
        assert run.guests[1].console == second.console and again.guests[1].ram == second.ram


def test_a_reboot_without_tinyvisor_is_the_plain_machine() -> None:
    """The same bytes on the consoles at the same virtual times as of a machine that never was split."""
    with Machine.load("q35-6g") as plain, split() as (machine, _, _, second):
        fresh = plain.boot(Config(PROFILE="mended"))
        again = machine.reboot(TINYVISOR=False)
        assert machine.pc.partition is None and len(again.guests) == 1 and again.console.guest2 is None
        assert str(again.console) == str(fresh.console) and machine.pc.clock.now == plain.pc.clock.now
        assert np.array_equal(machine.pc.memory.words[:1 << 18], plain.pc.memory.words[:1 << 18])
        with pytest.raises(HvlabError, match="run 1 is over"):
            second.command("lspci")


# --- options

@pytest.mark.parametrize("text", ["00:03", "0001:00:03.0", "auto,00:03.0", "00:03.0,", "", 7])
def test_a_wrong_choice_of_devices(text: object) -> None:
    with pytest.raises(BadConfig, match="GUEST2_DEVICES takes auto, none or PCI functions like"):
        Config(TINYVISOR=True, GUEST2_DEVICES=text)  # type: ignore[arg-type]


def test_devices_that_cannot_be_given() -> None:
    assert Config(GUEST2_DEVICES="0000:00:03.0,00:1F.2").GUEST2_DEVICES == "00:03.0,00:1f.2"
    with Machine.load("q35-2g-bridges") as machine:
        with pytest.raises(BadConfig, match=r"GUEST2_DEVICES names 00:09.0, where this machine has no PCI function"):
            machine.boot(Config(TINYVISOR=True, GUEST2_DEVICES="00:09.0"))
        with pytest.raises(BadConfig, match=r"GUEST2_DEVICES names 00:1c.0, which is a bridge"):
            machine.boot(Config(TINYVISOR=True, GUEST2_DEVICES="00:1c.0"))
        assert machine.boot(Config(TINYVISOR=True, GUEST2_DEVICES="none", PROFILE="mended")).guests[1].devices == ()
    with pytest.raises(BadConfig, match="DMAR_PASS_THROUGH"):
        Config(TINYVISOR=True, VTD_TRANS=False, DMAR_PASS_THROUGH=True)
    with pytest.raises(BadConfig, match=r"NVME_DRIVER=y .* needs TINYVISOR=n"):
        Config(TINYVISOR=True).change(NVME_DRIVER=True)


def test_functions_of_one_requester_id_stay_together() -> None:
    """Behind a PCIe-to-PCI bridge all functions have one requester id: no unit could tell one guest's from the other's."""
    with split("q35-2g-bridges", GUEST2_DEVICES="04:05.0") as (_, _, _, second):
        assert second.devices == (parse_bdf("04:05.0")[1], parse_bdf("05:06.0")[1])


def test_no_room_for_a_second_guest_is_a_panic() -> None:
    with Machine.load("q35-2g") as machine:
        run = machine.boot(Config(TINYVISOR=True, VMM_SIZE_MIB=1936))
        assert (run.outcome, len(run.guests)) == ("vmm-panic", 0) and "no RAM below 4 GiB for a second guest" in run.why


# --- parts

@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 400_000), st.sampled_from([1, 1, 2])), max_size=6))
def test_ram_for_guest_2_is_the_highest_that_fits(pieces: list[tuple[int, int, int]]) -> None:
    e820, at = [], 0
    for gap, pages, kind in pieces:
        start = at + gap * PAGE
        at = start + pages * PAGE
        e820.append(E820Entry(start, at, kind))
    low = sum(min(e.end, 4 * GIB) - e.start for e in e820 if e.usable and e.start < 4 * GIB)
    size = min(512 * MIB, low // 4 // (2 * MIB) * 2 * MIB)
    fits = [top for top in range(size, 4 * GIB + 1, 2 * MIB) if top - size >= 32 * MIB
            and any(e.usable and e.start <= top - size and top <= e.end for e in e820)] if size >= 32 * MIB else []
    if not fits:
        with pytest.raises(Panic, match="no RAM below 4 GiB"):
            choose_ram(e820)
        return
    start, end = choose_ram(e820)
    assert (start, end) == (fits[-1] - size, fits[-1])
    left = without(e820, start, end)
    for probe in (start - PAGE, start, end - PAGE, end):
        inside = start <= probe < end
        was = any(e.start <= probe < e.end and e.usable for e in e820)
        assert any(e.start <= probe < e.end and e.usable for e in left) == (was and not inside)
    assert sum(e.size for e in guest_2_map(end - start)) == end - start


@settings(max_examples=100)
@given(st.sets(st.integers(0, 0xFFFF), max_size=20), st.integers(0, 0xFFFC), st.sampled_from([1, 2, 4]), st.booleans())
def test_ports_exit_by_the_permission_map(guarded: set[int], port: int, width: int, wanted: bool) -> None:
    memory = Memory([(0, 16 * PAGE)])
    iopm = np.zeros(3 * PAGE, np.uint8)
    for p in guarded:
        iopm[p // 8] |= 1 << p % 8
    memory.write(4 * PAGE, iopm.tobytes())
    memory.write32(PAGE + ControlArea.INTERCEPTS_1, INTERCEPTS_1[ExitCode.IOIO] if wanted else 0)
    memory.write64(PAGE + ControlArea.IOPM, 4 * PAGE)
    for at in (port, *guarded):
        expected = wanted and any(at + i in guarded for i in range(width))
        assert intercepted(memory, PAGE, at, width) == expected
        assert io_access(io_info(at, width, True)) == (at, width, True)
