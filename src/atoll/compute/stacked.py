"""Several clients as one batched program: their parameters stacked, each product of a step one batched product.

The program is the captured step of one client put through vmap while it is recorded, so that batching costs nothing when it
is replayed. What clients share, such as the frozen base under adapters, stays one: its products run over all their rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atoll import rng
from atoll.compute.program import Program, signature
from atoll.compute.record import UntraceableError, record, replayed
from atoll.compute.traced import Traced
from atoll.data.examples import batches
from atoll.round import ended
from atoll.types import Answer, Batch, Compute, Seen, Tree, Trip

MOST = 16  # clients at once
TRIAL_S = 1.0  # a chunk whose step takes longer is compute-bound: larger ones are not tried


def stacked(chunk: int | None = None) -> Compute:
    """Chunks of clients as one program; `chunk` of them at once, None: as many as a trial finds fastest.

    >>> list(stacked().run([]))
    []
    """
    return Stacked(chunk)


class Row(NamedTuple):
    """A client in the stack."""

    trip: Trip
    carry: Any
    state: list[Tensor]
    portions: Iterator[Batch]
    read: list[int]  # examples and steps so far
    draws: Tensor  # where its random numbers stand after `init`


class Stacked:
    """Keeps the programs by number of clients, and for each kind of work the number that is fastest."""

    def __init__(self, chunk: int | None = None) -> None:
        self._chunk, self._traced = chunk, Traced()
        self._programs: dict[Any, Program | None] = {}
        self._best: dict[Any, int] = {}

    def ready(self, trip: Trip) -> int:
        if trip.local.captured is None:
            return 1
        carry = trip.local.init(trip.assignment, trip.memory)
        key = (id(trip.local.step), signature(trip.local.captured(carry).tensors))
        if key not in self._best:
            self._best[key] = self._chunk or self._trial(trip)
        return self._best[key]

    def run(self, trips: Sequence[Trip]) -> Iterator[tuple[Answer, Tree]]:
        """The answers in the order of the trips; a chunk that fails as one is done client by client, to see whose fault it is."""
        if len(trips) < 2 or trips[0].local.captured is None:
            yield from self._traced.run(trips)
            return
        started = time.perf_counter()
        try:
            rows = self._through(trips)
            seconds = (time.perf_counter() - started) / len(trips)
            answers = [_ended(row, seconds) for row in rows]
        except Exception:  # a client's own data may fail in any way: alone, it is told apart from its neighbours
            yield from self._traced.run(trips)
            return
        yield from answers

    def _through(self, trips: Sequence[Trip]) -> list[Row]:
        """All trips to the end of their batches; the largest first, so that who ends earlier leaves from the end of the stack."""
        rows = [_row(trip) for trip in trips]
        Stack(sorted(rows, key=lambda row: -len(row.trip.examples)), self._traced, self._program).run()
        return rows

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
            programs.say(local, "it draws random numbers, which clients in one program would share")
            return None
        scratch = [x.clone() for x in stack]
        over = (*(0 for _ in scratch), *(0 for _ in batch), *(None for _ in recorded.constants))
        body = torch.func.vmap(replayed(recorded.graph), in_dims=over)
        try:
            with torch.no_grad():
                together = record(lambda: body(*scratch, *batch, *recorded.constants), [*scratch, *batch])
        except (UntraceableError, RuntimeError) as error:
            programs.say(local, f"its graph does not batch over clients ({str(error).partition(chr(10))[0]})")
            return None
        return Program(together, len(scratch))

    def _trial(self, trip: Trip) -> int:
        """The number of clients at which a client's step is fastest: doubled while that gains."""
        batch = next(_row(trip).portions, None)
        if batch is None:
            return 1
        row = _row(trip)
        program: Program | None = None
        for _ in range(3):  # recorded, compared, trusted
            program = self._traced.programs.step(trip.local, row.carry, row.state, batch)
        if program is None:
            return 1
        best, fastest = 1, _time(program.bind(row.state), list(batch.values()))
        count = 2
        while count <= MOST and fastest * count < TRIAL_S:
            stack, values = ([torch.stack([x] * count) for x in xs] for xs in (row.state, batch.values()))
            together = self._program(row, stack, values, list(batch))
            took = _time(together.bind(stack), values) / count if together else float("inf")
            if took > 0.97 * fastest:
                break
            best, fastest, count = count, took, count * 2
        return best


