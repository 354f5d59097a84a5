"""One job at a relay: the round of its region, which is `round.ask` over the sites below, in a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.deploy.brief import brief_of, job_of, said_by
from atoll.deploy.members import Members
from atoll.deploy.regions import region as regions
from atoll.deploy.regions.deferred import Deferred
from atoll.deploy.regions.region import Region
from atoll.deploy.regions.shelf import Shelf
from atoll.engines.absence import Terms
from atoll.engines.remote import DRAWING, Remote
from atoll.errors import AtollError, ConfigError, RoundError
from atoll.flight import Flight
from atoll.job.build import build
from atoll.local.binding import binding
from atoll.remote.values import Invited, Place, Progress, place_of
from atoll.round import Shell, ask
from atoll.store.memories import FileMemories, Kept
from atoll.types import Answer, Assignment, ClientId, Dataset, Event, Failure, Reduced, Tree, Update

if TYPE_CHECKING:
    from atoll.deploy.line import Line
    from atoll.remote.hub import Hub


class _Ended(Exception):
    """The relay stops; what is open is gone on with when it starts again."""


class _Withdrawn(Exception):
    """The coordinator does not want this work any more."""


class Part:
    """What a relay has to know of a job: no data, but what its clients send, and how that is encoded."""

    def __init__(self, invited: Invited, region: Region) -> None:
        """Raises ConfigError where the job does not take the relay's client for a region, or can't have one."""
        job, population = job_of(invited.brief)
        if len(invited.clients) != 1 or invited.clients[0] not in job.regions:
            told = f"the job gives this site {', '.join(invited.clients)}, and [regions] {', '.join(job.regions) or 'nothing'}"
            raise ConfigError(f"{told}; a relay speaks for one client, which the job names under [regions]")
        self.invited, self.client = invited, invited.clients[0]
        if job.regions[self.client] != len(region.sites):
            told = f"the job says that the region {self.client!r} has {job.regions[self.client]} clients"
            raise ConfigError(f"{told}, and its relay knows {len(region.sites)}: they must agree")
        others = set(population) - {self.client}
        if taken := sorted(others & region.sites.keys()):
            raise ConfigError(f"{taken[0]!r} is a client in the region {self.client!r} and one outside; give one another name")
        everybody = [*others, *region.sites]
        self.brief = brief_of(said_by(invited.brief)[0], everybody, said_by(invited.brief)[1])
        with DRAWING:
            unseen = Dataset("data at the sites of the region", {client: {} for client in map(ClientId, everybody)}, None)
            federation = build(job, unseen)
        state = binding(federation.task.module).state()
        federation.plain().init(state)  # refuses what a region can't answer
        first = next(federation.algorithm.round(federation.algorithm.init(state), sorted(region.sites)))
        self.links, self.like = tuple(federation.transforms), {first.work: first.like}
        self.payload = federation.algorithm.local[regions.ENCODED].payload
        regions.refuse(self.links)


class Regional:
    """Owns a thread that works off what the region is asked, one piece of work after another."""

    def __init__(
        self, part: Part, region: Region, hub: Hub, link: Line, folder: Path, memories: FileMemories, say: Callable[..., None]
    ) -> None:
        """Invite the region's sites. `folder`: of this job's `Shelf`."""
        self.part, self.job = part, part.invited.job
        self._region, self._hub, self._link, self._memories, self._say = region, hub, link, memories, say
        self.trouble: BaseException | None = None  # what ended the thread, which is a defect or a full disk
        self._shelf = Shelf(folder)
        hub.open(self.job, region.sites, part.brief)
        terms, members = Terms(patience_s=region.patience_s), Members(hub, self.job, region.sites)
        remote = Remote(hub, self.job, set(), self._shelf, {}, {}, Kept(), terms, members, self._look)
        self._engine = Deferred(remote)
        self._queue: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
        self._lock, self._settling = threading.Lock(), threading.Lock()
        self._given, self._withdrawn = set[Place](), set[Place]()
        self._at: Place | None = None
        self._told: Told | None = None  # while the region is asked
        self._over, self._nobody_s = False, float("inf")
        self._thread = threading.Thread(target=self._run, name=f"region {self.job}", daemon=True)
        self._thread.start()

    def give(self, assignment: Assignment) -> None:
        """Something that the region is asked."""
        with self._lock:
            self._given.add(place_of(assignment))
        self._queue.put(assignment)

    def withdraw(self, round: int, work: str) -> bool:
        """The coordinator does not want this work; False where none of it is under way here."""
        with self._lock:
            found = {place for place in self._given if (place.round, place.work) == (round, work)}
            self._withdrawn |= found
            return bool(found)

    def settle(self) -> None:
        """Pass on to the region's sites what became of their answers above."""
        with self._settling:  # two threads ask for it
            for settled in self._shelf.settled():
                for place in settled.places:
                    if settled.accepted:
                        self._hub.acknowledge(self.job, Update(*place, {}, 0.0, {}))
                    else:
                        self._hub.refuse(self.job, Failure(*place, "expired", ""))
                self._shelf.forget(settled)

    @property
    def idle(self) -> bool:
        """Nothing that the region was asked is unanswered."""
        return not self._given

    def stop(self) -> None:
        """End the thread, wherever it is; it looks twice a second at least."""
        self._over = True
        self._queue.put(None)
        self._thread.join(30.0)

    def _run(self) -> None:
        try:
            while (assignment := self._queue.get()) is not None and not self._over:
                self._work(assignment)
        except _Ended:
            pass
        except BaseException as error:
            self.trouble = error  # the relay's own thread raises it

    def _work(self, assignment: Assignment) -> None:
        place, here = place_of(assignment), f"round {assignment.round + 1}, {assignment.client}, {assignment.work}"
        with self._lock:
            self._at = place
        try:
            self._look()
            answer, memory = self._answered(assignment)
            if isinstance(answer, Update):
                self._memories.propose(place.client, place.round, place.work, memory)
            self._link.answer(self.job, answer)
            told = f"failed: {answer.reason}" if isinstance(answer, Failure) else "answered"
            self._say(f"{here}: {told}", job=self.job)
        except _Withdrawn:
            self._engine.withdraw(place.round, place.work)
            self._say(f"{here}: withdrawn", job=self.job)
        with self._lock:
            self._given.discard(place)
            self._at, unwanted = None, place in self._withdrawn
            self._withdrawn.discard(place)
        if unwanted:
            self._shelf.settle(place, False)
            self.settle()

    def _answered(self, assignment: Assignment) -> tuple[Answer, Tree]:
        """The region's answer; what keeps it from being one is a Failure that says who and why."""
        place = place_of(assignment)
        try:
            reduced = self._reduced(assignment)
            with DRAWING:
                memory = self._memories.get(place.client)
                spoken = regions.spoken(assignment, reduced, self.part.links, memory, self.part.payload)
            self._shelf.heard(place, reduced.clients)
            return spoken
        except (AtollError, MemoryError) as error:
            self._engine.cancel(place.round, place.work)
            told = str(error).partition("\n")[0] or type(error).__name__
            return Failure(*place, "error", f"in the region {place.client}, {told}"), {}

    def _reduced(self, assignment: Assignment) -> Reduced:
        policy, journal = self._region.policy, self._shelf.open(assignment)
        there = self._there()
        request = regions.asked(assignment, there, self.part.links, self.part.like.get(assignment.work))
        flight = Flight(policy, self._engine)
        flight.open(journal, assignment.round)
        self._told = Told(self._link, self._hub, self.job, place_of(assignment), there, self._say)
        try:
            shell = Shell(self._engine, journal, self._told)
            return ask(request, assignment.round, policy, flight, shell, assignment.seed)
        finally:
            self._told = None

    def _there(self) -> Sequence[ClientId]:
        """The clients of the region that can be asked. Raises RoundError where they are too few."""
        self._nobody_s = time.monotonic() + self._region.patience_s
        try:
            there = self._engine.available(sorted(self._region.sites))
        finally:
            self._nobody_s = float("inf")
        if len(there) < self._region.policy.min_updates:
            raise RoundError(self._few(there))
        return there

    def _look(self) -> None:
        """While nothing happens: raise what ends the wait."""
        with self._lock:
            if self._at in self._withdrawn:
                raise _Withdrawn
        if self._over:
            raise _Ended
        if self._told is not None:
            self._told.look()
        if time.monotonic() > self._nobody_s and not self._hub.online(self.job):
            raise RoundError(self._few([]))

    def _few(self, there: Sequence[ClientId]) -> str:
        seen = self._hub.progress(self.job)
        missing = [f"{client} ({seen[client].text})" for client in sorted(self._region.sites) if client not in there]
        of = f"{len(there)} of {len(self._region.sites)} clients are there, and min_updates is {self._region.policy.min_updates}"
        return f"{of}; not there: {', '.join(missing[:5])}{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}"


class Told:
    """A sink that tells upward how far the region's clients are, each in hundredths, and the relay's log who failed."""

    def __init__(self, link: Line, hub: Hub, job: str, place: Place, asked: Sequence[ClientId], say: Callable[..., None]) -> None:
        self._link, self._hub, self._job, self._place, self._say = link, hub, job, place, say
        self._asked, self._heard = asked, set[ClientId]()

    def emit(self, event: Event) -> None:
        """An update or a failure is one client more."""
        if event.kind in ("update", "failure") and event.client is not None:
            self._heard.add(event.client)
            self.look()
        if event.kind == "failure":
            self._say(f"round {event.round + 1}, {event.client}, {event.work}: {event.text}", job=self._job)

    def look(self) -> None:
        """Tell it, so that the coordinator sees a region move whose clients do."""
        seen = self._hub.progress(self._job)
        shares = [100 if client in self._heard else self._share(seen.get(client)) for client in self._asked]
        self._link.say(self._job, self._place, sum(shares), 100 * len(shares))

    def _share(self, seen: Progress | None) -> int:
        if seen is None or seen.doing != "training" or seen.place is None or seen.place.work != self._place.work:
            return 0
        return min(100 * seen.done // seen.total if seen.total else seen.done, 99)
