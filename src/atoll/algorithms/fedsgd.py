"""FedSGD (McMahan et al. 2017, arXiv:1602.05629, section 2): w -= lr sum_k p_k grad F_k(w), p_k = n_k / sum n."""

from __future__ import annotations

from typing import Literal

from atoll import server_opt as opt
from atoll import tree
from atoll.algorithms.fedavg import State, fedavg
from atoll.errors import ConfigError
from atoll.local.full_gradient import full_gradient
from atoll.server_opt import ServerOpt
from atoll.types import Algorithm, Task


def fedsgd(
    task: Task,
    lr: float = 0.1,
    momentum: float = 0.0,
    batch_size: int | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> Algorithm[State]:
    """One step a round along the mean of the clients' full gradients; over all clients it is gradient descent.

    `momentum`: v = momentum v + g, as centralised SGD. `batch_size` only bounds a client's memory.

    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> fedsgd(regression(linear(3, 1)), lr=0.5).local["train"].batching.epochs
    1
    """
    if not lr > 0:
        raise ConfigError(f"fedsgd lr = {lr}: a learning rate must be above 0")
    step_by = opt.momentum(1.0, momentum) if momentum else opt.sgd(1.0)
    # Parameters arrive as gradients and go down by lr; buffers arrive as differences and pass the optimiser by.
    down = ServerOpt(step_by.init, lambda mean, state: step_by.update(tree.scale(mean, -lr), state))
    return fedavg(full_gradient(task, batch_size, precision), down)
