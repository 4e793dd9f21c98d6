"""`hvlab translate`: files of requests with mutations, under tables of noise with RAM named beside them; the answers against the walker."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hvcore.errors import HvlabError
from hvcore.inspect.dump import PageStore
from hvcore.machine.vtd.walk import Walker
from hvcore.spec.dma import Direction
from hvcore.spec.pci import format_bdf
from hvcore.spec.vtd import in_interrupt_range
from hvcore.translate import GENERIC_CAP, GENERIC_ECAP, Answer, FilePages, FileUnit, answer_table, read_requests

from .mutate import check_sentence, mutated, number, often, spoilt_text
from .noise import CAPS, Noise

__all__ = ["TARGETS"]

PAGE = 4096
_VALUES: tuple[Any, ...] = (None, True, -1, 1.5, 1e300, "0x1000", "x", "", [], {}, 1 << 64, (1 << 64) - 1, 1 << 40, "00:02.0",
                            "0001:00:02.0", "ff:1f.7", "00:20.0", "read", "WRITE", "9" * 5000, "\ud800")


def _line(r: Random, noise: Noise) -> str:
    """One request as JSON; a wrong value, a missing key or one too many now and then."""
    q = noise.request((0, 1, 4, 8, 4096))
    size = r.choice((q.length, q.length, 8192, 100_000))
    fields: dict[str, Any] = {"bdf": format_bdf(q.source), "addr": q.iova, "size": min(size, (1 << 64) - q.iova), "type": q.access.value}
    if often(r, 0.004):
        fields[r.choice([*fields, "more"])] = r.choice(_VALUES)
    if often(r, 0.002):
        del fields[r.choice([*fields])]
    return json.dumps(fields)


def _unit(r: Random, noise: Noise) -> tuple[FileUnit, Walker]:
    """A unit over the pages of noise as a file holds them, and a walker over the same pages."""
    cap, ecap = r.choice((*CAPS, (GENERIC_CAP, GENERIC_ECAP)))
    noise.suit(cap)
    address = np.array(noise.pages, np.uint64)
    words = np.stack([noise.memory.u64(p, 512).copy() for p in noise.pages])
    ram = [(start, start + number(r, 24)) for start in (0, noise.memory.end, number(r, 52)) if often(r, 0.5)]
    pages = FilePages(PageStore(address, words), ram)
    haw = r.choice((39, 48, 52))
    return FileUnit(pages, noise.root, cap, ecap, haw), Walker(pages, cap, ecap, haw)


def _check(answer: Answer, walker: Walker, root: int) -> None:
    """What must hold of every answer, and its first page against the walker."""
    assert json.dumps(answer.to_json())
    reached = sum(end - start for start, end in answer.phys)
    assert reached == (0 if answer.reason else answer.size) and (answer.how == "blocked") == bool(answer.reason)
    walk = walker.walk(root, answer.source, answer.iova)
    if not answer.size or in_interrupt_range(answer.iova):
        return
    refused = walk.refusal(Direction(answer.access))
    if refused:
        assert answer.reason == refused and answer.page == answer.iova & -PAGE, f"{answer}: {walk}"
    elif not answer.reason:
        assert answer.phys[0][0] == walk.address and answer.page_size == walk.size, f"{answer}: {walk}"


def requests(seed: int) -> str:
    """A file of requests."""
    r = Random(seed)
    noise = Noise(r)
    text = "\n".join(_line(r, noise) for _ in range(r.choice((1, 10, 60))))
    raw = (spoilt_text(r, text, 2) if often(r, 0.4) else text).encode("utf-8", "surrogatepass")
    with TemporaryDirectory(prefix="hvlab-fuzz-") as name:
        path = Path(name) / "requests.jsonl"
        path.write_bytes(mutated(r, raw) if often(r, 0.1) else raw)
        try:
            asked = read_requests(path)
        except HvlabError as e:
            check_sentence(e, str(path))
            return "refused"
    unit, walker = _unit(r, noise)
    answers = list(unit.answers(asked))
    assert len(answers) == len(asked) and answer_table(answers[:50])
    for answer in answers[:300]:
        _check(answer, walker, noise.root)
    return "some pass" if any(not a.reason for a in answers) else "none passes"


TARGETS: dict[str, Callable[[int], str]] = {"requests": requests}
