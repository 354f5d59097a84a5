"""SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, option II).

y -= lr (g - c_k + c)                               K local steps of plain SGD
c_k' = c_k - c + (w - y) / (K lr)
w += lr_g mean(y - w);  c += |S| / N mean(c_k' - c_k)
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

TRAFFIC = {"train": {"down": 2, "up": 2}}  # model and control variate, each way


class State(NamedTuple):
    """The global model and the server's control variate c."""

    params: Tree
    control: Tree


def scaffold(local: Local[Any], population: int, lr: float = 1.0) -> Algorithm[State]:
    """Control variates correct the drift of local steps; each client remembers its own, c_k, from 0.

    `population`: N, the number of clients. `lr`: the server's. Means are uniform over the cohort, as in the paper.

    Raises ConfigError unless the local work is plain SGD.

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sorted(scaffold(sgd(regression(linear(3, 1))), population=4).local)
    ['train']
    """
    if population < 1:
        raise ConfigError(f"scaffold population = {population}: must be the number of clients, 1 or more")

    def start(assignment: Assignment, memory: Tree) -> tuple[Tree, dict[str, Tree]]:
        params, c = tree.take(assignment.tree, "w/"), tree.take(assignment.tree, "c/")
        own = tree.take(memory, "scaffold/") or tree.zeros(c)
        return params, {"c": c, "own": own, "drift": tree.sub(c, own)}

    def bend(grads: list[Tensor], params: list[Tensor], context: Mapping[str, list[Tensor]]) -> None:
        torch._foreach_add_(grads, context["drift"])

    def final(finished: Finished) -> tuple[Tree, Tree]:
        c, own = finished.context["c"], finished.context["own"]
        # (c_k' - c_k) = -c - D / (K lr), since D = y - w
        change = {name: -x - finished.delta[name] / finished.lr_sum for name, x in c.items()}
        payload = {**tree.put(finished.delta, "w/"), **tree.put(change, "c/")}
        return payload, {**finished.memory, **tree.put(tree.add(own, change), "scaffold/")}

    def round(state: State, clients: Sequence[ClientId]) -> Generator[Request, Reduced, State]:
        sent = {**tree.put(state.params, "w/"), **tree.put(state.control, "c/")}
        reduced = yield Request("train", clients, lambda _: sent, mean("uniform"), like=sent)
        step, change = tree.take(reduced.tree, "w/"), tree.take(reduced.tree, "c/")
        params = tree.add(state.params, tree.scale(step, lr))
        return State(params, tree.axpy_(tree.pack(state.control), change, reduced.heads / population))

    fold = correct(local, "scaffold", start, bend, final, plain_sgd=True, composite=True)
    return Algorithm(lambda w: State(tree.pack(w), tree.zeros(tree.pack(w))), round, lambda s: s.params, {"train": fold})
