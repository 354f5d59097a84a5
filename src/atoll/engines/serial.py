"""The reference engine: one client after another in this process. Every other engine must agree with it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from atoll.round import work
from atoll.store.memories import Kept
from atoll.types import Answer, Assignment, ClientId, Engine, Examples, Failure, Local, Memories, Update

Clients = Mapping[ClientId, Mapping[str, Examples]]


def serial(locals_: Mapping[str, Local[Any]], clients: Clients, memories: Memories | None = None, threads: int = 1) -> Engine:
    """One client after another, on `threads` BLAS threads (1: the bits that `processes` gives).

    >>> serial({}, {}).now() > 0
    True
    """
    return Serial(locals_, clients, memories or Kept(), threads)


class Serial:
    """A queue of assignments, each worked when its answer is asked for."""

    def __init__(self, locals_: Mapping[str, Local[Any]], clients: Clients, memories: Memories, threads: int) -> None:
        self._locals, self._clients, self._memories, self._threads = locals_, clients, memories, threads
        self._queue: deque[Assignment] = deque()

    def submit(self, assignments: Iterable[Assignment]) -> None:
        self._queue.extend(assignments)

    def results(self, timeout_s: float) -> Iterator[Answer]:
        ends, before = self.now() + timeout_s, torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            while self._queue and self.now() < ends:
                yield self._answer(self._queue.popleft())
        finally:
            torch.set_num_threads(before)

    def _answer(self, assignment: Assignment) -> Answer:
        client, place = assignment.client, (assignment.client, assignment.round, assignment.work)
        examples = examples_of(self._clients, self._locals[assignment.work], client)
        if examples is None:
            return no_data(assignment, self._locals[assignment.work])
        known = self._memories.get(client)
        answer, memory = work(assignment, self._locals[assignment.work], examples, known)
        if not isinstance(answer, Failure) and (memory or known):
            self._memories.propose(*place, memory)
        return answer

    def acknowledge(self, update: Update) -> None:
        self._memories.commit(update.client, update.round, update.work)

    def refuse(self, answer: Answer) -> None:
        self._memories.discard(answer.client, answer.round, answer.work)

    def cancel(self, round: int, work: str) -> None:
        self._queue = deque(a for a in self._queue if (a.round, a.work) != (round, work))

    def started(self, assignment: Assignment) -> bool:
        return False  # one that has started is answered before anybody can ask

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._queue.clear()


def examples_of(clients: Clients, local: Local[Any], client: ClientId) -> Examples | None:
    """The examples that a fold reads at a client, None where it has none."""
    return clients.get(client, {}).get(local.batching.split)


def no_data(assignment: Assignment, local: Local[Any]) -> Failure:
    """The failure of a client without the split that the work reads."""
    reason = f"it holds no examples in its split {local.batching.split!r}"
    return Failure(assignment.round, assignment.client, assignment.work, "no_data", reason)
