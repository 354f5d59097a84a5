"""An engine whose clients hear what became of an answer only once it is known above.

The driver of a round acknowledges an update when it is in the journal. A relay's journal is not the end of the way: were the
region's answer refused above, its clients would remember a round that never was. So an acknowledgement waits here, and
`shelf` has what to say when it comes from above.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from atoll.interfaces import Engine
from atoll.remote.values import Place, place_of
from atoll.types import Answer, Assignment, ClientId, Failure, Update


class Deferred:
    """Owns nothing but what is outstanding; all else is the inner engine's."""

    def __init__(self, inner: Engine) -> None:
        self._inner, self._out = inner, set[Place]()

    def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        return self._inner.available(clients)

    def submit(self, assignments: Iterable[Assignment]) -> None:
        asked = list(assignments)
        self._out.update(map(place_of, asked))
        self._inner.submit(asked)

    def results(self, timeout_s: float) -> Iterator[Answer]:
        for answer in self._inner.results(timeout_s):
            self._out.discard(place_of(answer))
            yield answer
            del answer  # the caller alone holds what it is given

    def acknowledge(self, update: Update) -> None:
        """Not yet."""

    def refuse(self, answer: Answer) -> None:
        self._out.discard(place_of(answer))
        self._inner.refuse(answer)

    def cancel(self, round: int, work: str) -> None:
        """Whoever is still at it is told; who was heard waits on for what becomes of it."""
        for place in sorted(place for place in self._out if (place.round, place.work) == (round, work)):
            self.refuse(Failure(*place, "expired", "it came too late"))

    def withdraw(self, round: int, work: str) -> None:
        """The work is not wanted above: everybody is told, heard or not."""
        self._out = {place for place in self._out if (place.round, place.work) != (round, work)}
        self._inner.cancel(round, work)

    def started(self, assignment: Assignment) -> bool:
        return self._inner.started(assignment)

    def now(self) -> float:
        return self._inner.now()

    def close(self) -> None:
        self._inner.close()
