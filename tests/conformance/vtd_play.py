"""Playing a scene on both machines, and making an unexplained difference readable."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from vtd_differences import Verdict, judge
from vtd_ours import MakeUnit, run_ours
from vtd_qemu import QemuUnit
from vtd_scene import Registers, Result, Scene, Variant

from hvcore.machine.vtd import RemappingUnit

__all__ = ["VARIANTS", "Pair", "answer", "report", "shrink"]

VARIANTS = [Variant(aw_bits, caching) for aw_bits in (39, 48) for caching in (False, True)]
_T = TypeVar("_T")
_WORDS = range(0, 4096, 8)


class Pair:
    """QEMU's units, one per variant, started when first asked for."""

    def __init__(self, stack: ExitStack):
        self._stack, self._units = stack, dict[Variant, QemuUnit]()

    def qemu(self, variant: Variant) -> QemuUnit:
        """The running one of a variant."""
        if variant not in self._units:
            self._units[variant] = self._stack.enter_context(QemuUnit(variant))
        return self._units[variant]

    def play(self, scene: Scene, variant: Variant, make: MakeUnit = RemappingUnit) -> tuple[list[Result], Verdict]:
        """What our unit made of a scene, and how QEMU compares."""
        qemu = self.qemu(variant)
        theirs = qemu.run(scene)
        ours = run_ours(scene, variant, qemu.cap, qemu.ecap, make)
        return ours, judge(scene, variant, qemu.cap, qemu.ecap, ours, theirs)


def answer(result: Result) -> int | str:
    """A result in a word: a fault reason, "ok", or "lost" where nothing arrives and nothing is recorded."""
    if isinstance(result, Registers):
        return "registers"
    if result.high is not None:
        return result.high >> 32 & 0xFF
    return "lost" if result.where is None else "ok"


def report(pair: Pair, scene: Scene, variant: Variant) -> str:
    """A scene with an unexplained difference, without what the difference does not need."""
    def fails(candidate: Scene) -> bool:
        return bool(pair.play(candidate, variant)[1].unexplained)
    scene = shrink(scene, fails)
    results, verdict = pair.play(scene, variant)
    operations = "\n".join(f"  {o}" for o in scene.operations)
    root = "power-on" if scene.root is None else f"translation on, root table {scene.root:#x}"
    tables = "".join(f"\n  {at + i:#x}: {word:#x}" for at, page in sorted(scene.tables.items())
                       for i in _WORDS if (word := int.from_bytes(page[i:i + 8], "little")))
    found = "\n".join(f"  result {u.number + 1} of {len(results)}:\n{u}" for u in verdict.unexplained)
    return f"unexplained ({variant}; {root})\noperations:\n{operations}\n" + f"tables:{tables}\n" * bool(tables) + found


def shrink(scene: Scene, fails: Callable[[Scene], bool]) -> Scene:
    """The scene with as many operations, then words of its tables, taken away as it goes on failing without."""
    operations = _fewer(list(scene.operations), lambda some: fails(Scene(scene.tables, scene.root, tuple(some))))
    words = [(at, i) for at, page in scene.tables.items() for i in _WORDS if any(page[i:i + 8])]
    kept = _fewer(words, lambda some: fails(Scene(_only(scene.tables, some), scene.root, tuple(operations))))
    return Scene(_only(scene.tables, kept), scene.root, tuple(operations))


def _fewer(items: list[_T], fails: Callable[[list[_T]], bool]) -> list[_T]:
    """The items without ever smaller runs of them that the failure does not need."""
    size = max(len(items) // 2, 1)
    while size:
        at = 0
        while at < len(items):
            fewer = items[:at] + items[at + size:]
            if fails(fewer):
                items = fewer
            else:
                at += size
        size //= 2
    return items


def _only(tables: dict[int, bytes], words: list[tuple[int, int]]) -> dict[int, bytes]:
    """Tables with just some of their words."""
    pages = {at: bytearray(4096) for at, _ in words}
    for at, i in words:
        pages[at][i:i + 8] = tables[at][i:i + 8]
    return {at: bytes(page) for at, page in pages.items()}
