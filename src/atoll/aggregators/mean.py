"""Sums and means that stream: one model of memory whatever the number of clients (arXiv:1602.05629, Algorithm 1)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from atoll import tree
from atoll.errors import ConfigError
from atoll.types import Aggregator, Tree, Update


class Total(NamedTuple):
    """A running sum of weighted trees, and of the weights."""

    tree: Tree | None
    weight: float


def mean(weights: Literal["examples", "uniform"] = "examples") -> Aggregator[Total]:
    """sum_k w_k f_k x_k / sum_k w_k in float32 or wider, f_k = Update.factor; w_k = Update.weight, or its clients if uniform.

    >>> from atoll.types import Update
    >>> m = mean()
    >>> a = m.add(m.init(), Update(0, "a", "train", {"w": torch.tensor([1.0])}, 1.0, {}))
    >>> m.finish(m.add(a, Update(0, "b", "train", {"w": torch.tensor([4.0])}, 2.0, {})))["w"].tolist()
    [3.0]
    """
    if weights not in ("examples", "uniform"):
        raise ConfigError(f"mean weights = {weights!r}: must be 'examples' or 'uniform'")

    def add(total: Total, update: Update) -> Total:
        weight = update.weight if weights == "examples" else float(update.clients)
        share = weight * update.factor
        if total.tree is None:
            return Total(tree.map(lambda x: _wide(x).mul_(share), update.tree), weight)
        return Total(tree.axpy_(total.tree, update.tree, share), total.weight + weight)

    def finish(total: Total) -> Tree:
        if total.tree is None or not total.weight > 0:
            return {}
        return tree.map(lambda x: x.div_(total.weight), total.tree)

    return Aggregator(lambda: Total(None, 0.0), add, _merge, finish, only_sum=True, weights=weights)


def total() -> Aggregator[Total]:
    """sum_k f_k x_k, unweighted.

    >>> total().only_sum
    True
    """

    def add(acc: Total, update: Update) -> Total:
        if acc.tree is None:
            return Total(tree.map(lambda x: _wide(x).mul_(update.factor), update.tree), 1.0)
        return Total(tree.axpy_(acc.tree, update.tree, update.factor), acc.weight + 1.0)

    return Aggregator(lambda: Total(None, 0.0), add, _merge, lambda acc: acc.tree or {}, only_sum=True)


def _merge(a: Total, b: Total) -> Total:
    if a.tree is None or b.tree is None:
        return Total(b.tree if a.tree is None else a.tree, a.weight + b.weight)
    return Total(tree.axpy_(a.tree, b.tree), a.weight + b.weight)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """A fresh tensor in the dtype to add up in: float64 stays, everything else becomes float32."""
    return x.to(torch.float64 if x.dtype == torch.float64 else torch.float32, copy=True)
