"""Clients that see the same things differently: noise, rotation or another order of features.

Noise that grows with the client's number is "noise-based feature imbalance" of Li et al. 2022 (arXiv:2102.02079, section
4.2): client i of N adds Gaussian noise of variance strength * i / N. Rotation and permutation are the rotated and
permuted variants of Kairouz et al. 2021 (arXiv:1912.04977, section 3.1, "same label, different features").
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from atoll import rng
from atoll.data.partition.iid import iid
from atoll.data.partition.parts import Columns, Part, Partition
from atoll.errors import ConfigError, DataError
from atoll.types import Batch

_KINDS = ("noise", "rotation", "permutation")


def feature_shift(
    kind: str = "noise", strength: float | None = None, column: str = "x", within: Partition | None = None
) -> Partition:
    """Equal random parts (or those of `within`) whose inputs each client sees in its own way.

    `kind` is "noise" (strength: the variance that the last client comes near, 0.1), "rotation" (strength: degrees that
    the last client's images are turned, 90; the others evenly below) or "permutation" (strength: the share of features
    that change places at each client but the first, 1.0). The shift is drawn once, from the seed.

    Raises:
        ConfigError: kind is another, strength is negative, or a share above 1.
        DataError: rotation is asked of inputs that are not images (n, channels, height, width).

    >>> parts = feature_shift("permutation")({"x": torch.arange(8.0).reshape(2, 4)}, 2, 0)
    >>> [part.transform is not None for part in parts]
    [True, True]
    """
    if kind not in _KINDS:
        raise ConfigError(f"kind is {kind!r}, but feature_shift knows {', '.join(_KINDS)}.")
    amount = {"noise": 0.1, "rotation": 90.0, "permutation": 1.0}[kind] if strength is None else strength
    if not 0 <= amount < math.inf or (kind == "permutation" and amount > 1):
        raise ConfigError(f"strength is {amount}, but must be 0 or more, and at most 1 for a permutation.")
    base = iid() if within is None else within

    def partition(columns: Columns, clients: int | None, seed: int) -> list[Part]:
        parts = base(columns, clients, seed)
        shift = partial(_shifted, kind=kind, amount=amount, clients=len(parts), column=column, seed=seed)
        return [part._replace(transform=partial(shift, number=number)) for number, part in enumerate(parts)]

    return partition


def _shifted(batch: Batch, kind: str, amount: float, number: int, clients: int, column: str, seed: int) -> Batch:
    """The batch as client `number` of `clients` sees it."""
    if column not in batch:
        raise ConfigError(f"feature_shift changes a column {column!r}, but there are {', '.join(batch)}.")
    x = batch[column]
    if not x.is_floating_point():
        raise DataError(f"feature_shift needs inputs of floating point, but {column!r} is {x.dtype}.")
    generator = rng.generator(seed, "feature_shift", kind, number)
    if kind == "noise":
        x = x + math.sqrt(amount * number / clients) * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    elif kind == "rotation":
        x = _rotated(x, amount * number / max(1, clients - 1))
    elif number > 0:
        x = _permuted(x, amount, generator)
    return {**batch, column: x}


def _rotated(x: Tensor, degrees: float) -> Tensor:
    if x.dim() != 4:
        raise DataError(
            f"rotation needs images of shape (n, channels, height, width), but the inputs have shape {tuple(x.shape)}."
        )
    if degrees == 0 or len(x) == 0:
        return x
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = x.shape[2:]  # the grid counts in halves of a side: a turn of an oblong needs their ratio
    turn = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]], dtype=x.dtype)
    grid = affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return grid_sample(x, grid, padding_mode="border", align_corners=False)


def _permuted(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    flat = x.reshape(len(x), math.prod(x.shape[1:]))
    chosen = torch.randperm(flat.shape[1], generator=generator)[: round(share * flat.shape[1])]
    order = torch.arange(flat.shape[1])
    order[chosen] = chosen[torch.randperm(len(chosen), generator=generator)]
    return flat[:, order].reshape(x.shape)
