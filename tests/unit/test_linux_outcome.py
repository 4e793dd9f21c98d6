"""What a Linux's console comes to, how far it shows the boot to be, and which guest is chosen by what is asked for."""

from pathlib import Path
from typing import Any

import pytest

from hvcore import Config, Machine, outcome
from hvcore.cli import main
from hvcore.errors import BadConfig, BadMachine
from hvcore.guestimage import LINUX_COMMAND_LINE, choose_guest, is_linux, lab_guest
from hvcore.linux import LinuxImage
from hvcore.phases import Progress, stage_of
from hvcore.spec.linuxboot import Kernel

FOUND = "[    0.5] nvme nvme0: pci function 0000:00:02.0\n"
TIMED_OUT = "[   62.6] nvme nvme0: I/O 28 QID 0 timeout, disable controller\n[   62.7] nvme nvme0: Identify Controller failed (-4)\n"
REMOVED = "[   62.8] nvme nvme0: Removing after probe failure status: -5\n"
QUEUES = "[    0.6] nvme nvme0: 1/0/0 default/read/poll queues\n"
INIT = "[    0.4] Run /init as init process\n"
SUMS = "lab: block devices: nvme0n1 (67108864 bytes)\nlab: nvme0n1: md5 of 1048576 bytes at 0: e155fc4fdb390226559f156347af4a7b\n"
READY = "lab: ready (Linux 6.1.0)\nlab# "
BIND = "echo 0000:00:02.0 >/sys/bus/pci/drivers/nvme/bind\n"
FAULT = "00:02.0's DMA read at 0x101e63000 was blocked (PTE Read access is not set, reason 6)"


@pytest.mark.parametrize(("console", "fault", "told", "why"), [
    ("", None, "guest-crash", "there is no shell, and its console is empty"),
    ("[    0.1] Linux version 6.1\n", None, "guest-crash", "there is no shell; its console ends with: [    0.1] Linux version 6.1"),
    (FOUND + QUEUES + SUMS + READY, None, "up", "the guest's shell is ready and its disk was read"),
    ("lab: block devices: none\n" + READY, None, "up", "the guest's shell is ready; its kernel found no NVMe controller"),
    ("[    0.2] pci 0000:00:02.0: [1b36:0010] type 00 class 0x010802 PCIe Endpoint\n" + READY, None, "up",
     "the guest's shell is ready; its kernel has no driver for the NVMe controller"),
    (INIT + FOUND + QUEUES + "(initramfs) ", None, "up",
     "the guest runs /init, an init that is not hvlab's; its driver has its NVMe controller at work"),
    (INIT + FOUND + TIMED_OUT, FAULT, "disk-lost", f"{FAULT}; the guest says: nvme nvme0: I/O 28 QID 0 timeout, disable controller; "
     "nvme nvme0: Identify Controller failed (-4)"),
    (INIT, None, "up", "the guest runs /init, an init that is not hvlab's; its kernel found no NVMe controller"),
    (FOUND + TIMED_OUT + REMOVED + READY, FAULT, "disk-lost",
     f"{FAULT}; the guest says: nvme nvme0: I/O 28 QID 0 timeout, disable controller; nvme nvme0: Identify Controller failed (-4); "
     "nvme nvme0: Removing after probe failure status: -5"),
    (FOUND + "[   60.1] nvme nvme0: I/O tag 0 (0000) QID 0 timeout, disable controller\n"
     "[   60.2] nvme 0000:00:02.0: probe with driver nvme failed with error -5\n" + READY, None, "disk-lost",
     "the guest says: nvme nvme0: I/O tag 0 (0000) QID 0 timeout, disable controller; "
     "nvme 0000:00:02.0: probe with driver nvme failed with error -5"),
    (FOUND + "[    9.1] nvme nvme0: Device not ready; aborting initialisation, CSTS=0x0\n" + READY, None, "disk-lost",
     "the guest says: nvme nvme0: Device not ready; aborting initialisation, CSTS=0x0"),
    (FOUND + QUEUES + "lab: nvme0n1: 1048576 bytes at 0 cannot be read\n" + READY, None, "disk-lost",
     "the guest says: lab: nvme0n1: 1048576 bytes at 0 cannot be read"),
    (FOUND + QUEUES + READY, None, "disk-lost", "the kernel found an NVMe controller, and no disk that could be read came of it"),
    (FOUND + "lab: an NVMe controller has not settled after 200 s\n" + READY, None, "disk-lost",
     "the guest says: lab: an NVMe controller has not settled after 200 s"),
    (FOUND + QUEUES + SUMS + READY + "[   99.0] nvme nvme0: I/O 3 QID 1 timeout, reset controller\n", FAULT, "disk-lost",
     f"{FAULT}; the guest says: nvme nvme0: I/O 3 QID 1 timeout, reset controller"),
    (FOUND + TIMED_OUT + REMOVED + READY + BIND + "[   99.0] nvme nvme0: 1/0/0 default/read/poll queues\nlab# ", FAULT, "up",
     "the guest's shell is ready; its disk was lost and has come back"),
    (FOUND + TIMED_OUT + REMOVED + READY + BIND + "[   99.0] nvme nvme0: 1/0/0 default/read/poll queues\nlab# dmesg | grep timeout\n"
     + TIMED_OUT + "lab# ", FAULT, "up", "the guest's shell is ready; its disk was lost and has come back"),
    (FOUND + QUEUES + SUMS + READY + "echo nvme nvme0: Device not ready; echo nvme nvme0: Device not ready\nnvme nvme0: Device not ready\n",
     None, "up", "the guest's shell is ready and its disk was read"),
    (FOUND + QUEUES + SUMS + READY + "[   99.0] nvme nvme0: I/O 3 QID 1 timeout, reset controller\n[   99.1] nvme nvme0: "
     "1/0/0 default/read/poll queues\n", FAULT, "up", "the guest's shell is ready; its disk was lost and has come back")])
