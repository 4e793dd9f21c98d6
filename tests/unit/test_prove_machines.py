"""Proofs: whole machines, what of them does not hold, and how it is shown."""

import time

from proof_bench import (
    CPU_READS,
    CPU_REGISTERS,
    CPU_TABLES_R,
    CPU_TABLES_W,
    CPU_WRITES,
    FORGES,
    MIB,
    PAGE,
    READS,
    TABLES_READ,
    TABLES_WRITTEN,
    WRITES,
)

from hvcore import Config, Machine, inspect
from hvcore.inspect.explanation import Explanation
from hvcore.inspect.proof import Counterexample, Proof
from hvcore.inspect.walk import Walk, walk
from hvcore.spec.paging import NESTED
from hvcore.vmm.layout import Part

EDU = 0x0018


def verdicts(proof: Proof) -> set[int]:
    """The numbers of the claims that do not hold."""
    return {i for i, c in enumerate(proof.claims) if not c.holds}


def test_a_machine_that_does_not_translate_fails(machine):
    run = machine.boot(Config(VTD_TRANS=False))
    proof = inspect.prove(run)
    assert verdicts(proof) >= {WRITES, READS, TABLES_WRITTEN, TABLES_READ} and not proof.holds
    told = proof.claims[WRITES].counterexample
    assert (told.host, told.lies, told.unit) == (run.vmm.base, "the core's text", run.units[0].base)
    assert proof.claims[WRITES].pages == run.vmm.size // PAGE
    assert isinstance(told.walk, Explanation)
    port = machine.pc.fabric.port(told.source)
    assert port.read(told.address, 16).data == machine.pc.memory.read(run.vmm.base, 16)


def test_the_mended_core_is_out_of_reach(machine):
    run = machine.boot(Config(PROFILE="mended"))
    proof = run.proof
    assert not verdicts(proof) - {FORGES}      # this machine's unit remaps no interrupts
    assert proof.claim("registers of a unit that translates").holds
    assert "plugged in" in proof.note          # its DMAR names each function, and covers no other


def test_every_claim_holds_where_the_unit_remaps_interrupts_too():
    """And each fails by itself when what it rests on is taken away."""
    with Machine.load("q35-6g-intremap") as m:
        run = m.boot(Config(PROFILE="mended"))
        assert run.proof.holds, str(run.proof)
        m.pc.units[0].mmio_write(0x18, 4, 1 << 31)
        assert verdicts(run.proof) == {FORGES}
        assert passes_on(m, run.proof.claims[FORGES].counterexample)
        m.pc.units[0].mmio_write(0x18, 4, 0)
        assert verdicts(run.proof) >= {WRITES, READS, FORGES}


def passes_on(machine: Machine, told: Counterexample) -> bool:
    """Whether a device's message gets through to the processors."""
    before = len(machine.pc.messages)
    assert machine.pc.fabric.port(told.source).write(told.address, b"\x31\0\0\0").ok
    return len(machine.pc.messages) == before + 1


def test_registers_that_the_guest_reaches_are_a_hole_for_they_switch_translation_off(machine):
    run = machine.boot(Config(PROFILE="mended", HIDE_VTD_REGS=False))
    told = run.proof.claims[CPU_REGISTERS].counterexample
    assert told.host == run.units[0].base and isinstance(told.walk, Walk) and "w" in told.rights
    assert WRITES not in verdicts(run.proof)
    run.guest.command(f"poke {run.units[0].base + 0x18:#x} 0x0")
    assert not run.units[0].translating
    assert WRITES in verdicts(run.proof)


def test_one_leaf_that_grants_a_page_of_the_core_is_found(machine):
    run = machine.boot(Config(PROFILE="mended"))
    domain, memory = run.domains[0], machine.pc.memory
    wanted = run.vmm.base + Part.SECRET
    steps = run.what_if(0x0018, wanted).steps
    memory.write64(next(s.address for s in steps if s.what.startswith("level 1")), wanted | 1)
    proof = run.proof
    assert verdicts(proof) - {FORGES} == {READS}
    told = proof.claims[READS].counterexample
    assert (told.host, told.address, told.rights, told.lies) == (wanted, wanted, "r", "the core's secret")
    assert proof.claims[READS].pages == 1
    assert told.source in domain.devices and told.walk.steps[-2].raw == (wanted | 1,)


