"""Clients in one stack: a row each, which goes through its own batches in step with its neighbours'.

A stacked tensor is no copy where the clients packed their parameters side by side (`tree.Rows`): it looks at all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atoll import rng
from atoll.compute.program import Program, signature
from atoll.compute.record import UntraceableError
from atoll.compute.traced import Traced
from atoll.data.cursor import portions
from atoll.round import ended
from atoll.types import Answer, Batch, Seen, Tree, Trip


class Row(NamedTuple):
    """A client in the stack."""

    trip: Trip
    carry: Any
    own: list[Tensor]  # what its step reads, and changes in place
    constants: tuple[float, ...]
    portions: Iterator[Batch]
    read: list[int]  # examples and steps so far
    draws: Tensor  # where its random numbers stand after `init`

    @property
    def state(self) -> list[Tensor]:
        """What its step reads, without gradients."""
        return [x.detach() for x in self.own]


def row_of(trip: Trip) -> Row:
    """A client before its first batch."""
    with rng.seeded(trip.assignment.seed):
        carry, draws = trip.local.init(trip.assignment, trip.memory), torch.default_generator.get_state()
    assert trip.local.captured is not None
    own, constants = trip.local.captured(carry)
    return Row(trip, carry, own, constants, portions(trip), [0, 0], draws)


def answer_of(row: Row, seconds: float) -> tuple[Answer, Tree]:
    """A client after its last batch: its random numbers go on from where `init` left them."""
    with rng.seeded(row.trip.assignment.seed):
        torch.default_generator.set_state(row.draws)
        return ended(row.trip, row.carry, Seen(*row.read), seconds)


class Stack:
    """The rows that go through their batches together, who has most of them first."""

    def __init__(self, rows: list[Row], traced: Traced, program: Callable[..., Program | None], written: Sequence[bool]) -> None:
        self._rows, self._traced, self._program = rows, traced, program
        columns = zip(*(row.own for row in rows), strict=True)
        self._stack = [_together(column, changes) for column, changes in zip(columns, written, strict=True)]
        self._bound: dict[int, Callable[[Sequence[Tensor]], None] | None] = {}

    def run(self) -> None:
        """Tick after tick a batch of each, for as long as those with a batch are the first rows; then one after another."""
        shapes: Any = None
        while self._rows:
            waiting: list[tuple[Row, Batch]] = []
            for row in self._rows:
                for batch in row.portions:
                    row.read[0] += len(next(iter(batch.values())))
                    row.read[1] += 1
                    shapes = shapes or signature(batch.values())
                    if signature(batch.values()) == shapes:
                        waiting.append((row, batch))
                        break
                    self._alone(row, batch)
            rows = [row for row, _ in waiting]
            together = all(a is b for a, b in zip(rows, self._rows, strict=False))
            if together and len(rows) > 1:
                self._tick([batch for _, batch in waiting])
            else:
                for row, batch in waiting:
                    self._alone(row, batch)
            self._rows = rows if together else self._finished(rows)

    def _tick(self, portions: list[Batch]) -> None:
        values = [torch.stack(xs) for xs in zip(*(batch.values() for batch in portions), strict=True)]
        count = len(portions)
        if count not in self._bound:
            state = [x[:count] for x in self._stack]
            program = self._program(self._rows[0], state, values, list(portions[0]))
            self._bound[count] = program.bind(state) if program else None
        run = self._bound[count]
        if run:
            run(values)
        else:
            for row, batch in zip(self._rows, portions, strict=False):
                self._alone(row, batch)

    def _finished(self, rows: list[Row]) -> list[Row]:
        """To the end of their batches, one row after another."""
        for row in rows:
            for batch in row.portions:
                row.read[0] += len(next(iter(batch.values())))
                row.read[1] += 1
                self._alone(row, batch)
        return []

    def _alone(self, row: Row, batch: Batch) -> None:
        """One client's batch by itself, over its own tensors, which are its row of the stack."""
        self._traced.replay(row.trip.local, row.carry, [batch])


def _together(column: Sequence[Tensor], changes: bool) -> Tensor:
    """Tensors of one shape as one with another first axis; what is changed in it is changed in them."""
    first, step = column[0], column[1].storage_offset() - column[0].storage_offset()
    base, place = first.untyped_storage().data_ptr(), first.storage_offset()
    if step > 0 and all(
        x.untyped_storage().data_ptr() == base and x.storage_offset() == place + i * step and x.stride() == first.stride()
        for i, x in enumerate(column)
    ):
        return first.detach().as_strided((len(column), *first.shape), (step, *first.stride()))
    stack = torch.stack([x.detach() for x in column])
    if changes:
        for x, row in zip(column, stack, strict=True):
            if x.untyped_storage().nbytes() != x.numel() * x.element_size():
                raise UntraceableError("a tensor that a step changes is part of another one")
            x.data = row  # its client sees the row from now on
    return stack
