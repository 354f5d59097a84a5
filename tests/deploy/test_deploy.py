"""A coordinator and its sites in one process, with frames between them and no network: the bits are those of a simulation."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from atoll.deploy.coordinator import coordinate, opened
from atoll.deploy.site import Site
from atoll.job.build import build
from atoll.job.check import check
from atoll.job.text import parse
from atoll.remote.values import (
    Acknowledged,
    Cancelled,
    Closed,
    Invited,
    Offered,
    Place,
    Progress,
    Refused,
    place_of,
)
from atoll.store.runs import Store
from atoll.types import Answer, Assignment, ClientId, Update
from atoll.wire import frame

JOB = """
atoll = 1
seed = 3
rounds = 3
{more}

[data]
name = "digits"
clients = 5
partition = {{ name = "dirichlet", alpha = 0.5 }}

[task]
name = "classification"
model = {{ name = "mlp", inputs = 64, hidden = [16], outputs = 10 }}

[local]
name = "sgd"
lr = 0.1

[algorithm]
name = "{algorithm}"

[sites]
north = ["client-0", "client-1", "client-2"]
south = ["client-3", "client-4"]
"""


class Wire:
    """What a hub and its links do, in memory: every tree goes through the bytes of a frame."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.events: dict[str, queue.Queue[Any]] = {}
        self.sites: dict[ClientId, str] = {}
        self.joined: set[str] = set()
        self.out: list[bytes] = []

    def open(self, job: str, sites: Mapping[ClientId, str], brief: bytes = b"", accepted: Iterable[Answer] = ()) -> None:
        self.sites = dict(sites)
        for site in sorted(set(sites.values())):
            mine = tuple(sorted(c for c, s in sites.items() if s == site))
            self.events.setdefault(site, queue.Queue()).put(Invited(job, mine, brief))

    def online(self, job: str) -> frozenset[ClientId]:
        return frozenset(c for c, site in self.sites.items() if site in self.joined)

    def wait(self, job: str, timeout_s: float) -> None:
        time.sleep(0.01)

    def offer(self, job: str, assignments: Iterable[Assignment]) -> None:
        for each in assignments:
            self.events[self.sites[each.client]].put(Offered(job, frame.read(b"".join(frame.write(each))).value))

    def answers(self, job: str, timeout_s: float) -> Iterator[Answer]:
        with self.lock:
            self.lock.wait_for(lambda: self.out, timeout_s)
            found, self.out = self.out, []
        for each in found:
            yield frame.read(each).value

    def _tell(self, client: ClientId, event: Any) -> None:
        self.events[self.sites[client]].put(event)

    def acknowledge(self, job: str, update: Update) -> None:
        self._tell(update.client, Acknowledged(job, place_of(update)))

    def refuse(self, job: str, answer: Answer) -> None:
        self._tell(answer.client, Refused(job, place_of(answer)))

    def cancel(self, job: str, round: int, work: str) -> None:
        for events in self.events.values():
            events.put(Cancelled(job, round, work))

    def progress(self, job: str) -> Mapping[ClientId, Progress]:
        return {}

    def close(self, job: str) -> None:
        for events in self.events.values():
            events.put(Closed(job))


class End:
    """The link of one site over a `Wire`."""

    def __init__(self, wire: Wire, site: str) -> None:
        self.wire, self.site, self.refusals = wire, site, list[str]()
        wire.events.setdefault(site, queue.Queue())

    def events(self, timeout_s: float) -> Iterator[Any]:
        try:
            while True:
                yield self.wire.events[self.site].get(timeout=timeout_s)
        except queue.Empty:
            return

    def consent(self, job: str, accepted: bool, reason: str = "", about: bytes = b"") -> None:
        self.refusals += [] if accepted else [reason]
        if accepted:
            self.wire.joined.add(self.site)

    def answer(self, job: str, answer: Answer) -> None:
        with self.wire.lock:
            self.wire.out.append(b"".join(frame.write(answer)))
            self.wire.lock.notify_all()

    def say(self, job: str, place: Place, step: int, steps: int = 0) -> None:
        """Nobody asks."""


def deployed(tmp_path: Path, text: str, each_round: Callable[[int, Any], None] | None = None) -> dict[str, torch.Tensor]:
    wire, over = Wire(), threading.Event()
    sites = [
        threading.Thread(target=Site(End(wire, s), tmp_path / s).serve, args=(over.is_set, 0.05)) for s in ("north", "south")
    ]  # type: ignore[arg-type]
    document = parse(text)
    job = check(document)
    for site in sites:
        site.start()
    try:
        with Store(tmp_path / "runs") as store, opened(store, "job", document.values, job) as run:
            outcome = coordinate(wire, job, document.values, run, each_round=each_round, wait=lambda: alive(sites))  # type: ignore[arg-type]
    finally:
        over.set()
        for site in sites:
            site.join(30)
    return dict(outcome.result.params)


def alive(sites: Iterable[threading.Thread]) -> None:
    assert all(site.is_alive() for site in sites), "a site has ended"


def simulated(text: str) -> dict[str, torch.Tensor]:
    job = check(parse(text))
    return dict(build(job).run(job.rounds).params)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


TOP_K = '[[transforms]]\nname = "feedback"\naround = [{ name = "top_k", fraction = 0.1 }]'


@pytest.mark.parametrize(("algorithm", "more"), [("fedavg", ""), ("scaffold", ""), ("fedavg", TOP_K)])
def test_sites_give_the_bits_of_a_simulation(tmp_path: Path, algorithm: str, more: str) -> None:
    text = JOB.format(algorithm=algorithm, more="") + more
    assert same(deployed(tmp_path, text), simulated(text))
