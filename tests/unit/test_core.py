"""The core's parts: its memory, the maps, domain 0, options, what happens at exits."""

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore import Config, Machine
from hvcore.errors import BadConfig, HvlabError
from hvcore.machine.memory import Memory
from hvcore.spec import vtd
from hvcore.spec.e820 import E820Entry
from hvcore.vmm.config import PROFILES, parse_settings
from hvcore.vmm.heap import Heap, Panic
from hvcore.vmm.iommu import address_width, map_domain
from hvcore.vmm.memmap import choose_region, guest_map

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096


# --- where the core goes

def region_by_trying(e820, size):
    """The highest 4 MiB-aligned start whose whole region lies in one available entry below 4 GiB."""
    for start in range(4 * GIB - size, 0, -4 * MIB):
        if any(e.type == 1 and e.start <= start and start + size <= e.end for e in e820):
            return start
    return None


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 1 << 18), st.sampled_from([1, 1, 1, 2, 3])), max_size=12),
       st.sampled_from([8, 128, 512]))
def test_region_is_the_highest_that_fits(pieces, mib):
    e820, at = [], 0
    for gap, pages, kind in pieces:
        start = at + gap % 4096 * PAGE
        at = start + pages * PAGE
        e820.append(E820Entry(start, at, kind))
    expected = region_by_trying(e820, mib * MIB)
    if expected is None:
        with pytest.raises(Panic, match="Out of memory"):
            choose_region(e820, mib * MIB)
    else:
        base = choose_region(e820, mib * MIB)
        assert base == expected
        shown = guest_map(e820, base)
        assert not any(e.start < base + mib * MIB and base < e.end for e in shown if e.type == 1)
        assert [e for e in shown if e.end <= base and e.type == 1] == \
            [dataclasses.replace(e, end=min(e.end, base)) for e in e820 if e.type == 1 and e.start < base]


def test_an_available_entry_inside_the_old_one_becomes_reserved():
    holder, inner = E820Entry(0x100000, 0x40000000, 1), E820Entry(0x3F000000, 0x3F800000, 1)
    base = choose_region([holder, inner], 128 * MIB)
    assert guest_map([holder, inner], base) == (E820Entry(0x100000, base, 1), E820Entry(0x3F000000, 0x3F800000, 2))


# --- domain 0 against a second, plain implementation

class PlainTables:
    """Page by page: a walk from the root for each frame, missing tables taken one at a time."""

    def __init__(self, first, pages):
        self.words, self.next, self.end = {}, first, first + pages * PAGE
        self.root = self.take()

    def take(self):
        if self.next >= self.end:
            raise Panic("mm_page_alloc(0): Out of memory")
        self.next += PAGE
        return self.next - PAGE

    def map(self, address, value, levels, leaf=1):
        table = self.root
        for level in range(levels, leaf, -1):
            slot = table + 8 * (address >> 12 + 9 * (level - 1) & 511)
            if slot not in self.words:
                self.words[slot] = self.take() | 3
            table = self.words[slot] & ~0xFFF
        self.words[table + 8 * (address >> 12 + 9 * (leaf - 1) & 511)] = value

    def domain(self, levels, end, hole, superpages):
        address = 0
        while address < end:
            if superpages and address >= 4 * GIB:
                self.map(address, address | 3 | vtd.SP, levels, 2)
                address += 2 * MIB
            else:
                self.map(address, address | (0 if hole[0] <= address < hole[1] else 3), levels)
                address += PAGE


@settings(max_examples=25, deadline=None)
@given(levels=st.sampled_from([3, 4]), pages=st.integers(1, 600), end=st.integers(1, 1200 * 512), hole=st.integers(0, 200),
       size=st.integers(1, 64), superpages=st.booleans(), noise=st.booleans())
