"""What was measured on the real BitVisor (built with VTD_TRANS, run on QEMU's VT-d) comes out of our core, too.

Not its e1000 driver, which the core has not.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest

from hvcore import Config, Machine
from hvcore.inspect.domains import decode, read_contexts
from hvcore.inspect.dump import load_npz
from hvcore.spec.pci import format_bdf

GIB = 1 << 30
VMM = 0x77C00000, 0x7FC00000
NVME, EDU = 0x10, 0x18
GCMD = 0xFED90018
SIX_FUNCTIONS = {"00:00.0", "00:01.0", "00:02.0", "00:1f.0", "00:1f.2", "00:1f.3"}


@pytest.fixture(scope="module")
def six():
    """The 6 GiB machine."""
    with Machine.load("q35-6g") as machine:
        yield machine


def boot(name, **options):
    with Machine.load(name) as machine:
        return machine.boot(Config(**options))


def runs(domain):
    return [(r.start, r.end, r.perm) for r in domain.runs]


def test_memory_of_the_core_and_the_guests_map(six):
    run = six.boot(Config(VTD_TRANS=True))
    assert (run.vmm.base, run.vmm.base + run.vmm.size) == VMM
    low = [(e.start, e.end) for e in run.e820.guest if e.type == 1 and e.start >= 1 << 20]
    assert low == [(0x100000, 0x77C00000), (4 * GIB, 8 * GIB)]
    assert not any(e.start < VMM[1] and VMM[0] < e.end for e in run.e820.guest)
    unchanged = [e for e in run.e820.firmware if e.start != 0x100000]
    assert [e for e in run.e820.guest if e.start != 0x100000] == unchanged


def test_registers_after_set_up(six):
    run = six.boot(Config(VTD_TRANS=True))
    unit, = run.units
    assert (unit.cap, unit.ecap, unit.gsts) == (0x00D2008C22260206, 0xF42, 0xC0000000)
    hardware = six.pc.units[0]
    assert hardware.peek(0x28, 8) == 0x2800000000000000
    assert hardware.peek(0x38, 4) == 0
    assert VMM[0] <= unit.rtaddr < VMM[1]


def test_contexts_and_tables_of_domain_0(six):
    domain, = six.boot(Config(VTD_TRANS=True)).domains
    assert SIX_FUNCTIONS | {"00:03.0"} == set(map(format_bdf, domain.devices))
    assert (domain.did, domain.levels, domain.translation) == (0, 3, "translate")
    assert runs(domain) == [(0, VMM[0], "rw"), (*VMM, "-"), (VMM[1], 4 * GIB, "rw")]
    assert all(r.offset == 0 for r in domain.runs)
    assert domain.table_pages == 2053
    assert domain.leaves == {"4K": 1 << 20, "2M": 0, "1G": 0}
    assert [(b - a) // 4096 for a, b, _ in runs(domain)] == [490496, 32768, 525312]


def test_every_page_lies_as_in_the_measured_tables(six):
    """Order of allocation: root, then depth first; the root table of the unit and its context table come last."""
    run = six.boot(Config(VTD_TRANS=True))
    domain, = run.domains
    memory = six.pc.memory
    top = memory.u64(domain.root, 512)
    second = [int(e) & ~0xFFF for e in top[:4]]
    assert second[0] == domain.root + 0x1000
    assert [b - a for a, b in itertools.pairwise(second)] == [513 * 4096] * 3
    assert int(memory.u64(second[0], 1)[0]) & ~0xFFF == second[0] + 0x1000
    assert run.units[0].rtaddr == domain.root + 2053 * 4096
    hole = memory.u64(second[1], 512)[(VMM[0] >> 21) & 511]
    assert memory.u64(int(hole) & ~0xFFF, 1)[0] == VMM[0]


@pytest.mark.parametrize(("name", "options", "outcome"), [
    ("q35-6g", {"VTD_TRANS": True}, "disk-lost"), ("q35-2g", {"VTD_TRANS": True}, "up"),
    ("q35-6g", {"VTD_TRANS": False}, "up"), ("q35-6g", {"VTD_TRANS": True, "IOMMU_MAP_END": "ram"}, "up")])
def test_what_the_guest_then_meets(name, options, outcome):
    assert boot(name, **options).outcome == outcome


def test_the_guests_words_and_the_record(six):
    run = six.boot(Config(VTD_TRANS=True))
    lines = [line.partition("] ")[2] for line in run.console.guest.splitlines() if "nvme" in line]
    assert lines == ["nvme nvme0: pci function 0000:00:02.0", "nvme nvme0: I/O 0 QID 0 timeout, disable controller",
                     "nvme nvme0: Identify Controller failed (-4)", "nvme nvme0: Removing after probe failure status: -5"]
    stamps = [float(line[1:13]) for line in run.console.guest.splitlines() if "nvme nvme0" in line]
    assert 60 <= stamps[1] - stamps[0] < 61
    fault, = run.faults
    assert (fault.source, fault.access, fault.reason) == (NVME, "read", 6)
    registers = next(w for w in six.pc.bus.windows if w.name.startswith("nvme") or "00:02.0" in w.name).device
    assert fault.address == registers.mmio_read(0x28, 8) >= 4 * GIB
    assert registers.mmio_read(0x1C, 4) == 2
    assert six.pc.units[0].peek(0x34, 4) == 2
    assert "panic" not in run.console.vmm


@pytest.mark.parametrize(("name", "options", "outcome", "pages"), [
    ("q35-6g", {"IOMMU_MAP_END": "e820"}, "vmm-panic", None),
    ("q35-6g", {"IOMMU_MAP_END": "ram"}, "up", 4105),
    ("q35-32g", {"IOMMU_MAP_END": "ram"}, "up", None), ("q35-48g", {"IOMMU_MAP_END": "ram"}, "up", None),
    ("q35-64g", {"IOMMU_MAP_END": "ram"}, "vmm-panic", None),
    ("q35-6g", {"IOMMU_MAP_END": "ram", "IOMMU_SUPERPAGES": True}, "up", 2057),
    ("q35-64g", {"IOMMU_MAP_END": "ram", "IOMMU_SUPERPAGES": True}, "up", None)])
def test_the_mends(name, options, outcome, pages):
    run = boot(name, **options)
    assert run.outcome == outcome
    if outcome == "vmm-panic":
        assert run.why == "mm_page_alloc(0): Out of memory"
        assert "mm_page_alloc(0): Out of memory" in run.console.vmm
        assert run.vmm.heap_pages_used == run.vmm.heap_pages_total
    if pages:
        assert run.domains[0].table_pages == pages
        assert run.domains[0].runs[-1].end == 8 * GIB


# --- does it protect?

def blocked(run, command):
    return "no data arrived" in run.guest.command(command)


def test_the_hole_is_exact_to_the_page(six):
    run = six.boot(Config(VTD_TRANS=True, IOMMU_MAP_END="ram"))
    assert blocked(run, "dma r 0x7fbff000 16")
    assert blocked(run, "dma r 0x77c00000 16")
    assert not blocked(run, "dma r 0x7fc00000 16")
    assert not blocked(run, "dma r 0x77bff000 16")
    fault = run.faults[0]
    assert (fault.source, fault.access, fault.reason, fault.address) == (EDU, "read", 6, 0x7FBFF000)


def test_a_write_into_the_hole_is_reason_5_and_changes_nothing(six):
    run = six.boot(Config(VTD_TRANS=True, IOMMU_MAP_END="ram"))
    before = six.pc.memory.read(VMM[0], 4096)
    run.guest.command(f"dma w {VMM[0]:#x} 4096")
    assert six.pc.memory.read(VMM[0], 4096) == before
    assert (run.faults[0].access, run.faults[0].reason) == ("write", 5)


def test_without_it_a_device_reads_the_core_and_the_cpu_reads_zero(six):
    run = six.boot(Config(VTD_TRANS=False))
    stub = six.pc.memory.read(VMM[0], 16).hex(" ")
    assert stub[:23] in run.guest.command(f"dma r {VMM[0]:#x} 16")
    zeros = run.guest.command(f"peek {VMM[0]:#x} 16")
    assert zeros.count("00") >= 16
    assert stub[:23] not in zeros


def test_the_guest_can_switch_it_off(six):
    run = six.boot(Config(VTD_TRANS=True))
    assert blocked(run, f"dma r {VMM[0]:#x} 16")
    run.guest.command(f"poke {GCMD:#x} 0")
    assert six.pc.units[0].peek(0x1C, 4) & 0x80000000 == 0
    assert not blocked(run, f"dma r {VMM[0]:#x} 16")
    assert "read, checked" in run.guest.command("nvme probe")


def test_hidden_registers_cannot_be_reached(six):
    run = six.boot(Config(VTD_TRANS=True, HIDE_VTD_REGS=True))
    run.guest.command(f"poke {GCMD:#x} 0")
    assert six.pc.units[0].peek(0x1C, 4) == 0xC0000000
    assert blocked(run, f"dma r {VMM[0]:#x} 16")
    assert run.outcome == "disk-lost"


def test_its_own_nvme_driver_does_not_work_with_it(six):
    """The shadow queue lies in the hole: reason 6, then a panic.  Without VTD_TRANS it works."""
    run = six.boot(Config(VTD_TRANS=True, NVME_DRIVER=True))
    assert run.outcome == "vmm-panic"
    assert "panic: nvme: 00:02.0: no answer to Identify Namespace, CSTS=0x2" in run.console.vmm
    fault, = run.faults
    assert (fault.source, fault.access, fault.reason) == (NVME, "read", 6)
    controller = next(w for w in six.pc.bus.windows if "00:02.0" in w.name).device
    assert fault.address == controller.mmio_read(0x28, 8)
    assert VMM[0] <= fault.address < VMM[1]
    assert controller.mmio_read(0x1C, 4) == 2
    assert six.boot(Config(VTD_TRANS=False, NVME_DRIVER=True)).outcome == "up"


def test_a_device_that_no_unit_covers_is_a_null_pointer():
    """A real DMAR that names functions one by one, without INCLUDE_PCI_ALL: one more function than it names."""
    import dataclasses

    from hvcore.machine.description import PciDescription
    from hvcore.sources import load
    from hvcore.spec import dmar

    description = load("q35-6g")
    table = dmar.parse(description.dmar)
    scopes = tuple(dmar.Scope(1, 0, 0, ((f.source >> 3 & 31, f.source & 7),)) for f in description.pci)
    drhd = dataclasses.replace(table.drhds[0], flags=0, scopes=scopes)
    stranger = PciDescription(0x28, 0x8086, 0x10D3, 0x020000)
    description = dataclasses.replace(description, dmar=dmar.build(dataclasses.replace(table, structures=(drhd,))),
                                      pci=(*description.pci, stranger))
    with Machine(description) as machine:
        run = machine.boot(Config(VTD_TRANS=True))
        assert run.outcome == "vmm-panic"
        assert "0x20" in run.why
        assert "00:05.0" in run.why
        mended = machine.boot(Config(PROFILE="mended"))
        assert mended.outcome == "up"
        assert "no unit covers 00:05.0" in mended.console.vmm
        assert 0x28 not in mended.domains[0].devices


def test_the_public_source_does_not_start(six):
    quirks = frozenset({"ZAPPED_SIGNATURE_ASSERT", "AGAW_FROM_LAST_UNIT", "SCOPE_BY_EXACT_FUNCTION"})
    run = six.boot(Config(VTD_TRANS=True, QUIRKS=quirks))
    assert run.outcome == "vmm-panic"
    assert run.why == "Assertion failed!(r) function acpi_dmar_init file core/x86/acpi_dmar.c line 1039"
    assert six.reboot(VTD_TRANS=False).outcome == "up"


def test_the_guest_sees_no_dmar(six):
    run = six.boot(Config(VTD_TRANS=True))
    answer = run.guest.command("acpi")
    assert "APIC" in answer
    assert "DMAR" not in answer


def leaves(reader, root):
    """Every word of the level-1 tables under a three-level root, by IOVA."""
    def below(addresses):
        words, readable = reader.tables(addresses & np.uint64(0x000F_FFFF_FFFF_F000))
        assert readable.all()
        return words.reshape(-1)

    top = below(np.array([root], np.uint64))
    return below(below(top[top != 0]))


def test_every_entry_is_the_real_ones(six):
    """The leaf words of all 2^20 pages, and the context entries but for the table's address, bit for bit."""
    real = load_npz(Path(__file__).parents[1] / "data" / "bitvisor" / "tables.npz")
    theirs, = decode(real, 0x79BE0000)
    ours, = six.boot(Config(VTD_TRANS=True)).domains
    mine = leaves(six.pc.memory, ours.root)
    assert mine.shape == (1 << 20,)
    assert np.array_equal(mine, leaves(real, theirs.root))
    contexts = [read_contexts(reader, root) for reader, root in ((six.pc.memory, six.run.units[0].rtaddr), (real, 0x79BE0000))]
    words = [{c.source: (c.low & 0xFFF, c.high) for c in side if c.source != EDU} for side in contexts]
    assert words[0] == words[1]
