"""The same ELF of the lab guest on QEMU and on our machine under the core: the two consoles agree, line by line."""

import re
from pathlib import Path

import pytest
from labqemu import EDU, Qemu, nvme, without_stamps

from hvcore import Config, Machine
from hvcore.machine.disk import lab_blocks
from hvcore.sources import load

pytestmark = pytest.mark.needs("qemu-system-x86_64")

COMMANDS = ["lspci", "peek 0x3000000 32", "poke 0x3000000 0x12345678", "peek 0x3000000 8", "poke 0x3000008 0xab 1", "peek 0x3000008 4",
            "dma r 0x3000000 16", "dma w 0x3000100 32", "peek 0x3000100 32", "peek 0xfffffffffffff000", "peek 0x10000000000000",
            "dma w 0x123456780 16", "peek 0x123456780 16",
            "nvme read 5", "nvme read 131071", "nvme read 131072", "nonsense", "peek", "poke 1", "cpuid 0x80000008", "in 0x3fd"]
LOW_RAM = re.compile(r"BIOS-e820: \[mem 0x0*100000-0x[0-9a-f]+\] usable|BIOS-e820: \[mem 0x0*7ff[0-9a-f]+-0x0*7fffffff\] reserved")
BAR = re.compile(r"(reg 0x[0-9a-f]+: \[\w+ +)0x([0-9a-f]+)-0x([0-9a-f]+)")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Boot console and answers of each."""
    disk = load("q35-6g").disk
    image = tmp_path_factory.mktemp("disk") / "lab.img"
    image.write_bytes(lab_blocks(disk.seed, 0, disk.size // 512).tobytes())
    arguments = ["-device", "VGA,addr=1", "-device", EDU, *nvme(image)]
    with Qemu(arguments, command_line="console=ttyS0,115200") as q:
        theirs = [q.boot(), *(q.command(c) for c in COMMANDS)]
    with Machine.load("q35-6g") as machine:
        run = machine.boot(Config(VTD_TRANS=True, IOMMU_MAP_END="ram"))
        ours = [run.console.guest, *(run.guest.command(c) for c in COMMANDS)]
    Path(image).unlink()
    return ours, theirs


def lines_of(console):
    """Without stamps; a BAR by its size, for firmware may place it anywhere."""
    return [BAR.sub(lambda m: f"{m[1]}size {int(m[3], 16) - int(m[2], 16) + 1:#x}", line) for line in without_stamps(console)]


def test_boot(both):
    ours, theirs = (lines_of(side[0]) for side in both)
    assert len(ours) > 20
    assert [x for x in ours if not LOW_RAM.search(x)] == [x for x in theirs if not LOW_RAM.search(x)]


def test_the_low_ram_is_what_the_core_left(both):
    ours, theirs = ([x for x in lines_of(side[0]) if LOW_RAM.search(x)] for side in both)
    assert ours[0] == "BIOS-e820: [mem 0x0000000000100000-0x0000000077bfffff] usable"
    assert theirs[0] != ours[0]


@pytest.mark.parametrize("i", range(len(COMMANDS)), ids=COMMANDS)
def test_answers(both, i):
    ours, theirs = (lines_of(side[1 + i].strip("\n")) for side in both)
    assert ours == theirs
