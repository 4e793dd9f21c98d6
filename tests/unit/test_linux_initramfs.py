"""The first file system: its bytes are read back by hand and by another program; modules come in the order in which they are loaded."""

import lzma
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.errors import BadMachine
from hvcore.linux.cpio import CpioEntry, archive, device, directory, file, link
from hvcore.linux.initramfs import ROOT, applets, initramfs
from hvcore.linux.modules import LARGEST, load_order, module_name, names_of, unpacked

BUSYBOX = b"\x7fELF" + bytes(60) + b"[\0[[\0ash\0busybox\0insmod\0ls\0lspci\0mount\0setsid\0sh\0\0more"


def read_back(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, ...]]]:
    """Name to mode, bytes, and (ino, uid, gid, nlink, mtime, device, checksum): a reader of its own, by the format's description."""
    found, at = {}, 0
    while True:
        assert data[at:at + 6] == b"070701" and at % 4 == 0
        ino, mode, uid, gid, nlink, mtime, size, _, _, major, minor, length, check = (
            int(data[at + 6 + 8 * i:at + 14 + 8 * i], 16) for i in range(13))
        name = data[at + 110:at + 110 + length]
        assert name[-1] == 0
        start = (at + 110 + length + 3) // 4 * 4
        at = (start + size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert set(data[at:]) <= {0} and len(data) % 512 == 0
            return found
        found[name[:-1].decode()] = mode, data[start:start + size], (ino, uid, gid, nlink, mtime, major, minor, check)


def module(*depends: str) -> bytes:
    return b"\x7fELF" + bytes(20) + b"license=GPL\0depends=" + ",".join(depends).encode() + b"\0vermagic=6.1 SMP\0"


ENTRIES = st.lists(st.builds(file, st.text("abc.-_ü", min_size=1, max_size=9), st.binary(max_size=50), st.sampled_from([0o644, 0o755])),
                   unique_by=lambda e: e.name, max_size=6)


@given(ENTRIES)
def test_cpio_holds_what_was_given_in_any_order(entries: list[CpioEntry]) -> None:
    data = archive(entries)
    back = read_back(data)
    assert {name: (mode, content) for name, (mode, content, _) in back.items()} == {e.name: (e.mode, e.data) for e in entries}
    assert archive(reversed(entries)) == data
    inodes = [rest[0] for _, _, rest in back.values()]
    assert len(set(inodes)) == len(inodes)


def test_cpio_kinds() -> None:
    back = read_back(archive([link("bin/ls", "busybox"), directory("bin"), device("dev/ttyS0", 4, 64), directory("dev")]))
    assert list(back) == ["bin", "bin/ls", "dev", "dev/ttyS0"]
    assert back["bin"][0] == stat.S_IFDIR | 0o755 and back["bin/ls"][:2] == (stat.S_IFLNK | 0o777, b"busybox")
    assert back["dev/ttyS0"][0] == stat.S_IFCHR | 0o600 and back["dev/ttyS0"][2][5:7] == (4, 64)
    assert {rest[1:5] for _, _, rest in back.values()} == {(0, 0, 1, 0), (0, 0, 2, 0)}


def test_a_folder_comes_before_what_is_in_it() -> None:
    """Sorted as paths: `a-b` must not come between `a` and `a/x`."""
    names = list(read_back(archive([file("a/x", b""), file("a-b", b""), directory("a")])))
    assert names.index("a") < names.index("a/x")


def test_initramfs_content() -> None:
    modules = {"nvme_core": module(), "nvme": module("nvme-core")}
    data = initramfs(BUSYBOX, modules, {"linux": "6.1.0", "busybox": "1:1.35"})
    back = read_back(data)
    for path in (p for p in ROOT.rglob("*") if p.is_file()):
        name = path.relative_to(ROOT).as_posix()
        assert back[name][1] == path.read_bytes()
        assert bool(back[name][0] & 0o111) == path.read_bytes().startswith(b"#!")
    assert back["bin/busybox"][:2] == (stat.S_IFREG | 0o755, BUSYBOX)
    assert {n for n, (mode, *_) in back.items() if stat.S_ISLNK(mode)} == {f"bin/{n}" for n in ("[", "[[", "ash", "insmod", "ls", "mount",
                                                                                             "setsid", "sh")}
    assert stat.S_ISREG(back["bin/lspci"][0])
    assert back["lib/modules/order"][1] == b"nvme_core.ko\nnvme.ko\n" and back["lib/modules/nvme.ko"][1] == modules["nvme"]
    assert back["etc/hvlab"][1] == b"hvlab-initramfs 1\nlinux 6.1.0\nbusybox 1:1.35\n"
    assert {n: rest[5:7] for n, (mode, _, rest) in back.items() if stat.S_ISCHR(mode)} == {"dev/console": (5, 1), "dev/null": (1, 3),
                                                                                           "dev/ttyS0": (4, 64)}
    assert all(name.rpartition("/")[0] in {"", *back} for name in back)
    assert initramfs(BUSYBOX, modules, {"linux": "6.1.0", "busybox": "1:1.35"}) == data


def test_scripts_are_shell() -> None:
    """What a shell cannot parse would end in a kernel panic."""
    for path in (p for p in ROOT.rglob("*") if p.is_file()):
        assert subprocess.run(["sh", "-n", str(path)], capture_output=True, check=False).returncode == 0, path


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + bytes(100), BUSYBOX[1:], BUSYBOX.replace(b"setsid\0", b"")])
def test_what_is_no_busybox(data: bytes) -> None:
    with pytest.raises(BadMachine, match="no static busybox"):
        applets(data)


