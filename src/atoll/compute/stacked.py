"""Several clients as one batched program: their parameters stacked, each product of a step one batched product.

The program is the captured step of one client put through vmap while it is recorded, so that batching costs nothing when it
is replayed. What clients share, such as the frozen base under adapters, stays one: its products run over all their rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from atoll.compute.batching import batched
from atoll.compute.program import Program, signature
from atoll.compute.record import UntraceableError, record, written
from atoll.compute.stack import Row, Stack, answer_of, row_of
from atoll.compute.traced import Traced
from atoll.errors import ConfigError
from atoll.interfaces import Compute
from atoll.tree import Rows
from atoll.types import Answer, Batch, Local, Tree, Trip

SIZES = (4, 8)  # numbers of clients that are tried: past these the parameters of more clients leave the caches
TRIAL_S = 0.5  # a step that takes longer is bound by arithmetic: more clients at once gain nothing on a CPU
ENOUGH_S = 0.2  # of measuring one thing
APART = "clients are computed one after another"


def stacked(chunk: int | None = None) -> Compute:
    """Chunks of clients as one program; `chunk` of them at once, None: as many as a trial finds fastest.

    Raises:
        ConfigError: chunk is below 1.

    >>> list(stacked().run([]))
    []
    """
    if chunk is not None and chunk < 1:
        raise ConfigError(f"stacked chunk = {chunk}: must be 1 or more clients at once")
    return Stacked(chunk)


class Stacked:
    """Keeps the programs by number of clients, and for each kind of work the number that is fastest."""

    def __init__(self, chunk: int | None = None) -> None:
        self._chunk, self._traced = chunk, Traced()
        self._programs: dict[Any, Program | None] = {}
        self._written: dict[int, list[bool]] = {}  # by the fold's step: what it changes of what it reads
        self._best: dict[int, tuple[Local[Any], int]] = {}  # by the fold's step, which is held so that its id stays its own

    def ready(self, trip: Trip) -> int:
        if trip.local.captured is None:
            return 1
        key = id(trip.local.step)
        if key not in self._best:
            if not len(trip.examples):
                return 1  # the next client will tell
            self._best[key] = (trip.local, self._trial(trip))
        return self._best[key][1]

    def gains(self, trip: Trip) -> bool:
        """Is a replayed step of one client faster than an eager one? False where there is none to replay."""
        row = row_of(trip) if trip.local.captured is not None else None
        batch = next(row.portions, None) if row else None
        if row is None or batch is None:
            return False
        program = self._traced.programs.step(trip.local, row.carry, row.state, batch)
        if program is None:
            return False
        run, values = program.bind(row.state), list(batch.values())
        return _time(lambda: run(values)) < _time(lambda: trip.local.step(row.carry, batch))

    def run(self, trips: Sequence[Trip]) -> Iterator[tuple[Answer, Tree]]:
        """The answers in the order of the trips; a chunk that fails as one is done client by client, to see whose fault it is."""
        if len(trips) < 2 or self.ready(trips[0]) < 2:
            yield from self._traced.run(trips)
            return
        started = time.perf_counter()
        try:
            rows = self._through(trips)
            seconds = (time.perf_counter() - started) / len(trips)
            answers = [answer_of(row, seconds) for row in rows]
        except Exception:  # a client's own data may fail in any way: alone, it is told apart from its neighbours
            yield from self._traced.run(trips)
            return
        yield from answers

    def _through(self, trips: Sequence[Trip]) -> list[Row]:
        """All trips to the end of their batches; the largest first, so that who ends earlier leaves from the end of the stack."""
        largest = sorted(range(len(trips)), key=lambda i: -len(trips[i].examples))
        room = Rows(len(trips))
        rows = {i: room.of(place, partial(row_of, trips[i])) for place, i in enumerate(largest)}
        first = rows[largest[0]]
        if any(row.constants != first.constants or signature(row.own) != signature(first.own) for row in rows.values()):
            raise UntraceableError("clients of different rounds")  # their learning rates differ
        Stack([rows[i] for i in largest], self._traced, self._program, self._written[id(first.trip.local.step)]).run()
        return [rows[i] for i in range(len(trips))]

    def _program(self, row: Row, stack: Sequence[Tensor], batch: Sequence[Tensor], names: Sequence[str]) -> Program | None:
        """The program of so many clients, made from the captured step of one."""
        programs, local, count = self._traced.programs, row.trip.local, len(batch[0])
        one = {name: x[0] for name, x in zip(names, batch, strict=True)}
        key = programs.key(local, row.carry, row.state, one)
        if (key, count) not in self._programs:
            self._programs[key, count] = self._batched(key, row, stack, batch)
        return self._programs[key, count]

    def _batched(self, key: Any, row: Row, stack: Sequence[Tensor], batch: Sequence[Tensor]) -> Program | None:
        programs, local = self._traced.programs, row.trip.local
        recorded = programs.graph(key)
        if recorded is None:
            return None
        if recorded.random:
            programs.say(local, "it draws random numbers, which clients in one program would share", APART)
            return None
        scratch = [x.clone() for x in stack]
        self._written.setdefault(id(local.step), written(recorded, len(scratch)))
        body = batched(recorded.graph, len(recorded.constants))
        try:
            with torch.no_grad():
                together = record(lambda: body(*scratch, *batch, *recorded.constants), [*scratch, *batch])
        except (UntraceableError, RuntimeError) as error:
            programs.say(local, f"its graph does not batch over clients ({str(error).partition(chr(10))[0]})", APART)
            return None
        return Program(together, len(scratch))

    def _trial(self, trip: Trip) -> int:
        """The number of clients at which a client's step is fastest: doubled while that gains."""
        row = row_of(trip)
        batch = next(row.portions, None)
        if batch is None:
            return 1
        program: Program | None = None
        for each in (batch, _altered(batch), batch):  # recorded, compared, trusted
            program = self._traced.programs.step(trip.local, row.carry, row.state, each)
        if program is None:
            return 1
        run, values = program.bind(row.state), list(batch.values())
        best, fastest = 1, _time(lambda: run(values))
        if not self._chunk and fastest > TRIAL_S:
            return 1
        for count in (self._chunk,) if self._chunk else SIZES:
            took = self._took(row, batch, count)
            if took is None:
                return best
            if self._chunk:
                return count
            if took > 0.97 * fastest:
                return best
            best, fastest = count, took
        return best

    def _took(self, row: Row, batch: Batch, count: int) -> float | None:
        """Seconds of a client's step among so many; None where they don't go together."""
        if count == 1:
            return None
        stack, values = ([torch.stack([x] * count) for x in xs] for xs in (row.state, batch.values()))
        together = self._program(row, stack, values, list(batch))
        if together is None:
            return None
        run = together.bind(stack)
        return _time(lambda: run(values)) / count


def _altered(batch: Batch) -> Batch:
    """Another batch of the same shapes: what a step's Python read of the first one would not hold for it."""
    return {name: x * 0.9 if x.is_floating_point() else x.flip(0) for name, x in batch.items()}


def _time(run: Callable[[], object]) -> float:
    """CPU seconds, the best of five, or of fewer if it is slow."""
    took: list[float] = []
    while len(took) < 5 and sum(took) < ENOUGH_S:
        took.append(spent(run))
    return min(took)


def spent(run: Callable[[], object]) -> float:
    """Seconds of the CPU, so that what else the machine does is left out; of the clock where a GPU works."""
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if on_gpu:
        torch.cuda.synchronize()
    started = time.perf_counter() if on_gpu else time.process_time()
    run()
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() if on_gpu else time.process_time()) - started