def test_tables_are_those_of_a_walk_for_every_page(levels, pages, end, hole, size, superpages, noise):
    end, hole = end * PAGE, (hole * 4 * MIB, (hole + size) * 4 * MIB)
    memory = Memory([(0, 16 * MIB)])
    if noise:
        memory.u64(PAGE, pages * 512)[:] = 0xDEAD_BEEF_DEAD_BEEF
    plain = PlainTables(PAGE, pages) if pages else None
    try:
        plain.domain(levels, end, hole, superpages)
        root = map_domain(memory, Heap(memory, PAGE, PAGE * (1 + pages), 0), levels, end, hole, superpages)
        assert root == plain.root
    except Panic:
        with pytest.raises(Panic, match="Out of memory"):
            map_domain(memory, Heap(memory, PAGE, PAGE * (1 + pages), 0), levels, end, hole, superpages)
    used = (plain.next - PAGE) // 8
    expected = np.zeros(used, np.uint64)
    for address, word in plain.words.items():
        expected[(address - PAGE) // 8] = word
    assert np.array_equal(memory.u64(PAGE, used), expected)


def test_superpages_above_4_gib():
    memory = Memory([(0, 32 * MIB)])
    plain = PlainTables(PAGE, 3000)
    plain.domain(3, 5 * GIB + 4 * MIB, (GIB, GIB + 128 * MIB), True)
    map_domain(memory, Heap(memory, PAGE, 16 * MIB, 0), 3, 5 * GIB + 4 * MIB, (GIB, GIB + 128 * MIB), True)
    for address, word in plain.words.items():
        assert memory.read64(address) == word


def test_heap_is_exhausted_one_page_after_the_last():
    memory = Memory([(0, MIB)])
    heap = Heap(memory, 4 * PAGE, 6 * PAGE, 0)
    assert [heap.alloc_page(), heap.alloc_page()] == [4 * PAGE, 5 * PAGE]
    assert (heap.used, heap.total, heap.free) == (2, 2, 0)
    with pytest.raises(Panic, match=r"mm_page_alloc\(0\): Out of memory"):
        heap.alloc_page()


# --- widths

class Lines(list):
    def print(self, text, end="\n"):
        self.append(text)


CLIENT, SERVER, OLD = 0xD2008C40660462, 0x8D2078C106F0466, 0xC9008020660262


def test_width_of_the_last_unit():
    assert address_width([CLIENT, OLD], True, Lines()) == 3
    assert address_width([SERVER], True, Lines()) == 4
    lines = Lines()
    with pytest.raises(Panic, match="null pointer"):
        address_width([OLD, CLIENT], True, lines)
    assert lines == ["Unsupported AGAW value."]


def test_mended_width_is_one_that_all_units_have():
    assert address_width([CLIENT], False, Lines()) == 4
    assert address_width([OLD], False, Lines()) == 3
    assert address_width([CLIENT, SERVER], False, Lines()) == 4
    with pytest.raises(Panic, match="no table width in common"):
        address_width([OLD, CLIENT], False, Lines())


# --- options

def test_options_from_words():
    config = Config(**parse_settings(["VTD_TRANS=n", "IOMMU_MAP_END=ram", "VMM_SIZE_MIB=512", "QUIRKS=none"]))
    assert (False, "ram", 512, frozenset()) == (config.VTD_TRANS, config.IOMMU_MAP_END, config.VMM_SIZE_MIB, config.QUIRKS)


@pytest.mark.parametrize("words", [["VTD_TRANS"], ["VTD_TRANS=maybe"], ["VTD_TRAN=y"], ["IOMMU_MAP_END=8gib"], ["VMM_SIZE_MIB=127"],
                                   ["VMM_SIZE_MIB=0"], ["VMM_SIZE_MIB=-128"], ["QUIRKS=NO_SUCH"], ["PROFILE=xen"], ["=y"]])
def test_a_wrong_option_is_one_sentence(words):
    with pytest.raises(BadConfig) as error:
        Config(**parse_settings(words))
    assert "\n" not in str(error.value)


def test_a_profile_brings_its_own_values_and_options_come_first():
    mended = Config(PROFILE="mended", IOMMU_MAP_END="4gib")
    assert (mended.IOMMU_MAP_END, mended.HIDE_VTD_REGS) == ("4gib", True)
    assert PROFILES["mended"]["IOMMU_MAP_END"] == Config().change(PROFILE="mended").IOMMU_MAP_END
    assert Config(HIDE_VTD_REGS=True).change(VTD_TRANS=False).HIDE_VTD_REGS


# --- what happens at exits

@pytest.fixture(scope="module", params=[False, True], ids=["exported", "public"])
def machine(request):
    """Both ways of finishing an exit."""
    from hvcore.sources import load
    with Machine(load("q35-2g"), public_only=request.param) as m:
        yield m


def test_boots_both_ways(machine):
    run = machine.boot(Config(VTD_TRANS=True))
    assert run.outcome == "up"
    assert "64 blocks read, checked" in run.console.guest


def test_exceptions_reach_the_guest(machine):
    run = machine.boot(Config(VTD_TRANS=True))
    assert run.guest.command("peek 0xfffffffffffff000") == "peek: #PF at 0xfffffffffffff000"
    assert run.guest.command("peek 0x800000000000000") == "peek: #GP at 0x800000000000000"
    assert run.guest.command("vmmcall 0") == "vmmcall: 0x1"
    assert run.guest.command("time").startswith("time: ")


def test_writes_to_the_core_are_lost(machine):
    run = machine.boot(Config(VTD_TRANS=True))
    base = run.vmm.base
    before = machine.pc.memory.read(base, 1 << 16)
    for offset in (0, 0x1000, 0x2000, 0x5FF8):
        run.guest.command(f"poke {base + offset:#x} 0xffffffffffffffff 8")
    assert run.guest.command(f"peek {base:#x} 16").count(" 00") == 16
    after = machine.pc.memory.read(base, 1 << 16)
    changed = {i & ~0xFFF for i in range(1 << 16) if before[i] != after[i]}
    assert changed <= {0x1000, 0x2000, 0x3000, 0x4000, 0x5000}
    assert after[:0x1000] == before[:0x1000]
    assert after[0x6000:] == before[0x6000:]
    assert run.outcome == "up"


def test_a_dead_guest_is_told(machine):
    run = machine.boot(Config(VTD_TRANS=True))
    assert "#UD" in run.guest.command("crash")
    assert run.outcome == "guest-crash"
    assert "interrupts off" in run.why
    with pytest.raises(HvlabError, match="no guest"):
        run.guest.command("help")


@pytest.mark.parametrize(("code", "why"), [
    ("0f0b", "triple fault: the guest's descriptor tables cannot take exception 6 of RIP 0x1000000"), ("31c9f7f1", "exception 0"),
    ("b9170101c00f32", "exception 13"), ("48b8ffffffffffffffffffe0", "exception 14"), ("0f01d8", "exception 6"),
    ("cd21", "exception 33"), ("faf4", "interrupts off"), ("fbf4", "will not come"), ("b00666baf90ceef4", "reset the machine")])
def test_a_guest_that_dies_at_once(code, why):
    """Machine code for a guest: UD2, a division by 0, RDMSR of VM_HSAVE_PA, a jump beyond the canonical, VMRUN, INT 21h, halts, a reset."""
    from hvcore.spec.linuxboot import Elf, Segment
    guest = Elf(0x1000000, (Segment(0x1000000, bytes.fromhex(code), 4096),))
    with Machine.load("q35-2g") as m:
        run = m.boot(Config(VTD_TRANS=True), guest=guest)
        assert run.outcome == "guest-crash"
        assert why in run.why
        assert len(run.domains) == 1


def test_a_reset_boots_again(machine):
    run = machine.boot(Config(VTD_TRANS=True))
    run.guest.command("reboot")
    assert not run.live
    assert machine.run.number == run.number + 1
    assert machine.run.outcome == "up"
    assert run.outcome == "up"


def test_consoles_are_the_same_every_time(machine):
    first = machine.boot(Config(VTD_TRANS=True)).console
    assert machine.boot(Config(VTD_TRANS=True)).console == first


@pytest.mark.parametrize("seed", range(12))
def test_noise_in_the_cores_memory_ends_in_an_outcome(seed):
    """Whatever a device leaves in the core's pages, the run ends as something and the machine boots again."""
    noise = random.Random(seed)
    with Machine.load("q35-2g") as m:
        run = m.boot(Config(VTD_TRANS=False))
        page = run.vmm.base + 0x1000 * noise.choice([0, 1, 2, 3, 4, 5, 6, 8, 16, 17, 18])
        m.pc.memory.write(page, noise.randbytes(4096))
        if run.outcome == "up":
            run.guest.command("help")
        assert run.outcome in ("up", "guest-crash", "vmm-panic", "vmm-taken-over")
        assert m.boot(Config(VTD_TRANS=True)).outcome == "up"


@pytest.mark.parametrize(("present", "outcome"), [(1, "vmm-panic"), (0, "up")])
def test_interrupt_remapping_that_firmware_left_on_is_a_conflict(present, outcome):
    """With an entry that somebody waits for; an empty table is nobody's."""
    def firmware(pc):
        pc.memory.write64(0x50000 + 16 * 255, present)
        base = pc.units[0].base
        for offset, width, value in ((0xB8, 8, 0x50007), (0x18, 4, 1 << 24), (0x18, 4, 1 << 25)):
            pc.bus.write(base + offset, width, value)

    with Machine.load("q35-6g-intremap") as machine:
        run = machine.boot(Config(IOMMU_MAP_END="ram"), early=firmware)
        assert run.outcome == outcome
        assert ("Conflict with VTD_TRANS" in run.console.vmm) == bool(present)
        assert machine.boot(Config(VTD_TRANS=False), early=firmware).outcome == "up"
