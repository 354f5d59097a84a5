"""Rules that go by time, in virtual time: they repeat to the same bits, and their rounds are shorter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from atoll.algorithms.fedavg import fedavg
from atoll.federation import Federation
from atoll.fleets.steady import lognormal
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.policy import buffered, synchronous
from atoll.result import Result
from atoll.rng import seeded
from atoll.selection.fair import fair
from atoll.selection.oort import oort
from atoll.selection.power_of_choice import power_of_choice
from atoll.selection.rule import Selection
from atoll.selection.tifl import tifl
from atoll.tasks.classification import classification
from atoll.testing.store import same_bits
from atoll.types import Task

pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install 'atoll[data]'")

Rule = Callable[[Task], Selection[Any] | None]


def run(rule: Rule, rounds: int = 14, policy: Any = None) -> tuple[Result, float]:
    """The result of a run over devices of very different speeds, and the seconds that it took there."""
    from atoll.data.digits import digits
    from atoll.data.partition.dirichlet import dirichlet

    with seeded(0):
        task = classification(mlp(64, [8], 10))
    federation = Federation(
        task,
        digits(clients=12, partition=dirichlet(1.0)),
        fedavg(sgd(task, lr=0.1, batch_size=32)),
        policy or synchronous(3),
        evaluate_every=0,
        selection=rule(task),
        fleet=lognormal(sigma=1.5, seed=2),
    )
    result = federation.run(rounds)
    return result, [p.value for p in result.record().series if p.name == "clock_s"][-1]


def idle(result: Result) -> float:
    """The share of a round that a client of its cohort waits for the slowest, on average, once the fleet is known."""
    rounds: dict[int, list[float]] = {}
    for point in result.record().series:
        if point.work == "train" and point.name == "seconds" and point.client and point.round >= 4:
            rounds.setdefault(point.round, []).append(point.value)
    return sum(1 - sum(s) / len(s) / max(s) for s in rounds.values()) / len(rounds)


def test_oort_repeats_to_the_same_bits_and_its_rounds_are_shorter() -> None:
    (one, clock_s), (two, again_s), (_, random_s) = (run(rule) for rule in (_oort, _oort, lambda task: None))
    assert same_bits(dict(one.params), dict(two.params))
    assert clock_s == again_s < 0.75 * random_s


def test_tifl_repeats_to_the_same_bits_and_its_cohorts_wait_less() -> None:
    (one, clock_s), (two, again_s), (plain, _) = (run(rule) for rule in (_tifl, _tifl, lambda task: None))
    assert same_bits(dict(one.params), dict(two.params))
    assert clock_s == again_s
    assert idle(one) < 0.85 * idle(plain)


def _oort(task: Task) -> Selection[Any]:
    return oort(window=2)


def _tifl(task: Task) -> Selection[Any]:
    return tifl(tiers=3, choice="uniform")


@pytest.mark.parametrize("rule", [lambda task: oort(), power_of_choice, lambda task: fair()], ids=["oort", "probe", "fair"])
def test_asynchronous_rounds_repeat_to_the_same_bits(rule: Rule) -> None:
    (one, clock_s), (two, again_s) = (run(rule, 6, buffered(4, 2)) for _ in range(2))
    assert same_bits(dict(one.params), dict(two.params))
    assert clock_s == again_s
