"""Programs of Debian's Linux on the core find what a real processor would have them find, but for what a table names."""

import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hvcore import Config, Machine, Run
from hvcore.linux import linux_image
from hvcore.linux.cpio import archive, file

pytestmark = [pytest.mark.needs("gcc"), pytest.mark.xdist_group("linux-programs")]

SOURCE = Path(__file__).with_name("programs.c")
PRIVILEGED = "signal 11 code 128 trap 13 error 0 at (nil)"
INVALID = "signal 4 code 2 trap 6 error 0 at the instruction"
REAL = {
    "DIV by 0": "signal 8 code 1 trap 0 error 0 at the instruction",
    "IDIV too large": "signal 8 code 1 trap 0 error 0 at the instruction",
    "read at 0": "signal 11 code 1 trap 14 error 4 at (nil)",
    "not canonical": PRIVILEGED,
    "read of the kernel": "signal 11 code 1 trap 14 error 5 at 0xffffffff81000000",
    "call of the kernel": "signal 11 code 1 trap 14 error 15 at the instruction",
    "write of a page to read": "signal 11 code 2 trap 14 error 6 at area+1000",
    "read of no rights": "signal 11 code 2 trap 14 error 4 at area+2000",
    "read of nothing": "signal 11 code 1 trap 14 error 4 at area+4010",
    "read across a border": "signal 11 code 2 trap 14 error 4 at area+2000",
    "write across a border": "signal 11 code 1 trap 14 error 6 at area+4000",
    "call of data": "signal 11 code 2 trap 14 error 15 at area+3000",
    "REP MOVSB into nothing": "signal 11 code 1 trap 14 error 6 at area+4000",
    "UD2": INVALID, "LOCK NOP": INVALID, "LOCK BTS of a register": INVALID, "SYSENTER": INVALID,
    "INT3": "signal 5 code 128 trap 3 error 0 at (nil)",
    "INT 4": "signal 11 code 128 trap 4 error 0 at (nil)",
    "INT 0x81": "signal 11 code 128 trap 13 error 40a at (nil)",
    **dict.fromkeys(("HLT", "CLI", "IN", "OUT", "RDMSR", "MOV of CR0", "WBINVD", "SWAPGS"), PRIVILEGED),
    "MOV to SS of the kernel's": "signal 11 code 128 trap 13 error 10 at (nil)",
    "MOVAPS not aligned": PRIVILEGED, "CMPXCHG16B not aligned": PRIVILEGED, "16 bytes of an instruction": PRIVILEGED,
    "trap flag": "signal 5 code 2 trap 1 error 0 at the instruction",
    "#MF": "signal 8 code 3 trap 16 error 0 at the instruction",
    "write behind a file's end": "signal 7 code 2 trap 14 error 6 at area+1000",
    "steps": "2 7 9 7 9 b d f 14 16 18 1b 20 27 27 27 29 30 2e 31 32 33",
    "code by another mapping": "0 wrong", "code by the kernel": "0 wrong", "code in fresh pages": "0 wrong",
    "backwards": "0", "two seconds": "20 tenths", "20 alarms": "2 tenths",
}
"""What an AMD processor tells of `programs.c` under a Linux that has little else to do."""
OURS = dict.fromkeys(("IN", "OUT", "MOVAPS not aligned"), "nothing")
"""Where the emulator cannot: docs/linux.md has these limits."""


@pytest.fixture(scope="module")
def run(linux_cache: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A Linux with the programs in /t."""
    made = tmp_path_factory.mktemp("programs")
    subprocess.run(["gcc", "-O1", "-static", "-no-pie", "-fno-pie", "-mno-red-zone", "-mcx16", SOURCE, "-o", made / "programs"], check=True)
    image = linux_image(linux_cache["default"])
    others = [file(f"bin/tells{n}", tells(n), 0o755) for n in range(3)]
    image = replace(image, initrd=image.initrd + archive([file("bin/programs", (made / "programs").read_bytes(), 0o755), *others]))
    with Machine.load("q35-6g") as machine:
        run = machine.boot(Config(VTD_TRANS=False), guest=image, limit=600)
        machine.wait(10)
        run.guest.shell("dmesg -n 1")
        yield run


def tells(number: int) -> bytes:
    """A program whose exit status comes of four numbers in as many places of a page: add edi, n; jmp to the next; exit."""
    places = [b"\x83\xc7" + bytes((number + n,)) + b"\xe9" + (0x100 - 8).to_bytes(4, "little") for n in range(4)]
    text = b"\x31\xff" + b"".join(place.ljust(0x100, b"\x90") for place in places) + b"\xb8\x3c\0\0\0\x0f\x05"
    size, at = 0x1000 + len(text), 0x400000
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, at + 0x1000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, at, at, size, size, 0x1000)
    return (header + segment).ljust(0x1000, b"\0") + text


def test_programs_find_what_they_would_on_a_real_processor(run: Run) -> None:
    told = run.guest.shell("programs", limit=600)
    assert told.status == 0
    found = dict(line.split(": ", 1) for line in told.splitlines())
    assert found == REAL | OURS
    assert all(OURS[name] != REAL[name] for name in OURS)


def test_a_program_that_takes_anothers_page_runs_as_itself(run: Run) -> None:
    """The kernel fills pages by its own mapping of memory, whichever code was there; the next program lies at the same address."""
    line = "for i in 1 2 3 4 5; do for n in 0 1 2; do cat /bin/tells$n >/tmp/x; chmod 755 /tmp/x; /tmp/x; echo $n $?; rm /tmp/x; done; done"
    assert run.guest.shell(line).splitlines() == [f"{n} {4 * n + 6}" for n in range(3)] * 5


def test_files_come_and_go_whole(run: Run) -> None:
    """Tools over the same hundred kilobytes, there and back."""
    assert run.guest.shell("seq 20000 >/tmp/n; md5sum </tmp/n").split()[0] == run.guest.shell(
        "gzip -c /tmp/n | gunzip | tac | sort -n | sed 's/$/x/' | tr -d x | bzip2 -c | bunzip2 | md5sum; rm /tmp/n").split()[0]
