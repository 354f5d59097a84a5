"""Federated evaluation as a wrapper: one more request after every n-th round, and one before the first."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from atoll.aggregators.mean import mean
from atoll.errors import ConfigError
from atoll.types import Algorithm, ClientId, Local, Reduced, Request

S = TypeVar("S")


class Evaluated(NamedTuple):
    """The wrapped algorithm's state, and the rounds that it has finished."""

    inner: Any
    round: int


def with_evaluation(
    inner: Algorithm[Any],
    local: Local[Any],
    clients: Sequence[ClientId],
    every: int = 1,
    last: int | None = None,
    work: str = "evaluate",
    baseline: str | None = "baseline",
) -> Algorithm[Evaluated]:
    """Ask `clients` to judge the model after every `every`-th round and after round number `last`.

    The metrics come out as events of `work`; those before any training as `baseline`.

    >>> from atoll.algorithms.fedavg import fedavg
    >>> from atoll.local.evaluate import evaluate
    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> task = regression(linear(3, 1))
    >>> sorted(with_evaluation(fedavg(sgd(task)), evaluate(task), ["a", "b"]).local)
    ['baseline', 'evaluate', 'train']
    """
    if every < 1:
        raise ConfigError(f"evaluation every = {every}: must be 1 round or more")

    def judge(name: str, state: Any) -> Request:
        params = inner.params(state)
        return Request(name, clients, lambda _: params, mean(), fresh=True, cohort=len(clients), like={})

    def round(state: Evaluated, cohort: Sequence[ClientId]) -> Generator[Request, Reduced, Evaluated]:
        if baseline and state.round == 0:
            yield judge(baseline, state.inner)
        after = yield from inner.round(state.inner, cohort)
        done = state.round + 1
        if done % every == 0 or done == last:
            yield judge(work, after)
        return Evaluated(after, done)

    locals_ = {**inner.local, work: local, **({baseline: local} if baseline else {})}
    return Algorithm(lambda w: Evaluated(inner.init(w), 0), round, lambda s: inner.params(s.inner), locals_)