class Stack:
    """The rows that go through their batches together."""

    def __init__(self, rows: list[Row], traced: Traced, program: Callable[..., Program | None]) -> None:
        self._rows, self._traced, self._program = list(rows), traced, program
        self._stack = [torch.stack(columns) for columns in zip(*(row.state for row in rows), strict=True)]
        self._bound: dict[Any, Any] = {}

    def run(self) -> None:
        """Tick after tick: a batch of each; one of another shape than the first one's goes by itself."""
        shapes: Any = None
        while self._rows:
            waiting: dict[int, Batch] = {}
            for place, row in enumerate(list(self._rows)):
                for batch in row.portions:
                    row.read[0] += len(next(iter(batch.values())))
                    row.read[1] += 1
                    shapes = shapes or signature(batch.values())
                    if signature(batch.values()) == shapes:
                        waiting[id(row)] = batch
                        break
                    self._alone(place, row, batch)
            self._leave(waiting.keys())
            if waiting:
                self._tick([waiting[id(row)] for row in self._rows])

    def _tick(self, portions: list[Batch]) -> None:
        values = [torch.stack(xs) for xs in zip(*(batch.values() for batch in portions), strict=True)]
        count = len(portions)
        if count not in self._bound:
            state = [x[:count] for x in self._stack]
            program = self._program(self._rows[0], state, values, list(portions[0])) if count > 1 else None
            self._bound[count] = program.bind(state) if program else None
        run = self._bound[count]
        if run:
            run(values)
            return
        for place, (row, batch) in enumerate(zip(self._rows, portions, strict=True)):
            self._alone(place, row, batch)

    def _alone(self, place: int, row: Row, batch: Batch) -> None:
        """One client's batch by itself, over its row of the stack."""
        own = [x[place] for x in self._stack]
        with torch.no_grad():
            for x, mine in zip(row.state, own, strict=True):
                x.copy_(mine)
            self._traced.replay(row.trip.local, row.carry, [batch])
            for x, mine in zip(row.state, own, strict=True):
                mine.copy_(x)

    def _leave(self, staying: Container[int]) -> None:
        """Who has no more batches takes its row along; the last one moves into the gap."""
        for place in reversed(range(len(self._rows))):
            row = self._rows[place]
            if id(row) in staying:
                continue
            last = len(self._rows) - 1
            for x, column in zip(row.state, self._stack, strict=True):
                x.copy_(column[place])
                if place != last:
                    column[place].copy_(column[last])
            self._rows[place] = self._rows[last]
            self._rows.pop()


def _row(trip: Trip) -> Row:
    with rng.seeded(trip.assignment.seed):
        carry, draws = trip.local.init(trip.assignment, trip.memory), torch.default_generator.get_state()
    assert trip.local.captured is not None
    state = [x.detach() for x in trip.local.captured(carry).tensors]
    return Row(trip, carry, state, batches(trip.examples, trip.local.batching, trip.assignment.seed), [0, 0], draws)


def _ended(row: Row, seconds: float) -> tuple[Answer, Tree]:
    with rng.seeded(row.trip.assignment.seed):
        torch.default_generator.set_state(row.draws)
        return ended(row.trip, row.carry, Seen(*row.read), seconds)


def _time(run: Callable[[Sequence[Tensor]], None], values: Sequence[Tensor]) -> float:
    """CPU seconds of a step, the best of five: what else the machine does is left out."""
    took = []
    for _ in range(5):
        started = time.process_time()
        run(values)
        took.append(time.process_time() - started)
    return min(took)
