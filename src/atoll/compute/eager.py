"""The reference: each trip by `atoll.round.work`, one after another. Every other way to compute must agree with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from atoll.interfaces import Compute
from atoll.round import work
from atoll.types import Answer, Tree, Trip


def eager() -> Compute:
    """Trips as they are.

    >>> list(eager().run([]))
    []
    """
    return Eager()


class Eager:
    """Nothing to make ready and nothing to keep."""

    def ready(self, trip: Trip) -> int:
        return 1

    def run(self, trips: Sequence[Trip]) -> Iterator[tuple[Answer, Tree]]:
        for trip in trips:
            yield work(*trip)
