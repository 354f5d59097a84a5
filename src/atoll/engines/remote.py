"""The engine of a deployment: assignments go to sites through a hub, and their answers come back from it.

The server's own held-out shards are computed here and never sent. A synchronous run waits for its sites, so that it gives the
bits that `serial` gives. Who stays away for longer than the run's patience is lost, who says no is not waited for, and the
round goes on by its policy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

from atoll.engines.absence import Absence, Terms
from atoll.engines.serial import Clients, serial
from atoll.errors import RoundError
from atoll.interfaces import Memories
from atoll.types import HELD_OUT, Answer, Assignment, ClientId, Failure, Local, Update

if TYPE_CHECKING:
    from atoll.remote.hub import Hub

Place: TypeAlias = tuple[int, ClientId, str]
LOOK_S = 0.5  # between two looks at who is online, while nothing lands
NOBODY_S = 86400.0  # that a round waits for the first of its sites
DRAWING = threading.Lock()  # who uses the process's generator of random numbers: jobs have a thread each
BEGUN = ("fetching", "training", "pushing", "answered")


class Cohort(Protocol):
    """Who could be asked in the open round, kept for a restart."""

    def kept(self) -> frozenset[ClientId] | None:
        """None where no answer of the open round is in the journal, so that anybody may be asked."""
        ...

    def note(self, clients: Iterable[ClientId]) -> None: ...


class Members(Protocol):
    """Who speaks for whom, and who takes no part."""

    def site(self, client: ClientId) -> str: ...

    def refusals(self) -> Mapping[ClientId, str]:
        """Clients whose site has said no for good, and why."""
        ...


class Everybody:
    """Each client is a site of its own, and takes part."""

    def site(self, client: ClientId) -> str:
        """Itself."""
        return client

    def refusals(self) -> Mapping[ClientId, str]:
        """None."""
        return {}


class Remote:
    """Owns what is outstanding at the sites of one job. `wait` is called while it waits: what it raises ends the wait."""

    def __init__(
        self,
        hub: Hub,
        job: str,
        accepted: set[Place],  # of the rounds that the journal keeps
        cohort: Cohort,
        locals_: Mapping[str, Local[Any]],
        clients: Clients,
        memories: Memories,
        terms: Terms = Terms(),  # noqa: B008
        members: Members = Everybody(),  # noqa: B008
        wait: Callable[[], None] = lambda: None,
        absence: Absence | None = None,  # as an engine before this one has seen it
    ) -> None:
        self._hub, self._job, self._terms, self._members, self._wait = hub, job, terms, members, wait
        self._accepted, self._cohort, self._absence = accepted, cohort, absence or Absence()
        self._own = serial(locals_, clients, memories)  # is asked for held-out shards alone
        self._out: set[Place] = set()  # unanswered
        self._begun = False  # a round of this engine

    def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        """Those online, once nobody else is to be waited for. A round that is begun again has the cohort that it had."""
        known = None if self._begun else self._cohort.kept()
        if known is not None:
            self._begun = True
            return [client for client in clients if client in known]
        began_s = self.now()
        while True:
            self._wait()
            online, refusals = self._hub.online(self._job), self._members.refusals()
            self._absence.look(self.now(), [*clients, *(place[1] for place in self._out)], online)
            there = [client for client in clients if client in online]
            if self._may_begin(clients, there, online, refusals):
                break
            self._despair(clients, refusals, self.now() - began_s)
            self._hub.wait(self._job, LOOK_S)
        self._begun = True
        self._cohort.note(there)
        return there

    def _may_begin(
        self,
        clients: Sequence[ClientId],
        there: Sequence[ClientId],
        online: frozenset[ClientId],
        refusals: Mapping[ClientId, str],
    ) -> bool:
        """A round begins at once where work goes on, and else when nobody is waited for any more."""
        terms = self._terms
        at_work = {place[1] for place in self._out} & online
        if not self._begun and terms.start_with is not None:
            return len({self._members.site(client) for client in at_work.union(there)}) >= terms.start_with
        if at_work:
            return True
        if not there:
            return all(self._absence.of(place[1]) >= terms.patience_s for place in self._out) and not clients
        if terms.enough is not None and len(there) >= terms.enough:
            return True
        most_s = min(terms.patience_s, terms.deadline_s) if self._begun else terms.patience_s
        return all(client in online or client in refusals or self._absence.of(client) >= most_s for client in clients)

    def _despair(self, clients: Sequence[ClientId], refusals: Mapping[ClientId, str], waited_s: float) -> None:
        """Raise RoundError where waiting can't help, or has not."""
        if clients and all(client in refusals for client in clients) and waited_s >= self._terms.patience_s:
            site, reason = self._members.site(clients[0]), refusals[clients[0]]
            raise RoundError(f"every site refuses the job, {site} since {reason}; mend that, then serve the job again")
        if waited_s >= NOBODY_S:
            few = f"fewer than {self._terms.start_with} sites were" if self._terms.start_with else "no site was"
            raise RoundError(f"{few} online for {NOBODY_S / 3600:g} h; start them with `atoll join`, then serve again")

    def submit(self, assignments: Iterable[Assignment]) -> None:
        outside: list[Assignment] = []
        for assignment in assignments:
            if assignment.client.startswith(HELD_OUT):
                self._own.submit([assignment])
            else:
                outside.append(assignment)
        self._out.update(_place(assignment) for assignment in outside)
        if outside:
            self._hub.offer(self._job, outside)

    def results(self, timeout_s: float) -> Iterator[Answer]:
        ends, before = self.now() + timeout_s, torch.get_num_threads()
        torch.set_num_threads(1)  # as `serial` folds
        try:
            while True:
                yield from self._held_out(max(ends - self.now(), 0.0))
                if not self._out:
                    return
                left_s = ends - self.now()
                for answer in self._hub.answers(self._job, max(min(left_s, LOOK_S), 0.0)):
                    if self._expected(answer):
                        yield answer
                    del answer  # the caller alone holds what it is given
                    if not self._out or self.now() > ends:
                        break
                yield from self._given_up()
                if left_s <= 0:
                    return
                self._wait()
        finally:
            torch.set_num_threads(before)

    def acknowledge(self, update: Update) -> None:
        if update.client.startswith(HELD_OUT):
            self._own.acknowledge(update)
            return
        self._accepted.add(_place(update))
        self._hub.acknowledge(self._job, update)

    def refuse(self, answer: Answer) -> None:
        if answer.client.startswith(HELD_OUT):
            self._own.refuse(answer)
            return
        self._out.discard(_place(answer))
        self._hub.refuse(self._job, answer)

    def cancel(self, round: int, work: str) -> None:
        self._own.cancel(round, work)
        self._out = {place for place in self._out if (place[0], place[2]) != (round, work)}
        self._hub.cancel(self._job, round, work)

    def started(self, assignment: Assignment) -> bool:
        """And does not move: then its lease runs. A site that moves in nothing that it is asked for has no queue, either."""
        if assignment.client.startswith(HELD_OUT):
            return self._own.started(assignment)
        progress = self._hub.progress(self._job).get(assignment.client)
        if progress is None or progress.doing == "offline" or progress.place != _place(assignment):
            return False
        begun = progress.doing in BEGUN
        still_s = progress.silent_s if begun else self._hub.still_s(self._members.site(assignment.client))
        return still_s > self._terms.patience_s

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        """What is outstanding stays so: the sites go on with it, and a run that is resumed finds their answers."""
        self._out.clear()
        self._own.close()

    def _held_out(self, timeout_s: float) -> Iterator[Answer]:
        computed = self._own.results(timeout_s)
        while True:
            with DRAWING:
                answer = next(computed, None)
            if answer is None:
                return
            yield answer

    def _expected(self, answer: Answer) -> bool:
        """It is the first answer to what is outstanding. Any other is settled here: it is safe already, or unwanted."""
        place = _place(answer)
        if place in self._out:
            self._out.discard(place)
            return True
        if isinstance(answer, Update) and place in self._accepted:
            self._hub.acknowledge(self._job, answer)  # it was, and its site did not hear of it
        else:
            self._hub.refuse(self._job, answer)
        return False

    def _given_up(self) -> Iterator[Answer]:
        """A failure for everything whose site takes no part any more, or has stayed away for longer than patience."""
        online, refusals = self._hub.online(self._job), self._members.refusals()
        self._absence.look(self.now(), {place[1] for place in self._out}, online)
        for place in sorted(self._out):
            client, away_s = place[1], self._absence.of(place[1])
            if place not in self._out:
                continue  # withdrawn meanwhile
            if client in refusals:
                kind, reason = "refused", f"its site takes no part: {refusals[client]}"
            elif client not in online and away_s > self._terms.patience_s:
                kind, reason = "lost", f"{self._why(client)} for {away_s:.0f} s"
            else:
                continue
            self._out.discard(place)
            yield Failure(*place, kind, reason)

    def _why(self, client: ClientId) -> str:
        seen = self._hub.progress(self._job).get(client)
        return "its site has been offline" if seen is None or seen.doing == "offline" else f"{seen.text}, and was waited for"


def _place(x: Assignment | Answer) -> Place:
    return x.round, x.client, x.work
