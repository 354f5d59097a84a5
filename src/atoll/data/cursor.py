"""Where a client stands in its examples, for work that keeps its place between rounds (`Batching.keep`).

A cursor is two numbers in the client's memory: the seed of the order, which is that of the client's first round, and how
many batches of that order it has read. A client whose update was refused keeps its old memory, and reads them again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from atoll.data.examples import batches
from atoll.types import Batch, Tree, Trip


def portions(trip: Trip) -> Iterator[Batch]:
    """The batches of a trip, from where the client stopped if its work keeps its place.

    >>> from atoll.data.examples import Tensors
    >>> from atoll.types import Assignment, Batching, Local
    >>> local = Local(None, None, None, Batching(batch_size=1, steps=2, keep=True))
    >>> trip = Trip(Assignment(0, "a", "train", {}, 7), local, Tensors({"x": torch.arange(3)}), {})
    >>> [int(batch["x"]) for batch in portions(trip)]
    [0, 1]
    >>> [int(batch["x"]) for batch in portions(trip._replace(memory=moved(trip, {}, 2)))]
    [2, 0]
    """
    seed, read = _cursor(trip)
    return batches(trip.examples, trip.local.batching, seed, read)


def moved(trip: Trip, memory: Tree, steps: int) -> Tree:
    """The client's new memory, in it the cursor moved on by `steps`; as it is if the work does not keep its place."""
    if not trip.local.batching.keep:
        return memory
    seed, read = _cursor(trip)
    return {**memory, _name(trip): torch.tensor([seed, read + steps])}


def _cursor(trip: Trip) -> tuple[int, int]:
    kept = trip.memory.get(_name(trip)) if trip.local.batching.keep else None
    if kept is None:
        return trip.assignment.seed, 0
    seed, read = kept.tolist()
    return int(seed), int(read)


def _name(trip: Trip) -> str:
    return f"cursor/{trip.assignment.work}"
