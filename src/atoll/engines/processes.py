"""Resident worker processes on one machine: forked once, so that data and frozen base are held once.

Parameters and updates pass through shared memory, ids and numbers through pipes; nothing is imported or pickled a
round. Each worker has one BLAS thread, and gives the bits that `serial` gives.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from selectors import EVENT_READ, DefaultSelector
from typing import Any

import torch

from atoll.engines.serial import Clients, examples_of, no_data
from atoll.engines.shared import Arena, Placed
from atoll.engines.worker import Worker
from atoll.errors import ConfigError, RoundError
from atoll.store.memories import Kept
from atoll.types import Answer, Assignment, ClientId, Engine, Failure, Local, Memories, Tree, Update

AHEAD = 2  # assignments a worker has at once: the one it works on and the next
PARTING_S = 0.5  # what workers have, all together, to end by themselves; a stop should not wait for an epoch
TRIES = 2  # times that one assignment may cost a worker its life
Place = tuple[int, ClientId, str]


def processes(
    locals_: Mapping[str, Local[Any]],
    clients: Clients,
    memories: Memories | None = None,
    workers: int | None = None,
    threads: int = 1,
) -> Engine:
    """`workers` resident processes (None: one a core), each on `threads` BLAS threads.

    A worker that dies is replaced and its client asked again; a client that kills two workers is a Failure.

    >>> engine = processes({}, {}, workers=2)
    >>> engine.close()
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"processes workers = {workers}: must be 1 or more")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Processes(locals_, clients, memories or Kept(), workers or cores, threads)


