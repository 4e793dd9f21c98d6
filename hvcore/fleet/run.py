"""Runs a fleet: finds the items, examines those that are not done yet, here or on a cluster, and sums up."""

import importlib.util
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TextIO

from ..errors import HvlabError
from .cluster import examine_there
from .items import Item, find_items
from .pool import examine_here
from .progress import Progress
from .report import Report
from .result import Done, Work
from .store import Store

__all__ = ["cores", "run_fleet"]


def run_fleet(folder: str | Path, out: str | Path, *, workers: int | None = None, scheduler: str | None = None, retry: bool = False,
              work: Work | None = None, stream: TextIO | None = None) -> Report:
    """Examines what is below `folder`; `out` keeps the results, and at the end has the tables and the report.

    Items that `out` knows by path and content are not examined again; with `retry` those are that failed.  `workers` processes work on this
    machine (None: one a core), or the workers of the Dask cluster at `scheduler`.  Progress goes to `stream` (stderr if None).
    Raises HvlabError for a folder without items, and whatever else is the user's to mend; KeyboardInterrupt keeps all that is done.
    """
    folder, out, work = Path(folder), Path(out), work or Work()
    _check(folder, workers, scheduler)
    if not 0 < work.limit <= 1e6:
        raise HvlabError(f"a limit of {work.limit:g} s for an item: give one from 1 s up to some days")
    items = list(find_items(folder, out))
    if not items:
        raise HvlabError(f"{folder}: no archive, folder of logs, kernel log or .toml is below it")
    with Store(out) as store:
        done = {key for key, d in store.done.items() if not (d.failure and (retry or d.failure.kind == "changed"))}
        left = [item for item in items if item.key not in done]
        results = _results(folder.resolve(), left, work, workers or cores(), scheduler)
        _keep(results, store, Progress(len(items), len(items) - len(left), stream), out, stream or sys.stderr)
        report = Report(folder.resolve().name, [store.done[item.key] for item in items])
    report.save(out)
    return report


def _check(folder: Path, workers: int | None, scheduler: str | None) -> None:
    if not folder.is_dir():
        raise HvlabError(f"{folder}: no folder is there: give one that has archives or logs below it")
    if workers is not None and scheduler is not None:
        raise HvlabError("--workers is for this machine, and a cluster has workers of its own: leave one of --workers and --scheduler out")
    if workers is not None and workers < 1:
        raise HvlabError(f"{workers} workers do no work: give 1 or more")
    missing = [name for name in ("pandas", "pyarrow") if importlib.util.find_spec(name) is None]
    if missing:
        raise HvlabError(f"a fleet's tables need {' and '.join(missing)}: pip install hvlab[fleet]")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _results(root: Path, items: Sequence[Item], work: Work, workers: int, scheduler: str | None) -> Generator[Done, None, None]:
    if items and scheduler is None:
        yield from examine_here(root, items, work, workers)
    elif items and scheduler is not None:
        yield from examine_there(root, items, work, scheduler)


def _keep(results: Generator[Done, None, None], store: Store, progress: Progress, out: Path, stream: TextIO) -> None:
    """Writes each result as it comes."""
    try:
        with closing(results):
            for done in results:
                store.add(done)
                progress.step(done.failure is not None)
    except KeyboardInterrupt:
        progress.end()
        print(f"{progress.done:,} of {progress.total:,} items are done and kept in {out}: the same command goes on there", file=stream)
        raise
    finally:
        progress.end()
