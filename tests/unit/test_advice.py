"""Advice is followed, and helps."""

import pytest

from hvcore import Config, Machine
from hvcore.inspect.advice import advise


@pytest.mark.parametrize(("machine", "options", "outcome", "advised"), [
    ("nvme-desktop-16g", {}, "disk-lost", {"IOMMU_MAP_END": "ram"}),
    ("server-64g", {}, "disk-lost", {"IOMMU_MAP_END": "ram", "IOMMU_SUPERPAGES": True}),
    ("server-64g", {"IOMMU_MAP_END": "ram"}, "vmm-panic", {"IOMMU_SUPERPAGES": True}),
    ("server-64g", {"IOMMU_MAP_END": "e820"}, "vmm-panic", {"IOMMU_SUPERPAGES": True}),
    ("laptop-16g", {}, "vmm-panic", {"PROFILE": "mended"}),
])
def test_what_is_advised_brings_the_disk_back(machine, options, outcome, advised):
    with Machine.load(machine) as m:
        run = m.boot(Config(**options))
        advice = advise(run)
        assert run.outcome == outcome
        assert [a.options for a in advice] == [advised]
        assert m.reboot(**advice[0].options).outcome == "up"


def test_the_first_fault_names_device_address_and_reason():
    with Machine.load("nvme-desktop-16g") as m:
        run = m.boot()
        (advice,) = advise(run)
        assert f"{run.faults[0].address:#x}" in advice.what
        assert advice.what.startswith("01:00.0 (NVMe) was stopped")
        assert "end at 0x100000000" in advice.why
        assert "8,721 table pages" in advice.price
        heap = m.reboot(IOMMU_MAP_END="ram").vmm
        assert abs(heap.heap_pages_used - 8721) < 8721 / 20


def test_an_open_machine_is_told_what_is_open_and_closing_it_helps():
    with Machine.load("q35-2g") as m:
        (advice,) = advise(m.boot(Config(VTD_TRANS=False)))
        assert "the core's own at" in advice.why
        assert advice.options == {"VTD_TRANS": True}
        closed = m.reboot(**advice.options)
        assert closed.outcome == "up"
        assert not len(advise(closed))


def test_dma_into_the_core_needs_no_change_of_the_core():
    with Machine.load("q35-2g") as m:
        run = m.boot()
        run.guest.command(f"dma r {run.vmm.base + 0x9000:#x} 64")
        (advice,) = advise(run)
        assert "the core's own memory" in advice.why
        assert not advice.options


def test_a_storage_driver_in_its_own_hole_is_mended_by_the_profile():
    with Machine.load("q35-6g") as m:
        run = m.boot(Config(NVME_DRIVER=True))
        first = advise(run)[0]
        assert run.outcome == "vmm-panic"
        assert "no answer to Identify" in first.what
        assert first.options == {"PROFILE": "mended"}
        assert m.reboot(**first.options).outcome == "up"
