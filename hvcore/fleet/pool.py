"""Examines items on this machine: one process a worker, each fed by a thread of its own that waits for it."""

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from .items import Item
from .keeper import Keeper, Stopped
from .result import Done, Work

__all__ = ["examine_here"]


def examine_here(root: Path, items: Sequence[Item], work: Work, workers: int) -> Iterator[Done]:
    """Each item's result as it is done, in any order.  When the iteration ends early, so do the processes, at once.

    Raises HvlabError where a process cannot begin.
    """
    left, done, stop = deque(items), queue.SimpleQueue[Done | BaseException](), threading.Event()
    arguments = (root, left, done, work, stop)
    threads = [threading.Thread(target=_feed, args=arguments, name=f"fleet {i}") for i in range(min(workers, len(items)))]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            got = done.get()
            if isinstance(got, BaseException):
                raise got
            yield got
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _feed(root: Path, left: "deque[Item]", done: "queue.SimpleQueue[Done | BaseException]", work: Work, stop: threading.Event) -> None:
    """Gives one process the next item, until none is left."""
    keeper = Keeper(work, stop)
    try:
        while not stop.is_set():
            done.put(keeper.do(root, left.popleft()))
    except (IndexError, Stopped):
        pass
    except BaseException as e:  # noqa: BLE001 - it is raised again where the results are read
        done.put(e)
    finally:
        keeper.close()
