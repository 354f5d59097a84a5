"""A site: it builds the federation of a job over its own data, and answers what the coordinator asks of its clients.

Client memory lies in the site's folder, is proposed with an update, and is committed when the coordinator has said that the
update is safe. The site may be killed at any moment: what is unanswered is offered again, and gives the same bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.data.examples import steps_of
from atoll.data.text import Texts
from atoll.deploy.brief import job_of
from atoll.deploy.line import Line, serve
from atoll.engines.serial import serial
from atoll.errors import AtollError, ConfigError, RemoteError
from atoll.job.build import build, data_of, dataset_of, tokenizer_of
from atoll.remote.values import Acknowledged, Cancelled, Closed, Invited, Offered, Place, Refused, SiteEvent
from atoll.store.memories import FileMemories
from atoll.store.sealed import lay
from atoll.types import Answer, Assignment, ClientId, Dataset, Failure, Local

if TYPE_CHECKING:
    from atoll.federation import Federation
    from atoll.job.schema import Job
    from atoll.job.text import Document
    from atoll.store.keys import Keys

_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


class Site:
    """The jobs in which a site takes part, over one link. `data`: a document whose [data] is the site's own, not the job's."""

    def __init__(
        self,
        link: Line,
        folder: Path,
        data: Document | None = None,
        say: Callable[..., None] = lambda *_, **__: None,  # (text, job=, and what else is known of it)
        keys: Keys | None = None,  # that client memory is sealed with; None: it lies in the open
        built: Callable[[str, Federation, int], object] | None = None,  # told of each job's federation and its rounds
    ) -> None:
        self._link, self._folder, self._data, self._say, self._keys, self._built = link, folder, data, say, keys, built
        self._parts: dict[str, Part] = {}
        self.ended: set[str] = set()  # jobs that the coordinator has closed
        self.failed: dict[str, str] = {}  # of these, those that have failed there, and why

    def serve(self, stopped: Callable[[], bool], look_s: float = 0.5) -> None:
        """Do what the coordinator says until `stopped()`; it is asked between events, and `look_s` after the last one."""
        serve(self._link, self.take, stopped, look_s)

    def take(self, event: SiteEvent) -> None:
        """One thing that the coordinator says; what is about a job whose name is no file's has nothing here to change."""
        if not _JOB.fullmatch(event.job) and not isinstance(event, Invited | Offered):
            return
        if isinstance(event, Invited):
            self._join(event)
        elif isinstance(event, Offered):
            self._answer(event.job, event.assignment)
        elif isinstance(event, Acknowledged):
            self._memories(event.job).commit(event.place.client, event.place.round, event.place.work)
        elif isinstance(event, Refused):
            self._memories(event.job).discard(event.place.client, event.place.round, event.place.work)
        elif isinstance(event, Cancelled) and event.job in self._parts:
            for client in self._parts[event.job].clients:
                self._memories(event.job).discard(client, event.round, event.work)
        elif isinstance(event, Closed):
            self.ended.add(event.job)
            self._parts.pop(event.job, None)
            if event.failed:
                self.failed[event.job] = event.failed
            self._tell(
                event.job, f"the job has failed at its coordinator: {event.failed}" if event.failed else "the job has ended"
            )

    def _join(self, invited: Invited) -> None:
        """Build the site's part of the job, or say why it can't be."""
        self.ended.discard(invited.job)
        self.failed.pop(invited.job, None)
        known = self._parts.get(invited.job)
        if known is None or known.invited != invited:
            self._tell(invited.job, f"reading the data of {', '.join(invited.clients)}, building the job")
            try:
                self._parts[invited.job] = Part(invited, self._memories(invited.job), self._data, self._told, self._built)
            except AtollError as error:
                told = str(error).replace("\n", "; ")
                self._tell(invited.job, "not taking part", f": {told}")
                self._link.consent(invited.job, False, told)
                return
            self._tell(invited.job, f"taking part with {len(invited.clients)} clients: {', '.join(invited.clients)}")
        self._link.consent(invited.job, True)

    def _answer(self, job: str, assignment: Assignment) -> None:
        part, place = self._parts.get(job), (assignment.round, assignment.client, assignment.work)
        here = f"round {assignment.round + 1}, {assignment.client}, {assignment.work}"
        self._link.log(job, f"{here}: begins")
        answer = part.answer(assignment) if part else Failure(*place, "invalid", "this site does not take part in the job")
        if part and not self._link.wanted(job, Place(*place)):
            self._memories(job).discard(assignment.client, assignment.round, assignment.work)
            self._tell(job, f"{here}: withdrawn")
            return
        self._link.answer(job, answer)
        words = f": {answer.reason}" if isinstance(answer, Failure) else ""
        about = {"event": "failed" if words else "answered", "round": assignment.round + 1, "client": assignment.client}
        self._tell(job, f"{here}: {'failed' if words else 'answered'}", words, **about, work=assignment.work)

    def _tell(self, job: str, text: str, words: str = "", **about: object) -> None:
        """A line for whoever runs the site; without the `words` of errors it goes to the coordinator, where a policy lets it."""
        self._say(text + words, job=job, **about)
        self._link.log(job, text)

    def _told(self, job: str, assignment: Assignment, step: int, steps: int) -> None:
        place = Place(assignment.round, assignment.client, assignment.work)
        self._link.say(job, place, step, steps)
        if not self._link.wanted(job, place):
            raise RemoteError("nobody waits for this work any more")  # what comes next need not wait until it is done

    def _memories(self, job: str) -> FileMemories:
        if not _JOB.fullmatch(job):
            raise ConfigError(f"the job {job!r} has a name that is no file's: letters, digits, - and _, 100 at the most")
        return FileMemories(self._folder / "memory" / job, lay=lay(self._keys, f"{job}/memory"))


