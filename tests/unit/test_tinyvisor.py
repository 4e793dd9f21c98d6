"""Two guests on one machine: each has its own RAM, processor, devices and domain, and neither reaches what is the other's."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hvcore import Config, Machine, Run
from hvcore.cli import main
from hvcore.errors import BadConfig, HvlabError
from hvcore.guests import GuestView
from hvcore.inspect.runs import Runs
from hvcore.machine.ioexit import intercepted
from hvcore.machine.memory import Memory
from hvcore.session import lab_guest
from hvcore.sources import load
from hvcore.spec import vtd
from hvcore.spec.dma import Direction, DmaRequest, RemapFault
from hvcore.spec.e820 import E820Entry
from hvcore.spec.linuxboot import Elf, Segment
from hvcore.spec.pci import COMMAND, SECONDARY_BUS, parse_bdf
from hvcore.spec.svm import INTERCEPTS_1, ControlArea, ExitCode, io_access, io_info
from hvcore.vmm.heap import Panic
from hvcore.vmm.tiny.split import choose_ram, guest_2_map, without

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096
MACHINES = ("q35-6g", "q35-2g", "gigabyte-b150m-16g")
PATTERN = b"HVLABDMA"


@contextmanager
def split(name: str = "q35-6g", **options: object) -> Iterator[tuple[Machine, Run, GuestView, GuestView]]:
    """A machine with two guests that wait for input."""
    with Machine.load(name) as machine:
        run = machine.boot(Config(**{"PROFILE": "mended", "TINYVISOR": True} | options))  # type: ignore[arg-type]
        first, second = run.guests
        yield machine, run, first, second


def region(run: Run) -> tuple[int, int]:
    assert run.vmm.base is not None
    return run.vmm.base, run.vmm.base + run.vmm.size


def block(guest: GuestView) -> tuple[int, int]:
    """Guest 2's range of RAM, the hole below 1 MiB included."""
    return guest.ram[0][0], guest.ram[-1][1]


def lspci(guest: GuestView) -> set[str]:
    return {line.split()[0] for line in guest.command("lspci").splitlines()}


def dump_bytes(answer: str) -> bytes:
    """The bytes of the monitor's hexdump."""
    return b"".join(bytes.fromhex(line[16:].partition("|")[0]) for line in answer.splitlines() if line[:16].strip("0123456789abcdef") == "")


def grants(runs: Runs) -> list[tuple[int, int]]:
    """The half-open host-physical ranges that runs lead to with any right."""
    return [(r.start + r.offset, r.end + r.offset) for r in runs if r.perm != "-"]


