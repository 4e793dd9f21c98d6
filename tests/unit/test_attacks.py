"""Attacks: all verdicts on the 6 GiB machine, every machine under the mended profile, each defence alone, what verdicts are made of."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from hvcore import Config, Machine, inspect
from hvcore.attack import ATTACKS
from hvcore.cli import main
from hvcore.errors import HvlabError
from hvcore.inspect.matrix import MARKS
from hvcore.sources import load, shipped
from hvcore.spec import vtd
from hvcore.vmm.config import POLICIES
from hvcore.vmm.layout import Data, Part

DOCS = Path(__file__).parents[2] / "docs" / "attacks.md"
GUEST = Path(__file__).parents[2] / "images" / "guests" / "lab" / "attack.c"
BY_DMA = ("steal-key", "overwrite-stub", "open-nested-page", "rewrite-iommu-entry", "redirect-vmcb")
NAMED = {"steal-key": "No device can read the core's memory.", "forge-interrupt": "No device can forge an interrupt.",
         "clear-te": "The guest's processor cannot reach the registers of a unit that translates or remaps interrupts.",
         "before-te": "Since the core laid its code and key no unit has left its memory open."}
"""What the proof says of a machine on which an attack succeeds."""
VOLATILE = (Part.DATA, Part.VMCB, Part.HSAVE, Part.HOST, Part.STACK)
"""Pages of the core that every exit writes."""


@pytest.fixture(scope="module")
def six():
    with Machine.load("q35-6g") as machine:
        yield machine


def remaps_interrupts(name):
    return all(vtd.ECAP.get(u.ecap, "IR") for u in load(shipped()[name]).units)


# --- the matrix

def documented():
    """(policy, attack) -> verdict of the table in docs/attacks.md."""
    cells = {}
    for line in DOCS.read_text().partition("## On the 6 GiB machine")[2].partition("\n## ")[0].splitlines():
        columns = [c.strip() for c in line.split("|")[1:-1]]
        if len(columns) == 4 and columns[0].startswith("`"):
            names = [re.findall(r"`([^`]+)`", c) for c in columns[:2]]
            for cell in itertools.product(*names):
                assert cell not in cells, f"{cell} is told twice"
                assert columns[3], f"{cell} has no reason"
                cells[cell] = columns[2]
    return cells


def test_the_matrix_of_the_6_gib_machine_is_the_documented_one(six):
    grid = inspect.matrix(six)
    assert {(c.policy, c.attack): c.verdict for c in grid} == documented()
    assert grid.policies == tuple(POLICIES)
    assert grid.attacks == tuple(ATTACKS)
    for cell in grid:
        assert (cell.fault is not None) == (cell.verdict == "blocked"), cell
        assert bool(cell.result.proof) == (cell.verdict == "succeeded"), cell
        if cell.verdict == "blocked":
            assert not cell.result.changed, cell
    assert grid.cell("bitvisor", "steal-key").fault.reason == 6
    assert json.loads(json.dumps(grid.report()))["cells"][0].keys() == {"policy", "attack", "verdict", "fault", "evidence"}
    page = grid._repr_html_()
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert len(links) == 64
    assert links == set(re.findall(r'<details id="([^"]+)"', page))
    assert all(mark in str(grid) for verdict, mark in MARKS.items() if verdict in {c.verdict for c in grid})
    with pytest.raises(HvlabError, match="the matrix has no cell 'x'"):
        grid.cell("x", "y")


@pytest.mark.parametrize("name", list(shipped()))
def test_mended_blocks_everything_that_a_unit_can_block(name):
    """Interrupts can be forged where a unit has no interrupt remapping, and the proof says that and nothing else."""
    with Machine.load(name) as machine:
        grid = inspect.matrix(machine, ["mended"])
        open_to = {"forge-interrupt"} if not remaps_interrupts(name) else set()
        assert {c.attack for c in grid if c.verdict == "succeeded"} == open_to
        assert {c.verdict for c in grid if c.attack not in open_to} == {"blocked"}
        run = machine.boot(Config(PROFILE="mended"))
        assert run.outcome == "up"
        proof = inspect.prove(run)
        assert [c.claim for c in proof.claims if not c.holds] == (["No device can forge an interrupt."] if open_to else [])


@pytest.mark.parametrize(("option", "attack"), [({"VTD_TRANS": False}, "steal-key"), ({"HIDE_VTD_REGS": False}, "clear-te"),
                                                ({"INTERRUPT_REMAPPING": False}, "forge-interrupt"),
                                                ({"EARLY_PROTECTION": False}, "before-te")])
@pytest.mark.parametrize("name", ["nvme-desktop-16g", "q35-6g-intremap"])
def test_without_any_one_defence_an_attack_succeeds(name, option, attack):
    """The proof of the same run names what is open."""
    with Machine.load(name) as machine:
        result = machine.attack(attack, Config(PROFILE="mended", **option))
        assert result.verdict == "succeeded"
        run = machine.boot(Config(PROFILE="mended", **option))
        proof = inspect.prove(run)
        assert not proof.holds
        named = {c.claim for c in proof.claims if not c.holds}
        assert NAMED[attack] in named
        assert all(c.counterexample is not None for c in proof.claims if not c.holds)


@pytest.mark.parametrize("device", ["edu", "nvme"])
@pytest.mark.parametrize(("policy", "verdicts"), [
    ("off", dict.fromkeys(ATTACKS, "succeeded")),
    ("ram", dict.fromkeys(BY_DMA, "blocked") | dict.fromkeys(("clear-te", "forge-interrupt", "before-te"), "succeeded"))])
def test_either_device_will_do(six, device, policy, verdicts):
    grid = inspect.matrix(six, [policy], device=device)
    assert {c.attack: c.verdict for c in grid} == verdicts
    source = {"edu": "00:03.0", "nvme": "00:02.0"}[device]
    assert {c.result.device for c in grid} == {source}


# --- what a verdict is made of

def region(machine):
    """The core's memory without the pages that every exit writes."""
    data = machine.pc.memory.u8(machine.run.vmm.base, machine.run.vmm.size).copy()
    for part in VOLATILE:
        data[part:part + 0x1000] = 0
    return data


