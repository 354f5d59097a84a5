"""A mean over an uneven draw that estimates the mean over all (Horvitz and Thompson 1952, doi:10.1080/01621459.1952.10483446)."""

from __future__ import annotations

from typing import Any

from atoll.selection.rule import Shares
from atoll.types import Aggregator, ClientId, Update


def weighs(aggregator: Aggregator[Any]) -> bool:
    """Whether a mean goes by Update.weight (by examples) or counts every client alike: asked of two small updates.

    >>> from atoll.aggregators.mean import mean
    >>> weighs(mean("examples")), weighs(mean("uniform"))
    (True, False)
    """
    import torch

    acc = aggregator.init()
    for weight, value in ((1.0, 1.0), (3.0, 0.0)):
        acc = aggregator.add(acc, Update(0, ClientId(""), "", {"x": torch.tensor([value])}, weight, {}))
    return abs(float(aggregator.finish(acc)["x"]) - 0.25) < 1e-6


def unbiased(inner: Aggregator[Any], shares: Shares) -> Aggregator[Any]:
    """The same mean with each update scaled by its share, and its weight, where it counts, as a factor.

    1/m sum_k f_k (w_k / w) D_k: over m clients that were drawn with probability pi_k of N, and f_k = m / (N pi_k), its
    expectation is 1/N sum_k (w_k / w) D_k over all of them. Dividing by the weights that happened to be drawn, as the
    plain mean does, would not be unbiased.
    """
    by_weight = weighs(inner)

    def add(acc: Any, update: Update) -> Any:
        share = shares.factors[update.client]
        if by_weight and shares.typical_weight > 0:
            share *= update.weight / shares.typical_weight
        return inner.add(acc, update._replace(weight=1.0, factor=update.factor * share))

    return Aggregator(inner.init, add, inner.merge, inner.finish, inner.only_sum)
