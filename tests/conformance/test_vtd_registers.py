"""Our remapping unit's register page and invalidation queue against QEMU's, register by register: directed and random writes."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from vtd_play import VARIANTS, Pair, report
from vtd_register_cases import REGISTER_CASES, RegisterCase, every_bit
from vtd_register_scenes import random_register_scene
from vtd_scene import DATA, FSTS, Outcome, Registers, Variant
from vtd_scenes import Builder

pytestmark = pytest.mark.needs("qemu-system-x86_64")

LOOKS = int(os.environ.get("HVLAB_CONFORMANCE_LOOKS", "4000"))
SOUND_DESCRIPTORS = (1 | 1 << 4, 2 | 1 << 4, 2 | 3 << 4, 5 | 1 << 4, 5 | 1 << 5)
SEED = int(os.environ.get("HVLAB_CONFORMANCE_SEED", "0"))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(stack)


def value(page: Registers, offset: int, wanted: int) -> int:
    """A register of the page, of 32 bits unless it cannot hold what is wanted."""
    word = page.words[offset // 8] >> 8 * (offset % 8)
    return word if offset % 8 == 0 and wanted >> 32 else word & 0xFFFF_FFFF


@pytest.mark.parametrize("one", REGISTER_CASES, ids=lambda c: c.name)
def test_directed_registers(pair: Pair, one: RegisterCase) -> None:
    variant = VARIANTS[0]
    scene = Builder(variant).scene(one.operations, root=None)
    ours, verdict = pair.play(scene, variant)
    page = ours[-1]
    assert isinstance(page, Registers)
    assert {offset: value(page, offset, wanted) for offset, wanted in one.expected.items()} == one.expected
    assert page.vectors == one.vectors
    if one.word is not None:
        assert [o.where for o in ours if isinstance(o, Outcome)] == [one.word]
    assert not verdict.unexplained, report(pair, scene, variant)
    assert set(verdict.counts) == one.differences


@pytest.mark.parametrize("descriptor", [*((low, 0) for low in SOUND_DESCRIPTORS[:2]), *((low, DATA) for low in SOUND_DESCRIPTORS[2:]),
                                        (0, 0), (3, 0), (4, 0), (6, 0), (7, 0), (8, 0)], ids=lambda d: f"{d[0]:#x}")
def test_every_bit_of_a_descriptor(pair: Pair, descriptor: tuple[int, int]) -> None:
    variant = VARIANTS[0]
    scene = Builder(variant).scene(every_bit(*descriptor), root=None)
    ours, verdict = pair.play(scene, variant)
    errors = [bool(value(o, FSTS, 0) & 1 << 4) for o in ours if isinstance(o, Registers)]
    assert len(errors) > 100 and True in errors and (False in errors or descriptor[0] not in SOUND_DESCRIPTORS)
    assert not verdict.unexplained, report(pair, scene, variant)
    assert set(verdict.counts) <= {"descriptors-without-capability", "wait-without-effect", "wait-status-lost"}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_random_registers(pair: Pair, variant: Variant) -> None:
    counts, looks, seed = Counter[str](), 0, SEED + 1_000_000 * VARIANTS.index(variant)
    pages = set[Registers]()
    while looks < LOOKS // len(VARIANTS):
        scene = random_register_scene(seed, variant)
        ours, verdict = pair.play(scene, variant)
        assert not verdict.unexplained, f"seed {seed}: " + report(pair, scene, variant)
        counts += verdict.counts
        pages.update(r for r in ours if isinstance(r, Registers))
        looks, seed = looks + sum(isinstance(r, Registers) for r in ours), seed + 1
    print(f"\n{variant}: {looks} looks at the registers, {len(pages)} different; {dict(counts.most_common())}")
    assert len(pages) > looks / 3 and not counts["together"] > looks / 100
    assert any(p.vectors for p in pages)
