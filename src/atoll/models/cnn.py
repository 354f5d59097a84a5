"""Convolutional network of McMahan et al. 2017 (https://arxiv.org/abs/1602.05629): two 5x5 layers and a dense one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from atoll.errors import ConfigError
from atoll.rng import seeded


def cnn(
    channels: int = 1,
    size: int = 28,
    filters: Sequence[int] = (32, 64),
    kernel: int = 5,
    hidden: int = 512,
    outputs: int = 10,
    seed: int = 0,
) -> nn.Module:
    """Convolutional network: x (n, channels, size, size) -> (n, outputs).

    Each of `filters` is a convolution padded to its input's size, ReLU and 2x2 max-pooling; then a dense layer of
    `hidden` and the output. The defaults are the 1,663,370 parameters of McMahan's MNIST CNN; a fast variant is
    `cnn(filters=[8, 16], kernel=3, hidden=64)`.

    Raises:
        ConfigError: the kernel is even, or the image is pooled away.

    >>> sum(p.numel() for p in cnn().parameters())
    1663370
    """
    if kernel % 2 == 0:
        raise ConfigError(f"kernel {kernel} is even: padding keeps an image's size under odd kernels only, such as {kernel + 1}.")
    side = size // 2 ** len(filters)
    if side == 0:
        raise ConfigError(f"{len(filters)} poolings halve an image of {size} pixels away: take fewer filters.")
    with seeded(seed):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (before, after) in enumerate(pairwise((channels, *filters)), start=1):
            layers[f"conv{i}"] = nn.Conv2d(before, after, kernel, padding=kernel // 2)
            layers[f"relu{i}"] = nn.ReLU()
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        layers["hidden"] = nn.Linear((channels, *filters)[-1] * side * side, hidden)
        layers["relu"] = nn.ReLU()
        layers["output"] = nn.Linear(hidden, outputs)
        return nn.Sequential(layers)
