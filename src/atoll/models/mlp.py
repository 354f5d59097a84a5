"""Multilayer perceptron with ReLU: the "2NN" of McMahan et al. 2017 (https://arxiv.org/abs/1602.05629) by default."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from atoll.rng import seeded


def mlp(inputs: int = 784, hidden: Sequence[int] = (200, 200), outputs: int = 10, seed: int = 0) -> nn.Module:
    """Multilayer perceptron: x (n, ...) flattened to (n, inputs) -> (n, outputs), ReLU between.

    The defaults are the 199,210 parameters of McMahan's MNIST 2NN.

    >>> sum(p.numel() for p in mlp().parameters())
    199210
    """
    with seeded(seed):
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i, (before, after) in enumerate(pairwise((inputs, *hidden)), start=1):
            layers[f"hidden{i}"] = nn.Linear(before, after)
            layers[f"relu{i}"] = nn.ReLU()
        layers["output"] = nn.Linear((inputs, *hidden)[-1], outputs)
        return nn.Sequential(layers)
