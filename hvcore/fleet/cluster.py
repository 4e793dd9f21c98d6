"""Examines items on an existing Dask cluster: each thread of its workers keeps a process as one on this machine does.

The workers need this hvcore, and the fleet's folder under the same path.  Their own processes are never at an item's mercy; a worker that
is lost costs only what it was at, which another does anew.
"""

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HvlabError, quoted
from .items import Item
from .keeper import Keeper
from .result import Done, Work

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["examine_there"]

_TRIES = 20
"""How often an item is given out anew that was lost with its worker, beyond what the scheduler does by itself."""
_ANSWERS = "30s"
"""How long the scheduler may take to answer at all."""
_LAST_WORDS = 5.0
"""Seconds that workers may take to end what they keep."""
_keepers: dict[int, Keeper] = {}
"""On a worker: the keeper of each of its threads."""


def examine_there(root: Path, items: Sequence[Item], work: Work, scheduler: str) -> Iterator[Done]:
    """Each item's result as it is done, in any order, once.  When the iteration ends early, what has not begun is taken back.

    Raises HvlabError where no scheduler answers, or workers cannot examine.
    """
    client = _connected(scheduler)
    try:
        yield from _gathered(client, root, items, work)
    finally:
        _leave(client)


def _leave(client: "Client") -> None:
    """Lets the workers' processes end, and takes back what has not begun; a cluster that does not answer is not waited for."""
    def release() -> None:
        with suppress(Exception):
            client.run(release_processes, on_error="ignore")

    if client.status == "running":
        thread = threading.Thread(target=release, daemon=True)
        thread.start()
        thread.join(_LAST_WORDS)
    with suppress(Exception):
        client.close(timeout=_LAST_WORDS)


def _connected(scheduler: str) -> "Client":
    try:
        from distributed import Client
    except ImportError as e:
        raise HvlabError("--scheduler needs the package distributed: pip install hvlab[fleet]") from e
    try:
        return Client(scheduler, timeout=_ANSWERS, set_as_default=False, name="hvlab-fleet")
    except (OSError, ValueError, ImportError) as e:
        said = " ".join(str(e).split())
        raise HvlabError(f"no Dask scheduler answers at {scheduler} ({said}): give its address like tcp://10.0.0.1:8786") from e


def _gathered(client: "Client", root: Path, items: Sequence[Item], work: Work) -> Iterator[Done]:
    """Submits all, and again what was lost with its worker."""
    from distributed import as_completed

    def submit(number: int) -> "Future":
        return client.submit(examine_one, str(root), items[number], work, key=f"hvlab-fleet-{uuid.uuid4().hex}", pure=False)

    numbers = {submit(i): i for i in range(len(items))}
    lost = [0] * len(items)
    waiting = as_completed(list(numbers), loop=client.loop, raise_errors=False)
    for future in waiting:
        number = numbers.pop(future)
        done = _result(future)
        if done is not None:
            yield done
            continue
        lost[number] += 1
        if lost[number] > _TRIES or client.status != "running":
            raise HvlabError(f"the cluster is gone or loses its workers, {quoted(items[number].path)} was not done: start the same again")
        again = submit(number)
        numbers[again] = number
        waiting.add(again)


def _result(future: "Future") -> Done | None:
    """A finished item, None where it was lost with its worker.  Raises HvlabError for what no worker will ever do."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError
    try:
        return Done.of(future.result(timeout=60))
    except (KilledWorker, CancelledError, CommClosedError, TimeoutError):
        return None
    except HvlabError:
        raise
    except Exception as e:
        raise HvlabError(f"the cluster's workers cannot examine: {type(e).__name__}: {' '.join(str(e).split())[:300]}; "
                         "they need the same hvlab, and the folder under the same path") from e


def examine_one(root: str, item: Item, work: Work) -> dict[str, Any]:
    """On a worker: one item by the process that this thread keeps."""
    mine = threading.get_ident()
    keeper = _keepers.get(mine)
    if keeper is None or keeper.work != work:
        if keeper is not None:
            keeper.close()
        keeper = _keepers[mine] = Keeper(work)
    with keeper.busy:
        return keeper.do(Path(root), item).to_json()


def release_processes() -> None:
    """On a worker: ends the processes that its threads keep and that have nothing to do; one that is wanted again begins again.

    Those at work, perhaps for another fleet, end by themselves when nobody gives them more.
    """
    for keeper in list(_keepers.values()):
        if keeper.busy.acquire(blocking=False):
            try:
                keeper.close()
            finally:
                keeper.busy.release()
