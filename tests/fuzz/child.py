"""The process that cases run in: `python -m tests.fuzz.child NAME SEED CASES SECONDS`.  It tells of each case in lines of JSON.

A case that takes too long ends the process, and needs no answer from Python for that: the traceback goes to standard error.  Processor
time counts, as other work on the machine must not matter; a case that only waits is ended after a multiple of it.
"""

import faulthandler
import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from .targets import TARGETS, Target

__all__ = ["PATIENCE", "Tell", "run_cases"]

PATIENCE = 10
"""How much longer than its processor time a case may take by the wall clock."""

_COLLECT = 8
"""Cases between two collections: a unit and its memory hold one another, and a memory is much address space."""

Tell = Callable[[dict[str, Any]], None]


def place(error: BaseException) -> str:
    """Where an exception was raised: the innermost line that is hvlab's, else the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((f for f in reversed(frames) if "/hvcore/" in f.filename), frames[-1])
    return f"{type(error).__name__} at {frame.filename.rpartition('/hvcore/')[2].rpartition('/tests/')[2]}:{frame.lineno}"


def run_cases(target: Target, seed: int, cases: int, seconds: float, tell: Tell) -> None:
    """Runs cases `seed`, `seed` + 1, ... until there were `cases` of them or `seconds` are over."""
    end = time.monotonic() + seconds
    for number in range(seed, seed + cases):
        if time.monotonic() >= end:
            break
        tell({"start": number})
        signal.setitimer(signal.ITIMER_PROF, target.limit)
        faulthandler.dump_traceback_later(PATIENCE * target.limit, exit=True)
        told = _one(target, number)
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        tell(told)
        if number % _COLLECT == 0:
            gc.collect()
        if (used := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10) > target.resident:
            tell({"fail": number, "kind": f"more than {target.resident} MiB of memory", "text": f"{used} MiB were resident"})
            break


def _one(target: Target, number: int) -> dict[str, Any]:
    try:
        return {"done": number, "what": target.run(number)}
    except BaseException as e:  # noqa: BLE001 - whatever a case raises is what is looked for
        return {"fail": number, "kind": place(e), "text": "".join(traceback.format_exception(e))}


def main(name: str, seed: str, cases: str, seconds: str) -> None:
    """What the parent starts: standard output is for it alone, what cases print is thrown away."""
    target = TARGETS[name]
    faulthandler.register(signal.SIGPROF, chain=True)
    resource.setrlimit(resource.RLIMIT_AS, (target.space << 20, target.space << 20))
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run_cases(target, int(seed), int(cases), float(seconds), lambda event: print(json.dumps(event), file=out))


if __name__ == "__main__":
    main(*sys.argv[1:])