class Part:
    """One job at this site: its clients' data, its work, its memory."""

    def __init__(
        self,
        invited: Invited,
        memories: FileMemories,
        own: Document | None,
        told: Callable[[str, Assignment, int, int], None] = lambda *_: None,
        built: Callable[[str, Federation, int], object] | None = None,
    ) -> None:
        self.invited, self.clients = invited, invited.clients
        job, population = job_of(invited.brief)
        if region := next((client for client in invited.clients if client in job.regions), None):
            raise ConfigError(f"{region!r} is a region, for which a relay speaks: start this site with `atoll relay`")
        dataset = data_of(job) if own is None else _own(own, job, invited.clients, population)
        if absent := [client for client in invited.clients if not dataset.clients.get(client)]:
            raise ConfigError(f"the data here ({dataset.name}) has no client {absent[0]!r}, which this site is to speak for")
        federation = build(job, dataset)
        if built is not None:
            built(invited.job, federation, job.rounds)
        self._local = federation.local(job.rounds)
        telling = {
            work: _telling(local, lambda assignment, step: told(invited.job, assignment, step, self._steps(assignment)))
            for work, local in self._local.items()
        }
        self._examples = {client: dataset.clients[client] for client in self.clients}
        self._engine = serial(telling, self._examples, memories)

    def _steps(self, assignment: Assignment) -> int:
        """How many steps the work has."""
        batching = self._local[assignment.work].batching
        return steps_of(len(self._examples[assignment.client].get(batching.split, ())), batching)

    def answer(self, assignment: Assignment) -> Answer:
        """Do the work. What can't be done, for whatever reason, is a Failure that says why."""
        place = (assignment.round, assignment.client, assignment.work)
        if assignment.client not in self.clients or assignment.work not in self._local:
            return Failure(*place, "invalid", f"this site does not do {assignment.work!r} for {assignment.client!r}")
        self._engine.submit([assignment])
        try:
            (answer,) = self._engine.results(math.inf)
        except (AtollError, MemoryError) as error:  # else the coordinator would wait for a site that can't
            return Failure(*place, "error", str(error).partition("\n")[0] or type(error).__name__)
        return answer


def _own(document: Document, job: Job, mine: tuple[ClientId, ...], population: tuple[ClientId, ...]) -> Dataset:
    """The site's own data, in a population whose other members are names; a single client's is that of the single one here."""
    found = dataset_of(document)
    if any(isinstance(examples, Texts) for splits in found.clients.values() for examples in splits.values()) and not tokenizer_of(
        job
    ):
        raise ConfigError(
            f"[task] {job.task.name} counts characters over all texts, which no site has; use a pretrained model's tokens"
        )
    held = dict(found.clients)
    if len(held) == len(mine) == 1:
        held = {mine[0]: next(iter(held.values()))}
    everybody: dict[ClientId, Mapping[str, Any]] = {client: {} for client in population}
    return found._replace(clients=everybody | {client: held[client] for client in mine if client in held}, test=None)


def _telling(local: Local[Any], told: Callable[[Assignment, int], None]) -> Local[Any]:
    """The same work, its steps counted aloud."""
    at: list[Any] = [None, 0]

    def init(assignment: Assignment, memory: Any) -> Any:
        at[:] = assignment, 0
        return local.init(assignment, memory)

    def step(carry: Any, batch: Any) -> Any:
        at[1] += 1
        told(at[0], at[1])
        return local.step(carry, batch)

    return local._replace(init=init, step=step)
