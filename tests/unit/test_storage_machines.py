"""NVME_DRIVER on whole machines: the lab guest's disk, its domain, its attacks."""

import random
from dataclasses import replace

import pytest
from nvme_driver import PAGE, Driver
from pci_bench import NVME, Bench
from storage_bench import BASE, SIZE, xts

from hvcore import Config, Machine
from hvcore.sources import load, shipped
from hvcore.vmm.layout import Part
from hvcore.vmm.storage.layout import Phase

LAST = 131071


@pytest.fixture(scope="module")
def six():
    with Machine.load("q35-6g") as machine:
        yield machine


def lab_disk(machine):
    return machine.pc.root.find("nvme")[0].disk


@pytest.mark.parametrize("options", [{"VTD_TRANS": False}, {"PROFILE": "mended"}, {"PROFILE": "mended", "VTD_TRANS": False},
                                     {"DMAR_PASS_THROUGH": True, "VTD_TRANS": False},
                                     {"QUIRKS": "AGAW_FROM_LAST_UNIT,SCOPE_BY_EXACT_FUNCTION"}])
def test_the_guest_has_its_disk_and_the_disk_has_ciphertext(six, options):
    run = six.boot(Config(NVME_DRIVER=True, **options))
    assert run.outcome == "up", run.why
    assert "64 blocks read, checked" in run.console.guest
    assert f"block {LAST} written, flushed, read back" in run.console.guest
    assert "nvme: 00:02.0: 131072 blocks, encrypted from block 65536 on" in run.console.vmm
    block = lab_disk(six).read(LAST, 1)
    key = six.pc.memory.read(run.vmm.base + Part.SECRET, 32)
    plain = xts(key, LAST, block, False)
    assert b"HVLABBLK" not in block
    assert plain[:16] == b"HVLABBLK" + LAST.to_bytes(8, "little")
    assert lab_disk(six).read(0, 1)[:8] == b"HVLABBLK"
    shown = run.guest.command(f"nvme read {LAST}")
    assert f"block {LAST}: checked" in shown
    assert plain[16:32].hex(" ") == shown.splitlines()[1][18:66].replace("  ", " ")


def test_probed_again_stopped_and_resumed(six):
    run = six.boot(Config(PROFILE="mended", NVME_DRIVER=True))
    for _ in range(3):
        assert "written, flushed, read back" in run.guest.command("nvme probe")
    key = six.pc.memory.read(run.vmm.base + Part.SECRET, 32)
    assert xts(key, LAST, lab_disk(six).read(LAST, 1), False)[16:24] == (3).to_bytes(8, "little"), "the seed grows with each start"
    six.key_in("nvme probe\n")
    for _ in range(60):
        six.step_exit()
    assert six.run.outcome == "stopped"
    six.resume()
    assert six.run.outcome == "up"
    assert run.console.guest.count("written, flushed, read back") == 5


def test_a_domain_of_its_own_with_the_shadow_and_nothing_else(six):
    run = six.boot(Config(PROFILE="mended", NVME_DRIVER=True))
    zero, own = run.domains
    shadow = six.core.storage.shadow
    assert (own.did, own.devices) == (1, (NVME.source,))
    assert [(r.start, r.end, r.perm) for r in own.runs] == [(*shadow, "rw")]
    assert NVME.source not in zero.devices
    assert run.vmm.base <= shadow[0] < shadow[1] <= run.vmm.base + run.vmm.size
    for address in (0, 0x100000, 0x1000000, 4 << 30, run.vmm.base, run.vmm.base + Part.SECRET, shadow[0] - PAGE, shadow[1],
                    six.core.storage.driver.pages.state, own.root):
        for access in ("read", "write"):
            assert run.what_if(NVME.source, address, access).reason == {"read": 6, "write": 5}[access]
    assert run.what_if(NVME.source, shadow[0]).host == shadow[0]
    for address in (shadow[0], shadow[1] - PAGE):
        assert "no data arrived" in run.guest.command(f"dma r {address:#x} 16")
    assert {f.source for f in run.faults} == {0x18}


def test_the_drive_is_no_weapon_and_a_stolen_key_opens_the_disk(six):
    config = Config(VTD_TRANS=False, NVME_DRIVER=True)
    attack = six.attack("steal-key", config, "nvme")
    assert attack.verdict == "blocked"
    assert six.attack("steal-key", config.change(NVME_DRIVER=False), "nvme").verdict == "succeeded"
    stolen = six.attack("steal-key", config, "edu")
    assert stolen.verdict == "succeeded"
    assert xts(bytes.fromhex(stolen.proof["key"]), LAST, lab_disk(six).read(LAST, 1), False)[:8] == b"HVLABBLK"
    assert six.attack("steal-key", Config(PROFILE="mended", NVME_DRIVER=True), "nvme").verdict == "blocked"