def test_what_a_console_comes_to(console: str, fault: str | None, told: str, why: str) -> None:
    assert outcome.of_linux(console, fault) == outcome.Ending(told, why)


def test_the_words_of_a_panic() -> None:
    oops = "[    1.0] BUG: kernel NULL pointer dereference, address: 0000000000000020\n[    1.0] Oops: 0000 [#1] SMP\n"
    panic = "[    1.1] Kernel panic - not syncing: Fatal exception\n"
    end = "[    1.2] ---[ end Kernel panic - not syncing: Fatal exception ]---\n"
    assert outcome.death_words(oops + panic + end) == ("BUG: kernel NULL pointer dereference, address: 0000000000000020; "
                                                       "Kernel panic - not syncing: Fatal exception")
    assert outcome.death_words("[    0.9] Initramfs unpacking failed: invalid magic at start of compressed archive\n" + panic) == (
        "Initramfs unpacking failed: invalid magic at start of compressed archive; Kernel panic - not syncing: Fatal exception")
    assert outcome.death_words(panic + end + oops) == "Kernel panic - not syncing: Fatal exception"
    assert outcome.panic_in(panic) and outcome.panic_in("lab# " + panic) and not outcome.panic_in(oops) and not outcome.panic_in(end)
    assert not outcome.panic_in("lab# echo 'Kernel panic - not syncing: no'\n") and not outcome.panic_in("Kernel panic - not syncing: no\n")


def test_the_stages_follow_one_another_and_never_go_back() -> None:
    lines = ["[    0.0] Linux version 6.1.0", "[    0.1] Memory: 2G", "[    0.3] PCI: Probing PCI hardware", "[    0.4] Serial: 8250/16550",
             "[    0.5] nvme nvme0: pci function 0000:00:02.0", "[    0.6] pci_bus 0000:00: root bus",
             "[    0.7] Run /init as init process", "[    0.8] nvme nvme0: 1/0/0 default/read/poll queues",
             "lab: ready (Linux 6.1.0)", "[   90.0] nvme nvme0: I/O timeout"]
    stages = ["kernel"]
    for line in lines:
        stages.append(stage_of(line, stages[-1]))
    assert stages[1:] == ["kernel", "kernel", "drivers", "drivers", "disk", "disk", "init", "init", "shell", "shell"]


def test_progress_in_words() -> None:
    progress = Progress("guest: drivers", 12_340_000_000, 3.21, 2_000_000, "[   12.3] nvme nvme0: pci function")
    assert progress.instructions == 15_400_000
    assert str(progress) == ("guest: drivers: 12.3 s of its time in 3.2 s, about 15 million instructions: "
                             "[   12.3] nvme nvme0: pci function")
    assert str(Progress(None, 0, 0.0, 0, "")) == "at rest: 0.0 s of its time in 0.0 s"


IMAGE = LinuxImage("6.1.0", lab_guest(), b"\x04", b"initrd")


