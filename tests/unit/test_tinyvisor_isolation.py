"""Two guests on one machine: neither's devices, configuration space or processor reaches what is the other's."""

from itertools import combinations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tiny_bench import GIB, MACHINES, PAGE, PATTERN, block, clear_faults, dump_bytes, grants, lspci, overlap, region, split

from hvcore.guests import GuestView
from hvcore.spec.dma import Direction, DmaRequest, RemapFault
from hvcore.spec.pci import COMMAND, SECONDARY_BUS, parse_bdf

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


def test_pairs_of_guests_share_no_page_anywhere() -> None:
    """Every page of RAM that a processor or a device of one guest can touch is out of reach of the other's."""
    with split("q35-2g") as (machine, run, first, second):
        touch = {g.number: grants(g.cpu) + [r for d in run.domains if set(d.devices) & set(g.devices) for r in grants(d.runs)]
                 for g in (first, second)}
        ram = list(machine.description.ram_runs)
        shared = [p for a, b in combinations(touch.values(), 2) for p in overlap(overlap(a, b), ram)]
        assert shared == []
