"""The engine of a deployment: assignments go to sites through a hub, and their answers come back from it.

The server's own held-out shards are computed here and never sent. A synchronous run waits for its sites, so that it gives the
bits that `serial` gives; who stays away for longer than `patience_s` is lost, and the round goes on by its policy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

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
        patience_s: float = 300.0,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._hub, self._job, self._patience_s, self._wait = hub, job, patience_s, wait
        self._accepted, self._cohort = accepted, cohort
        self._own = serial(locals_, clients, memories)  # is asked for held-out shards alone
        self._out: dict[Place, float] = {}  # unanswered, and when its site was last seen
        self._begun = False  # a round of this engine
        self._missed: set[ClientId] = set()  # waited for in vain: a later round does not wait for them again

    def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        """Those online, once all are or patience has run out. A round that is begun again has the cohort that it had."""
        known, self._begun = None if self._begun else self._cohort.kept(), True
        if known is not None:
            return [client for client in clients if client in known]
        began_s = self.now()
        while True:
            self._wait()
            online = self._hub.online(self._job)
            self._missed -= online
            there, waited_s = [client for client in clients if client in online], self.now() - began_s
            if len(there) == len(clients) or (there and all(c in online or c in self._missed for c in clients)):
                break
            if there and waited_s >= self._patience_s:
                self._missed |= set(clients) - online
                break
            if waited_s >= NOBODY_S:
                raise RoundError(f"no site was online for {NOBODY_S / 3600:g} h; start one with `atoll join`, then serve again")
            self._hub.wait(self._job, LOOK_S)
        self._cohort.note(there)
        return there

    def submit(self, assignments: Iterable[Assignment]) -> None:
        outside: list[Assignment] = []
        for assignment in assignments:
            if assignment.client.startswith(HELD_OUT):
                self._own.submit([assignment])
            else:
                outside.append(assignment)
        self._out.update((_place(assignment), self.now()) for assignment in outside)
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
                yield from self._lost()
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
        self._out.pop(_place(answer), None)
        self._hub.refuse(self._job, answer)

    def cancel(self, round: int, work: str) -> None:
        self._own.cancel(round, work)
        self._out = {place: seen_s for place, seen_s in self._out.items() if (place[0], place[2]) != (round, work)}
        self._hub.cancel(self._job, round, work)

    def started(self, assignment: Assignment) -> bool:
        if assignment.client.startswith(HELD_OUT):
            return self._own.started(assignment)
        progress = self._hub.progress(self._job).get(assignment.client)
        return progress is not None and progress.doing in BEGUN and progress.place == _place(assignment)

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
        if self._out.pop(place, None) is not None:
            return True
        if isinstance(answer, Update) and place in self._accepted:
            self._hub.acknowledge(self._job, answer)  # it was, and its site did not hear of it
        else:
            self._hub.refuse(self._job, answer)
        return False

    def _lost(self) -> Iterator[Answer]:
        """A failure for everything whose site has stayed away for longer than patience."""
        online, now = self._hub.online(self._job), self.now()
        for place, seen_s in list(self._out.items()):
            if place[1] in online:
                self._out[place] = now
            elif now - seen_s > self._patience_s and self._out.pop(place, None) is not None:
                yield Failure(*place, "lost", f"its site has been offline for {now - seen_s:.0f} s")


def _place(x: Assignment | Answer) -> Place:
    return x.round, x.client, x.work
