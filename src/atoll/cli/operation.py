"""How a coordinator, or a site, is operated: what it says, how it drains, and what an operator's machines are told of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from atoll.cli.drain import Drain, Stop
from atoll.cli.voice import Voice
from atoll.errors import RemoteError

if TYPE_CHECKING:
    from atoll.deploy.draining import Draining
    from atoll.deploy.operations.health import OfCoordinator as Health
    from atoll.deploy.operations.metrics import OfCoordinator as Numbers
    from atoll.interfaces import Sink
    from atoll.remote.hub import Hub
    from atoll.remote.link import Link

LOOK_S = 0.2


class Operation(NamedTuple):
    """What all jobs of a coordinator are operated with."""

    hub: Hub
    voice: Voice
    drain: Drain
    health: Health
    numbers: Numbers | None  # nobody asks for them

    def begins(self, job: str, run: str, done: int, rounds: int) -> tuple[Stop, list[Sink]]:
        """The run of a job is open, of which so many rounds are done: what ends it, and the sinks that it is to have."""
        self.health.runs[job] = run
        stop = Stop(self.drain, rounds, lambda: self._open(run))
        return stop, [self.numbers.sink(job, done, rounds), stop] if self.numbers else [stop]

    def _open(self, run: str) -> bool:
        """Somebody was asked for work and has not been settled with."""
        try:
            return any(each.place for each in self.hub.progress(run).values())
        except RemoteError:  # nobody can have been asked yet
            return False

    def ends(self, job: str) -> None:
        """The job is over, well or not."""
        self.health.runs.pop(job, None)

    def wait_for(self, threads: Sequence[threading.Thread]) -> None:
        """Until all have ended; the main thread beats meanwhile. What a signal raises comes out of here."""
        for thread in threads:
            while thread.is_alive():
                thread.join(LOOK_S)
                self.health.beat()


@contextlib.contextmanager
def operating(hub: Hub, folder: Path, jobs: Sequence[str], voice: Voice, drain: Drain, ops: str | None) -> Iterator[Operation]:
    """Hear signals and, at the address `ops`, answer an operator's machines, until the block ends.

    `folder`: where what is on its way is kept. Raises ConfigError, RemoteError and MissingExtra for `ops`.
    """
    from atoll.deploy.operations import health, metrics
    from atoll.deploy.operations.ops import answering

    def asked() -> bool:
        return drain.asked

    seen = health.OfCoordinator(hub, jobs, asked)
    numbers = metrics.OfCoordinator(hub, folder, seen.runs, asked) if ops else None
    with answering(ops, seen, numbers, voice.say), drain.listening(lambda told: voice.say(told, "drain")):
        yield Operation(hub, voice, drain, seen, numbers)


@contextlib.contextmanager
def taking_part(link: Link, folder: Path, voice: Voice, drain: Drain, ops: str | None) -> Iterator[Draining]:
    """The same for a site: its link, which drains. `folder`: the site's. Raises as `operating`."""
    from atoll.deploy.draining import Draining
    from atoll.deploy.operations import health, metrics
    from atoll.deploy.operations.ops import answering

    def asked() -> bool:
        return drain.asked

    numbers = metrics.OfSite(link, folder, asked) if ops else None
    line = Draining(link, asked, numbers.answered if numbers else lambda *_: None)
    seen = health.OfSite(link, asked)
    with answering(ops, seen, numbers, voice.say), drain.listening(lambda told: voice.say(told, "drain")):
        yield line


class Shown:
    """Says when the session comes and goes, once each time."""

    def __init__(self, link: Link, address: str, voice: Voice) -> None:
        self._link, self._address, self._voice, self._last = link, address, voice, ""

    def look(self) -> bool:
        """False: nothing here ends the site."""
        online = self._link.online
        told = f"connected to {self._address}" if online else self._link.trouble
        if told and told != self._last:
            self._voice.say(told, "connected" if online else "disconnected", "info" if online else "warning")
            self._last = told
        return False


def left(drain: Drain, failed: Mapping[str, str]) -> None:
    """What a site that has left tells: Stopped where it was asked to, RemoteError where jobs have `failed`, and why."""
    if drain.asked:
        raise drain.stopped()
    if failed:
        told = ", ".join(f"{job} has failed at its coordinator ({why})" for job, why in failed.items())
        raise RemoteError(f"{told}; when it is served again, {drain.again}")
