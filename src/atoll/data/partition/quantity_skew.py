"""Clients that hold much and clients that hold little, each a random sample (Li et al. 2022, arXiv:2102.02079, section 4.3)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from atoll import rng
from atoll.data.partition.parts import Columns, Part, Partition, count_of, several
from atoll.errors import ConfigError


def quantity_skew(alpha: float = 0.5, min_examples: int = 1) -> Partition:
    """Sizes in proportions drawn from Dir(alpha), after `min_examples` for each client.

    Raises:
        ConfigError: alpha is not positive, or there are too few examples.

    >>> sum(len(part.rows) for part in quantity_skew(0.3)({"y": torch.zeros(50)}, 4, 0))
    50
    """
    if not 0 < alpha < float("inf"):
        raise ConfigError(f"alpha is {alpha}, but a Dirichlet distribution needs a number above 0.")

    def partition(columns: Columns, clients: int | None, seed: int) -> list[Part]:
        number = several(clients, count_of(columns), min_examples)
        shares = np.random.default_rng(rng.seed(seed, "quantity_skew")).dirichlet(np.full(number, alpha))
        return _deal(count_of(columns), shares, min_examples, seed)

    return partition


def power_law(exponent: float = 1.2, min_examples: int = 1) -> Partition:
    """Sizes that fall as rank**-exponent, after `min_examples` for each client: the first client holds most.

    Raises:
        ConfigError: exponent is below 0, or there are too few examples.

    >>> [len(part.rows) for part in power_law(1.0, min_examples=0)({"y": torch.zeros(110)}, 3, 0)]
    [60, 30, 20]
    """
    if not 0 <= exponent < float("inf"):
        raise ConfigError(f"exponent is {exponent}, but must be 0 (equal sizes) or more.")

    def partition(columns: Columns, clients: int | None, seed: int) -> list[Part]:
        number = several(clients, count_of(columns), min_examples)
        shares = np.arange(1, number + 1) ** -float(exponent)
        return _deal(count_of(columns), shares / shares.sum(), min_examples, seed)

    return partition


def _deal(count: int, shares: NDArray[np.float64], min_examples: int, seed: int) -> list[Part]:
    """Random parts, each as near to its share as whole numbers and the minimum allow."""
    free = count - min_examples * len(shares)
    sizes = np.floor(shares * free).astype(np.int64)
    short = np.argsort(sizes - shares * free, kind="stable")[: free - sizes.sum()]  # largest remainders first
    sizes[short] += 1
    order = rng.permutation(count, seed, "quantity")
    return [Part(index.sort().values) for index in torch.split(order, (sizes + min_examples).tolist())]
