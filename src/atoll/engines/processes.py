"""Resident worker processes on one machine: forked once, so that data and frozen base are held once.

Parameters and updates pass through shared memory, ids and numbers through pipes; nothing is imported a round and no
tensor is pickled. Each worker has one BLAS thread, and gives the bits that `serial` gives. Whoever is free takes the next.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, groupby, islice
from selectors import EVENT_READ, DefaultSelector
from typing import Any

import torch

from atoll.compute.choice import Way, compute_by
from atoll.compute.eager import Eager
from atoll.engines.cost import Costs, size
from atoll.engines.order import arrange, grouped, portion
from atoll.engines.serial import Clients, examples_of, no_data
from atoll.engines.shared import Board, Placed
from atoll.engines.worker import Chunk, Reply, Seat, Worker
from atoll.errors import ConfigError, RoundError
from atoll.interfaces import Compute, Engine, Memories
from atoll.store.memories import Kept
from atoll.types import Answer, Assignment, ClientId, Failure, Local, Trip, Update

PORTION_S = 0.005  # of work in one message: several small clients share the cost of waking a worker
NAP_S = 0.003  # at most, between two looks at the workers: several answers share the cost of waking this process
TURN_S = 0.01  # that an answer may wait for its turn where it lies, for this saves the copy to hold it by
PARTING_S = 0.5  # what workers have, all together, to end by themselves; a stop should not wait for an epoch
MOST = 32  # chunks in one message
TRIES = 2  # times that one assignment, alone, may cost a worker its life
Place = tuple[int, ClientId, str]


def processes(
    locals_: Mapping[str, Local[Any]],
    clients: Clients,
    memories: Memories | None = None,
    workers: int | None = None,
    threads: int = 1,
    compute: Way | Compute = "eager",
    pin: bool = True,
) -> Engine:
    """`workers` resident processes (None: one a core), each on `threads` BLAS threads.

    `compute`: "eager" (the reference bits), "traced" or "stacked": see `atoll.compute`. `pin`: each worker stays on a
    core of its own, where there is one for each and `threads` is 1.

    A worker that dies is replaced and its clients asked again, one by one; a client that kills two workers is a Failure.

    >>> engine = processes({}, {}, workers=2)
    >>> engine.close()
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"processes workers = {workers}: must be 1 or more")
    cores: Sequence[int | None] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    crew = workers or len(cores) or os.cpu_count() or 1
    if not pin or threads > 1 or crew > len(cores):
        cores = [None] * crew
    turn = os.getpid() % len(cores)  # so that two runs of fewer workers than cores do not all meet on the first ones
    return Processes(locals_, clients, memories or Kept(), threads, compute_by(compute), [*cores[turn:], *cores[:turn]][:crew])


