"""The disk: generated blocks against a plain reading of their definition, files, and what was written."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.errors import BadMachine
from hvcore.machine.description import DiskDescription
from hvcore.machine.disk import BLOCK, Disk

U64 = (1 << 64) - 1


def plain_block(seed: int, lba: int) -> bytes:
    """The definition of a generated block, word by word."""
    state = (seed ^ (lba * 0x9E3779B97F4A7C15 & U64)) | 1
    body = b"HVLABBLK" + lba.to_bytes(8, "little") + seed.to_bytes(8, "little")
    for _ in range(60):
        state ^= state >> 12
        state = (state ^ state << 25) & U64
        state ^= state >> 27
        body += (state * 0x2545F4914F6CDD1D & U64).to_bytes(8, "little")
    total = 0xCBF29CE484222325
    for byte in body:
        total = (total ^ byte) * 0x100000001B3 & U64
    return body + total.to_bytes(8, "little")


@given(st.integers(0, U64), st.integers(0, 1 << 40), st.integers(1, 5))
def test_generated_blocks_are_what_their_definition_says(seed: int, lba: int, count: int) -> None:
    disk = Disk(DiskDescription(size=1 << 52, seed=seed))
    assert disk.read(lba, count) == b"".join(plain_block(seed, lba + i) for i in range(count))


@given(st.lists(st.tuples(st.integers(0, 31), st.integers(1, 8), st.integers(0, 255)), max_size=12))
def test_reads_see_the_last_write_and_the_content_beneath(writes: list[tuple[int, int, int]]) -> None:
    disk, model = Disk(DiskDescription(size=40 * BLOCK, seed=3)), bytearray(b"".join(plain_block(3, i) for i in range(40)))
    for lba, count, byte in writes:
        disk.write(lba, bytes([byte]) * BLOCK * count)
        model[lba * BLOCK:(lba + count) * BLOCK] = bytes([byte]) * BLOCK * count
    assert disk.read(0, 40) == model
    disk.reset()
    assert disk.read(5, 2) == plain_block(3, 5) + plain_block(3, 6)


def test_zeroed_blocks_read_zero() -> None:
    disk = Disk(DiskDescription(size=8 * BLOCK))
    disk.zero(2, 3)
    assert disk.read(1, 5) == plain_block(1, 1) + bytes(3 * BLOCK) + plain_block(1, 5)


def test_a_file_is_read_padded_to_a_block_and_never_written(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"a" * BLOCK + b"b" * 10)
    disk = Disk(DiskDescription(image=str(image)))
    assert disk.blocks == 2 and disk.read(0, 2) == b"a" * BLOCK + b"b" * 10 + bytes(BLOCK - 10)
    disk.write(0, b"c" * BLOCK)
    assert disk.read(0, 1) == b"c" * BLOCK and image.read_bytes() == b"a" * BLOCK + b"b" * 10


def test_a_written_image_is_the_same_disk(tmp_path: Path) -> None:
    disk = Disk(DiskDescription(size=64 * BLOCK, seed=9))
    disk.write(4, b"x" * BLOCK)
    disk.write_image(tmp_path / "all.img")
    disk.write_image(tmp_path / "some.img", 5)
    assert (tmp_path / "all.img").read_bytes() == disk.read(0, 64)
    assert Disk(DiskDescription(image=str(tmp_path / "some.img"))).read(0, 5) == disk.read(0, 5)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_a_disk_that_is_gone_has_closed_its_file(tmp_path: Path) -> None:
    image = tmp_path / "one.img"
    image.write_bytes(b"a" * BLOCK)

    def opened() -> int:
        return sum(link.is_symlink() and link.resolve() == image.resolve() for link in Path("/proc/self/fd").iterdir())

    disk = Disk(DiskDescription(image=str(image)))
    assert (disk.blocks, opened()) == (1, 1)
    del disk
    assert opened() == 0


def test_a_missing_or_empty_image_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadMachine, match=r"nowhere\.img cannot be opened \(No such file"):
        Disk(DiskDescription(image=str(tmp_path / "nowhere.img")))
    (tmp_path / "empty.img").touch()
    with pytest.raises(BadMachine, match=r"empty\.img is empty"):
        Disk(DiskDescription(image=str(tmp_path / "empty.img")))


def test_blocks_beyond_the_end_are_our_bug() -> None:
    disk = Disk(DiskDescription(size=4 * BLOCK))
    with pytest.raises(ValueError, match="blocks 3 to 5"):
        disk.read(3, 2)
    with pytest.raises(ValueError, match="blocks 3 to 5"):
        disk.write(3, bytes(2 * BLOCK))
    with pytest.raises(ValueError, match="not whole blocks"):
        disk.write(0, b"x")