def overlap(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where two sets of ranges meet, by a sweep over b's for each of a's."""
    return [(max(x[0], y[0]), min(x[1], y[1])) for x in a for y in b if x[0] < y[1] and y[0] < x[1]]


def clear_faults(machine: Machine) -> None:
    """Every fault record of the machine's first unit, as software clears it."""
    unit, bus = machine.pc.units[0], machine.pc.bus
    record = unit.base + vtd.frcd_offset(bus.read(unit.base + 8, 8)) + 8
    bus.write(record, 8, bus.read(record, 8))
    bus.write(unit.base + 0x34, 4, 0x7F)


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


# --- devices: DMA

def test_dma_of_guest_2_lands_in_its_own_ram() -> None:
    """It names guest-physical addresses; the bytes arrive at the host-physical ones behind the remapping tables."""
    with split() as (machine, run, _, second):
        start, end = block(second)
        memory = machine.pc.memory
        for at in (0, 0x3000000, end - start - PAGE):
            assert "sent" in second.command(f"dma w {at:#x} 4096")
            assert memory.read(start + at, PAGE) == PATTERN * (PAGE // 8)
            assert not memory.backed(at, PAGE) or memory.read(at, PAGE) != PATTERN * (PAGE // 8)
            landed = run.dma[-1]
            assert (landed.iova, landed.landing, landed.result) == (at + PAGE // 2, start + at + PAGE // 2, "ok")
        assert second.command("poke 0x4000000 0x11223344") == ""
        assert dump_bytes(second.command("dma r 0x4000000 4")) == memory.read(start + 0x4000000, 4) == b"\x44\x33\x22\x11"
        assert not run.faults


def test_dma_of_guest_2_ends_with_its_ram() -> None:
    """Exact to the page, and everything beyond is a fault recorded at the IOVA it asked for; guest 1's and the core's bytes stay."""
    with split() as (machine, run, _, second):
        start, end = block(second)
        base, _ = region(run)
        memory = machine.pc.memory
        secret = memory.read(base + 0x9000, 32)
        memory.write(0x30000000, b"guest 1's")
        for number, iova in enumerate((end - start, start, end, base + 0x9000, 0x30000000, 1 << 32)):
            clear_faults(machine)
            second.command(f"dma w {iova:#x} 16")
            fault, = run.faults
            assert (fault.source, fault.address, fault.access) == (0x18, iova & ~0xFFF, "write"), number
            assert second.command(f"dma r {iova:#x} 16") == "dma: no data arrived"
        assert memory.read(base + 0x9000, 32) == secret and memory.read(0x30000000, 9) == b"guest 1's"


def test_dma_of_guest_1_ends_where_guest_2_begins() -> None:
    with split(GUEST2_DEVICES="00:02.0") as (machine, run, first, second):
        start, end = block(second)
        assert end == region(run)[0]
        machine.pc.memory.write(start, b"guest 2's")
        machine.pc.memory.write(start - PAGE, b"its own..")
        assert dump_bytes(first.command(f"dma r {start - PAGE:#x} 9")) == b"its own.."
        assert first.command(f"dma r {start - 16:#x} 32") == "dma: no data arrived"
        for iova in (start, start + PAGE, end - PAGE, end, region(run)[1] - PAGE):
            assert first.command(f"dma r {iova:#x} 9") == "dma: no data arrived"
            clear_faults(machine)
            first.command(f"dma w {iova:#x} 16")
            fault, = run.faults
            assert (fault.source, fault.address, fault.access) == (0x18, iova, "write")
        assert machine.pc.memory.read(start, 9) == b"guest 2's" and bytes(second.command("lspci"), "ascii")
        assert "sent" in first.command(f"dma w {region(run)[1]:#x} 16")


def test_a_real_driver_works_through_passthrough() -> None:
    """Guest 2's NVMe driver puts guest-physical addresses into queues and PRP lists; the controller reads and writes through domain 1."""
    with split(GUEST2_DEVICES="00:02.0") as (_, run, first, second):
        start, end = block(second)
        assert second.why == "the guest's monitor is ready and its disk was read and checked" and "found no NVMe" in first.why
        assert "block 7: checked" in second.command("nvme read 7")
        mine = [d for d in run.dma if d.source == 0x10]
        assert len(mine) > 20 and all(d.landing == d.iova + start and d.iova < end - start for d in mine)


def test_without_the_iommu_dma_of_guest_2_lands_in_guest_1() -> None:
    """What it names is taken for host-physical: its own driver fails, and guest 1's bytes are overwritten, and read."""
    with split(VTD_TRANS=False) as (machine, run, first, second):
        start, _ = block(second)
        assert second.command("dma r 0x3000000 16").startswith("dma: edu does not reach the bounce page at 0x1")
        bounce = run.dma[-1].iova
        assert run.dma[-1].landing == bounce and any(a <= bounce < b for a, b in first.ram)
        assert machine.pc.memory.read(start + bounce, 16) == b"\x5a" * 16 or machine.pc.memory.read(start + bounce, 16) == b"\xa5" * 16
        first.command("poke 0x3000000 0x11223344")
        assert dump_bytes(first.command("peek 0x3000000 4")) == b"\x44\x33\x22\x11"
        second.command("dma w 0x3000000 16")
        found = dump_bytes(first.command("peek 0x3000000 16"))
        assert found == machine.pc.memory.read(0x3000000, 16) and not found.startswith(b"\x44\x33\x22\x11")
        assert machine.pc.memory.read(start + 0x3000000, 16) == bytes(16)
        second.command(f"dma w {region(run)[0] + 0x9000:#x} 16")
        assert run.dma[-1].result == "ok" and run.dma[-1].landing == region(run)[0] + 0x9000 and not run.faults


def test_without_the_iommu_a_real_driver_of_guest_2_writes_into_guest_1() -> None:
    with split(VTD_TRANS=False, GUEST2_DEVICES="00:02.0") as (_, run, first, second):
        assert (run.outcome, first.outcome, second.outcome) == ("disk-lost", "up", "disk-lost")
        strays = [d for d in run.dma if d.source == 0x10]
        assert strays and all(d.landing == d.iova and any(a <= d.iova < b for a, b in first.ram) for d in strays)


# --- domains

@pytest.mark.parametrize("name", [*MACHINES, "q35-2g-bridges", "hp-compaq-8000-elite-4g", "dell-r630-64g"])
def test_domains_have_no_byte_in_common(name: str) -> None:
    with split(name) as (_, run, first, second):
        by_number = {n: [r for d in run.domains if d.did == n for r in grants(d.runs)] for n in (0, 1)}
        assert by_number[1] == [block(second)] and by_number[0]
        assert not overlap(by_number[0], by_number[1])
        assert not overlap([region(run)], [*by_number[0], *by_number[1]])
        assert all(not overlap([piece], [block(second)]) for piece in first.ram)


BEHIND = ("02:04.0", "03:00.0", "04:05.0", "05:06.0", "00:02.0", "00:1f.0")


@settings(max_examples=12, deadline=None, phases=[Phase.generate])
@given(st.sets(st.sampled_from(BEHIND), min_size=1), st.sampled_from(["mended", "bitvisor"]), st.integers(0, (1 << 39) - 1))
def test_a_requester_is_its_owners(names: set[str], profile: str, somewhere: int) -> None:
    """Whatever is given to guest 2: what each function's DMA reaches under the id that the unit sees is in its owner's RAM only."""
    with split("q35-2g-bridges", GUEST2_DEVICES=",".join(sorted(names)), PROFILE=profile) as (machine, run, first, second):
        assert {parse_bdf(name)[1] for name in names} <= set(second.devices)
        assert not set(first.devices) & set(second.devices)
        start, end = block(second)
        for function in machine.pc.root.functions.values():
            if function.description.source not in (*first.devices, *second.devices):
                continue
            for iova in (somewhere % (2 * GIB), somewhere, end - start - PAGE, start, end, region(run)[0]):
                got = machine.pc.units[0].remap(DmaRequest(function.port.source, iova, 8, Direction.WRITE))
                owner = second if function.description.source in second.devices else first
                if owner is second:
                    assert got == start + iova if iova < end - start else isinstance(got, RemapFault)
                elif not isinstance(got, RemapFault):
                    assert got == iova and not start <= iova < end and not region(run)[0] <= iova < region(run)[1]


# --- configuration space

def test_each_sees_its_own_functions_only() -> None:
    with split() as (machine, _, first, second):
        assert lspci(second) == {"00:03.0"} == {"00:03.0" for d in second.devices if d == 0x18}
        assert lspci(first) == {"00:00.0", "00:01.0", "00:02.0", "00:1f.0", "00:1f.2", "00:1f.3"}
        assert not set(first.devices) & set(second.devices) and len(first.devices) + len(second.devices) == len(machine.pc.root.functions)


def test_configuration_space_of_the_other_is_all_ones_and_takes_no_write() -> None:
    """By both mechanisms, for both guests."""
    with split() as (machine, _, first, second):
        for guest, foreign, own in ((first, 0x18, 0x10), (second, 0x10, 0x18)):
            function = machine.pc.root.functions[0, foreign]
            before = function.get(COMMAND, 2)
            assert before & 2
            for source, word in ((foreign, 0xFFFFFFFF), (own, int.from_bytes(machine.pc.root.functions[0, own].config[:4], "little"))):
                guest.command(f"out 0xcf8 {0x80000000 | source << 8:#x} 4")
                assert guest.command("in 0xcf8 4") == f"in: {0x80000000 | source << 8:#x}"
                assert guest.command("in 0xcfc 4") == f"in: {word:#x}"
                assert guest.command("in 0xcfe 2") == f"in: {word >> 16:#x}"
                assert dump_bytes(guest.command(f"peek {0xB0000000 + (source << 12):#x} 4")) == word.to_bytes(4, "little")
            guest.command(f"out 0xcf8 {0x80000004 | foreign << 8:#x} 4")
            guest.command("out 0xcfc 0 2")
            guest.command(f"poke {0xB0000004 + (foreign << 12):#x} 0 2")
            assert function.get(COMMAND, 2) == before
            guest.command(f"poke {0xB0000004 + (own << 12):#x} {machine.pc.root.functions[0, own].get(COMMAND, 2) & ~4:#x} 2")
            assert not machine.pc.root.functions[0, own].get(COMMAND, 2) & 4


def test_no_guest_changes_a_bridge() -> None:
    """Their bus numbers decide under which requester id a function is seen.  Guest 2 sees those that lead to its own."""
    with split("q35-2g-bridges", GUEST2_DEVICES="03:00.0") as (machine, _, first, second):
        ecam = machine.description.ecam
        bridges = {f.description.source: f for f in machine.pc.root.functions.values() if f.description.model == "bridge"}
        assert {"03:00.0"} < lspci(second) and not {"02:04.0", "05:06.0"} & lspci(second)
        assert len(bridges) > 2 and not set(bridges) & {*first.devices, *second.devices} and ecam
        seen = {parse_bdf(name)[1] for name in lspci(second)}
        for source, bridge in bridges.items():
            expected = bytes(bridge.config[:4]) if source in seen else b"\xff" * 4
            assert dump_bytes(second.command(f"peek {ecam.base + (source << 12):#x} 4")) == expected
            assert dump_bytes(first.command(f"peek {ecam.base + (source << 12):#x} 4")) == bytes(bridge.config[:4])
        assert set(bridges) & seen and set(bridges) - seen
        for guest in (first, second):
            for source, bridge in bridges.items():
                before = bytes(bridge.config)
                guest.command(f"out 0xcf8 {0x80000000 | source << 8 | SECONDARY_BUS & 0xFC:#x} 4")
                guest.command("out 0xcfd 9")
                guest.command(f"poke {ecam.base + (source << 12) + SECONDARY_BUS:#x} 9 1")
                assert bytes(bridge.config) == before


@pytest.mark.parametrize("ecam", [False, True])
def test_no_function_answers_where_its_guest_has_nothing(ecam: bool) -> None:
    """A guest may move its own registers, but not over what is the other's: decoding stays off, or the register as it was."""
    with split() as (machine, _, first, second):
        functions = machine.pc.root.functions
        edu, nvme = functions[0, 0x18], functions[0, 0x10]

        def put(guest: GuestView, source: int, offset: int, value: int, width: int) -> None:
            if ecam:
                guest.command(f"poke {0xB0000000 + (source << 12) + offset:#x} {value:#x} {width}")
            else:
                guest.command(f"out 0xcf8 {0x80000000 | source << 8 | offset:#x} 4")
                guest.command(f"out 0xcfc {value:#x} {width}")

        at, there = edu.window, nvme.window
        assert at and there
        for own, guest, mine, foreign in ((edu, second, at, there), (nvme, first, there, at)):
            source, aligned = own.description.source, foreign[0] & -own.bars[0].size
            put(guest, source, 0x10, foreign[0], 4)                     # while it decodes: lost
            assert own.window == mine and own.get(0x10, 4) & ~0xF == mine[0]
            put(guest, source, 0x04, 0x0000, 2)
            put(guest, source, 0x10, foreign[0], 4)                     # while it does not: kept, but it is not switched on there
            assert own.window is None and own.get(0x10, 4) & ~0xF == aligned
            put(guest, source, 0x04, 0x0006, 2)
            assert own.window is None and own.get(COMMAND, 2) & 2 == 0
            put(guest, source, 0x10, mine[0], 4)
            put(guest, source, 0x04, 0x0006, 2)
            assert own.window == mine and own.get(COMMAND, 2) & 6 == 6
        put(first, 0x10, 0x10, 0xD0000000, 4)                           # nobody's: guest 1 has all that guest 2 has not
        assert nvme.window == (0xD0000000, 0xD0004000)
        put(second, 0x18, 0x10, 0xD1000000, 4)
        assert edu.window == at and second.command("dma r 0x3000000 16").startswith("0000000003000000 ")


# --- processors

def test_no_processor_reads_or_writes_what_is_not_its_guests() -> None:
    with split() as (machine, run, first, second):
        start, end = block(second)
        memory, (base, top) = machine.pc.memory, region(run)
        memory.write(start + 0x5000000, b"guest 2's")
        memory.write(0x30000000, b"guest 1's")
        for at in (start, start + 0x5000000, end - PAGE):
            assert dump_bytes(first.command(f"peek {at:#x} 9")) == b"\xff" * 9
            before = memory.read(at, 8)
            assert first.command(f"poke {at:#x} 0x41424344") == "" and memory.read(at, 8) == before
        assert dump_bytes(first.command(f"peek {base + 0x9000:#x} 32")) == bytes(32) != memory.read(base + 0x9000, 32)
        for at in (end - start, 0x30000000, start, base + 0x9000, top - PAGE):
            assert dump_bytes(second.command(f"peek {at:#x} 9")) == b"\xff" * 9
            assert second.command(f"poke {at:#x} 0x41424344") == ""
        assert memory.read(0x30000000, 9) == b"guest 1's"
        assert dump_bytes(second.command("peek 0x5000000 9")) == b"guest 2's"
        assert dump_bytes(first.command("peek 0x30000000 9")) == b"guest 1's"
        assert dump_bytes(second.command(f"peek {end - start - 16:#x} 16")) == memory.read(end - 16, 16)


@pytest.mark.parametrize("name", MACHINES)
def test_nested_tables_have_no_ram_in_common(name: str) -> None:
    with split(name) as (machine, run, first, second):
        ours, theirs = (grants(g.cpu) for g in (first, second))
        blank = region(run)[0] + 0x8000
        assert overlap(theirs, [region(run)]) == [] and set(overlap(ours, [region(run)])) == {(blank, blank + PAGE)}
        windows = [(w.start, w.end) for w in machine.pc.bus.windows if w.name == "ECAM"]
        assert [piece for piece in overlap(ours, theirs) if not overlap([piece], windows)] == []
        assert second.cpu[0].start == 0 and second.cpu[0].offset == block(second)[0]


def test_registers_of_a_device_are_its_owners() -> None:
    with split() as (machine, _, first, second):
        window = machine.pc.root.functions[0, 0x18].window
        nvme = machine.pc.root.functions[0, 0x10].window
        assert window and nvme
        for guest, own, foreign in ((first, nvme, window), (second, window, nvme)):
            assert dump_bytes(guest.command(f"peek {own[0]:#x} 4")) == machine.pc.bus.read(own[0], 4).to_bytes(4, "little") != b"\xff" * 4
            assert dump_bytes(guest.command(f"peek {foreign[0]:#x} 4")) == b"\xff" * 4
        first.command(f"poke {window[0] + 4:#x} 0x12345678")
        assert machine.pc.bus.read(window[0] + 4, 4) == 0
        second.command(f"poke {window[0] + 4:#x} 0x12345678")
        assert machine.pc.bus.read(window[0] + 4, 4) == 0xFFFFFFFF ^ 0x12345678


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


def test_public_interface_alone_runs_two_guests() -> None:
    with Machine(load("q35-2g"), True) as machine:
        run = machine.boot(Config(PROFILE="mended", TINYVISOR=True))
        assert [g.outcome for g in run.guests] == ["up", "up"]
        run.guests[1].command("crash")
        assert lspci(run.guests[0]) and [g.outcome for g in run.guests] == ["up", "guest-crash"]


def test_pairs_of_guests_share_no_page_anywhere() -> None:
    """Every page of RAM that a processor or a device of one guest can touch is out of reach of the other's."""
    with split("q35-2g") as (machine, run, first, second):
        touch = {g.number: grants(g.cpu) + [r for d in run.domains if set(d.devices) & set(g.devices) for r in grants(d.runs)]
                 for g in (first, second)}
        ram = list(machine.description.ram_runs)
        shared = [p for a, b in combinations(touch.values(), 2) for p in overlap(overlap(a, b), ram)]
        assert shared == []
