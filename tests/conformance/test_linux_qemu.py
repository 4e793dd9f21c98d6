"""Debian's kernels with hvlab's initramfs on QEMU: they boot to the shell, say what is on the disk, and the shell does what one types."""

import hashlib
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pytest

from hvcore.linux import cache, linux_image
from hvcore.linux.initramfs import ROOT

pytestmark = pytest.mark.needs("qemu-system-x86_64")

PROMPT = "lab# "
MIB = 1 << 20
BLOCKS = 4104
"""Of 512 bytes: the last MiB of the disk does not begin on a multiple of 64 KiB."""


class Linux:
    """A Linux on QEMU, without the kernel's own messages, which come at any time.  `deadline`: seconds of wall time for each answer."""

    def __init__(self, release: str, disk: Path, folder: Path, arguments: tuple[str, ...] = (), deadline: float = 120):
        initrd = folder / "initrd.cpio"
        initrd.write_bytes(linux_image(release).initrd)
        self._errors = (folder / "stderr").open("w+")
        self.release, self.console, self._deadline = release, "", deadline
        self._process = subprocess.Popen(
            ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", "1G", "-nodefaults", "-display", "none", "-no-reboot",
             "-serial", "stdio", "-monitor", "none", "-kernel", str(cache.find(release).folder / "vmlinuz"), "-initrd", str(initrd),
             "-append", "console=ttyS0,115200 loglevel=3", "-drive", f"file={disk},format=raw,if=none,id=disk",
             "-device", "nvme,addr=2,drive=disk,serial=hvlab", "-device", "edu,addr=3", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)

    def __enter__(self) -> "Linux":
        self.until_prompt(0)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def shell(self, line: str) -> str:
        """Types a line; returns what comes between it and the next prompt."""
        before = len(self.console)
        self.type(line + "\n")
        echo, _, answer = self.until_prompt(before).removesuffix(PROMPT).partition("\n")
        assert echo == line
        return answer

    def type(self, keys: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(keys.encode())
        self._process.stdin.flush()

    def until_prompt(self, start: int) -> str:
        """The console from `start` on, when it ends in a prompt."""
        assert self._process.stdout
        end = time.monotonic() + self._deadline
        while not (self.console.endswith("\n" + PROMPT) and len(self.console) > start):
            if not select.select([self._process.stdout], [], [], max(end - time.monotonic(), 0))[0]:
                raise TimeoutError(f"no prompt after {self._deadline} s; the console so far:\n{self.console}")
            data = os.read(self._process.stdout.fileno(), 65536)
            assert data, f"QEMU has ended: {Path(self._errors.name).read_text()}\n{self.console}"
            self.console += data.decode("latin-1").replace("\r", "")
        return self.console[start:]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    path.write_bytes(np.random.default_rng(7).bytes(512 * BLOCKS))
    return path


@pytest.fixture(scope="module", params=["default", "newest"])
def linux(request: pytest.FixtureRequest, linux_cache: dict[str, str], disk: Path, tmp_path_factory: pytest.TempPathFactory
          ) -> Iterator[Linux]:
    with Linux(linux_cache[request.param], disk, tmp_path_factory.mktemp("linux")) as guest:
        yield guest


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def test_boot(linux: Linux, disk: Path) -> None:
    """What /init says, in order: the disk's bytes are those of the file."""
    data = disk.read_bytes()
    said = [line for line in linux.console.splitlines() if line.startswith("lab: ")]
    assert said == [f"lab: block devices: nvme0n1 ({len(data)} bytes)",
                    f"lab: nvme0n1: md5 of {MIB} bytes at 0: {md5(data[:MIB])}",
                    f"lab: nvme0n1: md5 of {MIB} bytes at {len(data) - MIB}: {md5(data[-MIB:])}",
                    f"lab: ready (Linux {linux.release})"]
    assert linux.console.endswith("\n" + PROMPT) and "\x1b" not in linux.console.partition("lab: ready")[2]


def test_shell(linux: Linux) -> None:
    assert linux.shell("uname -r") == f"{linux.release}\n"
    assert linux.shell("cd /tmp; x=5; (exit 3)") == ""
    assert linux.shell("echo $? $x $PWD") == "3 5 /tmp\n"
    assert linux.shell("") == ""
    assert "syntax error" in linux.shell("if true; fi; )")
    assert linux.shell("for i in 1 2; do echo $i; done | md5sum") == md5(b"1\n2\n") + "  -\n"


def test_a_long_line_is_echoed_in_one_piece(linux: Linux) -> None:
    words = " ".join(map(str, range(900)))
    assert linux.shell(f"echo {words}") == words + "\n"


def test_ctrl_c_ends_a_command_and_a_line(linux: Linux) -> None:
    before = len(linux.console)
    linux.type("sleep 1000; echo late\n")
    time.sleep(0.5)
    linux.type("\x03")
    assert linux.until_prompt(before).splitlines()[:2] == ["sleep 1000; echo late", "^C"]
    before = len(linux.console)
    linux.type("never run\x03")
    linux.until_prompt(before)
    assert linux.shell("echo alive") == "alive\n"


def test_the_shell_comes_back(linux: Linux) -> None:
    first = linux.shell("echo $$")
    linux.shell("exit")
    assert linux.shell("echo $$") != first


def test_memcheck(linux: Linux) -> None:
    assert linux.shell("rm -f /tmp/memcheck*; memcheck verify; echo $?") == "memcheck: nothing to verify: run `memcheck make`\n2\n"
    assert linux.shell("memcheck make x; echo $?") == "memcheck: x is no number of MiB\n2\n"
    made = linux.shell("memcheck make 2")
    assert (found := re.fullmatch(r"memcheck: made 2 MiB, md5 ([0-9a-f]{32})\n", made))
    assert linux.shell("wc -c </tmp/memcheck") == f"{2 * MIB}\n"
    assert linux.shell("od -A n -v -t x4 -w4096 /tmp/memcheck | sort -u | wc -l") == "512\n", "a page is like another"
    assert linux.shell("memcheck verify; echo $?") == f"memcheck: intact, md5 {found[1]}\n0\n"
    linux.shell("printf x | dd of=/tmp/memcheck bs=1 seek=1234567 conv=notrunc")
    assert linux.shell("memcheck verify; echo $?").startswith(f"memcheck: DAMAGED, md5 was {found[1]} and is ")


def test_the_drive_again_by_the_shell(linux: Linux, disk: Path) -> None:
    """`dd` past the page cache and `hexdump` agree with the file."""
    data = disk.read_bytes()
    read = "dd if=/dev/nvme0n1 bs=4096 skip=100 count=7 iflag=direct 2>/dev/null"
    assert linux.shell(f"{read} | md5sum") == md5(data[409600:438272]) + "  -\n"
    row = linux.shell("hexdump -C -n 16 /dev/nvme0n1").splitlines()[0]
    assert bytes.fromhex(row[8:60].replace(" ", "")) == data[:16]


def test_pci(linux: Linux) -> None:
    functions = linux.shell("lspci -k").splitlines()
    assert "0000:00:02.0 Class 0108: 1b36:0010 nvme" in functions and "0000:00:03.0 Class 00ff: 1234:11e8" in functions
    assert linux.shell("lspci").splitlines() == [" ".join(line.split()[:4]) for line in functions]


def test_devmem_reaches_edu(linux: Linux) -> None:
    """The identification register of QEMU's edu, by a BAR that no driver has taken."""
    bar = linux.shell("head -n 1 /sys/bus/pci/devices/0000:00:03.0/resource").split()[0]
    linux.shell("echo 1 >/sys/bus/pci/devices/0000:00:03.0/enable")
    assert linux.shell(f"devmem {bar}") == "0x010000ED\n"


def test_what_is_inside(linux: Linux) -> None:
    entry = cache.find(linux.release)
    assert linux.shell("cat /etc/hvlab").splitlines() == [
        "hvlab-initramfs 1", f"linux {entry.release} ({entry.package} {entry.version})", f"busybox {entry.busybox}"]
    assert linux.shell("md5sum </init") == md5((ROOT / "init").read_bytes()) + "  -\n"


def test_a_controller_without_a_namespace(linux_cache: dict[str, str], disk: Path, tmp_path: Path) -> None:
    """A controller without a namespace holds the shell up for longer than a command's time-out, and not for ever.  Idle time is skipped."""
    arguments = ("-icount", "shift=0,sleep=off", "-device", "nvme-subsys,id=s", "-device", "nvme,addr=5,serial=none,subsys=s")
    copy = tmp_path / "copy.img"
    copy.write_bytes(disk.read_bytes())
    with Linux(linux_cache["default"], copy, tmp_path, arguments) as guest:
        said = [line for line in guest.console.splitlines() if line.startswith("lab: ")]
        assert said[0] == f"lab: block devices: nvme0n1 ({disk.stat().st_size} bytes)"
        assert said[-1].startswith("lab: ready")
        assert guest.shell("cat /sys/class/nvme/nvme*/state") == "live\nlive\n"
        assert float(guest.shell("cat /proc/uptime").split()[0]) > 65
