"""The process in which items are examined: `python -m hvcore.fleet.child MODULE:NAME` reads a job a line and writes an answer a line.

It imports once and takes many items; after each the garbage is collected, so that it does not grow, and what was imported is left out of
that (`gc.freeze`), which is then cheap.  It ends when nobody writes to it any more, and by the kernel's alarm where an item hangs, even in
code that never comes back to Python and with its keeper gone.
"""

import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import HvlabError
from .items import digest_of

__all__ = ["GRACE", "answer", "main"]

GRACE = 10.0
"""Seconds beyond an item's limit after which the kernel ends the process by itself."""
_IDLE = 60.0
"""Seconds without a job after which the process ends."""
_LONGEST = 8 << 20
"""Characters of a record; no machine has one as long."""
Examine = Callable[[Path], Any]


def main(spec: str) -> None:
    """Says that it is ready, or why not; then answers until its input ends."""
    jobs, answers = _own_streams()
    try:
        examine = _named(spec)
    except (ImportError, AttributeError, ValueError) as e:
        _write(answers, {"broken": f"{spec}: {e}"})
        return
    _write(answers, {"ready": os.getpid()})
    gc.freeze()
    buffer = b""
    while select.select([jobs], [], [], _IDLE)[0] and (data := os.read(jobs, 1 << 16)):
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            _write(answers, answer(json.loads(line), examine))


def _own_streams() -> tuple[int, int]:
    """The pipes to the keeper under numbers of their own, so that what an examination prints or reads spoils nothing."""
    jobs, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return jobs, answers


def _named(spec: str) -> Examine:
    module, _, name = spec.partition(":")
    found: Examine = getattr(importlib.import_module(module), name)
    return found


def _write(file: int, values: Mapping[str, Any]) -> None:
    data = memoryview(json.dumps(values).encode() + b"\n")
    while data:
        data = data[os.write(file, data):]


def answer(job: Mapping[str, Any], examine: Examine) -> dict[str, Any]:
    """Examines one item: its record or its failure, with wall and CPU time."""
    began, cpu = time.perf_counter(), time.process_time()
    signal.setitimer(signal.ITIMER_REAL, job["limit"] + GRACE)
    try:
        root = Path(job["root"])
        found = _examined(root, str(job["path"]), examine)
        if not _unchanged(root, job):
            found = _failure("changed", "its content is not what was found: it changed meanwhile, or is another where it was examined")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    gc.collect()
    return {**found, "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def _examined(root: Path, path: str, examine: Examine) -> dict[str, Any]:
    try:
        record = examine(root / path)
        return {"record": json.loads(_text(record.to_json() if hasattr(record, "to_json") else record)), "failure": None}
    except HvlabError as e:
        return _failure("bad", _below(root, str(e)))
    except MemoryError:
        return _failure("memory", "there was not enough memory for it")
    except (Exception, SystemExit) as e:  # noqa: BLE001 - whatever one item raises must not spoil the others
        return _failure("crash", _below(root, _told(e)))


def _text(record: object) -> str:
    text = json.dumps(record)
    if len(text) > _LONGEST:
        raise ValueError(f"the record has {len(text):,} characters, {_LONGEST:,} are the most")
    return text


def _unchanged(root: Path, job: Mapping[str, Any]) -> bool:
    try:
        return digest_of(root, str(job["path"]), str(job["kind"])) == str(job["digest"])
    except OSError:
        return False


def _failure(kind: str, text: str) -> dict[str, Any]:
    return {"record": None, "failure": {"kind": kind, "text": text[:2000]}}


def _below(root: Path, text: str) -> str:
    """A sentence with the fleet's folder left out of its paths, and on one line."""
    return " ".join(text.replace(f"{root}{os.sep}", "").split())


def _told(error: BaseException) -> str:
    """An exception, and the line of hvlab's that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


if __name__ == "__main__":
    main(sys.argv[1])
