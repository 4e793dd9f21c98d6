"""The bug of the article and its mends, with Debian's Linux: what the real BitVisor showed, line by line; and that boots repeat."""

import hashlib
import re
from pathlib import Path

import pytest

from hvcore import Config, Machine, Run
from hvcore.errors import BadMachine, HvlabError
from hvcore.machine.nvme import Nvme

MEASURED = Path(__file__).parents[1] / "data" / "bitvisor" / "linux.txt"
KINDS = re.compile(r"BIOS-e820:|e820: (update|remove|reserve)|iommu: |nvme nvme0:")
"""What `linux.txt` has all lines of."""
SEED = "0x00011800"
"""Where our loader leaves the kernel a seed for its random numbers, which GRUB did not: two lines more."""
INT15_HOOK = {"0x000000000009faf9": "0x000000000009fbff", "0x0009fafa": "0x0009fc00"}
"""The real BitVisor takes 262 bytes below 640 KiB for its INT 15h hook, which ours has not."""
WORKS = "the guest's shell is ready and its disk was read"


def lines(console: str) -> list[str]:
    """The kernel's messages without their times."""
    return [line.partition("] ")[2].rstrip() for line in console.splitlines() if line.startswith("[")]


def alike(line: str) -> str:
    """A line with what differs from boot to boot replaced: the tag of a command."""
    for real, ours in INT15_HOOK.items():
        line = line.replace(real, ours)
    return re.sub(r"I/O \d+ QID", "I/O N QID", line)


def boot(name: str, release: str, words: str | None = None, **options: object) -> Run:
    """A run that has been read and kept."""
    with Machine.load(name) as machine:
        return machine.boot(Config(**options), guest=f"linux-{release}", limit=600, command_line=words)


def sums(run: Run) -> list[str]:
    """The MD5 sums that the guest's init printed of the disk."""
    return re.findall(r"^lab: nvme0n1: md5 of \d+ bytes at \d+: ([0-9a-f]{32})", run.console.guest, re.MULTILINE)


def expected(name: str) -> list[str]:
    """The same sums of the disk itself: its first and its last MiB."""
    with Machine.load(name) as machine:
        disk = next(f.disk for f in machine.pc.root.functions.values() if isinstance(f, Nvme))
        return [hashlib.md5(disk.read(lba, 2048)).hexdigest() for lba in (0, disk.blocks - 2048)]


def test_linux_says_what_it_said_on_the_real_bitvisor(linux_cache: dict[str, str]) -> None:
    """The same lines in the same order; the fault is the read of the admin submission queue; the controller has failed."""
    with Machine.load("q35-6g") as machine:
        run = machine.boot(guest=f"linux-{linux_cache['default']}", limit=600,
                           command_line="ignore_loglevel nvme_core.io_timeout=10 nvme_core.admin_timeout=10")
        ours = [line for line in lines(run.console.guest) if KINDS.match(line) and SEED not in line]
        assert [alike(line) for line in ours] == [alike(line) for line in MEASURED.read_text().splitlines()]
        queue = machine.pc.bus.read(0xFEBF0028, 8)
        [fault] = run.faults
        assert (fault.access, fault.address, fault.reason, fault.source) == ("read", queue, 6, 0x10) and queue >= 1 << 32
        assert run.outcome == "disk-lost" and f"{queue:#x}" in run.why and "timeout, disable controller" in run.why
        assert machine.pc.bus.read(0xFEBF001C, 4) & 2, "CSTS.CFS"
        assert run.guest.shell("ls /dev/nvme0n1").status == 1 and run.guest.shell("dmesg | grep -c 'nvme nvme0'") == "4"


@pytest.mark.parametrize(("name", "options"), [
    ("q35-6g", {"VTD_TRANS": False}), ("q35-2g", {}), ("q35-6g", {"IOMMU_MAP_END": "ram"}),
    ("q35-64g", {"IOMMU_MAP_END": "ram", "IOMMU_SUPERPAGES": True}), ("q35-6g-intremap", {"PROFILE": "mended"}),
    ("q35-6g", {"PROFILE": "mended", "NVME_DRIVER": True}),
], ids=["off", "no RAM above 4 GiB", "mapped to the end of RAM", "superpages for 64 GiB", "mended", "by the core's own driver"])
def test_linux_has_its_disk(linux_cache: dict[str, str], name: str, options: dict[str, object]) -> None:
    run = boot(name, linux_cache["default"], **options)
    assert (run.outcome, run.why, len(run.faults)) == ("up", WORKS, 0)
    assert "timeout" not in "".join(line for line in lines(run.console.guest) if line.startswith("nvme "))
    mine, disk = sums(run), expected(name)
    assert mine[0] == disk[0]
    assert (mine[1] == disk[1]) == (not options.get("NVME_DRIVER")), "the second half is encrypted where the core drives the disk"


