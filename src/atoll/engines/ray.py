"""Client work on a Ray cluster: one resident actor a worker, the model and the data once a node.

The driver queues assignments and hands them out on demand; a lost node or a killed actor costs time, not a round.
A cluster is one trust domain: whoever reaches its ports runs code on it (docs/ray.md).
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any

import torch

from atoll.compute.choice import Way, compute_by
from atoll.engines import cluster
from atoll.engines.actor import Call, Handle, opened, versions
from atoll.engines.cost import Costs, size
from atoll.engines.order import portion
from atoll.engines.parcel import pack, wrap
from atoll.engines.serial import Clients, examples_of, no_data
from atoll.errors import ConfigError, RoundError
from atoll.interfaces import Engine, Memories
from atoll.store.memories import Kept
from atoll.types import Answer, Assignment, ClientId, Failure, Local, Tree, Update

PORTION_S = 0.05  # of work in one call: several small clients share the cost of sending it
AHEAD = 2  # calls a worker has at once: the one it works on and the next
MOST = 64  # assignments in one call
TRIES = 2  # workers that one assignment may cost
Place = tuple[int, ClientId, str]


def ray(
    locals_: Mapping[str, Local[Any]],
    clients: Clients,
    memories: Memories | None = None,
    address: str | None = None,
    workers: int | None = None,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    threads: int = 1,
    compute: Way = "eager",
    placement_timeout_s: float = 60.0,
) -> Engine:
    """`workers` resident actors on a Ray cluster (None: as many as fit), each on `threads` BLAS threads.

    `address`: HOST:PORT of the head, or "auto"; None: the cluster of RAY_ADDRESS, else one on this machine's loopback.
    A lost worker is made anew where there is room and its clients are asked again; a client that costs two is a Failure.
    `placement_timeout_s`: how long to wait, when nobody is at work, until the first worker has a place.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: a number makes no sense; at the first assignment, the cluster can't be joined.

    >>> engine = ray({}, {}, workers=2)
    >>> engine.close()
    """
    cluster.ray_package()
    compute_by(compute)  # a wrong name is said here, not by every worker
    if workers is not None and workers < 1:
        raise ConfigError(f"ray workers = {workers}: must be 1 or more")
    resources = {"CPU": float(cpus_per_worker), "GPU": float(gpus_per_worker)}
    for name, amount in (("cpus_per_worker", cpus_per_worker), ("gpus_per_worker", gpus_per_worker)):
        if amount < 0 or (amount > 1 and amount != int(amount)) or (name == "cpus_per_worker" and not amount):
            raise ConfigError(f"ray {name} = {amount:g}: must be a whole number, or a part of one, such as 0.5")
    return Ray(locals_, clients, memories or Kept(), address, workers, resources, threads, compute, placement_timeout_s)


class Ray:
    """Owns the connection and the actors. Both are made at the first assignment, when all that they share is there."""

    def __init__(
        self,
        locals_: Mapping[str, Local[Any]],
        clients: Clients,
        memories: Memories,
        address: str | None,
        workers: int | None,
        resources: Mapping[str, float],
        threads: int,
        compute: Way,
        patience_s: float,
    ) -> None:
        self._locals, self._clients, self._memories = locals_, clients, memories
        self._address, self._wanted, self._resources, self._patience_s = address, workers, resources, patience_s
        self._make = (resources, threads, compute)
        self._joined: bool | None = None  # None: not connected; True: to be disconnected
        self._parcel: Any = None
        self._workers: list[Handle] = []
        self._queue, self._ready = deque[Assignment](), deque[Answer]()
        self._posted: dict[int, tuple[Tree, Any]] = {}  # by id of the tree: itself, and its reference
        self._deaths: Counter[Place] = Counter()
        self._alone: set[Place] = set()  # was at work with others when a worker died: next time by itself
        self._at_once, self._costs = Counter[str](), Costs()  # trips that a worker computes as one, by work
        self._unplaced_s: float | None = None  # since when nobody is at work
        self._stillborn = 0  # workers in a row that died before they could work

    def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        return clients

    def submit(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            local = self._locals[assignment.work]
            if examples_of(self._clients, local, assignment.client) is None:
                self._ready.append(no_data(assignment, local))
            else:
                self._queue.append(assignment)
        used = {id(a.tree) for a in self._queue} | {id(a.tree) for w in self._workers for c in w.calls for a in c.asks}
        self._posted = {key: kept for key, kept in self._posted.items() if key in used}

    def results(self, timeout_s: float) -> Iterator[Answer]:
        ends, before = self.now() + timeout_s, torch.get_num_threads()
        torch.set_num_threads(1)  # on the workers' cores, a second thread of the fold would spin on one of them
        try:
            self._listen(0.0)  # who died since then is not sent anything
            while True:
                self._dispatch()
                while self._ready:
                    yield self._ready.popleft()
                    self._dispatch()
                left = ends - self.now()
                if not (self._queue or any(w.calls for w in self._workers)) or left <= 0:
                    return
                self._listen(left)
        finally:
            torch.set_num_threads(before)

    def _open(self) -> None:
        self._joined = cluster.join(self._address)
        self._wanted = self._wanted or max(cluster.capacity(self._resources), 1)
        self._parcel = self._put(wrap((dict(self._locals), self._clients)))

    def _put(self, thing: Any) -> Any:
        package = cluster.ray_package()
        try:
            return package.put(thing)
        except (package.exceptions.ObjectStoreFullError, package.exceptions.OutOfDiskError) as error:
            raise RoundError(
                f"Ray's object store is full: start its nodes with a larger --object-store-memory ({error})"
            ) from error

    def _dispatch(self) -> None:
        if not self._queue:
            return
        if self._joined is None:
            self._open()
        assert self._wanted is not None
        while len(self._workers) < self._wanted:
            self._workers.append(Handle(*self._make, self._parcel))
        ready = [w for w in self._workers if w.ready]
        for depth in range(AHEAD):  # everybody has one before anybody has two
            for worker in ready:
                if self._queue and len(worker.calls) == depth:
                    self._send(worker, self._next(len(ready)))

    def _next(self, crew: int) -> list[Assignment]:
        """The assignment whose turn it is, and those behind it, of its work, that go in one call."""
        first = self._queue[0]
        alike = takewhile(lambda a: a.work == first.work and _place(a) not in self._alone, islice(self._queue, MOST))
        costs = [self._costs.seconds(a.work, a.client, self._size(a)) or PORTION_S for a in alike]
        count = max(portion(costs, len(self._queue), crew, PORTION_S), min(self._at_once[first.work], len(self._queue) // crew))
        return [self._queue.popleft() for _ in range(max(min(count, len(costs)), 1))]

    def _size(self, assignment: Assignment) -> float:
        local = self._locals[assignment.work]
        return size(local, self._clients[assignment.client][local.batching.split])

    def _send(self, worker: Handle, chosen: list[Assignment]) -> None:
        refs, which = dict[int, Any](), list[int]()
        for assignment in chosen:
            key = id(assignment.tree)
            if key not in self._posted:
                self._posted[key] = (assignment.tree, self._put(pack(assignment.tree)))
            refs.setdefault(key, self._posted[key][1])
            which.append(list(refs).index(key))
        known = [self._memories.get(a.client) for a in chosen]
        asks = [(a, pack(memory) if memory else None) for a, memory in zip(chosen, known, strict=True)]
        worker.send(asks, list(refs.values()), which)

    def _listen(self, timeout_s: float) -> None:
        """Wait for answers and deaths, and take in what there is."""
        if not self._workers:
            return
        package, owed = cluster.ray_package(), {ref: w for w in self._workers for ref in w.refs()}
        wait_s = min(timeout_s, 3600.0, self._patience())
        landed = package.wait(list(owed), num_returns=1, timeout=wait_s)[0]
        if len(landed):
            landed = package.wait(list(owed), num_returns=len(owed), timeout=0)[0]
        for ref in landed:
            if owed[ref] in self._workers:  # not lost by an earlier word
                self._hear(owed[ref], ref)

    def _patience(self) -> float:
        """Seconds that nobody may be at work yet; raises RoundError when they have passed."""
        if not self._queue or any(w.placing is None for w in self._workers):
            self._unplaced_s = None
            return 3600.0
        self._unplaced_s = self._unplaced_s or self.now()
        left = self._unplaced_s + self._patience_s - self.now()
        if left <= 0:
            raise RoundError(
                f"no worker has found a place on the Ray cluster in {self._patience_s:g} s: {cluster.shortage(self._resources)}; "
                "lower [engine] cpus_per_worker or gpus_per_worker, or add nodes"
            )
        return left

    def _hear(self, worker: Handle, ref: Any) -> None:
        package = cluster.ray_package()
        try:
            told = package.get(ref)
        except package.exceptions.RayTaskError as error:
            raise self._failed(worker, ref, error) from error
        except package.exceptions.RayError as error:
            self._replace(worker, " ".join(str(error).split()))
            return
        if ref == worker.placing:
            worker.placing, (worker.where, there) = None, told
            if there != (here := versions()):
                raise ConfigError(f"the worker at {worker.where} has {there}, and here is {here}: install the same everywhere")
        elif ref == worker.loading:
            worker.loading, self._stillborn = None, 0
        else:
            call = worker.calls.popleft()
            replies, self._at_once[call.asks[0].work] = told
            self._take(call, replies)

    def _failed(self, worker: Handle, ref: Any, error: Exception) -> Exception:
        told = str(error).strip().rpartition("\n")[2]
        if ref == worker.loading:
            return ConfigError(f"the worker at {worker.where} can't load the federation ({told}): install the same everywhere")
        return RoundError(f"a worker failed: {told}")

    def _take(self, call: Call, replies: Any) -> None:
        if isinstance(replies, Exception):
            raise replies if isinstance(replies, ConfigError) else RoundError(f"a worker failed: {replies}")
        for i, (assignment, reply) in enumerate(zip(call.asks, replies, strict=True)):
            if i in call.unwanted:
                continue
            answer, memory = opened(reply)
            if isinstance(answer, Update) and memory is not None:
                self._memories.propose(answer.client, answer.round, answer.work, memory)
            self._ready.append(answer)
            if isinstance(answer, Update) and "seconds" in answer.metrics:
                alone = answer.client if self._at_once[answer.work] <= 1 else None
                self._costs.learn(answer.work, alone, self._size(assignment), answer.metrics["seconds"])

    def _replace(self, worker: Handle, why: str) -> None:
        """A worker is lost: forget it, and ask again for what it was doing."""
        self._workers.remove(worker)
        worker.end()  # it may only be out of reach
        if not worker.ready:
            self._stillborn += 1
            if self._stillborn > 2 * (self._wanted or 1):
                raise RoundError(f"{self._stillborn} workers in a row died before they could work, the last so: {why}")
        for nth, call in reversed(list(enumerate(worker.calls))):
            for assignment in reversed(call.wanted()):
                self._again(assignment, nth == 0, len(call.asks) > 1, why)

    def _again(self, assignment: Assignment, at_work: bool, together: bool, why: str) -> None:
        """The first call was being worked on, the others only waited behind it."""
        place = _place(assignment)
        if at_work and together:
            self._alone.add(place)
        elif at_work:
            self._deaths[place] += 1
        if self._deaths[place] < TRIES:
            self._queue.appendleft(assignment)
        else:
            self._ready.append(
                Failure(*place, "lost", f"its worker was lost {TRIES} times; is there enough memory? Ray says: {why}")
            )

    def acknowledge(self, update: Update) -> None:
        self._memories.commit(update.client, update.round, update.work)

    def refuse(self, answer: Answer) -> None:
        self._memories.discard(answer.client, answer.round, answer.work)
        for worker in self._workers:
            call = worker.calls[0] if worker.calls else None
            if call and _place(answer) in [_place(a) for a in call.wanted()]:
                _unwant(call, lambda a: _place(a) == _place(answer))
                worker.end()  # nobody waits for what it does, such as a hung client's script

    def cancel(self, round: int, work: str) -> None:
        for answer in self._ready:
            if (answer.round, answer.work) == (round, work):
                self._memories.discard(answer.client, answer.round, answer.work)
        self._ready = deque(a for a in self._ready if (a.round, a.work) != (round, work))
        self._queue = deque(a for a in self._queue if (a.round, a.work) != (round, work))
        for call in [call for worker in self._workers for call in worker.calls]:
            _unwant(call, lambda a: (a.round, a.work) == (round, work))

    def started(self, assignment: Assignment) -> bool:
        return _place(assignment) in {_place(a) for w in self._workers if w.calls for a in w.calls[0].wanted()}

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        if self._joined is None:
            return
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._posted.clear()
        self._parcel = None
        if self._joined:
            cluster.leave()
        self._joined = None


def _unwant(call: Call, which: Callable[[Assignment], bool]) -> None:
    call.unwanted.update(i for i, assignment in enumerate(call.asks) if which(assignment))


def _place(x: Assignment | Answer) -> Place:
    return x.round, x.client, x.work
