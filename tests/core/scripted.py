"""An engine that answers by script on a virtual clock, and the smallest algorithm that asks it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from atoll import tree
from atoll.aggregators.mean import mean
from atoll.types import Aggregator, Algorithm, Answer, Assignment, ClientId, Failure, Reduced, Request, Tree, Update

Script = Callable[[Assignment], Sequence[tuple[float, Answer]]]  # (seconds until it lands, answer), none: silence


class Scripted:
    """Each assignment's answers come from the script. `stubborn`: cancelled work is answered all the same."""

    def __init__(self, script: Script, stubborn: bool = False) -> None:
        self.script, self.stubborn, self.clock = script, stubborn, 0.0
        self.asked: list[Assignment] = []
        self.acknowledged: list[Answer] = []
        self.refused: list[Answer] = []
        self.cancelled: list[tuple[int, str]] = []
        self._due: list[tuple[float, int, Answer]] = []
        self._outstanding: set[tuple[int, str, str]] = set()
        self._count = 0

    def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        return clients

    def submit(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            self.asked.append(assignment)
            self._outstanding.add((assignment.round, assignment.client, assignment.work))
            for delay_s, answer in self.script(assignment):
                self._count += 1
                heapq.heappush(self._due, (self.clock + delay_s, self._count, answer))

    def results(self, timeout_s: float) -> Iterator[Answer]:
        ends = self.clock + timeout_s
        while self._due and self._due[0][0] <= ends:
            at, _, answer = heapq.heappop(self._due)
            self.clock = max(self.clock, at)
            self._outstanding.discard((answer.round, answer.client, answer.work))
            yield answer
        if self._outstanding:
            self.clock = max(self.clock, ends)

    def acknowledge(self, update: Update) -> None:
        self.acknowledged.append(update)

    def refuse(self, answer: Answer) -> None:
        self.refused.append(answer)

    def cancel(self, round: int, work: str) -> None:
        self.cancelled.append((round, work))
        if not self.stubborn:
            self._due = [d for d in self._due if (d[2].round, d[2].work) != (round, work)]
            heapq.heapify(self._due)
            self._outstanding = {p for p in self._outstanding if (p[0], p[2]) != (round, work)}

    def started(self, assignment: Assignment) -> bool:
        return True

    def now(self) -> float:
        return self.clock

    def close(self) -> None:
        pass


def says(assignment: Assignment, value: float | Tree = 1.0, weight: float = 1.0, **metrics: float) -> Update:
    """The answer of a client that did its work."""
    sent: Tree = {"w": torch.tensor([value])} if isinstance(value, float | int) else value
    return Update(assignment.round, assignment.client, assignment.work, sent, weight, metrics)


def fails(assignment: Assignment, kind: str = "error", reason: str = "it broke") -> Failure:
    return Failure(assignment.round, assignment.client, assignment.work, kind, reason)


class Heard(NamedTuple):
    params: Tree
    rounds: tuple[tuple[str, ...], ...]  # who was heard in each round, in the order of the fold


def asking(
    fresh: bool | Callable[[int], bool] = False,
    cohort: int | None = None,
    reduce: Aggregator[Any] | None = None,
) -> Algorithm[Heard]:
    """w += mean of what the clients say."""

    def round(state: Heard, clients: Sequence[ClientId]) -> Generator[Request, Reduced, Heard]:
        wanted = fresh(len(state.rounds)) if callable(fresh) else fresh
        params = state.params
        reduced = yield Request("train", clients, lambda _: params, reduce or mean("uniform"), wanted, cohort, params)
        return Heard(tree.add(params, reduced.tree), (*state.rounds, tuple(reduced.clients)))

    return Algorithm(lambda w: Heard(tree.pack(w), ()), round, lambda s: s.params, {})
