"""Whether a coordinator or a site is alive, and whether it is ready: each a sentence that says why not, "" where it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from atoll.errors import RemoteError

if TYPE_CHECKING:
    from atoll.remote.hub import Hub
    from atoll.remote.link import Link

SILENT_S = 15.0  # of the main thread, which beats several times a second
TURN_S = 2.0  # for the network's thread to take up a call
_STUCK = "the thread of the network does not turn; restart the process"


class OfCoordinator:
    """What is seen of a coordinator: the main thread beats, each job says when its run is open and when it is over."""

    def __init__(self, hub: Hub, jobs: Iterable[str], draining: Callable[[], bool]) -> None:
        self._hub, self._draining = hub, draining
        self.runs: dict[str, str] = dict.fromkeys(jobs, "")  # by job that is not over: its run, "" before it is open
        self.beat()

    def beat(self) -> None:
        """The main thread runs."""
        self._beat_s = time.monotonic()

    def alive(self) -> str:
        """Its threads run."""
        silent_s = time.monotonic() - self._beat_s
        if silent_s > SILENT_S:
            return f"the main thread has been silent for {silent_s:.0f} s; restart the process"
        return "" if self._hub.turns(TURN_S) else _STUCK

    def ready(self) -> str:
        """It listens, every job is built, and it is not draining."""
        if self._draining():
            return "draining: no new round begins"
        if trouble := self.alive():
            return trouble
        building = [job for job, run in list(self.runs.items()) if not self._built(run)]
        return f"being built: {', '.join(building)}" if building else ""

    def _built(self, run: str) -> bool:
        try:
            self._hub.consents(run)
        except RemoteError:
            return False
        return True


class OfSite:
    """What is seen of a site. How long a step of training takes is nobody's to judge, so its main thread is not asked."""

    def __init__(self, link: Link, draining: Callable[[], bool]) -> None:
        self._link, self._draining = link, draining

    def alive(self) -> str:
        """Its threads run."""
        return "" if self._link.turns(TURN_S) else _STUCK

    def ready(self) -> str:
        """It is connected to its coordinator, and not draining."""
        if self._draining():
            return "draining: no new work is begun"
        return self.alive() or ("" if self._link.online else f"not connected: {self._link.trouble or 'the line was lost'}")
