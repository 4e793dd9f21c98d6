"""Our remapping unit against QEMU's `intel-iommu`, random scenes: tables with noise, stale caches, requests of all sizes and devices.

`HVLAB_CONFORMANCE=N` plays N requests; `HVLAB_CONFORMANCE_SEED=N` plays other scenes; `-s` shows what was counted.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from vtd_play import VARIANTS, Pair, answer, report, shrink
from vtd_scene import Variant
from vtd_scenes import random_scene

pytestmark = pytest.mark.needs("qemu-system-x86_64")

REQUESTS = int(os.environ.get("HVLAB_CONFORMANCE", "56000"))
SEED = int(os.environ.get("HVLAB_CONFORMANCE_SEED", "0"))
REASONS = {2, 3, 4, 5, 6, 11, 12, 14}
"""That every run has; the others are rarer."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(stack)


def test_shrinking_leaves_what_the_failure_needs() -> None:
    scene = random_scene(1, VARIANTS[0])
    wanted = {scene.operations[17], scene.operations[101]}
    page = min(scene.tables)
    word = next(i for i in range(0, 4096, 8) if any(scene.tables[page][i:i + 8]))
    left = shrink(scene, lambda s: wanted <= set(s.operations) and any(s.tables.get(page, b"")[word:word + 8]))
    assert set(left.operations) == wanted and list(left.tables) == [page]
    assert left.tables[page][word:word + 8] == scene.tables[page][word:word + 8] and left.tables[page].count(0) >= 4088


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_random_scenes(pair: Pair, variant: Variant) -> None:
    counts, answers, requests, seed = Counter[str](), Counter[int | str](), 0, SEED + 1_000_000 * VARIANTS.index(variant)
    while requests < REQUESTS // len(VARIANTS):
        scene = random_scene(seed, variant)
        ours, verdict = pair.play(scene, variant)
        assert not verdict.unexplained, f"seed {seed}: " + report(pair, scene, variant)
        counts += verdict.counts
        answers.update(map(answer, ours))
        requests, seed = requests + verdict.requests, seed + 1
    print(f"\n{variant}: {requests} requests; {dict(counts.most_common())}; {dict(answers.most_common())}")
    assert answers["ok"] > requests / 10 and set(answers) >= REASONS
    assert not counts["together"] > requests / 1000