class Processes:
    """Owns the workers. They are forked at the first assignment, when all that they share has been loaded."""

    def __init__(
        self, locals_: Mapping[str, Local[Any]], clients: Clients, memories: Memories, workers: int, threads: int
    ) -> None:
        self._locals, self._clients, self._memories = locals_, clients, memories
        self._size, self._threads = workers, threads
        self._board = Arena()  # trees on their way to workers; this process hands out its slots
        self._posted: dict[int, tuple[Tree, Placed, int]] = {}  # by id of the tree: itself, its place, its readers
        self._workers: list[Worker] = []
        self._selector = DefaultSelector()  # kept, as asking anew for every reply would cost a tenth of a small round
        self._queue: deque[Assignment] = deque()
        self._ready: deque[Answer] = deque()
        self._deaths: Counter[Place] = Counter()
        self._replies: dict[Place, tuple[Worker, list[Placed]]] = {}  # landed, neither acknowledged nor refused

    def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        return clients

    def submit(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            local = self._locals[assignment.work]
            if examples_of(self._clients, local, assignment.client) is None:
                self._ready.append(no_data(assignment, local))
            else:
                self._queue.append(assignment)

    def results(self, timeout_s: float) -> Iterator[Answer]:
        ends, before = self.now() + timeout_s, torch.get_num_threads()
        torch.set_num_threads(1)  # the cores are the workers'; a second thread of the fold would spin on one of them
        try:
            while True:
                self._dispatch()
                while self._ready:
                    yield self._ready.popleft()
                    self._dispatch()
                busy = [w for w in self._workers if w.doing]
                left = ends - self.now()
                if (not busy and not self._queue) or left <= 0:
                    return
                self._listen(left)
        finally:
            torch.set_num_threads(before)

    def _listen(self, timeout_s: float) -> None:
        """Wait for replies and deaths, and take in what there is."""
        landed = [(key.data, key.fileobj) for key, _ in self._selector.select(min(timeout_s, 3600.0))]
        for worker in dict.fromkeys(worker for worker, _ in landed):
            self._hear(worker, speaks=(worker, worker.pipe) in landed)

    def _dispatch(self) -> None:
        if not self._queue:
            return
        while len(self._workers) < self._size:
            worker = Worker(self._locals, self._clients, self._board, self._threads, self._workers)
            self._workers.append(worker)
            for handle in (worker.pipe, worker.process.sentinel):
                self._selector.register(handle, EVENT_READ, worker)
        for depth in range(AHEAD):  # everybody has one before anybody has two
            for worker in self._workers:
                if self._queue and len(worker.doing) == depth:
                    self._send(worker, self._queue.popleft())

    def _send(self, worker: Worker, assignment: Assignment) -> None:
        memory = self._memories.get(assignment.client)
        posts = [self._post(assignment.tree), self._post(memory)] if memory else [self._post(assignment.tree)]
        worker.send(assignment, posts)

    def _post(self, values: Tree) -> Placed:
        """Write a tree to the board, once for all who are to read it."""
        _, placed, readers = self._posted.get(id(values), (values, None, 0))
        placed = placed or self._board.write(values)
        self._posted[id(values)] = (values, placed, readers + 1)
        return placed

    def _unpost(self, posts: list[Placed]) -> None:
        for key, (values, placed, readers) in list(self._posted.items()):
            if placed in posts:
                self._posted[key] = (values, placed, readers - 1)
        # The newest tree stays, though nobody reads it now: the rest of the cohort will.
        for key in [k for k, (_, _, readers) in self._posted.items() if not readers][:-1]:
            self._board.free(self._posted.pop(key)[1])

    def _hear(self, worker: Worker, speaks: bool) -> None:
        reply = worker.receive(speaks)
        if reply is None:
            self._replace(worker)
            return
        assignment, posts, answer, memory, slots = reply
        self._unpost(posts)
        if isinstance(answer, BaseException):
            raise answer if isinstance(answer, ConfigError) else RoundError(f"a worker failed: {answer}")
        if answer is None:  # cancelled meanwhile
            worker.free(slots)
            return
        if isinstance(answer, Update):
            self._replies[_place(assignment)] = (worker, slots)
            if memory is not None:
                self._memories.propose(assignment.client, assignment.round, assignment.work, memory)
        self._ready.append(answer)

    def _replace(self, worker: Worker) -> None:
        """A worker died: forget it, and ask again for what it was doing."""
        self._let_go(worker)
        for nth, (assignment, posts, wanted) in reversed(list(enumerate(worker.abandon()))):
            self._unpost(posts)
            place = _place(assignment)
            self._deaths[place] += nth == 0  # the first was being worked on; the others only waited behind it
            if wanted and self._deaths[place] < TRIES:
                self._queue.appendleft(assignment)
            elif wanted:
                reason = f"its worker died {TRIES} times ({worker.epitaph}); is there enough memory?"
                self._ready.append(Failure(*place, "lost", reason))

    def acknowledge(self, update: Update) -> None:
        self._memories.commit(update.client, update.round, update.work)
        self._release(update)

    def refuse(self, answer: Answer) -> None:
        self._memories.discard(answer.client, answer.round, answer.work)
        self._release(answer)
        for worker in self._workers:
            worker.interrupt(*_place(answer))

    def _release(self, answer: Answer) -> None:
        worker, slots = self._replies.pop(_place(answer), (None, []))
        if worker is not None:
            worker.free(slots)

    def cancel(self, round: int, work: str) -> None:
        self._queue = deque(a for a in self._queue if (a.round, a.work) != (round, work))
        self._ready = deque(a for a in self._ready if (a.round, a.work) != (round, work))
        for worker in self._workers:
            worker.unwant(round, work)
        for place in [p for p in self._replies if (p[0], p[2]) == (round, work)]:
            worker, slots = self._replies.pop(place)
            worker.free(slots)

    def started(self, assignment: Assignment) -> bool:
        return any(w.doing and _place(w.doing[0][0]) == _place(assignment) for w in self._workers)

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        ends = time.monotonic() + PARTING_S
        for worker in self._workers:
            worker.dismiss()
        for worker in list(self._workers):
            self._let_go(worker)
            worker.close(max(ends - time.monotonic(), 0.0))

    def _let_go(self, worker: Worker) -> None:
        self._workers.remove(worker)
        for handle in (worker.pipe, worker.process.sentinel):
            self._selector.unregister(handle)


def _place(x: Assignment | Answer) -> Place:
    return x.round, x.client, x.work
