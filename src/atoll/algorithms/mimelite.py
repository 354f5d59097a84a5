"""MIME-lite with SGD and momentum (Karimireddy et al. 2020, arXiv:2008.03606, Algorithm 2, no control variate).

client  y -= lr ((1 - beta) grad F_k(y) + beta m)          the server's momentum, fixed during local steps
server  w' = mean(y_k);   m' = (1 - beta) mean(grad F_k(w)) + beta m
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
from atoll.local.full_gradient import full_gradient
from atoll.types import Algorithm, Assignment, ClientId, Local, Reduced, Request, Task, Tree

TRAFFIC = {"train": {"down": 2}, "gradient": {}}  # model and momentum for an update; then the model for its gradient


class State(NamedTuple):
    """The global model and the momentum."""

    params: Tree
    momentum: Tree


def mimelite(local: Local[Any], task: Task, beta: float = 0.9, batch_size: int | None = None) -> Algorithm[State]:
    """Clients mimic a central optimiser: its momentum bends every local step but is updated by the server only.

    Two requests a round: the cohort trains, then gives its full gradient at the model it started from.
    Raises ConfigError unless the local work is plain SGD.

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> task = regression(linear(3, 1))
    >>> sorted(mimelite(sgd(task), task).local)
    ['gradient', 'train']
    """
    if not 0 <= beta < 1:
        raise ConfigError(f"mimelite beta = {beta}: must be in [0, 1)")

    def start(assignment: Assignment, memory: Tree) -> tuple[Tree, dict[str, Tree]]:
        return tree.take(assignment.tree, "w/"), {"m": tree.take(assignment.tree, "m/")}

    def bend(grads: list[Tensor], params: list[Tensor], context: Mapping[str, list[Tensor]]) -> None:
        torch._foreach_mul_(grads, 1.0 - beta)
        torch._foreach_add_(grads, context["m"], alpha=beta)

    def round(state: State, clients: Sequence[ClientId]) -> Generator[Request, Reduced, State]:
        sent = {**tree.put(state.params, "w/"), **tree.put(state.momentum, "m/")}
        reduced = yield Request("train", clients, lambda _: sent, mean("uniform"), like=state.params)
        cohort = reduced.clients
        at_start = yield Request("gradient", cohort, lambda _: state.params, mean("uniform"), True, len(cohort), state.params)
        m = tree.map(lambda m, g: (1.0 - beta) * g + beta * m, state.momentum, at_start.tree)
        return State(tree.add(state.params, reduced.tree), m)

    fold = correct(local, "mimelite", start, bend, plain_sgd=True)
    locals_ = {"train": fold, "gradient": full_gradient(task, batch_size)}
    return Algorithm(lambda w: State(tree.pack(w), tree.zeros(tree.pack(w))), round, lambda s: s.params, locals_)
