"""Our remapping unit against QEMU's `intel-iommu`, directed scenes: the specification's answers, and every departure by its name."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from vtd_cases import BOTH, CASES, Case, Plain, interrupts
from vtd_play import VARIANTS, Pair, answer, report
from vtd_scene import ABSENT, Registers

pytestmark = pytest.mark.needs("qemu-system-x86_64")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(stack)


@pytest.mark.parametrize("one", CASES, ids=lambda c: c.name)
def test_directed(pair: Pair, one: Case) -> None:
    for variant in one.variants:
        builder = Plain(variant)
        operations = one.operations(builder) if callable(one.operations) else one.operations
        scene = builder.scene(operations)
        ours, verdict = pair.play(scene, variant)
        assert tuple(map(answer, ours)) == one.answers
        assert not verdict.unexplained, report(pair, scene, variant)
        assert set(verdict.counts) - {"junk-pasid"} == one.differences


def test_8_the_root_table_is_absent(pair: Pair) -> None:
    scene = Plain(VARIANTS[0]).scene(list(BOTH), root=ABSENT)
    ours, verdict = pair.play(scene, VARIANTS[0])
    assert list(map(answer, ours)) == [8, 8] and not verdict.unexplained


def test_interrupts_of_devices_arrive_in_both(pair: Pair) -> None:
    builder = Plain(VARIANTS[0])
    scene = builder.scene(interrupts(builder))
    ours, verdict = pair.play(scene, VARIANTS[0])
    assert isinstance(ours[-1], Registers) and ours[-1].vectors == frozenset((0x41, 0x42))
    assert not verdict.unexplained and not verdict.counts