def settled(machine):
    """What no exit writes of the data page and the VMCB."""
    memory, base = machine.pc.memory, machine.run.vmm.base
    return [memory.read64(base + Part.DATA + d) for d in (Data.VMCB, Data.HOST, Data.CR3, Data.HSAVE, Data.N_CR3, Data.HEAP_NEXT)] + \
        [memory.read64(base + Part.VMCB + offset) for offset in (0x00, 0x08, 0x10, 0x90, 0xB0)]


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a != "before-te"])
def test_a_blocked_attack_leaves_the_core_byte_for_byte(attack):
    with Machine.load("q35-6g-intremap") as machine:
        machine.boot(Config(PROFILE="mended"))
        before, fixed = region(machine), settled(machine)
        assert machine.attack(attack).verdict == "blocked"
        assert np.array_equal(region(machine), before)
        assert settled(machine) == fixed
        assert machine.run.outcome == "up"
        assert "checked" in machine.run.guest.command("nvme read 5")


def test_the_verdict_is_read_off_the_machine_and_not_the_options(six):
    """With everything on, one leaf that grants the key's page makes the theft succeed; with it closed again, not."""
    run = six.boot(Config(IOMMU_MAP_END="ram"))
    secret = run.vmm.base + Part.SECRET
    walk = six.pc.units[0].walk(0x18, secret)
    leaf = walk.steps[-1].address
    assert six.attack("steal-key").verdict == "blocked"
    six.pc.memory.write64(leaf, secret | 3)
    stolen = six.attack("steal-key")
    assert stolen.verdict == "succeeded"
    assert bytes.fromhex(stolen.proof["key"]) == six.pc.memory.read(secret, 32)
    assert six.pc.memory.read(stolen.proof["kept_at"], 32) == six.pc.memory.read(secret, 32)
    six.pc.memory.write(secret, bytes(range(32)))
    assert six.attack("steal-key").proof["key"] == bytes(range(32)).hex()


def test_the_stolen_key_opens_the_disk(six):
    """The core's driver encrypts what the guest writes to the last block; the card that read the key reads the block."""
    for options, opens in (({}, False), ({"NVME_DRIVER": True}, True)):
        proof = six.attack("steal-key", Config(VTD_TRANS=False, **options), "edu").proof
        assert ("opens" in proof) == opens
    disk = six.pc.root.find("nvme")[0].disk
    assert not disk.read(disk.blocks - 1, 1).startswith(b"HVLABBLK")
    refused = six.attack("steal-key", device="nvme")
    assert (refused.verdict, refused.changed) == ("blocked", ()), "the core's driver does not let the drive reach the core"


def test_an_entry_is_rewritten_where_the_tables_can_be_reached(six):
    """Root, context and second-level pages granted by hand, the key's page not: the attack grants it to itself."""
    run = six.boot(Config(IOMMU_MAP_END="ram"))
    secret, unit = run.vmm.base + Part.SECRET, six.pc.units[0]
    leaf = unit.walk(0x18, secret).steps[-1].address
    pages = {s.address & ~0xFFF for s in unit.walk(0x18, secret).steps}
    for page in pages:
        six.pc.memory.write64(unit.walk(0x18, page).steps[-1].address, page | 3)
    assert six.attack("steal-key").verdict == "blocked"
    result = six.attack("rewrite-iommu-entry")
    assert result.verdict == "succeeded"
    assert six.pc.memory.read64(leaf) == secret | 3
    assert any(c.start <= leaf < c.end for c in result.changed)


