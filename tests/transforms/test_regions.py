"""What a region's answer counts for: a mean over regions is the mean over their clients, and what is no mean is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch

from atoll.aggregators.held import Placed, held
from atoll.aggregators.mean import mean, total
from atoll.errors import ConfigError, TreeError
from atoll.fold import Fold
from atoll.policy import Policy
from atoll.transforms.regions import CLIENTS, MARK, UNIFORM, counted, with_regions
from atoll.types import Aggregator, Algorithm, ClientId, Reduced, Request, Update

A, B, C, D = map(ClientId, "abcd")
NORTH, SOUTH = ClientId("north"), ClientId("south")
VALUES = {A: (2.0, 4.0), B: (5.0, 2.0), C: (-1.0, 6.0), D: (7.0, 4.0)}  # client -> (x, examples)


def said(client: ClientId) -> Update:
    x, examples = VALUES[client]
    return Update(0, client, "train", {"w": torch.tensor([x])}, examples, {"loss": x})


def reduced(request: Request, updates: Iterable[Update]) -> Reduced:
    fold = Fold(request, Policy(), 0, in_order=False)
    for update in updates:
        assert fold.judge(update) == update
        fold.hear(update, lambda held: lambda: held)
    return fold.finish()


def asking(reduce: Aggregator[object], **more: object) -> Algorithm[object]:
    def round(state, clients):  # type: ignore[no-untyped-def]
        yield Request("train", clients, lambda _: {"w": torch.zeros(1)}, reduce, **more)

    return Algorithm(lambda w: None, round, lambda s: {}, {})


def region_of(name: ClientId, clients: list[ClientId], weights: str) -> Update:
    within = reduced(Request("train", clients, lambda _: {}, mean(weights)), map(said, clients))  # type: ignore[arg-type]
    return Update(0, name, "train", within.tree, within.weight, {**within.metrics, CLIENTS: float(within.heads)})


@pytest.mark.parametrize(("weights", "flat"), [("examples", 40 / 16), ("uniform", 13 / 4)])
def test_a_mean_over_regions_is_the_mean_over_clients(weights: str, flat: float) -> None:
    """By hand: (2*4 + 5*2 - 1*6 + 7*4) / 16 = 40 / 16 by examples, (2 + 5 - 1 + 7) / 4 uniform."""
    algorithm = with_regions(asking(mean(weights)), {NORTH: 3})  # type: ignore[arg-type]
    request = next(algorithm.round(None, [NORTH, D]))
    assert bool(request.tree_for(NORTH)[MARK + UNIFORM]) == (weights == "uniform")
    assert MARK + UNIFORM not in request.tree_for(D)
    found = reduced(request, [region_of(NORTH, [A, B, C], weights), said(D)])
    assert found.tree["w"].item() == pytest.approx(flat)
    assert (found.heads, found.weight, list(found.clients)) == (4, 16.0, [NORTH, D])
    assert found.metrics == pytest.approx({"loss": 40 / 16})  # metrics are means by examples, here as everywhere


@pytest.mark.parametrize("told", [0.0, 4.0, 1.5, -1.0, math.nan, math.inf])
def test_a_region_counts_for_no_more_clients_than_the_job_gives_it(told: float) -> None:
    with pytest.raises(TreeError, match="the region 'north' has 3 clients"):
        counted(said(A)._replace(client=NORTH, metrics={CLIENTS: told}), 3)


def test_nobody_else_makes_himself_many() -> None:
    request = next(with_regions(asking(mean("uniform")), {NORTH: 3}).round(None, [NORTH, A, B]))
    many = said(A)._replace(metrics={CLIENTS: 3.0})
    assert reduced(request, [many, said(B)]).heads == 2
    one = said(A)._replace(client=NORTH)  # a plain site in the place of a relay
    judged = Fold(request, Policy(), 0, in_order=False).judge(one)
    assert "says that it is the mean of 0" in getattr(judged, "reason", "")


def nothing(update: Update) -> Placed:
    return Placed(update.tree, {})


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        (asking(held(nothing)), "other than their mean"),  # type: ignore[arg-type]
        (asking(total()), "other than their mean"),  # type: ignore[arg-type]
        (asking(mean()._replace(only_sum=False)), "other than their mean"),  # type: ignore[arg-type]
        (asking(mean(), by_client=True), "depends on the client"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_mean_is_refused_when_it_begins(algorithm: Algorithm[object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        with_regions(algorithm, {NORTH: 3}).init({})
