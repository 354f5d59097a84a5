"""DiLoCo (Douillard et al. 2023, arXiv:2311.08105, Algorithm 1): few, large outer steps over many inner AdamW steps.

client  H inner steps from w, by an optimiser whose state stays with it; D_k = y_k - w
server  g = mean(-D_k);  m = mu m + g;  w -= lr (g + mu m)
"""

from __future__ import annotations

from typing import Any

from atoll import server_opt as opt
from atoll.algorithms.fedavg import State, fedavg
from atoll.errors import ConfigError
from atoll.types import Algorithm, Local


def diloco(local: Local[Any], outer_lr: float = 0.7, momentum: float = 0.9) -> Algorithm[State]:
    """Low-communication pretraining: kept inner optimisers, Nesterov momentum on the mean of what they did.

    `local`: `adamw(task, steps=H, keep=True)`; the paper takes H = 500 steps and every worker in every round.
    Raises ConfigError unless the local work keeps its state: begun anew each round, an inner optimiser would see
    the same few batches for ever.

    >>> from atoll.local.adamw import adamw
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sorted(diloco(adamw(regression(linear(3, 1)), steps=20, keep=True)).local)
    ['train']
    """
    return fedavg(goes_on(local, "diloco"), opt.momentum(outer_lr, momentum, nesterov=True), weights="uniform")


def goes_on(local: Local[Any], algorithm: str) -> Local[Any]:
    """The local work itself; ConfigError if it begins anew in each round."""
    if not local.batching.keep:
        raise ConfigError(
            f"{algorithm} goes on with each client's optimiser and place in its data, and this local work begins anew "
            f"in each round; use adamw or sgd with keep = true"
        )
    return local
