"""FedAvg and what server optimisers make of it (McMahan et al. 2017, arXiv:1602.05629; Reddi et al. 2021, arXiv:2003.00295).

D_k = y_k - w        D = sum_k n_k D_k / sum_k n_k        w += server_opt(D)
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal, NamedTuple

from atoll import server_opt as opt
from atoll import tree
from atoll.aggregators.mean import mean
from atoll.server_opt import ServerOpt
from atoll.types import Aggregator, Algorithm, ClientId, Local, Reduced, Request, Tree


class State(NamedTuple):
    """The global model and the server optimiser's state."""

    params: Tree
    opt: Any


def fedavg(
    local: Local[Any],
    server_opt: ServerOpt | None = None,
    aggregator: Aggregator[Any] | None = None,
    weights: Literal["examples", "uniform"] = "examples",
) -> Algorithm[State]:
    """Average the clients' updates, weighted by their examples, and step (arXiv:1602.05629, Algorithm 1).

    `server_opt` (default: add the average) and `aggregator` (default: the mean by `weights`) change the step and
    the average. Under a `buffered` policy this is FedBuff (arXiv:2106.06639): with uniform weights,
    w += sum_k s(age_k) D_k / K.

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sorted(fedavg(sgd(regression(linear(3, 1)))).local)
    ['train']
    """
    step_by, reduce = opt.past(server_opt or opt.sgd(), local.averaged), aggregator or mean(weights)

    def round(state: State, clients: Sequence[ClientId]) -> Generator[Request, Reduced, State]:
        reduced = yield Request("train", clients, lambda _: state.params, reduce, like=state.params)
        step, after = step_by.update(reduced.tree, state.opt)
        return State(tree.add(state.params, step), after)

    return Algorithm(lambda w: State(tree.pack(w), step_by.init(w)), round, lambda state: state.params, {"train": local})


def fedavgm(local: Local[Any], lr: float = 1.0, beta: float = 0.9, nesterov: bool = False) -> Algorithm[State]:
    """FedAvg with server momentum: v = beta v + D; w += lr v (Hsu et al. 2019, arXiv:1909.06335).

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sorted(fedavgm(sgd(regression(linear(3, 1)))).local)
    ['train']
    """
    return fedavg(local, opt.momentum(lr, beta, nesterov))


def fedadam(local: Local[Any], lr: float = 0.01, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3) -> Algorithm[State]:
    """FedAvg with Adam at the server (arXiv:2003.00295, Algorithm 2; see `atoll.server_opt.adam`).

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sorted(fedadam(sgd(regression(linear(3, 1)))).local)
    ['train']
    """
    return fedavg(local, opt.adam(lr, b1, b2, tau))


def fedyogi(local: Local[Any], lr: float = 0.01, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3) -> Algorithm[State]:
    """FedAvg with Yogi at the server (arXiv:2003.00295, Algorithm 2; see `atoll.server_opt.yogi`).

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sorted(fedyogi(sgd(regression(linear(3, 1)))).local)
    ['train']
    """
    return fedavg(local, opt.yogi(lr, b1, b2, tau))


def fedadagrad(local: Local[Any], lr: float = 0.01, b1: float = 0.0, tau: float = 1e-3) -> Algorithm[State]:
    """FedAvg with Adagrad at the server (arXiv:2003.00295, Algorithm 2; see `atoll.server_opt.adagrad`).

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sorted(fedadagrad(sgd(regression(linear(3, 1)))).local)
    ['train']
    """
    return fedavg(local, opt.adagrad(lr, b1, tau))
