"""Packages into the cache, whole or not at all: by apt (here a small archive and an `apt-cache` and `apt-get` of our own), or files."""

import hashlib
import io
import json
import lzma
import os
import re
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from hvcore.cli import main
from hvcore.errors import BadMachine
from hvcore.linux import cache, linux_image
from hvcore.linux.cpio import archive, file
from hvcore.linux.deb import read_deb, take
from hvcore.linux.fetch import fetch
from hvcore.linux.store import store_files

BUSYBOX = b"\x7fELF" + bytes(60) + b"[\0[[\0ash\0busybox\0insmod\0mount\0setsid\0sh\0\0more"


def elf(release: str) -> bytes:
    code = f"Linux version {release} (me)".encode() + bytes(1 << 16)
    header = struct.pack("<4sBBBxQHHIQQQIHHH", b"\x7fELF", 2, 1, 1, 0, 2, 62, 1, 0x1000000, 64, 0, 0, 64, 56, 1)
    row = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, 0xFFFFFFFF81000000, 0x1000000, len(code), len(code), 0x200000)
    return (header.ljust(64, b"\0") + row).ljust(0x1000, b"\0") + code


def bzimage(release: str) -> bytes:
    data = elf(release)
    packed = lzma.compress(data) + struct.pack("<I", len(data))
    image = bytearray(1024)
    image[0x1F1] = 1
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    struct.pack_into("<BB4sH", image, 0x200, 0xEB, 0x6A, b"HdrS", 0x20F)
    struct.pack_into("<H", image, 0x20E, 0x100)
    image[0x300:0x300 + len(release)] = release.encode()
    struct.pack_into("<II", image, 0x248, 0, len(packed))
    return bytes(image) + packed