def test_a_guest_is_the_lab_guest_an_image_or_what_was_given() -> None:
    lab = lab_guest()
    assert choose_guest() == choose_guest("lab") == lab and not is_linux(lab)
    assert choose_guest(lab, words="a=b") == Kernel(lab, command_line="a=b") and not is_linux(Kernel(lab, command_line="a=b"))
    linux = choose_guest(IMAGE)
    assert linux == Kernel(lab, b"\x04", b"initrd", LINUX_COMMAND_LINE) and is_linux(linux) and choose_guest(linux) is linux
    assert choose_guest(IMAGE, words="quiet") == choose_guest(linux, words="quiet")
    assert choose_guest(IMAGE, words="quiet") == Kernel(lab, b"\x04", b"initrd", f"{LINUX_COMMAND_LINE} quiet")


@pytest.mark.parametrize(("asked", "error", "why"), [
    (("beos",), BadConfig, "no guest 'beos': give 'lab', 'linux', or 'linux-6.1'"), ((5,), BadConfig, "5 is no guest"),
    (("lab", "vmlinuz"), BadConfig, "files of a Linux: give them with guest='linux'"),
    ((IMAGE, None, "initrd"), BadConfig, "files of a Linux"),
    (("linux", 5), BadConfig, "kernel is the path of a file, not 5"), (("linux", None, b"x"), BadConfig, "initrd is the path of a file"),
    ((None, None, None, 5), BadConfig, "command_line takes text"),
    ((None, "/nosuch/vmlinuz"), BadMachine, "/nosuch/vmlinuz cannot be read")])
def test_what_is_no_guest(asked: tuple[Any, ...], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        choose_guest(*asked)


@pytest.mark.parametrize(("options", "why"), [
    (["--guest", "beos"], "there is no guest 'beos'"), (["--guest", "lab", "--initrd", "x"], "kernel and initrd are files of a Linux"),
    (["--kernel", "/nosuch"], "the kernel /nosuch cannot be read"), (["--append", "\u00e4"], "only printable ASCII is allowed"),
    (["--append", "x" * 3000], "a kernel takes 2047"), (["--append", "a\nb"], "has the character '\\n'"),
    (["--guest", "linux", "--append", "a\0b"], "has the character '\\x00'"),
    (["--kernel", "/dev/zero"], "the kernel /dev/zero cannot be read: it is no file"), (["--kernel", "/nosuch\0"], "no zero byte")])
def test_mistakes_on_the_command_line_are_one_line(options: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "q35-2g", "--set", "VTD_TRANS=n", *options]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("hvlab: ") and why in shown.err and shown.err.count("\n") == 1 and not shown.out


@pytest.mark.parametrize("words", ["\u00e4", "x" * 3000, "a\nb"])
def test_a_command_line_that_no_kernel_takes_is_refused_before_power_on(words: str) -> None:
    with Machine.load("q35-2g") as m:
        run = m.boot(Config(VTD_TRANS=False))
        for guest in (None, IMAGE):
            with pytest.raises(BadMachine, match="the guest's command line has"):
                m.boot(Config(VTD_TRANS=True), guest=guest, command_line=words)
        assert m.run is run and run.live and m.state == "waiting" and "lab>" in m.send("time\n")


def test_words_are_added_for_the_lab_guest_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "q35-2g", "--set", "VTD_TRANS=n", "--append", "one.two=3"]) == 0
    assert "up - " in capsys.readouterr().out
    with Machine.load("q35-2g") as m:
        run = m.boot(Config(VTD_TRANS=False), command_line="one.two=3")
        assert "one.two=3" in run.console.guest and not m.linux
        assert "one.two=3" in m.reboot().console.guest


def test_a_console_in_utf_8_is_shown_so() -> None:
    with Machine.load("q35-2g") as m:
        run = m.boot(Config(VTD_TRANS=False))
        m.pc.serial.put("\u00e4 \u20ac\r\n".encode())
        assert run.console.guest.endswith("\u00e4 \u20ac\n")
        m.pc.serial.put(b"\xff")
        assert run.console.guest.endswith("\u00c3\u00a4 \u00e2\u0082\u00ac\n\u00ff")


def test_an_empty_cache_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVLAB_CACHE", str(tmp_path))
    with pytest.raises(BadMachine, match="no Linux kernel here: run `hvlab linux fetch`"):
        choose_guest("linux")
