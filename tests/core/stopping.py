"""A run in a store that is stopped at random events, in the middle of rounds, and opened again until it is through."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from atoll.federation import Federation
from atoll.result import Result
from atoll.store.record import Record
from atoll.store.runs import Store
from atoll.types import Event


class StoppedError(Exception):
    pass


class Stop:
    """A sink that ends the run at its n-th event."""

    def __init__(self, left: int) -> None:
        self.left = left

    def emit(self, event: Event) -> None:
        self.left -= 1
        if self.left == 0:
            raise StoppedError


class Stopped(NamedTuple):
    """What a run came to that was stopped so many times, and what the store says of it."""

    result: Result
    record: Record
    stops: int


def stopped(federation: Callable[[], Federation], rounds: int, folder: Path, *events: int) -> Stopped:
    """Run it in a store below the folder, by a federation made anew after each stop; `events`: at least, at most to a stop."""
    chance = random.Random(5)
    with Store(folder / "store") as store:
        created = store.create("a", {}, seed=3, rounds=rounds)
        created.close()
        for stops in range(60):
            try:
                with store.open(created.id) as run:
                    result = federation().run(rounds, run, sinks=[Stop(chance.randint(*events))])
            except StoppedError:
                continue
            return Stopped(result, store.record(created.id), stops)
    raise AssertionError("sixty stops, and it is not through")
