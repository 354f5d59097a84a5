"""A hub and its links in memory, for tests of what is above them: every tree goes through the bytes of a frame."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from atoll.remote.values import Acknowledged, Cancelled, Closed, Consent, Invited, Offered, Place, Progress, Refused, place_of
from atoll.types import Answer, Assignment, ClientId, Update
from atoll.wire import frame


class Wire:
    """What a hub and its links do, in memory: every tree goes through the bytes of a frame."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.events: dict[str, queue.Queue[Any]] = {}
        self.sites: dict[ClientId, str] = {}
        self.joined: set[str] = set()
        self.refused: dict[str, Consent] = {}
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

    def unconfirmed(self, job: str) -> frozenset[str]:
        return frozenset()

    def consents(self, job: str) -> Mapping[str, Consent]:
        return dict(self.refused)

    def fail(self, job: str, why: str) -> None:
        for events in self.events.values():
            events.put(Closed(job, why))

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

    def wanted(self, job: str, place: Place) -> bool:
        return True

    def log(self, job: str, line: str) -> None:
        """Nobody reads."""
