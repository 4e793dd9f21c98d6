"""Debian's Linux where the core, or Linux itself, remaps interrupts: each kind arrives and none is lost while the disk is read."""

import hashlib

import pytest

from hvcore import Config, Machine, Run, inspect
from hvcore.machine.nvme import Nvme

READS = 256
MENDED = {"PROFILE": "mended"}
PASSED = {"DMAR_PASS_THROUGH": True, "VTD_TRANS": False}


def counted(run: Run) -> dict[str, tuple[int, str]]:
    """What has arrived since power-on by the name of who asked for it, and at which controller."""
    found: dict[str, tuple[int, str]] = {}
    for line in run.guest.shell("cat /proc/interrupts").splitlines()[1:]:
        number, _, rest = line.partition(":")
        if number.strip().isdecimal():
            count, *chip, names = rest.split(maxsplit=3)
            found |= dict.fromkeys(names.replace(",", " ").split(), (int(count), " ".join(chip)))
    return found


@pytest.mark.parametrize(("machine", "release", "words", "options", "serial", "drive"), [
    ("q35-6g-intremap", "default", "pci=nomsi", MENDED, "IO-APIC 4-edge", "IO-APIC 10-fasteoi"),
    ("q35-6g-intremap", "default", "noapic", MENDED, "XT-PIC ttyS0", "PCI-MSI"),
    ("q35-6g-intremap", "default", "", MENDED | {"NVME_DRIVER": True}, "IO-APIC 4-edge", "PCI-MSI"),
    ("server-64g", "newest", "", MENDED, "IO-APIC 4-edge", "PCI-MSI"),
    ("q35-6g-intremap", "newest", "intel_iommu=on intremap=on", PASSED, "IR-IO-APIC 4-edge", "IR-PCI-MSI"),
], ids=["INTx", "the 8259 pair", "the core's own driver", "MSI-X behind bridges", "by Linux itself"])
def test_interrupts_arrive(linux_cache: dict[str, str], machine: str, release: str, words: str, options: dict, serial: str,
                           drive: str) -> None:
    with Machine.load(machine) as m:
        run = m.boot(Config(**options), guest=f"linux-{linux_cache[release]}", command_line=words or None, limit=600)
        assert (run.outcome, run.why) == ("up", "the guest's shell is ready and its disk was read")
        before = counted(run)
        summed = run.guest.shell(f"dd if=/dev/nvme0n1 bs=4096 iflag=direct count={READS} 2>/dev/null | md5sum").split()[0]
        disk = next(f.disk for f in m.pc.root.functions.values() if isinstance(f, Nvme))
        assert summed == hashlib.md5(disk.read(0, READS * 8)).hexdigest()
        after = counted(run)
        assert after["nvme0q1"][0] - before["nvme0q1"][0] >= READS and after["nvme0q1"][1].startswith(drive)
        assert after["ttyS0"][0] > before["ttyS0"][0] and (after["ttyS0"][1] + " ttyS0").startswith(serial)
        assert not run.guest.shell("dmesg | grep -iE 'nobody cared|spurious|timeout|Disabling IRQ'")
        assert not len(run.faults)
        claims = {c.claim: c.holds for c in inspect.prove(run).claims}
        assert claims["No device can forge an interrupt."]
