"""The mean of each coordinate over the clients that held it (HeteroFL, Diao et al. 2021, arXiv:2010.01264, eq. 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from atoll import tree
from atoll.errors import ConfigError
from atoll.types import Aggregator, Tree, Update


class Placed(NamedTuple):
    """An update in the whole model's coordinates."""

    tree: Tree  # anything where the client held nothing
    held: Tree  # 1.0 where it held something, 0.0 elsewhere; broadcasts to the shapes of `tree`


class Shares(NamedTuple):
    """A running sum of weighted trees, and for each coordinate of the weights behind it."""

    tree: Tree | None
    weights: Tree | None  # float64: sums of examples are exact


def held(place: Callable[[Update], Placed], weights: Literal["examples", "uniform"] = "examples") -> Aggregator[Shares]:
    """sum_k w_k f_k x_k / sum_k w_k over who held the coordinate, 0 where nobody did; w_k, f_k as in `mean`.

    `place`: an update as the whole model sees it, made anew at each call. Clients that hold everything give the bits
    of `mean`. Memory: two models.

    >>> from atoll.types import Update
    >>> ends = {"a": torch.tensor([1.0, 1.0, 0.0]), "b": torch.tensor([0.0, 1.0, 0.0])}
    >>> m = held(lambda u: Placed({"w": u.tree["w"] * ends[u.client]}, {"w": ends[u.client]}))
    >>> a = m.add(m.init(), Update(0, "a", "train", {"w": torch.tensor([1.0, 1.0, 7.0])}, 1.0, {}))
    >>> m.finish(m.add(a, Update(0, "b", "train", {"w": torch.tensor([7.0, 4.0, 7.0])}, 2.0, {})))["w"].tolist()
    [1.0, 3.0, 0.0]
    """
    if weights not in ("examples", "uniform"):
        raise ConfigError(f"held weights = {weights!r}: must be 'examples' or 'uniform'")

    def add(shares: Shares, update: Update) -> Shares:
        weight = update.weight if weights == "examples" else 1.0
        placed = place(update)
        mine = {name: x.double() * weight for name, x in placed.held.items()}
        if shares.tree is None or shares.weights is None:
            return Shares(tree.map(lambda x: _wide(x).mul_(weight * update.factor), placed.tree), mine)
        summed = tree.axpy_(shares.tree, placed.tree, weight * update.factor)
        return Shares(summed, {name: x + mine[name] for name, x in shares.weights.items()})

    def merge(a: Shares, b: Shares) -> Shares:
        if a.tree is None or a.weights is None or b.tree is None or b.weights is None:
            return b if a.tree is None else a
        return Shares(tree.axpy_(a.tree, b.tree), {name: x + b.weights[name] for name, x in a.weights.items()})

    def finish(shares: Shares) -> Tree:
        if shares.tree is None or shares.weights is None:
            return {}
        for name, x in shares.tree.items():
            behind = shares.weights[name].to(x.dtype)
            x.div_(torch.where(behind > 0, behind, 1.0)).mul_(behind > 0)
        return shares.tree

    return Aggregator(lambda: Shares(None, None), add, merge, finish, only_sum=False)


def _wide(x: Tensor) -> Tensor:
    """A fresh tensor in the dtype to add up in: float64 stays, everything else becomes float32."""
    return x.to(torch.float64 if x.dtype == torch.float64 else torch.float32, copy=True)