def test_code_of_the_guest_ran_in_host_mode(six):
    result = six.attack("overwrite-stub", Config(VTD_TRANS=False))
    base, memory = six.run.vmm.base, six.pc.memory
    assert result.verdict == "succeeded"
    assert (six.run.outcome, result.proof["vm_hsave_pa"]) == ("vmm-taken-over", base + Part.HSAVE)
    assert result.proof["host_cr3"] == memory.read64(base + Part.DATA + Data.CR3)
    assert result.proof["times_run"] >= 1
    assert [c.part for c in result.changed] == ["text"]


def test_a_stub_that_is_noise_is_a_crash_and_not_a_success(six):
    run = six.boot(Config(VTD_TRANS=False))
    six.pc.memory.write(run.vmm.base + 0x14B, b"\x0f\x0b" * 3 + b"\xf4")
    result = six.attack("steal-key")
    assert (result.verdict, six.run.outcome) == ("crashed", "vmm-panic")
    assert "its processor crashed on that" in result.why


def test_early_cards_hold_the_key_only_where_it_lay_open(six):
    for options, verdict in (({}, "succeeded"), ({"EARLY_PROTECTION": True}, "blocked")):
        result = six.attack("before-te", Config(IOMMU_MAP_END="ram", **options))
        assert result.verdict == verdict
        assert six.run.outcome == "up"
    times = [d.time for d in six.run.dma if d.source == 0x18]
    assert len(times) > 5
    assert times == sorted(times)


def test_a_plain_boot_has_no_time_before_the_guest(six):
    run = six.boot(Config(IOMMU_MAP_END="ram"))
    first = next(line for line in run.console.guest.splitlines() if line.startswith("["))
    assert float(first[1:13]) < 0.0001


def test_no_guest_no_attack(six):
    assert six.attack("steal-key", Config(IOMMU_MAP_END="e820")).verdict == "boot failed"
    with pytest.raises(HvlabError, match="there is no attack 'nope': the attacks are steal-key, "):
        six.attack("nope")
    with pytest.raises(HvlabError, match="no attack uses a device 'ahci'"):
        six.attack("steal-key", device="ahci")
    assert six.attack("steal-key", Config(), "nvme").verdict == "not tried"
    for wrong, sentence in ((lambda: six.attack("steal-key", {"VTD_TRANS": False}), "attack takes a Config"),
                            (lambda: six.attack(["x"]), "there is no attack"), (lambda: inspect.matrix("q35-6g"), "matrix takes a machine"),
                            (lambda: inspect.matrix(six, "off"), "the policy names are a list"),
                            (lambda: inspect.prove(six), "prove takes a run"),
                            (lambda: inspect.matrix(six, attacks=5), "the attack names are a list")):
        with pytest.raises(HvlabError, match=sentence):
            wrong()


def test_the_guest_knows_the_cores_layout():
    source = GUEST.read_text()
    numbers = {name: int(value, 0) for name, value in re.findall(r"(\w+) = (0x[0-9a-f]+)", source)}
    assert [numbers[n] for n in ("TEXT", "DATA", "VMCB", "SECRET")] == [Part.TEXT, Part.DATA, Part.VMCB, Part.SECRET]
    assert (numbers["DATA_VMCB"], numbers["DATA_N_CR3"]) == (Data.VMCB, Data.N_CR3)
    assert set(re.findall(r'\{ "([a-z-]+)", \w+ \}', source)) == set(ATTACKS)


# --- the command line

def test_attack_prints_the_contract(capsys):
    assert main(["attack", "steal-key", "q35-6g", "--set", "VTD_TRANS=n", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"attack", "machine", "config", "verdict", "fault", "proof"} <= set(result)
    assert (result["attack"], result["verdict"], result["fault"]) == ("steal-key", "succeeded", None)
    assert len(bytes.fromhex(result["proof"]["key"])) == 32
    assert main(["attack", "steal-key", "q35-6g", "--json"]) == 0
    fault = json.loads(capsys.readouterr().out)["fault"]
    assert (fault["source"], fault["access"], fault["reason"], fault["address"]) == ("00:03.0", "read", 6, 0x77C09000)


def test_matrix_prints_the_contract(capsys):
    assert main(["matrix", "q35-2g", "--policy", "ram", "--policy", "off", "--attack", "steal-key", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"machine", "cells"}
    assert [(c["policy"], c["attack"], c["verdict"]) for c in result["cells"]] == [("ram", "steal-key", "blocked"),
                                                                                   ("off", "steal-key", "succeeded")]
    assert main(["matrix", "q35-2g", "--policy", "nope"]) == 2
    assert "there is no policy 'nope': there are off, bitvisor" in capsys.readouterr().err
