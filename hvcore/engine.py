"""Work on a thread of its own that can be held at its gate, stopped there, and go on.

The machine's work (core and processor) calls `gate()` wherever it can stand still.  Nobody else ever sees it but between two of these
points: who reads holds it there (`held`), who wants it stopped says so (`ask`), and who waits for it (`wait`) hears what it tells.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import HvlabError

__all__ = ["Abandoned", "Engine"]

POKE = 0.005
"""Seconds between two calls of `hurry` while somebody waits for the work to come to its gate."""
PATIENCE = 20
"""Calls of `hurry` before it is told not to be choosy."""


class Abandoned(BaseException):
    """Raised at the gate in work that will never go on."""


class Engine:
    """One piece of work at a time.  `hurry(at_once)` makes the work come to its gate soon; it is called again and again until it has."""

    def __init__(self, hurry: Callable[[bool], None]):
        self._hurry = hurry
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._news: str | None = None
        self._holders: list[int] = []
        self._telling = self._asked = self._resting = self._abandoned = False
        self._rest_so_far: tuple[float, float | None] = 0.0, None

    # --- from the work's thread

    def gate(self, news: str | None = None) -> None:
        """Stands still here while the work is held or stopped, and with `news` until who waits has heard them.

        Raises Abandoned where the work will not go on.
        """
        if news is None and not (self._holders or self._asked or self._abandoned):
            return
        with self._changed:
            self._news, self._telling = news, news is not None
            self._stand_still(lambda: bool(self._holders or self._asked or self._telling))
            if self._abandoned:
                raise Abandoned

    def _stand_still(self, needed: Callable[[], bool]) -> None:
        rested, since = self._rest_so_far[0], time.perf_counter()
        self._rest_so_far = rested, since
        while needed() and not self._abandoned:
            self._rest(True)
            self._changed.wait()
        self._rest(False)
        self._rest_so_far = rested + time.perf_counter() - since, None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Work inside this `with` only looks at the machine, which stands still meanwhile; its end is a gate."""
        with self._changed:
            self._rest(True)
        yield
        with self._changed:
            self._stand_still(lambda: bool(self._holders or self._asked))
            if self._abandoned:
                raise Abandoned

    def _rest(self, resting: bool) -> None:
        self._resting = resting
        self._changed.notify_all()

    def clock(self) -> float:
        """Seconds of work: wall time without what was spent at the gate."""
        rested, since = self._rest_so_far
        return (time.perf_counter() if since is None else since) - rested

    def _work(self, work: Callable[[], None]) -> None:
        error: BaseException | None = None
        try:
            with self._changed:
                self._stand_still(lambda: bool(self._holders))
            work()
        except Abandoned:
            pass
        except BaseException as e:  # noqa: BLE001 - raised again where the work is waited for
            error = e
        with self._changed:
            self._thread, self._error, self._news, self._asked = None, error, None, False
            self._telling = False
            self._rest(False)

    # --- from other threads

    @property
    def busy(self) -> bool:
        """Whether there is work that has not ended."""
        return self._thread is not None

    @property
    def stopped(self) -> bool:
        """Whether the work stands at its gate because somebody wanted it stopped."""
        return self._asked and self._resting

    def start(self, work: Callable[[], None], stopped: bool = False) -> None:
        """Begins work, which with `stopped` comes to its first gate and stands there.

        Raises HvlabError where other work has not ended, or where this thread holds the gate.
        """
        with self._changed:
            self._not_mine()
            if self._thread is not None:
                raise HvlabError("the machine is running: stop() it first, or wait until it has done what it does")
            self._abandoned, self._error, self._asked = False, None, stopped
            self._thread = threading.Thread(target=self._work, args=(work,), name="hvlab machine", daemon=True)
            self._thread.start()

    def go_on(self) -> None:
        """Lets stopped work go on.  Raises HvlabError where this thread holds the gate."""
        with self._changed:
            self._not_mine()
            self._asked = False
            self._changed.notify_all()

    def _not_mine(self) -> None:
        if threading.get_ident() in self._holders:
            raise HvlabError("the machine is held still for reading here: leave `with still()` before it goes on")

    def ask(self) -> None:
        """Wants the work stopped at its next gate, and does not wait for that."""
        with self._changed:
            if self._thread is not None:
                self._asked = True
                self._hurry(False)

    def stop(self) -> None:
        """Wants the work stopped, and waits until it stands at its gate or has ended.  At once on the work's own thread."""
        self.ask()
        with self._changed:
            self._come_to_rest()

    def _come_to_rest(self) -> None:
        tries = 0
        while self._thread not in (None, threading.current_thread()) and not self._resting:
            self._hurry(tries > PATIENCE)
            self._changed.wait(POKE)
            tries += 1

    @contextmanager
    def held(self) -> Iterator[None]:
        """The work stands still inside this `with`; several threads may hold it.  On the work's own thread nothing happens."""
        if self._thread is threading.current_thread():
            yield
            return
        me = threading.get_ident()
        with self._changed:
            self._holders.append(me)
            self._come_to_rest()
        try:
            yield
        finally:
            with self._changed:
                self._holders.remove(me)
                self._changed.notify_all()

    def wait(self, seconds: float, heard: Callable[[str], None]) -> bool:
        """Waits for the work to end or stop; True where it has.  News are passed on to `heard` as they come, on this thread.

        Raises what the work raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._news is not None or self._at_an_end(), seconds)
            news, self._news = self._news, None
        if news is not None:
            try:
                heard(news)
            finally:
                with self._changed:
                    self._telling = False
                    self._changed.notify_all()
            return False
        with self._changed:
            error, self._error = self._error, None
            if error is not None:
                raise error
            return self._at_an_end()

    def _at_an_end(self) -> bool:
        return self._thread is None or self.stopped

    def abandon(self) -> None:
        """Ends work that stands at its gate for good; waits until it has gone."""
        with self._changed:
            thread = self._thread
            if thread in (None, threading.current_thread()):
                return
            self._asked = True
            self._come_to_rest()
            self._abandoned = True
            self._changed.notify_all()
        thread.join()
