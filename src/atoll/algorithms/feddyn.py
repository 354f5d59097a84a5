"""FedDyn (Acar et al. 2021, arXiv:2111.04263, Algorithm 1): a regulariser that makes local and global optima agree.

client  y -= lr (grad F_k(y) - g_k + alpha (y - w));   g_k' = g_k - alpha (y - w)
server  h' = h - alpha / N sum_k (y_k - w);   w' = mean(y_k) - h' / alpha
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atoll import tree
from atoll.aggregators.mean import mean
from atoll.errors import ConfigError
from atoll.local.corrections import correct
from atoll.types import Algorithm, Assignment, ClientId, Finished, Local, Reduced, Request, Tree


class State(NamedTuple):
    """The global model and the server's h."""

    params: Tree
    h: Tree


def feddyn(local: Local[Any], population: int, alpha: float = 0.1) -> Algorithm[State]:
    """Each client remembers g_k, an estimate of its own gradient at the optimum, from 0.

    `population`: N, the number of clients. `alpha`: strength of the regulariser.

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sorted(feddyn(sgd(regression(linear(3, 1))), population=4).local)
    ['train']
    """
    if not alpha > 0 or population < 1:
        raise ConfigError(f"feddyn alpha = {alpha}, population = {population}: both must be above 0")

    def start(assignment: Assignment, memory: Tree) -> tuple[Tree, dict[str, Tree]]:
        own = tree.take(memory, "feddyn/") or tree.zeros(assignment.tree)
        return assignment.tree, {"start": assignment.tree, "own": own}

    def bend(grads: list[Tensor], params: list[Tensor], context: Mapping[str, list[Tensor]]) -> None:
        torch._foreach_sub_(grads, context["own"])
        torch._foreach_add_(grads, params, alpha=alpha)
        torch._foreach_add_(grads, context["start"], alpha=-alpha)

    def final(finished: Finished) -> tuple[Tree, Tree]:
        own = tree.map(lambda g, d: g - alpha * d, finished.context["own"], finished.delta)
        return finished.delta, {**finished.memory, **tree.put(own, "feddyn/")}

    def round(state: State, clients: Sequence[ClientId]) -> Generator[Request, Reduced, State]:
        reduced = yield Request("train", clients, lambda _: state.params, mean("uniform"), like=state.params)
        share = reduced.heads / population
        h = tree.map(lambda h, d: h - alpha * share * d, state.h, reduced.tree)
        moved = tree.map(lambda w, d, h: w + d - h / alpha, state.params, reduced.tree, h)
        if local.averaged:  # batch norm's statistics have no gradient to correct
            own = {name: state.params[name] + reduced.tree[name] for name in local.averaged}
            moved = tree.pack({name: own.get(name, x) for name, x in moved.items()})
        return State(moved, h)

    fold = correct(local, "feddyn", start, bend, final)
    return Algorithm(lambda w: State(tree.pack(w), tree.zeros(tree.pack(w))), round, lambda s: s.params, {"train": fold})
