"""Who is at work: assignments that have no accepted answer yet, each under a lease, so that no slot stays busy."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

from atoll.interfaces import Engine, Journal
from atoll.policy import Policy
from atoll.types import HELD_OUT, Answer, Assignment, ClientId, Failure, Request, Update
from atoll.wire import frame


class Flight:
    """The assignments of a run that are under way, over one engine."""

    def __init__(self, policy: Policy, engine: Engine) -> None:
        self.out: dict[tuple[ClientId, str], tuple[Assignment, float]] = {}  # by client and work, with the lease's end
        self._lease_s, self._engine = policy.lease_s, engine
        self._started: set[tuple[ClientId, str]] = set()  # of those out, who no longer wait for their turn
        self._logged: Iterator[Answer] = iter(())  # of the open round, from before a kill: read one at a time
        self._known: deque[tuple[int, ClientId, str]] = deque()  # what those answer, in their order
        self._early: deque[Answer] = deque()  # to work that was not being asked for when they landed

    def open(self, journal: Journal, round: int) -> None:
        """Answers that the journal already has of this round are not asked for again."""
        self._known, self._logged = deque(journal.places(round)), journal.accepted(round)

    def send(self, assignments: Sequence[Assignment]) -> None:
        known, ends = set(self._known), self._engine.now() + self._lease_s
        self.out.update(((a.client, a.work), (a, ends)) for a in assignments)
        self._engine.submit([a for a in assignments if _place(a) not in known])
        self._started |= {_job(a) for a in assignments if self._engine.started(a)}

    def count(self, work: str) -> int:
        return sum(a.work == work for a, _ in self.out.values())

    def answers(self, work: str, until: float) -> Iterator[tuple[Answer, bool]]:
        """Answers to one kind of work, and whether it is the journal that gave them; ends at `until`."""
        while self._known and self._known[0][2] == work:
            _, *job = self._known.popleft()
            if tuple(job) in self.out:
                yield next(self._logged), True
            else:  # it stood in for somebody who had failed, and who is now asked again
                next(self._logged)
        yield from self._landed(work)
        while self.count(work):
            ends = min(until, min(ends for _, ends in self.out.values()))
            silent = True
            for answer in self._engine.results(max(ends - self._engine.now(), 0.0)):
                silent = False
                if self._expects(answer):
                    self.out[_job(answer)] = (self.out[_job(answer)][0], math.inf)
                    self._early.append(answer)
                del answer  # the caller alone holds what it is given: a model less of memory
                yield from self._landed(work)
            now = self._engine.now()
            for assignment, ends_at in list(self.out.values()):
                if ends_at <= now and not (_job(assignment) in self._started and self._engine.started(assignment)):
                    self._renew(assignment, now)
                elif ends_at <= now:
                    yield _lost(assignment, "expired", f"no answer in {self._lease_s:g} s"), False
                elif silent and now < ends and assignment.work == work:
                    yield _lost(assignment, "lost", "the engine holds no such work"), False
            if now >= until:
                return

    def _renew(self, assignment: Assignment, now: float) -> None:
        """A lease does not run out in a queue, nor where work is seen to move: it begins when neither is so any more."""
        self.out[_job(assignment)] = (assignment, now + self._lease_s)
        if self._engine.started(assignment):
            self._started.add(_job(assignment))
        else:
            self._started.discard(_job(assignment))

    def _landed(self, work: str) -> Iterator[tuple[Answer, bool]]:
        """What has landed of one kind of work; the rest waits until it is asked for."""
        for _ in range(len(self._early)):
            if self._early[0].work != work:
                self._early.rotate(-1)
            elif self._expects(self._early[0]):
                yield self._early.popleft(), False
            else:
                self._early.popleft()

    def _expects(self, answer: Answer) -> bool:
        """False, and the engine is told, for work that was cancelled or has expired, and for a second answer."""
        assigned = self.out.get(_job(answer))
        expected = assigned is not None and _place(assigned[0]) == _place(answer)
        if not expected:
            self._engine.refuse(answer)
        return expected

    def accept(self, answer: Answer, request: Request | None = None) -> dict[str, float]:
        """The answer is accepted and its client free; what it cost on the network, and what the request's codecs saved."""
        assignment = self.out.pop(_job(answer))[0]
        self._started.discard(_job(answer))
        if answer.client.startswith(HELD_OUT):
            return {}
        down, up = frame.size(assignment), frame.size(answer)
        cost: dict[str, float] = {
            "bytes_down": down.total,
            "bytes_up": up.total,
            "header_down": down.header,
            "header_up": up.header,
        }
        if request is not None and request.plain_for is not None:
            plain = assignment._replace(tree=request.plain_for(answer.client))
            cost["saved_down"] = frame.size(plain).total - down.total
        if request is not None and request.plain is not None and isinstance(answer, Update):
            cost["saved_up"] = frame.size(answer._replace(tree=request.plain)).total - up.total
        return cost

    def cancel(self, round: int, work: str) -> list[tuple[ClientId, dict[str, float]]]:
        """Whoever is still at this work need not finish it; who that is, and what it has cost on the network to ask."""
        if late := [job for job in self.out if job[1] == work]:
            self._engine.cancel(round, work)
        told: list[tuple[ClientId, dict[str, float]]] = []
        for job in late:
            assignment = self.out.pop(job)[0]
            self._started.discard(job)
            if not assignment.client.startswith(HELD_OUT):
                down = frame.size(assignment)
                told.append((assignment.client, {"bytes_down": down.total, "header_down": down.header}))
        return told


def _lost(assignment: Assignment, kind: str, reason: str) -> Failure:
    return Failure(assignment.round, assignment.client, assignment.work, kind, reason)


def _job(x: Assignment | Answer) -> tuple[ClientId, str]:
    return x.client, x.work


def _place(x: Assignment | Answer) -> tuple[int, ClientId, str]:
    return x.round, x.client, x.work
