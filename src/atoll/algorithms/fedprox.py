"""FedProx (Li et al. 2020, arXiv:1812.06127, eq. 2): the client minimises F_k(y) + mu/2 |y - w|^2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from atoll.algorithms.fedavg import State, fedavg
from atoll.errors import ConfigError
from atoll.local.corrections import correct, plain
from atoll.server_opt import ServerOpt
from atoll.types import Algorithm, Finished, Local, Tree


def proximal(
    local: Local[Any],
    mu: float,
    algorithm: str = "fedprox",
    final: Callable[[Finished], tuple[Tree, Tree]] = plain,
    composite: bool = False,
) -> Local[Any]:
    """The fold with mu (y - w) added to each gradient."""

    def pull(grads: list[Tensor], params: list[Tensor], context: Mapping[str, list[Tensor]]) -> None:
        torch._foreach_add_(grads, params, alpha=mu)
        torch._foreach_add_(grads, context["start"], alpha=-mu)

    return correct(local, algorithm, gradient=pull, final=final, composite=composite)


def fedprox(local: Local[Any], mu: float = 0.01, server_opt: ServerOpt | None = None) -> Algorithm[State]:
    """FedAvg whose clients are pulled back to the model they started from; mu 0 is FedAvg.

    Raises ConfigError for a local fold whose gradient can't be corrected (`script`).

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sorted(fedprox(sgd(regression(linear(3, 1))), mu=0.1).local)
    ['train']
    """
    if mu < 0:
        raise ConfigError(f"fedprox mu = {mu}: must be 0 or more")
    return fedavg(proximal(local, mu), server_opt)
