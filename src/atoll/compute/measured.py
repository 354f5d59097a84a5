"""The way that is fastest for a fold, measured on its first client: a few steps of each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from atoll.compute.eager import Eager
from atoll.compute.stack import row_of
from atoll.compute.stacked import TRIAL_S, Stacked, spent
from atoll.interfaces import Compute
from atoll.types import Answer, Local, Tree, Trip

log = logging.getLogger("atoll.compute")


def measured(before: str = "") -> Measured:
    """Eager, traced or stacked, whichever took the least CPU time for a client's step.

    `before`: what an earlier part of the same run told, which stays as it was, so that a resumed run goes on to the same bits.

    >>> list(measured().run([]))
    []
    """
    return Measured(before)


class Measured:
    """Remembers what it measured, by fold."""

    def __init__(self, before: str) -> None:
        self._eager, self._stacked = Eager(), Stacked()
        self._before = dict(line.split(": ", 1) for line in before.splitlines())
        self._ways: dict[int, tuple[Local[Any], Compute, int]] = {}  # by the fold's step, which is held with it
        self._chosen: dict[str, str] = {}

    @property
    def told(self) -> str:
        """What was chosen, a line a work: `train: stacked 4`."""
        return "\n".join(f"{work}: {way}" for work, way in sorted(self._chosen.items()))

    def ready(self, trip: Trip) -> int:
        key = id(trip.local.step)
        if key not in self._ways and not len(trip.examples):
            return 1  # the next client will tell
        if key not in self._ways:
            work = trip.assignment.work
            before = self._before.get(work)
            eagerly = before == "eager" if before else _slow(trip)
            stacked = self._stacked if before is None else Stacked(_count(before))
            at_once = 1 if eagerly else stacked.ready(trip)
            gained = not eagerly and (before is not None or stacked.gains(trip))
            way: Compute = stacked if gained else self._eager
            self._ways[key] = (trip.local, way, at_once if gained else 1)
            self._chosen[work] = "eager" if not gained else "traced" if at_once == 1 else f"stacked {at_once}"
            log.info("%s is computed %s", work, self._chosen[work])
        return self._ways[key][2]

    def run(self, trips: Sequence[Trip]) -> Iterator[tuple[Answer, Tree]]:
        if trips:
            self.ready(trips[0])
            _, way, _ = self._ways.get(id(trips[0].local.step), (None, self._eager, 1))
            yield from way.run(trips)


def _count(told: str) -> int:
    """How many clients go at once: those of "stacked 4", else one."""
    return int(told.removeprefix("stacked ")) if told.startswith("stacked ") else 1


def _slow(trip: Trip) -> bool:
    """Is a step bound by arithmetic? Then there is nothing to gain on a CPU, and capturing costs several such steps."""
    batch = next(row_of(trip).portions, None) if trip.local.captured is not None else None
    if batch is None or any(x.device.type != "cpu" for x in trip.assignment.tree.values()):
        return False
    carry = trip.local.init(trip.assignment, trip.memory)
    return min(spent(lambda: trip.local.step(carry, batch)) for _ in range(2)) > TRIAL_S
