"""DMAR_PASS_THROUGH on whole machines: the lab guest drives the units."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from passthrough_bench import GIB
from vtd_bench import BASE, GCMD, RTADDR, SRTP, TE

from hvcore import Config, Machine, Run
from hvcore.machine.memory import PAGE
from hvcore.sources import load
from hvcore.vmm.passthrough import CAP_HIDDEN, ECAP_HIDDEN

PASS = Config(VTD_TRANS=False, DMAR_PASS_THROUGH=True)


@pytest.fixture(scope="module")
def run(machine: Machine) -> Run:
    """q35-6g, its unit switched on by the guest."""
    run = machine.boot(PASS)
    assert run.guest.command("iommu on").splitlines()[-1].startswith("iommu: on, 7 functions, 3 levels, leaves of 2 MiB")
    return run


def test_the_guest_finds_the_table_below_the_core(machine: Machine) -> None:
    run = machine.boot(PASS)
    assert run.outcome == "up" and run.vmm.base == 0x77C00000
    assert "Installing a modified DMAR table at 0x77bfd000." in run.console.vmm
    assert re.search(r"^DMAR 0x0000000077bfd000 0000d0 ", run.guest.command("acpi"), re.MULTILINE)
    assert run.guest.command("iommu").splitlines()[:2] == [
        "DMAR 0x77bfd000, 208 bytes, host address width 39, flags 0x0", "RMRR 0x77c00000-0x7fbfffff"]
    assert max(e.end for e in run.e820.guest if e.usable and e.end < 4 * GIB) == 0x77BFD000
    assert not any(e.start < 0x7FC00000 and e.end > 0x77BFD000 for e in run.e820.guest)


def test_run_dmar_shows_what_the_guest_finds(run: Run) -> None:
    assert (run.dmar.address, run.dmar.hidden) == (0x77BFD000, False)
    assert [(s.structure, s.firmware, s.guest) for s in run.dmar] == [("DRHD", True, True), ("RMRR", False, True)]
    assert (run.dmar[1].start, run.dmar[1].end) == (0x77C00000, 0x7FC00000)
    assert run.dmar[1].oddities == ("not reserved in E820: [0x77c00000, 0x7fc00000) is in no entry",), "by the guest's map, not firmware's"
    assert {s.short for s in run.dmar[1].scopes} == {f"endpoint 00:{f}" for f in ("00.0", "01.0", "02.0", "03.0", "1f.0", "1f.2", "1f.3")}


@pytest.mark.needs("iasl")
@pytest.mark.parametrize("name", ["q35-2g-bridges", "server-64g"])
def test_iasl_reads_the_table(name: str, tmp_path: Path) -> None:
    with Machine.load(name) as m:
        run = m.boot(PASS)
        assert run.dmar.table is not None and run.dmar.address is not None
        (tmp_path / "dmar.dat").write_bytes(m.pc.memory.read(run.dmar.address, m.pc.memory.read32(run.dmar.address + 4)))
    done = subprocess.run(["iasl", "-d", "dmar.dat"], cwd=tmp_path, capture_output=True, text=True, check=True)
    text = (tmp_path / "dmar.dsl").read_text("latin-1")
    assert not re.search("incorrect checksum|invalid|unknown|error|warning", text + done.stdout + done.stderr, re.IGNORECASE)
    assert f"{run.vmm.base:016X}" in text


def test_the_guests_domain_works_and_holds(run: Run) -> None:
    assert run.units[0].translating
    assert [(d.did, d.levels, len(d.devices)) for d in run.domains] == [(1, 3, 7)]
    runs = run.domains[0].runs
    assert (0x77C00000, 0x7FC00000, "rw") in [(r.start, r.end, r.perm) for r in runs]
    assert "nvme nvme0: 1/0/0 default/read/poll queues" in run.guest.command("nvme probe")
    key = run.guest.command("dma r 0x77c09000 32")
    assert key.startswith("0000000077c09000  ") and key != run.guest.command("peek 0x77c09000 32"), "the RMRR means: devices reach the core"
    assert not run.faults
    assert run.guest.command("dma r 0xa0000000 8") == "dma: no data arrived"
    assert [(f.source, f.address, f.reason) for f in run.faults] == [(0x18, 0xA0000000, 6)]
    run.guest.command(f"poke {BASE + 0x22C:#x} 0x80000000")
    assert not run.faults, "cleared through the trap"
    run.guest.command("dma w 0xf0000 8")
    assert [(f.source, f.address, f.reason) for f in run.faults] == [(0x18, 0xF0000, 5)]
    assert run.outcome == "up"


def test_ignoring_the_rmrr_comes_to_the_same(machine: Machine, run: Run) -> None:
    honoured = [(r.start, r.end, r.perm, r.offset) for r in run.domains[0].runs]
    run.guest.command("iommu on norms")
    assert run.console.vmm.endswith("acpi_dmar_force_map: force map for 00:00.0\n")
    assert [(r.start, r.end, r.perm, r.offset) for r in run.domains[0].runs] == honoured
    assert run.guest.command("dma r 0x77c00000 8").startswith("0000000077c00000  ")
    assert run.guest.command("iommu off") == "iommu: off" and not run.units[0].translating


@pytest.mark.parametrize("name", ["gigabyte-b150m-16g", "server-64g", "hp-compaq-8000-elite-4g", "q35-2g-bridges", "laptop-16g"])
def test_other_machines(name: str) -> None:
    """Many units, units without superpages, bridges; the guest sees no hidden bit, the unit keeps its own."""
    with Machine.load(name) as m:
        run = m.boot(PASS)
        assert run.outcome == "up", run.why
        assert run.guest.command("iommu on norms").splitlines()[-1].startswith("iommu: on, ")
        assert all(u.translating for u in run.units)
        seen = [(int(a, 16), int(b, 16)) for a, b in re.findall(r"CAP (0x\w+), ECAP (0x\w+),", run.guest.command("iommu"))]
        assert seen == [(u.cap & ~CAP_HIDDEN, u.ecap & ~ECAP_HIDDEN) for u in run.units]
        base, end = run.vmm.base, run.vmm.base + run.vmm.size
        assert all(any(r.start <= base and end <= r.end and r.perm == "rw" and not r.offset for r in d.runs) for d in run.domains)
        assert "1/0/0 default/read/poll queues" in run.guest.command("nvme probe") or "nvme: no controller" in run.console.guest
        assert run.outcome == "up"


def test_the_mended_core_withholds_no_registers_from_a_guest_that_drives_them(machine: Machine) -> None:
    run = machine.boot(Config(PROFILE="mended", VTD_TRANS=False, DMAR_PASS_THROUGH=True))
    assert run.outcome == "up" and run.guest.command("iommu on").splitlines()[-1].startswith("iommu: on, ")


def test_memory_beyond_the_guests_tables_is_named_and_stays_unmapped() -> None:
    """32 GiB by 4 KiB pages take 16384 tables; the guest takes 8192."""
    description = load("q35-32g")
    units = tuple(replace(u, cap=u.cap & ~(0xF << 34)) for u in description.units)
    with Machine(replace(description, units=units)) as m:
        run = m.boot(PASS)
        text = run.guest.command("iommu on")
        start = re.search(r"iommu: no more tables after 8192, (0x[0-9a-f]+)-0x87fffffff is not mapped", text)
        assert start and "leaves of 4 KiB, 8192 tables" in text
        assert run.domains[0].runs.rights_at([int(start[1], 16) - PAGE, int(start[1], 16)]).tolist() == ["rw", "-"]
        assert "iommu: no more" not in text.replace(start[0], ""), "the RMRRs had come first"


def test_without_pass_through_there_is_no_table(machine: Machine) -> None:
    assert machine.boot(Config(VTD_TRANS=False)).guest.command("iommu on") == "iommu: no DMAR table"


def test_a_guest_that_uses_an_extended_root_table_brings_the_core_down() -> None:
    description = load("q35-6g")
    units = tuple(replace(u, ecap=u.ecap | 1 << 24) for u in description.units)
    with Machine(replace(description, units=units)) as m:
        run = m.boot(PASS)
        for offset, value, width in ((RTADDR, 0x2000800, 8), (GCMD, SRTP, 4), (GCMD, TE, 4)):
            run.guest.command(f"poke {BASE + offset:#x} {value:#x} {width}")
        assert run.outcome == "vmm-panic"
        assert run.why == "do_acpi_dmar_translate: Root Table Type is Extended Root Table!"
        assert run.console.vmm.endswith("panic: do_acpi_dmar_translate: Root Table Type is Extended Root Table!\n")
