"""The reference engine: one client after another in this process. Every other engine must agree with it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from atoll.compute.choice import Way, compute_by
from atoll.interfaces import Compute, Engine, Memories
from atoll.store.memories import Kept
from atoll.types import Answer, Assignment, ClientId, Examples, Failure, Local, Trip, Update

Clients = Mapping[ClientId, Mapping[str, Examples]]


def serial(
    locals_: Mapping[str, Local[Any]],
    clients: Clients,
    memories: Memories | None = None,
    threads: int = 1,
    compute: Way | Compute = "eager",
) -> Engine:
    """One client after another, on `threads` BLAS threads (1: the bits that `processes` gives).

    `compute`: "eager" (the reference bits), "traced" or "stacked": see `atoll.compute`.

    >>> serial({}, {}).now() > 0
    True
    """
    return Serial(locals_, clients, memories or Kept(), threads, compute_by(compute))


class Serial:
    """A queue of assignments, worked when their answers are asked for."""

    def __init__(
        self, locals_: Mapping[str, Local[Any]], clients: Clients, memories: Memories, threads: int, compute: Compute
    ) -> None:
        self._locals, self._clients, self._memories, self._threads = locals_, clients, memories, threads
        self.compute, self._queue, self._done = compute, deque[Assignment](), deque[Answer]()

    def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        return clients

    def submit(self, assignments: Iterable[Assignment]) -> None:
        self._queue.extend(assignments)

    def results(self, timeout_s: float) -> Iterator[Answer]:
        ends, before = self.now() + timeout_s, torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            while (self._done or self._queue) and self.now() < ends:
                if not self._done:
                    self._work()
                yield self._done.popleft()
        finally:
            torch.set_num_threads(before)

    def _work(self) -> None:
        """Answer the assignment whose turn it is, and with it those behind it that go in one."""
        trips: list[Trip] = []
        at_once = 1
        while self._queue and len(trips) < at_once and (not trips or self._queue[0].work == trips[0].assignment.work):
            assignment = self._queue.popleft()
            local = self._locals[assignment.work]
            examples = examples_of(self._clients, local, assignment.client)
            if examples is None:
                self._done.append(no_data(assignment, local))
                continue
            trips.append(Trip(assignment, local, examples, self._memories.get(assignment.client)))
            if len(trips) == 1:
                at_once = self.compute.ready(trips[0])
        for trip, (answer, memory) in zip(trips, self.compute.run(trips), strict=True):
            if not isinstance(answer, Failure) and (memory or trip.memory):
                self._memories.propose(answer.client, answer.round, answer.work, memory)
            self._done.append(answer)

    def acknowledge(self, update: Update) -> None:
        self._memories.commit(update.client, update.round, update.work)

    def refuse(self, answer: Answer) -> None:
        self._memories.discard(answer.client, answer.round, answer.work)

    def cancel(self, round: int, work: str) -> None:
        for answer in self._done:
            if (answer.round, answer.work) == (round, work):
                self.refuse(answer)
        self._done = deque(a for a in self._done if (a.round, a.work) != (round, work))
        self._queue = deque(a for a in self._queue if (a.round, a.work) != (round, work))

    def started(self, assignment: Assignment) -> bool:
        return False  # one that has started is answered before anybody can ask

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._queue.clear()
        self._done.clear()


def examples_of(clients: Clients, local: Local[Any], client: ClientId) -> Examples | None:
    """The examples that a fold reads at a client, None where it has none."""
    return clients.get(client, {}).get(local.batching.split)


def no_data(assignment: Assignment, local: Local[Any]) -> Failure:
    """The failure of a client without the split that the work reads."""
    reason = f"it holds no examples in its split {local.batching.split!r}"
    return Failure(assignment.round, assignment.client, assignment.work, "no_data", reason)
