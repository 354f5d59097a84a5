"""A coordinator and its sites over loopback in one process; a test holds any client's work at its first step, and lets it go."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atoll.deploy.coordinator import coordinate, opened
from atoll.deploy.rules.willing import Willing
from atoll.deploy.site import Site
from atoll.errors import RemoteError
from atoll.job.check import check
from atoll.job.text import parse
from atoll.remote.hub import Hub
from atoll.remote.link import Link
from atoll.remote.values import Place
from atoll.store.runs import Store
from atoll.types import HELD_OUT, ClientId, Event, Tree
from tests.remote.ends import QUICK, SOON_S, until

JOB = """
atoll = 1
name = "job"
seed = 3
rounds = {rounds}
policy = {policy}

[data]
name = "digits"
clients = 3
partition = "iid"

[task]
name = "classification"
model = {{ name = "mlp", inputs = 64, hidden = [8], outputs = 10 }}

[local]
name = "sgd"
lr = 0.1
steps = 3

[algorithm]
name = "{algorithm}"

[evaluation]
every = 0

[sites]
"""
ALL = '{ name = "synchronous" }'
SITES = {"a": "client-0", "b": "client-1", "c": "client-2"}


def job(policy: str, rounds: int = 2, algorithm: str = "fedavg", sites: str = "abc") -> str:
    """A job with one client at each site."""
    named = "".join(f'{site} = ["{SITES[site]}"]\n' for site in sites)
    return JOB.format(policy=policy, rounds=rounds, algorithm=algorithm) + named


class Stop(BaseException):
    """As Ctrl-C at the coordinator."""


class Gates:
    """Where work is held: by round and site."""

    def __init__(self) -> None:
        self.changed, self.held = threading.Condition(), set[tuple[int, str]]()
        self.steps: dict[tuple[int, str], int] = {}  # how far each work came

    def hold(self, *works: tuple[int, str]) -> None:
        with self.changed:
            self.held |= set(works)

    def free(self, *works: tuple[int, str]) -> None:
        """These, or all."""
        with self.changed:
            self.held = self.held - set(works) if works else set()
            self.changed.notify_all()

    def at(self, round: int, site: str) -> int:
        return self.steps.get((round, site), 0)

    def step(self, site: str, place: Place, step: int) -> None:
        key = place.round, site
        with self.changed:
            self.steps[key] = step
            assert self.changed.wait_for(lambda: key not in self.held, SOON_S), f"{key} was never let go"


class Held:
    """A link through whose gates a site's steps go."""

    def __init__(self, link: Link, site: str, gates: Gates) -> None:
        self.link, self._site, self._gates = link, site, gates

    def __getattr__(self, name: str) -> Any:
        return getattr(self.link, name)

    def say(self, job: str, place: Place, step: int, steps: int = 0) -> None:
        self.link.say(job, place, step, steps)
        self._gates.step(self._site, place, step)


class Loopback:
    """All of it. `serve` begins a job in a thread, `ended` waits for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.gates, self.events = folder, Gates(), list[Event]()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.hub, self.run, self.params = self._hub(), "", dict[str, Any]()
        self.sites: dict[str, tuple[Site, Held, threading.Event, threading.Thread]] = {}
        self._over, self._thread, self._error = threading.Event(), threading.Thread(), None

    _error: BaseException | None

    def _hub(self) -> Hub:
        return Hub(self.address, None, self.folder / "runs" / "hub", insecure=True, limits=QUICK)

    def come(self, *names: str, own: str = "") -> None:
        """These sites begin. `own`: what their data is."""
        for name in names:
            link = Held(
                Link(self.address, None, name, self.folder / name / "link", insecure=True, limits=QUICK), name, self.gates
            )
            line: Any = Willing(link, self.folder / name, self.address)
            site, over = Site(line, self.folder / name, parse(own) if own else None), threading.Event()
            thread = threading.Thread(target=site.serve, args=(over.is_set, 0.02), name=name)
            self.sites[name] = site, link, over, thread
            thread.start()

    def link(self, site: str) -> Link:
        return self.sites[site][1].link

    def there(self, *sites: str) -> bool:
        """They take part."""
        try:
            return {ClientId(SITES[site]) for site in sites} <= self.hub.online(self.run)
        except RemoteError:  # the job is not open yet
            return False

    def serve(self, text: str, **more: Any) -> None:
        """Begin the job, or go on with it; `ended` says how it ended."""
        self._over.clear()
        self._error, self.events = None, []
        ready = threading.Event()
        self._thread = threading.Thread(target=self._coordinate, args=(text, more, ready), name="coordinator")
        self._thread.start()
        assert ready.wait(SOON_S)

    def _coordinate(self, text: str, more: dict[str, Any], ready: threading.Event) -> None:
        document = parse(text)
        checked = check(document)
        try:
            with Store(self.folder / "runs") as store, opened(store, "job", document.values, checked) as run:
                self.run = run.id
                ready.set()
                each = self._each_round
                done = coordinate(self.hub, checked, document.values, run, [self], each_round=each, wait=self._wait, **more)
                self.params = dict(done.result.params)
        except BaseException as error:
            self._error = error
        finally:
            ready.set()

    def _wait(self) -> None:
        if self._over.is_set():
            raise Stop

    def _each_round(self, rounds: int, parameters: Tree) -> None:
        self._wait()

    def emit(self, event: Event) -> None:
        """As a sink."""
        self.events.append(event)
        self._wait()

    def heard(self, kind: str, round: int) -> list[Event]:
        """Events of the sites' clients, and of the round itself."""
        found = [event for event in list(self.events) if (event.kind, event.round) == (kind, round)]
        return [event for event in found if not str(event.client).startswith(HELD_OUT)]

    def clients(self, round: int, kind: str = "update") -> list[str]:
        return sorted(str(event.client) for event in self.heard(kind, round))

    def until_round(self, round: int) -> None:
        """It has ended."""
        until(lambda: self.heard("round", round) or self._error, f"round {round} has not ended")
        assert self.heard("round", round), self._error

    def ended(self) -> BaseException | None:
        """What ended the job, if anything did before its end."""
        self._thread.join(SOON_S)
        assert not self._thread.is_alive(), f"the job has not ended: {self.events[-3:]}"
        return self._error

    def stop(self) -> None:
        """As Ctrl-C at the coordinator; the sites do not hear of it."""
        self._over.set()
        assert isinstance(self.ended(), Stop)
        self.hub.stop(0.0)
        self.hub = self._hub()

    def close(self) -> None:
        self._over.set()
        self.gates.free()
        for _, _, over, _ in self.sites.values():
            over.set()
        for _, link, _, thread in self.sites.values():
            thread.join(SOON_S)
            link.link.close()
        if self._thread.ident is not None:
            self._thread.join(SOON_S)
        self.hub.stop(0.0)


@contextlib.contextmanager
def loopback(folder: Path) -> Iterator[Loopback]:
    made = Loopback(folder)
    try:
        yield made
    finally:
        made.close()
