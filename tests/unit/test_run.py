"""A run: read anew while it is the machine's current one, kept when the machine boots again, shown in every form."""

from dataclasses import replace

import pytest

from hvcore import Config, Machine
from hvcore.errors import HvlabError

PARTS = ("e820", "units", "domains", "permissions", "cpu", "faults", "console")
VMM = 0x77C00000


def test_a_live_run_shows_what_the_guest_does_now(machine):
    run = machine.boot(Config(VTD_TRANS=True, IOMMU_MAP_END="ram"))
    assert len(run.faults) == 0
    run.guest.command(f"dma r {VMM:#x} 16")
    fault, = run.faults
    assert (fault.address, fault.reason) == (VMM, 6)
    assert "reason 6" not in run.why


def test_tables_are_read_not_remembered(machine):
    """An entry that changes in memory changes what is shown, whoever wrote it."""
    run = machine.boot(Config(VTD_TRANS=True))
    domain, = run.domains
    memory = machine.pc.memory
    second = memory.read64(domain.root) & ~0xFFF
    first = memory.read64(second) & ~0xFFF
    memory.write64(first + 8 * 5, 0)
    runs = [(r.start, r.end, r.perm) for r in run.domains[0].runs][:2]
    assert runs == [(0, 0x5000, "rw"), (0x6000, VMM, "rw")]


def test_a_run_is_kept_as_it_stood(machine):
    first = machine.boot(Config(VTD_TRANS=True))
    before = first.to_json()
    second = machine.reboot(VTD_TRANS=False)
    assert (first.live, second.live) == (False, True)
    assert first.to_json() == before
    assert second.outcome == "up"
    assert len(second.domains) == 0
    changed = {(c.part, c.item) for c in first.diff(second)}
    assert ("option", "VTD_TRANS") in changed
    assert ("outcome", "") in changed


@pytest.mark.parametrize("use", [lambda r: r.guest, lambda r: r.lens(0x1000), lambda r: r.explain(r.faults[0]), lambda r: r.dump("x")])
def test_what_needs_the_machine_says_that_it_is_gone(machine, use):
    old = machine.boot(Config(VTD_TRANS=True))
    machine.boot(Config(VTD_TRANS=True))
    with pytest.raises(HvlabError, match="is over"):
        use(old)


@pytest.mark.parametrize("name", PARTS)
def test_every_part_has_text_html_and_a_frame(machine, name):
    part = getattr(machine.boot(Config(VTD_TRANS=True)), name)
    assert len(str(part).splitlines()) > 1
    assert part._repr_html_().count("<") > 4
    assert len(part.frame) == (len(part) if name != "console" else len((part.vmm + part.guest).splitlines()))


def test_lens_and_explanation_have_frames_of_their_parts(machine):
    run = machine.boot(Config(VTD_TRANS=True))
    lens = machine.lens(VMM + 0x9000)
    assert len(lens.frame) == len(lens.facts)
    assert "secret" in str(lens)
    explanation = machine.explain(run.faults[0])
    assert list(explanation.frame["what"]) == [s.what for s in explanation.steps]
    assert explanation.reason == 6


def test_phases_are_told_and_timed(machine):
    told = []
    run = machine.boot(Config(VTD_TRANS=True), progress=told.append)
    assert told[0] == "firmware"
    assert "iommu tables" in told
    assert set(run.timings) == {*told, "total"}
    assert run.timings["total"] == pytest.approx(sum(run.timings[p] for p in told))


def test_the_cpu_sees_a_blank_page_in_place_of_the_core(machine):
    run = machine.boot(Config(VTD_TRANS=True))
    hidden = [r for r in run.cpu if r.start < VMM + (128 << 20) and r.end > VMM]
    assert {r.start + r.offset for r in hidden} == {VMM + 0x8000}
    assert {r.perm for r in hidden} == {"rx"}
    assert machine.pc.memory.read(VMM + 0x8000, 4096) == bytes(4096)


def test_what_is_no_fault_is_told_in_a_sentence(machine):
    run = machine.boot()
    with pytest.raises(HvlabError, match=r"'x' is no fault of this machine: give one of run\.faults"):
        run.explain("x")
    with pytest.raises(HvlabError, match="is no fault of this machine"):
        run.explain(replace(run.faults[0], unit=0xFED00000))


def test_a_closed_machine_keeps_its_last_run():
    with Machine.load("q35-2g") as m:
        run = m.boot(Config(VTD_TRANS=True))
    assert run.outcome == "up"
    assert run.domains[0].table_pages == 2053
    with pytest.raises(HvlabError):
        run.guest.command("help")
