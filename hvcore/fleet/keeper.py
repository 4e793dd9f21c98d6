"""Keeps one process that examines items: begins it, gives it jobs, ends it where it hangs or grows, begins it anew where it died."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import HvlabError
from .items import Item
from .result import Done, Failure, Work

__all__ = ["Keeper", "Stopped"]

_BEGIN = 300.0
"""Seconds that the imports may take, on a machine that is busy."""
_LOOK = 0.2
"""Seconds between two looks at the process's memory and at the wish to stop."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""One core for each process: their number is what uses the machine."""


def _environment() -> dict[str, str]:
    """This process's, with this hvcore among what can be imported."""
    own = str(Path(__file__).resolve().parents[2])
    return {**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, (own, os.environ.get("PYTHONPATH"))))}


class Stopped(Exception):
    """Somebody wants the work to end."""


class _Over(Exception):
    """The process did not answer: why, as a kind of failure and a sentence."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.failure = Failure(kind, text)


class Keeper:
    """One process, renewed when it must be.  `close()` it; when `stop` is set, `do` ends it and raises Stopped.

    `busy` is held by whoever shares it with others, while it is at work.
    """

    def __init__(self, work: Work, stop: threading.Event | None = None):
        self.work = work
        self.busy = threading.Lock()
        self._stop = stop or threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._turns = 0

    def do(self, root: Path, item: Item) -> Done:
        """Examines an item; whatever it does to its process is a row.  One that died with an item is tried again in a new process."""
        began = time.perf_counter()
        if item.problem:
            return Done(item.path, item.digest, item.kind, None, Failure("bad", item.problem))
        for last in (False, True):
            try:
                return self._done(item, self._asked(root, item))
            except _Over as e:
                self.kill()
                if last or e.failure.kind != "killed":
                    return Done(item.path, item.digest, item.kind, None, e.failure, time.perf_counter() - began)
        raise AssertionError("the second try returns")

    def _done(self, item: Item, found: Mapping[str, Any]) -> Done:
        return Done.of({**found, "path": item.path, "digest": item.digest, "kind": item.kind})

    def _asked(self, root: Path, item: Item) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._begin()
        job = {"root": str(root), "path": item.path, "kind": item.kind, "digest": item.digest, "limit": self.work.limit}
        self._send(json.dumps(job).encode() + b"\n")
        found = self._answer(self.work.limit)
        self._turns += 1
        if self._turns >= self.work.turns or self._memory() > self.work.memory // 2:
            self.close()
        return found

    def _begin(self) -> None:
        """A new process; raises HvlabError where it cannot import what it needs."""
        self.kill()
        command = [sys.executable, "-P", "-m", "hvcore.fleet.child", self.work.examine]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                                         env=_environment(), start_new_session=True)
        self._buffer, self._turns = b"", 0
        try:
            ready = self._answer(_BEGIN)
        except _Over as e:
            self.kill()
            raise HvlabError(f"a process that examines cannot begin: {e}; try `{' '.join(command)}`") from e
        if "broken" in ready:
            self.kill()
            raise HvlabError(f"a process that examines cannot begin: {ready['broken']}")

    def _send(self, line: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            raise _Over("killed", self._end()) from None

    def _answer(self, limit: float) -> dict[str, Any]:
        """The next line; raises _Over where none comes, Stopped where nobody wants it any more."""
        assert self._process is not None and self._process.stdout is not None
        deadline = time.monotonic() + limit
        watch = select.poll()
        watch.register(self._process.stdout, select.POLLIN | select.POLLHUP)
        while b"\n" not in self._buffer:
            self._look(deadline, limit)
            if not watch.poll(_LOOK * 1000):
                continue
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise _Over("killed", self._end())
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _look(self, deadline: float, limit: float) -> None:
        if self._stop.is_set():
            self.kill()
            raise Stopped
        if time.monotonic() > deadline:
            raise _Over("time", f"it was not done after {limit:g} s")
        if self._memory() > self.work.memory:
            raise _Over("memory", f"it took more than {self.work.memory >> 20} MiB")

    def _memory(self) -> int:
        """Bytes of the process in memory; 0 where the system does not tell."""
        assert self._process is not None
        try:
            return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * _PAGE
        except (OSError, IndexError, ValueError):
            return 0

    def _end(self) -> str:
        """How the process ended, in words."""
        assert self._process is not None
        try:
            status = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return "the process closed its output"
        if status >= 0:
            return f"the process ended with status {status}"
        return f"the process ended by {signal.Signals(-status).name if -status in set(signal.Signals) else f'signal {-status}'}"

    def kill(self) -> None:
        """Ends the process at once, with all that it began."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        self._reap(process)

    def close(self) -> None:
        """Lets the process end, between two items."""
        process, self._process = self._process, None
        if process is not None:
            self._reap(process)

    @staticmethod
    def _reap(process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
