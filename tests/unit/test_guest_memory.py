"""The lab guest's page allocator, compiled for this machine, against a plain one."""

import ctypes
import subprocess
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytestmark = pytest.mark.needs("gcc")

LAB = Path(__file__).resolve().parents[2] / "images" / "guests" / "lab"
PAGE, MIB, REACH = 0x1000, 0x100000, 1 << 40
IMAGE = range(0x1000000, 0x1054000)
HARNESS = """
#include "lab.h"
struct boot_info boot;
u64 cpu_reach = 1ul << 40;
void *keep(void *page, int byte, size_t size) { (void)byte, (void)size; return page; }
#define memset keep
#include "memory.c"
void start(void) { boot.entries = 0; limit = FOREVER; }
void add(u64 base, u64 length, u32 type) { boot.e820[boot.entries++] = (struct e820_entry){ base, length, type }; }
"""

Map = Sequence[tuple[int, int, int]]


@pytest.fixture(scope="module")
def allocator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("allocator")
    (folder / "harness.c").write_text(HARNESS)
    symbols = [f"-Wl,--defsym=image_start={IMAGE.start}", f"-Wl,--defsym=image_end={IMAGE.stop}"]
    output = folder / "allocator.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-fno-builtin", f"-I{LAB}", "-o", output, folder / "harness.c", *symbols], check=True)
    library = ctypes.CDLL(str(output))
    library.page_alloc.restype = ctypes.c_void_p
    library.add.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32]
    return library


def _allocated(allocator: ctypes.CDLL, entries: Map, count: int) -> list[int]:
    allocator.start()
    for start, end, kind in entries:
        allocator.add(start, end - start, kind)
    return [page for page in (allocator.page_alloc() for _ in range(count)) if page]


def _expected(entries: Map) -> Iterator[int]:
    """Page after page from the top, each looked at by itself."""
    top = min(max((end for _, end, kind in entries if kind == 1), default=0), REACH) // PAGE * PAGE
    for page in range(top - PAGE, MIB - 1, -PAGE):
        inside = any(kind == 1 and start <= page and page + PAGE <= end for start, end, kind in entries)
        others = [(start, end) for start, end, kind in entries if kind != 1] + [(IMAGE.start, IMAGE.stop)]
        if inside and not any(start < page + PAGE and page < end for start, end in others):
            yield page


_AREA = st.integers(0xF00 * 2, 0x1080 * 2).map(lambda n: n * PAGE // 2)
_ENTRY = st.tuples(_AREA, _AREA, st.sampled_from([1, 1, 1, 2, 5])).map(lambda e: (min(e[:2]), max(e[:2]), e[2]))


@given(st.lists(_ENTRY, max_size=6))
@example([(MIB, 0x1010800, 1)])
@example([(0xFF0000, 0x1060000, 1), (0x1058000, 0x1058001, 2)])
def test_pages_come_from_the_top_of_what_only_usable_entries_hold(allocator: ctypes.CDLL, entries: Map) -> None:
    assert _allocated(allocator, entries, 40) == list(islice(_expected(entries), 40))


def test_none_is_handed_out_twice_and_none_below_1_mib(allocator: ctypes.CDLL) -> None:
    pages = _allocated(allocator, [(0, 0x110000, 1)], 300)
    assert pages == list(range(0x10F000, 0xFFFFF, -PAGE))


@pytest.mark.parametrize(("entries", "first"), [
    ([(0, 0x9FC00, 1), (MIB, 0x77C00000, 1), (0x100000000, 0x200000000, 1), (0xFD00000000, 1 << 40, 2)], 0x1FFFFF000),
    ([(MIB, 0x80000000, 1), (0x100000000, (1 << 40) + (1 << 38), 1)], REACH - PAGE),
    ([(0x100000000, 1 << 40, 1), (0x180000000, 1 << 41, 2)], 0x17FFFF000),
    ([(0x100000000, 0x180000000, 1), (0x200000000, 0x200000000, 2)], 0x17FFFF000),
], ids=["6 GiB", "beyond the CPU's reach", "nearly all of it is reserved too", "an empty entry"])
def test_the_first_page(allocator: ctypes.CDLL, entries: Map, first: int) -> None:
    assert _allocated(allocator, entries, 1) == [first]