def module(*depends: str) -> bytes:
    return b"\x7fELF" + bytes(20) + b"\0depends=" + ",".join(depends).encode() + b"\0"


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive_:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive_.addfile(member, io.BytesIO(data))
    return out.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {"xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress}


def deb(path: Path, package: str, version: str, files: dict[str, bytes], packing: str = "xz", architecture: str = "amd64") -> Path:
    control = f"Package: {package}\nVersion: {version}\nArchitecture: {architecture}\nDescription: a test\n more: of it\n"
    members = {"debian-binary": b"2.0\n", f"control.tar.{packing}": PACK[packing](tar({"control": control.encode()})),
               f"data.tar.{packing}": PACK[packing](tar(files))}
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    path.write_bytes(out)
    return path


def kernel_deb(folder: Path, release: str, version: str, packing: str = "xz", more: dict[str, bytes] | None = None) -> Path:
    files = {f"boot/vmlinuz-{release}": bzimage(release), f"lib/modules/{release}/modules.builtin": b"kernel/lib/crc64.ko\n",
             f"boot/config-{release}": b"CONFIG_X=y\n", **(more or {})}
    return deb(folder / f"linux-image-{release}_{version}_amd64.deb", f"linux-image-{release}", version, files, packing)


def busybox_deb(folder: Path) -> Path:
    return deb(folder / "busybox-static_1%3a1.35_amd64.deb", "busybox-static", "1:1.35", {"bin/busybox": BUSYBOX, "usr/share/x": b"y"})


class Archive:
    """An archive of packages, and the two programs of apt that know it.  `broken` is what apt-get then says and does not do."""

    def __init__(self, folder: Path):
        self.folder, self.pool, self.bin = folder, folder / "pool", folder / "bin"
        self.pool.mkdir()
        self.bin.mkdir()
        self.lists: dict[str, str] = {}
        for name in ("apt-cache", "apt-get"):
            script = self.bin / name
            script.write_text(f"#!{sys.executable} -I\nimport sys\nsys.argv[0] = {name!r}\nARCHIVE = {str(folder)!r}\n" + APT)
            script.chmod(0o755)

    def offer(self, path: Path, depends: str = "") -> None:
        said, data = read_deb(path), path.read_bytes()
        self.lists[said.package] = (f"Package: {said.package}\nVersion: {said.version}\nDepends: {depends}\nSize: {len(data)}\n"
                                    f"SHA256: {hashlib.sha256(data).hexdigest()}\nFilename: {path.name}\n")
        self.write()

    def write(self) -> None:
        (self.folder / "lists.json").write_text(json.dumps(self.lists))

    def log(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines() if (self.folder / "log").exists() else []


APT = r"""
import json, re, shutil, pathlib
lists = json.loads(pathlib.Path(ARCHIVE, "lists.json").read_text())
fields = lambda name: dict(l.split(": ", 1) for l in lists[name].splitlines() if ": " in l)
with open(ARCHIVE + "/log", "a") as log: print(*sys.argv, file=log)
words = [w for w in sys.argv[1:] if not w.startswith("-")]
if words[0] == "search":
    for name in lists:
        if re.search(words[1], name): print(name, "- a kernel")
elif words[0] == "show":
    found = [lists[w.removesuffix(":amd64")] for w in words[1:] if w.removesuffix(":amd64") in lists]
    print("\n".join(found))
    sys.exit(0 if len(found) == len(words) - 1 else 100)
elif words[0] == "download":
    name, version = words[1].split(":amd64=")
    broken = pathlib.Path(ARCHIVE, "broken")
    if broken.exists():
        print(broken.read_text(), file=sys.stderr)
        sys.exit(100)
    if fields(name)["Version"] != version: sys.exit("E: Version was not found")
    shutil.copy(pathlib.Path(ARCHIVE, "pool", fields(name)["Filename"]), ".")
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Three kernels, the default one, busybox, and an empty cache."""
    made = Archive(tmp_path)
    for release, version in (("6.1.0-9-cloud-amd64", "6.1.27-1"), ("6.1.0-56-cloud-amd64", "6.1.192-2"),
                             ("6.12.9+deb12-cloud-amd64", "6.12.9-1~deb12u1")):
        made.offer(kernel_deb(made.pool, release, version))
    made.offer(busybox_deb(made.pool))
    made.offer(deb(made.pool / "meta.deb", "linux-image-cloud-amd64", "6.1.192-2", {}), "linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)")
    made.lists["linux-image-6.1.0-56-cloud-amd64-dbg"] = made.lists["linux-image-6.1.0-57-cloud-amd64-unsigned"] = "Package: no\n"
    made.lists["linux-image-6.12-cloud-amd64"] = "Package: meta\n"
    made.write()
    monkeypatch.setenv("PATH", str(made.bin))
    monkeypatch.setenv("HVLAB_CACHE", str(tmp_path / "cache"))
    return made


def left_over() -> list[str]:
    return [path.name for path in cache.folder().glob(".*")]


def releases() -> list[str]:
    return [entry.release for entry in cache.entries()]


def test_the_default_is_what_debians_package_stands_for(apt: Archive) -> None:
    said: list[str] = []
    [one] = fetch(progress=said.append)
    assert (one.new, one.entry.release, one.entry.version) == (True, "6.1.0-56-cloud-amd64", "6.1.192-2")
    assert one.entry.folder == cache.folder() / "linux-image-6.1.0-56-cloud-amd64_6.1.192-2"
    assert one.entry.read("vmlinux") == elf("6.1.0-56-cloud-amd64") and one.entry.read("vmlinuz") == bzimage("6.1.0-56-cloud-amd64")
    assert one.entry.read("busybox") == BUSYBOX and one.entry.busybox == "1:1.35"
    assert left_over() == []
    assert any("downloading linux-image-6.1.0-56-cloud-amd64: " in text for text in said) and said[-1].startswith("unpacking")


def test_a_second_fetch_downloads_nothing(apt: Archive) -> None:
    fetch()
    before = len([line for line in apt.log() if line.startswith("apt-get")])
    [again] = fetch()
    assert not again.new and "is here already" in str(again)
    assert before == 2 == len([line for line in apt.log() if line.startswith("apt-get")])


@pytest.mark.parametrize(("release", "newest", "expected"), [
    ("6.1", 0, ["6.1.0-56"]), ("6", 0, ["6.12.9+deb12"]), ("6.12", 0, ["6.12.9+deb12"]), ("6.1.0-9", 0, ["6.1.0-9"]),
    ("6.1.0-9-cloud-amd64", 0, ["6.1.0-9"]),
    (None, 1, ["6.12.9+deb12"]), (None, 2, ["6.12.9+deb12", "6.1.0-56"]), (None, 9, ["6.12.9+deb12", "6.1.0-56", "6.1.0-9"]),
    ("6.1", 2, ["6.1.0-56", "6.1.0-9"])])
def test_choosing(apt: Archive, release: str | None, newest: int, expected: list[str]) -> None:
    assert [one.entry.release for one in fetch(release, newest)] == [f"{name}-cloud-amd64" for name in expected]


def test_a_kernel_that_is_no_cloud_one_is_named_whole(apt: Archive) -> None:
    for release in ("6.1.0-56-amd64", "6.1.0-56-rt-amd64", "6.1.0-99-amd64-dbg"):
        apt.offer(kernel_deb(apt.pool, release, "6.1.192-2"))
    for wanted, release in (("6.1.0-56-amd64", "6.1.0-56-amd64"), ("6.1.0-56-rt", "6.1.0-56-rt-amd64"),
                            ("6.1.0-56", "6.1.0-56-cloud-amd64"), ("6.1", "6.1.0-56-cloud-amd64")):
        assert [one.entry.release for one in fetch(wanted)] == [release]
    with pytest.raises(BadMachine, match=r"offers no kernel 6\.1\.0-99"):
        fetch("6.1.0-99-amd64-dbg")


@pytest.mark.parametrize("wanted", ["6.1.0-5", "5.10", "", "6.12.9+deb1", "6.1.*"])
def test_no_such_kernel(apt: Archive, wanted: str) -> None:
    with pytest.raises(BadMachine, match=r"offers no kernel .* \(the newest are 6.12.9\+deb12-cloud-amd64, 6.1.0-56-cloud-amd64, 6.1.0-9"):
        fetch(wanted)


@pytest.mark.parametrize(("said", "expected"), [
    ("E: Failed to fetch http://x  Could not connect to x", "could not be downloaded .*Could not connect.*check the network"),
    ("E: Failed to fetch x  Error writing to file - write (28: No space left on device)", "disk of .* is full: make room"),
    ("E: Failed to fetch x  404  Not Found", "is no more in the archive: run `sudo apt-get update`"), ("", "did not say why")])
def test_a_download_that_fails_leaves_nothing(apt: Archive, said: str, expected: str) -> None:
    (apt.folder / "broken").write_text(said)
    with pytest.raises(BadMachine, match=expected) as caught:
        fetch()
    assert "\n" not in str(caught.value) and releases() == left_over() == []


def test_a_package_that_was_tampered_with(apt: Archive) -> None:
    path = next(apt.pool.glob("linux-image-6.1.0-56*"))
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadMachine, match=f"came with {len(data)} bytes and another SHA-256"):
        fetch()
    assert releases() == left_over() == []


def test_no_apt(apt: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadMachine, match=r"there is no apt on this machine: download .* and run `hvlab linux fetch --deb FILE FILE`"):
        fetch()


def test_lists_without_kernels(apt: Archive) -> None:
    apt.lists.clear()
    apt.write()
    for arguments in ((), ("6.1",), (None, 2)):
        with pytest.raises(BadMachine, match="run `sudo apt-get update`"):
            fetch(*arguments)


def test_a_full_disk(apt: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    with pytest.raises(BadMachine, match=r"0 MiB free and the kernels need .* make room there, or name another folder in HVLAB_CACHE"):
        fetch()


def test_a_cache_that_cannot_be_written(apt: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("a file")
    monkeypatch.setenv("HVLAB_CACHE", str(tmp_path / "plain"))
    with pytest.raises(BadMachine, match=r"cache .* cannot be|nothing can be written to the cache"):
        fetch()


def test_interrupted_while_it_writes(apt: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each file that is written: stopped there, nothing is left, and what was there before is still whole."""
    fetch()
    before = cache.entries()[0]
    write = Path.write_bytes
    for stop in range(3):
        count = 0

        def stopping(path: Path, data: bytes) -> int:
            nonlocal count
            count += 1
            if count > stop:  # noqa: B023 -- used at once
                raise KeyboardInterrupt
            return write(path, data)

        monkeypatch.setattr(Path, "write_bytes", stopping)
        with pytest.raises(KeyboardInterrupt):
            store_files([*apt.pool.glob("linux-image-6.1.0-56*.deb"), *apt.pool.glob("busybox*")], lambda _text: None)
        monkeypatch.setattr(Path, "write_bytes", write)
        assert left_over() == [] and cache.lookup(before.package, before.version) == before


def test_what_a_killed_fetch_left_is_swept(apt: Archive) -> None:
    old, young = cache.folder() / ".new-old", cache.folder() / ".new-young"
    for path in (old, young):
        path.mkdir(parents=True)
    os.utime(old, (0, 0))
    fetch()
    assert left_over() == [".new-young"] and releases() == ["6.1.0-56-cloud-amd64"]


def test_a_damaged_cache(apt: Archive) -> None:
    """A file of another length, a changed byte, a lost list: told, never used, and mended by the next fetch."""
    [one] = fetch()
    folder = one.entry.folder
    data = (folder / "vmlinux").read_bytes()
    for name, damaged in (("vmlinux", data[:-1]), ("vmlinux", data[:9999] + b"\xff" + data[10000:]), ("entry.json", b"{"),
                          ("entry.json", b'{"format": 9}'), ("busybox", b"")):
        (folder / name).write_bytes(damaged)
        with pytest.raises(BadMachine, match=f"is damaged .*run `hvlab linux remove {folder.name}`, then fetch it again"):
            linux_image("6.1")
        assert fetch()[0].new
        assert linux_image("6.1").version == "6.1.0-56-cloud-amd64"


def test_find_and_sort(apt: Archive) -> None:
    with pytest.raises(BadMachine, match=r"^no Linux kernel here: run `hvlab linux fetch`$"):
        linux_image()
    fetch(newest=9)
    assert releases() == ["6.12.9+deb12-cloud-amd64", "6.1.0-56-cloud-amd64", "6.1.0-9-cloud-amd64"]
    assert linux_image().version == "6.12.9+deb12-cloud-amd64" and linux_image("6.1").version == "6.1.0-56-cloud-amd64"
    with pytest.raises(BadMachine, match=r"no Linux kernel 5.10 here, only .*run `hvlab linux fetch --release 5.10`"):
        linux_image("5.10")


def test_files_of_ones_own(apt: Archive, tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "vmlinux", tmp_path / "initrd"
    kernel.write_bytes(elf("7.0"))
    initrd.write_bytes(archive([file("init", b"#!/bin/sh")]))
    both = linux_image(kernel=kernel, initrd=initrd)
    assert (both.version, both.initrd, both.elf.entry) == ("7.0", initrd.read_bytes(), 0x1000000)
    with pytest.raises(BadMachine, match="no busybox here for the initramfs"):
        linux_image(kernel=kernel)
    fetch()
    assert linux_image(initrd=initrd).initrd == both.initrd and linux_image(initrd=initrd).version == "6.1.0-56-cloud-amd64"
    assert b"linux 7.0\n" in linux_image(kernel=kernel).initrd
    for wrong in (tmp_path / "nothing", tmp_path):
        with pytest.raises(BadMachine, match="cannot be read"):
            linux_image(kernel=wrong)
    assert "kernel 0.1 MiB" in repr(both) and "<p>Linux 7.0" in both._repr_html_()


@pytest.mark.parametrize("packing", PACK)
def test_modules_come_along(apt: Archive, tmp_path: Path, packing: str) -> None:
    """Whatever nvme depends on through three modules, wherever it lies, but for what is built in; usr-merged and packed as well."""
    host, release = "usr/lib/modules/6.6.6/kernel/drivers/nvme/host", "6.6.6"
    more = {f"{host}/nvme.ko.xz": lzma.compress(module("nvme-core")), f"{host}/nvme-core.ko": module("nvme-auth", "crc64", "t10-pi"),
            f"{host}/nvme-auth.ko.zst": PACK["zst"](module("lost")), "usr/lib/modules/6.6.6/kernel/t10-pi.ko": module("far"),
            "usr/lib/modules/6.6.6/updates/far.ko": module(),
            "usr/lib/modules/6.6.6/kernel/edu.ko": module()}
    [entry] = store_files([kernel_deb(tmp_path, release, "1", packing, more), busybox_deb(tmp_path)], lambda _text: None)
    assert entry.modules == ("nvme_auth", "far", "t10_pi", "nvme_core", "nvme")
    assert entry.read("modules/nvme.ko") == module("nvme-core")
    initrd = linux_image(release).initrd
    assert b"nvme_auth.ko\nfar.ko\nt10_pi.ko\nnvme_core.ko\nnvme.ko\n" in initrd
    kernel = tmp_path / "own"
    kernel.write_bytes(elf("6.6.7"))
    assert b"nvme.ko" not in linux_image(kernel=kernel).initrd


def test_packages_that_do_not_fit(apt: Archive, tmp_path: Path) -> None:
    kernel, busybox = kernel_deb(tmp_path, "6.6.6", "1"), busybox_deb(tmp_path)
    other = deb(tmp_path / "o.deb", "hello", "1", {})
    arm = deb(tmp_path / "a.deb", "linux-image-6.6.6-arm64", "1", {}, architecture="arm64")
    empty = deb(tmp_path / "e.deb", "linux-image-6.6.6-dbg", "1", {"usr/x": b""})
    nothing = deb(tmp_path / "n.deb", "busybox-static", "1", {})
    text, cut = tmp_path / "text", tmp_path / "cut.deb"
    text.write_text("hello")
    cut.write_bytes(kernel.read_bytes()[:-500])
    for files, expected in (([kernel], "exactly one busybox-static is missing"), ([busybox], "VERSION-cloud-amd64 is missing"),
                            ([kernel, busybox, other], "is the package hello"), ([arm, busybox], "is for arm64"),
                            ([empty, busybox], "holds no kernel"), ([kernel, nothing], "holds no busybox"),
                            ([text], "is no Debian package"), ([tmp_path / "absent"], "cannot be read"), ([tmp_path], "cannot be read"),
                            ([cut, busybox], "damaged Debian package .*cut off")):
        with pytest.raises(BadMachine, match=expected) as caught:
            store_files(files, lambda _text: None)
        assert "\n" not in str(caught.value)
    assert releases() == []


def test_a_package_writes_nothing_by_its_own_names(apt: Archive, tmp_path: Path) -> None:
    evil = deb(tmp_path / "x.deb", "linux-image-6.6.6", "1", {"../../../evil": b"x", "boot/vmlinuz-../../up": bzimage("../../x")})
    assert set(take(evil, lambda _name: True)) == {"../../../evil", "boot/vmlinuz-../../up"}
    [entry] = store_files([evil, busybox_deb(tmp_path)], lambda _text: None)
    assert entry.folder.parent == cache.folder() and entry.release == "../../x"
    strange = deb(tmp_path / "y.deb", "linux-image-6/../../../evil", "1/..", {"boot/vmlinuz-x": bzimage("x")})
    [entry] = store_files([strange, busybox_deb(tmp_path)], lambda _text: None)
    assert entry.folder.parent == cache.folder() and not list(tmp_path.rglob("evil*"))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVLAB_CACHE", "/a")
    assert cache.folder() == Path("/a/linux")
    monkeypatch.delenv("HVLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache.folder() == Path("/b/hvlab/linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/c")
    assert cache.folder() == Path("/c/.cache/hvlab/linux")


def test_the_command_line(apt: Archive, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> tuple[int, str, str]:
        status = main(["linux", *words])
        return status, *capsys.readouterr()

    assert said("list")[1].startswith("no Linux kernel in")
    status, out, err = said("fetch", "--all-newest", "2")
    assert (status, err) == (0, "") and [line.partition(":")[0] for line in out.splitlines()] == releases()
    status, out, err = said("list")
    assert "6.1.0-56-cloud-amd64 " in out and "busybox 1:1.35" in out and len(out.splitlines()) == 2
    listed = json.loads(said("list", "--json")[1])
    assert listed["folder"] == str(cache.folder()) and [k["release"] for k in listed["kernels"]] == releases() and listed["damaged"] == []
    assert listed["kernels"][0]["size"] == sum(listed["kernels"][0]["files"].values())
    assert said("remove", "6")[2] == f"hvlab: 6 fits several kernels ({', '.join(releases())}): name one, or --all\n"
    assert said("remove", "6.12")[0] == 0 and releases() == ["6.1.0-56-cloud-amd64"]
    folder = cache.entries()[0].folder
    (folder / "entry.json").write_text("?")
    assert f"{folder.name}: damaged: " in said("list")[1] and json.loads(said("list", "--json")[1])["damaged"][0]["folder"] == str(folder)
    assert said("remove", folder.name)[:2] == (0, f"removed {folder}\n") and cache.damaged() == {}
    again = fetch("6.1.0-56")[0].entry
    (again.folder / "busybox").write_bytes(bytes(len(BUSYBOX)))
    with pytest.raises(BadMachine, match=rf"busybox is not what was fetched\): run `hvlab linux remove {re.escape(again.folder.name)}`"):
        linux_image()
    assert said("remove", again.folder.name)[:2] == (0, f"removed {again.folder}\n") and releases() == []
    files = [str(p) for p in (*apt.pool.glob("linux-image-6.1.0-9*"), *apt.pool.glob("busybox*"))]
    assert json.loads(said("fetch", "--json", "--deb", *files)[1])["kernels"][0]["new"] is True
    for words in (["remove"], ["remove", "6.12"], ["remove", "--all", "6.1"], ["fetch", "--release", "9"],
                  ["fetch", "--release", "6.1", "--deb", *files], ["fetch", "--deb", "/nothing"]):
        status, out, err = said(*words)
        assert (status, out, err.count("\n")) == (2, "", 1), words
    assert said("remove", "--all")[0] == 0 and releases() == []
    for words in (["linux"], ["linux", "fetch", "--all-newest", "0"], ["linux", "fly"]):
        with pytest.raises(SystemExit, match="2"):
            main(words)
