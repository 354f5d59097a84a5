"""FedNova (Wang et al. 2020, arXiv:2007.07481, eqs. 6 and 10): updates are normalised by the steps behind them.

    w += (sum_k p_k a_k) sum_k p_k D_k / a_k

a_k, the norm of client k's accumulation vector: plain SGD tau; momentum rho (tau - rho (1 - rho^tau) / (1 - rho)) /
(1 - rho); proximal mu (1 - (1 - lr mu)^tau) / (lr mu).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch

from atoll import server_opt as opt
from atoll import tree
from atoll.aggregators.mean import mean
from atoll.algorithms.fedavg import State
from atoll.algorithms.fedprox import proximal
from atoll.errors import ConfigError
from atoll.local.corrections import correct, descent_of
from atoll.server_opt import ServerOpt
from atoll.types import Algorithm, ClientId, Finished, Local, Reduced, Request, Tree

TRAFFIC = {"train": {"up_values": 1}}  # the update, and a_k


def accumulation(steps: int, lr: float, momentum: float = 0.0, mu: float = 0.0) -> float:
    """a_k: by how much `steps` local steps multiply a constant gradient.

    >>> accumulation(5, 0.1), round(accumulation(2, 0.1, momentum=0.5), 6), round(accumulation(2, 0.1, mu=1.0), 6)
    (5.0, 2.5, 1.9)
    """
    if mu:
        return (1.0 - (1.0 - lr * mu) ** steps) / (lr * mu)
    if momentum:
        return (steps - momentum * (1.0 - momentum**steps) / (1.0 - momentum)) / (1.0 - momentum)
    return float(steps)


def fednova(local: Local[Any], mu: float = 0.0, server_opt: ServerOpt | None = None) -> Algorithm[State]:
    """FedAvg that stays consistent when clients take different numbers of steps.

    `mu`: also pull clients back as FedProx does. Raises ConfigError for AdamW (its accumulation vector is not known
    in advance) and for momentum together with mu.

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sorted(fednova(sgd(regression(linear(3, 1)), momentum=0.9)).local)
    ['train']
    """
    about, step_by = descent_of(local, "fednova"), opt.past(server_opt or opt.sgd(), local.averaged)
    if about.optimiser != "sgd" or (about.momentum and mu):
        raise ConfigError(
            f"fednova knows no accumulation vector for {about.optimiser} with momentum {about.momentum} and mu {mu}: "
            f"use sgd, and momentum or mu"
        )

    def final(finished: Finished) -> tuple[Tree, Tree]:
        a = accumulation(finished.steps, finished.lr_sum / finished.steps, about.momentum, mu)
        return {**tree.put(tree.scale(finished.delta, 1.0 / a), "d/"), "a": torch.tensor(a)}, finished.memory

    def round(state: State, clients: Sequence[ClientId]) -> Generator[Request, Reduced, State]:
        like = {**tree.put(state.params, "d/"), "a": torch.zeros(())}
        reduced = yield Request("train", clients, lambda _: state.params, mean(), like=like)
        step = tree.scale(tree.take(reduced.tree, "d/"), float(reduced.tree["a"]))
        step, after = step_by.update(step, state.opt)
        return State(tree.add(state.params, step), after)

    fold = proximal(local, mu, "fednova", final, True) if mu else correct(local, "fednova", final=final, composite=True)
    return Algorithm(lambda w: State(tree.pack(w), step_by.init(w)), round, lambda s: s.params, {"train": fold})