@pytest.mark.parametrize("name", [*shipped()])
def test_every_machine_that_is_up_without_it_is_up_with_it(name):
    with Machine.load(name) as machine:
        run = machine.boot(Config(PROFILE="mended", NVME_DRIVER=True))
        assert run.outcome == "up"
        assert "driven by the core" in run.console.vmm
        assert "written, flushed, read back" in run.console.guest


def test_phases_are_read_from_memory(six):
    six.boot(Config(VTD_TRANS=False, NVME_DRIVER=True))
    driver = six.core.storage.driver
    assert driver.phase == six.pc.memory.read64(driver.pages.state) == Phase.READY


def test_a_bench_without_the_core_sees_the_guests_addresses():
    """What `outside` must find, it finds: on a bare controller every request is the guest's."""
    d = Driver(Bench()).enable()
    assert all(not BASE <= r.iova < BASE + SIZE for r in d.pc.gate.seen)
    d.identify(1)
    assert d.pc.gate.seen


def test_a_controller_behind_a_bridge_that_speaks_for_it():
    """Its unit knows it as 02:00.0: the bridge's secondary bus, function 0.  edu, which shares that id, cannot get another domain."""
    description = load("q35-2g-bridges")
    moved = replace(next(f for f in description.pci if f.source == NVME.source), source=0x228)
    description = replace(description, pci=(*(f for f in description.pci if f.source != NVME.source), moved))
    with Machine(description) as machine:
        run = machine.boot(Config(PROFILE="mended", NVME_DRIVER=True))
        assert run.outcome == "up", run.why
        own = next(d for d in run.domains if d.did == 1)
        assert own.devices == (0x200, 0x228)
        assert "02:04.0 has the requester id of the core's NVMe: it reaches the shadow only" in run.console.vmm
        assert [(r.start, r.end) for r in own.runs] == [machine.core.storage.shadow]


@pytest.mark.parametrize("seed", range(10))
def test_noise_in_the_drivers_pages_ends_in_an_outcome(seed, six):
    rng = random.Random(seed)
    run = six.boot(Config(VTD_TRANS=False, NVME_DRIVER=True))
    pages = six.core.storage.driver.pages
    for _ in range(10):
        page = rng.choice([pages.state, pages.state + PAGE, pages.state + 2 * PAGE, pages.cq(0), pages.cq(1), pages.sq(0), pages.sq(1)])
        six.pc.memory.write(page + rng.randrange(PAGE - 64), rng.randbytes(rng.choice([1, 8, 64])))
        if run.outcome == "up":
            run.guest.command(rng.choice(["nvme read 5", "nvme read 131071", "nvme probe"]))
    assert run.outcome in ("up", "disk-lost", "vmm-panic")
    assert six.boot(Config(VTD_TRANS=False, NVME_DRIVER=True)).outcome == "up"


def test_a_guest_that_moves_the_registers_away_reaches_no_more(six):
    """Without the trap it commands the controller itself, which still has domain 1: its own queue in the guest's memory faults."""
    run = six.boot(Config(PROFILE="mended", NVME_DRIVER=True))
    bus, elsewhere, queue = six.pc.bus, 0xE8000000, 0x2000000
    for register, value in ((0x10, elsewhere), (0x14, 0)):
        run.guest.command(f"out 0xcf8 {1 << 31 | NVME.source << 8 | register:#x} 4")
        run.guest.command(f"out 0xcfc {value:#x} 4")
    assert bus.read(elsewhere, 4) & 0xFFFF == 1023
    for offset, value in ((0x14, 0), (0x24, 0x70007), (0x28, queue), (0x2C, 0), (0x30, queue + PAGE), (0x34, 0), (0x14, 0x460001)):
        run.guest.command(f"poke {elsewhere + offset:#x} {value:#x}")
    six.pc.clock.advance(1_000_000)
    assert bus.read(elsewhere + 0x1C, 4) == 1
    run.guest.command(f"poke {elsewhere + 0x1000:#x} 1")
    six.pc.clock.advance(1_000_000)
    assert bus.read(elsewhere + 0x1C, 4) == 2
    fault, = run.faults
    assert (fault.source, fault.access, fault.reason, fault.address) == (NVME.source, "read", 6, queue)
    run.guest.command("nvme read 5")
    assert run.outcome in ("up", "disk-lost")
    assert six.core.text_intact()
