"""Coordinates that all clients of a round share: sums of what they send are what one would send of the sum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import tree
from atoll.algorithms.fedavg import fedavg
from atoll.algorithms.scaffold import scaffold
from atoll.errors import ConfigError, TreeError
from atoll.local.sgd import sgd
from atoll.testing.transform import check_transform
from atoll.transforms.chain import chain
from atoll.transforms.compress.int8 import int8
from atoll.transforms.compress.random_k import Drawn, random_k, strata
from atoll.transforms.compress.top_k import top_k
from atoll.transforms.pipe import pipe
from atoll.types import ClientId, Reduced, Transform, Tree, Update
from tests.core.small import TWO, Log, holding, line, states, weights


def update(values: Tree) -> Update:
    return Update(0, ClientId("a"), "train", values, 1.0, {})


def rounds(transform: Transform[Any], values: Tree) -> Iterator[Tree]:
    """What the server makes of one update, round after round."""
    state = transform.init(values)
    while True:
        sent, _ = transform.encode(None, transform.broadcast(state), {}, update(values))  # type: ignore[arg-type]
        assert transform.form is not None
        tree.agree(transform.form(values), sent.tree)
        out, state = transform.finish(state, Reduced(sent.tree, [ClientId("a")], {}))
        yield out


def test_random_k_obeys_the_laws() -> None:
    check_transform(random_k(0.3))
    check_transform(random_k(1.0), error=1e-7)


@settings(deadline=None, max_examples=100)
@given(n=st.integers(1, 2000), share=st.floats(0.001, 1), seed=st.integers(0, 99))
def test_one_of_each_stratum(n: int, share: float, seed: int) -> None:
    k = math.ceil(share * n)
    at, size = strata(n, k, torch.Generator().manual_seed(seed))
    assert int(size.sum()) == n
    assert set(size.tolist()) <= {n // k, -(-n // k)}
    ends = size.cumsum(0)
    assert bool(((ends - size <= at) & (at < ends)).all())


def test_every_entry_comes_in_its_turn_and_with_the_variance_of_random_k() -> None:
    x, fraction = torch.randn(40, 25, generator=torch.Generator().manual_seed(0)), 0.1
    outs = [out["x"] for out, _ in zip(rounds(random_k(fraction), {"x": x}), range(400), strict=False)]
    assert bool(torch.stack(outs).ne(0).any(0).all())
    errors = torch.stack([(out - x).square().sum() for out in outs])
    assert float(errors.mean() / x.square().sum()) == pytest.approx(1 / fraction - 1, rel=0.05)


def test_clients_are_sent_eight_bytes_and_send_a_share() -> None:
    log = Log()
    states(pipe(fedavg(sgd(line())), random_k(0.1)), holding(**TWO), 1, line(), log=log)
    sizes = {
        (e.metrics["bytes_down"] - e.metrics["header_down"], e.metrics["bytes_up"] - e.metrics["header_up"])
        for e in log.of("update")
    }
    assert sizes == {(4 + 8, 4)}  # one weight, which is all that there is to keep
    sent = random_k(0.01).encode(None, {"seed": torch.tensor(5)}, {}, update({"w": torch.ones(100, 100)}))[0]  # type: ignore[arg-type]
    assert tree.size_bytes(sent.tree) == 400


def test_two_clients_share_coordinates_and_rounds_do_not() -> None:
    one, two = (torch.randn(1000, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    a, b = (random_k(0.1, seed=3) for _ in range(2))  # two ends of one federation
    first = [next(rounds(each, {"x": x}))["x"].nonzero().tolist() for each, x in ((a, one), (b, two))]
    assert first[0] == first[1]
    kept = [out["x"].nonzero().tolist() for out, _ in zip(rounds(a, {"x": one}), range(3), strict=False)]
    assert kept[0] != kept[1] != kept[2] != kept[0]


def test_an_answer_with_other_coordinates_is_dropped() -> None:
    algorithm = pipe(fedavg(sgd(line())), random_k(0.5))
    assert next(algorithm.round(algorithm.init({"weight": torch.zeros(1, 1)}), [ClientId("a")])).fresh
    within = pipe(fedavg(sgd(line())), chain("small", [random_k(0.5), int8()]))
    assert next(within.round(within.init({"weight": torch.zeros(1, 1)}), [ClientId("a")])).fresh
    plain = pipe(fedavg(sgd(line())), int8())
    assert not next(plain.round(plain.init({"weight": torch.zeros(1, 1)}), [ClientId("a")])).fresh


def test_composite_payloads_and_codecs_after_it() -> None:
    task = line()
    plain = weights(scaffold(sgd(task, lr=0.1, batch_size=None), 2), holding(**TWO), 3, task)
    assert weights(pipe(scaffold(sgd(task, lr=0.1, batch_size=None), 2), random_k(1.0)), holding(**TWO), 3, task) == plain
    small = pipe(fedavg(sgd(task, lr=0.1, batch_size=None)), random_k(1.0), int8())
    both = pipe(fedavg(sgd(task, lr=0.1, batch_size=None)), chain("small", [random_k(1.0), int8()]))
    assert weights(small, holding(**TWO), 3, task) == weights(both, holding(**TWO), 3, task)


def test_it_does_not_come_after_what_is_decoded_first() -> None:
    with pytest.raises(ConfigError, match="put 'random_k' before 'top_k'"):
        pipe(fedavg(sgd(line())), top_k(0.5), random_k(0.5))


def test_what_it_does_not_make_is_refused() -> None:
    with pytest.raises(TreeError, match="was sent"):
        random_k(0.5).finish(Drawn(0), Reduced({"random_k/1=2x2 w": torch.ones(3)}, [], {}))
    for fraction in (0.0, 1.5, math.nan):
        with pytest.raises(ConfigError, match="fraction"):
            random_k(fraction)