def test_module_names() -> None:
    assert module_name("lib/modules/6.1/kernel/drivers/nvme/host/nvme-core.ko.xz") == "nvme_core"
    assert names_of("kernel/block/t10-pi.ko\nkernel/lib/crc64.ko\n") == {"t10_pi", "crc64"}


def test_load_order() -> None:
    there = {"nvme": module("nvme-core", "crc64"), "nvme_core": module("t10-pi", "nvme-auth"), "nvme_auth": module("crypto"),
             "crypto": module()}
    assert load_order(["nvme"], frozenset({"t10_pi", "crc64"}), there.get) == ["crypto", "nvme_auth", "nvme_core", "nvme"]
    assert load_order(["nvme"], frozenset({"nvme"}), there.get) == []
    assert load_order(["edu", "crypto"], frozenset(), there.get) == ["crypto"]


def test_load_order_of_a_circle_ends() -> None:
    there = {"a": module("b"), "b": module("a")}
    assert sorted(load_order(["a"], frozenset(), there.get)) == ["a", "b"]


NAMES = "abcdefg"


@given(st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), unique=True, max_size=4)))
def test_each_module_after_what_it_needs(tree: dict[str, list[str]]) -> None:
    """Any graph without circles: an edge leads from a letter to a later one."""
    needs = {name: sorted(n for n in depends if n > name and n in tree) for name, depends in tree.items()}
    order = load_order(sorted(needs), frozenset(), {name: module(*depends) for name, depends in needs.items()}.get)
    assert sorted(order) == sorted(needs)
    assert all(order.index(n) < order.index(name) for name, depends in needs.items() for n in depends)


def test_packed_modules() -> None:
    data = module("x")
    assert unpacked("x.ko", data) == unpacked("x.ko.xz", lzma.compress(data)) == data
    for name, bad in (("x.ko.xz", b"no xz"), ("x.ko", b"no ELF"), ("x.ko.gz", b"no gz"), ("x.ko.zst", b"no zstd"),
                      ("x.ko.xz", lzma.compress(b"no ELF"))):
        with pytest.raises(BadMachine, match=f"kernel module {name} is"):
            unpacked(name, bad)
    assert len(unpacked("x.ko.xz", lzma.compress(data + bytes(LARGEST)))) == LARGEST


def test_another_program_reads_it(linux_cache: dict[str, str], tmp_path: Path) -> None:
    """Debian's own busybox lists and unpacks the archive that hvlab made around it."""
    from hvcore.linux import cache, linux_image
    entry = cache.find(linux_cache["default"])
    busybox = tmp_path / "busybox"
    busybox.write_bytes(entry.read("busybox"))
    busybox.chmod(0o755)
    initrd = linux_image(entry.release).initrd
    listed = subprocess.run([busybox, "cpio", "-t"], input=initrd, capture_output=True, check=True, cwd=tmp_path).stdout.decode().split()
    assert listed == list(read_back(initrd))
    plain = ["init", "bin/busybox", "bin/memcheck", "etc/hvlab", "bin/sh"]
    subprocess.run([busybox, "cpio", "-id", *plain], input=initrd, capture_output=True, check=True, cwd=tmp_path)
    assert (tmp_path / "bin/busybox").read_bytes() == entry.read("busybox") and (tmp_path / "bin/sh").readlink() == Path("busybox")
    assert (tmp_path / "init").read_bytes() == (ROOT / "init").read_bytes() and (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    said = subprocess.run([busybox, "--list"], capture_output=True, check=True, text=True).stdout.split()
    assert [name for name in said if name != "busybox"] == applets(entry.read("busybox"))
    assert {"devmem", "dmesg", "md5sum", "dd", "hexdump"} <= set(said)
