"""The parent of the processes that cases run in: who is next, what came of it, how to repeat what failed."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .targets import TARGETS

__all__ = ["Campaign", "Failure", "Tally"]

ROOT = Path(__file__).resolve().parent.parent.parent
_LINES, _WIDTH = 40, 300
"""What is shown of one traceback: its last lines, and how much of each."""


@dataclass
class Failure:
    """One way in which a target failed: the first case that showed it, what was told of it, how many cases did."""

    target: str
    kind: str
    seed: int
    text: str
    count: int = 1

    @property
    def command(self) -> str:
        """What repeats it."""
        return f"python -m tests.fuzz --only {self.target} --seed {self.seed} --cases 1"

    def __str__(self) -> str:
        return f"FAILED {self.target}: {self.kind}\n{_shortened(self.text)}\n  {self.command}"


def _shortened(text: str) -> str:
    return "\n".join(line[:_WIDTH] for line in text.rstrip().splitlines()[-_LINES:])


@dataclass
class Tally:
    """What came of one target: cases, seconds, outcomes counted; `next` is the seed of the next case, `broken` that no case can run."""

    next: int
    broken: bool = False
    cases: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)


class Campaign:
    """Runs targets in turn, each time for a slice of `slice_seconds` by its share, every slice in a process of its own."""

    def __init__(self, names: Iterable[str], seed: int, slice_seconds: float = 10.0):
        self.tallies = {name: Tally(seed) for name in names}
        self.slice_seconds = slice_seconds
        self.failures: dict[tuple[str, str], Failure] = {}
        self._began = time.monotonic()

    def run(self, minutes: float, cases: int | None) -> None:
        """Until the time is over, or each target had `cases` cases."""
        end = self._began + 60 * minutes
        while time.monotonic() < end and (waiting := self._waiting(cases)):
            for name in waiting:
                left = end - time.monotonic()
                if left > 0:
                    seconds = min(self.slice_seconds * TARGETS[name].share, left)
                    self._slice(name, seconds, 10**9 if cases is None else cases - self.tallies[name].cases)

    def _waiting(self, cases: int | None) -> list[str]:
        return [n for n, t in self.tallies.items() if not t.broken and (cases is None or t.cases < cases)]

    def _slice(self, name: str, seconds: float, cases: int) -> None:
        tally, began = self.tallies[name], time.monotonic()
        before = tally.cases
        with tempfile.TemporaryFile("w+") as errors:
            command = [sys.executable, "-m", "tests.fuzz.child", name, str(tally.next), str(cases), str(seconds)]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
                running = self._listen(name, tally, child)
            errors.seek(0)
            if child.returncode or running is not None:
                self._died(name, running, child.returncode, errors.read())
        tally.seconds += time.monotonic() - began
        print(f"[{(time.monotonic() - self._began) / 60:6.1f} min] {name:12} {tally.cases - before:7,} cases in "
              f"{time.monotonic() - began:5.1f} s, {len(self.failures)} failures so far", flush=True)

    def _listen(self, name: str, tally: Tally, child: "subprocess.Popen[str]") -> int | None:
        """Takes down what a child tells; the case that it was at when it fell silent, None where it was at none."""
        running = None
        for line in child.stdout or ():
            event: dict[str, Any] = json.loads(line)
            if "start" in event:
                running = event["start"]
                tally.next, tally.cases = running + 1, tally.cases + 1
            else:
                running = None
                tally.outcomes[event.get("what", "FAILED")] += 1
            if "fail" in event:
                self._failed(name, event["kind"], event["fail"], event["text"])
        return running

    def _died(self, name: str, running: int | None, code: int, errors: str) -> None:
        """A child that ended otherwise than it should: by the watch on the time, by a signal, or before its first case."""
        by = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        kind = (f"more than {TARGETS[name].limit} s of processor time" if code == -signal.SIGPROF else
                "waits and does not come back" if "Timeout (" in errors else f"the process died: {by}")
        tally = self.tallies[name]
        tally.broken = running is None
        if running is not None:
            tally.outcomes["FAILED"] += 1
        self._failed(name, kind, tally.next if running is None else running, errors)

    def _failed(self, name: str, kind: str, seed: int, text: str) -> None:
        known = self.failures.get((name, kind))
        if known:
            known.count += 1
            return
        self.failures[name, kind] = Failure(name, kind, seed, text)
        print(self.failures[name, kind], flush=True)

    def summary(self) -> str:
        """Cases, seconds and outcomes by target, and how to repeat what failed."""
        lines = ["", f"{'target':12} {'cases':>9} {'seconds':>8}  outcomes"]
        for name, t in self.tallies.items():
            said = ", ".join(f"{what} {count:,}" for what, count in t.outcomes.most_common())
            lines.append(f"{name:12} {t.cases:9,} {t.seconds:8.1f}  {said}")
        total = sum(t.cases for t in self.tallies.values())
        lines.append(f"{total:,} cases in {sum(t.seconds for t in self.tallies.values()) / 60:.1f} min, {len(self.failures)} failures")
        lines += [f"  {f.kind} ({f.count:,} cases): {f.command}" for f in self.failures.values()]
        return "\n".join(lines)


