"""Every target of the fuzzing, some cases of a fixed seed; and the machinery that runs them: `make fuzz` runs them for long."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import child, parent
from tests.fuzz.targets import TARGETS, Target

SEED = 1000


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_breaks_and_not_all_cases_end_alike(name: str) -> None:
    target = TARGETS[name]
    outcomes = Counter(target.run(seed) for seed in range(SEED, SEED + target.smoke))
    assert len(outcomes) > 1, f"{outcomes}: a target that always ends alike shows nothing"
    assert target.run(SEED) == target.run(SEED), "a seed does not repeat its case"


def _raises(_seed: int) -> str:
    raise ZeroDivisionError


def _told(run: Callable[[int], str], cases: int = 3, resident: int = 1 << 20) -> list[dict[str, object]]:
    events: list[dict[str, object]] = []
    child.run_cases(Target(run, resident=resident), 7, cases, 60.0, events.append)
    return events


def test_what_a_case_raises_is_told_with_its_seed() -> None:
    assert _told(lambda seed: f"saw {seed}", 2) == [{"start": 7}, {"done": 7, "what": "saw 7"}, {"start": 8}, {"done": 8, "what": "saw 8"}]
    events = _told(_raises)
    assert [e["fail"] for e in events if "fail" in e] == [7, 8, 9]
    assert str(events[1]["kind"]).startswith("ZeroDivisionError at ")


def test_memory_without_end_is_told() -> None:
    assert _told(lambda _: "fine", resident=1)[-1]["kind"] == "more than 1 MiB of memory"


@pytest.mark.parametrize(("code", "kind"), [
    ("while True: pass", "more than 1 s of processor time"), ("import os; os._exit(3)", "the process died: exit status 3"),
    ("import os; os.abort()", "the process died: SIGABRT")])
def test_hangs_and_deaths_are_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str, kind: str) -> None:
    """A child whose second case does not come back."""
    program = ("from tests.fuzz import child, targets; import sys\n"
               f"targets.TARGETS['maps'] = targets.Target(lambda seed: 'fine' if seed != 8 else exec({code!r}), limit=1)\n"
               "child.main(*sys.argv[1:])\n")
    start = subprocess.Popen

    def instead(command: list[str], **options: object) -> "subprocess.Popen[str]":
        return start([sys.executable, "-c", program, *command[3:]], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(parent.subprocess, "Popen", instead)
    monkeypatch.setitem(parent.TARGETS, "maps", Target(TARGETS["maps"].run, limit=1))
    campaign = parent.Campaign(["maps"], 7)
    campaign.run(1.0, 4)
    assert [(f.kind, f.seed, f.count) for f in campaign.failures.values()] == [(kind, 8, 1)]
    assert campaign.tallies["maps"].outcomes == {"fine": 3, "FAILED": 1}
    shown = capsys.readouterr().out + campaign.summary()
    assert shown.count("python -m tests.fuzz --only maps --seed 8 --cases 1") == 2


def test_the_command_sums_up() -> None:
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run([sys.executable, "-m", "tests.fuzz", "--only", "maps", "--seed", "5", "--cases", "20"], cwd=root,
                          capture_output=True, text=True, check=True)
    assert done.stdout.startswith("seed 5\n") and "20 cases in 0." in done.stdout and ", 0 failures" in done.stdout
