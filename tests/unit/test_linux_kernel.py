"""A kernel's file on the host: bzImages in every format, made here and Debian's own; what is damaged or hostile is one sentence."""

import bz2
import gzip
import lzma
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hvcore.errors import BadMachine
from hvcore.linux import unpack as unpacking
from hvcore.linux.kernel import SETUP_HEADER, KernelFile, read_kernel, setup_header_of
from hvcore.spec.linuxboot import load_elf

RELEASE = "6.9.0-lab"
BANNER = f"Linux version {RELEASE} (me@here) #1\n".encode()
SECTORS, END = 3, 0x26C


def vmlinux(size: int = 3 << 20) -> bytes:
    """A small ELF that is a kernel as far as anyone can tell, with incompressible bytes in it."""
    code = BANNER + os.urandom(1 << 16) + bytes(size - len(BANNER) - (1 << 16))
    header = struct.pack("<4sBBBxQHHIQQQIHHH", b"\x7fELF", 2, 1, 1, 0, 2, 62, 1, 0x1000000, 64, 0, 0, 64, 56, 1)
    row = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, 0xFFFFFFFF81000000, 0x1000000, len(code), len(code) + 4096, 0x200000)
    return (header.ljust(64, b"\0") + row).ljust(0x1000, b"\0") + code


def lz4_legacy(data: bytes) -> bytes:
    """As `lz4 -l` writes: blocks of 8 MiB, each after its packed length."""
    blocks = [lz4.block.compress(data[i:i + (8 << 20)], store_size=False) for i in range(0, len(data), 8 << 20)]
    return bytes.fromhex("02214c18") + b"".join(struct.pack("<I", len(b)) + b for b in blocks)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda d: gzip.compress(d)[:-4], "bzip2": bz2.compress, "xz": lambda d: lzma.compress(d, check=lzma.CHECK_CRC32),
    "lzma": lambda d: lzma.compress(d, lzma.FORMAT_ALONE), "lz4": lz4_legacy, "zstd": zstandard.ZstdCompressor().compress}


def bzimage(packed: bytes, size: int, version: int = 0x20F) -> bytes:
    """A bzImage around a packed kernel; `size` is what it says that this unpacks to."""
    image = bytearray((SECTORS + 1) * 512)
    offset = 0x20
    image[SETUP_HEADER] = SECTORS
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    struct.pack_into("<BB4sH", image, 0x200, 0xEB, END - 0x202, b"HdrS", version)
    struct.pack_into("<H", image, 0x20E, 0x300 - 0x200)
    image[0x300:0x300 + 40] = f"{RELEASE} (me@here) #1 SMP".encode().ljust(40, b"\0")
    struct.pack_into("<II", image, 0x248, offset, len(packed) + 4)
    return bytes(image) + bytes(offset) + packed + struct.pack("<I", size) + b"a signature may follow"


ELF = vmlinux()


@pytest.mark.parametrize("name", PACKERS)
def test_every_format(name: str) -> None:
    image = bzimage(PACKERS[name](ELF), len(ELF))
    read = read_kernel(image)
    assert read == KernelFile(RELEASE, ELF, image[SETUP_HEADER:END])
    assert read.elf == load_elf(ELF)


def test_lz4_of_several_blocks() -> None:
    elf = vmlinux(20 << 20)
    assert read_kernel(bzimage(lz4_legacy(elf), len(elf))).vmlinux == elf


def test_setup_header_needs_only_the_beginning() -> None:
    image = bzimage(PACKERS["xz"](ELF), len(ELF))
    assert setup_header_of(image[:1024]) == read_kernel(image).setup_header
    assert setup_header_of(image[:1024])[0x202 - SETUP_HEADER:0x206 - SETUP_HEADER] == b"HdrS"


def test_a_vmlinux_gets_a_header() -> None:
    read = read_kernel(ELF)
    page = bytes(SETUP_HEADER) + read.setup_header
    assert (read.release, read.vmlinux) == (RELEASE, ELF)
    assert page[0x1FE:0x200] == b"\x55\xaa" and page[0x202:0x206] == b"HdrS"
    assert len(page) == 0x202 + page[0x201]
    version, flags = struct.unpack_from("<H", page, 0x206)[0], struct.unpack_from("<H", page, 0x236)[0]
    assert version >= 0x20C and flags & 1
    assert struct.unpack_from("<QI", page, 0x258) == (0x1000000, (3 << 20) + 4096)


def test_a_setup_header_made_here_is_one_for_the_reader() -> None:
    assert setup_header_of((bytes(SETUP_HEADER) + read_kernel(ELF).setup_header).ljust(1024, b"\0")) == read_kernel(ELF).setup_header


