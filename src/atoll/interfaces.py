"""What moves the values of `atoll.types`: engines, journals, client memory, sinks. The round knows no implementation of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from atoll.types import Answer, Assignment, ClientId, Event, Tree, Trip, Update


class Compute(Protocol):
    """How an engine computes trips: one by one as `atoll.round.work` does, from a captured program, several as one."""

    def ready(self, trip: Trip) -> int:
        """Do, once, what serves all trips like this one; how many of them to give at once."""
        ...

    def run(self, trips: Sequence[Trip]) -> Iterator[tuple[Answer, Tree]]:
        """An answer and the client's new memory for each trip, in their order; the trips are of one work."""
        ...


class Engine(Protocol):
    """Where client work runs: in this process, in resident processes, on a Ray cluster, in virtual time.

    For every assignment submitted, and not cancelled, exactly one answer comes out of `results`.
    """

    def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        """Who of these could start work now, in their order; waits, on the engine's clock, until somebody can."""
        ...

    def submit(self, assignments: Iterable[Assignment]) -> None: ...
    def results(self, timeout_s: float) -> Iterator[Answer]:
        """Answers as they land. Ends when nothing is outstanding or `timeout_s` has passed."""
        ...

    def acknowledge(self, update: Update) -> None:
        """The update is safe: commit the client memory that belongs to it and free its buffers."""
        ...

    def refuse(self, answer: Answer) -> None:
        """The answer is not wanted: drop the client memory that belongs to it and free its buffers."""
        ...

    def cancel(self, round: int, work: str) -> None:
        """Forget what is still outstanding of this work, client memory included."""
        ...

    def started(self, assignment: Assignment) -> bool:
        """False while it waits for its turn, or is seen to move: a lease runs out neither in a queue nor in long work."""
        ...

    def now(self) -> float:
        """Seconds on the engine's clock, virtual or real; only differences mean anything."""
        ...

    def close(self) -> None: ...


class Journal(Protocol):
    """What was answered in the open round, kept so that a killed run replays it to the same bits."""

    def begin(self, round: int) -> None:
        """Open a round: what was kept of earlier ones may go; what is kept of this one stays."""
        ...

    def accept(self, answer: Answer) -> None:
        """On return the answer survives the death of the process."""
        ...

    def hold(self, update: Update) -> Callable[[], Update]:
        """Keep an accepted update that came before its turn; the call gives it back."""
        ...

    def places(self, round: int) -> Iterator[tuple[int, ClientId, str]]:
        """(round, client, work) of what `accepted` gives, in that order, without reading a tensor."""
        ...

    def accepted(self, round: int) -> Iterator[Answer]:
        """The answers accepted while `round` was open, in the order in which they were accepted."""
        ...


class Memories(Protocol):
    """Client memory in two phases: `propose` with the update, `commit` when the server has acknowledged it."""

    def get(self, client: ClientId) -> Tree: ...
    def propose(self, client: ClientId, round: int, work: str, memory: Tree) -> None: ...
    def commit(self, client: ClientId, round: int, work: str) -> None: ...
    def discard(self, client: ClientId, round: int, work: str) -> None: ...


class Sink(Protocol):
    """Where events go: a progress bar, the runs database, TensorBoard, MLflow."""

    def emit(self, event: Event) -> None: ...