class Processes:
    """Owns the workers. They are forked at the first assignment, when all that they share has been loaded."""

    def __init__(
        self,
        locals_: Mapping[str, Local[Any]],
        clients: Clients,
        memories: Memories,
        threads: int,
        compute: Compute,
        cores: Sequence[int | None],  # one entry a worker: the core to be pinned to
    ) -> None:
        self._locals, self._clients, self._memories = locals_, clients, memories
        self.compute, self._at_once = compute, dict[str, int]()  # trips to compute as one, by work
        self._board, self._costs = Board(), Costs()
        self._seats = [Seat(locals_, clients, self._board.arena, compute, threads, core) for core in cores]
        self._workers: list[Worker] = []
        self._selector = DefaultSelector()  # kept, as asking anew for every reply would cost a tenth of a small round
        self._new: list[Assignment] = []  # submitted, not yet in order
        self._queue: deque[Chunk] = deque()
        self._turns: dict[Place, None] = {}  # of all that is unanswered, in the order of submission
        self._ready: dict[Place, tuple[Answer, float]] = {}  # landed, and when
        self._deaths: Counter[Place] = Counter()
        self._replies: dict[Place, tuple[Worker, list[int]]] = {}  # landed, neither acknowledged nor refused

    def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        return clients

    def submit(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            local = self._locals[assignment.work]
            self._turns[_place(assignment)] = None
            if examples_of(self._clients, local, assignment.client) is None:
                self._land(no_data(assignment, local))
            else:
                self._new.append(assignment)

    def results(self, timeout_s: float) -> Iterator[Answer]:
        ends, before = self.now() + timeout_s, torch.get_num_threads()
        torch.set_num_threads(1)  # the cores are the workers'; a second thread of the fold would spin on one of them
        try:
            while True:
                self._dispatch()
                left = ends - self.now()
                while (place := self._due(left <= 0)) is not None:
                    yield self._give(place)
                    if self._new:
                        self._dispatch()
                if left <= 0 or not (self._ready or self._queue or self._new or any(w.doing for w in self._workers)):
                    return
                self._listen(left)
        finally:
            torch.set_num_threads(before)

    def _due(self, at_once: bool) -> Place | None:
        """The landed answer to give now: the one whose turn it is, or one that has waited long enough for its turn."""
        if not self._ready:
            return None
        turn, oldest = next(iter(self._turns), None), next(iter(self._ready))
        if turn in self._ready:
            return turn
        waits = not at_once and self.now() - self._ready[oldest][1] < TURN_S and self._in_hand_s() is not None
        return None if waits else oldest

    def _give(self, place: Place) -> Answer:
        self._turns.pop(place, None)
        return self._ready.pop(place)[0]

    def _land(self, answer: Answer) -> None:
        self._turns.setdefault(_place(answer), None)
        self._ready[_place(answer)] = answer, self.now()

    def _in_hand_s(self) -> float | None:
        """Predicted seconds until a worker has nothing to do; None where that is unknown, or is not soon."""
        found = [worker.in_hand_s() for worker in self._workers]
        known = [seconds for seconds in found if seconds is not None]
        least = min(known, default=0.0)
        return least if len(known) == len(found) and least <= 4 * PORTION_S else None

    def _listen(self, timeout_s: float) -> None:
        """Wait for replies and deaths, and take in what there is."""
        ends = self.now() + min(timeout_s, TURN_S if self._ready else 3600.0)
        if (nap_s := min((self._in_hand_s() or 0.0) / 2, NAP_S, timeout_s)) > NAP_S / 10:
            time.sleep(nap_s)
        for key, _ in self._selector.select(max(ends - self.now(), 0.0)):
            worker, end = key.data
            if worker not in self._workers:
                continue  # replaced a moment ago: both its pipe and its process said that it died
            for reply in worker.receive():
                self._take(worker, reply)
            if worker.gone or end == worker.process.sentinel:
                self._replace(worker)

    def _take(self, worker: Worker, reply: Reply) -> None:
        assignment, chunk = reply.doing.assignment, reply.doing.chunk
        for placed in reply.doing.posts:
            self._board.unpost(placed)
        if isinstance(reply.answer, Exception):
            raise reply.answer if isinstance(reply.answer, ConfigError) else RoundError(f"a worker failed: {reply.answer}")
        alone = assignment.client if len(chunk.asked) == 1 else None
        self._costs.learn(assignment.work, alone, chunk.size / len(chunk.asked), reply.spent_s)
        if reply.answer is None:  # cancelled meanwhile
            worker.free(reply.slots, 0)
            return
        if isinstance(reply.answer, Update):
            self._costs.weigh(assignment.work, reply.answer.tree)
            self._replies[_place(assignment)] = (worker, reply.slots)
            if reply.memory is not None:
                self._memories.propose(assignment.client, assignment.round, assignment.work, reply.memory)
        self._land(reply.answer)

    def _replace(self, worker: Worker) -> None:
        """A worker died: forget it, and ask again for what it was doing, one by one what may have killed it."""
        self._let_go(worker)
        suspects, rest = worker.abandon()
        worker.close(PARTING_S)
        again: list[Chunk] = []
        for doing in [*suspects, *rest]:
            for placed in doing.posts:
                self._board.unpost(placed)
        for doing in suspects:
            place = _place(doing.assignment)
            # Of several it is not known which: each is asked again alone, and then it is.
            self._deaths[place] += len(suspects) == 1 and not worker.interrupted
            if doing.wanted and self._deaths[place] < TRIES:
                again += self._chunks([doing.assignment], 1)
            elif doing.wanted:
                reason = f"its worker died {TRIES} times ({worker.epitaph}); is there enough memory?"
                self._land(Failure(*place, "lost", reason))
        for _, alike in groupby(rest, key=lambda doing: id(doing.chunk)):
            again += self._chunks([doing.assignment for doing in alike if doing.wanted], None)
        self._queue.extendleft(reversed(again))

    def _dispatch(self) -> None:
        for work, asked in _by_work(self._new).items():
            if work not in self._at_once:
                telling = (trip for trip in map(self._trip, asked) if len(trip.examples))  # an empty client tells nothing
                self._at_once[work] = self.compute.ready(next(telling, self._trip(asked[0])))
            self._queue.extend(self._chunks(asked, None))
        self._new.clear()
        if not self._queue:
            return
        self._man()
        for worker in sorted(self._workers, key=lambda w: len(w.doing)):  # everybody has one before anybody has two
            if self._queue and self._lacks(worker):
                costs = [PORTION_S if c.seconds is None else c.seconds for c in islice(self._queue, MOST)]
                count = portion(costs, len(self._queue), len(self._seats), PORTION_S)
                chunks = [self._queue.popleft() for _ in range(count)]
                worker.send([(chunk, [self._posts(a) for a in chunk.asked]) for chunk in chunks])

    def _lacks(self, worker: Worker) -> bool:
        """It is idle, or has one portion only and the queue will keep the others busy for as long as that takes.

        A portion ahead spares it the wait for this process; at the end of a round it would be kept from who is idle.
        """
        if not worker.doing:
            return True
        if worker.doing[-1].portion != worker.doing[0].portion or not self._knows(worker):
            return False
        enough = len(self._seats) * sum(doing.chunk.size / len(doing.chunk.asked) for doing in worker.doing)
        return any(total > enough for total in accumulate(chunk.size for chunk in self._queue))

    def _chunks(self, asked: Sequence[Assignment], at_once: int | None) -> list[Chunk]:
        """Assignments of one work in chunks, in the order in which to hand them out."""
        if not asked:
            return []
        work, local = asked[0].work, self._locals[asked[0].work]
        sizes = [size(local, self._clients[a.client][local.batching.split]) for a in asked]
        chunks = []
        for group in grouped(sizes, at_once or self._at_once[work]):
            seconds = [self._costs.seconds(work, asked[i].client, sizes[i]) for i in group]
            known = sum(s for s in seconds if s is not None) if None not in seconds else None
            chunks.append(Chunk([asked[i] for i in group], sum(sizes[i] for i in group), known))
        costs = [chunk.seconds for chunk in chunks if chunk.seconds is not None]
        if len(costs) < len(chunks):
            return chunks
        held_bytes = len(chunks[0].asked) * self._costs.bytes(work)
        return [chunks[i] for i in arrange(costs, len(self._seats), held_bytes)]

    def _trip(self, assignment: Assignment) -> Trip:
        local = self._locals[assignment.work]
        examples = self._clients[assignment.client][local.batching.split]
        return Trip(assignment, local, examples, self._memories.get(assignment.client))

    def _posts(self, assignment: Assignment) -> list[Placed]:
        posts, memory = [self._board.post(assignment.tree, for_many=True)], self._memories.get(assignment.client)
        return [*posts, self._board.post(memory, for_many=False)] if memory else posts

    def _man(self) -> None:
        """Fork who is missing, and anew who is idle and was forked before what it is to do was made ready."""
        stale = [worker for worker in self._workers if not worker.doing and not self._knows(worker)]
        for worker in stale:
            worker.dismiss()
        for worker in stale:
            self._let_go(worker)
            worker.close(PARTING_S)
        for seat in self._seats:
            if all(worker.seat is not seat for worker in self._workers):
                worker = Worker(seat, self._workers, frozenset(self._at_once))
                self._workers.append(worker)
                for end in (worker.pipe, worker.process.sentinel):
                    self._selector.register(end, EVENT_READ, (worker, end))

    def _knows(self, worker: Worker) -> bool:
        return isinstance(self.compute, Eager) or self._at_once.keys() <= worker.knows

    def acknowledge(self, update: Update) -> None:
        self._memories.commit(update.client, update.round, update.work)
        self._release(update)

    def refuse(self, answer: Answer) -> None:
        self._memories.discard(answer.client, answer.round, answer.work)
        self._turns.pop(_place(answer), None)
        self._release(answer)
        for worker in self._workers:
            worker.interrupt(*_place(answer))

    def _release(self, answer: Answer) -> None:
        worker, slots = self._replies.pop(_place(answer), (None, []))
        if worker is not None:
            worker.free(slots, self._costs.bytes(answer.work))

    def cancel(self, round: int, work: str) -> None:
        def other(place: Place) -> bool:
            return (place[0], place[2]) != (round, work)

        self._new = [a for a in self._new if other(_place(a))]
        self._queue = deque(chunk for chunk in self._queue if other(_place(chunk.asked[0])))
        self._ready = {place: landed for place, landed in self._ready.items() if other(place)}
        self._turns = {place: None for place in self._turns if other(place)}
        for worker in self._workers:
            worker.unwant(round, work)
        for place in [place for place in self._replies if not other(place)]:
            worker, slots = self._replies.pop(place)
            worker.free(slots, self._costs.bytes(work))

    def started(self, assignment: Assignment) -> bool:
        place = _place(assignment)  # the first of a chunk: were it all of them, one that hangs would cost all their leases
        return any(worker.doing and _place(worker.doing[0].assignment) == place for worker in self._workers)

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
        for end in (worker.pipe, worker.process.sentinel):
            self._selector.unregister(end)


def _by_work(assignments: Iterable[Assignment]) -> dict[str, list[Assignment]]:
    found: dict[str, list[Assignment]] = {}
    for assignment in assignments:
        found.setdefault(assignment.work, []).append(assignment)
    return found


def _place(x: Assignment | Answer) -> Place:
    return x.round, x.client, x.work
