"""A run as it is read back from the database, for reports and comparisons: frozen values and no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

STATUSES = ("created", "running", "interrupted", "failed", "finished")


class Point(NamedTuple):
    """One number of one round: of the whole federation where `client` is None, else of that client."""

    round: int
    work: str  # "" for what belongs to the round itself
    client: str | None
    name: str
    value: float
    elapsed_s: float  # seconds of running since the run began; time between a kill and a resume is not counted


class Incident(NamedTuple):
    """Something a person should see: a client that failed, an answer that came late, a checkpoint passed over."""

    round: int
    work: str
    client: str | None
    kind: str  # "failure" | "late" | "warning" | any event kind that carries a text
    text: str
    elapsed_s: float


class Note(NamedTuple):
    """A text kept with the run, such as a passage continued by the model before and after."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of `atoll runs`."""

    id: str
    name: str
    status: str  # one of STATUSES; "interrupted" also where the process is gone without a word
    seed: int
    rounds: int  # asked for
    rounds_done: int
    created: str  # ISO 8601, UTC
    started: str | None
    finished: str | None
    error: str
    folder: str


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that is known of one run.

    >>> record = Record(
    ...     "a-1",
    ...     "a",
    ...     "finished",
    ...     0,
    ...     2,
    ...     {},
    ...     {},
    ...     "",
    ...     "2026-01-01T00:00:00.000+00:00",
    ...     None,
    ...     None,
    ...     "",
    ...     "",
    ...     series=(
    ...         Point(0, "evaluate", None, "loss", 2.0, 0.5),
    ...         Point(1, "evaluate", None, "loss", 1.0, 0.9),
    ...         Point(1, "train", "north", "loss", 1.5, 0.8),
    ...     ),
    ... )
    >>> record.global_series("evaluate", "loss")
    [(0, 2.0), (1, 1.0)]
    >>> record.by_client("train", "loss")
    {'north': [(1, 1.5)]}
    >>> record.names()
    [('evaluate', 'loss'), ('train', 'loss')]
    """

    id: str
    name: str
    status: str
    seed: int
    rounds: int  # asked for
    config: Mapping[str, Any]
    versions: Mapping[str, str]  # package -> version, "python" and "atoll" among them
    environment: str  # operating system, processor count, memory
    created: str  # ISO 8601, UTC
    started: str | None
    finished: str | None
    error: str
    folder: str
    series: tuple[Point, ...] = field(default=(), repr=False)  # in the order in which it happened
    incidents: tuple[Incident, ...] = field(default=(), repr=False)
    notes: tuple[Note, ...] = field(default=(), repr=False)

    @property
    def failures(self) -> tuple[Incident, ...]:
        """The incidents of kind "failure"."""
        return tuple(incident for incident in self.incidents if incident.kind == "failure")

    @property
    def elapsed_s(self) -> float:
        """Seconds of running, up to the last thing that was recorded."""
        return max([*(p.elapsed_s for p in self.series), *(i.elapsed_s for i in self.incidents), 0.0])

    def names(self, *, clients: bool | None = None) -> list[tuple[str, str]]:
        """The (work, name) pairs that have numbers, sorted; only global ones, or only per-client ones, if asked."""
        wanted = (p for p in self.series if clients is None or (p.client is not None) == clients)
        return sorted({(point.work, point.name) for point in wanted})

    def clients(self) -> list[str]:
        """Every client that is named in a number or an incident, sorted."""
        return sorted({c for c in (*(p.client for p in self.series), *(i.client for i in self.incidents)) if c is not None})

    def global_series(self, work: str, name: str) -> list[tuple[int, float]]:
        """The (round, value) pairs of one number of the whole federation, in the order in which they came."""
        return [(p.round, p.value) for p in self.series if (p.work, p.name, p.client) == (work, name, None)]

    def by_client(self, work: str, name: str) -> dict[str, list[tuple[int, float]]]:
        """For each client, the (round, value) pairs of one of its numbers."""
        found: dict[str, list[tuple[int, float]]] = {}
        for point in self.series:
            if point.client is not None and (point.work, point.name) == (work, name):
                found.setdefault(point.client, []).append((point.round, point.value))
        return found

    def rounds_ended(self) -> dict[int, float]:
        """For each round of which anything was recorded, the elapsed seconds of its last number."""
        ends: dict[int, float] = {}
        for point in self.series:
            ends[point.round] = max(ends.get(point.round, 0.0), point.elapsed_s)
        return ends
