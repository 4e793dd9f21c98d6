"""A line to a running QEMU: its machine protocol (QMP) on a thread of its own, so that notebooks with an event loop can use it, too."""

import asyncio
import contextlib
import logging
import threading
import weakref
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import BadSource

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

__all__ = ["Monitor", "Refused"]

T = TypeVar("T")
_DEADLINE = 20.0
"""Seconds of wall time after which an answer is given up."""


class Refused(Exception):
    """QEMU answered a command with an error; the text is QEMU's."""


class Monitor:
    """The client's end of a QMP socket.  Raises BadSource, one sentence, where nobody listens there or QEMU is gone."""

    def __init__(self, socket: Path | str, deadline: float = _DEADLINE):
        try:
            from qemu.qmp import QMPClient
        except ImportError:
            raise BadSource("a running QEMU is read by the package qemu.qmp, which is not installed: pip install 'hvlab[qemu]'") from None
        logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
        self.socket, self._deadline = str(socket), deadline
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient("hvlab")
        self._hang_up = weakref.finalize(self, _hang_up, self._client, self._loop, self._thread, deadline)
        try:
            self._wait(self._client.connect(self.socket), "no QEMU answers at it (does another client hold the socket?)")
        except BadSource:
            self.close()
            raise

    def execute(self, name: str, **arguments: Any) -> Any:
        """What QEMU returns to a command.  Raises Refused with QEMU's words, BadSource where it is gone."""
        return self._wait(self._client.execute(name, arguments), f"it did not answer {name} within {self._deadline:g} s")

    def close(self) -> None:
        """Hangs up; QEMU goes on.  What nobody closes does so when it is not used any more."""
        self._hang_up()

    def _wait(self, work: Coroutine[Any, Any, T], late: str) -> T:
        """The result of something that the thread does."""
        from qemu.qmp import ExecuteError, QMPError
        if self._loop.is_closed():
            work.close()
            raise BadSource(f"{self.socket}: the line to QEMU is closed: open it again")
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, self._deadline), self._loop)
        try:
            return future.result()
        except ExecuteError as e:
            raise Refused(str(e)) from e
        except TimeoutError as e:
            raise BadSource(f"{self.socket}: {late}") from e
        except (QMPError, OSError, EOFError, ValueError) as e:
            raise BadSource(f"{self.socket}: {_why(e)}: is it the QMP socket of a running QEMU (-qmp unix:SOCKET,server,nowait)?") from e


def _hang_up(client: "QMPClient", loop: asyncio.AbstractEventLoop, thread: threading.Thread, deadline: float) -> None:
    """Ends the session, the loop and its thread."""
    if threading.current_thread() is thread:
        loop.stop()
        return
    with contextlib.suppress(Exception):
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(client.disconnect(), deadline), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def _why(error: BaseException) -> str:
    """The innermost reason, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
