"""Clients in one stack: a row each, which goes through its own batches in step with its neighbours'."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atoll import rng
from atoll.compute.program import Program, signature
from atoll.compute.traced import Traced
from atoll.data.examples import batches
from atoll.round import ended
from atoll.types import Answer, Batch, Seen, Tree, Trip


class Row(NamedTuple):
    """A client in the stack."""

    trip: Trip
    carry: Any
    state: list[Tensor]
    portions: Iterator[Batch]
    read: list[int]  # examples and steps so far
    draws: Tensor  # where its random numbers stand after `init`


def row_of(trip: Trip) -> Row:
    """A client before its first batch."""
    with rng.seeded(trip.assignment.seed):
        carry, draws = trip.local.init(trip.assignment, trip.memory), torch.default_generator.get_state()
    assert trip.local.captured is not None
    state = [x.detach() for x in trip.local.captured(carry).tensors]
    return Row(trip, carry, state, batches(trip.examples, trip.local.batching, trip.assignment.seed), [0, 0], draws)


def answer_of(row: Row, seconds: float) -> tuple[Answer, Tree]:
    """A client after its last batch: its random numbers go on from where `init` left them."""
    with rng.seeded(row.trip.assignment.seed):
        torch.default_generator.set_state(row.draws)
        return ended(row.trip, row.carry, Seen(*row.read), seconds)


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