def test_one_nested_entry_that_grants_a_table_is_found(machine):
    run = machine.boot(Config(PROFILE="mended"))
    memory, base, root = machine.pc.memory, run.vmm.base, run.domains[0].root
    hidden = walk(memory, NESTED, machine.core.nested_root(), 4, base + 0x5000)
    memory.write64(hidden.steps[-1].entry, root | 7)
    proof = run.proof
    assert verdicts(proof) - {FORGES} == {CPU_WRITES, CPU_READS, CPU_TABLES_W, CPU_TABLES_R}
    told = proof.claims[CPU_TABLES_W].counterexample
    assert (told.host, told.walk.steps[-1].raw) == (root, root | 7)
    assert told.address % (2 * MIB) == (base + 0x5000) % (2 * MIB)      # one table serves every 2 MiB of the region
    assert told.lies.startswith("second-level tables")


def test_a_second_guest_is_held_to_the_same_claims(machine):
    """Its own nested tables are walked, and are tables that nobody may reach."""
    run = machine.boot(Config(PROFILE="mended", TINYVISOR=True))
    memory, second = machine.pc.memory, machine.core.tiny.guest
    assert not verdicts(run.proof) - {FORGES}
    root = memory.read64(second.base + Part.VMCB + 0xB0)
    leaf = walk(memory, NESTED, root, 4, 0).steps[-1]
    assert leaf.level == 2
    before, _ = memory.read64(leaf.entry), memory.write64(leaf.entry, run.vmm.base | 0x87)
    claim = run.proof.claims[CPU_WRITES]
    assert (claim.counterexample.who, claim.counterexample.host, claim.counterexample.address) == ("guest 2's processor", run.vmm.base, 0)
    assert claim.pages == 512 and not run.proof.claims[CPU_READS].holds
    memory.write64(leaf.entry, before)
    granted = next(s.address for s in run.what_if(run.domains[0].devices[0], root).steps if s.what.startswith("level 1"))
    memory.write64(granted, root | 2)
    told = run.proof.claims[TABLES_WRITTEN].counterexample
    assert (told.host, told.lies) == (root, "guest 2's nested tables")


def test_what_the_core_shares_with_its_own_drive_is_the_drive_s_alone(machine):
    run = machine.boot(Config(PROFILE="mended", NVME_DRIVER=True))
    memory, (start, end), drive = machine.pc.memory, machine.core.storage.shadow, machine.core.storage.source
    assert not verdicts(run.proof) - {FORGES}
    assert f"{(end - start) // PAGE} pages" in run.proof.claims[WRITES].why
    assert machine.pc.fabric.port(drive).read(start, 8).ok
    leaf = next(s.address for s in run.what_if(EDU, start).steps if s.what.startswith("level 1"))
    memory.write64(leaf, start | 3)                     # domain 0 reaches a page of the drive's
    claim = run.proof.claims[WRITES]
    assert (claim.pages, claim.counterexample.host) == (1, start) and claim.counterexample.source != drive
    memory.write64(leaf, 0)
    leaf = next(s.address for s in run.what_if(drive, start).steps if s.what.startswith("level 1"))
    memory.write64(leaf, run.vmm.base + Part.SECRET | 3)      # the drive reaches more than its own
    claim = run.proof.claims[READS]
    assert (claim.pages, claim.counterexample.source, claim.counterexample.lies) == (1, drive, "the core's secret")


def test_a_machine_before_its_core_has_memory():
    with Machine.load("q35-2g") as m:
        m.boot(Config(VTD_TRANS=True, VMM_SIZE_MIB=3072))
        proof = m.run.proof
        assert m.run.vmm.base is None
        assert not proof.holds and "nothing to protect" in proof.claims[0].why


def test_a_large_machine_is_proved_fast():
    """64 GiB in 4 KiB pages."""
    with Machine.load("q35-64g") as m:
        run = m.boot(Config(IOMMU_MAP_END="ram", VMM_SIZE_MIB=256))
        assert run.domains[0].leaves["4K"] > 60 << 18
        since = time.perf_counter()
        proof = run.proof
        assert time.perf_counter() - since < 2
        assert WRITES not in verdicts(proof)


def test_how_it_is_shown(machine):
    run = machine.boot(Config(VTD_TRANS=False))
    proof = run.proof
    assert str(proof).splitlines()[0].startswith("Proof: 6 of 13 claims do not hold")
    assert "No device can write the core&#x27;s memory." in proof._repr_html_()
    assert proof._repr_html_().count("<details>") == len(proof.counterexamples) == 6
    assert list(proof.frame["holds"]) == [c.holds for c in proof.claims]
    told = proof.to_json()
    assert told["claims"][0]["counterexample"]["host"] == run.vmm.base
    assert told["claims"][0]["counterexample"]["walk"]["steps"]
    machine.boot(Config(PROFILE="mended"))
    assert run.proof == proof                  # a run that is over keeps its proof