@pytest.mark.parametrize("name", PACKERS)
def test_a_bomb_is_not_unpacked(name: str) -> None:
    """A stream that makes 80 MiB and says 1 MiB is refused, and takes no more memory than it says (LZ4: a block of 8 MiB)."""
    image = bzimage(PACKERS[name](bytes(80 << 20)), 1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(BadMachine, match=f"{name} stream should unpack to 1048576 bytes, but makes more"):
            read_kernel(image)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_more_than_a_gib_is_refused_at_once() -> None:
    with pytest.raises(BadMachine, match="takes 1073741824 at most"):
        read_kernel(bzimage(PACKERS["gzip"](ELF), 0xFFFFFFFF))


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("keep", [1, 100, 50_000])
def test_a_cut_stream(name: str, keep: int) -> None:
    """The stream ends early, though the bzImage is whole."""
    packed = PACKERS[name](ELF)
    with pytest.raises(BadMachine) as caught:
        read_kernel(bzimage(packed[:len(packed) - keep], len(ELF)) if keep > 1 else bzimage(packed[:8], len(ELF)))
    assert one_sentence(caught.value)


def test_a_cut_file_says_so() -> None:
    image = bzimage(PACKERS["xz"](ELF), len(ELF))
    with pytest.raises(BadMachine, match=rf"cut off: it should have at least {len(image) - 22} bytes and has {len(image) // 2}"):
        read_kernel(image[:len(image) // 2])


def test_an_unknown_format() -> None:
    with pytest.raises(BadMachine, match=r"unknown format \(it begins with 89 4c 5a 4f; known are gzip, bzip2, xz, lzma, lz4, zstd\)"):
        read_kernel(bzimage(bytes.fromhex("894c5a4f000d0a1a0a") + bytes(100), 1000))


@pytest.mark.parametrize(("data", "says"), [
    (b"", "neither a bzImage"), (b"MZ" + bytes(2000), "neither a bzImage"), (os.urandom(600), "neither a bzImage"),
    (bzimage(b"", 0, version=0x207), "boot protocol 2.07 is older than 2.08"), (b"\x7fELF" + bytes(100), "not for x86-64"),
    (bzimage(PACKERS["gzip"](b"no ELF at all"), 13), "not an ELF file"), (bzimage(b"", 0)[:0x264], "cannot be"),
    (bzimage(b"", 0), "holds no packed kernel")])
def test_what_is_no_kernel(data: bytes, says: str) -> None:
    with pytest.raises(BadMachine, match=says) as caught:
        read_kernel(data)
    assert one_sentence(caught.value)


SMALL = vmlinux(1 << 17)
IMAGES = [bzimage(pack(SMALL), len(SMALL)) for pack in PACKERS.values()] + [SMALL]


@given(st.sampled_from(IMAGES), st.lists(st.tuples(st.integers(0, 1 << 18), st.integers(0, 255)), min_size=1, max_size=8),
       st.one_of(st.none(), st.integers(0, 1 << 18)))
def test_damage_is_read_or_refused(image: bytes, changes: list[tuple[int, int]], cut: int | None) -> None:
    """Whatever bytes change: a kernel of the size that was said, or one sentence."""
    data = bytearray(image)
    for place, value in changes:
        data[place % (0x300 if value & 1 else len(data))] = value
    said, read = None, None
    try:
        read = read_kernel(bytes(data[:cut]))
    except BadMachine as e:
        said = e
    assert one_sentence(said) if said else read and read.vmlinux[:4] == b"\x7fELF"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    with pytest.raises(BadMachine, match="needs the Python package lz4 to be unpacked: run `pip install lz4`"):
        unpacking.unpack(lz4_legacy(b"x" * 100), 100)


@pytest.mark.needs("readelf")
@pytest.mark.parametrize("which", ["default", "newest", "second"])
def test_debians_kernels(linux_cache: dict[str, str], which: str) -> None:
    """What comes out of Debian's bzImage has the size that the image says, and is what readelf reads, with the banner of the package."""
    from hvcore.linux import cache, linux_image
    release = linux_cache[which]
    entry = cache.find(release)
    image, elf = entry.read("vmlinuz"), entry.read("vmlinux")
    assert entry.package == f"linux-image-{entry.release}"
    assert f"Linux version {entry.release} (".encode() in elf
    sectors, (offset, length) = image[0x1F1], struct.unpack_from("<II", image, 0x248)
    end = (sectors + 1) * 512 + offset + length
    assert int.from_bytes(image[end - 4:end], "little") == len(elf)
    assert read_kernel(image) == KernelFile(entry.release, elf, image[0x1F1:0x202 + image[0x201]])
    said = subprocess.run(["readelf", "-lW", str(entry.folder / "vmlinux")], capture_output=True, text=True, check=True).stdout
    loads = [line.split() for line in said.splitlines() if line.split()[:1] == ["LOAD"]]
    loaded = {int(row[3], 16): (int(row[4], 16), int(row[5], 16)) for row in loads}
    linux = linux_image(release)
    assert {s.address: (len(s.data), s.size) for s in linux.elf.segments} == {a: sizes for a, sizes in loaded.items() if sizes[1]}
    assert f"Entry point {linux.elf.entry:#x}" in said
    assert linux.setup_header == image[0x1F1:0x202 + image[0x201]] and linux.version == entry.release


@pytest.mark.skipif(not Path("/usr/bin/lz4").exists(), reason="no lz4 here")
def test_lz4_as_the_program_writes_it(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(ELF)
    packed = subprocess.run(["lz4", "-l", "-9", "-c", str(tmp_path / "x")], capture_output=True, check=True).stdout
    assert read_kernel(bzimage(packed, len(ELF))).vmlinux == ELF


def one_sentence(error: BadMachine) -> bool:
    text = str(error)
    return "\n" not in text and 20 < len(text) < 400
