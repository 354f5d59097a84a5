"""How many entries each tensor of a pruned model keeps, from shapes alone and without importing torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Literal

from atoll.errors import ConfigError

Spread = Literal["erk", "uniform"]


def densities(shapes: Mapping[str, Sequence[int]], density: float, spread: Spread = "erk") -> dict[str, float]:
    """The share of its entries that each tensor keeps, so that all together keep `density`.

    "erk" (Erdos-Renyi-Kernel; Evci et al. 2020, arXiv:1911.11134, section 3): in proportion to the sum of a tensor's
    axes over their product, so that small layers stay denser; where that is above 1 the tensor stays dense.

    >>> {name: round(d, 4) for name, d in densities({"a": (4, 4), "b": (16, 4)}, 0.25).items()}
    {'a': 0.3571, 'b': 0.2232}
    """
    if not 0 < density <= 1:
        raise ConfigError(f"density = {density}: must be above 0 and at most 1")
    if spread not in ("erk", "uniform"):
        raise ConfigError(f"spread = {spread!r}: must be 'erk' or 'uniform'")
    if spread == "uniform" or density == 1:
        return dict.fromkeys(shapes, float(density))
    sizes, sums = ({name: f(shape) for name, shape in shapes.items()} for f in (prod, sum))
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        left = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        shares = {name: left / sum(sums[n] for n in rest) * sums[name] / sizes[name] for name in rest}
        if max(shares.values(), default=0.0) <= 1:
            return {name: shares.get(name, 1.0) for name in shapes}
        dense.add(max(shares, key=shares.__getitem__))


def counts(shapes: Mapping[str, Sequence[int]], density: float, spread: Spread = "erk") -> dict[str, int]:
    """How many entries each tensor keeps, one at least."""
    return {name: max(1, round(share * prod(shapes[name]))) for name, share in densities(shapes, density, spread).items()}


def exchanged(kept: int, size: int, fraction: float) -> int:
    """How many of a tensor's kept entries a readjustment exchanges: a fraction, and no more than are pruned."""
    return min(round(fraction * kept), size - kept)
