"""Importance sampling leaves the expected mean alone: every sample that can be drawn, with its probability, added up."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.aggregators.mean import mean
from atoll.algorithms.fedasync import fedasync
from atoll.algorithms.fedavg import fedavg
from atoll.algorithms.scaffold import scaffold
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.local.sgd import sgd
from atoll.policy import Policy, buffered, deadline, over_selecting, synchronous
from atoll.selection.attach import with_selection
from atoll.selection.importance import importance
from atoll.selection.rule import Shares
from atoll.selection.sampling import inclusion, systematic
from atoll.selection.unbiased import unbiased
from atoll.types import Aggregator, ClientId, Dataset, Update
from tests.core.small import Log, holding, line, states, weights


def expected(aggregator: Aggregator, values: list[float], sizes: list[float], chances: list[float], n: int) -> float:
    """The mean over all samples that systematic sampling can give, each with its probability."""
    names = [ClientId(f"c{i}") for i in range(len(values))]
    typical = sum(sizes) / len(sizes)
    breaks = sorted({0.0, 1.0, *(end % 1.0 for end in itertools.accumulate(chances))})
    total = 0.0
    for a, b in itertools.pairwise(breaks):
        drawn = systematic(chances, (a + b) / 2)
        shares = Shares({names[i]: n / (len(values) * chances[i]) for i in drawn}, typical)
        reduce = unbiased(aggregator, shares)
        acc = reduce.init()
        for i in drawn:
            acc = reduce.add(acc, Update(0, names[i], "train", {"x": torch.tensor([values[i]]).double()}, sizes[i], {}))
        total += (b - a) * float(reduce.finish(acc)["x"])
    return total


client = st.tuples(st.floats(-5, 5), st.floats(1, 50), st.floats(0.1, 10))


@settings(max_examples=40, deadline=None)
@given(st.lists(client, min_size=2, max_size=7), st.integers(1, 6))
def test_the_expectation_is_the_mean_over_everybody(clients: list[tuple[float, float, float]], n: int) -> None:
    values, sizes, scores = (list(column) for column in zip(*clients, strict=True))
    n = min(n, len(values))
    chances = inclusion(scores, n)
    by_examples = sum(v * s for v, s in zip(values, sizes, strict=True)) / sum(sizes)
    assert expected(mean("examples"), values, sizes, chances, n) == pytest.approx(by_examples, abs=1e-6)
    assert expected(mean("uniform"), values, sizes, chances, n) == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_without_the_correction_it_is_not() -> None:
    # a = 0 and b = 1, drawn with 1/4 and 3/4: the plain mean of one is 3/4 on average, the corrected one 1/2.
    for correct, wanted in ((True, 0.5), (False, 0.75)):
        total = 0.0
        for chance, value in ((0.25, 0.0), (0.75, 1.0)):
            shares = Shares({ClientId("c"): 1 / (2 * chance)}, 1.0)
            reduce = unbiased(mean(), shares) if correct else mean()
            acc = reduce.add(reduce.init(), Update(0, ClientId("c"), "train", {"x": torch.tensor([value])}, 1.0, {}))
            total += chance * float(reduce.finish(acc)["x"])
        assert total == pytest.approx(wanted)


def test_in_a_run_the_mean_step_is_that_of_everybody() -> None:
    # From w = 0 with lr 1 a client's update is its y. Round 1 hears all four; in round 2 two of them are drawn, by seed.
    held = holding(a=[8.0], b=[1.0, 1.0, 1.0], c=[-2.0], d=[4.0])
    task, names = line(), sorted(held)
    rule = [importance(uniform_share=0.3, seed=seed) for seed in range(400)]
    algorithm = [with_selection(fedavg(sgd(task, lr=0.5)), each, Policy(2, 2), names) for each in rule]
    first = with_selection(fedavg(sgd(task, lr=0.5)), rule[0], Policy(), names)
    after = states(first, held, 1, task)[0]
    start, found = float(after.algorithm.inner.params["weight"]), []
    for each in algorithm:
        state = states(each, held, 2, task, policy=Policy(2, 2), state=after)[0]
        found.append(float(state.algorithm.inner.params["weight"]) - start)
    # A step of lr 0.5 goes half of the way; b's examples (3 of 6, one step of batch 10) weigh three times.
    wanted = 0.5 * ((8.0 + 3 * 1.0 - 2.0 + 4.0) / 6 - start)
    spread = torch.tensor(found).std().item() / len(found) ** 0.5
    assert abs(sum(found) / len(found) - wanted) < 4 * spread
    assert spread > 0


def test_all_clients_asked_is_the_plain_mean() -> None:
    held, task = holding(a=[8.0], b=[1.0, 1.0, 1.0]), line()
    plain = weights(fedavg(sgd(task, lr=0.5)), held, 3, task)
    sampled = weights(with_selection(fedavg(sgd(task, lr=0.5)), importance(), Policy(), sorted(held)), held, 3, task)
    assert sampled == pytest.approx(plain, rel=1e-6)


def test_scaffold_goes_by_heads() -> None:
    held, task, log = holding(a=[8.0], b=[1.0, 1.0, 1.0], c=[2.0]), line(), Log()
    algorithm = with_selection(scaffold(sgd(task, lr=0.1), 3), importance(), synchronous(2), sorted(held))
    found = weights(algorithm, held, 6, task, policy=synchronous(2), log=log)
    assert len({*found}) == 6
    assert {len([e for e in log.of("update", "train") if e.round == r]) for r in range(6)} == {2}
    assert all("update_norm" in e.metrics for e in log.of("update", "train"))


@pytest.mark.parametrize("policy", [over_selecting(2), deadline(2, 9.0), buffered(2, 1), Policy(2, 2, timeout_s=9.0)])
def test_a_policy_that_does_not_wait_is_refused_when_the_federation_is_built(policy: Policy) -> None:
    held, task = holding(a=[1.0], b=[2.0], c=[3.0]), line()
    data = Dataset("three", held, None)
    with pytest.raises(ConfigError, match="has to be waited for; use the policy synchronous"):
        Federation(task, data, fedavg(sgd(task)), policy, selection=importance())


def test_an_aggregator_that_is_no_sum_is_refused_when_the_federation_is_built() -> None:
    held, task = holding(a=[1.0], b=[2.0], c=[3.0]), line()
    with pytest.raises(ConfigError, match="not a plain sum or mean"):
        Federation(task, Dataset("three", held, None), fedasync(sgd(task)), synchronous(2), selection=importance())
