"""How `atoll serve`, `join` and `relay` are ended from outside: with Ctrl-C soon, with SIGTERM when what is open has ended.

Nothing is lost either way, since a restart gives the same bits; a drain spares half-done work from waiting for the restart.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from atoll.cli.guard import Stopped

if TYPE_CHECKING:
    from atoll.types import Event, Tree

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
SAFE_S = 5.0  # beyond the drain, in which a coordinator's jobs come to a safe place


class Drain:
    """Owns the process's signals while `listening`.

    SIGTERM drains: for `drain_s`, what is open may end and nothing new begins. Ctrl-C ends that time at once. `at_once`: Ctrl-C
    does not even wait for a safe place. A second signal never does, and neither does time that is up by `late_s` more.
    """

    def __init__(self, drain_s: float, again: str, *, at_once: bool = False, late_s: float = 0.0) -> None:
        """`again`: how one goes on, for the message, such as "join again to go on"."""
        self._drain_s, self.again, self._at_once, self._late_s = drain_s, again, at_once, late_s
        self._until = math.inf
        self._code = 0
        self._heard: Callable[[str], None] = _nobody

    @property
    def asked(self) -> bool:
        """Nothing new is to begin."""
        return self._until < math.inf

    @property
    def over(self) -> bool:
        """What is open is not waited for any more."""
        return time.monotonic() >= self._until

    def stopped(self, how: str = "stopped") -> Stopped:
        """What ends the command, with the exit code that tells by which signal."""
        return Stopped(f"{how}; {self.again}", 128 + self._code if self._code else 130)

    @contextlib.contextmanager
    def listening(self, heard: Callable[[str], None]) -> Iterator[None]:
        """Hear signals; `heard` is told of a drain, in the main thread."""
        self._heard = heard
        before = {each: signal.signal(each, self._signal) for each in _SIGNALS}
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            for each, handler in before.items():  # once it ends, one more signal has nothing to stop
                signal.signal(each, signal.SIG_IGN if self.asked else handler)

    def _signal(self, number: int, _: Any) -> None:
        if number == signal.SIGALRM:
            raise self.stopped(f"stopped in the middle: what was open took more than the {self._drain_s:g} s of --drain-s")
        if self.asked:
            raise self.stopped("stopped at once")
        self._code = int(number)
        drain_s = self._drain_s if number == signal.SIGTERM else 0.0
        self._until = time.monotonic() + drain_s
        if number == signal.SIGTERM:
            signal.setitimer(signal.ITIMER_REAL, drain_s + self._late_s + 0.001)  # 0 would be never
            self._heard(f"draining for up to {drain_s:g} s; a second signal does not wait")
        elif self._at_once:
            raise self.stopped()


class Stop:
    """A sink that ends one of a coordinator's jobs when the drain says so. `open`: has its round asked anybody yet?"""

    def __init__(self, drain: Drain, rounds: int, open: Callable[[], bool]) -> None:
        self._drain, self._rounds, self._open = drain, rounds, open

    def emit(self, event: Event) -> None:
        """After each event: what it tells of is in the journal."""
        if self._drain.over:
            raise self._drain.stopped()

    def each_round(self, rounds: int, parameters: Tree) -> None:
        """After each checkpoint; a job that has done all its rounds may keep its model."""
        if self._drain.over or (self._drain.asked and rounds < self._rounds):
            raise self._drain.stopped()

    def wait(self) -> None:
        """While nothing happens."""
        if self._drain.over or (self._drain.asked and not self._open()):
            raise self._drain.stopped()


def _nobody(told: str) -> None:
    """Before it listens."""
