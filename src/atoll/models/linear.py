"""The multivariate linear model y = x W^T + b (Hastie, Tibshirani, Friedman 2009, eq. 3.34, less the noise)."""

from __future__ import annotations

from torch import nn

from atoll.rng import seeded


def linear(inputs: int = 1, outputs: int = 1, bias: bool = True, seed: int = 0) -> nn.Module:
    """Multivariate linear model: x (n, inputs) -> y (n, outputs).

    Logistic regression too, with the task `classification` and one output a class. Initialised uniformly in
    +-1/sqrt(inputs).

    >>> [tuple(p.shape) for p in linear(3, 2).parameters()]
    [(2, 3), (2,)]
    """
    with seeded(seed):
        return nn.Linear(inputs, outputs, bias=bias)
