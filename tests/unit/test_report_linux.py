"""What a report says of a Linux: which it was, how to boot it again, and its console in short."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore import Machine
from hvcore.guestimage import LINUX_COMMAND_LINE, lab_guest
from hvcore.report import chapter_of, write
from hvcore.report.again import commands
from hvcore.report.linux import SHOWN, in_short, linux_of
from hvcore.shell import STATUS
from hvcore.sources import load
from hvcore.spec.linuxboot import Elf, Kernel, Segment

BANNER = b"\0Linux version %s\0Linux version 6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org) (gcc-12)"
CACHED = b"hvlab-initramfs 1\nlinux 6.1.0-56-cloud-amd64 (linux-image-6.1.0-56-cloud-amd64 6.1.192-2)\nbusybox 1:1.35.0-4\n"
OWN = b"hvlab-initramfs 1\nlinux 6.1.0-56-cloud-amd64\nbusybox 1:1.35.0-4\n"
BOOT = [f"[    0.{n:06}] something about nothing {n}" for n in range(200)]


def kernel(banner=BANNER, initrd=CACHED, words=""):
    elf = Elf(0x1000000, (Segment(0x1000000, b"code", 0x1000), Segment(0x1001000, banner, 0x1000)))
    return Kernel(elf, b"HdrS", b"junk" + initrd + b"junk", f"{LINUX_COMMAND_LINE} {words}".strip())


def told(guest):
    return linux_of(SimpleNamespace(guest=guest, description=load("q35-2g")))


def test_a_kernel_of_the_cache_is_named_by_its_release():
    found = told(kernel(words="quiet x='a b'"))
    assert (found.made.release, found.made.busybox, found.words) == ("6.1.0-56-cloud-amd64", "1:1.35.0-4", "quiet x='a b'")
    assert found.name == "Linux 6.1.0-56-cloud-amd64 (linux-image-6.1.0-56-cloud-amd64 6.1.192-2), busybox 1:1.35.0-4"
    assert found.told == f"console=ttyS0,115200 {LINUX_COMMAND_LINE} quiet x='a b'"
    assert found.choice == ["--guest", "linux-6.1.0-56-cloud-amd64", "--append", "quiet x='a b'"]
    assert "hvlab linux fetch --release 6.1.0-56-cloud-amd64" in found.needs
    description = load("q35-2g")
    assert commands(description, Machine(description).policies["off"], "q35-2g", found.choice).endswith(
        "--guest linux-6.1.0-56-cloud-amd64 --append 'quiet x='\"'\"'a b'\"'\"''")


@pytest.mark.parametrize(("initrd", "choice", "needs"), [
    (OWN, ["--kernel", "vmlinuz"], "The guest's kernel is not in this report: put vmlinuz where the command is run."),
    (b"another", ["--kernel", "vmlinuz", "--initrd", "initrd.img"],
     "The guest's kernel and initramfs are not in this report: put vmlinuz and initrd.img where the command is run."),
    (CACHED.replace(b"linux 6.1.0", b"linux 6.2.0"), ["--kernel", "vmlinuz"],
     "The guest's kernel is not in this report: put vmlinuz where the command is run.")])
def test_files_of_the_users_own_have_to_be_brought(initrd, choice, needs):
    found = told(kernel(initrd=initrd))
    assert (found.choice, found.needs) == (choice, needs)


def test_what_is_no_linux_is_none_and_one_without_a_banner_has_no_version():
    assert told(lab_guest()) is told(Kernel(lab_guest())) is told(None) is None
    assert told(kernel(banner=b"no words")).name.startswith("Linux of unknown version, busybox")


def test_the_lines_that_tell_are_there_with_the_number_of_the_others():
    lines = ["[    0.000000] Linux version 6.1", *BOOT, "[    0.5] nvme nvme0: pci function", "", "[    0.6] Kernel panic - not syncing: x"]
    assert in_short("\n".join(lines)).splitlines() == [lines[0], "[198 lines left out]", *lines[-5:]]


def test_a_shell_is_all_there_but_for_how_hvlab_asks():
    said = ["lab: ready (Linux 6.1)", "lab# ls", "bin", f"lab# {STATUS} ", "[    0.3] behind", "lab# cat", "x"]
    text = "\n".join([*BOOT, *said[:3], f"lab# {STATUS}", "0", *said[3:], f"lab# {STATUS}", "127", "lab# "])
    assert in_short(text).splitlines() == ["[200 lines left out]", *said, "lab# "]


LINES = st.lists(st.sampled_from(["[    1.0] nvme nvme0: x", "[    1.0] dull", "", "lab: ready", "lab# ls", "y" * 1000]), max_size=400)


@given(LINES)
def test_it_is_short_counts_what_it_leaves_out_and_adds_nothing(lines):
    shown = in_short("\n".join(lines)).splitlines()
    gaps = [int(line[1:].split()[0]) for line in shown if line.endswith(" left out]")]
    plain = [line for line in shown if not line.endswith(" left out]")]
    assert len(plain) <= SHOWN and all(len(line) < 300 for line in shown)
    assert {line.removesuffix(" [...]") for line in plain} <= {line[:240] for line in lines}
    assert sum(gaps) + len(plain) <= len(lines)
    assert sum(gaps) >= len([line for line in lines if line]) - len([line for line in plain if line])
    if len(lines) <= 100:
        assert plain.count("[    1.0] nvme nvme0: x") == lines.count("[    1.0] nvme nvme0: x")


def test_a_strangers_console_is_words_in_short_and_in_full(tmp_path):
    wicked = "nvme </pre></details><script>alert(1)</script>\x1b[2J"
    with Machine.load("q35-2g") as machine:
        machine.boot()
        machine.booting.guest = kernel(banner=b"Linux version 6<script>alert(2)</script> (x)", words="</dd><script>alert(3)</script>")
        machine.pc.serial[:] = "\n".join([*BOOT, "lab: ready", wicked]).encode()
        page = write(tmp_path / "r.html", "r", [chapter_of(machine)]).read_text()
    assert page.count("nvme &lt;/pre&gt;&lt;/details&gt;&lt;script&gt;alert(1)&lt;/script&gt;\u241b[2J") == 2
    assert not any(f"<script>alert({n})" in page for n in (1, 2, 3)) and "&lt;script&gt;alert(3)&lt;/script&gt;" in page
    assert "All 202 lines" in page and page.count(BOOT[100]) == 1
