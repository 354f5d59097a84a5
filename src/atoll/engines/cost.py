"""What a client's work is going to cost: its examples are known beforehand, the seconds an example are measured."""

from __future__ import annotations

from typing import Any

from atoll import tree
from atoll.types import ClientId, Examples, Local, Tree

_FADE = 0.95  # of what was measured, at each new measurement: the first ones carry what is done only once
_ODD = 2.0  # a client this much slower or faster than its size says is judged by its own times


def size(local: Local[Any], examples: Examples) -> float:
    """How many examples a fold reads in one pass, or in all its steps where their number is fixed.

    >>> from atoll.types import Batching
    >>> size(Local(None, None, None, Batching(batch_size=10, steps=4)), range(7))
    28.0
    """
    batching, held = local.batching, len(examples)
    if batching.steps is None:
        return float(held)
    return float(batching.steps * min(batching.batch_size or held, held))


class Costs:
    """Seconds and bytes by kind of work, learnt from what workers report.

    >>> costs = Costs()
    >>> costs.seconds("train", "a", 60.0) is None
    True
    >>> costs.learn("train", "a", 60.0, 0.3)
    >>> costs.seconds("train", "b", 20.0)
    0.1
    """

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, float]] = {}  # by work: seconds, and the examples that they were spent on
        self._own: dict[tuple[str, ClientId], float] = {}  # of those who differ much from what their size says
        self._bytes: dict[str, int] = {}  # of an answer, by work: the largest so far

    def learn(self, work: str, client: ClientId | None, size: float, spent_s: float) -> None:
        """A worker has spent that on a client of this size; None: on one of several that it computed as one."""
        before = None if client is None else self.seconds(work, client, size)
        seconds, examples = self._spent.get(work, (0.0, 0.0))
        self._spent[work] = (_FADE * seconds + spent_s, _FADE * examples + size)
        if client is None:
            return
        by_size = self._by_size(work, size)
        if before is not None and by_size and not 1 / _ODD < spent_s / by_size < _ODD:
            self._own[work, client] = (before + spent_s) / 2
        else:
            self._own.pop((work, client), None)

    def seconds(self, work: str, client: ClientId, size: float) -> float | None:
        """What it will take; None while nothing of this work has been measured."""
        own = self._own.get((work, client))
        return self._by_size(work, size) if own is None else own

    def weigh(self, work: str, answer: Tree) -> None:
        """Such an answer has come."""
        self._bytes[work] = max(self.bytes(work), tree.size_bytes(answer))

    def bytes(self, work: str) -> int:
        """What an answer takes; 0 while none has come."""
        return self._bytes.get(work, 0)

    def _by_size(self, work: str, size: float) -> float | None:
        seconds, examples = self._spent.get(work, (0.0, 0.0))
        return size * seconds / examples if examples else None