def test_the_articles_patch_runs_out_of_memory_on_64_gib(linux_cache: dict[str, str]) -> None:
    for end in ("ram", "e820"):
        run = boot("q35-64g", linux_cache["default"], IOMMU_MAP_END=end)
        assert run.outcome == "vmm-panic" and "Out of memory" in run.why and not run.console.guest


@pytest.mark.parametrize("which", ["default", "newest", "second"])
def test_each_kernel_boots_twice_alike(linux_cache: dict[str, str], which: str) -> None:
    """Every byte of its console and the virtual time at which it waits; so does one that is stopped again and again."""
    with Machine.load("q35-2g") as machine:
        def told() -> tuple[str, int, int]:
            assert machine.run is not None and machine.run.outcome == "up"
            return machine.run.console.guest, machine.pc.clock.now, machine.pc.cpu.meter.total

        config, guest = Config(IOMMU_MAP_END="ram"), f"linux-{linux_cache[which]}"
        machine.boot(config, guest=guest, limit=600)
        first, stops = told(), 0
        machine.boot(config, guest=guest, limit=600, watch=lambda phase: machine.stop() if phase == "guest runs" else None)
        while machine.state == "stopped":
            machine.resume(0.02)
            stops += 1
        assert told() == first and stops > 20


def test_two_hundred_stops_do_not_damage_a_guest(linux_cache: dict[str, str]) -> None:
    """While it copies and sums, and reads its disk; single steps are among them."""
    with Machine.load("q35-2g") as machine:
        run = machine.boot(Config(VTD_TRANS=False), guest=f"linux-{linux_cache['default']}", limit=600)
        assert run.guest.shell("memcheck make 2; dd if=/dev/nvme0n1 bs=64k count=32 2>/dev/null | md5sum >/tmp/disk; echo 3 >/proc/sys/vm/"
                               "drop_caches").status == 0
        stops = 0
        while stops < 200:
            before = len(run.console.guest)
            machine.key_in("memcheck verify; dd if=/dev/nvme0n1 iflag=direct bs=64k count=32 2>/dev/null | md5sum | cmp - /tmp/disk && "
                           "echo alike\n")
            machine.resume(0.002)
            while machine.state == "stopped":
                stops += 1
                if stops % 10 == 0:
                    machine.step(stops % 7 + 1)
                machine.resume(0.001 + stops % 5 * 0.002)
            said = run.console.guest[before:]
            assert machine.state == "waiting" and "memcheck: intact" in said and "\nalike" in said.replace("\r", ""), said
        assert run.guest.shell("dmesg | grep -c 'BUG:\\|Oops\\|segfault\\|Call Trace'") == "0"


def test_more_ram_than_this_computer_could_keep_records_of(linux_cache: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence before anything is begun; with less RAM for the kernel it boots, and can be switched off."""
    monkeypatch.setattr("hvcore.guestimage._free_memory", lambda: 20 << 30)
    with Machine.load("server-1t") as machine:
        guest = f"linux-{linux_cache['default']}"
        with pytest.raises(BadMachine, match=r"keeps 16 GiB of records .* only 20 GiB free .*command_line='mem=64G'"):
            machine.boot(Config(PROFILE="mended"), guest=guest)
        run = machine.boot(Config(PROFILE="mended"), guest=guest, limit=600, command_line="mem=4G")
        assert run.outcome == "up" and 1 << 20 < int(run.guest.shell("awk '/MemTotal/ {print $2}' /proc/meminfo")) < 4 << 20
        with pytest.raises(HvlabError, match="the guest entered S5, soft off"):
            run.guest.shell("poweroff -f")
        assert (run.outcome, run.why, machine.state) == ("off", "the guest entered S5, soft off", "ended")
