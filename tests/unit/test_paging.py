"""Page-table formats: what single entries mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvcore.spec import vtd
from hvcore.spec.paging import EPT, LONG_MODE, NESTED, VTD, PagingFormat, vtd_format

SUPERPAGES, SNOOP = 3 << 34, 1 << 7


@pytest.mark.parametrize(("fmt", "word", "rights"), [
    (VTD, 0x1000, "-"), (VTD, 0x1001, "r"), (VTD, 0x1002, "w"), (VTD, 0x1003, "rw"), (VTD, 0x1004, "-"),
    (EPT, 0x1004, "x"), (EPT, 0x1007, "rwx"), (EPT, 0x1000, "-"),
    (LONG_MODE, 0x1001, "rx"), (LONG_MODE, 0x1003, "rwx"), (LONG_MODE, 1 << 63 | 0x1007, "rwu"), (LONG_MODE, 0x1006, "-"),
    (NESTED, 0x1003, "-"), (NESTED, 0x1005, "rx"), (NESTED, 1 << 63 | 0x1007, "rw"),
])
def test_rights_of_an_entry(fmt: PagingFormat, word: int, rights: str) -> None:
    assert fmt.text(fmt.rights(word)) == rights


def test_presence_is_not_the_same_as_a_right() -> None:
    assert NESTED.is_present(0x1003)
    assert NESTED.rights(0x1003) == 0
    assert not VTD.is_present(0x1004)
    assert EPT.is_present(0x1004)


def test_leaves_and_targets() -> None:
    assert VTD.is_leaf(0x1003, 1)
    assert not VTD.is_leaf(0x1003, 2)
    assert VTD.is_leaf(0x83, 2)
    assert VTD.is_leaf(0x83, 3)
    assert not VTD.is_leaf(0x83, 4)
    assert VTD.target(0x4020_1083, 2) == 0x4020_0000
    assert VTD.target(0x4020_1003, 2) == 0x4020_1000
    assert VTD.target(0xFFF0_0000_4020_1803, 1) == 0x4020_1000


def test_levels() -> None:
    assert [VTD.span(n) for n in (1, 2, 3, 4)] == [4 << 10, 2 << 20, 1 << 30, 512 << 30]
    assert [VTD.index(0x0000_1234_5678_9ABC, n) for n in (4, 3, 2, 1)] == [0x24, 0xD1, 0xB3, 0x189]


@given(st.integers(0, (1 << 64) - 1), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(32, 52))
def test_vtd_reserved_bits_are_those_of_the_specification(word: int, level: int, large: bool, snoop: bool, width: int) -> None:
    cap, ecap = SUPERPAGES * large, SNOOP * snoop
    fmt = vtd_format(cap, ecap, width)
    leaf = level == 1 or bool(word & vtd.SP and large and level in (2, 3))
    expected = word & vtd.entry_reserved(level, leaf, cap, ecap, width) if word & 3 else 0
    assert fmt.is_leaf(word, level) == leaf
    assert fmt.reserved(word, level) == expected


def test_a_superpage_that_the_unit_lacks_is_a_reserved_bit() -> None:
    fmt = vtd_format(0, 0, 39)
    assert not fmt.is_leaf(0x4020_0083, 2)
    assert fmt.reserved(0x4020_0083, 2) == vtd.SP
    assert fmt.reserved(0x4020_0083, 1) == 0
    assert vtd_format(1 << 34, 0, 39).reserved(0x4020_1083, 2) == 0x1000
